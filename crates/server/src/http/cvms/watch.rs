//! Watching a CVM: states as server-sent events, until the status is the one that is waited for.
//!
//! The store says when something was committed, so a change shows at once; a timer fills the time between.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::Sse;
use axum::response::sse::{Event, KeepAliveStream};
use casemate_types::version::ApiVersion;
use casemate_types::wire;
use futures_util::{Stream, stream};
use jiff::Timestamp;
use tokio::sync::watch;

use super::state::state;
use crate::app::App;
use crate::cvm::state::Status;
use crate::error::Result;
use crate::http::extract::{On, Params};
use crate::http::streams::{Open, Reader, pings};
use crate::store;

/// One watched CVM.
pub struct Watch {
    app: App,
    cvm_id: i64,
    version: ApiVersion,
    /// None: one state is enough.
    target: Option<String>,
    interval: Duration,
    started_at: Timestamp,
    ends_at: Timestamp,
    /// When the next state is due, changed or not.
    next_at: Timestamp,
    news: watch::Receiver<i64>,
    shown: Option<Status>,
    stage: Stage,
    _open: Open,
}

enum Stage {
    Watching,
    /// The target was shown and is to be reported.
    Reached,
    Over,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// A query out of its bounds, or too many streams of this user.
    pub fn start(app: App, on: On, params: &Params) -> Result<Self> {
        let interval = params.number("interval", 5, 30)?.unwrap_or(5);
        let timeout = params.number("timeout", 10, 600)?.unwrap_or(300);
        let target = params.get("target").filter(|target| !target.is_empty()).map(str::to_owned);
        let open = app.streams.open(Reader::Watcher(on.caller.actor.user_id))?;
        let started_at = app.clock.now();
        Ok(Self {
            news: app.store.last_event(),
            cvm_id: on.cvm.id,
            version: on.caller.version,
            target,
            interval: Duration::from_secs(interval),
            started_at,
            ends_at: started_at + Duration::from_secs(timeout),
            next_at: started_at,
            shown: None,
            stage: Stage::Watching,
            _open: open,
            app,
        })
    }

    async fn next(&mut self) -> Option<Event> {
        match self.stage {
            Stage::Watching => Some(self.watch().await),
            Stage::Reached => {
                self.stage = Stage::Over;
                let status = self.shown.map_or("", Status::as_str).into();
                let target = self.target.clone().unwrap_or_default();
                let complete = wire::WatchComplete { status, elapsed: self.elapsed(), target };
                Some(event("complete", &complete))
            }
            Stage::Over => None,
        }
    }

    /// The next state, or why there is none.
    async fn watch(&mut self) -> Event {
        loop {
            // Whatever is committed from here on ends the wait below.
            self.news.borrow_and_update();
            let cvm = match self.app.store.cvm(self.cvm_id) {
                Ok(cvm) => cvm,
                Err(store::Error::Missing) => return self.give_up("error", "the CVM is gone"),
                Err(error) => return self.cannot_read(&error),
            };
            let now = self.app.clock.now();
            if self.shown != Some(cvm.status) || now >= self.next_at {
                self.shown = Some(cvm.status);
                self.next_at = now + self.interval;
                if self.target.as_deref().is_none_or(|target| target == cvm.status.as_str()) {
                    self.stage = Stage::Reached;
                }
                return match state(&self.app, &cvm, self.version) {
                    Ok(state) => event("state", &state),
                    Err(error) => self.cannot_read(&error),
                };
            }
            if now >= self.ends_at {
                return self
                    .give_up("timeout", &format!("the status is {}, not what was waited for", cvm.status));
            }
            let pause = self.next_at.min(self.ends_at).duration_since(now);
            tokio::select! {
                _ = self.news.changed() => {}
                () = self.app.clock.sleep(pause.try_into().unwrap_or_default()) => {}
            }
        }
    }

    fn cannot_read(&mut self, error: &dyn std::fmt::Display) -> Event {
        tracing::error!(%error, "a watched CVM cannot be read");
        self.give_up("error", "the CVM cannot be read")
    }

    fn give_up(&mut self, kind: &str, why: &str) -> Event {
        self.stage = Stage::Over;
        let elapsed = Some(self.elapsed());
        event(kind, &wire::WatchError { error: why.to_owned(), elapsed, target: self.target.clone() })
    }

    /// Seconds since it began.
    fn elapsed(&self) -> f64 {
        self.app.clock.now().duration_since(self.started_at).as_secs_f64()
    }
}

fn event(kind: &str, data: &impl serde::Serialize) -> Event {
    let data = serde_json::to_string(data).expect("wire types have string keys");
    Event::default().event(kind).data(data)
}

/// The answer that watches.
pub fn events(
    watch: Watch,
) -> Sse<KeepAliveStream<impl Stream<Item = std::result::Result<Event, Infallible>>>> {
    let events = stream::unfold(watch, async |mut watch| {
        let event = watch.next().await?;
        Some((Ok(event), watch))
    });
    Sse::new(events).keep_alive(pings())
}
