//! Updates of many fields at once, and what has to happen first when a chain is involved.

use std::fmt::Display;
use std::ops::Deref;

use casemate_types::compose::ComposeDoc;
use casemate_types::env::SealedEnv;
use casemate_types::error::{ApprovalNeeded, FieldError};
use casemate_types::ids::ComposeHash;
use casemate_types::patch::{CommitUpdate, CvmPatch, GpuPatch, Sparse, TxProof};
use reqwest::Method;
use serde_json::{Value, json};

use crate::apps::with_token;
use crate::call::{Call, Parsed, parsed};
use crate::create::created;
use crate::cvm::Cvm;
use crate::error::{Error, Result};
use crate::how::{How, update_options};
use crate::operation::{Operation, Target};
use crate::update::too_long;

const COMPOSE_HASH: &str = "x-compose-hash";
const TRANSACTION_HASH: &str = "x-transaction-hash";

/// What became of an update that may need an approval.
#[derive(Debug, Clone)]
#[must_use = "an update that needs an approval does not run yet"]
pub enum PatchOutcome {
    /// An operation carries it out.
    Accepted(Operation),
    /// Nothing happens before a compose hash is registered on the app's contract.
    NeedsApproval(Ask),
}

impl PatchOutcome {
    /// The operation, where no approval is expected.
    ///
    /// # Errors
    /// [`Error::NeedsApproval`] if one is needed all the same.
    pub fn accepted(self) -> Result<Operation> {
        match self {
            Self::Accepted(operation) => Ok(operation),
            Self::NeedsApproval(ask) => Err(Error::NeedsApproval(Box::new(ask))),
        }
    }
}

/// What has to be registered on a chain before an update can run, and the way to run it then. Its fields are those of
/// [`ApprovalNeeded`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use casemate_sdk::PatchOutcome;
///
/// match client.cvm("web-1").patch().compose("services: {}\n").send().await? {
///     PatchOutcome::Accepted(op) => op.wait().await.map(drop)?,
///     PatchOutcome::NeedsApproval(ask) => {
///         println!("register {} for app {}", ask.compose_hash, ask.app_id);
///         let tx = "0x…"; // the transaction that registered it, or `ask.register_with(&wallet)` with the feature `chain`
///         ask.confirm(tx).await?.wait().await?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Ask {
    needed: Box<ApprovalNeeded>,
    cvm: Cvm,
    again: Box<Again>,
}

impl Deref for Ask {
    type Target = ApprovalNeeded;

    fn deref(&self) -> &ApprovalNeeded {
        &self.needed
    }
}

impl Ask {
    /// From the answer to a request, if that asks for an approval.
    pub(crate) fn after(error: Error, cvm: Cvm, again: Again) -> Result<PatchOutcome> {
        let needed = match &error {
            Error::Api(failure) if failure.status == 465 => failure.body.approval(),
            _ => None,
        };
        // Without details there is nothing to act on: let the caller see what the server said.
        let needed = Box::new(needed.ok_or(error)?);
        Ok(PatchOutcome::NeedsApproval(Self { needed, cvm, again: Box::new(again) }))
    }

    /// Runs the update now that its compose hash is registered. `tx` is the transaction that registered it, or
    /// `already-registered`.
    ///
    /// # Errors
    /// [`Error::NotProven`] if the server does not see the registration (yet), [`Error::Busy`], and what every request can fail
    /// with.
    pub async fn confirm(&self, tx: impl Display) -> Result<Operation> {
        let hash = self.needed.compose_hash;
        let proof = match parsed::<TxProof>("transaction_hash", tx) {
            Ok(proof) => proof,
            Err(problem) => return Err(Error::invalid(vec![*problem])),
        };
        let call = match &*self.again {
            Again::Unified => return self.cvm.confirm(hash, proof).send().await,
            Again::Headers(call) => call.clone().header(COMPOSE_HASH, hash).header(TRANSACTION_HASH, proof),
            Again::Body(call, body) => {
                let mut body = body.clone();
                body["compose_hash"] = json!(hash);
                body["transaction_hash"] = json!(proof);
                call.clone().json(&body)
            }
            // Nothing but the token tells the server which replica was asked for.
            Again::Replica(_) => return self.commit(proof).await,
        };
        let answer = call.answer().await?;
        Ok(Operation::of(&answer, self.cvm.clone(), Target::Settled))
    }

