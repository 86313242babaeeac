//! One app: what its contract allows, and more CVMs of it.

use std::fmt::Display;

use casemate_types::env::SealedEnv;
use casemate_types::error::FieldError;
use casemate_types::ids::{ComposeHash, CvmName, DeviceId};
use casemate_types::patch::{AskAllowed, CommitUpdate, CvmReplicate, TxProof};
use casemate_types::wire;
use reqwest::Method;

use crate::call::{Call, Parsed, parsed, problem_of, segment};
use crate::client::Client;
use crate::create::created;
use crate::cvm::Cvm;
use crate::error::Result;
use crate::operation::Operation;
use crate::patch::{Again, Ask, PatchOutcome};
use crate::update::too_long;

/// One app, the identity that its CVMs share: [`Client::app`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let app = client.app("0x3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091");
/// for hash in app.allowed().await?.items {
///     if let Some(call) = hash.removal {
///         println!("{} can still boot; {} takes it back", hash.compose_hash, call.data);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct App {
    client: Client,
    id: Parsed<String>,
}

impl Client {
    /// One app, by its id, bare or after `app_` or `0x`.
    pub fn app(&self, id: impl Display) -> App {
        App { client: self.clone(), id: segment("app_id", id) }
    }
}

impl App {
    fn call<const N: usize>(&self, method: Method, rest: [&str; N]) -> Call {
        let id = self.id.clone().unwrap_or_else(|_| "-".to_owned());
        let path = ["apps".to_owned(), id].into_iter().chain(rest.map(str::to_owned)).collect();
        Call::new(self.client.clone(), method, path).problems(problem_of(&self.id))
    }

    /// The compose hashes that the app's contract lets boot, with the revisions that have them. `complete` is false until the
    /// whole log of the contract was read. Needs Casemate.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), [`Error::Invalid`](crate::Error::Invalid) for an app without a contract, [`Error::Unsupported`](crate::Error::Unsupported), and what every request can
    /// fail with.
    pub async fn allowed(&self) -> Result<wire::AllowedHashes> {
        self.call(Method::GET, ["allowed"]).only_casemate("what can still boot").fetch().await
    }

    /// Asks the app's contract about a compose hash.
    #[doc(alias = "checkAppIsAllowed")]
    pub fn is_allowed(&self, compose_hash: impl Display) -> CheckAllowed {
        CheckAllowed::new(self.call(Method::POST, ["is-allowed"])).compose_hash(compose_hash)
    }

    /// Asks the app's contract about every CVM of the app: the hash that it has, on its device.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), and what every request can fail with.
    #[doc(alias = "checkAppCvmsIsAllowed")]
    pub async fn cvms_allowed(&self) -> Result<wire::CvmsAllowed> {
        let call = self.call(Method::POST, ["cvms", "is-allowed"]);
        call.json(&AskAllowed::default()).read_only().fetch().await
    }

    /// Every node's device, and whether the app's contract allows it.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), and what every request can fail with.
    #[doc(alias = "getAppDeviceAllowlist")]
    pub async fn device_allowlist(&self) -> Result<wire::DeviceAllowlist> {
        self.call(Method::GET, ["device-allowlist"]).fetch().await
    }

    /// Another CVM of the app, like its newest one.
    #[doc(alias = "createAppInstance")]
    pub fn new_instance(&self) -> Replicate {
        let call = self.call(Method::POST, ["instances"]);
        let like = self.client.cvm(self.id.as_deref().unwrap_or("-"));
        Replicate::new(like, call.clone(), call)
    }
}

impl Cvm {
    /// Asks the app's contract whether this CVM may boot: the hash that it has, on its device, unless others are named.
    #[doc(alias = "checkCvmIsAllowed")]
    pub fn is_allowed(&self) -> CheckAllowed {
        CheckAllowed::new(self.call(Method::POST, ["is-allowed"]))
    }

    /// Another CVM of the same app, like this one.
    #[doc(alias = "replicateCvm")]
    pub fn replicate(&self) -> Replicate {
        let [ask, commit] = ["replicas", "commit-replica"].map(|action| self.call(Method::POST, [action]));
        Replicate::new(self.clone(), ask, commit)
    }

    /// Makes a replica that somebody prepared, with the one-time token of that. Unlike an update, it takes an API key.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if the token is not valid or used up, [`Error::NotProven`](crate::Error::NotProven) if the server does not see the registration
    /// (yet), and what every request can fail with.
    pub async fn commit_replica(
        &self,
        token: impl Into<String>,
        compose_hash: impl Display,
        tx: impl Display,
    ) -> Result<Operation> {
        let hash = parsed::<ComposeHash>("compose_hash", compose_hash);
        let call = self.call(Method::POST, ["commit-replica"]).problems(problem_of(&hash));
        let call = with_token(call, token.into(), hash.ok(), tx);
        created(self.client(), call).await
    }
}

/// The commit of a replica.
pub(crate) fn with_token(
    call: Call,
    token: String,
    compose_hash: Option<ComposeHash>,
    tx: impl Display,
) -> Call {
    let tx = parsed::<TxProof>("transaction_hash", tx);
    let missing = token
        .is_empty()
        .then(|| FieldError::body("token", "missing", "the commit token of the prepared replica is needed"));
    let call = call.problems(problem_of(&tx)).problems(missing);
    call.json(&CommitUpdate { token, compose_hash, transaction_hash: tx.unwrap_or_default() })
}

