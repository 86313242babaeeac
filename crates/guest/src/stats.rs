//! What the machine uses, from the kernel's own tables.

use std::fs;

use casemate_types::guest::Stats;
use rustix::fs::statvfs;

use crate::disk::DATA;
use crate::{Doing, Result};

pub(crate) fn collect() -> Result<Stats> {
    let read = |path: &str| fs::read_to_string(path).doing(format_args!("cannot read {path}"));
    let memory = read("/proc/meminfo")?;
    let processors = read("/proc/cpuinfo")?;
    let release = read("/etc/os-release")?;
    let total = kib(&memory, "MemTotal");
    // Before the disk is mounted this would be the root's, which is memory.
    let disk = statvfs(DATA).ok();
    let blocks =
        |of: &dyn Fn(&rustix::fs::StatVfs) -> u64| disk.as_ref().map_or(0, |disk| of(disk) * disk.f_frsize);
    let uptime = read("/proc/uptime")?;
    let load = read("/proc/loadavg")?;
    let mut load = load.split(' ').filter_map(|number| number.parse().ok());
    let mut next = || load.next().unwrap_or_default();
    Ok(Stats {
        os: value(&release, "PRETTY_NAME", '=').trim_matches('"').to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpu_model: value(&processors, "model name", ':').to_owned(),
        cpus: processors.lines().filter(|line| line.starts_with("processor")).count() as u32,
        memory_total: total,
        memory_used: total.saturating_sub(kib(&memory, "MemAvailable")),
        disk_total: blocks(&|disk| disk.f_blocks),
        disk_used: blocks(&|disk| disk.f_blocks - disk.f_bfree),
        uptime_s: uptime.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default(),
        load: [next(), next(), next()],
    })
}

/// What stands behind a name and a sign, on the first line that begins with the name.
fn value<'a>(text: &'a str, name: &str, sign: char) -> &'a str {
    text.lines()
        .filter_map(|line| line.split_once(sign))
        .find(|(found, _)| found.trim() == name)
        .map_or("", |(_, value)| value.trim())
}

fn kib(memory: &str, name: &str) -> u64 {
    value(memory, name, ':').trim_end_matches(" kB").parse::<u64>().unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        assert_eq!(kib("MemFree:  1 kB\nMemTotal:     2048 kB\n", "MemTotal"), 2 * 1024 * 1024);
        assert_eq!(value("processor\t: 0\nmodel name\t: A: b\n", "model name", ':'), "A: b");
        assert_eq!(value("NAME=x\n", "PRETTY_NAME", '='), "");
    }
}
