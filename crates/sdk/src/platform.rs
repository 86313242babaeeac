//! What is there besides CVMs: nodes, sizes, key services, keys, and who is asking.

use std::fmt::Display;

use casemate_types::error::FieldError;
use casemate_types::ids::{AppId, VmUuid};
use casemate_types::patch::{InstanceIdsLookup, InstanceIdsRefresh, MAX_INSTANCE_IDS, StatusBatch};
use casemate_types::version::ApiVersion;
use casemate_types::wire;
use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::call::{Call, Parsed, problem_of, segment};
use crate::client::Client;
use crate::cvm::Cvm;
use crate::error::{Error, Result};
use crate::operation::Operation;

/// Machines in one request for their states, as other clients send them: servers differ in how many they take.
const STATUS_BATCH: usize = 100;

/// A list that a server may wrap.
#[derive(Deserialize)]
#[serde(untagged)]
enum Items<T> {
    Wrapped { items: Vec<T> },
    Bare(Vec<T>),
}

impl<T> From<Items<T>> for Vec<T> {
    fn from(items: Items<T>) -> Self {
        match items {
            Items::Wrapped { items } | Items::Bare(items) => items,
        }
    }
}

impl Client {
    /// One CVM, by any identifier: `cvm_…`, a UUID, an app or instance id, a number or its name.
    pub fn cvm(&self, id: impl Display) -> Cvm {
        Cvm::new(self.clone(), id)
    }

    /// One operation, by its id. Needs Casemate.
    pub fn operation(&self, id: impl Display) -> Operation {
        Operation::by_id(self.clone(), id)
    }

    /// Who is asking, in which workspace.
    ///
    /// # Errors
    /// [`Error::Unauthorized`], and what every request can fail with.
    pub async fn me(&self) -> Result<wire::Me> {
        self.call(Method::GET, ["auth", "me"]).fetch().await
    }

    /// What many machines are doing, 100 of them in each request. Unknown ones are left out.
    ///
    /// # Errors
    /// What every request can fail with.
    #[doc(alias = "getCvmStatusBatch")]
    pub async fn status_batch(&self, vm_uuids: impl IntoIterator<Item = VmUuid>) -> Result<wire::StatusMap> {
        let vm_uuids: Vec<_> = vm_uuids.into_iter().map(|uuid| uuid.to_string()).collect();
        let mut all = wire::StatusMap::new();
        for some in vm_uuids.chunks(STATUS_BATCH) {
            let call =
                self.call(Method::POST, ["status", "batch"]).json(&StatusBatch { vm_uuids: some.to_vec() });
            all.append(&mut call.read_only().fetch().await?);
        }
        Ok(all)
    }

    /// Gives CVMs new instance ids, 1 to 500 in one request; each of them restarts. One that is unknown or busy is told in its
    /// item. Needs Casemate.
    #[doc(alias = "refreshCvmInstanceIds")]
    pub fn refresh_instance_ids<T: Display>(&self, ids: impl IntoIterator<Item = T>) -> RefreshInstanceIds {
        let ids = ids.into_iter().map(|id| id.to_string()).collect();
        RefreshInstanceIds { client: self.clone(), ids, idempotency_key: None }
    }

    /// Reads instance ids from their nodes again. No restart.
    ///
    /// # Errors
    /// What every request can fail with.
    pub async fn look_up_instance_ids(&self, how: &InstanceIdsLookup) -> Result<wire::InstanceIdsResult> {
        let outside = (!(1..=MAX_INSTANCE_IDS as u32).contains(&how.limit)).then(|| {
            FieldError::body(
                "limit",
                "value_error",
                format!("must be 1 to {MAX_INSTANCE_IDS}, not {}", how.limit),
            )
        });
        self.call(Method::PATCH, ["cvms", "instance-ids"]).json(how).problems(outside).fetch().await
    }

    /// Named sizes, by family. Memory is in MB, disk in GB, prices are per hour.
    ///
    /// # Errors
    /// What every request can fail with.
    pub async fn instance_types(&self) -> Result<Vec<wire::InstanceTypeGroup>> {
        let types: wire::InstanceTypes = self.call(Method::GET, ["instance-types"]).fetch().await?;
        Ok(types.result)
    }

