//! What the system inside a machine says of itself, and what it measured: its agent is asked.

use std::time::Duration;

use casemate_types::guest::{Ask, Evidence, Reply, Stats};
use casemate_types::wire::{Disk, Sysinfo};

use super::Host;
use super::slot::Slot;

/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// What the system says; nothing if it is off or does not answer.
pub(super) async fn of(host: &Host, slot: &Slot) -> Option<Sysinfo> {
    let image = slot.held()?.now.machine.spec.image;
    match ask(host, slot, Ask::Stats).await? {
        Reply::Stats(stats) => Some(sysinfo(stats, &image)),
        other => unheard(slot, &other),
    }
}

/// What the machine measured; nothing if it is off or does not answer.
pub(super) async fn evidence(host: &Host, slot: &Slot) -> Option<Evidence> {
    match ask(host, slot, Ask::Evidence).await? {
        Reply::Evidence(evidence) => Some(*evidence),
        other => unheard(slot, &other),
    }
}

/// Asks a guest that is up.
async fn ask(host: &Host, slot: &Slot, ask: Ask) -> Option<Reply> {
    let held = slot.held()?;
    if !slot.settle(host.clock.now()) || held.done_at.is_none() {
        return None;
    }
    match slot.agent.ask(&host.clock, ask, ANSWER).await {
        Ok(reply) => Some(reply),
        Err(error) => unheard(slot, &error),
    }
}

/// Not the answer to what was asked.
fn unheard<T>(slot: &Slot, answer: &dyn std::fmt::Debug) -> Option<T> {
    tracing::debug!(?answer, vm = %slot.vm, "a guest does not say how it is");
    None
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
