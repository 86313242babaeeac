//! The boot, step by step, and what is known about it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use casemate_types::compose::{ComposeDoc, ServiceSpec, start_order};
use casemate_types::env::{EnvVar, decode_blob};
use casemate_types::guest::{BOOT_CONFIG, BootConfig, Container, DATA_DISK, Evidence, Phase, Report};
use casemate_types::ids::ComposeHash;
use rustix::process::Pid;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::image::Image;
use crate::logs::Log;
use crate::measure::{EventLog, init_scripts};
use crate::supervise::Service;
use crate::{
    Doing, Result, bundle, channel, clock, disk, environment, forward, init, network, power, say, scratch,
    supervise,
};

const LOGS: &str = "/data/logs";
/// What lasts no longer than a boot.
const RUN: &str = "/data/run";

/// The machine, as everybody in it sees it.
pub(crate) struct Machine {
    config: BootConfig,
    /// Of the text that is there, whatever was expected.
    compose_hash: ComposeHash,
    known: Mutex<Known>,
    changed: Condvar,
}

struct Known {
    phase: Phase,
    env_keys: Vec<String>,
    containers: Vec<Container>,
    /// The process of each container, and the signal that stops it.
    processes: Vec<Option<(Pid, String)>>,
    signals: Vec<String>,
    logs: HashMap<String, Arc<Log>>,
    events: EventLog,
    secret: Option<Zeroizing<[u8; 32]>>,
    stopping: bool,
}

pub(crate) fn main() -> ! {
    // Whoever is left without an agent is left without a machine: the driver sees that, and no half-dead guest stays.
    std::panic::set_hook(Box::new(|panic| {
        say!("the agent panicked: {panic}");
        std::process::exit(101);
    }));
    // Containers are to be ended before the agent when memory runs out.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let machine = match read_config() {
        Ok(config) => Arc::new(Machine::new(config)),
        Err(error) => {
            say!("{error}");
            init::power_off()
        }
    };
    say!("boot {} of {}", machine.config.boot, machine.config.name);
    match channel::open() {
        Ok(port) => {
            let machine = machine.clone();
            thread::spawn(move || channel::serve(&machine, &port));
        }
        Err(error) => {
            say!("{error}");
            init::power_off()
        }
    }
    power::watch_button(&machine);
    let began = clock::instant();
    match boot(&machine) {
        Ok(()) => {
            say!("done after {} ms", began.elapsed().as_millis());
            machine.reach(Phase::Done);
        }
        Err(error) => {
            say!("boot failed: {error}");
            machine.reach(Phase::Failed(error));
        }
    }
    loop {
        thread::park();
    }
}

fn read_config() -> Result<BootConfig> {
    let path = format!("/sys/firmware/qemu_fw_cfg/by_name/{BOOT_CONFIG}/raw");
    let text = fs::read(&path).doing("cannot read the boot configuration")?;
    serde_json::from_slice(&text).doing("the boot configuration is not what it should be")
}

fn boot(machine: &Arc<Machine>) -> Result<()> {
    let config = &machine.config;
    machine.progress("checking the compose file");
    if machine.compose_hash != config.compose_hash {
        return Err(format!(
            "the compose text hashes to {}, and {} was expected",
            machine.compose_hash, config.compose_hash
        ));
    }
    let document = ComposeDoc::parse(&config.compose).map_err(|error| error.message)?;
    let services = document.runnable().map_err(|error| error.message)?;
    machine.list(&services);
    machine.know().events.identity(config, &document);

    let name: String =
        config.name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(63).collect();
    rustix::system::sethostname(name.as_bytes()).doing("cannot set the host name")?;
    network::machine()?;
    network::containers(&services)?;
    machine.progress("mounting the data disk");
    disk::mount_data(&disk::by_serial(DATA_DISK)?)?;
    // From now on what earlier boots wrote can be read, whatever becomes of this one.
    for service in &services {
        let log = Log::open(&Path::new(LOGS).join(&service.name));
        let log = log.doing(format_args!("cannot open the log of `{}`", service.name))?;
        machine.know().logs.insert(service.name.clone(), Arc::new(log));
    }

    let vars = match &config.sealed_env {
        Some(sealed) => open_env(machine, sealed, &document)?,
        None => Vec::new(),
    };
    machine.know().events.system(config, &document);
    let env: Vec<(String, String)> = vars.iter().map(|var| (var.key.clone(), var.value.clone())).collect();
    if let Some(text) = &config.user_config {
        fs::write(bundle::USER_CONFIG, text).doing("cannot write the user config")?;
    }
    for script in init_scripts(&document) {
        machine.progress("running the init script");
        supervise::script("init script", script, &env)?;
    }
    if let Some(script) = document.pre_launch_script().filter(|script| !script.is_empty()) {
        machine.progress("running the pre-launch script");
        supervise::script("pre-launch script", script, &env)?;
    }
    run(machine, &services, &env)
}

