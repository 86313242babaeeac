//! Creation in two calls: *provision* checks, picks a node and fixes the compose hash; *create* makes it so.

use casemate_types::error::codes;
use casemate_types::ids::{AppId, ComposeHash, CvmRef, OperationId, VmUuid};
use casemate_types::patch::{CvmCreate, CvmPatch, CvmProvision, Sparse};
use casemate_types::wire::KmsType;
use serde::{Deserialize, Serialize};

use super::onchain::{self, Contract};
use super::operation::Lane;
use super::{approval, update};
use crate::app::{App, Node};
use crate::auth::{Actor, Author};
use crate::config::EMBEDDED_KMS;
use crate::cvm::plan::{Wish, plan_create};
use crate::cvm::spec::{Booking, Long, Spec, sha256};
use crate::cvm::state::Cvm;
use crate::driver::Image;
use crate::error::{Error, NoRoom, Resource, Result, Room};
use crate::kms::{KmsKind, env_key_ensure, env_key_to_keep, kms_kind};
use crate::store::{self, Found, NewCvm, NodeRow, Provision, Receipt};

/// Something provisioned, as it is kept until the second call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// Name of the CVM.
    pub name: String,
    /// Shown in the public directory.
    pub listed: bool,
    /// The app; drawn by us, or named by the caller. None: a contract that the caller will deploy.
    pub app_id: Option<AppId>,
    /// The number that the app id was made from, if it was.
    pub nonce: Option<u64>,
    /// Slug of the key service.
    pub kms: String,
    /// The node that it fits on.
    pub node_id: i64,
    /// Its first spec.
    pub spec: Spec,
}

/// Stands for an app whose contract is yet to be deployed: nobody has the address zero.
const TO_BE_DEPLOYED: AppId = AppId([0; 20]);

/// Checks what is asked for, picks a node, and keeps the result for [`create`].
///
/// The answer is kept, if it is to be, together with what was prepared.
pub async fn provision(
    app: &App,
    actor: &Actor,
    asked: CvmProvision,
    receipt: Option<Receipt<Prepared>>,
) -> Result<Prepared> {
    name_is_free(app, actor, asked.name.as_str())?;
    let kms = key_service(app, &asked)?;
    let (app_id, nonce) = app_identity(app, actor, &asked, &kms).await?;
    let wish = wish(&asked);
    let seed = app.clock.random();
    let candidates = candidates(app, &asked)?;
    let mut refusal = None;
    for node in candidates {
        let image = default_image(&node.facts.images, &asked, &wish);
        let mut wish = wish.clone();
        if let (Sparse::Absent, Some(image)) = (&wish.patch.image, image) {
            wish.patch.image = Sparse::Value(image.name.clone());
        }
        let outcome = plan_create(&wish, seed, &update::rules(app, &node.facts, &kms))
            .and_then(|spec| fits(&node, &spec).map(|()| spec));
        // Before the caller pays for a contract.
        let outcome = match outcome {
            Ok(spec) => onchain::check_image(app, &kms, node.id, &spec.image).await.map(|()| spec),
            Err(error) => Err(error),
        };
        match outcome {
            Err(error) => {
                refusal.get_or_insert(error);
            }
            Ok(spec) => {
                if let Some(app_id) = &app_id {
                    env_key_ensure(app, &kms, app_id).await?;
                }
                let name = asked.name.to_string();
                let listed = asked.listed.unwrap_or(false);
                let prepared = Prepared { name, listed, app_id, nonce, kms, node_id: node.id, spec };
                keep(app, actor, &prepared, receipt).await?;
                return Ok(prepared);
            }
        }
    }
    Err(refusal.unwrap_or_else(|| {
        Error::rejected(codes::RESOURCE_NOT_AVAILABLE, "region", "no node fits what was asked for")
    }))
}

