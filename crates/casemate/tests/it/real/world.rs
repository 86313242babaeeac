//! A cloud whose machines are real, and what is to be seen of one of them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use casemate_sdk::{Client, Cvm, Error, Operation, wire};
use tempfile::TempDir;
use tokio::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate");

/// What all machines here are called.
pub(super) const NAME: &str = "web-app";

/// What `make guest` made.
fn made() -> PathBuf {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.casemate-guest");
    assert!(made.join("images").is_dir(), "there is no OS image: run `make guest`");
    made.canonicalize().unwrap()
}

/// A data folder, a server on it, and its machines. Nothing of it runs on when this is dropped.
pub(super) struct World {
    folder: TempDir,
    server: Child,
    pub(super) client: Client,
}

impl World {
    /// With the images `web:1` and `web:2` at hand.
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for image in ["oci/web-1", "oci/web-2"] {
            let mut import = Command::new(PROGRAM);
            import
                .args(["images", "import", "--data"])
                .arg(folder.path().join("data"))
                .arg(made().join(image));
            assert!(import.stdout(Stdio::null()).status().unwrap().success());
        }
        let (server, client, _) = start(folder.path(), &[], "API");
        Self { folder, server, client }
    }

    /// With the example, and everything that is printed until it was shown.
    pub(super) fn demo() -> (Self, String) {
        let folder = tempfile::tempdir().unwrap();
        let (server, client, printed) = start(folder.path(), &["--demo"], "The cloud stays up");
        (Self { folder, server, client }, printed)
    }

    /// Kills the server, and starts another one on what it left.
    pub(super) fn kill_and_start(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        (self.server, self.client, _) = start(self.folder.path(), &[], "API");
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(super) fn cvm(&self) -> Cvm {
        self.client.cvm(NAME)
    }

    pub(super) async fn observed(&self) -> wire::Observed {
        self.cvm().observed().await.unwrap()
    }

    /// What the app answers, as soon as it does: its port is there a moment before it listens.
    pub(super) async fn ask(&self, path: &str) -> String {
        let port = self.observed().await.ports.first().expect("it publishes a port").at;
        let begun = Instant::now();
        loop {
            match reqwest::get(format!("http://{port}{path}")).await {
                Ok(answer) => {
                    return answer.error_for_status().unwrap().text().await.unwrap().trim().to_owned();
                }
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error:?}"),
            }
        }
    }

    /// What has happened since `boots` boots: just one more, and it came up.
    pub(super) async fn one_boot_more(&self, boots: &mut u64) -> wire::Observed {
        let seen = self.observed().await;
        *boots += 1;
        assert_eq!((seen.boot_count, seen.status.as_str()), (*boots, "running"));
        seen
    }

    /// The numbers of the processes that work in the data folder, but for the server's.
    pub(super) fn machines(&self) -> Vec<u32> {
        let nodes = self.data().canonicalize().unwrap().join("nodes");
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let works_here = |pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder.starts_with(&nodes))
        };
        numbers.filter(works_here).collect()
    }

    /// Tells the server to stop, and waits for it.
    pub(super) fn end(&mut self) {
        let ended = Command::new("kill").arg(self.server.id().to_string()).status().unwrap();
        assert!(ended.success());
        assert!(self.server.wait().unwrap().success());
    }
}

/// Starts a server on a folder; it says `ready` at the beginning of a line. Gives all that it says until then.
fn start(folder: &Path, options: &[&str], ready: &str) -> (Child, Client, String) {
    let data = folder.join("data");
    let mut server = Command::new(PROGRAM)
        .args(["dev", "--listen=127.0.0.1:0", "--nodes=qemu,accel=tcg", "--data"])
        .arg(&data)
        .args(options)
        // It finds there what `make guest` made.
        .current_dir(made().parent().unwrap())
        .env("CASEMATE_LOG", "info")
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(folder.join("server.log")).unwrap())
        .spawn()
        .unwrap();
    let mut printed = String::new();
    for line in BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok) {
        printed += &(line.clone() + "\n");
        if line.trim_start().starts_with(ready) {
            break;
        }
    }
    let env = std::fs::read_to_string(data.join("dev.env")).unwrap_or_default();
    let value = |name: &str| {
        env.lines().find_map(|line| line.strip_prefix("export ")?.strip_prefix(name)).unwrap_or_default()
    };
    let client = Client::builder().base_url(value("PHALA_CLOUD_API_PREFIX="));
    let client = client.api_key(value("PHALA_CLOUD_API_KEY=")).build().unwrap();
    (server, client, printed)
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the server's last words:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
        for pid in self.machines() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

/// A compose file with this image of the small HTTP server, and more lines for its service.
pub(super) fn compose(image: &str, more: &str) -> String {
    format!(
        "services:\n  web:\n    image: {image}\n    ports: ['80:8080']\n    volumes: ['data:/data']\n{more}volumes:\n  data:\n"
    )
}

/// Waits for an operation that succeeds.
pub(super) async fn done(operation: Result<Operation, Error>) -> wire::Operation {
    operation.unwrap().wait().await.unwrap().expect("this server has operations")
}
