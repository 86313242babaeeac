//! One CVM: reading it, and the way to everything that can be done with it.

use std::fmt::Display;

use casemate_types::compose::ComposeDoc;
use casemate_types::env::{EnvVar, SealedEnv};
use casemate_types::error::FieldError;
use casemate_types::ids::{ComposeHash, CvmName, CvmRef};
use casemate_types::patch::{CommitUpdate, InstanceIdLookup, TxProof};
use casemate_types::wire;
use reqwest::Method;

use crate::call::{Call, Parsed, parsed, problem_of};
use crate::client::Client;
use crate::compose::Compose;
use crate::error::{Error, Result};
use crate::list::{ByCursor, Cursor};
use crate::logs::{LogSource, Logs};
use crate::patch::{Commit, Confirm, Patch};
use crate::power::{Delete, Power};
use crate::update::{
    Envs, Listed, OsImage, RefreshInstanceId, Rename, Resources, Rollback, Text, Visibility,
};
use crate::watch::Watch;

/// One CVM, named by any identifier: `cvm_…`, a UUID, an app or instance id, a number or its name. Made by [`Client::cvm`];
/// nothing is sent until something is asked of it.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let web = client.cvm("web-1");
/// println!("{} is {}", web.get().await?.id, web.state().await?.status);
/// println!("{}", web.docker_compose_yml().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Cvm {
    client: Client,
    reference: Parsed<CvmRef>,
}

/// A CVM and the tag of the state that was read, for [`if_match`](crate::Patch::if_match).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Tagged {
    /// The CVM.
    pub cvm: wire::Cvm,
    /// The tag; `None` if the server gives none.
    pub etag: Option<String>,
}

impl Cvm {
    pub(crate) fn new(client: Client, id: impl Display) -> Self {
        let reference = parsed("id", id);
        Self { client, reference }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn call<const N: usize>(&self, method: Method, rest: [&str; N]) -> Call {
        let id = self.reference.as_ref().map_or_else(|_| "-".to_owned(), ToString::to_string);
        let path = ["cvms".to_owned(), id].into_iter().chain(rest.map(str::to_owned)).collect();
        Call::new(self.client.clone(), method, path).problems(problem_of(&self.reference))
    }

    /// Its details.
    ///
    /// # Errors
    /// [`Error::NotFound`], and what every request can fail with.
    #[doc(alias = "getCvmInfo")]
    pub async fn get(&self) -> Result<wire::Cvm> {
        self.call(Method::GET, []).fetch().await
    }

    /// Its details and the tag of this state.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_tagged(&self) -> Result<Tagged> {
        let answer = self.call(Method::GET, []).answer().await?;
        Ok(Tagged { cvm: answer.json()?, etag: answer.header("etag").map(str::to_owned) })
    }

    /// What its node itself reports: what really runs. Memory is in MB, disk in GB. Needs Casemate.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`Error::Unsupported`].
    pub async fn observed(&self) -> Result<wire::Observed> {
        self.call(Method::GET, ["observed"]).only_casemate("what the node observes").fetch().await
    }

    /// What it is doing.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "getCvmState")]
    pub async fn state(&self) -> Result<wire::CvmState> {
        self.call(Method::GET, ["state"]).fetch().await
    }

    /// Its app-compose document, all strings byte for byte.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "getCvmComposeFile")]
    pub async fn compose_file(&self) -> Result<ComposeDoc> {
        self.call(Method::GET, ["compose_file"]).fetch().await
    }