/// Says now what creating would say later.
fn name_is_free(app: &App, actor: &Actor, name: &str) -> Result<()> {
    match app.store.cvm_find(actor.workspace_id, &CvmRef::Name(name.to_owned()))? {
        Found::None => Ok(()),
        Found::One(_) | Found::SeveralOfApp => {
            Err(store::Error::Constraint(store::constraint::CVM_NAME).into())
        }
    }
}

async fn keep(
    app: &App,
    actor: &Actor,
    prepared: &Prepared,
    receipt: Option<Receipt<Prepared>>,
) -> Result<()> {
    let provision = Provision {
        workspace_id: actor.workspace_id,
        cvm_id: None,
        app_id: prepared.app_id.unwrap_or(TO_BE_DEPLOYED),
        compose_hash: prepared.spec.compose.hash,
        content: serde_json::to_string(prepared).expect("a spec has string keys"),
        expires_at: app.clock.now() + app.config.provision_life,
    };
    let receipt = receipt.map(|receipt| {
        let prepared = prepared.clone();
        receipt.of(move |()| prepared.clone())
    });
    Ok(app.store.provision_put(provision, receipt).await?)
}

fn wish(asked: &CvmProvision) -> Wish {
    let mut document = asked.compose_file.clone().with_defaults(asked.name.as_str());
    if let Some(keys) = asked.env_keys.as_ref().filter(|_| document.allowed_envs().is_empty()) {
        document.set_allowed_envs(keys.iter().map(String::as_str));
    }
    let patch = CvmPatch {
        instance_type: asked.instance_type.clone().into(),
        vcpu: asked.vcpu.into(),
        memory: asked.memory.into(),
        disk_size: asked.disk_size.into(),
        image: asked.image.clone().into(),
        encrypted_env: asked.encrypted_env.clone().into(),
        user_config: user_config(asked).into(),
        gpus: asked.gpus.clone(),
        ..CvmPatch::default()
    };
    Wish { patch, document: Some(document), ..Wish::default() }
}

/// SSH keys travel in the user config, where the guest looks for them.
fn user_config(asked: &CvmProvision) -> Option<String> {
    let keys = asked.ssh_authorized_keys.as_ref().filter(|keys| !keys.is_empty());
    match (&asked.user_config, keys) {
        (Some(config), _) => Some(config.clone()),
        (None, Some(keys)) => Some(serde_json::json!({ "ssh_authorized_keys": keys }).to_string()),
        (None, None) => None,
    }
}

fn key_service(app: &App, asked: &CvmProvision) -> Result<String> {
    let kind = asked.kms.as_ref().map(KmsType::as_str);
    let named = asked.kms_id.as_deref().or(asked.kms_contract.as_deref()).or(kind).unwrap_or(EMBEDDED_KMS);
    key_service_named(app, named)
}

/// Slug of the key service that `named` means.
fn key_service_named(app: &App, named: &str) -> Result<String> {
    match kms_kind(app, named) {
        Ok(KmsKind::OffChain) => Ok(EMBEDDED_KMS.to_owned()),
        Ok(KmsKind::Contract(kms)) => Ok(kms.slug.clone()),
        Err(_) => {
            let contracts = app.config.contract_kms.iter().map(|kms| kms.slug.as_str());
            let known: Vec<_> = std::iter::once(EMBEDDED_KMS).chain(contracts).collect();
            let message = format!("there is no key service `{named}`; there is {}", known.join(", "));
            Err(Error::rejected(codes::KMS_NOT_FOUND, "kms", message))
        }
    }
}

/// The app id that belongs to a number of a workspace.
pub fn app_id_of(workspace_uid: &str, nonce: u64) -> AppId {
    let digest = sha256(format!("casemate-app-id:{workspace_uid}:{nonce}").as_bytes());
    AppId(std::array::from_fn(|index| digest[index]))
}