    /// What new CVMs can be put on.
    ///
    /// # Errors
    /// What every request can fail with.
    pub async fn available_nodes(&self) -> Result<wire::TeepodsAvailable> {
        self.call(Method::GET, ["teepods", "available"]).fetch().await
    }

    /// What is to know about every field that can be updated. Needs Casemate.
    ///
    /// # Errors
    /// [`Error::Unsupported`], and what every request can fail with.
    pub async fn fields(&self) -> Result<Vec<wire::FieldRule>> {
        let call = self.call(Method::GET, ["fields"]).only_casemate("the table of fields");
        Ok(call.fetch::<Items<_>>().await?.into())
    }

    /// The nodes. Needs Casemate.
    ///
    /// # Errors
    /// [`Error::Unsupported`], and what every request can fail with.
    pub async fn nodes(&self) -> Result<Vec<wire::Node>> {
        let call = self.call(Method::GET, ["nodes"]).only_casemate("nodes");
        Ok(call.fetch::<Items<_>>().await?.into())
    }

    /// One node, by its number or name. Needs Casemate.
    pub fn node(&self, id: impl Display) -> Node {
        Node { client: self.clone(), id: segment("node", id) }
    }

    /// Key services.
    pub fn kms(&self) -> Kms {
        Kms { client: self.clone() }
    }

    /// API keys. Needs Casemate.
    pub fn keys(&self) -> Keys {
        Keys { client: self.clone() }
    }
}

/// New instance ids for several CVMs: [`Client::refresh_instance_ids`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// for refreshed in client.refresh_instance_ids(["web-1", "web-2"]).send().await?.items {
///     println!("{refreshed:?}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct RefreshInstanceIds {
    client: Client,
    ids: Vec<String>,
    idempotency_key: Option<String>,
}

impl RefreshInstanceIds {
    /// Names this request, so that it is carried out once however often it is sent; it is then also repeated when no answer
    /// came. [`idempotency_key`](crate::idempotency_key) makes one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Unsupported`], and what every request can fail with.
    pub async fn send(self) -> Result<wire::InstanceIdsResult> {
        let count = self.ids.len();
        let outside = (!(1..=MAX_INSTANCE_IDS).contains(&count)).then(|| {
            let text = format!("must have 1 to {MAX_INSTANCE_IDS} entries, not {count}");
            FieldError::body("ids", "value_error", text)
        });
        self.client
            .call(Method::POST, ["cvms", "refresh-instance-ids"])
            .only_casemate("new instance ids")
            .idempotency_key(self.idempotency_key.as_deref())
            .json(&InstanceIdsRefresh { ids: self.ids })
            .problems(outside)
            .fetch()
            .await
    }
}

/// A fault of a simulated node, to rehearse what then happens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Guests do not boot.
    BootFail,
    /// The node refuses calls.
    Refuse,
    /// The node's own disk is full.
    DiskFull,
    /// The node does not answer.
    Unreachable,
    /// Guests take so many seconds to shut down.
    SlowStop(u32),
    /// Guests never shut down when asked.
    StopHangs,
    /// Machines end by themselves.
    Crash,
    /// The node claims to have done what it has not.
    Lie,
    /// Machines are gone.
    Vanish,
    /// The node does what it is told, and its answer is lost.
    AnswerLost,
    /// Calls take so many seconds.
    Slow(u32),
}

impl Fault {
    fn parts(&self) -> (&'static str, Option<u32>) {
        match self {
            Self::BootFail => ("boot-fail", None),
            Self::Refuse => ("refuse", None),
            Self::DiskFull => ("disk-full", None),
            Self::Unreachable => ("unreachable", None),
            Self::SlowStop(seconds) => ("slow-stop", Some(*seconds)),
            Self::StopHangs => ("stop-hangs", None),
            Self::Crash => ("crash", None),
            Self::Lie => ("lie", None),
            Self::Vanish => ("vanish", None),
            Self::AnswerLost => ("answer-lost", None),
            Self::Slow(seconds) => ("slow", Some(*seconds)),
        }
    }

