use super::super::entry::Device;
use super::super::record::{Content, Writer};
use super::super::setup::Existing;
use super::*;
use crate::companion::{BlobSink, SinkGone};
use proptest::prelude::*;
use std::fs;

#[derive(Default)]
struct Blobs(Vec<bytes::Bytes>);

impl BlobSink for Blobs {
    fn put(&mut self, blob: bytes::Bytes) -> Result<(), SinkGone> {
        self.0.push(blob);
        Ok(())
    }
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.into()).unwrap()
}

fn sink(home: &Path) -> Box<SyncSink> {
    let there = home.join("there").to_str().unwrap().to_owned();
    let tree = TreeSetup { path: there, existing: Existing::Refuse, names: 1, bytes: 1 };
    Box::new(SyncSink::open(&Setup::new(vec![tree]), &home.join("state"), "1").unwrap())
}

fn say(sink: &mut SyncSink, said: &[Record]) -> Result<(), CompanionError> {
    let mut blobs = Blobs::default();
    let mut writer = Writer::new(&mut blobs);
    said.iter().try_for_each(|record| writer.say(record))?;
    writer.flush()?;
    blobs.0.iter().try_for_each(|blob| sink.take(blob))
}

fn make(at: &str, kind: Kind) -> Record {
    Record::Make { path: path(at), kind }
}

fn data(at: &str) -> Record {
    Record::Data { path: path(at), offset: 0, content: Content::of(b"overwritten") }
}

/// Nothing of it is left, wherever it stood.
fn nothing_is_left(home: &Path) {
    let mut names: Vec<_> = fs::read_dir(home).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.retain(|name| name != "state" && name != "outside");
    assert!(names.is_empty(), "{names:?}");
    assert_eq!(fs::read_dir(home.join("state/files")).unwrap().count(), 0);
}

#[test]
fn no_link_leads_out() {
    let home = tempfile::tempdir().unwrap();
    let outside = home.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), b"mine").unwrap();
    let to = outside.to_str().unwrap().as_bytes().to_vec();
    let ways: [&[Record]; 4] = [
        &[make("l", Kind::Symlink(to.clone())), make("l/new", Kind::File)],
        &[make("l", Kind::Symlink(to.clone())), data("l/file")],
        &[make("l", Kind::Symlink(outside.join("file").to_str().unwrap().into())), data("l")],
        &[make("d", Kind::Directory), make("l", Kind::Symlink(to)), Record::Remove { path: path("l/file") }],
    ];
    for said in ways {
        let mut sink = sink(home.path());
        assert!(say(&mut sink, said).is_err(), "{said:?}");
        sink.discard().unwrap();
        nothing_is_left(home.path());
    }
    // The disk is asked too, should the model ever be wrong.
    let mut sink = sink(home.path());
    let root = sink.trees[0].place.tree();
    say(&mut sink, &[make("d", Kind::Directory)]).unwrap();
    fs::remove_dir(root.join("d")).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("d")).unwrap();
    assert!(say(&mut sink, &[make("d/new", Kind::File)]).is_err());
    sink.discard().unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"mine");
}

#[test]
fn what_is_not_whole_is_not_put_in_place() {
    let home = tempfile::tempdir().unwrap();
    for said in [
        vec![],
        vec![make("f", Kind::File), Record::Final(Summary { names: 2, digest: 0 })],
        vec![make("f", Kind::File), Record::Final(Summary { names: 1, digest: 1 })],
    ] {
        let mut sink = sink(home.path());
        say(&mut sink, &said).unwrap();
        assert!(sink.ready().unwrap_err().to_string().contains("whole"));
        assert!(!home.path().join("there").exists());
        sink.discard().unwrap();
        nothing_is_left(home.path());
    }
}

#[test]
fn nothing_may_follow_the_end_nor_concern_another_tree() {
    let home = tempfile::tempdir().unwrap();
    let mut sink = sink(home.path());
    assert!(say(&mut sink, &[Record::Tree(7), make("f", Kind::File)]).is_err());
    assert!(say(&mut sink, &[Record::Tree(0), Record::Final(Summary::default())]).is_ok());
    assert!(say(&mut sink, &[make("f", Kind::File)]).is_err());
    sink.discard().unwrap();
    nothing_is_left(home.path());
}

#[test]
fn a_receiver_that_died_is_tidied_up_after() {
    use super::super::settle::{Lives, settle};
    for lives in [Lives::Here, Lives::Elsewhere] {
        for is_put in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let mut sink = sink(home.path());
            let end = Record::Final(Summary { names: 1, digest: 0 });
            say(&mut sink, &[make("f", Kind::File), end]).unwrap();
            if is_put {
                sink.ready().unwrap();
            }
            // As if it had died: nothing is decided.
            std::mem::forget(sink);
            settle(&home.path().join("state"), "1", lives).unwrap();
            if is_put && lives == Lives::Here {
                assert!(home.path().join("there/f").exists());
                fs::remove_dir_all(home.path().join("there")).unwrap();
            }
            nothing_is_left(home.path());
            settle(&home.path().join("state"), "1", lives).unwrap();
        }
    }
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let names = || prop::sample::select(vec!["", "a", "b", "a/a", "a/b", "a/a/a", "b/a"]).prop_map(path);
    let kind = prop_oneof![
        Just(Kind::File),
        Just(Kind::Directory),
        Just(Kind::Fifo),
        Just(Kind::Symlink(b"a".to_vec())),
        Just(Kind::CharacterDevice(Device { major: 0, minor: 0 })),
    ];
    let record = prop_oneof![
        (0..3u64, names()).prop_map(|(number, path)| Record::Keep { number, path }),
        names().prop_map(|path| Record::Remove { path }),
        (names(), kind).prop_map(|(path, kind)| Record::Make { path, kind }),
        (names(), names()).prop_map(|(path, to)| Record::Link { path, to }),
        (names(), 0..3u64).prop_map(|(path, number)| Record::LinkKept { path, number }),
        (names(), 0..3u64, 0..70_000usize).prop_map(|(path, block, length)| Record::Data {
            path,
            offset: block * BLOCK,
            content: Content::of(&vec![1; length])
        }),
        (names(), 0..3u64, 0..BLOCK).prop_map(|(path, block, length)| Record::Hole {
            path,
            offset: block * BLOCK,
            length
        }),
        (names(), any::<u32>()).prop_map(|(path, size)| Record::Size { path, size: size.into() }),
        names().prop_map(|path| Record::Meta { path, meta: Meta::default(), content: None }),
        Just(Record::RoundEnd),
    ];
    prop::collection::vec(record, 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_a_source_says_model_and_disk_agree_and_nothing_is_left(said in records()) {
        let home = tempfile::tempdir().unwrap();
        let mut sink = sink(home.path());
        for record in said {
            let before = sink.trees[0].model.summary();
            if let Err(error) = say(&mut sink, std::slice::from_ref(&record)) {
                // The model refused it, or else it is the disk, which has no reason to.
                prop_assert!(error.to_string().contains("what cannot be"), "{record:?}: {error}");
                prop_assert_eq!(before, sink.trees[0].model.summary());
            }
        }
        sink.discard().unwrap();
        nothing_is_left(home.path());
    }

    #[test]
    fn random_bytes_do_nothing(blob in prop::collection::vec(any::<u8>(), 0..300)) {
        let home = tempfile::tempdir().unwrap();
        let mut sink = sink(home.path());
        let _ = sink.take(&blob);
        sink.discard().unwrap();
        nothing_is_left(home.path());
    }
}