async fn app_identity(
    app: &App,
    actor: &Actor,
    asked: &CvmProvision,
    kms: &str,
) -> Result<(Option<AppId>, Option<u64>)> {
    if app.config.kms_is_contract_owned(kms) {
        // The address of its contract is the app's id.
        return match asked.nonce {
            None => Ok((asked.app_id, None)),
            Some(_) => {
                let message =
                    format!("the app ids of key service `{kms}` are addresses, not made from numbers");
                Err(Error::invalid("nonce", message))
            }
        };
    }
    let (app_id, nonce) = numbered_identity(app, actor, asked).await?;
    Ok((Some(app_id), nonce))
}

async fn numbered_identity(app: &App, actor: &Actor, asked: &CvmProvision) -> Result<(AppId, Option<u64>)> {
    let workspace = app.store.account(actor.workspace_id)?.workspace_uid;
    match (asked.app_id, asked.nonce) {
        (None, None) => {
            let nonce = app.store.nonces(actor.workspace_id, 1, true).await?[0];
            Ok((app_id_of(&workspace, nonce), Some(nonce)))
        }
        (Some(app_id), Some(nonce)) if app_id == app_id_of(&workspace, nonce) => Ok((app_id, Some(nonce))),
        (Some(_), Some(_)) => Err(Error::invalid("app_id", "does not belong to this nonce of the workspace")),
        (Some(_), None) => {
            Err(Error::invalid("nonce", "is needed with `app_id`; `GET /kms/phala/next_app_id` gives both"))
        }
        (None, Some(_)) => {
            Err(Error::invalid("app_id", "is needed with `nonce`; `GET /kms/phala/next_app_id` gives both"))
        }
    }
}

/// Nodes that may take it, the one with the most free memory first.
fn candidates(app: &App, asked: &CvmProvision) -> Result<Vec<NodeRow>> {
    let mut nodes = app.store.nodes()?;
    nodes.retain(|node| app.node(node.id).is_some());
    if asked.node_id.is_none() {
        nodes.retain(|node| app.node(node.id).is_some_and(Node::is_online));
    }
    if let Some(id) = asked.node_id {
        nodes.retain(|node| node.id == id);
        if nodes.is_empty() {
            return Err(Error::NotFound { what: Resource::Node });
        }
    }
    if let Some(region) = &asked.region {
        nodes.retain(|node| node.facts.region.eq_ignore_ascii_case(region));
        if nodes.is_empty() {
            let message = format!("there is no node in region `{region}`");
            return Err(Error::rejected(codes::NODE_NOT_FOUND, "region", message));
        }
    }
    // Machines without graphics cards leave the nodes that have some to those that need them.
    let wants_gpus = asked.gpus.is_value();
    nodes.sort_by_key(|node| {
        let has_gpus = node.facts.capacity.gpus > 0;
        (has_gpus != wants_gpus, std::cmp::Reverse(node.free().memory_mb), node.id)
    });
    Ok(nodes)
}

/// The newest image of the wanted kind, where the request names none.
fn default_image<'a>(images: &'a [Image], asked: &CvmProvision, wish: &Wish) -> Option<&'a Image> {
    let dev = asked.prefer_dev.unwrap_or(false);
    let gpus = wish.patch.gpus.is_value();
    let fitting = |dev: bool| {
        let fits = move |image: &&Image| image.is_dev == dev && image.requires_gpu == gpus;
        images.iter().filter(fits).max_by(|a, b| a.version.cmp(&b.version))
    };
    fitting(dev).or_else(|| fitting(!dev)).or_else(|| images.iter().find(|image| !image.requires_gpu))
}