    /// Runs the prepared update with its commit token, as anybody can who has that.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the update was not prepared for that, else as [`confirm`](Self::confirm).
    pub async fn commit(&self, tx: impl Display) -> Result<Operation> {
        let Some(token) = &self.needed.commit_token else {
            let text = "the server gave no token: prepare the update with `prepare_only`";
            return Err(Error::invalid(vec![FieldError::body("commit_token", "missing", text)]));
        };
        if let Again::Replica(call) = &*self.again {
            let call = with_token(call.clone(), token.clone(), Some(self.needed.compose_hash), tx);
            return created(self.cvm.client(), call).await;
        }
        self.cvm.commit_update(token, self.needed.compose_hash, tx).send().await
    }
}

/// How an update is sent a second time, with the proof.
#[derive(Debug, Clone)]
pub(crate) enum Again {
    /// The server kept it: an empty patch with the proof in headers.
    Unified,
    /// The same request, the proof in headers.
    Headers(Call),
    /// The same request, the proof in the body.
    Body(Call, Value),
    /// The server kept it: this one, with its token.
    Replica(Call),
}

/// Sends an update that may need an approval.
pub(crate) async fn outcome(call: Call, cvm: Cvm, again: Again) -> Result<PatchOutcome> {
    match call.answer().await {
        Ok(answer) => Ok(PatchOutcome::Accepted(Operation::of(&answer, cvm, Target::Settled))),
        Err(error) => Ask::after(error, cvm, again),
    }
}

/// Changes of any fields, all together and with one restart: [`Cvm::patch`]. What is not given stays as it is.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let op = client
///     .cvm("web-1")
///     .patch()
///     .compose("services:\n  web:\n    image: nginx:alpine\n")
///     .memory_mb(4096)
///     .send()
///     .await?
///     .accepted()?;
/// op.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Patch {
    cvm: Cvm,
    body: CvmPatch,
    prepare_only: bool,
    auto_commit: bool,
    problems: Vec<FieldError>,
    how: How,
}

impl Patch {
    pub(crate) fn new(cvm: Cvm) -> Self {
        Self {
            cvm,
            body: CvmPatch::default(),
            prepare_only: false,
            auto_commit: false,
            problems: Vec::new(),
            how: How::default(),
        }
    }

    /// All fields at once; what was given before is forgotten.
    pub fn fields(mut self, fields: CvmPatch) -> Self {
        self.how.on_failure = fields.on_failure.into_option();
        self.how.force_restart = fields.force_restart.or(false);
        self.body = fields;
        self
    }

    /// The document that it leads to where `running` runs, [`Cvm::compose_file`]. Its hash is what a contract has to allow:
    /// nobody need take the server's word for it.
    pub fn document(&self, running: ComposeDoc) -> ComposeDoc {
        self.body.document(running)
    }

    /// The docker-compose file. Changes the compose hash.
    #[doc(alias = "docker_compose_file")]
    pub fn compose(mut self, yaml: impl Into<String>) -> Self {
        self.body.docker_compose_file = Sparse::Value(yaml.into());
        self
    }

    /// The script that runs before the containers start; an empty one removes it. Changes the compose hash.
    pub fn pre_launch_script(mut self, script: impl Into<String>) -> Self {
        self.body.pre_launch_script = Sparse::Value(script.into());
        self
    }

    /// The environment variables that reach the app, by name. Changes the compose hash.
    #[doc(alias = "env_keys")]
    pub fn allowed_envs<T: Into<String>>(mut self, keys: impl IntoIterator<Item = T>) -> Self {
        self.body.allowed_envs = Sparse::Value(keys.into_iter().map(Into::into).collect());
        self
    }

    /// Anyone may read the containers' logs. Changes the compose hash.
    pub fn public_logs(mut self, public: bool) -> Self {
        self.body.public_logs = Sparse::Value(public);
        self
    }

