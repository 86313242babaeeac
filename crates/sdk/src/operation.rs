//! Following what the server accepted.

use std::sync::Arc;

use casemate_types::error::FieldError;
use casemate_types::ids::{ComposeHash, OperationId};
use casemate_types::wire::{self, OperationStatus, Reason, Status};
use futures_util::stream::{self, BoxStream, StreamExt};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use crate::call::{Answer, Call, Opened, Parsed, parsed};
use crate::client::Client;
use crate::cvm::Cvm;
use crate::error::{Error, PutBack, Result};
use crate::retry;
use crate::sse::Events;

/// So often in a row a watched operation may be out of reach.
const PATIENCE: u32 = 10;

/// A piece of work that the server accepted, or one named by its id: [`Client::operation`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use futures_util::StreamExt;
///
/// let op = client.cvm("web-1").resources().vcpu(4).send().await?;
/// let mut progress = op.watch();
/// while let Some(now) = progress.next().await {
///     let now = now?;
///     eprintln!("{} {}", now.status, now.step.unwrap_or_default());
/// }
/// op.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Operation {
    client: Client,
    id: Option<Parsed<OperationId>>,
    on: Option<Subject>,
    told: Arc<Told>,
}

/// The CVM that is worked on, and what becomes of it. Needed where the server does not name the operation.
#[derive(Debug, Clone)]
struct Subject {
    cvm: Cvm,
    target: Target,
}

/// How a CVM ends up when an operation succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// It runs.
    Running,
    /// It is off.
    Stopped,
    /// It is as it was before: on or off.
    Settled,
    /// It is gone.
    Gone,
}

/// What the answer said.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Told {
    #[serde(deserialize_with = "lenient")]
    correlation_id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    status: Option<String>,
    #[serde(deserialize_with = "lenient")]
    message: Option<String>,
    #[serde(deserialize_with = "lenient")]
    compose_hash: Option<ComposeHash>,
    #[serde(deserialize_with = "lenient")]
    allowed_envs_changed: Option<bool>,
    #[serde(deserialize_with = "lenient")]
    warnings: Option<Vec<String>>,
    #[serde(deserialize_with = "lenient")]
    cvm: Option<Box<wire::Vm>>,
    /// All of it.
    #[serde(skip)]
    whole: Option<Value>,
}

/// What was done is done, also if the server tells about it in another form.
fn lenient<'de, D: serde::Deserializer<'de>, T: serde::de::DeserializeOwned>(
    from: D,
) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(from)?).ok())
}

impl Operation {
    pub(crate) fn by_id(client: Client, id: impl std::fmt::Display) -> Self {
        Self { client, id: Some(parsed("correlation_id", id)), on: None, told: Arc::default() }
    }

    /// From the answer to a write.
    pub(crate) fn of(answer: &Answer, cvm: Cvm, target: Target) -> Self {
        let client = cvm.client().clone();
        Self { on: Some(Subject { cvm, target }), ..Self::told(client, answer) }
    }

    /// From the answer to a write of which it is not known yet which CVM it is about.
    pub(crate) fn told(client: Client, answer: &Answer) -> Self {
        let mut told: Told = serde_json::from_slice(&answer.body).unwrap_or_default();
        if told.cvm.is_none() {
            told.cvm = serde_json::from_slice(&answer.body).ok().map(Box::new);
        }
        told.whole = serde_json::from_slice(&answer.body).ok();
        let id = told.correlation_id.as_deref().map(|id| parsed("correlation_id", id));
        Self { client, id, on: None, told: Arc::new(told) }
    }

    /// Its id, if the server told it.
    pub fn id(&self) -> Option<OperationId> {
        self.id.as_ref().and_then(|id| id.as_ref().ok()).copied()
    }

    /// What the server said about it, for people.
    pub fn message(&self) -> Option<&str> {
        self.told.message.as_deref()
    }

    /// The word that the server gave for where it stands, usually `in_progress`.
    pub fn status(&self) -> Option<&str> {
        self.told.status.as_deref()
    }

    /// What the caller may not expect, such as where the hashed text differs from what was sent.
    pub fn warnings(&self) -> &[String] {
        self.told.warnings.as_deref().unwrap_or_default()
    }

    /// The hash of the document that will be in force, if the server told it.
    pub fn compose_hash(&self) -> Option<ComposeHash> {
        self.told.compose_hash
    }

    /// Whether the set of variables that reach the app changes, if the server told it.
    pub fn allowed_envs_changed(&self) -> Option<bool> {
        self.told.allowed_envs_changed
    }

    /// The CVM as it will be, if the server told it. Memory is in MB, disk in GB.
    pub fn vm(&self) -> Option<&wire::Vm> {
        self.told.cvm.as_deref()
    }

    /// The whole answer that told of it, as the server gave it; `None` if it had no content, or if this operation was named
    /// by its id.
    pub fn answer(&self) -> Option<&Value> {
        self.told.whole.as_ref()
    }

