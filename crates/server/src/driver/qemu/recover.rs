//! What a node finds when it is opened: machines that went on running, or down, or that were half removed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use casemate_types::ids::VmUuid;

use super::process::{self, AtWork, Process};
use super::slot::{Slot, TRASH};
use super::{Host, accel, calls, watch};

/// How long a process may take to end.
const ENDS: Duration = Duration::from_secs(10);

/// Takes over everything in the node's folder, and ends what works there for nobody.
///
/// # Errors
/// The folder cannot be read, or what is of no use cannot be removed.
pub(super) fn all(host: &Arc<Host>) -> std::io::Result<()> {
    let mut at_work = process::below(&host.config.folder);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&host.config.folder)?.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let (vm, is_trash) = match name.strip_suffix(TRASH).and_then(|name| name.strip_suffix('.')) {
            Some(vm) => (vm, true),
            None => (name.as_str(), false),
        };
        let Ok(vm) = vm.parse().map(VmUuid) else { continue };
        // Only the spelling that we write: another one would be a second folder of the same machine.
        let ours = [vm.to_string(), format!("{vm}.{TRASH}")].contains(&name);
        if !ours || !entry.file_type()?.is_dir() {
            continue;
        }
        if is_trash {
            end_all(&mut at_work, &entry.path());
            calls::delete(&entry.path())?;
            continue;
        }
        let gone = host.gone().get(vm);
        let slot = Slot::open(&host.config.folder, vm, gone);
        // Who removes a machine moves its folder away as a whole, so one whose record cannot be read is none that was removed.
        if let Some(gone) = gone
            && !slot.is_broken()
            && slot.lock().record.fence.generation <= gone
        {
            end_all(&mut at_work, &slot.folder);
            calls::delete(&slot.removed(gone)?)?;
        }
        found.insert(vm, Arc::new(slot));
    }
    *host.slots() = found;
    for slot in host.all() {
        one(host, &slot, &mut at_work);
    }
    end_all(&mut at_work, &host.config.folder);
    accel::clean_up(host);
    Ok(())
}

fn one(host: &Arc<Host>, slot: &Arc<Slot>, at_work: &mut Vec<AtWork>) {
    let mut machine = take(at_work, |one| one.is_machine && one.folder == slot.folder);
    end_all(at_work, &slot.folder);
    if slot.is_broken() {
        // It goes on as it is, and whoever mends its record or removes it decides.
        return;
    }
    let files = std::fs::read_dir(&slot.folder).into_iter().flatten().flatten();
    for name in files.filter_map(|file| file.file_name().into_string().ok()) {
        if name.ends_with(".half") || name.ends_with(".new") {
            let _ = std::fs::remove_file(slot.folder.join(name));
        }
    }
    calls::tidy(slot);
    let held = slot.held();
    let boot = held.as_ref().map_or(0, |held| held.boot_count);
    let on = held.as_ref().and_then(|held| held.on.clone());
    let process = match on.clone().and_then(|on| on.process) {
        Some(named) => {
            machine = machine.filter(|machine| *machine != named);
            Some(named).filter(Process::is_alive)
        }
        None if on.is_some() => machine.take(),
        None => None,
    };
    if let Some(machine) = machine {
        // Ours, and not meant to be there.
        end(&machine, &slot.folder);
    }
    match process {
        Some(process) => {
            tracing::info!(vm = %slot.vm, pid = process.pid(), "a machine has gone on running");
            slot.happened(|held| held.on.iter_mut().for_each(|on| on.process = Some(process.clone())));
            watch::begin(host, slot, boot, process, None);
        }
        None => {
            let now = host.clock.now();
            slot.happened(|held| held.went_down(now));
            let (watching, slot) = (Arc::clone(host), Arc::clone(slot));
            // Also one that went down before, and was to be turned on again later.
            host.spawn(async move { watch::after_the_end(&watching, &slot, boot).await });
        }
    }
}

fn take(at_work: &mut Vec<AtWork>, is_it: impl Fn(&AtWork) -> bool) -> Option<Process> {
    let position = at_work.iter().position(is_it)?;
    Some(at_work.swap_remove(position).process)
}

/// Ends what works in a folder or below.
fn end_all(at_work: &mut Vec<AtWork>, folder: &Path) {
    for one in at_work.extract_if(.., |one| one.folder.starts_with(folder)) {
        end(&one.process, &one.folder);
    }
}

fn end(process: &Process, folder: &Path) {
    tracing::warn!(folder = %folder.display(), pid = process.pid(), "a process that works for nobody is ended");
    if let Err(error) = process.end(ENDS) {
        tracing::error!(%error, pid = process.pid(), "a process cannot be ended");
    }
}
