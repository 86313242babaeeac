//! The anvil process.

use std::env::consts::ARCH;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tokio::sync::oneshot;

use super::contracts::DevChain;
use crate::config::RpcUrl;

/// How long anvil may take until it listens. It needs 0.2 s on an idle machine.
const START: Duration = Duration::from_secs(30);

/// Runs anvil until the standard input ends, which it also does when this process is killed: anvil itself would live on.
const SUPERVISOR: &str =
    r#""$0" "$@" 2>&1 </dev/null & anvil=$!; exec >/dev/null 2>&1; cat; kill "$anvil"; wait "$anvil""#;

/// An anvil that runs as long as this lives, and no longer than this process.
pub struct Anvil {
    /// The chain that it makes.
    pub chain: DevChain,
    supervisor: Child,
}

/// Why there is no anvil.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// None was found.
    #[error(
        "no anvil was found: name one in ANVIL_BIN, put one on the PATH, or install the npm package @foundry-rs/anvil-linux-{}",
        npm_arch()
    )]
    NotFound,
    /// It cannot be run.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended, or it does not say where it listens.
    #[error("{} does not listen; it said: {said}", program.display())]
    Silent {
        /// The program.
        program: PathBuf,
        /// Its last lines.
        said: String,
    },
}

fn npm_arch() -> &'static str {
    match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The anvil to use: the named one (what `ANVIL_BIN` says), else the first in `path` (what `PATH` says), else the one that
/// npm installed into one of these `node_modules` folders.
///
/// A named one is taken as it is; running it shows whether it is any good.
pub fn find_anvil(
    named: Option<&OsStr>,
    path: Option<&OsStr>,
    node_modules: &[PathBuf],
) -> Result<PathBuf, StartError> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let package = format!("@foundry-rs/anvil-linux-{}/bin/anvil", npm_arch());
    let on_path = path.into_iter().flat_map(std::env::split_paths).map(|folder| folder.join("anvil"));
    let installed = node_modules.iter().map(|folder| folder.join(&package));
    on_path.chain(installed).find(|file| file.is_file()).ok_or(StartError::NotFound)
}

impl Anvil {
    /// Starts one on this port, or on a free one for 0.
    ///
    /// It calls itself `chain_id`: 31337 for what it is, 8453 to be taken for Base by clients that know only such chains.
    /// `arguments` are further ones of its command line.
    pub async fn start(
        program: &Path,
        chain_id: u64,
        port: u16,
        arguments: &[&str],
    ) -> Result<Self, StartError> {
        let failed = |source| StartError::Run { program: program.to_owned(), source };
        let mut supervisor = Command::new("/bin/sh")
            .args([OsStr::new("-c"), OsStr::new(SUPERVISOR), program.as_os_str()])
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--chain-id", &chain_id.to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // An interrupt from the terminal is for us; anvil is needed until we are done.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let stdout = supervisor.stdout.take();
        let (tell, told) = oneshot::channel();
        std::thread::spawn(move || {
            if let Some(stdout) = stdout {
                listen(stdout, tell);
            }
        });
        // From here on, giving up ends the process: dropping the pipe is enough.
        let said = match tokio::time::timeout(START, told).await {
            Ok(Ok(Ok(url))) => {
                let chain = DevChain::new(chain_id, url);
                return Ok(Self { chain, supervisor });
            }
            Ok(Ok(Err(said))) => said,
            Ok(Err(_)) | Err(_) => "nothing".into(),
        };
        drop(supervisor.stdin.take());
        Err(StartError::Silent { program: program.to_owned(), said })
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // A process that cannot be waited for is gone.
        let _ = self.supervisor.wait();
    }
}

/// Tells where anvil listens, or else its last lines, and then reads what it says until it ends: it would stop at a full pipe.
fn listen(stdout: ChildStdout, tell: oneshot::Sender<Result<RpcUrl, String>>) {
    let mut said = Vec::new();
    let mut tell = Some(tell);
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let Some(waiting) = tell.take() else { continue };
        match line.strip_prefix("Listening on ").map(|at| format!("http://{}", at.trim()).parse()) {
            Some(Ok(url)) => {
                // Nobody waits any more: it took too long, and the process is about to end.
                let _ = waiting.send(Ok(url));
            }
            Some(Err(_)) | None => {
                said.push(line);
                tell = Some(waiting);
            }
        }
    }
    if let Some(waiting) = tell {
        let from = said.len().saturating_sub(5);
        let _ = waiting.send(Err(said[from..].join(" / ")));
    }
}
