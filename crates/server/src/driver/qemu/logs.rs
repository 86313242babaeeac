//! One log of a machine.
//!
//! What services write is on the machine's own disk. Here is a copy of what was fetched of it, for when the machine is off: it
//! is fetched once more right before a guest goes down, and kept in a file beside the machine.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::time::Duration;

use casemate_types::guest::{Ask, Line, Lines, Reply};
use serde::{Deserialize, Serialize};

use super::slot::{Slot, lost, refuse};
use super::{Host, command, console, files, process};
use crate::driver::{Error, LogChannel, LogLine, Result, inside};

/// Lines of a service that are asked for at once.
const AT_ONCE: usize = 500;
/// How often in a row.
const ROUNDS: usize = 100;
/// Lines of a service that are kept here, and their bytes: what the guest keeps. Older ones are dropped.
const KEPT: usize = 10_000;
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// The file beside the machine.
const FILE: &str = "containers.json";

/// What was fetched of a machine's services.
#[derive(Default)]
pub(super) struct Kept {
    /// The file was looked at.
    is_read: bool,
    services: BTreeMap<String, Fetched>,
}

/// Lines of a service that were fetched from the guest, in the order of their times.
#[derive(Default, Serialize, Deserialize)]
struct Fetched {
    lines: Vec<LogLine>,
    /// Number of the next line.
    next: u64,
    bytes: usize,
}

impl Fetched {
    fn add(&mut self, lines: Vec<Line>, next: u64) {
        self.next = next;
        let mut last = self.lines.last().map(|line| line.at);
        for Line { at, stderr, text } in lines {
            // The guest's clock is set anew at each boot, to within a second: what is later stays later.
            let at = last.map_or(at, |last| at.max(last));
            last = Some(at);
            self.bytes += text.len();
            self.lines.push(LogLine { at, stderr, text });
        }
        let (mut many, mut bytes) = (self.lines.len().saturating_sub(KEPT), self.bytes);
        bytes -= self.lines[..many].iter().map(|line| line.text.len()).sum::<usize>();
        while bytes > KEPT_BYTES {
            bytes -= self.lines[many].text.len();
            many += 1;
        }
        self.lines.drain(..many);
        self.bytes = bytes;
    }
}

/// The lines of one log, oldest first.
pub(super) async fn lines(host: &Host, slot: &Slot, channel: &LogChannel) -> Result<Vec<LogLine>> {
    let Some(held) = slot.held() else { return refuse("there is no such machine") };
    let (file, stderr) = match channel {
        LogChannel::Serial => (command::SERIAL, false),
        LogChannel::Stdout => (process::OUTPUT, false),
        LogChannel::Stderr => (process::ERRORS, true),
        LogChannel::Container(service) => {
            read(slot).await?;
            let services = inside::containers(&held.now.machine.spec.compose.text);
            let is_known = services.iter().any(|one| one.service == *service)
                || slot.lock().logs.services.contains_key(service);
            if !is_known {
                return refuse(format!("there is no service `{service}` in this machine"));
            }
            if slot.settle(host.clock.now())
                && let Err(error) = fetch(host, slot, service).await
            {
                tracing::debug!(error, vm = %slot.vm, service, "lines of a service cannot be fetched");
            }
            let state = slot.lock();
            let fetched = state.logs.services.get(service);
            return Ok(fetched.map(|fetched| fetched.lines.clone()).unwrap_or_default());
        }
    };
    let folder = slot.folder.clone();
    blocking(move || console::lines(&folder, file, stderr)).await?.map_err(lost)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Unreachable(error.to_string()))
}

/// Reads what was kept, the first time that somebody asks.
async fn read(slot: &Slot) -> Result<()> {
    if slot.lock().logs.is_read {
        return Ok(());
    }
    let path = slot.folder.join(FILE);
    let kept = blocking(move || serde_json::from_reader(BufReader::new(files::read(&path).ok()?)).ok());
    let kept: Option<BTreeMap<String, Fetched>> = kept.await?;
    let logs = &mut slot.lock().logs;
    if !logs.is_read {
        *logs = Kept { is_read: true, services: kept.unwrap_or_default() };
    }
    Ok(())
}

/// Keeps what was fetched for when the machine is off, also if this program is started anew until then.
pub(super) async fn keep(slot: &Slot) {
    let text = serde_json::to_vec(&slot.lock().logs.services);
    let folder = slot.folder.clone();
    let written = blocking(move || files::replace(&folder, FILE, &text?)).await;
    if let Err(error) = written.and_then(|written| written.map_err(lost)) {
        tracing::warn!(%error, vm = %slot.vm, "what services wrote cannot be kept");
    }
}

/// Fetches what every service has written since the last time.
pub(super) async fn fetch_all(host: &Host, slot: &Slot) {
    let Some(held) = slot.held() else { return };
    if let Err(error) = read(slot).await {
        tracing::debug!(%error, vm = %slot.vm, "what was kept of services cannot be read");
        return;
    }
    for one in inside::containers(&held.now.machine.spec.compose.text) {
        if let Err(error) = fetch(host, slot, &one.service).await {
            tracing::debug!(error, vm = %slot.vm, service = one.service, "lines of a service cannot be fetched");
        }
    }
}

async fn fetch(host: &Host, slot: &Slot, service: &str) -> std::result::Result<(), String> {
    // A guest that always has one more does not keep anybody here; the rest comes the next time.
    for _ in 0..ROUNDS {
        let from = slot.lock().logs.services.get(service).map_or(0, |fetched| fetched.next);
        let ask = Ask::Logs { service: service.to_owned(), from, limit: AT_ONCE };
        let Lines { lines, next } = match slot.agent.ask(&host.clock, ask, ANSWER).await {
            Ok(Reply::Logs(lines)) => lines,
            Ok(Reply::Error(error)) => return Err(error),
            Ok(_) => return Err("the agent answers something else".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let mut state = slot.lock();
        let fetched = state.logs.services.entry(service.to_owned()).or_default();
        if fetched.next != from {
            // Somebody else fetched them meanwhile.
            continue;
        }
        // Long lines make short answers, so fewer than asked for may not be all.
        let all = lines.is_empty() || next <= from;
        fetched.add(lines, next);
        if all {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_is_kept_has_an_order_and_bounds() {
        let line = |second: i64, text: String| Line {
            at: Timestamp::from_second(second).unwrap(),
            stderr: false,
            text,
        };
        let mut fetched = Fetched::default();
        fetched.add(vec![line(10, "boot 1".into())], 1);
        fetched.add(vec![line(9, "boot 2, by a clock that is behind".into())], 2);
        assert!(fetched.lines.is_sorted_by_key(|line| line.at), "{:?}", fetched.lines);
        fetched.add((0..2 * KEPT as i64).map(|second| line(second, "x".into())).collect(), 20_002);
        assert_eq!((fetched.lines.len(), fetched.bytes, fetched.next), (KEPT, KEPT, 20_002));
        fetched.add((0..600).map(|_| line(1, "x".repeat(16 * 1024))).collect(), 20_602);
        assert!(fetched.bytes <= KEPT_BYTES && fetched.lines.len() <= 256, "{}", fetched.lines.len());
        assert_eq!(fetched.bytes, fetched.lines.iter().map(|line| line.text.len()).sum::<usize>());
    }
}