    /// Anyone may read system information. Changes the compose hash.
    pub fn public_sysinfo(mut self, public: bool) -> Self {
        self.body.public_sysinfo = Sparse::Value(public);
        self
    }

    /// Anyone may read the measurements. Changes the compose hash.
    pub fn public_tcbinfo(mut self, public: bool) -> Self {
        self.body.public_tcbinfo = Sparse::Value(public);
        self
    }

    /// The gateway forwards requests to the app. Changes the compose hash.
    pub fn gateway_enabled(mut self, enabled: bool) -> Self {
        self.body.gateway_enabled = Sparse::Value(enabled);
        self
    }

    /// The guest waits for a verified clock before it starts. Changes the compose hash.
    pub fn secure_time(mut self, secure: bool) -> Self {
        self.body.secure_time = Sparse::Value(secure);
        self
    }

    /// The sealed environment, which replaces the old one completely: [`Cvm::seal`].
    #[doc(alias = "encrypted_env")]
    pub fn envs(mut self, sealed: SealedEnv) -> Self {
        self.body.encrypted_env = Sparse::Value(sealed);
        self
    }

    /// Text that the guest gets besides the document, not measured.
    pub fn user_config(mut self, text: impl Into<String>) -> Self {
        self.body.user_config = Sparse::Value(text.into());
        self
    }

    /// So many GPUs, of any product; 0 removes all.
    pub fn gpu_count(self, count: u32) -> Self {
        self.gpus(GpuPatch::Count { count, product_name: None })
    }

    /// The GPUs the machine shall have.
    pub fn gpus(mut self, gpus: GpuPatch) -> Self {
        self.body.gpus = Sparse::Value(gpus);
        self
    }

    /// Virtual processors.
    pub fn vcpu(mut self, vcpu: u32) -> Self {
        self.body.vcpu = Sparse::Value(vcpu);
        self
    }

    /// Memory, in MB.
    pub fn memory_mb(mut self, memory: u32) -> Self {
        self.body.memory = Sparse::Value(memory);
        self
    }

    /// Disk, in GB. It can only grow.
    #[doc(alias = "disk_size")]
    pub fn disk_gb(mut self, disk: u32) -> Self {
        self.body.disk_size = Sparse::Value(disk);
        self
    }

    /// A named size, whose processors and memory the machine gets.
    pub fn instance_type(mut self, name: impl Into<String>) -> Self {
        self.body.instance_type = Sparse::Value(name.into());
        self
    }

    /// The OS image, by name or slug.
    #[doc(alias = "image")]
    pub fn os_image(mut self, image: impl Into<String>) -> Self {
        self.body.image = Sparse::Value(image.into());
        self
    }

    /// Shown in the public directory. Alone, no restart.
    pub fn listed(mut self, listed: bool) -> Self {
        self.body.listed = Sparse::Value(listed);
        self
    }

    /// Another name: 5 to 63 letters, digits and single hyphens, a letter first. Alone, no restart. Needs Casemate.
    pub fn rename(mut self, name: impl Display) -> Self {
        match parsed("name", name) {
            Ok(name) => self.body.name = Sparse::Value(name),
            Err(problem) => self.problems.push(*problem),
        }
        self
    }

    /// Does not apply the update, but has the server keep it until somebody with the commit token commits it. Where no
    /// approval is needed at all, that is, with a key service off chain, the update runs at once all the same.
    #[doc(alias = "prepareOnly")]
    pub fn prepare_only(mut self) -> Self {
        self.prepare_only = true;
        self
    }

    /// If an approval is needed, the server watches the contract itself and runs the update once hash and device are allowed,
    /// in the name of this API key. Needs Casemate.
    pub fn auto_commit(mut self) -> Self {
        self.auto_commit = true;
        self
    }

    update_options!();

