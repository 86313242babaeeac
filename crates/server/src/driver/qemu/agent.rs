//! The driver's side of the channel to the agent in the machine. See [`casemate_types::guest`] for what is said.

use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use casemate_types::guest::{Answer, Ask, MAX_FRAME, Question, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::command::AGENT;
use super::process::connect;
use crate::clock::Clock;

/// The channel to one machine's agent. QEMU takes one connection at a time, so everybody asks through this.
pub(super) struct Agent {
    folder: PathBuf,
    line: Mutex<Option<Line>>,
}

struct Line {
    stream: UnixStream,
    /// What was read of the next frames.
    read: BytesMut,
    last_id: u64,
    /// Number of a question how far the guest is that has no answer yet. It is not asked again until then: before its agent is
    /// there, questions pile up.
    open_status: Option<u64>,
}

impl Agent {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, line: Mutex::default() }
    }

    /// Asks, and waits for the answer for at most `limit`.
    pub(super) async fn ask(&self, clock: &Clock, ask: Ask, limit: Duration) -> Result<Reply> {
        let late = || Err(Error::new(ErrorKind::TimedOut, "the agent does not answer"));
        clock.within(limit, self.converse(ask)).await.unwrap_or_else(late)
    }

    /// The machine is another one from now on.
    pub(super) async fn hang_up(&self) {
        *self.line.lock().await = None;
    }

    async fn converse(&self, ask: Ask) -> Result<Reply> {
        let mut slot = self.line.lock().await;
        let line = match &mut *slot {
            Some(line) => line,
            none => {
                let stream = connect(&self.folder, AGENT).await?;
                none.insert(Line { stream, read: BytesMut::new(), last_id: 0, open_status: None })
            }
        };
        // Given up while it is at work, it leaves a line on which the next one goes on.
        let reply = line.converse(ask).await;
        if reply.is_err() {
            *slot = None;
        }
        reply
    }
}

impl Line {
    async fn converse(&mut self, ask: Ask) -> Result<Reply> {
        let id = match (&ask, self.open_status) {
            (Ask::Status, Some(open)) => open,
            _ => self.send(ask).await?,
        };
        loop {
            let answer = self.receive().await?;
            if self.open_status == Some(answer.id) {
                self.open_status = None;
            }
            // Others are late answers to somebody who gave up.
            if answer.id == id {
                return Ok(answer.reply);
            }
        }
    }

    async fn send(&mut self, ask: Ask) -> Result<u64> {
        self.last_id += 1;
        let id = self.last_id;
        if ask == Ask::Status {
            self.open_status = Some(id);
        }
        let text = zeroize::Zeroizing::new(serde_json::to_vec(&Question { id, ask })?);
        let length = u32::try_from(text.len()).map_err(Error::other)?;
        let mut frame = zeroize::Zeroizing::new(length.to_be_bytes().to_vec());
        frame.extend_from_slice(&text);
        self.stream.write_all(&frame).await?;
        Ok(id)
    }

    async fn receive(&mut self) -> Result<Answer> {
        loop {
            if let Some(length) = self.read.first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > MAX_FRAME {
                    // The end of an answer to somebody who went away; the next connection begins with a whole one.
                    return Err(Error::new(ErrorKind::InvalidData, "the agent's answer has no beginning"));
                }
                if self.read.len() >= 4 + length {
                    self.read.advance(4);
                    return Ok(serde_json::from_slice(&self.read.split_to(length))?);
                }
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the machine is off"));
            }
        }
    }
}