/// Says now what the booking would say later.
pub(super) fn fits(node: &NodeRow, spec: &Spec) -> Result<()> {
    let (free, asked): (Booking, Booking) = (node.free(), spec.booking());
    let rooms = [
        (Room::Vcpu, asked.vcpu, free.vcpu),
        (Room::Memory, asked.memory_mb, free.memory_mb),
        (Room::Disk, asked.disk_gb, free.disk_gb),
        (Room::Gpus, asked.gpus, free.gpus),
    ];
    match rooms.into_iter().find(|(_, asked, left)| asked > left) {
        None => Ok(()),
        Some((room, asked, left)) => {
            Err(Error::NoRoom(NoRoom { room, asked, left, node: Some(node.facts.name.clone()) }))
        }
    }
}

/// A CVM that was made, and its first spec.
#[derive(Clone, Debug)]
pub struct Created {
    /// The CVM.
    pub cvm: Cvm,
    /// Its spec.
    pub spec: Spec,
    /// Who deployed the contract of its app, as a client said.
    pub deployer: Option<String>,
    /// The operation that makes it; none if it was there before.
    pub op: Option<OperationId>,
}

/// Makes the CVM that was provisioned. Asked again for the same app and hash, it gives the CVM that there is.
pub async fn create(
    app: &App,
    actor: &Actor,
    author: Author,
    asked: CvmCreate,
    receipt: Option<Receipt<Created>>,
) -> Result<Created> {
    if let Some(existing) = existing(app, actor, asked.app_id, asked.compose_hash)? {
        return Ok(existing);
    }
    let prepared = prepared(app, actor, &asked)?;
    let Prepared { name, listed, nonce, kms, node_id, mut spec, .. } = prepared;
    super::update::check_env_keys(&spec.compose.parsed(), asked.env_keys.as_deref())?;
    if let Some(sealed) = &asked.encrypted_env {
        spec.sealed_env = Some(Long::new(sealed.as_bytes()));
    }
    // A machine whose key service has no key for it would be of no use.
    env_key_ensure(app, &kms, &asked.app_id).await?;
    if let Some(contract) = onchain::contract(app, &kms)? {
        check_contract(app, &contract, &asked, node_id, &spec).await?;
    }
    let new = NewCvm {
        deployer: asked.deployer_address,
        nonce,
        ..new_cvm(app, actor.workspace_id, asked.app_id, kms, node_id, name, spec, author)
    };
    store_new(app, NewCvm { listed, ..new }, receipt).await
}

/// What an earlier call prepared for this one.
fn prepared(app: &App, actor: &Actor, asked: &CvmCreate) -> Result<Prepared> {
    let find =
        |app_id| app.store.provision(actor.workspace_id, None, app_id, asked.compose_hash, app.clock.now());
    let found = match find(asked.app_id) {
        Err(store::Error::Missing) => find(TO_BE_DEPLOYED),
        other => other,
    };
    let content = match found {
        Err(store::Error::Missing) => {
            let message =
                "nothing is provisioned for this app id and compose hash, or it has expired; provision again";
            return Err(Error::Rejected { code: None, field: None, message: message.into() });
        }
        other => other?,
    };
    let prepared: Prepared = serde_json::from_str(&content)
        .map_err(|source| Error::internal("read what was provisioned")(source.into()))?;
    if let Some(named) = &asked.kms_id
        && key_service_named(app, named)? != prepared.kms
    {
        let message = format!("`{named}` is not the key service that was provisioned: `{}`", prepared.kms);
        return Err(Error::rejected(codes::INVALID_REQUEST, "kms_id", message));
    }
    Ok(prepared)
}

