//! A hypervisor and the guest in it, played by the test program in a process of its own: it opens the sockets that QEMU would,
//! reads the boot configuration and does what it says. The server's own tests have it as well, so what it takes from the program
//! is in `parts`.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use casemate_types::compose::ComposeDoc;
use casemate_types::guest::{
    Answer, Ask, BootConfig, Container, Evidence, Line, Lines, Phase, Question, Reply, Report, Stats,
};
use casemate_types::ids::ComposeHash;
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::parts::{AGENT, BOOT, Clock, QMP, SERIAL, sha256};

/// User config of a guest that does not come up.
pub(super) const FAILS: &str = "fake: fails";
/// User config of a guest that does not go down.
pub(super) const HANGS: &str = "fake: hangs";
/// User config of a guest that goes down as soon as it is up.
pub(super) const CRASHES: &str = "fake: crashes";
/// User config of a guest that goes down long after it was asked to.
pub(super) const SLOW: &str = "fake: slow";
/// User config for which the hypervisor stands still before it answers.
pub(super) const FREEZES: &str = "fake: freezes";
/// User config of a guest that takes a while to come up.
pub(super) const TAKES_ITS_TIME: &str = "fake: takes its time";
/// User config for which the hypervisor itself does not start.
pub(super) const ENDS: &str = "fake: ends";

/// File in the machine's folder for which the guest says nothing.
pub(super) const MUTE: &str = "mute";

/// File in the node's folder by which one machine does not get its ports. It goes with that.
pub(super) const NO_PORT: &str = "no-port";

/// How long a boot takes.
const BOOT_TIME: Duration = Duration::from_millis(30);

struct Guest {
    config: BootConfig,
    phase: Mutex<Phase>,
    keys: Mutex<Option<String>>,
    clock: Clock,
}

#[tokio::test]
#[ignore = "it is no test, and plays a machine for those that are"]
async fn play() {
    // Only what `spawn` starts has it.
    if std::env::vars().all(|(name, _)| name != "FAKE_QEMU") {
        return;
    }
    let config: BootConfig = serde_json::from_slice(&std::fs::read(BOOT).unwrap()).unwrap();
    let behaviour = config.user_config.clone().unwrap_or_default();
    if behaviour == ENDS {
        eprintln!("fake: this machine cannot be made");
        std::process::exit(1);
    }
    if std::fs::remove_file(Path::new("..").join(NO_PORT)).is_ok() {
        eprintln!("fake: Could not set up host forwarding rule 'tcp:127.0.0.1:20000-:80'");
        std::process::exit(1);
    }
    if behaviour == FREEZES {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP).unwrap();
    }
    // The real one would not do without.
    assert!(Path::new("data.img").is_file());
    let guest = Arc::new(Guest {
        phase: Mutex::new(Phase::Booting("starting the OS image".into())),
        keys: Mutex::new(None),
        clock: Clock::system(),
        config,
    });
    let (qmp, agent) = (UnixListener::bind(QMP).unwrap(), UnixListener::bind(AGENT).unwrap());
    let serial = std::fs::OpenOptions::new().append(true).open(SERIAL).unwrap();
    std::io::Write::write_all(&mut &serial, b"[    0.010000] kernel\n[    0.020000] agent\n").unwrap();
    tokio::join!(guest.boot(&behaviour), guest.control(qmp), guest.talk(agent));
}

impl Guest {
    fn phase(&self) -> Phase {
        self.phase.lock().unwrap().clone()
    }

    fn enter(&self, phase: Phase) {
        *self.phase.lock().unwrap() = phase;
    }

    async fn boot(&self, behaviour: &str) {
        self.clock.sleep(if behaviour == TAKES_ITS_TIME { 10 * BOOT_TIME } else { BOOT_TIME }).await;
        if self.config.sealed_env.is_some() {
            self.enter(Phase::WaitsForKeys);
            while self.keys.lock().unwrap().is_none() {
                self.clock.sleep(Duration::from_millis(5)).await;
            }
        }
        self.enter(if behaviour == FAILS {
            Phase::Failed("fake: it was told to".into())
        } else {
            Phase::Done
        });
        if behaviour == CRASHES {
            std::process::exit(3);
        }
    }

