//! The life of a container: started, watched, started again, stopped.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use casemate_types::compose::{Restart, ServiceSpec};
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::Machine;
use crate::bundle::Bundle;
use crate::logs::Log;
use crate::{Doing, Result, clock, say};

/// How long a container's process may take to be there, and how often to look.
const START: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
/// Pauses before a container is started again: from the first to the last, twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// One that ran for so long gets the first pause again.
const STEADY: Duration = Duration::from_secs(10);
/// How long a container may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(10);

/// What is needed to start a service's container, again and again.
pub(crate) struct Service {
    pub(crate) at: usize,
    pub(crate) spec: ServiceSpec,
    pub(crate) bundle: Bundle,
    pub(crate) log: Arc<Log>,
}

/// Starts the container, and returns once its process is there. From then on a thread looks after it.
///
/// # Errors
/// It cannot be started, which is another thing than a process that ends soon.
pub(crate) fn start(machine: &Arc<Machine>, service: Service) -> Result<()> {
    let child = spawn(machine, &service)?;
    let machine = machine.clone();
    thread::spawn(move || watch(&machine, &service, child));
    Ok(())
}

fn watch(machine: &Machine, service: &Service, first: Child) {
    let mut child = Some(first);
    let (mut pause, mut restarts) = (FIRST_PAUSE, 0);
    loop {
        let began = clock::instant();
        let code = match child.take() {
            Some(mut child) => child.wait().map_or(-1, code),
            // As a shell has it for a command that cannot be run.
            None => 127,
        };
        machine.ended(service.at, code);
        say!("service `{}` ended with code {code}", service.spec.name);
        if machine.is_stopping() || !again(service.spec.restart, code, restarts) {
            return;
        }
        if began.elapsed() >= STEADY {
            pause = FIRST_PAUSE;
        }
        if machine.wait_for_stop(pause) {
            return;
        }
        pause = (pause * 2).min(LAST_PAUSE);
        restarts += 1;
        machine.restarted(service.at);
        child = match spawn(machine, service) {
            Ok(child) => Some(child),
            Err(error) => {
                say!("{error}");
                None
            }
        };
    }
}

/// Is a process that ended with this code to be started again?
fn again(restart: Restart, code: i32, restarts: u32) -> bool {
    match restart {
        Restart::No => false,
        Restart::Always | Restart::UnlessStopped => true,
        Restart::OnFailure { times } => code != 0 && times.is_none_or(|times| restarts < times),
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Runs crun, which stays for as long as the container's first process does and ends with its code.
fn spawn(machine: &Machine, service: &Service) -> Result<Child> {
    let (name, folder) = (&service.spec.name, &service.bundle.folder);
    let (pid_file, errors) = (folder.join("pid"), folder.join("errors"));
    let _ = fs::remove_file(&pid_file);
    let crun = || {
        let mut crun = Command::new("/usr/bin/crun");
        crun.args(["--root", "/run/crun", "--cgroup-manager", "cgroupfs"]);
        crun
    };
    let cannot = |why: &dyn std::fmt::Display| format!("service `{name}` cannot be started: {why}");
    if machine.is_stopping() {
        return Err(cannot(&"the machine goes down"));
    }
    File::create(&errors).map_err(|error| cannot(&error))?;
    // One that ended badly may have left its name behind.
    if Path::new("/run/crun").join(name).exists() {
        let _ = crun().args(["delete", "--force", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    let mut child = crun()
        .arg("--log")
        .arg(&errors)
        .args(["run", "--no-pivot", "--bundle"])
        .arg(folder)
        .arg("--pid-file")
        .arg(&pid_file)
        .arg(name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| cannot(&error))?;
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
        let (out, err) = (service.log.clone(), service.log.clone());
        thread::spawn(move || out.take(stdout, false, clock::now));
        thread::spawn(move || err.take(stderr, true, clock::now));
    }
    let started = clock::wait_for(LOOK, START, || {
        let ended = child.try_wait().is_ok_and(|status| status.is_some());
        let pid = fs::read_to_string(&pid_file).ok().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?));
        match pid {
            // A process that was there and has ended already was started all the same, unless crun has something to say.
            _ if ended => Some(match fs::read_to_string(&errors) {
                Ok(text) if !text.trim().is_empty() => Err(reason(&text)),
                _ => Ok(None),
            }),
            Some(pid) if is_its_own(pid) => Some(Ok(Some(pid))),
            _ => None,
        }
    });
    match started {
        Some(Ok(pid)) => {
            machine.started(service.at, pid);
            Ok(child)
        }
        Some(Err(why)) => Err(cannot(&why)),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            Err(cannot(&format_args!("its process was not there within {} seconds", START.as_secs())))
        }
    }
}

/// Does the process run the container's program, and no longer crun's preparation for it?
fn is_its_own(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()))
        .is_ok_and(|exe| !exe.to_string_lossy().contains("crun"))
}

/// crun's last line, without time and level.
fn reason(log: &str) -> String {
    let line = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    match line.split_once("]: ").or_else(|| line.split_once("level=error msg=")) {
        Some((_, message)) => message.trim_matches('"').to_owned(),
        None => line.to_owned(),
    }
}

/// Asks every container to end, and ends those that do not in time.
pub(crate) fn stop_all(machine: &Machine) {
    for (pid, signal) in machine.pids() {
        let _ = kill_process(pid, signal_of(&signal));
    }
    let all_ended = || machine.pids().is_empty().then_some(());
    if clock::wait_for(LOOK, GRACE, all_ended).is_none() {
        for (pid, _) in machine.pids() {
            let _ = kill_process(pid, Signal::KILL);
        }
        clock::wait_for(LOOK, GRACE, all_ended);
    }
}

/// The signal that an image wants to be stopped with.
fn signal_of(name: &str) -> Signal {
    match name.trim_start_matches("SIG") {
        "INT" | "2" => Signal::INT,
        "QUIT" | "3" => Signal::QUIT,
        "KILL" | "9" => Signal::KILL,
        "HUP" | "1" => Signal::HUP,
        "USR1" | "10" => Signal::USR1,
        "USR2" | "12" => Signal::USR2,
        "WINCH" | "28" => Signal::WINCH,
        _ => Signal::TERM,
    }
}

/// Runs one of the document's scripts to its end. What it writes goes to the serial console.
pub(crate) fn script(name: &str, text: &str, env: &[(String, String)]) -> Result<()> {
    let status = Command::new("/bin/busybox")
        .args(["sh", "-c", text])
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .status()
        .doing(format_args!("cannot run the {name}"))?;
    match code(status) {
        0 => Ok(()),
        code => Err(format!("the {name} ended with code {code}; its output is in the serial log")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_say_whether_to_start_again() {
        let on_failure = |times| Restart::OnFailure { times };
        for (restart, code, restarts, wanted) in [
            (Restart::No, 1, 0, false),
            (Restart::Always, 0, 1000, true),
            (Restart::UnlessStopped, 1, 0, true),
            (on_failure(None), 0, 0, false),
            (on_failure(None), 1, 1000, true),
            (on_failure(Some(2)), 1, 1, true),
            (on_failure(Some(2)), 1, 2, false),
        ] {
            assert_eq!(again(restart, code, restarts), wanted, "{restart:?} {code} {restarts}");
        }
    }

    #[test]
    fn crun_says_why() {
        assert_eq!(
            reason("2026-01-01T00:00:00.1Z: open executable: No such file\n"),
            "2026-01-01T00:00:00.1Z: open executable: No such file"
        );
        assert_eq!(signal_of("SIGQUIT"), Signal::QUIT);
        assert_eq!(signal_of(""), Signal::TERM);
    }
}
