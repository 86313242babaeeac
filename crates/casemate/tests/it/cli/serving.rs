//! `casemate serve` as an operator meets it: what it refuses to start with, TLS, and proxies.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;
use tokio::time::Instant;

use super::world::{PROGRAM, World, texts};

/// A server with settings of its own.
struct Served {
    folder: TempDir,
    process: Child,
    /// `https://localhost:PORT`.
    url: String,
}

/// The command that starts a server with these settings in this folder.
fn serve(folder: &Path, settings: &str) -> Command {
    std::fs::write(folder.join("casemate.toml"), settings).unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .current_dir(folder)
        .args(["serve", "--config=casemate.toml", "--data=data", "--public-url=https://localhost"])
        .env_clear()
        .stdout(Stdio::piped());
    command
}

impl Served {
    fn start(folder: TempDir, settings: &str) -> Self {
        let mut command = serve(folder.path(), settings);
        command.arg("--listen=127.0.0.1:0");
        let mut process =
            command.stderr(std::fs::File::create(folder.path().join("log")).unwrap()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("Listening on ").unwrap_or_else(|| {
            panic!("{line}{}", std::fs::read_to_string(folder.path().join("log")).unwrap())
        });
        let url = url.replace("127.0.0.1", "localhost");
        Self { folder, process, url }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    }

    fn log_until(&self, what: &str) {
        let begun = Instant::now();
        while !self.log().contains(what) {
            assert!(begun.elapsed() < Duration::from_secs(30), "no `{what}` in\n{}", self.log());
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes a new certificate for `localhost` and its key.
fn certificate(folder: &Path) -> reqwest::Certificate {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
    reqwest::Certificate::from_pem(cert.pem().as_bytes()).unwrap()
}

fn client(trusted: &reqwest::Certificate) -> reqwest::Client {
    reqwest::Client::builder().no_proxy().tls_certs_only([trusted.clone()]).build().unwrap()
}

const TLS: &str = "[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";

#[tokio::test]
async fn it_speaks_tls_takes_a_new_certificate_and_stops_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = certificate(folder.path());
    let mut served = Served::start(folder, TLS);
    assert!(served.url.starts_with("https://"), "{}", served.url);
    let health = format!("{}/healthz", served.url);
    let (before, silent) =
        (client(&first), tokio::net::TcpStream::connect(served.url.replace("https://", "")));
    // One that never shakes hands keeps nobody waiting.
    let _silent = silent.await.unwrap();
    let answer = before.get(&health).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_11));
    assert!(reqwest::Client::new().get(health.replace("https", "http")).send().await.is_err());

    // Files that are wrong change nothing.
    std::fs::write(served.folder.path().join("key.pem"), "nonsense").unwrap();
    served.signal("HUP");
    served.log_until("the certificate stays as it was: tls.key: key.pem: there is no");
    client(&first).get(&health).send().await.unwrap();
    let second = certificate(served.folder.path());
    served.signal("HUP");
    served.log_until("certificate and key were read again");
    client(&second).get(&health).send().await.unwrap();
    assert!(client(&first).get(&health).send().await.is_err());

    let begun = Instant::now();
    served.signal("TERM");
    assert!(served.process.wait().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn what_is_wrong_with_the_tls_files_is_named() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let key = std::fs::read(folder.path().join("key.pem")).unwrap();
    certificate(folder.path());
    std::fs::write(folder.path().join("other.pem"), key).unwrap();
    for (cert, key, told) in [
        ("lost.pem", "key.pem", "tls.cert: lost.pem: No such file or directory"),
        ("cert.pem", "lost.pem", "tls.key: lost.pem: No such file or directory"),
        ("key.pem", "key.pem", "tls.cert: key.pem: there is no `-----BEGIN CERTIFICATE-----` in it"),
        ("cert.pem", "cert.pem", "tls.key: cert.pem: there is no `-----BEGIN PRIVATE KEY-----` in it"),
        ("cert.pem", "other.pem", "tls.key: other.pem does not belong to the certificate in cert.pem"),
    ] {
        let settings = format!("[tls]\ncert = \"{cert}\"\nkey = \"{key}\"\n");
        let output = serve(folder.path(), &settings).arg("--listen=127.0.0.1:0").output().unwrap();
        let (_, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(err.starts_with(&format!("error: {told}")), "{told}: {err}");
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_says_who_the_client_is() {
    for (trusted, seen) in [
        ("127.0.0.0/8", "client=203.0.113.7 scheme=\"https\""),
        ("10.0.0.0/8", "client=127.0.0.1 scheme=\"http\""),
    ] {
        let settings = format!("trusted_proxies = [\"{trusted}\"]\n");
        let served = Served::start(tempfile::tempdir().unwrap(), &settings);
        let request = reqwest::Client::new()
            .get(format!("{}/healthz", served.url.replace("localhost", "127.0.0.1")))
            .header("x-forwarded-for", "198.51.100.1, 203.0.113.7")
            .header("x-forwarded-proto", "https");
        assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
        served.log_until("answered");
        assert!(served.log().contains(seen), "{seen} in {}", served.log());
    }
}

#[test]
fn a_first_start_that_cannot_be_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = serve(folder.path(), "").arg(format!("--listen={address}")).output().unwrap();
    let (_, err) = texts(&output);
    assert!(err.contains(&format!("error: cannot listen on {address}: Address already in use")), "{err}");
    assert!(err.contains("--listen"), "{err}");

    let world = World::empty();
    let err = world.fails("serve --data data", 1);
    for way in ["public_url is not set", "--public-url", "CASEMATE_PUBLIC_URL"] {
        assert!(err.contains(way), "{way}: {err}");
    }
    world.file("file", "");
    let err = world.fails("serve --data file/data --public-url http://localhost", 1);
    assert!(err.contains("error: cannot use the data folder file/data: "), "{err}");
    let everywhere = format!("0.0.0.0:{}", address.port());
    let err =
        world.fails(&format!("serve --data data --public-url http://localhost --listen {everywhere}"), 1);
    assert!(err.contains("WARNING: ") && err.contains("tls.cert"), "{err}");
}

#[test]
fn a_mistyped_data_folder_is_not_made_or_noticed() {
    let world = World::empty();
    let err = world.fails("migrate --data lost", 1);
    assert_eq!(err, "error: there is no store in lost\n");
    assert!(!world.path().join("lost").exists());
    let made = world.run("keys create --data data --workspace main");
    assert!(texts(&made).1.contains("Made a new store in data.\n"), "{made:?}");
    let made = world.run("keys create --data data --workspace main");
    assert!(!texts(&made).1.contains("new store"), "{made:?}");
    assert_eq!(world.ok("migrate --data data"), "The store in data is up to date.\n");
}
