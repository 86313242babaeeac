//! What the machine is, as a list of events and one register that stands for all of them.
//!
//! Each event extends the register: `register' = SHA-384(register ‖ digest)`, from 48 zero bytes, where `digest` is
//! `SHA-384(0x08000001, little-endian ‖ ":" ‖ name ‖ ":" ‖ payload)`. Names, order and digests are those of dstack's
//! runtime events (version 1), so that its tools replay them.

use casemate_types::compose::{ComposeDoc, Flag};
use casemate_types::guest::{BootConfig, Event, Evidence};
use sha2::{Digest, Sha256, Sha384};

/// The kind of every event that software measures in a running guest.
const RUNTIME_EVENT: u32 = 0x0800_0001;

/// The events so far.
pub(crate) struct EventLog {
    events: Vec<Event>,
    register: [u8; 48],
}

impl EventLog {
    pub(crate) fn new() -> Self {
        Self { events: Vec::new(), register: [0; 48] }
    }

    pub(crate) fn extend(&mut self, name: &str, payload: &[u8]) {
        let digest = digest(name, payload);
        let mut hash = Sha384::new();
        hash.update(self.register);
        hash.update(digest);
        self.register = hash.finalize().into();
        let (payload, digest) = (hex::encode(payload), hex::encode(digest));
        self.events.push(Event { name: name.to_owned(), payload, digest });
    }

    /// The events so far, and the register. The text that one of them is about is the machine's to add.
    pub(crate) fn evidence(&self) -> Evidence {
        let rtmr3 = hex::encode(self.register);
        Evidence { events: self.events.clone(), rtmr3, app_compose: String::new() }
    }

    /// Everything that is known before the machine asks for keys.
    pub(crate) fn identity(&mut self, config: &BootConfig, document: &ComposeDoc) {
        self.extend("system-preparing", b"");
        self.extend("app-id", config.app_id.as_bytes());
        self.extend("compose-hash", config.compose_hash.as_bytes());
        for script in init_scripts(document) {
            self.extend("init-script-hash", &Sha256::digest(script));
        }
        let instance_id =
            if document.flag(Flag::NoInstanceId) { &[][..] } else { config.instance_id.as_bytes() };
        self.extend("instance-id", instance_id);
        self.extend("boot-mr-done", b"");
    }

    /// What is known once the machine has its keys and its disk.
    pub(crate) fn system(&mut self, config: &BootConfig, document: &ComposeDoc) {
        let provider = key_provider(document);
        if provider == "kms" {
            // An image's hash that is not one would be measured as none.
            self.extend("os-image-hash", &hex::decode(&config.os_image_hash).unwrap_or_default());
        }
        let provider = format!(r#"{{"name":"{provider}","id":""}}"#);
        self.extend("key-provider", provider.as_bytes());
        self.extend("storage-fs", b"ext4");
        self.extend("system-ready", b"");
    }
}

/// Who gives the machine its keys. Without a TEE nobody else than the key service can.
fn key_provider(document: &ComposeDoc) -> &'static str {
    match document.get("key_provider").and_then(|value| value.as_str()) {
        Some("kms") => "kms",
        Some(_) => "none",
        None if document.flag(Flag::KmsEnabled) => "kms",
        None => "none",
    }
}

/// Scripts that run before everything else. One is a text, several are a list.
pub(crate) fn init_scripts(document: &ComposeDoc) -> Vec<&str> {
    match document.get("init_script") {
        Some(serde_json::Value::String(script)) => vec![script],
        Some(serde_json::Value::Array(scripts)) => {
            scripts.iter().filter_map(|script| script.as_str()).collect()
        }
        _ => Vec::new(),
    }
}

fn digest(name: &str, payload: &[u8]) -> [u8; 48] {
    let mut hash = Sha384::new();
    hash.update(RUNTIME_EVENT.to_le_bytes());
    hash.update(b":");
    hash.update(name);
    hash.update(b":");
    hash.update(payload);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_dstack() {
        let wanted = "67b4be4efed0893cfa2bb1d35dca209ad8348b4c97f980807bcde8b9a0f26398dd0923d6eccb5aa2096d98046da8740f";
        assert_eq!(hex::encode(digest("app-id", &[0xde, 0xad, 0xbe, 0xef])), wanted);
    }

    #[test]
    fn the_register_is_that_of_dstack() {
        let mut log = EventLog::new();
        let app: Vec<u8> = (0xa0..=0xb3).collect();
        log.extend("system-preparing", b"");
        log.extend("app-id", &app);
        log.extend("compose-hash", &Sha256::digest("{}"));
        log.extend("gpu-policy-hash", &Sha256::digest("{}"));
        log.extend("instance-id", &[1; 20]);
        log.extend("boot-mr-done", b"");
        let wanted = "cd296f037d481d9c5c1d7b84c4bbea02ef70395bed21d91c1966367732515ec56a85a36bf5f40a839b433ea98c29e269";
        assert_eq!(log.evidence().rtmr3, wanted);
    }

    fn names(document: &str) -> Vec<String> {
        let document = ComposeDoc::parse(document).unwrap();
        let config = crate::agent::tests::config(&document.to_json());
        let mut log = EventLog::new();
        log.identity(&config, &document);
        log.system(&config, &document);
        log.evidence().events.into_iter().map(|event| event.name).collect()
    }

    #[test]
    fn events_have_their_order() {
        assert_eq!(
            names(r#"{"init_script": "true"}"#),
            [
                "system-preparing",
                "app-id",
                "compose-hash",
                "init-script-hash",
                "instance-id",
                "boot-mr-done",
                "os-image-hash",
                "key-provider",
                "storage-fs",
                "system-ready"
            ]
        );
        assert!(
            !names(r#"{"kms_enabled": false}"#).contains(&"os-image-hash".to_owned()),
            "only with keys from a service"
        );
    }
}
