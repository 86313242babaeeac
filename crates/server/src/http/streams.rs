//! Answers that stay open: server-sent events and followed logs. Each reader may have a few of them at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::sse::KeepAlive;
use casemate_types::ids::VmUuid;

use crate::error::{Error, Result};

/// Some clients give up after 30 s of silence.
const PING: Duration = Duration::from_secs(15);

/// Keeps a quiet stream of events open.
pub fn pings() -> KeepAlive {
    KeepAlive::new().interval(PING).text("ping")
}

/// One event of a stream, as its lines say.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written line by line")]
pub struct StreamedEvent {
    /// What it is.
    event: String,
    /// JSON, on one line.
    data: String,
    /// Its number, where a reader can come back to it.
    id: Option<String>,
}

/// Whose streams are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reader {
    /// A user who watches CVMs.
    Watcher(i64),
    /// A user who follows operations.
    Follower(i64),
    /// Whoever has an address of this machine's logs.
    OfLogs(VmUuid),
}

impl Reader {
    fn most(self) -> usize {
        match self {
            Self::Watcher(_) => 5,
            Self::Follower(_) => 20,
            Self::OfLogs(_) => 20,
        }
    }
}

/// The streams that are open now.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<Reader, usize>>>);

/// Keeps one stream counted as long as it lives.
pub struct Open {
    streams: Streams,
    reader: Reader,
}

impl Streams {
    /// Counts one more. `Busy` if the reader has as many as allowed.
    pub fn open(&self, reader: Reader) -> Result<Open> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(reader).or_insert(0);
        if *count >= reader.most() {
            let message = format!("{} streams are open already; close one first", reader.most());
            return Err(Error::Busy(message));
        }
        *count += 1;
        Ok(Open { streams: self.clone(), reader })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut counts = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.reader) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