fn open_env(machine: &Machine, sealed: &str, document: &ComposeDoc) -> Result<Vec<EnvVar>> {
    let sealed = decode_blob(sealed).map_err(|error| format!("the sealed environment: {error}"))?;
    say!("waiting for keys");
    let secret = machine.wait_for_secret();
    machine.progress("opening the environment");
    let vars = environment::open(&sealed, &secret, &document.allowed_envs())?;
    let mut keys: Vec<String> = vars.iter().map(|var| var.key.clone()).collect();
    keys.sort_unstable();
    machine.know().env_keys = keys;
    Ok(vars)
}

/// Verifies the images and starts the containers.
fn run(machine: &Arc<Machine>, services: &[ServiceSpec], env: &[(String, String)]) -> Result<()> {
    let value_of = |name: &str| env.iter().find(|(there, _)| there == name).map(|(_, value)| value.clone());
    let own = machine.services();
    scratch::begin(Path::new(RUN), &own)?;
    let mut images: HashMap<&str, Image> = HashMap::new();
    for image in &machine.config.images {
        let is_used = services.iter().any(|service| service.image == image.reference);
        if !is_used || images.contains_key(image.digest.as_str()) {
            continue;
        }
        machine.progress(format!("verifying the image {}", image.reference));
        images.insert(&image.digest, Image::open(image)?);
    }
    for at in start_order(services) {
        let spec = services[at].with(&value_of).map_err(|error| error.message)?;
        let digest = machine.digest_of(&spec.image);
        let image = digest.and_then(|digest| images.get(digest)).ok_or_else(|| {
            format!("service `{}`: the machine was given no image `{}`", spec.name, spec.image)
        })?;
        machine.progress(format!("starting the service {}", spec.name));
        let bundle = bundle::make(&spec, image, &own)?;
        machine.know().signals[at] = bundle.stop_signal.clone();
        let log = machine.log(&spec.name).ok_or("a service without a log")?;
        for port in &spec.ports {
            forward::start(*port, network::address(at))?;
        }
        supervise::start(machine, Service { at, spec, bundle, log })?;
    }
    Ok(())
}

impl Machine {
    pub(crate) fn new(config: BootConfig) -> Self {
        let compose_hash = ComposeHash(Sha256::digest(&config.compose).into());
        let known = Known {
            phase: Phase::Booting("starting".to_owned()),
            env_keys: Vec::new(),
            containers: Vec::new(),
            processes: Vec::new(),
            signals: Vec::new(),
            logs: HashMap::new(),
            events: EventLog::new(),
            secret: None,
            stopping: false,
        };
        Self { config, compose_hash, known: Mutex::new(known), changed: Condvar::new() }
    }

    fn know(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("whoever panics ends the agent")
    }

    /// What the containers of this boot change in their roots: a folder that no earlier boot can have had.
    pub(crate) fn services(&self) -> PathBuf {
        Path::new(RUN).join(format!("boot-{}", self.config.boot))
    }

    /// What the driver is told.
    pub(crate) fn report(&self) -> Report {
        let known = self.know();
        let hash = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        Report {
            boot: self.config.boot,
            phase: if known.stopping { Phase::Stopping } else { known.phase.clone() },
            compose_hash: self.compose_hash,
            instance_id: self.config.instance_id,
            user_config_sha256: self.config.user_config.as_ref().map(|text| hash(text.as_bytes())),
            sealed_env_sha256: self
                .config
                .sealed_env
                .as_ref()
                .and_then(|sealed| decode_blob(sealed).ok())
                .map(|sealed| hash(&sealed)),
            env_keys: known.env_keys.clone(),
            containers: known.containers.clone(),
        }
    }

    pub(crate) fn evidence(&self) -> Evidence {
        Evidence { app_compose: self.config.compose.clone(), ..self.know().events.evidence() }
    }

    pub(crate) fn log(&self, service: &str) -> Option<Arc<Log>> {
        self.know().logs.get(service).cloned()
    }

    pub(crate) fn close_logs(&self) {
        for log in self.know().logs.values() {
            log.close();
        }
    }

    fn reach(&self, phase: Phase) {
        self.know().phase = phase;
        self.changed.notify_all();
    }

    fn progress(&self, what: impl Into<String>) {
        let what = what.into();
        say!("{what}");
        self.reach(Phase::Booting(what));
    }

    /// Takes the secret that the boot waits for.
    pub(crate) fn give_secret(&self, text: &Zeroizing<String>) -> Result<()> {
        let secret = environment::secret(text)?;
        let mut known = self.know();
        if known.phase != Phase::WaitsForKeys {
            return Err("the guest does not wait for keys".to_owned());
        }
        known.secret = Some(secret);
        known.phase = Phase::Booting("opening the environment".to_owned());
        self.changed.notify_all();
        Ok(())
    }

