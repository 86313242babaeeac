//! A machine's process: made, recognised after a restart of the server, and ended.
//!
//! It is known by its number, the moment it began and the boot of the host: a number alone is soon somebody else's. Signals go
//! through a pidfd, so that none can reach another process.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Signal, getrlimit, pidfd_open, pidfd_send_signal, prlimit};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{command, disk, files};

/// What the hypervisor says of itself.
pub(super) const OUTPUT: &str = "qemu.out.log";
/// What goes wrong with it.
pub(super) const ERRORS: &str = "qemu.log";

/// A process, as it is recognised again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pid: i32,
    /// Clock ticks from the start of the host to its own.
    began: u64,
    /// Which start of the host.
    host_boot: String,
}

/// A process of ours that was found at work in a folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AtWork {
    /// Where it works, also if that folder has been removed.
    pub(super) folder: PathBuf,
    pub(super) process: Process,
    /// Is it a machine? Else it does something to a disk.
    pub(super) is_machine: bool,
}

impl Process {
    /// Starts `program` in `folder`. It outlives this process: it has a process group of its own, so that no key pressed at a
    /// terminal reaches it, and no handle of ours.
    pub(super) fn spawn(program: &Path, arguments: &[String], folder: &Path) -> Result<Self> {
        let open = |file| files::append(&folder.join(file));
        let host_boot = host_boot()?;
        let mut command = std::process::Command::new(program);
        command
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(open(OUTPUT)?)
            .stderr(open(ERRORS)?);
        let mut child = tokio::process::Command::from(command).spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| Error::other("a process without a number"))?;
        let known = keep_inside(pid).and_then(|()| began(pid));
        if known.is_err() {
            child.start_kill()?;
        }
        // Nobody else may collect it.
        tokio::spawn(async move { child.wait().await });
        Ok(Self { pid, began: known?, host_boot })
    }

    /// The machine that works in `folder`, if there is one. For folders whose record does not name it.
    pub(super) fn in_folder(folder: &Path) -> Option<Self> {
        let folder = folder.canonicalize().ok()?;
        below(&folder).into_iter().find(|one| one.is_machine && one.folder == folder).map(|one| one.process)
    }

    /// Its number.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Is it still there? One that ended and was not collected yet is not.
    pub(super) fn is_alive(&self) -> bool {
        self.open().is_some_and(|fd| {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).is_ok_and(|ended| ended == 0)
        })
    }

    /// Has somebody stopped it with a signal, so that it does nothing until it is let go on?
    pub(super) fn is_stopped(&self) -> bool {
        self.open().is_some() && stat(self.pid, 0).is_ok_and(|state| state == "T")
    }

    /// Ends when the process has.
    pub(super) async fn ended(&self) {
        let Some(fd) = self.open() else { return };
        #[expect(
            deprecated,
            reason = "what is unsound is a descriptor that is closed meanwhile, and this one is owned"
        )]
        match AsyncFd::with_interest(fd, Interest::READABLE) {
            Ok(fd) => drop(fd.readable().await),
            Err(error) => {
                tracing::error!(%error, pid = self.pid, "the end of a process cannot be waited for")
            }
        }
    }

    /// Cuts its power, and stands still until it is gone.
    ///
    /// # Errors
    /// It is not gone after `limit`.
    pub(super) fn end(&self, limit: Duration) -> Result<()> {
        let Some(fd) = self.open() else { return Ok(()) };
        self.kill()?;
        let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit))? {
            0 => Err(Error::new(ErrorKind::TimedOut, format!("process {} does not end", self.pid))),
            _ => Ok(()),
        }
    }

    /// Cuts its power.
    pub(super) fn kill(&self) -> Result<()> {
        match self.open() {
            Some(fd) => pidfd_send_signal(fd, Signal::KILL).or_else(|error| match error {
                Errno::SRCH => Ok(()),
                other => Err(other.into()),
            }),
            None => Ok(()),
        }
    }

    /// A handle of exactly this process.
    fn open(&self) -> Option<OwnedFd> {
        if host_boot().ok()? != self.host_boot {
            return None;
        }
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Asked after the handle was made: the number cannot have changed hands in between.
        (began(self.pid).ok()? == self.began).then_some(fd)
    }
}

