//! What a compose text says about the guest, read on the node.

use casemate_types::compose::{ComposeDoc, Service};
use serde_json::Value;

use super::{Container, Image, NodeFacts};
use crate::cvm::spec::Spec;

/// What a compose text says about the guest.
#[derive(Default)]
pub(in crate::driver) struct Inside {
    pub(in crate::driver) public_logs: bool,
    pub(in crate::driver) public_sysinfo: bool,
    pub(in crate::driver) public_tcbinfo: bool,
    pub(in crate::driver) allowed_envs: Vec<String>,
}

/// Reads a compose text as a guest does: with the guest's defaults, not with those of the API. One that cannot be read
/// opens nothing.
pub(in crate::driver) fn read(text: &str) -> Inside {
    let Ok(document) = ComposeDoc::parse(text) else { return Inside::default() };
    let flag = |key, default| document.get(key).and_then(Value::as_bool).unwrap_or(default);
    Inside {
        public_logs: flag("public_logs", false),
        public_sysinfo: flag("public_sysinfo", false),
        public_tcbinfo: flag("public_tcbinfo", true),
        allowed_envs: document.allowed_envs().into_iter().map(str::to_owned).collect(),
    }
}

/// What runs inside once the guest is up. Nothing, if the text cannot be read.
pub(in crate::driver) fn containers(text: &str) -> Vec<Container> {
    let services = ComposeDoc::parse(text).map(|document| document.services()).unwrap_or_default();
    // An image that is built on the machine gets the name of its service.
    let container = |Service { name, image }| Container::running(name.clone(), image.unwrap_or(name));
    services.into_iter().map(container).collect()
}

/// The image of a spec, if the node has it.
pub(in crate::driver) fn image<'a>(spec: &Spec, facts: &'a NodeFacts) -> Option<&'a Image> {
    facts.images.iter().find(|image| image.name == spec.image)
}
