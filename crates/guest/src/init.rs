//! Process 1.

use std::fs::{self, File};
use std::io;
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::system::{RebootCommand, finit_module, reboot};

use crate::{Doing, Result, say};

/// The modules to load, one path a line, each behind what it needs. The image's builder wrote it.
const MODULES: &str = "/lib/modules/order";

pub(crate) fn main() -> ! {
    let agent = start();
    match agent {
        Ok(agent) => say!("{}", wait_for_end(agent)),
        Err(why) => say!("the machine cannot start: {why}"),
    }
    power_off()
}

/// Makes the system usable and starts the agent.
fn start() -> Result<Pid> {
    for (kind, at, flags, data) in [
        ("proc", "/proc", MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV, ""),
        ("sysfs", "/sys", MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV, ""),
        ("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=0620,gid=5,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777"),
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, "mode=0755,size=64m"),
        ("tmpfs", "/tmp", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777,size=64m"),
        ("cgroup2", "/sys/fs/cgroup", MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV, ""),
    ] {
        fs::create_dir_all(at).doing(format_args!("cannot make {at}"))?;
        let data = std::ffi::CString::new(data).expect("no zero byte in the list above");
        mount(kind, at, kind, flags, data.as_c_str()).doing(format_args!("cannot mount {at}"))?;
    }
    let modules = fs::read_to_string(MODULES).doing(format_args!("cannot read {MODULES}"))?;
    for path in modules.lines() {
        let file = File::open(path).doing(format_args!("cannot open {path}"))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            // One without its device says so; what it was for will be missed where it is used.
            Err(error) => say!("module {path} did not load: {error}"),
        }
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if release.lines().any(|line| line == "VARIANT_ID=dev")
        && let Err(error) = Command::new("/bin/busybox").args(["setsid", "cttyhack", "sh"]).spawn()
    {
        say!("no shell: {error}");
    }
    let agent = Command::new("/proc/self/exe")
        .arg("agent")
        .stdin(Stdio::null())
        .spawn()
        .doing("cannot start the agent")?;
    Ok(Pid::from_raw(agent.id() as i32).expect("a child has a process number"))
}

/// Collects every process that ends, until it is the agent. Says how it ended.
fn wait_for_end(agent: Pid) -> String {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("the agent ended with code {code}; the machine goes down"),
                    (_, Some(signal)) => {
                        format!("the agent was ended by signal {signal}; the machine goes down")
                    }
                    (None, None) => "the agent ended; the machine goes down".to_owned(),
                };
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return format!("cannot wait for the agent ({error}); the machine goes down"),
        }
    }
}

/// Writes what is not yet written, and switches the machine off.
pub(crate) fn power_off() -> ! {
    let _ = io::Write::flush(&mut io::stdout());
    rustix::fs::sync();
    let error = reboot(RebootCommand::PowerOff).expect_err("a machine that is off does not go on");
    // Process 1 may not end, or the kernel panics: which, after a message, is the next best thing.
    panic!("cannot switch the machine off: {error}");
}
