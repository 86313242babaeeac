//! What the server asks of the contracts of a key service. Every question is bounded in time; a chain that does not answer is
//! `Unavailable` and never a yes or a no.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use casemate_chain::{Allowed, BootInfo, Chain, Head, Question, Registration, Standing, Subject, Verdict};
use casemate_types::error::{OnchainStatus, codes};
use casemate_types::ids::{AppId, ComposeHash, DeviceId};
use casemate_types::patch::TxProof;

use crate::app::App;
use crate::config::ContractKms;
use crate::cvm::spec::Spec;
use crate::cvm::state::Cvm;
use crate::driver::NodeFacts;
use crate::error::{Error, ProofCheck, Resource, Result};
use crate::store::Work;

/// How long the chain may take for one question. All questions of one request have a deadline beside it.
const DEADLINE: Duration = Duration::from_secs(20);

/// What is said to be missing when a chain does not answer.
const SERVICE: &str = "the chain";

/// How long an app that was just registered may take to be seen by the endpoints that are asked: the client's may be ahead.
const REGISTRATION_WAIT: Duration = Duration::from_secs(10);

/// How often it is looked for meanwhile.
const REGISTRATION_POLL: Duration = Duration::from_secs(2);

/// The contract of a key service, and the chain that it is on.
#[derive(Clone)]
pub struct Contract<'a> {
    app: &'a App,
    /// The key service.
    pub kms: &'a ContractKms,
    chain: &'a Arc<dyn Chain>,
}

/// What is set for the key service with this slug; none for one that asks nobody.
///
/// # Errors
/// `NotConfigured`: its CVMs were made with other settings.
pub fn settings<'a>(app: &'a App, slug: &str) -> Result<Option<&'a ContractKms>> {
    if !app.config.kms_is_contract_owned(slug) {
        return Ok(None);
    }
    let missing = || {
        Error::NotConfigured(format!(
            "the keys are with key service `{slug}`, which is not one of `kms.contracts` in the server's settings"
        ))
    };
    app.config.contract_kms(slug).ok_or_else(missing).map(Some)
}

/// The contract behind the key service with this slug; none for one that asks nobody.
///
/// # Errors
/// `NotConfigured` if it is not set, or nothing that speaks for its chain.
pub fn contract<'a>(app: &'a App, slug: &str) -> Result<Option<Contract<'a>>> {
    let Some(kms) = settings(app, slug)? else { return Ok(None) };
    let missing = || {
        Error::NotConfigured(format!(
            "key service `{slug}` asks chain {}, which is not one of `chains` in the server's settings",
            kms.chain_id
        ))
    };
    let chain = app.chains.get(kms.chain_id).ok_or_else(missing)?;
    Ok(Some(Contract { app, kms, chain }))
}

/// The device that a node is.
///
/// # Errors
/// The configuration no longer names the node, or the node does not say what it is.
pub fn device(app: &App, node_id: i64) -> Result<DeviceId> {
    let node = app.node(node_id).ok_or(Error::NotFound { what: Resource::Node })?;
    node.facts().device_id.parse().map_err(|error: casemate_types::ids::IdError| Error::Unavailable {
        service: "the node",
        source: error.into(),
    })
}

