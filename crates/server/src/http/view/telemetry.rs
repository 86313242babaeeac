//! What a node last reported of a machine, in the words of the wire.

use std::net::Ipv4Addr;

use casemate_types::wire;
use jiff::Timestamp;

use crate::app::App;
use crate::cvm::state::{Cvm, Status};
use crate::driver::{self, LastStop, Observed, Report};
use crate::error::Result;

/// What the guest of a CVM told, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// How long it has run; none unless it runs.
    pub uptime: Option<String>,
    /// How far it has booted.
    pub boot_progress: Option<String>,
    /// Why it did not boot, or which update failed and was put back.
    pub boot_error: Option<String>,
    /// When it ended by itself.
    pub exited_at: Option<String>,
    /// How far it has shut down.
    pub shutdown_progress: Option<String>,
}

/// What the guest of a CVM last told.
///
/// # Errors
/// Those of the store.
pub fn guest(app: &App, cvm: &Cvm) -> Result<Guest> {
    let mut guest = Guest { boot_error: cvm.boot_error.clone(), ..Guest::default() };
    if cvm.status == Status::ShuttingDown {
        guest.shutdown_progress = Some("waiting for the guest".to_owned());
    }
    // What was seen last is older than a stop that has ended since.
    let report = match cvm.status {
        Status::Stopped => None,
        _ => app.store.report(cvm.id)?,
    };
    let Some(seen) = report.as_ref().and_then(Report::read) else { return Ok(guest) };
    // What failed was not looked at to its end. A machine that was up before it says nothing about now.
    if cvm.status == Status::Error && seen.generation != cvm.generation {
        return Ok(guest);
    }
    let on = match &seen.guest {
        driver::Guest::Off => false,
        driver::Guest::Booting { progress } => {
            guest.boot_progress = Some(progress.clone());
            true
        }
        driver::Guest::Done => {
            guest.boot_progress = Some("done".to_owned());
            true
        }
        driver::Guest::Failed { error } => {
            guest.boot_error.get_or_insert_with(|| error.clone());
            false
        }
        driver::Guest::Frozen { since } => {
            guest.boot_error.get_or_insert_with(|| driver::stands_still(*since));
            true
        }
        driver::Guest::Exited => {
            guest.boot_progress =
                seen.comes_back.then(|| "it went down by itself; its node starts it again".to_owned());
            guest.exited_at = seen.stopped_at.map(|at| format!("{at:.6}"));
            false
        }
    };
    guest.uptime = on.then(|| uptime(app, &seen)).flatten();
    Ok(guest)
}

/// How long a machine has run, for people.
pub fn uptime(app: &App, seen: &Observed) -> Option<String> {
    seen.started_at.map(|at| since(app, at))
}

/// How long ago something was, for people.
pub fn since(app: &App, at: Timestamp) -> String {
    duration(at, app.clock.now())
}

/// `3h 2m`: the two largest units.
fn duration(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// What the node itself reports of a machine.
pub fn observed(seen: &Observed) -> wire::Observed {
    wire::Observed {
        status: match seen.guest {
            driver::Guest::Off => wire::Status::Stopped,
            driver::Guest::Booting { .. } => wire::Status::Starting,
            driver::Guest::Done => wire::Status::Running,
            driver::Guest::Failed { .. } => wire::Status::Failed,
            driver::Guest::Frozen { .. } => wire::Status::Error,
            driver::Guest::Exited => wire::Status::Exited,
        },
        boot_count: seen.boot_count,
        generation: seen.generation,
        revision: seen.revision,
        compose_hash: Some(seen.compose_hash),
        instance_id: Some(seen.instance_id),
        vcpu: seen.size.vcpu,
        memory_mb: seen.size.memory_mb,
        disk_gb: seen.size.disk_gb,
        gpus: seen.size.gpus,
        image: seen.image.clone(),
        user_config_sha256: seen.user_config_sha256.map(hex::encode),
        encrypted_env_sha256: seen.encrypted_env_sha256.map(hex::encode),
        env_keys: seen.env_keys.clone(),
        public_logs: seen.public_logs,
        public_sysinfo: seen.public_sysinfo,
        public_tcbinfo: seen.public_tcbinfo,
        last_stop: seen.last_stop.map(|stop| match stop {
            LastStop::Graceful => wire::LastStop::Graceful,
            LastStop::Forced => wire::LastStop::Forced,
            LastStop::Crashed => wire::LastStop::Crashed,
        }),
        last_downtime_ms: seen.last_downtime_ms,
        ports: seen.ports.iter().map(reached).collect(),
    }
}

/// Nodes give out ports of their host's loopback address.
fn reached(port: &driver::Port) -> wire::ReachedPort {
    wire::ReachedPort { port: port.guest, at: (Ipv4Addr::LOCALHOST, port.host).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_its_two_largest_units() {
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).expect("in range");
        for (seconds, text) in [(-5, "0s"), (59, "59s"), (61, "1m 1s"), (10_920, "3h 2m"), (90_000, "1d 1h")]
        {
            assert_eq!(duration(at(0), at(seconds)), text);
        }
    }
}
