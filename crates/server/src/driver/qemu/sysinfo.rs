//! What the system inside a machine says of itself: its agent is asked.

use std::time::Duration;

use casemate_types::guest::{Ask, Reply, Stats};
use casemate_types::wire::{Disk, Sysinfo};

use super::Host;
use super::slot::Slot;

/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// What the system says; nothing if it is off or does not answer.
pub(super) async fn of(host: &Host, slot: &Slot) -> Option<Sysinfo> {
    let held = slot.held()?;
    if !slot.settle(host.clock.now()) || held.done_at.is_none() {
        return None;
    }
    match slot.agent.ask(&host.clock, Ask::Stats, ANSWER).await {
        Ok(Reply::Stats(stats)) => Some(sysinfo(stats, &held.now.machine.spec.image)),
        Ok(other) => {
            tracing::debug!(?other, vm = %slot.vm, "a guest does not say how it is");
            None
        }
        Err(error) => {
            tracing::debug!(%error, vm = %slot.vm, "a guest does not say how it is");
            None
        }
    }
}

fn sysinfo(stats: Stats, image: &str) -> Sysinfo {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a load is small and not negative"
    )]
    let hundredths = |load: f64| (load * 100.0).round() as u64;
    let available = stats.memory_total.saturating_sub(stats.memory_used);
    Sysinfo {
        os_name: stats.os,
        os_version: image.to_owned(),
        kernel_version: stats.kernel,
        cpu_model: stats.cpu_model,
        num_cpus: stats.cpus.into(),
        total_memory: stats.memory_total,
        available_memory: available,
        used_memory: stats.memory_used,
        // What the kernel uses to remember files is counted as free: it gives it back when somebody asks.
        free_memory: available,
        total_swap: 0,
        used_swap: 0,
        free_swap: 0,
        uptime: stats.uptime_s,
        loadavg_one: hundredths(stats.load[0]),
        loadavg_five: hundredths(stats.load[1]),
        loadavg_fifteen: hundredths(stats.load[2]),
        disks: vec![Disk {
            name: "data".to_owned(),
            mount_point: "/data".to_owned(),
            total_size: stats.disk_total,
            free_size: stats.disk_total.saturating_sub(stats.disk_used),
        }],
    }
}
