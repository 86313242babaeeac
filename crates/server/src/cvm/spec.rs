//! The spec of a CVM: everything that one revision fixes.

use std::ops::Deref;
use std::sync::Arc;

use casemate_types::compose::ComposeDoc;
use casemate_types::ids::{AppId, ComposeHash, InstanceId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The configuration of one revision. Immutable once stored; `name` and `listed` are not part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// What runs.
    pub compose: Compose,
    /// Environment variables as ciphertext; only the guest can open it.
    #[serde(with = "hex_bytes")]
    pub sealed_env: Option<Long<[u8]>>,
    /// Free text handed to the guest as it is.
    pub user_config: Option<Long<str>>,
    /// Number of virtual CPUs.
    pub vcpu: u32,
    /// Memory in MB (1024² bytes).
    pub memory_mb: u32,
    /// Disk in GB (1024³ bytes). Only ever grows.
    pub disk_gb: u32,
    /// Graphics cards.
    pub gpus: Gpus,
    /// Name of the OS image.
    pub image: String,
    /// What the instance id is derived from, together with the app id.
    #[serde(with = "hex::serde")]
    pub instance_seed: [u8; 20],
}

/// A compose document in the two forms that are kept, and its hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compose {
    /// The document as received, as compact JSON: its strings come back byte for byte.
    pub document: Long<str>,
    /// The text made from it once. It goes to the node as it is and is never made again.
    pub text: Long<str>,
    /// SHA-256 of `text`.
    pub hash: ComposeHash,
}

/// A long part of a spec. Its hash is always there, and says whether two of them are the same; the value is not where nobody
/// asked for it (`Store::outline`), since most updates do not touch it. Reading one that is not there is a bug, and panics.
#[derive(Debug)]
pub struct Long<T: ?Sized> {
    sha256: [u8; 32],
    value: Option<Arc<T>>,
}

impl<T: ?Sized> Long<T> {
    /// One whose value and hash are kept together.
    pub fn stored(sha256: [u8; 32], value: Arc<T>) -> Self {
        Self { sha256, value: Some(value) }
    }

    /// One that is somewhere else, by its hash.
    pub fn elsewhere(sha256: [u8; 32]) -> Self {
        Self { sha256, value: None }
    }

    /// Its SHA-256.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// The same without its value.
    pub fn short(&self) -> Self {
        Self::elsewhere(self.sha256)
    }

    /// Its value, if it is there.
    pub fn here(&self) -> Option<&T> {
        self.value.as_deref()
    }
}

impl<T: AsRef<[u8]> + ?Sized> Long<T> {
    /// One that is there.
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        let value = value.into();
        Self { sha256: sha256((*value).as_ref()), value: Some(value) }
    }
}

impl<T: ?Sized> Clone for Long<T> {
    fn clone(&self) -> Self {
        Self { sha256: self.sha256, value: self.value.clone() }
    }
}

impl<T: ?Sized> Deref for Long<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_deref().expect("who reads a long part has asked for it")
    }
}

impl<T: ?Sized> PartialEq for Long<T> {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl AsRef<[u8]> for Long<[u8]> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<&str> for Long<str> {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl From<&[u8]> for Long<[u8]> {
    fn from(value: &[u8]) -> Self {
        Self::new(value)
    }
}

impl From<Vec<u8>> for Long<[u8]> {
    fn from(value: Vec<u8>) -> Self {
        Self::new(value)
    }
}

impl Serialize for Long<str> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Long<str> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::new)
    }
}

impl Compose {
    /// Fixes the text and hash of `document`.
    pub fn new(document: &ComposeDoc) -> Self {
        let normalised = document.normalise();
        let text = Long::stored(normalised.hash.0, normalised.text.into());
        Self { document: Long::new(document.to_json()), text, hash: normalised.hash }
    }

    /// The document, parsed.
    pub fn parsed(&self) -> ComposeDoc {
        ComposeDoc::parse(&self.document).expect("only documents that parse are stored")
    }
}

/// Graphics cards of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpus {
    /// How many.
    pub count: u32,
    /// Which product, if that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
}

impl Spec {
    /// The same without its long parts.
    pub fn outline(&self) -> Self {
        let Compose { document, text, hash } = &self.compose;
        Self {
            compose: Compose { document: document.short(), text: text.short(), hash: *hash },
            sealed_env: self.sealed_env.as_ref().map(Long::short),
            user_config: self.user_config.as_ref().map(Long::short),
            image: self.image.clone(),
            gpus: self.gpus.clone(),
            ..*self
        }
    }

    /// This outline with the long parts that it shares with `other`.
    pub fn with_parts_of(mut self, other: &Self) -> Self {
        let fill = |part: &mut Long<str>, others: &Long<str>| {
            if part == others {
                part.clone_from(others);
            }
        };
        fill(&mut self.compose.document, &other.compose.document);
        fill(&mut self.compose.text, &other.compose.text);
        if let (Some(config), Some(others)) = (&mut self.user_config, &other.user_config) {
            fill(config, others);
        }
        if self.sealed_env == other.sealed_env {
            self.sealed_env.clone_from(&other.sealed_env);
        }
        self
    }

    /// The instance id that this spec gives a machine of `app`.
    pub fn instance_id(&self, app: &AppId) -> InstanceId {
        InstanceId::derive(&self.instance_seed, app)
    }

    /// The resources that have to be free for it.
    pub fn booking(&self) -> Booking {
        Booking { vcpu: self.vcpu, memory_mb: self.memory_mb, disk_gb: self.disk_gb, gpus: self.gpus.count }
    }

    /// SHA-256 of the sealed environment.
    pub fn sealed_env_sha256(&self) -> Option<[u8; 32]> {
        self.sealed_env.as_ref().map(|sealed| *sealed.sha256())
    }

    /// SHA-256 of the user config.
    pub fn user_config_sha256(&self) -> Option<[u8; 32]> {
        self.user_config.as_ref().map(|text| *text.sha256())
    }
}

/// Room on a node, asked for or given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booking {
    /// Virtual CPUs.
    pub vcpu: u32,
    /// Memory in MB.
    pub memory_mb: u32,
    /// Disk in GB.
    pub disk_gb: u32,
    /// Graphics cards.
    pub gpus: u32,
}

impl Booking {
    /// Enough for either: what is booked while an update may still end both ways.
    pub fn max(self, other: Self) -> Self {
        Self {
            vcpu: self.vcpu.max(other.vcpu),
            memory_mb: self.memory_mb.max(other.memory_mb),
            disk_gb: self.disk_gb.max(other.disk_gb),
            gpus: self.gpus.max(other.gpus),
        }
    }
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Optional bytes as text with two hex digits for each.
pub(crate) mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<T: AsRef<[u8]>, S: Serializer>(
        bytes: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => to.serialize_some(&hex::encode(bytes)),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T: TryFrom<Vec<u8>>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
        let bytes = hex::decode(text).map_err(de::Error::custom)?;
        let length = bytes.len();
        bytes.try_into().map(Some).map_err(|_| de::Error::invalid_length(length, &"another number of bytes"))
    }
}
