//! CRIU's images on their way to the destination.

use ferry_transport::link::{ControlSender, LinkError};
use ferry_transport::wire::control::{ImageFile, MAX_IMAGE_PART, Message};
use std::path::Path;

/// The most image bytes that one migration may have; ghost files and shared
/// memory are in them.
const MAX_IMAGES: u64 = 64 << 30;

/// Sends every `*.img` of a directory, part by part, and returns how many files
/// there were. Nothing is kept in memory but one part.
pub async fn send_images(directory: &Path, control: &mut dyn ControlSender) -> Result<u32, LinkError> {
    let local = |what: &str, error: std::io::Error| {
        LinkError::Local(format!("{what} in {}: {error}", directory.display()))
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|e| local("cannot list the images", e))? {
        let name = entry.map_err(|e| local("cannot list the images", e))?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(".img") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    let mut total = 0;
    for name in &names {
        // On tmpfs: a read is a copy, not a wait.
        let file = std::fs::File::open(directory.join(name)).map_err(|e| local(name, e))?;
        let size = file.metadata().map_err(|e| local(name, e))?.len();
        total += size;
        if total > MAX_IMAGES {
            return Err(LinkError::Local(format!("CRIU's images are larger than {MAX_IMAGES} bytes")));
        }
        send_file(name, &file, size, control).await.map_err(|error| match error {
            SendFile::Read(error) => local(name, error),
            SendFile::Link(error) => error,
        })?;
    }
    Ok(names.len() as u32)
}

enum SendFile {
    Read(std::io::Error),
    Link(LinkError),
}

async fn send_file(
    name: &str,
    file: &std::fs::File,
    size: u64,
    control: &mut dyn ControlSender,
) -> Result<(), SendFile> {
    use std::os::unix::fs::FileExt;
    let mut crc = crc32fast::Hasher::new();
    let mut offset = 0;
    loop {
        let mut data = vec![0; (size - offset).min(MAX_IMAGE_PART as u64) as usize];
        file.read_exact_at(&mut data, offset).map_err(SendFile::Read)?;
        crc.update(&data);
        let end = offset + data.len() as u64;
        // The last part carries the checksum of the whole; earlier ones of what came so far.
        let part = ImageFile { name: name.to_owned(), crc: crc.clone().finalize(), size, offset, data };
        control.send(&Message::Image(part)).await.map_err(SendFile::Link)?;
        if end >= size {
            return Ok(());
        }
        offset = end;
    }
}
