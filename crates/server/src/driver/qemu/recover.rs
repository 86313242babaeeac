//! What a node finds when it is opened: machines that went on running, or down, or that were half removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use casemate_types::ids::VmUuid;

use super::process::Process;
use super::slot::Slot;
use super::{Host, accel, calls, watch};

/// Takes over everything in the node's folder.
pub(super) fn all(host: &Arc<Host>) -> std::io::Result<()> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&host.config.folder)?.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Ok(vm) = name.parse().map(VmUuid) else { continue };
        // Only the spelling that we write: another one would be a second folder of the same machine.
        if vm.to_string() == name && entry.file_type()?.is_dir() {
            let gone = host.gone().get(vm);
            let slot = Slot::open(&host.config.folder, vm, gone);
            if gone.is_some_and(|gone| slot.lock().record.fence.generation <= gone) {
                end(&slot);
                calls::delete(&slot.folder)?;
                slot.removed(gone.unwrap_or_default());
            }
            found.insert(vm, Arc::new(slot));
        }
    }
    *host.slots() = found;
    host.all().iter().for_each(|slot| one(host, slot));
    accel::clean_up(host);
    Ok(())
}

fn one(host: &Arc<Host>, slot: &Arc<Slot>) {
    let files = std::fs::read_dir(&slot.folder).into_iter().flatten().flatten();
    for name in files.filter_map(|file| file.file_name().into_string().ok()) {
        if name.ends_with(".half") || name.ends_with(".new") {
            let _ = std::fs::remove_file(slot.folder.join(name));
        }
    }
    let Some(held) = slot.held() else { return };
    let boot = held.boot_count;
    let turn_on = || {
        let (watching, slot) = (Arc::clone(host), Arc::clone(slot));
        host.spawn(async move { watch::after_the_end(&watching, &slot, boot).await });
    };
    let Some(on) = held.on else {
        // Ours, and not meant to be there.
        end(slot);
        if held.meant_on {
            turn_on();
        }
        return;
    };
    let process = on.process.or_else(|| Process::in_folder(&slot.folder)).filter(Process::is_alive);
    match process {
        Some(process) => {
            tracing::info!(vm = %slot.vm, pid = process.pid(), "a machine has gone on running");
            slot.happened(|held| held.on.iter_mut().for_each(|on| on.process = Some(process.clone())));
            watch::begin(host, slot, boot, process, None);
        }
        None => {
            let now = host.clock.now();
            slot.happened(|held| held.went_down(now));
            turn_on();
        }
    }
}

/// Ends a process that works in the folder of a machine that is off.
fn end(slot: &Slot) {
    if let Some(process) = Process::in_folder(&slot.folder) {
        tracing::warn!(vm = %slot.vm, pid = process.pid(), "a process of a machine that is off is ended");
        if let Err(error) = process.kill() {
            tracing::error!(%error, pid = process.pid(), "a process cannot be ended");
        }
    }
}
