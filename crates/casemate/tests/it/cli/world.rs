//! A folder with a cloud in it, and somebody who types commands there.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_casemate");

/// A compose file with this image.
pub(crate) fn compose(image: &str) -> String {
    format!("services:\n  web:\n    image: {image}\n")
}

/// A folder with a running cloud, whose machines boot at once.
pub(crate) struct World {
    folder: TempDir,
    processes: Vec<Child>,
    /// What the server prints. A server whose output nobody can read any more would end.
    lines: Option<BufReader<ChildStdout>>,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
}

impl World {
    /// A cloud with its data in `.casemate`, where commands look for it.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// The same, with `web-1` deployed from `app.yml`.
    pub(crate) fn deployed() -> Self {
        let world = Self::start();
        world.file("app.yml", &compose("nginx:1"));
        world.ok("deploy -n web-1 -c app.yml");
        world
    }

    /// A cloud with a key service that asks a contract, on a chain that clients take for Base.
    pub(crate) fn on_chain() -> Self {
        Self::with(&["--chain=anvil", "--chain-id=8453"])
    }

    /// A cloud with these options.
    pub(crate) fn with(options: &[&str]) -> Self {
        let mut world = Self::empty();
        let mut lines = world.serve(options);
        world.address = address(&mut lines);
        world.lines = Some(lines);
        world
    }

    /// A folder with a node, but no server yet.
    pub(crate) fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("node.sock");
        std::fs::create_dir(folder.path().join(".casemate")).unwrap();
        let node = Command::new(PROGRAM)
            .args(["sim", "--boot-ms=0", "--stop-ms=0"])
            .arg(format!("--listen=unix:{}", socket.display()))
            .args(["--state".into(), folder.path().join("node.json")])
            .args(["--kms".into(), folder.path().join(".casemate/kms.key")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the node does not start");
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Self { folder, processes: vec![node], lines: None, address: String::new() }
    }

    /// Starts `casemate dev` with these options; what it prints.
    pub(crate) fn serve(&mut self, options: &[&str]) -> BufReader<ChildStdout> {
        let mut server = Command::new(PROGRAM)
            .current_dir(self.path())
            .args(["dev", "--listen=127.0.0.1:0"])
            .arg(format!("--nodes=sim=unix:{}", self.path().join("node.sock").display()))
            .args(options)
            .env("CASEMATE_LOG", "error")
            .envs(anvil().map(|path| ("ANVIL_BIN", path)))
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(self.path().join("server.log")).unwrap())
            .spawn()
            .unwrap();
        let lines = BufReader::new(server.stdout.take().unwrap());
        self.processes.push(server);
        lines
    }

    /// Ends the server that was started last.
    pub(crate) fn end_server(&mut self) {
        let mut server = self.processes.pop().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a file into the folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A command, its words separated by spaces, in an environment that says nothing.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .current_dir(self.path())
            .args(line.split(' ').filter(|word| !word.is_empty()))
            .env_clear()
            .env("HOME", self.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs a command that works; its standard output.
    pub(crate) fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{line}\n{out}{err}");
        out
    }

    /// Runs a command that works and answers with JSON.
    pub(crate) fn json(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        let (out, err) = texts(&output);
        assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{line}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line}: {error}\n{out}"))
    }

    /// Runs a command that ends with this code and says nothing on standard output; its standard error.
    pub(crate) fn fails(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(code), "{line}\n{out}{err}");
        assert_eq!(out, "", "{line}");
        err
    }

    /// The key of the development workspace.
    pub(crate) fn key(&self) -> String {
        self.variable("PHALA_CLOUD_API_KEY")
    }

    /// What the environment file of the cloud has under this name.
    pub(crate) fn variable(&self, name: &str) -> String {
        let env = std::fs::read_to_string(self.path().join(".casemate/dev.env")).unwrap();
        let value = env.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
        value.unwrap().to_owned()
    }

    /// What the API itself answers.
    pub(crate) fn wire(&self, method: &str, path: &str, body: &str) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "{method} /api/v1{path} HTTP/1.0\r\nHost: {}\r\nX-API-Key: {}\r\nX-Phala-Version: 2026-06-23\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            self.key(),
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 ") || head.contains(" 202 "), "{path}: {answer}");
        serde_json::from_str(body).unwrap()
    }
}

impl World {
    /// A server in front of this one, of whoever runs it: it changes the JSON that it is asked, or that it answers. The second
    /// argument is the method and the path. Returns the options that name it.
    pub(crate) fn meddler(&self, change: impl Fn(Heard, &str, &mut Value) + Send + Sync + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (server, change) = (self.address.clone(), Arc::new(change));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, change) = (server.clone(), change.clone());
                // A client that has gone away is none of its business.
                std::thread::spawn(move || meddle(stream?, &server, change.as_ref()));
            }
        });
        format!("--api-url http://{address}/api/v1 --api-key {}", self.key())
    }
}

/// Which way a message goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    Asked,
    Answered,
}

/// One request and its answer.
fn meddle(
    mut client: TcpStream,
    server: &str,
    change: &(dyn Fn(Heard, &str, &mut Value) + Send + Sync),
) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (Vec::new(), 0);
    for line in reader.by_ref().lines() {
        let line = line?;
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        match name.as_str() {
            "" => break,
            "content-length" => length = line[15..].trim().parse().unwrap_or(0),
            "accept-encoding" | "connection" => {}
            _ => head.push(line),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let route = head[0].rsplit_once(' ').map_or_else(String::new, |(route, _)| route.replace("/api/v1", ""));
    let changed = |heard, body: Vec<u8>| match serde_json::from_slice::<Value>(&body) {
        Ok(mut json) => {
            change(heard, &route, &mut json);
            json.to_string().into_bytes()
        }
        Err(_) => body,
    };
    let send = |stream: &mut TcpStream, head: &[String], body: &[u8]| {
        let lines =
            format!("{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", head.join("\r\n"), body.len());
        stream.write_all(lines.as_bytes()).and_then(|()| stream.write_all(body))
    };
    let mut upstream = TcpStream::connect(server)?;
    send(&mut upstream, &head, &changed(Heard::Asked, body))?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let head: Vec<String> = String::from_utf8_lossy(&answer[..end])
        .lines()
        .filter(|line| {
            let line = line.to_ascii_lowercase();
            !line.starts_with("content-length")
                && !line.starts_with("connection")
                && !line.starts_with("transfer-encoding")
        })
        .map(str::to_owned)
        .collect();
    send(&mut client, &head, &changed(Heard::Answered, answer.split_off(end + 4)))
}

impl Drop for World {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path().join("server.log")).unwrap_or_default();
            eprintln!("the server says: {log}");
        }
    }
}

/// The anvil that the tests have.
pub(crate) fn anvil() -> Option<PathBuf> {
    let node_modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/js/node_modules");
    let (named, path) = (std::env::var_os("ANVIL_BIN"), std::env::var_os("PATH"));
    casemate_chain::dev::find_anvil(named.as_deref(), path.as_deref(), &[node_modules]).ok()
}

/// Reads until the server says where it is.
pub(crate) fn address(lines: &mut impl BufRead) -> String {
    for line in lines.lines() {
        if let Some(url) = line.unwrap().trim().strip_prefix("API ") {
            let rest = url.trim().strip_prefix("http://").unwrap();
            return rest.split('/').next().unwrap().to_owned();
        }
    }
    panic!("the server ended without saying where it is");
}

pub(crate) fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}
