//! What the system inside a guest says of itself. Nothing runs there: all of it follows from the size of the machine, from what
//! was started in it, and from the time since. What would be made up says that it is.

use casemate_types::wire::{Disk, Sysinfo};
use jiff::Timestamp;

use super::machine::Held;
use crate::driver::NodeFacts;

const MIB: u64 = 1024 * 1024;

/// Memory of a system without containers, and of each container.
const SYSTEM_MEMORY: u64 = 128 * MIB;
const CONTAINER_MEMORY: u64 = 64 * MIB;

/// Disk that the image of a container takes.
const CONTAINER_DISK: u64 = 256 * MIB;

/// Load of a container that has nothing to do, in hundredths.
const IDLE: u64 = 2;

/// What the system of a machine says, if its guest is up.
pub(super) fn of(held: &Held, facts: &NodeFacts, now: Timestamp) -> Option<Sysinfo> {
    let boot = held.up(now)?;
    let size = held.machine.spec.booking();
    let containers = boot.containers.len() as u64;
    let uptime = u64::try_from(now.duration_since(boot.on_at).as_secs()).unwrap_or_default();

    let memory = u64::from(size.memory_mb) * MIB;
    let used = (SYSTEM_MEMORY + containers * CONTAINER_MEMORY).min(memory / 2);
    let available = memory - used;
    // What was read is kept for the next time, more of it every minute, until half of what is left is full of it.
    let cached = available / 2 * uptime.min(3600) / 3600;

    let disk = u64::from(size.disk_gb) * 1024 * MIB;
    let on_disk = (containers * CONTAINER_DISK).min(disk / 2);

    // Booting kept one processor busy; the longer the time of an average, the longer that is in it.
    let load = |minutes: u64| {
        let over = 60 * minutes;
        100 * over / (over + uptime) + IDLE * containers
    };
    let image = facts.images.iter().find(|image| image.name == boot.image);
    Some(Sysinfo {
        os_name: "dstack".to_owned(),
        os_version: image.map_or_else(|| boot.image.clone(), |image| image.version_text()),
        kernel_version: "simulated".to_owned(),
        cpu_model: "simulated".to_owned(),
        num_cpus: size.vcpu.into(),
        total_memory: memory,
        available_memory: available,
        used_memory: used,
        free_memory: available - cached,
        total_swap: 0,
        used_swap: 0,
        free_swap: 0,
        uptime,
        loadavg_one: load(1),
        loadavg_five: load(5),
        loadavg_fifteen: load(15),
        disks: vec![Disk {
            name: "data".to_owned(),
            mount_point: "/data".to_owned(),
            total_size: disk,
            free_size: disk - on_disk,
        }],
    })
}
