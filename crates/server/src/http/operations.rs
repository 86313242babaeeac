//! Operations: one, followed to its end or not, and lists of them.

use std::convert::Infallible;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use casemate_types::error::FieldError;
use casemate_types::ids::OperationId;
use casemate_types::wire;
use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::error::answer;
use super::extract::{Caller, Params, TheCvm};
use super::streams::{Open, Reader, StreamedEvent, pings};
use super::{audit, view};
use crate::app::App;
use crate::error::{Error, Resource, Result};
use crate::store::{self, Of, OperationFilter};
use crate::workflow::operation::Operation;

fn find(app: &App, caller: &Caller, id: OperationId) -> Result<Operation> {
    match app.store.operation(caller.actor.workspace_id, id) {
        Err(store::Error::Missing) => Err(Error::NotFound { what: Resource::Operation }),
        other => Ok(other?),
    }
}

/// Get or follow an operation
///
/// With `Accept: text/event-stream` the answer is a stream of everything that happened to the operation and will happen, to
/// its end. Each event carries a number as its `id`; a reader that comes back with the last one in `Last-Event-ID` misses
/// nothing. 410 if events after that number are no longer kept.
#[utoipa::path(get, path = "/operations/{correlation_id}", tag = "operations",
    params(
        ("correlation_id" = OperationId, Path, description = "The id that the accepted request was answered with."),
        ("Last-Event-ID" = Option<u64>, Header, description = "Number of the last event that was read."),
    ),
    responses((status = 200, description = "The operation", content(
        (wire::Operation = "application/json"),
        (StreamedEvent = "text/event-stream"),
    ))))]
pub async fn operation_get(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response> {
    let id: OperationId = id.parse().map_err(|_| Error::NotFound { what: Resource::Operation })?;
    let operation = find(&app, &caller, id)?;
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if !text(header::ACCEPT).is_some_and(|accept| accept.contains("text/event-stream")) {
        return Ok(answer(StatusCode::OK, &view::operation_detail(&app, &operation)?));
    }
    let after = match headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?").trim().parse()) {
        None => 0,
        Some(Ok(seq)) => seq,
        Some(Err(_)) => {
            let issue =
                FieldError::header("Last-Event-ID", "int_parsing", "should be the number of an event");
            return Err(Error::Invalid(vec![issue]));
        }
    };
    if after > 0 {
        app.store.events_since(after)?;
    }
    Ok(Follow::start(app, caller, id, after)?.events().into_response())
}

/// A followed operation.
struct Follow {
    app: App,
    caller: Caller,
    id: OperationId,
    after: i64,
    ready: std::vec::IntoIter<store::Event>,
    news: watch::Receiver<i64>,
    _open: Open,
}

impl Follow {
    /// Reads the first events, so that what goes wrong now is an error and not a stream.
    fn start(app: App, caller: Caller, id: OperationId, after: i64) -> Result<Self> {
        let open = app.streams.open(Reader::Follower(caller.actor.user_id))?;
        let news = app.store.last_event();
        let ready = Vec::new().into_iter();
        let mut follow = Self { app, caller, id, after, ready, news, _open: open };
        follow.read()?;
        Ok(follow)
    }

    fn read(&mut self) -> Result<()> {
        const AT_ONCE: usize = 100;
        // Whatever is committed from here on ends the next wait.
        self.news.borrow_and_update();
        let workspace_id = self.caller.actor.workspace_id;
        self.ready =
            self.app.store.events(workspace_id, Of::Operation(self.id), self.after, AT_ONCE)?.into_iter();
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.next() {
                self.after = event.seq;
                return self.show(event).map(Some);
            }
            // Asked before the events are read: the end of an operation and its last event are one commit.
            let is_open = find(&self.app, &self.caller, self.id)?.state.is_open();
            self.read()?;
            match (self.ready.as_slice().is_empty(), is_open) {
                (false, _) => {}
                (true, false) => return Ok(None),
                (true, true) => self.news.changed().await.unwrap_or(()),
            }
        }
    }

    fn show(&self, event: store::Event) -> Result<Event> {
        let operation = view::operation_detail(&self.app, &find(&self.app, &self.caller, self.id)?)?;
        let shown = wire::OperationEvent { event: audit::event(&event), operation };
        let data = serde_json::to_string(&shown).expect("wire types have string keys");
        Ok(Event::default().id(event.seq.to_string()).event(event.kind).data(data))
    }

    fn events(self) -> Sse<impl Stream<Item = std::result::Result<Event, Infallible>>> {
        let events = stream::unfold(Some(self), async |follow| {
            let mut follow = follow?;
            match follow.next().await {
                Ok(event) => event.map(|event| (Ok(event), Some(follow))),
                Err(error) => {
                    tracing::error!(%error, op.id = %follow.id, "an operation cannot be followed");
                    let body = serde_json::json!({ "error": "the operation cannot be followed any further" });
                    Some((Ok(Event::default().event("error").data(body.to_string())), None))
                }
            }
        });
        Sse::new(events).keep_alive(pings())
    }
}

/// List operations
///
/// Newest first.
#[utoipa::path(get, path = "/operations", tag = "operations",
    params(
        ("cvm" = Option<String>, Query, description = "Only of this CVM: its id, UUID, app id, instance id or name."),
        ("status" = Option<wire::OperationStatus>, Query, description = "Only with this status."),
        ("stuck" = Option<bool>, Query, description = "Only those that cannot go on by themselves for now."),
        ("limit" = Option<u64>, Query, description = "At most so many; 50 unless given.", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
    ),
    responses((status = 200, description = "The page", body = wire::OperationPage)))]
pub async fn operation_list(State(app): State<App>, caller: Caller, params: Params) -> Result<Response> {
    let limit = usize::try_from(params.number("limit", 1, 500)?.unwrap_or(50)).expect("bounded above");
    let cvm = params.get("cvm").map(|named| TheCvm::find(&app, &caller.actor, named)).transpose()?;
    let status = params.one("status")?.map(status).transpose()?;
    let before = params.get("cursor").map(str::parse).transpose().map_err(|_| {
        Error::Invalid(vec![FieldError::query(
            "cursor",
            "value_error",
            "should be `next_cursor` of an earlier page",
        )])
    })?;
    let filter = OperationFilter {
        cvm_id: cvm.map(|found| found.cvm.id),
        status: status.map(|status| status.to_string()),
        stuck: params.flag("stuck")?.unwrap_or(false),
        before,
        limit: limit + 1,
    };
    let mut operations = app.store.operations(caller.actor.workspace_id, &filter)?;
    let more = operations.len() > limit;
    operations.truncate(limit);
    let next_cursor = operations.last().filter(|_| more).map(|operation| operation.id.to_string());
    let items = operations.iter().map(|operation| view::operation(&app, operation)).collect::<Result<_>>()?;
    Ok(answer(StatusCode::OK, &wire::OperationPage { items, next_cursor }))
}

fn status(text: &str) -> Result<wire::OperationStatus> {
    match wire::OperationStatus::from(text) {
        wire::OperationStatus::Other(_) => {
            let message = format!("should be one of {}", wire::OperationStatus::WORDS.join(", "));
            Err(Error::Invalid(vec![FieldError::query("status", "enum", message)]))
        }
        known => Ok(known),
    }
}
