//! An image on its way: Docker's own archive (`docker save`), without the layers that
//! the other host has, as a stream of bytes.
//!
//! Docker reads a layer's file only where it does not have the layer, so an archive may
//! lack those that it has.

use super::api::{Api, ApiError, escaped};
use super::image::{ImageClaim, ImagePlan};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use tar::{Archive, Builder, EntryType};

/// The longest list of contents that an archive may have.
const MAX_MANIFEST: u64 = 4 << 20;

/// Why an image did not arrive. The workload is not touched by it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Docker did not do its part.
    #[error(transparent)]
    Docker(#[from] ApiError),
    /// The archive, or its way, failed.
    #[error("the image's archive: {0}")]
    Archive(#[from] io::Error),
    /// Docker took the archive, and does not have the image.
    #[error("Docker did not load the image: {0}")]
    NotLoaded(String),
}

/// Writes what the plan says is missing. Nothing where nothing is.
pub fn send(api: &Api, image: &ImageClaim, plan: ImagePlan, mut to: impl Write) -> Result<(), ImageError> {
    let archive = || api.download(&format!("/images/{}/get", escaped(&image.id)));
    match plan {
        ImagePlan::Nothing => {}
        ImagePlan::Above(0) => {
            io::copy(&mut archive()?, &mut to)?;
        }
        ImagePlan::Above(there) => {
            // The list of layers may come after them: the archive is read twice here, so
            // that it need not be kept.
            let left_out = Contents::read(archive()?)?.left_out(there);
            copy_without(&left_out, archive()?, &mut to)?;
        }
    }
    Ok(())
}

/// Takes an archive, to its end; what the image is called here.
pub fn load(api: &Api, image: &ImageClaim, from: impl Read) -> Result<String, ImageError> {
    let said = api.upload("/images/load?quiet=1", "application/x-tar", from)?;
    match api.get(&format!("/images/{}/json", escaped(&image.id))) {
        Ok(_) => Ok(image.called(api)?),
        Err(error) if error.is_missing() => loaded_as(&said).map_err(ImageError::NotLoaded),
        Err(error) => Err(error.into()),
    }
}

/// Engines that keep images in another form number them differently: what they call it.
fn loaded_as(said: &str) -> Result<String, String> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Line {
        stream: String,
        error: String,
    }
    let lines = || said.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    if let Some(line) = lines().find(|line| !line.error.is_empty()) {
        return Err(line.error);
    }
    let name = |line: Line| {
        let text = line.stream.trim();
        let name = text.strip_prefix("Loaded image ID:").or_else(|| text.strip_prefix("Loaded image:"))?;
        Some(name.trim().to_owned())
    };
    lines().find_map(name).ok_or_else(|| said.trim().to_owned())
}

/// Where the layers of the one image in an archive are.
#[derive(Debug, Default)]
struct Contents {
    /// The lowest first.
    layers: Vec<String>,
    /// Links in the archive and what they lead to.
    links: BTreeMap<String, String>,
}

impl Contents {
    fn read(archive: impl Read) -> io::Result<Contents> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Manifest {
            layers: Vec<String>,
        }
        let mut contents = Contents::default();
        for entry in Archive::new(archive).entries()? {
            let entry = entry?;
            let path = name_of(&entry)?;
            if let Some(target) = entry.link_name()? {
                let leads_to = resolved(&path, &target.to_string_lossy());
                contents.links.insert(path, leads_to);
            } else if path == "manifest.json" {
                let manifests: Vec<Manifest> = serde_json::from_reader(entry.take(MAX_MANIFEST))?;
                contents.layers =
                    manifests.into_iter().next().map(|manifest| manifest.layers).unwrap_or_default();
            }
        }
        Ok(contents)
    }

    /// The files of the lowest layers, without those that another layer needs.
    fn left_out(&self, there: usize) -> BTreeSet<String> {
        let (there, missing) = self.layers.split_at(there.min(self.layers.len()));
        let needed: BTreeSet<&String> =
            missing.iter().flat_map(|layer| [Some(layer), self.links.get(layer)]).flatten().collect();
        there.iter().filter(|layer| !needed.contains(layer)).cloned().collect()
    }
}

fn name_of<R: Read>(entry: &tar::Entry<'_, R>) -> io::Result<String> {
    Ok(entry.path()?.to_string_lossy().trim_end_matches('/').to_owned())
}

/// Where a link leads, as the archive names it.
fn resolved(link: &str, target: &str) -> String {
    let mut parts: Vec<&str> = link.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn copy_without(left_out: &BTreeSet<String>, archive: impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut builder = Builder::new(to);
    for entry in Archive::new(archive).entries()? {
        let entry = entry?;
        let path = name_of(&entry)?;
        if left_out.contains(&path) {
            continue;
        }
        let mut header = entry.header().clone();
        match (header.entry_type(), entry.link_name()?) {
            (EntryType::Symlink | EntryType::Link, Some(target)) => {
                let target = target.into_owned();
                builder.append_link(&mut header, path, target)?;
            }
            _ => builder.append_data(&mut header, path, entry)?,
        }
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive as Docker 20.10 writes them: the manifest last, a layer twice.
    fn archive() -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        let mut file = |path: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, content).unwrap();
        };
        file("a/layer.tar", b"lowest");
        file("b/layer.tar", b"middle");
        file("d/layer.tar", b"highest");
        file("manifest.json", br#"[{"Layers":["a/layer.tar","b/layer.tar","c/layer.tar","d/layer.tar"]}]"#);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "c/layer.tar", "../a/layer.tar").unwrap();
        builder.into_inner().unwrap()
    }

    fn left_after(there: usize) -> Vec<String> {
        let left_out = Contents::read(&archive()[..]).unwrap().left_out(there);
        let mut sent = Vec::new();
        copy_without(&left_out, &archive()[..], &mut sent).unwrap();
        let mut read = Archive::new(&sent[..]);
        read.entries().unwrap().map(|entry| name_of(&entry.unwrap()).unwrap()).collect()
    }

    #[test]
    fn layers_that_are_there_are_left_out_unless_another_needs_their_file() {
        assert_eq!(left_after(0).len(), 5);
        assert_eq!(left_after(2), ["a/layer.tar", "d/layer.tar", "manifest.json", "c/layer.tar"]);
        assert_eq!(left_after(3), ["d/layer.tar", "manifest.json"]);
        assert_eq!(left_after(99), ["manifest.json"]);
    }

    #[test]
    fn what_docker_says_of_a_load_is_understood() {
        let said = "{\"stream\":\"Loading\"}\n{\"stream\":\"Loaded image ID: sha256:ab\\n\"}\n";
        assert_eq!(loaded_as(said).unwrap(), "sha256:ab");
        assert_eq!(loaded_as("{\"stream\":\"Loaded image: a:1\\n\"}").unwrap(), "a:1");
        assert_eq!(loaded_as("{\"errorDetail\":{},\"error\":\"no room\"}").unwrap_err(), "no room");
        assert!(loaded_as("what?").is_err());
    }
}
