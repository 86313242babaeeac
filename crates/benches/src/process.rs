//! Other processes: started on a core of their own, asked for what they used, ended with the measurement.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Result;

/// The core of whatever is measured.
const SERVER_CORE: usize = 0;
/// The core of everything else.
const LOAD_CORE: usize = 1;

/// Can processes be given a core of their own here?
pub(crate) fn can_pin() -> bool {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores > LOAD_CORE && Command::new("taskset").arg("--version").stdout(Stdio::null()).status().is_ok()
}

/// Keeps this process, and what it starts from now on, off the core of the server.
pub(crate) fn pin_self() -> Result<()> {
    let core = LOAD_CORE.to_string();
    let id = std::process::id().to_string();
    let status =
        Command::new("taskset").args(["-a", "-p", "-c", &core, &id]).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err("taskset could not move this process to a core".into()) }
}

/// A command on the core of the server, if there is one for it.
pub(crate) fn on_server_core(program: &Path, pinned: bool) -> Command {
    if !pinned {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &SERVER_CORE.to_string()]).arg(program);
    command
}

/// A command on all cores, also where this process keeps to one.
pub(crate) fn on_all_cores(program: &Path, pinned: bool) -> Command {
    if !pinned {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &format!("{SERVER_CORE},{LOAD_CORE}")]).arg(program);
    command
}

/// An address that nobody listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A server in a process of its own. It is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts `command`, which will listen on `address`, and waits until it answers `probe` with status 200. Also gives the time
    /// that took.
    pub(crate) async fn start(
        command: &mut Command,
        address: SocketAddr,
        probe: &[u8],
    ) -> Result<(Self, Duration)> {
        let begun = Instant::now();
        let child = command.stdin(Stdio::null()).spawn()?;
        let mut server = Self { child, address };
        while begun.elapsed() < Duration::from_secs(60) {
            if answers(address, probe).await {
                return Ok((server, begun.elapsed()));
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("a server ended at once, with {status}").into());
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        Err("a server did not answer within a minute".into())
    }

    fn proc(&self, file: &str) -> Result<String> {
        Ok(fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))?)
    }

    /// Processor time of all its threads so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_of(self.child.id())
    }

    /// Memory that is its own: neither files mapped in nor shared.
    pub(crate) fn private_mib(&self) -> Result<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib: f64 = line.ok_or("no RssAnon in /proc")?.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of all threads of a process so far, user and system together, to the nanosecond.
pub(crate) fn cpu_of(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Memory of a process, what it shares with others counted in part.
pub(crate) fn pss_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss in /proc")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// Does whoever listens there answer with status 200?
pub(crate) async fn answers(address: SocketAddr, probe: &[u8]) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(probe).await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        std::io::Result::Ok(head.ends_with(b" 200"))
    };
    ask.await.unwrap_or(false)
}