impl Contract<'_> {
    async fn ask<T>(
        &self,
        question: impl Future<Output = std::result::Result<T, casemate_chain::Error>>,
    ) -> Result<T> {
        match self.app.clock.in_time(DEADLINE, question).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(Error::Unavailable { service: SERVICE, source: error.into() }),
            None => {
                let why = format!("chain {} took too long to answer", self.kms.chain_id);
                Err(Error::Unavailable { service: SERVICE, source: why.into() })
            }
        }
    }

    /// Is the hash approved for an app on this device, by this transaction if one is named?
    pub async fn check(
        &self,
        app_id: AppId,
        compose_hash: ComposeHash,
        device_id: DeviceId,
        tx: TxProof,
    ) -> Result<Verdict> {
        let tx = match tx {
            TxProof::StateOnly => None,
            TxProof::Tx(tx) => Some(tx),
        };
        let question = Question { chain_id: self.kms.chain_id, app_id, compose_hash, device_id, tx };
        self.ask(self.chain.check(&question)).await
    }

    /// Where these stand, asked in one go.
    pub async fn standings(&self, subjects: &[Subject]) -> Result<Vec<Standing>> {
        let state = self.ask(self.chain.state(subjects)).await?;
        match state.standings.len() == subjects.len() {
            true => Ok(state.standings),
            false => Err(Error::Unavailable { service: SERVICE, source: "it left something out".into() }),
        }
    }

    /// The newest block, if the chain answers at all.
    pub async fn head(&self) -> Result<Head> {
        self.ask(self.chain.head()).await
    }

    /// What is allowed at the moment.
    pub async fn allowed(&self, subject: Subject) -> Result<Allowed> {
        Ok(self.standings(&[subject]).await?[0].now)
    }

    /// Does the app's contract allow any device?
    pub async fn allow_any_device(&self, app_id: AppId) -> Result<bool> {
        self.ask(self.chain.allow_any_device(app_id)).await
    }

    /// What the app's contract reported from this block on, as far as one call reads.
    pub async fn changes(&self, app_id: AppId, from: u64) -> Result<casemate_chain::Changes> {
        self.ask(self.chain.changes(app_id, from, u64::MAX)).await
    }

    /// What is known of an app. One that is not registered is looked for a while: it may just have been.
    pub async fn registration(&self, app_id: AppId) -> Result<Registration> {
        let until = self.app.clock.now() + REGISTRATION_WAIT;
        loop {
            let found = self.ask(self.chain.registration(self.kms.address(), app_id)).await?;
            if found.registered || self.app.clock.now() >= until {
                return Ok(found);
            }
            self.app.clock.sleep(REGISTRATION_POLL).await;
        }
    }

    /// Does the key service's contract allow the OS image with this name on a node?
    pub async fn image_allowed(&self, facts: &NodeFacts, name: &str) -> Result<bool> {
        self.os_image_allowed(image_hash(facts, name)).await
    }

    /// Does the key service's contract allow the OS image with this hash, 64 hex digits?
    pub async fn image_hash_allowed(&self, hash: &str) -> Result<bool> {
        self.os_image_allowed(image_bytes(hash)).await
    }

    async fn os_image_allowed(&self, hash: Option<[u8; 32]>) -> Result<bool> {
        match hash {
            None => Ok(false),
            Some(hash) => self.ask(self.chain.os_image_allowed(self.kms.address(), hash)).await,
        }
    }

    /// The contract's reason, if it does not let the machine of this work boot with this spec.
    pub async fn boot_refusal(&self, facts: &NodeFacts, work: &Work, spec: &Spec) -> Result<Option<String>> {
        let machine = &work.machine;
        let boot = BootInfo {
            app_id: machine.app_id,
            compose_hash: spec.compose.hash,
            instance_id: machine.instance_id,
            device_id: device(self.app, work.cvm.node_id)?,
            // What local drivers run is not measured.
            mr_aggregated: [0; 32],
            mr_system: [0; 32],
            os_image_hash: image_hash(facts, &spec.image).unwrap_or_default(),
            tcb_status: "UpToDate".into(),
            advisory_ids: Vec::new(),
        };
        let answer = self.ask(self.chain.is_app_allowed(self.kms.address(), &boot)).await?;
        Ok((!answer.allowed).then_some(answer.reason))
    }
}

fn image_hash(facts: &NodeFacts, name: &str) -> Option<[u8; 32]> {
    let image = facts.images.iter().find(|image| image.name == name)?;
    image_bytes(&image.os_image_hash)
}

fn image_bytes(hash: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(hash.trim_start_matches("0x"), &mut bytes).ok()?;
    Some(bytes)
}

/// What has to be allowed so that this CVM can run this hash.
///
/// # Errors
/// See [`device`].
pub fn subject(app: &App, cvm: &Cvm, compose_hash: ComposeHash) -> Result<Subject> {
    Ok(Subject { app_id: cvm.app_id, compose_hash, device_id: device(app, cvm.node_id)? })
}

/// As the wire shows it.
pub fn status(allowed: Allowed) -> OnchainStatus {
    OnchainStatus {
        compose_hash_allowed: allowed.compose_hash,
        device_id_allowed: allowed.device,
        is_allowed: allowed.both(),
    }
}

/// How long an answer waits for what would only be good to know.
const GOOD_TO_KNOW: Duration = Duration::from_secs(5);

/// What the contract allows now; nothing if that cannot be found out soon.
pub async fn known_status(app: &App, kms: &str, subject: Subject) -> Option<OnchainStatus> {
    let asked = async {
        match contract(app, kms)? {
            Some(contract) => contract.allowed(subject).await.map(Some),
            None => Ok(None),
        }
    };
    let error = match app.clock.within(GOOD_TO_KNOW, asked).await {
        Some(Ok(allowed)) => return allowed.map(status),
        Some(Err(error)) => error.with_causes(),
        None => format!("no answer within {} s", GOOD_TO_KNOW.as_secs()),
    };
    tracing::warn!(app.id = %subject.app_id, error, "the contract's state is not known");
    None
}

/// Refuses an OS image that the contract of this key service does not allow.
///
/// # Errors
/// `Rejected` naming `image`; `Unavailable` if the chain does not tell.
pub async fn check_image(app: &App, kms: &str, node_id: i64, image: &str) -> Result<()> {
    let Some(contract) = contract(app, kms)? else { return Ok(()) };
    let node = app.node(node_id).ok_or(Error::NotFound { what: Resource::Node })?;
    if contract.image_allowed(&node.facts(), image).await? {
        return Ok(());
    }
    let ContractKms { contract, chain_id, .. } = contract.kms;
    let message = format!(
        "the contract {contract} of key service `{kms}` on chain {chain_id} does not allow OS image `{image}`"
    );
    Err(Error::rejected(codes::OS_IMAGE_NOT_COMPATIBLE, "image", message))
}

/// The refusal of what a contract does not allow.
pub fn not_allowed(allowed: Allowed, compose_hash: ComposeHash, device_id: DeviceId) -> Error {
    let message = match allowed.compose_hash {
        false => format!("the app's contract does not allow compose hash {compose_hash}"),
        true => format!("the app's contract does not allow device {device_id}"),
    };
    Error::Proof { check: ProofCheck::Contract, message }
}
