//! What every view shows of a compose document, read out of it once.

use casemate_types::compose::{ComposeDoc, Flag};
use serde_json::Value;

use crate::cvm::spec::{Spec, sha256};

/// The parts of a compose document that views show.
pub struct Shown {
    /// The document itself.
    pub document: ComposeDoc,
}

impl Shown {
    /// The document of `spec`.
    pub fn of(spec: &Spec) -> Self {
        Self { document: spec.compose.parsed() }
    }

    /// What starts the app.
    pub fn runner(&self) -> String {
        self.document.runner().to_owned()
    }

    /// The docker-compose file.
    pub fn docker_compose_file(&self) -> Option<String> {
        self.document.docker_compose_file().map(str::to_owned)
    }

    /// Feature words.
    pub fn features(&self) -> Vec<String> {
        self.document.features().into_iter().map(str::to_owned).collect()
    }

    /// A flag, or what its absence means.
    pub fn flag(&self, flag: Flag) -> bool {
        self.document.flag(flag)
    }

    /// SHA-256 of the docker-compose file, in hex.
    pub fn docker_compose_hash(&self) -> Option<String> {
        self.document.docker_compose_file().map(hash)
    }

    /// SHA-256 of the pre-launch script, in hex.
    pub fn pre_launch_script_hash(&self) -> Option<String> {
        self.document.pre_launch_script().map(hash)
    }

    /// The document without fields that are `null`, which strict clients refuse when they read it back.
    pub fn without_nulls(self) -> Value {
        let mut map = self.document.into_map();
        map.retain(|_, value| !value.is_null());
        Value::Object(map)
    }
}

fn hash(text: &str) -> String {
    hex::encode(sha256(text.as_bytes()))
}
