//! Watching what a CVM is doing until it is what was waited for.

use std::time::Duration;

use casemate_types::error::FieldError;
use casemate_types::wire::{CvmState, Status, WatchComplete, WatchError};
use futures_util::stream::{self, BoxStream, StreamExt};
use reqwest::Method;

use crate::call::{Call, Opened};
use crate::cvm::Cvm;
use crate::error::{Error, Result};
use crate::sse::Events;

/// Watches a CVM: [`Cvm::watch`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let state = client.cvm("web-1").watch("running").timeout_secs(60).send().await?;
/// println!("up since {}", state.uptime.unwrap_or_default());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send` or `stream`"]
pub struct Watch {
    cvm: Cvm,
    target: Status,
    interval: u32,
    timeout: u32,
    max_attempts: Option<u32>,
    retry_delay: Duration,
}

/// What is seen of a watched CVM.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum WatchEvent {
    /// What it is doing now.
    State(Box<CvmState>),
    /// It has the status that was waited for; the last `State` says more.
    Complete(WatchComplete),
    /// It did not get there while this connection lasted.
    Timeout(WatchError),
    /// The server could not tell.
    Error(String),
    /// The connection failed or ended too early, and another one is made.
    Retrying {
        /// Connections so far.
        attempts: u32,
        /// Why, if there is a reason.
        error: Option<String>,
    },
}

impl Watch {
    pub(crate) fn new(cvm: Cvm, target: Status) -> Self {
        let retry_delay = Duration::from_secs(5);
        Self { cvm, target, interval: 5, timeout: 300, max_attempts: None, retry_delay }
    }

    /// How often the server looks, in seconds: 5 to 30. 5 by default.
    pub fn interval_secs(mut self, seconds: u32) -> Self {
        self.interval = seconds;
        self
    }

    /// How long one connection lasts, in seconds: 10 to 600. 300 by default.
    pub fn timeout_secs(mut self, seconds: u32) -> Self {
        self.timeout = seconds;
        self
    }

    /// How many connections are made at most. By default as many as it takes.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// How long to wait before the next connection. 5 seconds by default.
    pub fn retry_delay(mut self, delay: Duration) -> Self {
        self.retry_delay = delay;
        self
    }

    fn call(&self) -> Call {
        let within = |field: &str, value: u32, limits: std::ops::RangeInclusive<u32>| {
            (!limits.contains(&value)).then(|| {
                let text = format!("must be {} to {} seconds, not {value}", limits.start(), limits.end());
                FieldError::query(field, "value_error", text)
            })
        };
        self.cvm
            .call(Method::GET, ["state"])
            .query("target", &self.target)
            .query("interval", self.interval)
            .query("timeout", self.timeout)
            .problems(within("interval", self.interval, 5..=30))
            .problems(within("timeout", self.timeout, 10..=600))
    }

    /// Waits until the CVM has the status, and says what it then is.
    ///
    /// # Errors
    /// [`Error::WatchEnded`] or the last failure after [`max_attempts`](Self::max_attempts); at once whatever another attempt
    /// would not change, such as [`Error::NotFound`].
    pub async fn send(self) -> Result<CvmState> {
        let mut watcher = Watcher::new(self);
        let mut last = None;
        while let Some(event) = watcher.next().await {
            if let WatchEvent::State(state) = event? {
                last = Some(*state);
            }
        }
        last.ok_or(Error::WatchEnded { attempts: watcher.attempts })
    }

    /// Everything that is seen until the CVM has the status. The errors of the stream are those of [`send`](Self::send); after
    /// one, it ends.
    pub fn stream(self) -> BoxStream<'static, Result<WatchEvent>> {
        stream::unfold(Watcher::new(self), |mut watcher| async {
            let event = watcher.next().await?;
            Some((event, watcher))
        })
        .boxed()
    }
}

/// Why a connection did not lead to the status. Without an error it just ended.
type Failed = Option<Error>;