    /// The text that was made of its app-compose document and whose SHA-256 is the compose hash.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn compose_text(&self) -> Result<String> {
        let answer = self.call(Method::GET, ["compose_file"]).query("raw", true).answer().await?;
        String::from_utf8(answer.body.to_vec())
            .map_err(|error| Error::Decode { url: answer.url, source: error.into() })
    }

    /// Its docker-compose file, byte for byte.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "getCvmDockerCompose")]
    pub async fn docker_compose_yml(&self) -> Result<String> {
        self.call(Method::GET, ["docker-compose.yml"]).fetch_text().await
    }

    /// Its pre-launch script, byte for byte; empty if it has none.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "getCvmPreLaunchScript")]
    pub async fn pre_launch_script_text(&self) -> Result<String> {
        self.call(Method::GET, ["pre-launch-script"]).fetch_text().await
    }

    /// What its guest gets besides the document.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "getCvmUserConfig")]
    pub async fn user_config(&self) -> Result<wire::UserConfig> {
        self.call(Method::GET, ["user_config"]).fetch().await
    }

    /// System information of its guest. Sizes are in bytes.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "getCvmStats")]
    pub async fn stats(&self) -> Result<wire::CvmStats> {
        self.call(Method::GET, ["stats"]).fetch().await
    }

    /// How it is reached.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "getCvmNetwork")]
    pub async fn network(&self) -> Result<wire::CvmNetwork> {
        self.call(Method::GET, ["network"]).fetch().await
    }

    /// What it runs, container by container.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "getCvmContainersStats")]
    pub async fn composition(&self) -> Result<wire::CvmComposition> {
        self.call(Method::GET, ["composition"]).fetch().await
    }

    /// The OS images that it may switch to, newest first.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn available_os_images(&self) -> Result<Vec<wire::OsImageGroup>> {
        self.call(Method::GET, ["available-os-images"]).fetch().await
    }

    /// Its configurations, newest first. Needs Casemate.
    pub fn revisions(&self) -> ByCursor<wire::RevisionPage> {
        ByCursor::new(self.call(Method::GET, ["revisions"]).only_casemate("revisions"))
    }

    /// Its logs.
    pub fn logs(&self, source: LogSource) -> Logs {
        Logs::new(self.clone(), source)
    }

    /// Watches it until it has the status `target`.
    #[doc(alias = "watchCvmState")]
    pub fn watch(&self, target: impl Into<wire::Status>) -> Watch {
        Watch::new(self.clone(), target.into())
    }

    /// Changes its size. It restarts.
    #[doc(alias = "updateCvmResources")]
    pub fn resources(&self) -> Resources {
        Resources::new(self.clone())
    }

    /// Changes who may see what. It restarts, unless only `listed` changes.
    #[doc(alias = "updateCvmVisibility")]
    pub fn visibility(&self) -> Visibility {
        Visibility::new(self.clone())
    }

    /// Replaces the script that runs before the containers start; an empty text removes it. It restarts.
    #[doc(alias = "updatePreLaunchScript")]
    pub fn pre_launch_script(&self, script: impl Into<String>) -> Text {
        Text::pre_launch_script(self.clone(), script.into())
    }

    /// Replaces its docker-compose file. It restarts.
    #[doc(alias = "updateDockerCompose")]
    pub fn docker_compose(&self, yaml: impl Into<String>) -> Text {
        Text::docker_compose(self.clone(), yaml.into())
    }

    /// Replaces its environment variables, all of them. It restarts. [`seal`](Self::seal) seals.
    #[doc(alias = "updateCvmEnvs")]
    pub fn envs(&self, sealed: SealedEnv) -> Envs {
        Envs::new(self.clone(), sealed)
    }

    /// Seals variables so that only this CVM's app can read them.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`Error::Invalid`] if the CVM has no key yet.
    pub async fn seal(&self, vars: &[EnvVar]) -> Result<SealedEnv> {
        let cvm = self.get().await?;
        let in_kms = cvm.kms_info.and_then(|kms| kms.encrypted_env_pubkey);
        let key = cvm.encrypted_env_pubkey.or(in_kms).filter(|key| !key.is_empty()).ok_or_else(|| {
            let text = "the CVM has no key to seal environment variables with yet";
            Error::invalid(vec![FieldError::body("encrypted_env", "missing", text)])
        })?;
        crate::seal::seal(&key, vars)
    }

    /// Switches to another OS image, by name or slug. It restarts.
    #[doc(alias = "updateOsImage")]
    pub fn os_image(&self, image: impl Into<String>) -> OsImage {
        OsImage::new(self.clone(), image.into())
    }

    /// Shows it in the public directory, or no longer. No restart.
    pub fn listed(&self, listed: bool) -> Listed {
        Listed::new(self.clone(), listed)
    }

    /// Gives it another name: 5 to 63 letters, digits and single hyphens, a letter first. No restart.
    pub fn rename(&self, name: impl Display) -> Rename {
        Rename::new(self.clone(), parsed::<CvmName>("name", name))
    }

    /// Gives it a new instance id; the old one is void as soon as the operation has succeeded. It restarts. Needs Casemate.
    #[doc(alias = "refreshCvmInstanceId")]
    pub fn refresh_instance_id(&self) -> RefreshInstanceId {
        RefreshInstanceId::new(self.clone())
    }

    /// Reads its instance id from its node again. No restart.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn look_up_instance_id(&self, how: InstanceIdLookup) -> Result<wire::InstanceIdResult> {
        self.call(Method::PATCH, ["instance-id"]).json(&how).fetch().await
    }

    /// Changes its compose file in two steps.
    pub fn compose(&self) -> Compose {
        Compose::new(self.clone())
    }

    /// Changes any fields, all together and with one restart.
    #[doc(alias = "patchCvm")]
    pub fn patch(&self) -> Patch {
        Patch::new(self.clone())
    }

    /// Runs an update whose compose hash was registered on the chain. `tx` is the transaction that registered it, or
    /// `already-registered`.
    #[doc(alias = "confirmCvmPatch")]
    pub fn confirm(&self, compose_hash: impl Display, tx: impl Display) -> Confirm {
        Confirm::new(
            self.clone(),
            parsed("compose_hash", compose_hash),
            parsed::<TxProof>("transaction_hash", tx),
        )
    }

    /// Runs an update that somebody prepared, with the one-time token of that. Needs no key: see [`Client::anonymous`]; only
    /// following it afterwards does.
    #[doc(alias = "commitCvmUpdate")]
    pub fn commit_update(
        &self,
        token: impl Into<String>,
        compose_hash: impl Display,
        tx: impl Display,
    ) -> Commit {
        let hash = parsed::<ComposeHash>("compose_hash", compose_hash);
        let tx = parsed::<TxProof>("transaction_hash", tx);
        let problems: Vec<_> = problem_of(&hash).into_iter().chain(problem_of(&tx)).collect();
        let transaction_hash = tx.unwrap_or_default();
        let body = CommitUpdate { token: token.into(), compose_hash: hash.ok(), transaction_hash };
        Commit::new(self.clone(), body, problems)
    }

    /// Starts it.
    #[doc(alias = "startCvm")]
    pub fn start(&self) -> Power {
        Power::start(self.clone())
    }

    /// Switches it off at once. Never waits: what is at work on it ends.
    #[doc(alias = "stopCvm")]
    pub fn stop(&self) -> Power {
        Power::stop(self.clone())
    }

    /// Asks its guest to shut down.
    #[doc(alias = "shutdownCvm")]
    pub fn shutdown(&self) -> Power {
        Power::shutdown(self.clone())
    }

    /// Restarts it.
    #[doc(alias = "restartCvm")]
    pub fn restart(&self) -> Power {
        Power::restart(self.clone())
    }

    /// Removes it for good. Never waits: what is at work on it ends.
    #[doc(alias = "deleteCvm")]
    pub fn delete(&self) -> Delete {
        Delete::new(self.clone())
    }

    /// Runs an earlier revision again. The disk keeps its size. Needs Casemate.
    pub fn rollback(&self, revision: u64) -> Rollback {
        Rollback::new(self.clone(), revision)
    }
}

impl Cursor for wire::RevisionPage {
    type Item = wire::Revision;

    fn split(self) -> (Vec<wire::Revision>, Option<String>) {
        (self.items, self.next_cursor)
    }
}
