//! One log of a machine.

use std::time::Duration;

use casemate_types::guest::{Ask, Lines, Reply};

use super::slot::{Slot, lost, refuse};
use super::{Host, command, console, process};
use crate::driver::{Error, LogChannel, LogLine, Result, inside};

/// Lines of a service that are asked for at once.
const AT_ONCE: usize = 500;
/// Lines of a service that are kept here. Older ones are dropped.
const KEPT: usize = 10_000;
/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// The lines of one log, oldest first.
pub(super) async fn lines(host: &Host, slot: &Slot, channel: &LogChannel) -> Result<Vec<LogLine>> {
    let Some(held) = slot.held() else { return refuse("there is no such machine") };
    let (file, stderr) = match channel {
        LogChannel::Serial => (command::SERIAL, false),
        LogChannel::Stdout => (process::OUTPUT, false),
        LogChannel::Stderr => (process::ERRORS, true),
        LogChannel::Container(service) => {
            let services = inside::containers(&held.now.machine.spec.compose.text);
            let is_known =
                services.iter().any(|one| one.service == *service) || slot.lock().logs.contains_key(service);
            if !is_known {
                return refuse(format!("there is no service `{service}` in this machine"));
            }
            if slot.settle(host.clock.now())
                && let Err(error) = fetch(host, slot, service).await
            {
                tracing::debug!(error, vm = %slot.vm, service, "lines of a service cannot be fetched");
            }
            let state = slot.lock();
            return Ok(state.logs.get(service).map(|fetched| fetched.lines.clone()).unwrap_or_default());
        }
    };
    let folder = slot.folder.clone();
    let read = tokio::task::spawn_blocking(move || console::lines(&folder, file, stderr)).await;
    read.map_err(|error| Error::Unreachable(error.to_string()))?.map_err(lost)
}

/// Fetches what every service has written since the last time.
pub(super) async fn fetch_all(host: &Host, slot: &Slot) {
    let Some(held) = slot.held() else { return };
    for one in inside::containers(&held.now.machine.spec.compose.text) {
        if let Err(error) = fetch(host, slot, &one.service).await {
            tracing::debug!(error, vm = %slot.vm, service = one.service, "lines of a service cannot be fetched");
        }
    }
}

async fn fetch(host: &Host, slot: &Slot, service: &str) -> std::result::Result<(), String> {
    loop {
        let from = slot.lock().logs.get(service).map_or(0, |fetched| fetched.next);
        let ask = Ask::Logs { service: service.to_owned(), from, limit: AT_ONCE };
        let Lines { lines, next } = match slot.agent.ask(&host.clock, ask, ANSWER).await {
            Ok(Reply::Logs(lines)) => lines,
            Ok(Reply::Error(error)) => return Err(error),
            Ok(_) => return Err("the agent answers something else".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let mut state = slot.lock();
        let fetched = state.logs.entry(service.to_owned()).or_default();
        if fetched.next != from {
            // Somebody else fetched them meanwhile.
            continue;
        }
        let all = lines.len() < AT_ONCE || next <= from;
        fetched.next = next;
        fetched.lines.extend(lines.into_iter().map(|line| LogLine {
            at: line.at,
            stderr: line.stderr,
            text: line.text,
        }));
        let many = fetched.lines.len().saturating_sub(KEPT);
        fetched.lines.drain(..many);
        if all {
            return Ok(());
        }
    }
}