    /// The guest goes down, unless it does not.
    async fn go_down(&self) {
        match self.config.user_config.as_deref() {
            Some(HANGS) => return,
            Some(SLOW) => self.clock.sleep(10 * BOOT_TIME).await,
            _ => {}
        }
        self.enter(Phase::Stopping);
        self.clock.sleep(Duration::from_millis(20)).await;
        std::process::exit(0);
    }

    async fn control(&self, listener: UnixListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            let mut say = async |text: &str| write.write_all(format!("{text}\n").as_bytes()).await.is_ok();
            say(r#"{"QMP": {"version": {}, "capabilities": []}}"#).await;
            while let Ok(Some(line)) = lines.next_line().await {
                say(r#"{"event": "NOTHING"}"#).await;
                say(r#"{"return": {}}"#).await;
                if line.contains("system_powerdown") {
                    self.go_down().await;
                }
            }
        }
    }

    async fn talk(&self, listener: UnixListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            while let Ok(question) = receive(&mut stream).await {
                while Path::new(MUTE).exists() {
                    self.clock.sleep(Duration::from_millis(5)).await;
                }
                let power_off = question.ask == Ask::PowerOff;
                let text =
                    serde_json::to_vec(&Answer { id: question.id, reply: self.reply(question.ask) }).unwrap();
                let length = u32::try_from(text.len()).unwrap().to_be_bytes();
                let _ = stream.write_all(&[length.as_slice(), &text].concat()).await;
                if power_off {
                    self.go_down().await;
                }
            }
        }
    }

    fn reply(&self, ask: Ask) -> Reply {
        match ask {
            Ask::Status => Reply::Status(Box::new(self.report())),
            Ask::Keys { env_secret } if env_secret == hex::encode([5; 32]) => {
                *self.keys.lock().unwrap() = Some(env_secret);
                Reply::Done
            }
            Ask::Keys { .. } => Reply::Error("these are not the keys".into()),
            Ask::Stats => Reply::Stats(Stats::default()),
            Ask::Logs { service, from, limit } => {
                let text = |number: u64| format!("{service}: line {number} of boot {}", self.config.boot);
                let line = |number| Line { at: Timestamp::UNIX_EPOCH, stderr: false, text: text(number) };
                let last = (from + limit as u64).min(7);
                Reply::Logs(Lines { lines: (from..last).map(line).collect(), next: last.max(from) })
            }
            Ask::Evidence => Reply::Evidence(Box::new(Evidence {
                events: vec![],
                rtmr3: String::new(),
                app_compose: self.config.compose.clone(),
            })),
            Ask::PowerOff => Reply::Done,
        }
    }

    fn report(&self) -> Report {
        let config = &self.config;
        let document = ComposeDoc::parse(&config.compose).unwrap();
        let sealed = config.sealed_env.as_ref().map(|text| hex::decode(text).unwrap());
        let hash = |bytes: &[u8]| hex::encode(sha256(bytes));
        let mut env_keys: Vec<String> = match (&sealed, self.keys.lock().unwrap().is_some()) {
            (Some(sealed), true) => String::from_utf8_lossy(sealed)
                .split(',')
                .filter_map(|var| Some(var.split_once('=')?.0.to_owned()))
                .filter(|name| document.allowed_envs().contains(&name.as_str()))
                .collect(),
            _ => Vec::new(),
        };
        env_keys.sort();
        let container = |image: &casemate_types::guest::ImageRef| Container {
            service: "web".into(),
            image: image.reference.clone(),
            digest: image.digest.clone(),
            running: true,
            exit_code: None,
            restarts: 0,
            started_at: None,
        };
        Report {
            boot: config.boot,
            phase: self.phase(),
            compose_hash: ComposeHash::from(sha256(config.compose.as_bytes())),
            instance_id: config.instance_id,
            user_config_sha256: config.user_config.as_ref().map(|text| hash(text.as_bytes())),
            sealed_env_sha256: sealed.as_deref().map(hash),
            env_keys,
            containers: config.images.iter().map(container).collect(),
        }
    }
}

async fn receive(stream: &mut UnixStream) -> std::io::Result<Question> {
    let mut frame = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut frame).await?;
    Ok(serde_json::from_slice(&frame)?)
}
