//! Which accelerator machines get.
//!
//! `/dev/kvm` that opens is no proof: inside some virtual machines it does, and no ordinary kernel comes up with it. So once for
//! each start of the host a machine is booted with it that has nothing to do but to answer.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use casemate_types::guest::{Ask, BootConfig};
use casemate_types::ids::{AppId, ComposeHash, InstanceId, VmUuid};
use serde::{Deserialize, Serialize};

use super::agent::Agent;
use super::config::{Accel, Accelerator, QemuConfig};
use super::os_images::OsImage;
use super::process::{self, Process};
use super::{Host, calls, command, files};

/// How long the machine may take to answer. With KVM that works it takes a second.
const CANARY: Duration = Duration::from_secs(10);
/// Name of the file that remembers.
const FILE: &str = "kvm.json";

/// What was found out.
#[derive(Default)]
pub(super) struct Accelerators {
    found: Mutex<Option<Accelerator>>,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    host_boot: String,
    works: bool,
}

impl Accelerators {
    /// What is used, if that is clear already.
    pub(super) fn decided(&self, config: &QemuConfig) -> Option<Accelerator> {
        match config.accel {
            Accel::Kvm => Some(Accelerator::Kvm),
            Accel::Tcg => Some(Accelerator::Tcg),
            Accel::Auto => *self.found.lock().expect("nothing panics while holding it"),
        }
    }
}

/// What is used. Waits for the answer, if it is being found out.
pub(super) async fn decide(host: &Host) -> Accelerator {
    if let Some(accelerator) = host.accel.decided(&host.config) {
        return accelerator;
    }
    let _turn = host.accel.turn.lock().await;
    if let Some(accelerator) = host.accel.decided(&host.config) {
        return accelerator;
    }
    let works = match (is_there(), remembered(host)) {
        (false, _) => Some(false),
        (true, Some(works)) => Some(works),
        (true, None) => match host.os_images.list().pop() {
            Some(image) => {
                let outcome = canary(host, &image, Accelerator::Kvm, CANARY).await;
                if let Err(error) = &outcome {
                    tracing::warn!(error, "machines are emulated: none comes up with KVM");
                }
                remember(host, outcome.is_ok());
                Some(outcome.is_ok())
            }
            // Nothing to try it with, and nothing to boot.
            None => None,
        },
    };
    let accelerator = if works == Some(true) { Accelerator::Kvm } else { Accelerator::Tcg };
    if works.is_some() {
        *host.accel.found.lock().expect("nothing panics while holding it") = Some(accelerator);
    }
    accelerator
}

/// Could KVM work at all?
fn is_there() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = flags.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
        && std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

fn remembered(host: &Host) -> Option<bool> {
    let bytes = std::fs::read(host.config.folder.join(FILE)).ok()?;
    let Remembered { host_boot, works } = serde_json::from_slice(&bytes).ok()?;
    (host_boot == process::host_boot().ok()?).then_some(works)
}

fn remember(host: &Host, works: bool) {
    let kept = process::host_boot().and_then(|host_boot| {
        let bytes = serde_json::to_vec(&Remembered { host_boot, works })?;
        files::replace(&host.config.folder, FILE, &bytes)
    });
    if let Err(error) = kept {
        tracing::warn!(%error, "it cannot be remembered whether KVM works");
    }
}

fn folder(host: &Host) -> PathBuf {
    host.config.folder.join("canary")
}

/// Ends what an earlier canary may have left.
pub(super) fn clean_up(host: &Host) {
    let folder = folder(host);
    if !folder.exists() {
        return;
    }
    if let Some(process) = Process::in_folder(&folder) {
        let _ = process.kill();
    }
    if let Err(error) = calls::delete(&folder) {
        tracing::warn!(%error, "{} stays", folder.display());
    }
}

/// Boots a machine until its agent answers.
pub(super) async fn canary(
    host: &Host,
    image: &OsImage,
    accelerator: Accelerator,
    limit: Duration,
) -> Result<(), String> {
    let folder = folder(host);
    let prepared =
        prepare(host, image, accelerator).map_err(|error| format!("{}: {error}", folder.display()))?;
    let process =
        Process::spawn(&host.config.program, &prepared, &folder).map_err(|error| error.to_string())?;
    // Also if the node is closed meanwhile.
    let _ends = Ends(process.clone());
    let agent = Agent::new(folder);
    let answers = async {
        loop {
            if agent.ask(&host.clock, Ask::Status, limit).await.is_ok() {
                return Ok(());
            }
            host.clock.sleep(Duration::from_millis(100)).await;
        }
    };
    let outcome = tokio::select! {
        answer = host.clock.within(limit, answers) => {
            answer.unwrap_or_else(|| Err(format!("no answer within {} s", limit.as_secs())))
        }
        () = process.ended() => Err("QEMU ended by itself".to_owned()),
    };
    let _ = process.kill();
    process.ended().await;
    clean_up(host);
    outcome
}

/// A process that ends with this.
struct Ends(Process);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn prepare(host: &Host, image: &OsImage, accelerator: Accelerator) -> std::io::Result<Vec<String>> {
    let folder = folder(host);
    calls::delete(&folder)?;
    files::make_private(&folder)?;
    let config = BootConfig {
        vm: VmUuid(uuid::Uuid::nil()),
        boot: 1,
        name: "canary".into(),
        app_id: AppId([0; 20]),
        instance_id: InstanceId([0; 20]),
        compose_hash: ComposeHash::from([0; 32]),
        compose: "{}".into(),
        sealed_env: None,
        user_config: None,
        os_image_hash: image.facts.os_image_hash.clone(),
        images: Vec::new(),
    };
    files::replace(&folder, command::BOOT, &serde_json::to_vec(&config)?)?;
    files::create(&folder.join(command::DATA))?.set_len(1 << 20)?;
    Ok(command::arguments(&command::Boot {
        vm: config.vm,
        accelerator,
        vcpu: 1,
        memory_mb: 512,
        kernel: image.kernel.clone(),
        initrd: image.initrd.clone(),
        kernel_line: image.kernel_line.clone(),
        images: Vec::new(),
        ports: Vec::new(),
    }))
}
