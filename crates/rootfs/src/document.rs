//! The two documents of an image: its manifest, and the configuration that the manifest names.

use serde::Deserialize;

use crate::{Error, MAX_LAYERS, Result, digest_of, wrong};

/// What an image's documents say.
#[derive(Clone, Debug)]
pub struct Image {
    /// How its process is run.
    pub process: Process,
    /// Its layers as they are kept and sent, the oldest first.
    pub layers: Vec<Descriptor>,
    /// Digests of the layers' tar streams.
    pub diff_ids: Vec<String>,
}

/// A blob, named by its digest.
#[derive(Clone, Debug, Deserialize)]
pub struct Descriptor {
    /// `sha256:…`
    pub digest: String,
    /// What it is.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
}

/// What an image says about its process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Process {
    /// Variables, `NAME=VALUE`.
    #[serde(deserialize_with = "or_nothing")]
    pub env: Vec<String>,
    /// The first words.
    #[serde(deserialize_with = "or_nothing")]
    pub entrypoint: Vec<String>,
    /// The words after them.
    #[serde(deserialize_with = "or_nothing")]
    pub cmd: Vec<String>,
    /// `USER` or `USER:GROUP`.
    #[serde(deserialize_with = "or_nothing")]
    pub user: String,
    /// Where it begins.
    #[serde(deserialize_with = "or_nothing")]
    pub working_dir: String,
    /// What it is ended with.
    #[serde(deserialize_with = "or_nothing")]
    pub stop_signal: String,
}

/// `null` is the same as absent.
fn or_nothing<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_nothing")]
    diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Option<Process>,
    #[serde(default)]
    rootfs: Option<RootFs>,
}

impl Image {
    /// Reads the documents of the image `digest`. `blob` brings the configuration, by its digest.
    ///
    /// # Errors
    /// A document that does not hash to what names it, or that says something else than it should.
    pub fn read(
        digest: &str,
        manifest: &[u8],
        blob: impl FnOnce(&str) -> Result<Vec<u8>>,
    ) -> Result<(Self, Vec<u8>)> {
        let manifest: Manifest = parse(digest, manifest)?;
        let text = blob(&manifest.config.digest)?;
        let configuration: Configuration = parse(&manifest.config.digest, &text)?;
        let image = Self {
            process: configuration.config.unwrap_or_default(),
            diff_ids: configuration.rootfs.unwrap_or_default().diff_ids,
            layers: manifest.layers,
        };
        let (layers, named) = (image.layers.len(), image.diff_ids.len());
        if layers != named {
            return wrong(format!(
                "the manifest names {layers} layers, and `rootfs.diff_ids` of the configuration {named}"
            ));
        }
        if layers > MAX_LAYERS {
            return wrong(format!("it has {layers} layers, and {MAX_LAYERS} are the most"));
        }
        Ok((image, text))
    }
}

fn parse<T: serde::de::DeserializeOwned>(digest: &str, text: &[u8]) -> Result<T> {
    let found = digest_of(text);
    if found != digest {
        return wrong(format!("{digest} has another content: it hashes to {found}"));
    }
    serde_json::from_slice(text)
        .map_err(|error| Error::Wrong(format!("{digest} is not what it should be: {error}")))
}
