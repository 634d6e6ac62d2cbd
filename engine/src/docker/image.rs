//! The image of a container: what it is, and what of it another host lacks.

use super::api::{Api, ApiError, Waiting, escaped};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most images of a host that are compared.
const MAX_IMAGES: usize = 10_000;

/// What an image is, so that another host can tell what it has of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageClaim {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// What the container was told to run: `nginx:1.27`.
    pub name: String,
    /// The digests of its layers, the lowest first.
    pub layers: Vec<String>,
}

impl ImageClaim {
    /// Describes the image `id`, known to its user as `name`.
    pub fn of(api: &Api, id: &str, name: &str) -> Result<ImageClaim, ApiError> {
        let layers = layers(&api.get(&format!("/images/{}/json", escaped(id)))?);
        Ok(ImageClaim { id: id.to_owned(), name: name.to_owned(), layers })
    }

    /// What of it is missing on a host.
    pub fn plan(&self, api: &Api) -> Result<ImagePlan, ApiError> {
        match api.get(&format!("/images/{}/json", escaped(&self.id))) {
            Ok(_) => return Ok(ImagePlan::Nothing),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
        if keeps_archives_whole(&api.get("/info")?) {
            return Ok(ImagePlan::Above(0));
        }
        let listed = api.get("/images/json?all=1")?;
        let mut there = 0;
        for id in listed
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|image| image.get("Id")?.as_str())
            .take(MAX_IMAGES)
        {
            match api.get(&format!("/images/{}/json", escaped(id))) {
                Ok(image) => there = there.max(in_common(&self.layers, &layers(&image))),
                // Removed meanwhile.
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ImagePlan::Above(there))
    }

    /// What it is called on a host that has it: its name where that means the same
    /// image, else its ID. A name that nobody has yet is given to it.
    pub fn called(&self, api: &Api) -> Result<String, ApiError> {
        let found = match api.get(&format!("/images/{}/json", escaped(&self.name))) {
            Ok(found) => Some(found),
            Err(error) if error.is_missing() => None,
            Err(ApiError::Refused { status: 400, .. }) => return Ok(self.id.clone()),
            Err(error) => return Err(error),
        };
        let Some(found) = found else {
            return Ok(if self.tag(api).is_ok() { self.name.clone() } else { self.id.clone() });
        };
        let same = found.get("Id").and_then(Value::as_str) == Some(&self.id);
        Ok(if same { self.name.clone() } else { self.id.clone() })
    }

    fn tag(&self, api: &Api) -> Result<(), ApiError> {
        // A colon before the last slash is that of a registry's port.
        let cut = self.name.rfind(':').filter(|at| !self.name[*at..].contains('/'));
        let (repository, tag) =
            cut.map_or((&*self.name, "latest"), |at| (&self.name[..at], &self.name[at + 1..]));
        let path =
            format!("/images/{}/tag?repo={}&tag={}", escaped(&self.id), escaped(repository), escaped(tag));
        api.post(&path, &Value::Null, Waiting::Briefly).map(drop)
    }
}

/// What of an image has to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePlan {
    /// It is there.
    Nothing,
    /// All but this many of the lowest layers.
    Above(usize),
}

/// Whether an engine keeps images in containerd's store, which takes whole archives only.
fn keeps_archives_whole(info: &Value) -> bool {
    info.get("DriverStatus").is_some_and(|status| status.to_string().contains("io.containerd.snapshotter"))
}

/// The digests of an image's layers, as `inspect` tells them.
fn layers(image: &Value) -> Vec<String> {
    let layers = image.pointer("/RootFS/Layers").and_then(Value::as_array);
    layers.into_iter().flatten().filter_map(|layer| layer.as_str().map(str::to_owned)).collect()
}

/// How many layers two images share. A layer is stored by what is below it, too.
fn in_common(one: &[String], other: &[String]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_count_from_the_lowest() {
        let of = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        for (one, other, shared) in
            [("abc", "abd", 2), ("abc", "abc", 3), ("abc", "xbc", 0), ("abc", "", 0), ("a", "abc", 1)]
        {
            assert_eq!(in_common(&of(one), &of(other)), shared, "{one} {other}");
        }
    }
}
