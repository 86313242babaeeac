//! What a machine writes. Lines are not kept: they follow from its boots, and appear as their moment comes.

use jiff::Timestamp;

use super::guest::STEPS;
use super::machine::{Boot, Down, Held};
use super::node::refuse;
use crate::driver::inside;
use crate::driver::{LastStop, LogChannel, LogLine, Result};

/// The lines of one log up to `now`, oldest first.
pub(super) fn lines(held: &Held, channel: &LogChannel, now: Timestamp) -> Result<Vec<LogLine>> {
    let of_one_boot = |boot: &Boot| -> Vec<LogLine> {
        match channel {
            LogChannel::Serial => serial(boot, &held.machine.name),
            LogChannel::Stdout => stdout(boot),
            LogChannel::Stderr => stderr(boot),
            LogChannel::Container(service) => container(boot, service),
        }
    };
    if let LogChannel::Container(service) = channel
        && !has_service(held, service)
    {
        return refuse(format!("there is no service `{service}` in this machine"));
    }
    Ok(held.boots().flat_map(of_one_boot).filter(|line| line.at <= now).collect())
}

fn has_service(held: &Held, service: &str) -> bool {
    let present = inside::containers(&held.machine.spec.compose.text);
    let past = held.boots().flat_map(|boot| &boot.containers);
    present.iter().chain(past).any(|container| container.service == service)
}

fn serial(boot: &Boot, name: &str) -> Vec<LogLine> {
    let after_power_on = |at: Timestamp, text: String| {
        let seconds = at.duration_since(boot.on_at).as_secs_f64();
        LogLine { at, stderr: false, text: format!("[{seconds:12.6}] {text}") }
    };
    let mut lines =
        vec![after_power_on(boot.on_at, format!("boot {} of {name}, image {}", boot.number, boot.image))];
    let last = boot.failure.as_ref().map_or(STEPS.len(), |failure| failure.step + 1);
    for (index, step) in STEPS.iter().enumerate().take(last) {
        lines.push(after_power_on(boot.step_at(index), (*step).to_owned()));
    }
    let outcome = match &boot.failure {
        Some(failure) => format!("boot failed: {}", failure.error),
        None => format!("done: revision {} is up", boot.revision),
    };
    lines.push(after_power_on(boot.settled_at(), outcome));
    while_on(&mut lines, boot);
    match boot.down {
        Some(Down { at, how: LastStop::Graceful }) => {
            lines.push(after_power_on(at, "reboot: power down".to_owned()))
        }
        // A machine whose power is cut has no last words.
        Some(Down { how: LastStop::Forced | LastStop::Crashed, .. }) | None => {}
    }
    lines
}

fn stdout(boot: &Boot) -> Vec<LogLine> {
    let line = |at, text| LogLine { at, stderr: false, text };
    let mut lines = vec![line(boot.on_at, format!("starting boot {}, image {}", boot.number, boot.image))];
    if let Some(Down { at, how: LastStop::Graceful | LastStop::Forced }) = boot.down {
        lines.push(line(at, format!("boot {} is over", boot.number)));
    }
    lines
}

fn stderr(boot: &Boot) -> Vec<LogLine> {
    let line = |at, text: String| LogLine { at, stderr: true, text };
    match boot.down {
        Some(Down { at, how: LastStop::Forced }) => vec![line(at, "terminating on signal 15".to_owned())],
        Some(Down { at, how: LastStop::Crashed }) => {
            vec![line(at, format!("boot {} went down, and nobody had asked for it", boot.number))]
        }
        Some(Down { how: LastStop::Graceful, .. }) | None => Vec::new(),
    }
}

fn container(boot: &Boot, service: &str) -> Vec<LogLine> {
    let Some(container) = boot.containers.iter().find(|container| container.service == service) else {
        return Vec::new();
    };
    if boot.failure.is_some() {
        return Vec::new();
    }
    let line = |at, text| LogLine { at, stderr: false, text };
    let mut lines = vec![
        line(boot.settled_at(), format!("{service}: starting {}", container.image)),
        line(boot.settled_at(), format!("{service}: ready, revision {}", boot.revision)),
    ];
    while_on(&mut lines, boot);
    if let Some(Down { at, how: LastStop::Graceful }) = boot.down
        && !lines.is_empty()
    {
        lines.push(line(at, format!("{service}: received SIGTERM, exiting")));
    }
    lines
}

/// Drops what was to be written after the power went.
fn while_on(lines: &mut Vec<LogLine>, boot: &Boot) {
    if let Some(down) = boot.down {
        lines.retain(|line| line.at <= down.at);
    }
}
