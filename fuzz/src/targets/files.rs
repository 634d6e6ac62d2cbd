//! What a source says of directories that come along.

use ferry_engine::companion::{BlobSink, Companion, CompanionSink, SinkGone};
use ferry_engine::files::{Existing, Setup, SourceTree, SyncSink, SyncSource, TreeSetup, obstacles};
use ferry_transport::wire::blob;
use std::collections::HashSet;
use std::path::Path;

/// A blob's frame, its content, and what the offer says of it all.
pub fn blobs(input: &[u8]) {
    if let Ok(setup) = Setup::parse(input) {
        let _ = obstacles(&setup);
    }
    if let Some((head, payload)) = input.split_first_chunk()
        && let Ok(header) = blob::Header::parse(*head)
    {
        let _ = header.content(payload.to_vec().into());
    }
    let Ok(home) = tempfile::tempdir() else { return };
    let there = home.path().join("there");
    let path = there.to_str().unwrap_or_default().to_owned();
    let tree = TreeSetup { path, existing: Existing::Refuse, names: 0, bytes: 0 };
    let Ok(mut sink) = SyncSink::open(&Setup::new(vec![tree]), home.path(), "1") else { return };
    // The first refusal ends the migration.
    let _ = sink.take(input).and_then(|()| sink.ready());
    let discarded = Box::new(sink).discard();
    assert!(discarded.is_ok() && !there.exists(), "something was left: {discarded:?}");
}

#[derive(Default)]
struct Seeds(Vec<Vec<u8>>);

impl BlobSink for Seeds {
    fn put(&mut self, blob: bytes::Bytes) -> Result<(), SinkGone> {
        self.0.push(blob.to_vec());
        Ok(())
    }
}

pub(super) fn blob_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Seeds::default();
    let said = tempfile::tempdir().and_then(|home| {
        let here = home.path().to_owned();
        fill(&here)?;
        let tree = SourceTree { here: here.clone(), there: "/none/there".into(), existing: Existing::Refuse };
        let mut source =
            SyncSource::open(vec![tree], Box::new(HashSet::new)).map_err(std::io::Error::other)?;
        seeds.0.push(source.setup());
        source.round(&mut seeds).map_err(std::io::Error::other)?;
        std::fs::rename(here.join("file"), here.join("d/moved"))?;
        std::fs::remove_file(here.join("link"))?;
        source.finish(&mut seeds).map_err(std::io::Error::other)?;
        source.seal(&mut seeds).map_err(std::io::Error::other).map(drop)
    });
    assert!(said.is_ok(), "no seeds: {said:?}");
    let content = bytes::Bytes::from_static(b"some content");
    if let Ok(frame) = blob::encode(&content, ferry_transport::wire::compress::Encoding::Raw) {
        seeds.0.push(frame.concat());
    }
    seeds.0
}

fn fill(here: &Path) -> std::io::Result<()> {
    std::fs::create_dir(here.join("d"))?;
    std::fs::write(here.join("file"), b"content")?;
    std::fs::hard_link(here.join("file"), here.join("d/second"))?;
    std::os::unix::fs::symlink("file", here.join("link"))?;
    std::fs::File::create(here.join("sparse"))?.set_len(1 << 20)
}
