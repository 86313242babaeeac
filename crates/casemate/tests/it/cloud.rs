//! The real program on a data folder of its own, and its one node as another process.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use casemate_server::cvm::spec::Booking;
use casemate_server::driver::Driver;
use casemate_server::driver::NodeFacts;
use casemate_server::driver::remote::RemoteSim;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate");

/// What a cloud is like.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// What the node's timing follows from.
    pub(crate) seed: u64,
    /// Milliseconds from power-on to "done".
    pub(crate) boot_ms: u64,
    /// Milliseconds that a guest takes to go down.
    pub(crate) stop_ms: u64,
    /// More options of `casemate serve`.
    pub(crate) options: Vec<String>,
    /// The library that records what the program does to its data folder.
    pub(crate) recorder: Option<PathBuf>,
}

impl Setup {
    /// A fast node, and a server as it is shipped.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { seed, boot_ms: 0, stop_ms: 0, options: Vec::new(), recorder: None }
    }
}

/// One run of the server, from its first answer on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// Counts the runs, from 1; 0 before the first.
    pub(crate) number: u32,
    /// `http://127.0.0.1:PORT/api/v1`. Each run has a port of its own, so nothing meant for one reaches another.
    pub(crate) url: String,
}

/// A node, a data folder, and sometimes a server. Its files stay when the test fails.
pub(crate) struct Cloud {
    setup: Setup,
    folder: Option<TempDir>,
    path: PathBuf,
    node_process: Child,
    /// The node, asked directly.
    pub(crate) node: RemoteSim,
    /// An API key with every scope.
    pub(crate) key: String,
    server: Option<Child>,
    lives: watch::Sender<Life>,
}

impl Cloud {
    /// A folder with a workspace and a key, and a running node with room for everything; no server yet.
    pub(crate) async fn new(setup: Setup) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().canonicalize().expect("it is there");
        std::fs::create_dir(path.join("data")).expect("the folder is ours");
        std::fs::write(path.join("record"), []).expect("the folder is ours");
        let mut make_key = Command::new(PROGRAM);
        make_key.args(["setup", "--workspace", "crash", "--data"]).arg(path.join("data"));
        let key = recorded(&mut make_key, &setup, &path).output().expect("the program runs");
        assert!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
        let key = String::from_utf8(key.stdout).expect("a key is ASCII").trim().to_owned();
        let socket = path.join("node.sock");
        let node_process = Command::new(PROGRAM)
            .arg("sim")
            .arg(format!("--listen=unix:{}", socket.display()))
            .arg(format!("--seed={}", setup.seed))
            .arg(format!("--boot-ms={}", setup.boot_ms))
            .arg(format!("--stop-ms={}", setup.stop_ms))
            .stderr(log(&path, "node.log"))
            .spawn()
            .expect("the program runs");
        let node = RemoteSim::connect(&socket);
        let lives = watch::Sender::new(Life { number: 0, url: String::new() });
        let cloud = Self { setup, folder: Some(folder), path, node_process, node, key, server: None, lives };
        let mut facts = None;
        until("the node answers", async || {
            facts = cloud.node.describe().await.ok();
            facts.is_some()
        })
        .await;
        let capacity = Booking { vcpu: 100_000, memory_mb: 1_000_000_000, disk_gb: 10_000_000, gpus: 0 };
        let facts = NodeFacts { capacity, ..facts.expect("it has answered") };
        cloud.node.set_facts(facts).await.expect("the node answers");
        cloud
    }

    /// The same with a running server.
    pub(crate) async fn start(setup: Setup) -> Self {
        let mut cloud = Self::new(setup).await;
        cloud.boot().await;
        cloud
    }

    /// Starts the server and returns when it answers. How long that took.
    pub(crate) async fn boot(&mut self) -> Duration {
        let begun = Instant::now();
        let mut lines = self.spawn();
        let url = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                if let Some(url) = line.trim().strip_prefix("Listening on ") {
                    return Some(url.to_owned());
                }
                line.clear();
            }
            None
        });
        let url = url.await.expect("no panic").expect("the server says where it listens");
        let took = begun.elapsed();
        self.lives.send_modify(|life| *life = Life { number: life.number + 1, url: format!("{url}/api/v1") });
        took
    }

    /// Starts the server and kills it while it is still starting.
    pub(crate) async fn boot_in_vain(&mut self, after: Duration) {
        let _lines = self.spawn();
        tokio::time::sleep(after).await;
        self.kill();
    }

    fn spawn(&mut self) -> BufReader<std::process::ChildStdout> {
        assert!(self.server.is_none(), "it runs already");
        let mut server = Command::new(PROGRAM);
        server
            .args(["serve", "--listen=127.0.0.1:0", "--public-url=http://localhost", "--data"])
            .arg(self.data())
            .arg(format!("--nodes=sim=unix:{}", self.path.join("node.sock").display()))
            .args(&self.setup.options)
            .env("CASEMATE_LOG", "warn")
            .stdout(Stdio::piped())
            .stderr(log(&self.path, "server.log"));
        let mut server = recorded(&mut server, &self.setup, &self.path).spawn().expect("the program runs");
        let lines = BufReader::new(server.stdout.take().expect("piped"));
        self.server = Some(server);
        lines
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut server = self.server.take().expect("a running server");
        server.kill().expect("it is ours");
        let status = server.wait().expect("it is ours");
        assert!(status.code().is_none(), "it had ended by itself: {status}; {}", self.complaints());
    }

    /// Asks the server to end with SIGTERM and waits until it has. How it ended and how long that took.
    pub(crate) async fn terminate(&mut self) -> (ExitStatus, Duration) {
        let mut server = self.server.take().expect("a running server");
        let begun = Instant::now();
        let told = Command::new("sh").args(["-c", &format!("kill -TERM {}", server.id())]).status();
        assert!(told.expect("sh runs").success());
        let mut status = None;
        until("the server ends", async || {
            status = server.try_wait().expect("it is ours");
            status.is_some()
        })
        .await;
        (status.expect("it has ended"), begun.elapsed())
    }

    /// The runs of the server, as they begin.
    pub(crate) fn lives(&self) -> watch::Receiver<Life> {
        self.lives.subscribe()
    }

    /// The data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// What the recorder wrote, if there is one.
    pub(crate) fn record(&self) -> PathBuf {
        self.path.join("record")
    }

    /// What the server wrote to its log.
    pub(crate) fn complaints(&self) -> String {
        std::fs::read_to_string(self.path.join("server.log")).unwrap_or_default()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        for process in self.server.iter_mut().chain([&mut self.node_process]) {
            let _ = process.kill();
            let _ = process.wait();
        }
        if let Some(folder) = self.folder.take()
            && std::thread::panicking()
        {
            eprintln!("its files are in {}", folder.keep().display());
        }
    }
}

fn recorded<'a>(command: &'a mut Command, setup: &Setup, path: &Path) -> &'a mut Command {
    if let Some(recorder) = &setup.recorder {
        command.env("LD_PRELOAD", recorder);
        command.env("RECORD_FOLDER", path.join("data")).env("RECORD_TO", path.join("record"));
    }
    command
}

fn log(folder: &Path, name: &str) -> std::fs::File {
    let mut open = std::fs::OpenOptions::new();
    open.create(true).append(true).open(folder.join(name)).expect("the folder is ours")
}

/// Waits until `done` says yes, half a minute at most.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
