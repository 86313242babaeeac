//! A new compose file in two steps: what it will be, then that it shall be.

use std::fmt::Display;

use casemate_types::compose::ComposeDoc;
use casemate_types::env::SealedEnv;
use casemate_types::error::FieldError;
use casemate_types::ids::ComposeHash;
use casemate_types::patch::{ComposeCommit, ComposeProvision, TxProof};
use casemate_types::wire;
use reqwest::Method;
use serde_json::json;

use crate::call::{Call, Parsed, parsed, problem_of};
use crate::cvm::Cvm;
use crate::error::Result;
use crate::how::{How, update_options};
use crate::patch::{Again, PatchOutcome, outcome};
use crate::update::too_long;

/// Changes the compose file of a CVM in two steps: [`Cvm::compose`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let web = client.cvm("web-1");
/// let mut doc = web.compose_file().await?;
/// doc.set_docker_compose_file("services:\n  web:\n    image: nginx:alpine\n");
/// let provision = web.compose().provision(doc).send().await?;
/// let op = web.compose().commit(provision.compose_hash).send().await?.accepted()?;
/// op.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Compose {
    cvm: Cvm,
}

impl Compose {
    pub(crate) fn new(cvm: Cvm) -> Self {
        Self { cvm }
    }

    /// The first step: tells the server the document and gets its hash. The server keeps it for 7 days; nothing runs yet.
    #[doc(alias = "provisionCvmComposeFileUpdate")]
    pub fn provision(&self, doc: ComposeDoc) -> ProvisionCompose {
        let body = ComposeProvision { app_compose: doc, update_env_vars: None };
        ProvisionCompose { cvm: self.cvm.clone(), body }
    }

    /// The second step: runs the document with this hash. It restarts.
    #[doc(alias = "commitCvmComposeFileUpdate")]
    pub fn commit(&self, compose_hash: impl Display) -> CommitCompose {
        CommitCompose {
            cvm: self.cvm.clone(),
            hash: parsed("compose_hash", compose_hash),
            body: ComposeCommit::new(ComposeHash([0; 32])),
            problems: Vec::new(),
            how: How::default(),
        }
    }
}

/// The first step: [`Compose::provision`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct ProvisionCompose {
    cvm: Cvm,
    body: ComposeProvision,
}

impl ProvisionCompose {
    /// The environment variables that reach the app change, too.
    pub fn update_env_vars(mut self, update: bool) -> Self {
        self.body.update_env_vars = Some(update);
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a document that cannot run, and what every request can fail with.
    pub async fn send(self) -> Result<wire::ComposeProvisionAnswer> {
        let call = self.cvm.call(Method::POST, ["compose_file", "provision"]);
        call.problems(doc_too_long(&self.body.app_compose)).json(&self.body).fetch().await
    }
}

/// The second step: [`Compose::commit`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct CommitCompose {
    cvm: Cvm,
    hash: Parsed<ComposeHash>,
    body: ComposeCommit,
    problems: Vec<FieldError>,
    how: How,
}

impl CommitCompose {
    /// The sealed environment, which replaces the old one completely: [`Cvm::seal`].
    #[doc(alias = "encrypted_env")]
    pub fn envs(mut self, sealed: SealedEnv) -> Self {
        self.body.encrypted_env = Some(sealed);
        self
    }

    /// The environment variables that reach the app, by name.
    pub fn env_keys<T: Into<String>>(mut self, keys: impl IntoIterator<Item = T>) -> Self {
        self.body.env_keys = Some(keys.into_iter().map(Into::into).collect());
        self
    }

    /// The keys replace the document's `allowed_envs`.
    pub fn update_env_vars(mut self, update: bool) -> Self {
        self.body.update_env_vars = Some(update);
        self
    }

    /// The transaction that registered the hash on a chain, or `already-registered`.
    pub fn transaction_hash(mut self, tx: impl Display) -> Self {
        match parsed::<TxProof>("transaction_hash", tx) {
            Ok(tx) => self.body.transaction_hash = Some(tx),
            Err(problem) => self.problems.push(*problem),
        }
        self
    }

    update_options!();

    fn body(&self) -> ComposeCommit {
        let compose_hash = self.hash.as_ref().copied().unwrap_or(self.body.compose_hash);
        ComposeCommit { compose_hash, options: self.how.options(), ..self.body.clone() }
    }

    fn base(&self) -> Call {
        let problems = problem_of(&self.hash).into_iter().chain(self.problems.iter().cloned());
        // The route that both servers know; Casemate also has `POST …/compose_file/commit`.
        self.how.in_body(self.cvm.call(Method::PATCH, ["compose_file"]).json(&self.body()).problems(problems))
    }

    fn call(&self) -> Call {
        self.how.in_headers(self.base())
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a hash that is unknown or too old, [`Error::Busy`](crate::Error::Busy),
    /// [`Error::NotProven`](crate::Error::NotProven), and what every request can fail with.
    pub async fn send(self) -> Result<PatchOutcome> {
        let again = Again::Body(self.base(), json!(self.body()));
        outcome(self.call(), self.cvm, again).await
    }
}

/// What is wrong with a document that is too long.
pub(crate) fn doc_too_long(doc: &ComposeDoc) -> Option<FieldError> {
    too_long(doc.docker_compose_file().unwrap_or_default(), doc.pre_launch_script().unwrap_or_default())
}