    /// How the faults are written.
    const FORMS: &str = "boot-fail, refuse, disk-full, unreachable, slow-stop=SECONDS, stop-hangs, crash, lie, vanish, answer-lost, slow=SECONDS";
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "boot-fail" => Self::BootFail,
            "refuse" => Self::Refuse,
            "disk-full" => Self::DiskFull,
            "unreachable" => Self::Unreachable,
            "stop-hangs" => Self::StopHangs,
            "crash" => Self::Crash,
            "lie" => Self::Lie,
            "vanish" => Self::Vanish,
            "answer-lost" => Self::AnswerLost,
            _ => {
                let unknown = || format!("`{text}` is none of {}", Self::FORMS);
                let (word, seconds) = text.split_once('=').ok_or_else(unknown)?;
                let seconds = seconds.parse().map_err(|_| unknown())?;
                match word {
                    "slow-stop" => Self::SlowStop(seconds),
                    "slow" => Self::Slow(seconds),
                    _ => return Err(unknown()),
                }
            }
        })
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.parts() {
            (word, None) => f.write_str(word),
            (word, Some(seconds)) => write!(f, "{word}={seconds}"),
        }
    }
}

/// One node: [`Client::node`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use casemate_sdk::Fault;
///
/// client.node(1).plan_fault(Fault::BootFail).once().send().await?;
/// // The next update fails and is put back.
/// client.node(1).clear_faults().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Node {
    client: Client,
    id: Parsed<String>,
}

impl Node {
    fn call(&self, method: Method, rest: &[&str]) -> Call {
        let id = self.id.as_deref().unwrap_or("-");
        let path = rest.iter().map(|part| if part.is_empty() { id } else { part });
        let call = Call::new(self.client.clone(), method, path.map(str::to_owned).collect());
        call.problems(problem_of(&self.id))
    }

    /// The node.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::NotFound`], and what every request
    /// can fail with.
    pub async fn get(&self) -> Result<wire::Node> {
        let id = self.id.as_ref().map_err(|problem| Error::invalid(vec![(**problem).clone()]))?;
        let nodes = self.client.nodes().await?;
        let found = nodes.into_iter().find(|node| node.id.to_string() == *id || node.name == *id);
        found.ok_or_else(|| Error::missing(format!("there is no node `{id}`")))
    }

    /// Sets a fault on a simulated node. Only a development server can.
    pub fn plan_fault(&self, fault: Fault) -> PlanFault {
        PlanFault { node: self.clone(), fault, once: false, cvm: None, image: None, env: None }
    }

    /// Removes all faults.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn clear_faults(&self) -> Result<()> {
        let call = self.call(Method::DELETE, &["dev", "nodes", "", "faults"]);
        call.only_casemate("faults of nodes").done().await
    }
}

/// A fault to be set: [`Node::plan_fault`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct PlanFault {
    node: Node,
    fault: Fault,
    once: bool,
    cvm: Option<String>,
    image: Option<String>,
    env: Option<String>,
}

#[derive(Serialize)]
struct FaultBody {
    fault: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    once: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cvm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<String>,
}

impl PlanFault {
    /// Only the next time.
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// Only for this CVM.
    pub fn cvm(mut self, id: impl Display) -> Self {
        self.cvm = Some(id.to_string());
        self
    }

    /// Only for machines with this OS image. For [`Fault::BootFail`].
    pub fn image(mut self, name: impl Into<String>) -> Self {
        self.image = Some(name.into());
        self
    }

    /// Only for machines with this environment variable. For [`Fault::BootFail`].
    pub fn env(mut self, name: impl Into<String>) -> Self {
        self.env = Some(name.into());
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// As [`Node::get`].
    pub async fn send(self) -> Result<()> {
        let (fault, seconds) = self.fault.parts();
        let Self { once, cvm, image, env, .. } = self;
        let body = FaultBody { fault, seconds, once, cvm, image, env };
        let call = self.node.call(Method::POST, &["dev", "nodes", "", "faults"]);
        call.only_casemate("faults of nodes").json(&body).done().await
    }
}

/// Key services: [`Client::kms`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// for kms in client.kms().list().await? {
///     println!("{} {}", kms.id, kms.custody.unwrap_or_default());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Kms {
    client: Client,
}