/// A question to an app's contract: [`Cvm::is_allowed`], [`App::is_allowed`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// // Could it move to that node?
/// let answer = client.cvm("web-1").is_allowed().node(2).send().await?;
/// println!("hash: {}, device: {:?}", answer.compose_hash_allowed, answer.device_id_allowed);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct CheckAllowed {
    call: Call,
    body: AskAllowed,
}

impl CheckAllowed {
    fn new(call: Call) -> Self {
        Self { call, body: AskAllowed::default() }
    }

    /// About this compose hash.
    pub fn compose_hash(mut self, hash: impl Display) -> Self {
        match parsed::<ComposeHash>("compose_hash", hash) {
            Ok(hash) => self.body.compose_hash = Some(hash),
            Err(problem) => self.call = self.call.problem(*problem),
        }
        self
    }

    /// On this device.
    pub fn device(mut self, device: impl Display) -> Self {
        match parsed::<DeviceId>("device_id", device) {
            Ok(device) => self.body.device_id = Some(device),
            Err(problem) => self.call = self.call.problem(*problem),
        }
        self
    }

    /// On the device of this node, by its number.
    pub fn node(mut self, id: i64) -> Self {
        self.body.node_id = Some(id);
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), [`Error::Invalid`](crate::Error::Invalid) for an app without a contract, and what every request can fail with.
    pub async fn send(self) -> Result<wire::IsAllowed> {
        self.call.json(&self.body).read_only().fetch().await
    }
}

/// Another CVM of an app: [`Cvm::replicate`], [`App::new_instance`]. What is not given is as with the CVM it is like.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let op = client.cvm("web-1").replicate().node(2).send().await?.accepted()?;
/// op.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Replicate {
    /// The CVM that it is like; of an app, the app's id names one.
    like: Cvm,
    call: Call,
    /// The request that commits it, still without a body.
    commit: Call,
    body: CvmReplicate,
    idempotency_key: Option<String>,
}

impl Replicate {
    fn new(like: Cvm, call: Call, commit: Call) -> Self {
        Self { like, call, commit, body: CvmReplicate::default(), idempotency_key: None }
    }

    /// Its name; else that of the CVM it is like, and a number. Needs Casemate.
    pub fn name(mut self, name: impl Display) -> Self {
        self.call = self.call.only_casemate("a name for a replica");
        match parsed::<CvmName>("name", name) {
            Ok(name) => self.body.name = Some(name),
            Err(problem) => self.call = self.call.problem(*problem),
        }
        self
    }

    /// The node, by its number.
    pub fn node(mut self, id: i64) -> Self {
        self.body.node_id = Some(id);
        self
    }

    /// The revision of the app with this compose hash.
    pub fn compose_hash(mut self, hash: impl Display) -> Self {
        match parsed::<ComposeHash>("compose_hash", hash) {
            Ok(hash) => self.body.compose_hash = Some(hash),
            Err(problem) => self.call = self.call.problem(*problem),
        }
        self
    }

    /// The sealed environment: [`Cvm::seal`] of any CVM of the app.
    #[doc(alias = "encrypted_env")]
    pub fn envs(mut self, sealed: SealedEnv) -> Self {
        self.body.encrypted_env = Some(sealed);
        self
    }

    /// The docker-compose file.
    pub fn docker_compose(mut self, yaml: impl Into<String>) -> Self {
        self.body.docker_compose_file = Some(yaml.into());
        self
    }

    /// The script that runs before the containers start.
    pub fn pre_launch_script(mut self, script: impl Into<String>) -> Self {
        self.body.pre_launch_script = Some(script.into());
        self
    }

    /// Does not make it, but has the server keep the request until somebody with the commit token commits it. Without a
    /// contract, it is made at once all the same.
    #[doc(alias = "prepareOnly")]
    pub fn prepare_only(mut self) -> Self {
        self.call = self.call.header("x-prepare-only", true);
        self
    }

    /// If an approval is needed, the server watches the contract itself and makes it once hash and device are allowed, in the
    /// name of this API key. Needs Casemate.
    pub fn auto_commit(mut self) -> Self {
        self.call = self.call.header("x-auto-commit", true).only_casemate("auto-commit");
        self
    }

    /// Names this request, so that it is carried out once however often it is sent; it is then also repeated when no answer
    /// came. Needs Casemate. [`idempotency_key`](crate::idempotency_key) makes one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Sends it. The operation is that of the new CVM.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), [`Error::Invalid`](crate::Error::Invalid) with the fields that are wrong, [`Error::Conflict`](crate::Error::Conflict) if the node has no room, and
    /// what every request can fail with.
    pub async fn send(self) -> Result<PatchOutcome> {
        let long = too_long(
            self.body.docker_compose_file.as_deref().unwrap_or_default(),
            self.body.pre_launch_script.as_deref().unwrap_or_default(),
        );
        let call = self.call.idempotency_key(self.idempotency_key.as_deref()).json(&self.body).problems(long);
        match created(self.like.client(), call).await {
            Ok(operation) => Ok(PatchOutcome::Accepted(operation)),
            Err(error) => Ask::after(error, self.like, Again::Replica(self.commit)),
        }
    }
}
