//! Server-sent events.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use crate::call::{shown, transport};
use crate::error::{Error, Result};

/// A stream that says nothing for so long is dead: servers send something at least every 30 seconds.
const SILENCE: Duration = Duration::from_secs(90);

/// An event never is that long; what is, is no stream of events.
const LONGEST: usize = 1 << 20;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its kind; empty if it has none.
    pub(crate) event: String,
    /// What it says.
    pub(crate) data: String,
    /// Its number, for resuming.
    pub(crate) id: Option<String>,
}

/// An open stream of events.
pub(crate) struct Events {
    url: String,
    chunks: BoxStream<'static, reqwest::Result<Bytes>>,
    parser: Parser,
}

impl Events {
    pub(crate) fn new(response: reqwest::Response) -> Self {
        Self {
            url: shown(response.url()),
            chunks: response.bytes_stream().boxed(),
            parser: Parser::default(),
        }
    }

    /// The next event; `None` when the stream ends.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(Some(event));
            }
            if self.parser.buffer.len() > LONGEST {
                let source = "an event is longer than 1 MiB".into();
                return Err(Error::Decode { url: self.url.clone(), source });
            }
            match tokio::time::timeout(SILENCE, self.chunks.next()).await {
                Ok(Some(Ok(chunk))) => self.parser.push(&chunk),
                Ok(Some(Err(error))) => return Err(transport(self.url.clone(), error)),
                Ok(None) => return Ok(None),
                Err(_) => {
                    let source = format!("the stream was silent for {} seconds", SILENCE.as_secs()).into();
                    return Err(Error::Transport { url: self.url.clone(), source });
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
    event: Event,
    has_data: bool,
}

impl Parser {
    fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole event of what has come so far. One without data is none.
    fn next(&mut self) -> Option<Event> {
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if std::mem::take(&mut self.has_data) {
                    return Some(event);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => self.event.event = value.to_owned(),
                "data" => {
                    if std::mem::replace(&mut self.has_data, true) {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                "id" => self.event.id = Some(value.to_owned()),
                // Comments, `retry`, and what is not known.
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "event: state\r\ndata: {\"a\":1}\r\nid: 7\r\n\r\n: ping\n\ndata:x\ndata: y\n\nevent: lost\n\n";

    #[test]
    fn events_are_the_same_however_they_arrive() {
        for size in [1, 2, 3, 7, TEXT.len()] {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for chunk in TEXT.as_bytes().chunks(size) {
                parser.push(chunk);
                events.extend(std::iter::from_fn(|| parser.next()));
            }
            let state = Event { event: "state".into(), data: "{\"a\":1}".into(), id: Some("7".into()) };
            let text = Event { data: "x\ny".into(), ..Event::default() };
            assert_eq!(events, [state, text], "in pieces of {size}");
        }
    }
}
