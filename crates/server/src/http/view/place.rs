//! Where a CVM is, whose it is, how big it is, and how it is reached.

use casemate_types::ids::{AppId, InstanceId};
use casemate_types::wire;

use crate::app::{App, Node};
use crate::cvm::plan::INSTANCE_TYPES;
use crate::cvm::spec::Spec;
use crate::cvm::state::Cvm;
use crate::driver::{Image, Port, Report};
use crate::error::Result;
use crate::store::Account;

/// The node with this number.
pub fn node_ref(app: &App, id: i64) -> wire::NodeRef {
    let node = app.node(id);
    let status = match node.is_some_and(Node::is_online) {
        true => wire::NodeStatus::Online,
        false => wire::NodeStatus::Offline,
    };
    let facts = node.map(Node::facts);
    let facts = facts.as_ref();
    wire::NodeRef {
        object_type: wire::NodeType::It,
        id: Some(id),
        name: facts.map(|facts| facts.name.clone()),
        region: facts.map(|facts| facts.region.clone()),
        device_id: facts.map(|facts| facts.device_id.clone()),
        ppid: None,
        status: Some(status.as_str().to_owned()),
        version: facts.map(|facts| facts.version.clone()),
    }
}

/// The node with this number, in answers that call it teepod.
pub fn teepod_ref(app: &App, id: i64) -> wire::TeepodRef {
    let facts = app.node(id).map(Node::facts);
    let facts = facts.as_ref();
    wire::TeepodRef {
        id,
        name: facts.map_or_else(|| format!("node {id}"), |facts| facts.name.clone()),
        region_identifier: facts.map(|facts| facts.region.clone()),
    }
}

/// A workspace, in passing.
pub fn workspace_ref(account: &Account) -> wire::WorkspaceRef {
    wire::WorkspaceRef {
        object_type: wire::WorkspaceType::It,
        id: account.workspace_uid.clone(),
        name: account.workspace.clone(),
        slug: Some(account.slug.clone()),
        avatar_url: None,
    }
}

/// The user of a workspace, in passing.
pub fn user_ref(account: &Account) -> wire::UserRef {
    wire::UserRef {
        object_type: wire::UserType::It,
        id: Some(account.user_uid.clone()),
        username: Some(account.username.clone()),
        avatar_url: None,
    }
}

/// The OS image of a CVM on this node.
pub fn os_ref(app: &App, node_id: i64, name: &str) -> wire::OsRef {
    let facts = app.node(node_id).map(Node::facts);
    let image = facts.as_ref().and_then(|facts| facts.images.iter().find(|image| image.name == name));
    wire::OsRef {
        name: Some(name.to_owned()),
        version: image.map(Image::version_text),
        is_dev: image.map(|image| image.is_dev),
        os_image_hash: image.map(|image| image.os_image_hash.clone()),
    }
}

/// The named size that a spec has, if it has one.
pub fn instance_type(spec: &Spec) -> Option<&'static str> {
    let is_it = |size: &&crate::cvm::plan::InstanceType| {
        (size.vcpu, size.memory_mb, size.gpus) == (spec.vcpu, spec.memory_mb, spec.gpus.count)
    };
    INSTANCE_TYPES.iter().find(is_it).map(|size| size.name)
}

/// Public addresses, if there is a gateway. A port that is not named is 80 to a gateway.
pub fn endpoints(app: &App, app_id: &AppId, instance: Option<&InstanceId>) -> Vec<wire::Endpoint> {
    let Some(domain) = &app.config.gateway_domain else { return Vec::new() };
    let address = |id: &dyn std::fmt::Display| format!("https://{id}-80.{domain}");
    let instance = instance.map_or_else(|| address(app_id), |id| address(id));
    vec![wire::Endpoint { app: address(app_id), instance }]
}

/// Where published ports are reached on the host of a node.
pub fn local_endpoints(ports: &[Port]) -> Vec<wire::Endpoint> {
    let endpoint = |port: &Port| {
        let address = format!("http://127.0.0.1:{}", port.host);
        wire::Endpoint { app: address.clone(), instance: address }
    };
    ports.iter().map(endpoint).collect()
}

/// Every address of a CVM: the public ones, and where its node last said that ports are reached.
///
/// # Errors
/// Those of the store.
pub fn addresses(app: &App, cvm: &Cvm) -> Result<Vec<wire::Endpoint>> {
    let mut all = endpoints(app, &cvm.app_id, cvm.instance_id.as_ref());
    // Most nodes publish none: the report is not worth reading.
    if app.node(cvm.node_id).is_some_and(|node| node.driver.abilities().ports) {
        let seen = app.store.report(cvm.id)?.as_ref().and_then(Report::read);
        all.extend(seen.iter().flat_map(|seen| local_endpoints(&seen.ports)));
    }
    Ok(all)
}
