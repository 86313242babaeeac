//! The two documents that name other blobs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Larger ones are none.
pub(super) const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;
/// Key of a reference in an image layout.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Key under which containerd and docker keep the whole reference.
pub(super) const FULL_NAME: &str = "io.containerd.image.name";
/// An image's manifest.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media types that a registry is asked for.
pub(super) const ACCEPTED: [&str; 4] = [
    MANIFEST,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// A blob, named by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
}

/// A manifest or an index; which it is shows in what it has.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    /// Of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) config: Option<Descriptor>,
    /// Of an image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) layers: Vec<Descriptor>,
    /// Of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let document: Self = serde_json::from_slice(bytes)
            .map_err(|error| format!("its manifest is not understood: {error}"))?;
        match document.config.is_some() != document.manifests.is_some() {
            true => Ok(document),
            false => Err("its manifest is neither that of an image nor a list of them".to_owned()),
        }
    }

    /// The manifest for the machines here, of an index.
    pub(super) fn for_machines(&self) -> Option<&Descriptor> {
        let ours = Platform { architecture: "amd64".to_owned(), os: "linux".to_owned() };
        let manifests = self.manifests.as_deref().unwrap_or_default();
        let any = manifests.first().filter(|only| manifests.len() == 1 && only.platform.is_none());
        manifests.iter().find(|one| one.platform.as_ref() == Some(&ours)).or(any)
    }

    /// What an image's manifest names: its configuration and its layers.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers)
    }
}