struct Watcher {
    watch: Watch,
    attempts: u32,
    events: Option<Events>,
    /// The status last seen on this connection.
    last: Option<Status>,
    pause: bool,
    ended: bool,
}

impl Watcher {
    fn new(watch: Watch) -> Self {
        Self { watch, attempts: 0, events: None, last: None, pause: false, ended: false }
    }

    async fn next(&mut self) -> Option<Result<WatchEvent>> {
        if self.ended {
            return None;
        }
        match self.step().await {
            Ok(event) => event.map(Ok),
            Err(failed) => self.failed(failed).map_or_else(|error| Some(Err(error)), |event| Some(Ok(event))),
        }
    }

    /// What follows a failed connection: another one, or the end.
    fn failed(&mut self, failed: Failed) -> Result<WatchEvent> {
        self.events = None;
        self.last = None;
        let hopeless = failed.as_ref().is_some_and(|error| !error.is_transient() && !is_puzzling(error));
        if hopeless || self.watch.max_attempts.is_some_and(|max| self.attempts >= max) {
            self.ended = true;
            return Err(failed.unwrap_or(Error::WatchEnded { attempts: self.attempts }));
        }
        self.pause = true;
        Ok(WatchEvent::Retrying { attempts: self.attempts, error: failed.map(|error| error.to_string()) })
    }

    /// The next event, or the end of everything.
    async fn step(&mut self) -> Result<Option<WatchEvent>, Failed> {
        loop {
            let Some(events) = &mut self.events else {
                self.open().await?;
                continue;
            };
            let Some(event) = events.next().await.map_err(Some)? else {
                // A plain end is only good if the CVM is where it should be.
                if self.last.as_ref() == Some(&self.watch.target) {
                    self.ended = true;
                    return Ok(None);
                }
                return Err(None);
            };
            match event.event.as_str() {
                "state" => match serde_json::from_str::<CvmState>(&event.data) {
                    Ok(state) => {
                        self.last = Some(state.status.clone());
                        return Ok(Some(WatchEvent::State(Box::new(state))));
                    }
                    Err(error) => return Ok(Some(WatchEvent::Error(error.to_string()))),
                },
                "complete" if self.last.is_none() => return Err(None),
                "complete" => {
                    self.ended = true;
                    let target = self.watch.target.clone();
                    let complete = serde_json::from_str(&event.data).unwrap_or_else(|_| WatchComplete {
                        status: target.clone(),
                        elapsed: 0.0,
                        target: target.to_string(),
                    });
                    return Ok(Some(WatchEvent::Complete(complete)));
                }
                "timeout" => {
                    let timeout = serde_json::from_str(&event.data).unwrap_or_else(|_| WatchError {
                        error: event.data.clone(),
                        elapsed: None,
                        target: None,
                    });
                    // What follows it is a failed attempt, whatever was seen before.
                    self.last = None;
                    return Ok(Some(WatchEvent::Timeout(timeout)));
                }
                "error" => {
                    let text = serde_json::from_str::<WatchError>(&event.data);
                    let text = text.map_or_else(|_| event.data.clone(), |error| error.error);
                    return Ok(Some(WatchEvent::Error(text)));
                }
                _ => {}
            }
        }
    }

    async fn open(&mut self) -> Result<(), Failed> {
        if self.watch.max_attempts == Some(0) {
            return Err(None);
        }
        if std::mem::take(&mut self.pause) {
            tokio::time::sleep(self.watch.retry_delay).await;
        }
        self.attempts += 1;
        match self.watch.call().events().await {
            Ok(Opened::Events(events)) => {
                self.events = Some(events);
                Ok(())
            }
            Ok(Opened::Answer(answer)) => {
                let source = "not a stream of events".into();
                Err(Some(Error::Decode { url: answer.url, source }))
            }
            Err(error) => Err(Some(error)),
        }
    }
}

/// A server that sometimes answers strangely may do better next time.
fn is_puzzling(error: &Error) -> bool {
    matches!(error, Error::Decode { .. }) || error.status().is_some_and(|status| status >= 500)
}