/// Should it ever crash, nothing of its memory is kept: not only the guest's has secrets, but also the buffers by which they
/// reach it. No core dump is written, and one that a program takes over, for which there is no limit (core(5)), has nothing in it.
fn keep_inside(pid: i32) -> Result<()> {
    let mut limit = getrlimit(Resource::Core);
    limit.current = Some(0);
    match prlimit(Pid::from_raw(pid), Resource::Core, limit) {
        Ok(_) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    match std::fs::write(format!("/proc/{pid}/coredump_filter"), "0") {
        // This kernel has no core dumps, or the process has ended.
        Err(error) if [Some(Errno::NOENT), Some(Errno::SRCH)].contains(&Errno::from_io_error(&error)) => {
            Ok(())
        }
        other => other,
    }
}

/// What works in `folder`, which has no other name, or below it: machines, and the programs that make their disks. One look at
/// all processes; a server that was killed cannot say what it had begun.
pub(super) fn below(folder: &Path) -> Vec<AtWork> {
    let Ok(host_boot) = host_boot() else { return Vec::new() };
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let at_work = numbers.filter_map(|pid| {
        let cwd =
            std::fs::read_link(format!("/proc/{pid}/cwd")).ok().filter(|cwd| cwd.starts_with(folder))?;
        // Taken before the look at what it is: if the number changes hands, it fits neither.
        let process = Process { pid, began: began(pid).ok()?, host_boot: host_boot.clone() };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = line.split(|byte| *byte == 0);
        let is_machine = words.clone().any(|word| word == command::MARK);
        if !is_machine
            && !words.next().is_some_and(|word| disk::TOOLS.iter().any(|tool| tool.as_bytes() == word))
        {
            return None;
        }
        let cwd = cwd.into_os_string().into_string().ok()?;
        let folder = cwd.strip_suffix(" (deleted)").unwrap_or(&cwd).into();
        Some(AtWork { folder, process, is_machine })
    });
    at_work.collect()
}

/// Which start of the host this is.
pub(super) fn host_boot() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)): when the process began.
fn began(pid: i32) -> Result<u64> {
    stat(pid, 19)?.parse().map_err(|_| another_form())
}

/// A field of `/proc/PID/stat`, counted from the third, which is the first after the name.
fn stat(pid: i32, field: usize) -> Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in brackets, and may hold anything.
    let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest);
    let field = after_name.and_then(|rest| rest.split(' ').nth(field));
    field.map(str::to_owned).ok_or_else(another_form)
}

fn another_form() -> Error {
    Error::new(ErrorKind::InvalidData, "/proc/PID/stat has another form")
}

/// A socket of a folder, whatever the length of the folder's path: an address holds 107 bytes.
pub(super) async fn connect(folder: &Path, socket: &str) -> Result<tokio::net::UnixStream> {
    use std::os::fd::AsRawFd;
    let folder = File::open(folder)?;
    tokio::net::UnixStream::connect(format!("/proc/self/fd/{}/{socket}", folder.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_recognised_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::spawn(Path::new("/bin/sleep"), &["600".to_owned()], folder.path()).unwrap();
        assert!(process.is_alive());
        let later = Process { began: process.began + 1, ..process.clone() };
        assert!(!later.is_alive(), "another process that got the number");
        let rebooted = Process { host_boot: "another".into(), ..process.clone() };
        assert!(!rebooted.is_alive());
        rebooted.kill().unwrap();
        later.kill().unwrap();
        assert!(process.is_alive(), "no other process was meant");
        let signal = |signal| rustix::process::kill_process(Pid::from_raw(process.pid).unwrap(), signal);
        let clock = crate::clock::Clock::system();
        for (sent, stopped) in [(Signal::STOP, true), (Signal::CONT, false)] {
            signal(sent).unwrap();
            // It takes its signal when it is its turn.
            let taken = async {
                while process.is_stopped() != stopped {
                    clock.sleep(Duration::from_millis(1)).await;
                }
            };
            clock.within(Duration::from_secs(10), taken).await.unwrap();
            assert!(process.is_alive() && !later.is_stopped());
        }
        process.kill().unwrap();
        process.ended().await;
        assert!(!process.is_alive());
        process.kill().unwrap();
    }
}