    fn wait_for_secret(&self) -> Zeroizing<[u8; 32]> {
        let mut known = self.know();
        known.phase = Phase::WaitsForKeys;
        loop {
            if let Some(secret) = known.secret.take() {
                return secret;
            }
            known = self.changed.wait(known).expect("whoever panics ends the agent");
        }
    }

    /// Everything that is to run, none of it running yet.
    fn list(&self, services: &[ServiceSpec]) {
        let mut known = self.know();
        known.containers = services
            .iter()
            .map(|service| Container {
                service: service.name.clone(),
                image: service.image.clone(),
                digest: self.digest_of(&service.image).unwrap_or_default().to_owned(),
                running: false,
                exit_code: None,
                restarts: 0,
                started_at: None,
            })
            .collect();
        known.processes = vec![None; services.len()];
        known.signals = vec![String::new(); services.len()];
    }

    fn digest_of(&self, reference: &str) -> Option<&str> {
        self.config
            .images
            .iter()
            .find(|image| image.reference == reference)
            .map(|image| image.digest.as_str())
    }

    /// A container's process is there, or was for a moment.
    pub(crate) fn started(&self, at: usize, pid: Option<Pid>) {
        let mut known = self.know();
        known.processes[at] = pid.map(|pid| (pid, known.signals[at].clone()));
        let container = &mut known.containers[at];
        container.running = pid.is_some();
        container.started_at = Some(clock::now());
    }

    pub(crate) fn ended(&self, at: usize, code: i32) {
        let mut known = self.know();
        known.processes[at] = None;
        known.containers[at].running = false;
        known.containers[at].exit_code = Some(code);
        self.changed.notify_all();
    }

    pub(crate) fn restarted(&self, at: usize) {
        self.know().containers[at].restarts += 1;
    }

    /// Processes of containers, and the signal that stops each.
    pub(crate) fn pids(&self) -> Vec<(Pid, String)> {
        self.know().processes.iter().flatten().cloned().collect()
    }

    /// False if the machine is on its way down already.
    pub(crate) fn begin_stop(&self) -> bool {
        let mut known = self.know();
        self.changed.notify_all();
        !std::mem::replace(&mut known.stopping, true)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.know().stopping
    }

    /// Waits; true as soon as the machine goes down.
    pub(crate) fn wait_for_stop(&self, at_most: Duration) -> bool {
        let known = self.know();
        let (known, _) = self
            .changed
            .wait_timeout_while(known, at_most, |known| !known.stopping)
            .expect("whoever panics ends the agent");
        known.stopping
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use casemate_types::guest::ImageRef;

    pub(crate) fn config(compose: &str) -> BootConfig {
        serde_json::from_value(serde_json::json!({
            "vm": "0198c1d2-0000-7000-8000-000000000001",
            "boot": 3,
            "name": "web-1",
            "app_id": "aa".repeat(20),
            "instance_id": "bb".repeat(20),
            "compose_hash": hex::encode(Sha256::digest(compose)),
            "compose": compose,
            "sealed_env": "00".repeat(60),
            "user_config": "text",
            "os_image_hash": "cc".repeat(32),
            "images": [ImageRef { reference: "web:1".to_owned(), digest: "sha256:dd".to_owned() }],
        }))
        .unwrap()
    }

    #[test]
    fn a_report_has_hashes_of_what_is_there() {
        let mut config = config("{}");
        config.compose = "{ }".to_owned();
        let report = Machine::new(config).report();
        assert_eq!(
            report.compose_hash.to_string(),
            hex::encode(Sha256::digest("{ }")),
            "not what was expected"
        );
        assert_eq!(report.user_config_sha256, Some(hex::encode(Sha256::digest("text"))));
        assert_eq!(report.sealed_env_sha256, Some(hex::encode(Sha256::digest([0; 60]))));
        assert_eq!(report.phase, Phase::Booting("starting".to_owned()));
    }

    #[test]
    fn a_secret_is_taken_only_when_it_is_waited_for() {
        let machine = Arc::new(Machine::new(config("{}")));
        let secret = Zeroizing::new("07".repeat(32));
        assert_eq!(machine.give_secret(&secret).unwrap_err(), "the guest does not wait for keys");
        let waiting = machine.clone();
        let waiting = thread::spawn(move || *waiting.wait_for_secret());
        while machine.report().phase != Phase::WaitsForKeys {
            thread::yield_now();
        }
        machine.give_secret(&secret).unwrap();
        assert_eq!(waiting.join().unwrap(), [7; 32]);
        assert!(machine.give_secret(&secret).is_err());
    }

    #[test]
    fn once_it_goes_down_it_says_so() {
        let machine = Machine::new(config("{}"));
        assert!(machine.begin_stop());
        assert!(!machine.begin_stop());
        machine.reach(Phase::Done);
        assert_eq!(machine.report().phase, Phase::Stopping);
        assert!(machine.wait_for_stop(Duration::from_secs(60)));
    }
}