    fn call(&self) -> Call {
        let mut body = self.body.clone();
        body.on_failure = self.how.on_failure.into();
        body.force_restart = if self.how.force_restart { Sparse::Value(true) } else { Sparse::Absent };
        body.shutdown_timeout = self.how.shutdown_timeout.into();
        body.allow_force_stop = self.how.allow_force_stop.into();
        let nothing = body
            .is_empty()
            .then(|| FieldError::body("body", "missing", "nothing to update: give at least one field"));
        let empty = String::new();
        let long = too_long(
            body.docker_compose_file.get().unwrap_or(&empty),
            body.pre_launch_script.get().unwrap_or(&empty),
        );
        let call = self
            .cvm
            .call(Method::PATCH, [])
            .json(&body)
            .problems(self.problems.iter().cloned().chain(nothing).chain(long))
            .only_casemate_if(body.name.is_value(), "a name among other changes");
        let call = if self.prepare_only { call.header("x-prepare-only", true) } else { call };
        let call = if self.auto_commit {
            call.header("x-auto-commit", true).only_casemate("auto-commit")
        } else {
            call
        };
        self.how.in_headers(self.how.in_patch(call))
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the fields that are wrong, [`Error::Conflict`] for what the node does not have,
    /// [`Error::Busy`], [`Error::Changed`], and what every request can fail with.
    pub async fn send(self) -> Result<PatchOutcome> {
        outcome(self.call(), self.cvm, Again::Unified).await
    }
}

/// The second step of an update that needed an approval: [`Cvm::confirm`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use casemate_sdk::Error;
///
/// let (hash, tx) = ("0x…", "0x…"); // as the update was answered, and the transaction that registered it
/// match client.cvm("web-1").confirm(hash, tx).send().await {
///     Ok(op) => op.wait().await.map(drop)?,
///     Err(Error::NotProven(why)) => println!("not on chain yet, to be tried again: {why:?}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Confirm {
    cvm: Cvm,
    hash: Parsed<ComposeHash>,
    tx: Parsed<TxProof>,
    how: How,
}

impl Confirm {
    pub(crate) fn new(cvm: Cvm, hash: Parsed<ComposeHash>, tx: Parsed<TxProof>) -> Self {
        Self { cvm, hash, tx, how: How::default() }
    }

    /// Names this request, so that it is carried out once however often it is sent; it is then also repeated when no answer
    /// came. Needs Casemate. [`idempotency_key`](crate::idempotency_key) makes one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.how.idempotency_key = Some(key.into());
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::NotProven`] if the server does not see the registration (yet), [`Error::Busy`], and what every request can fail
    /// with.
    pub async fn send(self) -> Result<Operation> {
        let mut call = self.cvm.call(Method::PATCH, []).json(&json!({}));
        call = match self.hash {
            Ok(hash) => call.header(COMPOSE_HASH, hash),
            Err(problem) => call.problem(*problem),
        };
        call = match self.tx {
            Ok(tx) => call.header(TRANSACTION_HASH, tx),
            Err(problem) => call.problem(*problem),
        };
        let answer = self.how.in_headers(call).answer().await?;
        Ok(Operation::of(&answer, self.cvm, Target::Settled))
    }
}

/// An update that somebody prepared, committed with a token: [`Cvm::commit_update`].
///
/// ```no_run
/// # async fn example() -> casemate_sdk::Result<()> {
/// let anyone = casemate_sdk::Client::anonymous("https://cloud.example.org/api/v1")?;
/// let hash = "aa8150fb698fa81201284b1e3bf1cc63fa2149ae6bc64f670489a3dfa694e682";
/// let op = anyone.cvm("web-1").commit_update("the token", hash, "already-registered").send().await?;
/// println!("{:?}", op.id());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Commit {
    cvm: Cvm,
    body: CommitUpdate,
    problems: Vec<FieldError>,
}

impl Commit {
    pub(crate) fn new(cvm: Cvm, body: CommitUpdate, mut problems: Vec<FieldError>) -> Self {
        if body.token.is_empty() {
            problems.push(FieldError::body(
                "token",
                "missing",
                "the commit token of the prepared update is needed",
            ));
        }
        Self { cvm, body, problems }
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the token is not valid or used up, [`Error::NotProven`] if the server does not see the
    /// registration (yet), [`Error::Busy`] (the token stays good), and what every request can fail with.
    pub async fn send(self) -> Result<Operation> {
        let call = self.cvm.call(Method::POST, ["commit-update"]).json(&self.body).problems(self.problems);
        let answer = call.answer().await?;
        Ok(Operation::of(&answer, self.cvm, Target::Settled))
    }
}