impl Kms {
    /// In the newest shape, whatever version the client asks for elsewhere: the older one tells less.
    fn call(&self, rest: &[&str]) -> Call {
        let path = std::iter::once("kms").chain(rest.iter().copied()).map(str::to_owned).collect();
        let call = Call::new(self.client.clone(), Method::GET, path);
        let problems: Vec<_> = rest.iter().filter_map(|part| problem_of(&segment("kms", part))).collect();
        call.header(VERSION_NAME, ApiVersion::V20260623).problems(problems)
    }

    /// All of them.
    ///
    /// # Errors
    /// What every request can fail with.
    pub async fn list(&self) -> Result<Vec<wire::KmsContract>> {
        Ok(self.call(&[]).fetch::<Items<_>>().await?.into())
    }

    /// One, by id or slug.
    ///
    /// # Errors
    /// [`Error::NotFound`], and what every request can fail with.
    pub async fn get(&self, kms: impl Display) -> Result<wire::KmsContract> {
        self.call(&[&kms.to_string()]).fetch().await
    }

    /// The machines that serve one.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn nodes(&self, kms: impl Display) -> Result<Vec<wire::KmsNode>> {
        let nodes: wire::KmsNodes = self.call(&[&kms.to_string(), "nodes"]).fetch().await?;
        Ok(nodes.items)
    }

    /// The public key of an app, to [`seal`](crate::seal()) environment variables with. The key service goes by its id, its slug
    /// or its kind.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn pubkey(&self, kms: impl Display, app: AppId) -> Result<wire::PubKey> {
        self.call(&[&kms.to_string(), "pubkey", &app.to_string()]).fetch().await
    }

    /// App ids for new CVMs off chain, 1 to 20.
    ///
    /// # Errors
    /// What every request can fail with.
    pub async fn next_app_ids(&self, count: u32) -> Result<Vec<wire::NextAppId>> {
        let ids: wire::NextAppIds =
            self.call(&["phala", "next_app_id"]).query("counts", count).fetch().await?;
        Ok(ids.app_ids)
    }
}

const VERSION_NAME: &str = "x-phala-version";

/// API keys: [`Client::keys`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let new = client.keys().create("ci").scopes(["read"]).send().await?;
/// println!("keep this: {}", new.key);
/// client.keys().revoke(&new.info.id).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Keys {
    client: Client,
}

impl Keys {
    /// All keys of the workspace, without the keys themselves.
    ///
    /// # Errors
    /// [`Error::Unsupported`], and what every request can fail with.
    pub async fn list(&self) -> Result<Vec<wire::ApiKeyInfo>> {
        let call = self.client.call(Method::GET, ["keys"]).only_casemate("API keys");
        Ok(call.fetch::<Items<_>>().await?.into())
    }

    /// Makes a key. Its answer is the only one that ever shows it.
    pub fn create(&self, name: impl Into<String>) -> CreateKey {
        let body = KeyBody { name: name.into(), scopes: None, default_version: None, expires_at: None };
        CreateKey { client: self.client.clone(), body }
    }

    /// Makes a key void, by its id.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of [`list`](Self::list).
    pub async fn revoke(&self, id: impl Display) -> Result<()> {
        let id = segment("id", id);
        let call = self.client.call(Method::DELETE, ["keys", id.as_deref().unwrap_or("-")]);
        call.problems(problem_of(&id)).only_casemate("API keys").done().await
    }
}

#[derive(Debug, Clone, Serialize)]
struct KeyBody {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_version: Option<ApiVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

/// A key to be made: [`Keys::create`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct CreateKey {
    client: Client,
    body: KeyBody,
}

impl CreateKey {
    /// What it may do; everything by default.
    pub fn scopes<T: Into<String>>(mut self, scopes: impl IntoIterator<Item = T>) -> Self {
        self.body.scopes = Some(scopes.into_iter().map(Into::into).collect());
        self
    }

    /// When it stops working; by default with the key that makes it, if that does.
    pub fn expires_at(mut self, at: Timestamp) -> Self {
        self.body.expires_at = Some(at);
        self
    }

    /// The API version of requests that name none.
    pub fn default_version(mut self, version: ApiVersion) -> Self {
        self.body.default_version = Some(version);
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the caller's own key may not, and those of [`Keys::list`].
    pub async fn send(self) -> Result<wire::NewApiKey> {
        self.client.call(Method::POST, ["keys"]).only_casemate("API keys").json(&self.body).fetch().await
    }
}