    /// The CVM, if this operation came from a request about one.
    pub fn cvm(&self) -> Option<&Cvm> {
        self.on.as_ref().map(|on| &on.cvm)
    }

    /// Where it stands now.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a server other than Casemate, [`Error::NotFound`] if there is no such operation, and what
    /// every request can fail with.
    pub async fn get(&self) -> Result<wire::Operation> {
        match self.known_id().await? {
            Some(id) => self.call(id, None).fetch().await,
            None => Err(self.nameless()),
        }
    }

    /// Cancels it. Possible until the machine is stopped for it; later that is a [`Error::Conflict`].
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`Error::Conflict`].
    pub async fn cancel(&self) -> Result<()> {
        match self.known_id().await? {
            Some(id) => {
                let path = ["operations", &id.to_string(), "cancel"];
                self.client.call(Method::POST, path).only_casemate("an operation").done().await
            }
            None => Err(self.nameless()),
        }
    }

    /// Where it stands, now and whenever that changes, until it has ended. A broken connection is made again, and nothing is
    /// missed. An operation that failed is no error here: its last state says so.
    ///
    /// The errors of the stream are those of [`get`](Self::get); after one, it ends.
    pub fn watch(&self) -> BoxStream<'static, Result<wire::Operation>> {
        let follower = Follower::new(self.clone());
        stream::unfold(follower, |mut follower| async {
            let now = follower.next().await?;
            Some((now, follower))
        })
        .boxed()
    }

    /// Waits until it has succeeded. One that failed is waited for until its old configuration was put back, too.
    ///
    /// `None` where the server does not tell more: the CVM is then in the status that the operation leads to. There is no limit
    /// in time; wrap it in one where that is needed.
    ///
    /// # Errors
    /// [`Error::UpdateFailed`] and [`Error::Cancelled`], and those of [`get`](Self::get).
    pub async fn wait(&self) -> Result<Option<wire::Operation>> {
        if !self.client.is_casemate().await? {
            return self.settled(false).await.map(|()| None);
        }
        let Some(id) = self.known_id().await? else { return self.settled(true).await.map(|()| None) };
        let ended = match follow(self.client.clone(), id).await {
            // The operations of a CVM may go with it.
            Err(Error::NotFound(_)) if self.target() == Some(Target::Gone) => return Ok(None),
            other => other?,
        };
        match &ended.status {
            OperationStatus::Succeeded => Ok(Some(ended)),
            OperationStatus::Cancelled => Err(Error::Cancelled(Box::new(ended))),
            OperationStatus::Failed
            | OperationStatus::Queued
            | OperationStatus::Running
            | OperationStatus::Other(_) => {
                let put_back = match ended.put_back {
                    None => PutBack::None,
                    Some(id) => {
                        let put_back = Box::new(follow(self.client.clone(), id).await?);
                        if put_back.status == OperationStatus::Succeeded {
                            PutBack::Done(put_back)
                        } else {
                            PutBack::Failed(put_back)
                        }
                    }
                };
                let reason = ended.reason.clone().unwrap_or_else(|| Reason {
                    code: "unknown".into(),
                    message: format!("operation {} ended as {}", ended.correlation_id, ended.status),
                });
                Err(Error::UpdateFailed { reason, put_back, operation: Some(Box::new(ended)) })
            }
        }
    }

    fn patience(&self) -> retry::Pauses {
        retry::pauses(PATIENCE, self.client.inner.retry_pause)
    }

    fn target(&self) -> Option<Target> {
        self.on.as_ref().map(|on| on.target)
    }

    fn call(&self, id: OperationId, last_event: Option<&str>) -> Call {
        let call =
            self.client.call(Method::GET, ["operations", &id.to_string()]).only_casemate("an operation");
        match last_event {
            Some(seq) => call.header("last-event-id", seq),
            None => call,
        }
    }

    fn nameless(&self) -> Error {
        let text = "the server did not name the operation, and none is at work on the CVM";
        Error::invalid(vec![FieldError::body("correlation_id", "missing", text)])
    }

    /// The id. Where the answer did not name the operation, the one at work on the CVM.
    async fn known_id(&self) -> Result<Option<OperationId>> {
        match (&self.id, &self.on) {
            (Some(Ok(id)), _) => Ok(Some(*id)),
            (Some(Err(problem)), _) => Err(Error::invalid(vec![(**problem).clone()])),
            (None, None) => Ok(None),
            (None, Some(on)) => match on.cvm.get().await {
                Ok(cvm) => Ok(cvm.progress.and_then(|now| now.correlation_id?.parse().ok())),
                Err(Error::NotFound(_)) if on.target == Target::Gone => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Waits until nothing is at work on the CVM any more, and judges what it then is.
    ///
    /// A boot error that stays on a running machine is only evidence where `put_back_shows` says so.
    async fn settled(&self, put_back_shows: bool) -> Result<()> {
        let Some(on) = &self.on else {
            return Err(Error::Unsupported {
                what: "an operation",
                base_url: self.client.base_url().to_owned(),
            });
        };
        let gone = |error: &Error| on.target == Target::Gone && matches!(error, Error::NotFound(_));
        loop {
            match on.cvm.get().await {
                Err(error) if gone(&error) => return Ok(()),
                Err(error) => return Err(error),
                Ok(cvm) if cvm.in_progress || cvm.status.is_transitional() => {}
                Ok(_) if on.target == Target::Gone => {}
                Ok(_) => break,
            }
            tokio::time::sleep(self.client.inner.poll_every).await;
        }
        let state = on.cvm.state().await?;
        let boot_error = state.boot_error.filter(|text| !text.is_empty());
        let reached = match (on.target, &state.status) {
            (Target::Running | Target::Settled, Status::Running) => !put_back_shows || boot_error.is_none(),
            (Target::Stopped | Target::Settled, Status::Stopped) => true,
            (Target::Stopped, Status::Exited) => true,
            _ => false,
        };
        if reached {
            return Ok(());
        }
        let message = boot_error.unwrap_or_else(|| format!("the CVM is {}", state.status));
        let reason = Reason { code: state.status.to_string(), message };
        Err(Error::UpdateFailed { reason, put_back: PutBack::Unknown, operation: None })
    }
}

/// The last state of an operation, once it has ended.
async fn follow(client: Client, id: OperationId) -> Result<wire::Operation> {
    let mut follower = Follower::new(Operation::by_id(client, id));
    let mut last = None;
    while let Some(now) = follower.next().await {
        last = Some(now?);
    }
    last.ok_or_else(|| follower.operation.nameless())
}

/// Reads what happens to an operation, over as many connections as it takes.
struct Follower {
    operation: Operation,
    id: Option<OperationId>,
    events: Option<Events>,
    last_event: Option<String>,
    last: Option<wire::Operation>,
    /// Between attempts that the server does not answer.
    failures: retry::Pauses,
    /// Between streams that bring nothing new.
    breaks: retry::Pauses,
    ended: bool,
}

impl Follower {
    fn new(operation: Operation) -> Self {
        let (failures, breaks) = (operation.patience(), operation.patience());
        Self {
            operation,
            id: None,
            events: None,
            last_event: None,
            last: None,
            failures,
            breaks,
            ended: false,
        }
    }

    async fn next(&mut self) -> Option<Result<wire::Operation>> {
        while !self.ended {
            match self.step().await {
                // Every event comes with the state of now: what happened before the connection was made shows the same.
                Ok(Some(now)) if self.last.as_ref() == Some(&now) => {
                    self.failures = self.operation.patience()
                }
                Ok(Some(now)) => {
                    self.failures = self.operation.patience();
                    self.breaks = self.operation.patience();
                    self.ended = now.status.is_final();
                    self.last = Some(now.clone());
                    return Some(Ok(now));
                }
                Ok(None) => {}
                Err(error) => {
                    self.events = None;
                    let wanted = error.failure().and_then(|failure| failure.retry_after);
                    match error.is_transient().then(|| self.failures.next(wanted)).flatten() {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => {
                            self.ended = true;
                            return Some(Err(error));
                        }
                    }
                }
            }
        }
        None
    }

    /// The next state, or nothing yet.
    async fn step(&mut self) -> Result<Option<wire::Operation>> {
        let id = match self.id {
            Some(id) => id,
            None => {
                *self.id.insert(self.operation.known_id().await?.ok_or_else(|| self.operation.nameless())?)
            }
        };
        let Some(events) = &mut self.events else {
            match self.operation.call(id, self.last_event.as_deref()).events().await {
                Ok(Opened::Events(events)) => self.events = Some(events),
                Ok(Opened::Answer(answer)) => {
                    let now: wire::Operation = answer.json()?;
                    if !now.status.is_final() {
                        tokio::time::sleep(self.operation.client.inner.poll_every).await;
                    }
                    return Ok(Some(now));
                }
                // The number was swept: begin anew.
                Err(Error::Api(failure)) if failure.status == 410 && self.last_event.take().is_some() => {}
                Err(error) => return Err(error),
            }
            return Ok(None);
        };
        match events.next().await? {
            Some(event) if event.event != "error" => {
                if event.id.is_some() {
                    self.last_event = event.id;
                }
                // What a newer server sends besides is skipped.
                let now = serde_json::from_str(&event.data).ok();
                Ok(now.map(|wire::OperationEvent { operation, .. }| operation))
            }
            // The stream cannot go on, perhaps because the server ends: ask once in the plain way, then come back.
            Some(_) | None => {
                self.events = None;
                let now: wire::Operation = self.operation.call(id, None).fetch().await?;
                if !now.status.is_final() {
                    let pause = self.breaks.next(None).unwrap_or(self.operation.client.inner.poll_every);
                    tokio::time::sleep(pause).await;
                }
                Ok(Some(now))
            }
        }
    }
}
