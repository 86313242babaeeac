//! Turning a machine on.

use std::sync::Arc;
use std::time::Duration;

use casemate_types::guest::BootConfig;
use casemate_types::ids::VmUuid;
use tokio::sync::OwnedSemaphorePermit;

use super::config::Accelerator;
use super::process::Process;
use super::record::{Held, On, Ready};
use super::slot::{Slot, lost};
use super::{Host, calls, command, console, disk, files, ports, process, qmp, stage, watch};
use crate::driver::{Error, Result};

/// What QEMU says when somebody has taken a port since it was found free.
const PORT_TAKEN: &str = "Could not set up host forwarding rule";
/// How often that may happen to one boot.
const PORT_TRIES: u32 = 5;

/// Leave to boot a machine.
pub(super) async fn permit(host: &Host) -> OwnedSemaphorePermit {
    Arc::clone(&host.boots).acquire_owned().await.expect("nobody closes it")
}

/// Starts the machine's process, in the machine's turn. The permit is given back when the guest is up, or does not come up.
///
/// # Errors
/// `Refused` if something that it needs has gone; `BootFailed` if QEMU does not take it. It is off then.
pub(super) async fn boot(
    host: &Arc<Host>,
    slot: &Arc<Slot>,
    accelerator: Accelerator,
    permit: OwnedSemaphorePermit,
) -> Result<()> {
    let Some(held) = slot.held() else { return Ok(()) };
    {
        let mut state = slot.lock();
        (state.failed, state.halted) = (None, None);
    }
    let (boot, mut tries) = (held.boot_count + 1, 0);
    let booted = loop {
        let booted = match files_for(host, slot, &held, accelerator).await {
            Ok(arguments) => spawn(host, slot, boot, &arguments).await,
            Err(error) => Err(error),
        };
        match booted {
            Err(Error::BootFailed(why)) if why.contains(PORT_TAKEN) && tries < PORT_TRIES => tries += 1,
            other => break other,
        }
    };
    match booted {
        Ok(process) => {
            watch::begin(host, slot, boot, process, Some(permit));
            Ok(())
        }
        Err(error) => {
            let (now, text) = (host.clock.now(), error.to_string());
            slot.happened(|held| held.went_down(now));
            slot.lock().failed = Some(text);
            Err(error)
        }
    }
}

/// Makes the files that QEMU reads, and the command line that names them.
async fn files_for(
    host: &Arc<Host>,
    slot: &Slot,
    held: &Held,
    accelerator: Accelerator,
) -> Result<Vec<String>> {
    let ready = &held.now;
    let spec = &ready.machine.spec;
    let image = host.os_images.get(&spec.image).map_err(Error::Refused)?;
    if image.facts.os_image_hash != ready.os_image_hash {
        let (is, was) = (&image.facts.os_image_hash, &ready.os_image_hash);
        return Err(Error::Refused(format!(
            "image `{}` has hash {is} now, and {was} was staged",
            spec.image
        )));
    }
    if !disk::is_there(&slot.folder) {
        return Err(Error::Refused(disk::GONE.into()));
    }
    stage::restore(host, slot, ready).await?;
    // Somebody may have taken one since it was last on.
    let ports = {
        let _room = host.room.lock().await;
        let taken = calls::taken_ports(host, slot);
        let ports =
            ports::place(&ready.ports, &held.ports, &taken, &host.config.ports).map_err(Error::Refused)?;
        slot.change(|record| record.held.iter_mut().for_each(|held| held.ports.clone_from(&ports)))?;
        ports
    };
    let config = boot_config(slot.vm, held.boot_count + 1, ready);
    let bytes = serde_json::to_vec(&config).expect("text as keys, and nothing that can fail");
    files::replace(&slot.folder, command::BOOT, &bytes).map_err(lost)?;
    slot.agent.hang_up().await;
    for file in [command::QMP, command::AGENT] {
        // A socket of the process before is in the way of the new one.
        let _ = std::fs::remove_file(slot.folder.join(file));
    }
    let text = format!("boot {} of {}, image {}, {}", config.boot, slot.vm, spec.image, accelerator.as_str());
    for file in [command::SERIAL, process::ERRORS, process::OUTPUT] {
        console::bound(&slot.folder, file)
            .and_then(|()| console::mark(&slot.folder, file, host.clock.now(), &text))
            .map_err(lost)?;
    }
    let arguments = command::arguments(&command::Boot {
        vm: slot.vm,
        accelerator,
        vcpu: spec.vcpu,
        memory_mb: spec.memory_mb,
        kernel: image.kernel,
        initrd: image.initrd,
        kernel_line: image.kernel_line,
        images: ready.disks(),
        ports,
    });
    Ok(arguments)
}

fn boot_config(vm: VmUuid, boot: u64, ready: &Ready) -> BootConfig {
    let machine = &ready.machine;
    let spec = &machine.spec;
    BootConfig {
        vm,
        boot,
        name: machine.name.clone(),
        app_id: machine.app_id,
        instance_id: machine.instance_id,
        compose_hash: spec.compose.hash,
        compose: spec.compose.text.to_string(),
        sealed_env: spec.sealed_env.as_ref().map(|sealed| hex::encode(&**sealed)),
        user_config: spec.user_config.as_ref().map(|text| text.to_string()),
        os_image_hash: ready.os_image_hash.clone(),
        images: ready.images.clone(),
    }
}

/// Starts the process of this boot, and waits until it answers.
async fn spawn(host: &Host, slot: &Slot, boot: u64, arguments: &[String]) -> Result<Process> {
    let now = host.clock.now();
    // Written before the process is there: whoever finds no process in it looks for one in the folder.
    slot.change(|record| {
        if let Some(held) = &mut record.held {
            held.boot_count = boot;
            held.meant_on = true;
            held.on = Some(On { process: None, going_down: None });
            held.started_at = Some(now);
            held.done_at = None;
        }
    })?;
    let process = Process::spawn(&host.config.program, arguments, &slot.folder)
        .map_err(|error| Error::BootFailed(format!("QEMU cannot be started: {error}")))?;
    let known = process.clone();
    let kept = slot.change(|record| {
        if let Some(on) = record.held.as_mut().and_then(|held| held.on.as_mut()) {
            on.process = Some(known);
        }
    });
    if let Err(error) = kept {
        // Nobody would know it.
        let _ = process.kill();
        process.ended().await;
        return Err(error);
    }
    let deadline = now + host.config.pace.answers;
    loop {
        if !process.is_alive() {
            let words = console::last_words(&slot.folder, process::ERRORS);
            return Err(Error::BootFailed(format!("QEMU ended at once: {words}")));
        }
        match qmp::execute(&host.clock, &slot.folder, "query-status").await {
            Ok(_) => return Ok(process),
            Err(_) if host.clock.now() < deadline => host.clock.sleep(Duration::from_millis(20)).await,
            Err(error) => {
                let _ = process.kill();
                process.ended().await;
                return Err(Error::BootFailed(format!("QEMU does not answer: {error}")));
            }
        }
    }
}