/// Refuses an app that its key service would give no keys to.
async fn check_contract(
    app: &App,
    contract: &Contract<'_>,
    asked: &CvmCreate,
    node_id: i64,
    spec: &Spec,
) -> Result<()> {
    let (app_id, compose_hash, kms) = (asked.app_id, asked.compose_hash, contract.kms);
    let wrong = |field: &str, message: String| Err(Error::rejected(codes::INVALID_REQUEST, field, message));
    if asked.contract_address.is_some_and(|address| address != app_id) {
        return wrong(
            "contract_address",
            format!("should be the app id, 0x{app_id}: the contract is the app"),
        );
    }
    let found = contract.registration(app_id).await?;
    let (chain_id, address) = (kms.chain_id, &kms.contract);
    if !found.registered {
        let message = format!(
            "0x{app_id} is not registered with the contract {address} of key service `{}` on chain {chain_id}",
            kms.slug
        );
        return wrong("contract_address", message);
    }
    if found.owner.is_none() {
        return wrong(
            "contract_address",
            format!("there is no app contract at 0x{app_id} on chain {chain_id}"),
        );
    }
    let device = onchain::device(app, node_id)?;
    let tx = asked.transaction_hash.unwrap_or_default();
    approval::prove(app, &kms.slug, app_id, compose_hash, device, tx).await?;
    onchain::check_image(app, &kms.slug, node_id, &spec.image).await
}

/// A CVM that is to be made.
#[expect(clippy::too_many_arguments, reason = "each is another thing, and both callers have all of them")]
pub(super) fn new_cvm(
    app: &App,
    workspace_id: i64,
    app_id: AppId,
    kms: String,
    node_id: i64,
    name: String,
    spec: Spec,
    author: Author,
) -> NewCvm {
    NewCvm {
        env_key: env_key_to_keep(app, &kms, &app_id),
        uid: format!("cvm_{}", app.clock.random_text(10)).parse().expect("letters and digits"),
        vm_uuid: VmUuid(app.clock.new_uuid_v4()),
        workspace_id,
        app_id,
        app_uid: format!("dapp_{}", app.clock.random_text(10)),
        kms,
        node_id,
        name,
        listed: false,
        spec,
        deployer: None,
        closes: None,
        nonce: None,
        op: OperationId(app.clock.new_id()),
        author,
        at: app.clock.now(),
    }
}

/// Stores a CVM that is to be made, and has it made.
pub(super) async fn store_new(app: &App, new: NewCvm, receipt: Option<Receipt<Created>>) -> Result<Created> {
    let (spec, deployer) = (new.spec.clone(), deployer(app, &new)?);
    let created = move |accepted: &store::Accepted| Created {
        cvm: accepted.cvm.clone(),
        spec: spec.clone(),
        deployer: deployer.clone(),
        op: Some(accepted.operation.id),
    };
    let receipt = receipt.map(|receipt| receipt.of(created.clone()));
    let accepted = app.store.cvm_create(new, receipt).await?;
    app.wake(Lane::Ordinary);
    Ok(created(&accepted))
}

/// What the app has by itself, or is about to be made with. Only a contract has one.
fn deployer(app: &App, new: &NewCvm) -> Result<Option<String>> {
    if !app.config.kms_is_contract_owned(&new.kms) {
        return Ok(None);
    }
    match app.store.app(new.workspace_id, &new.app_id) {
        Ok(known) => Ok(known.deployer),
        Err(store::Error::Missing) => Ok(new.deployer.clone()),
        Err(error) => Err(error.into()),
    }
}

/// The CVM that an earlier call already made, or the conflict with it.
fn existing(app: &App, actor: &Actor, app_id: AppId, hash: ComposeHash) -> Result<Option<Created>> {
    let known = match app.store.app(actor.workspace_id, &app_id) {
        Err(store::Error::Missing) => return Ok(None),
        other => other?,
    };
    let cvms = app.store.cvms_of_app(known.id, 100)?;
    let Some(newest) = cvms.first() else { return Ok(None) };
    for cvm in &cvms {
        let first = app.store.spec(cvm.id, 1)?;
        if first.compose.hash == hash {
            let spec = app.store.spec(cvm.id, cvm.revision)?;
            return Ok(Some(Created { cvm: Cvm::clone(cvm), spec, deployer: known.deployer, op: None }));
        }
    }
    let message = format!("this app id is already used by {}", newest.name);
    Err(Error::Conflict { code: Some(codes::CVM_APP_ID_CONFLICT), message })
}
