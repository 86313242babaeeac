//! QEMU's control protocol (QMP): lines of JSON on a socket. Each command has a connection of its own, since there are few.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::command::QMP;
use super::process::connect;
use crate::clock::Clock;

/// How long QEMU may take to answer. It answers between two instructions of the guest, unless the process is stopped.
const ANSWER: Duration = Duration::from_secs(3);

/// Longer answers are none of those that we ask for.
const MAX_LINE: u64 = 1024 * 1024;

/// Lets the QEMU of this folder carry out a command without arguments; what it returns.
pub(super) async fn execute(clock: &Clock, folder: &Path, command: &str) -> Result<Value> {
    let late = || Err(Error::new(ErrorKind::TimedOut, "QEMU does not answer"));
    clock.within(ANSWER, converse(folder, command)).await.unwrap_or_else(late)
}

async fn converse(folder: &Path, command: &str) -> Result<Value> {
    let (read, mut write) = connect(folder, QMP).await?.into_split();
    let mut lines = tokio::io::AsyncReadExt::take(BufReader::new(read), MAX_LINE).lines();
    // Its greeting says that it reads from now on; commands are refused before this one.
    let mut outcome = Value::Null;
    for command in ["qmp_capabilities", command] {
        let mut text = json!({ "execute": command }).to_string();
        text.push('\n');
        write.write_all(text.as_bytes()).await?;
        outcome = loop {
            let line = lines.next_line().await?;
            let line = line.ok_or_else(|| Error::new(ErrorKind::UnexpectedEof, "QEMU went away"))?;
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                return Err(Error::other(format!("QEMU refused {command}: {error}")));
            }
            // The greeting and events have another form.
            if let Some(value) = answer.get_mut("return") {
                break value.take();
            }
        };
    }
    Ok(outcome)
}
