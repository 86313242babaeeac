//! The calls that change a machine. Each takes the machine's turn for as long as it changes something, asks the fence again
//! when it gets it, and gives it back while it waits for a guest: a newer operation overtakes it there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use casemate_types::guest::{Ask, ImageRef, Phase};

use super::record::Held;
use super::slot::{Slot, lost, refuse};
use super::staging::Progress;
use super::{Host, accel, boot, command, disk, files, logs, ports, process, qmp, record, stage};
use crate::driver::fence::{Entry, Stage};
use crate::driver::{AfterTimeout, At, Error, LastStop, Machine, Result, Stop, Stopped};

/// How often a waiting call looks.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// How long a guest that was asked to go down may show no sign of it before it is asked another way.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long a guest whose power is about to be cut may take to hand out what its services wrote.
const LAST_LINES: Duration = Duration::from_millis(300);
/// So many bytes have to be free before a machine is touched: logs, what its guest reads at its start, and a beginning of what it
/// writes.
const SPARE: u64 = 32 << 20;
/// How long a process may take to end after its power was cut.
const KILLED: Duration = Duration::from_secs(10);

/// Everything that can fail without touching the running machine. What its images mean.
pub(super) async fn stage(
    host: &Arc<Host>,
    slot: &Arc<Slot>,
    at: At,
    machine: &Machine,
) -> Result<Vec<ImageRef>> {
    {
        let _turn = slot.turn.lock().await;
        if enter(slot, at, Stage::Staged)? == Entry::Passed {
            return Ok(slot.images_of(machine.revision));
        }
    }
    has_room(host).await?;
    if slot.held().is_some_and(|held| held.disk_gb > 0) && !disk::is_there(&slot.folder) {
        return refuse(disk::GONE);
    }
    let mut machine = machine.clone();
    if let Some(held) = slot.held().filter(|held| held.now.meets(&machine)) {
        // What is in force needs nothing from outside: a registry that is away keeps nobody from a restart.
        if let Ok(disks) = stage::missing(host, slot, &held.now, &BTreeSet::new(), &Progress::default()).await
        {
            let _turn = slot.turn.lock().await;
            if enter(slot, at, Stage::Staged)? != Entry::Passed {
                stage::put(slot, disks).await?;
                slot.reach(Stage::Staged)?;
            }
            return Ok(slot.images_of(machine.revision));
        }
        // Unless it is damaged here, with all that it could be made of again.
        machine.images = held.now.images;
    }
    host.fits(slot, &machine.spec)?;
    // It may take long, and others are to get in meanwhile.
    let begin = |progress| {
        let (host, slot, machine) = (Arc::clone(host), Arc::clone(slot), machine.clone());
        async move { prepare(&host, &slot, at, &machine, &progress).await }
    };
    slot.staging.join(&host.clock, host.config.pace.stage, at, &machine, begin).await
}

/// The part of a stage that may take long.
async fn prepare(
    host: &Arc<Host>,
    slot: &Slot,
    at: At,
    machine: &Machine,
    progress: &Progress,
) -> Result<Vec<ImageRef>> {
    let prepared = stage::prepare(host, slot, machine, progress).await?;
    let _turn = slot.turn.lock().await;
    if enter(slot, at, Stage::Staged)? != Entry::Passed {
        let (ready, _using) = prepared.keep(slot).await?;
        slot.change(|record| {
            record.staged = Some(ready);
            record.fence.reach(Stage::Staged);
        })?;
        tidy(slot);
    }
    Ok(slot.images_of(machine.revision))
}

/// Is there room for what a machine needs at its start? Said while it runs, or it would go down and not come up.
async fn has_room(host: &Host) -> Result<()> {
    let folder = &host.config.folder;
    if files::free(folder).map_err(lost)? < SPARE {
        // What is in the way may be images that nobody uses. Whether that helped, is seen below.
        let store = host.store.clone();
        let _ = tokio::task::spawn_blocking(move || store.make_room(SPARE, "the start of a machine")).await;
    }
    match files::free(folder).map_err(lost)? {
        free if free < SPARE => Err(Error::NoRoom(format!(
            "{} has {free} bytes left, and {SPARE} are needed; make room there (`casemate images gc` removes container images that nothing needs)",
            folder.display()
        ))),
        _ => Ok(()),
    }
}

/// Brings the machine down.
pub(super) async fn stop(host: &Arc<Host>, slot: &Arc<Slot>, at: At, how: Stop) -> Result<Stopped> {
    let asked_at = host.clock.now();
    let mut asks = Asks::default();
    loop {
        {
            let _turn = slot.turn.lock().await;
            if enter(slot, at, Stage::Stopped)? == Entry::Passed {
                return Ok(Stopped::Off);
            }
            if !slot.settle(host.clock.now()) {
                slot.lock().failed = None;
                slot.change(|record| {
                    record.held.iter_mut().for_each(|held| held.meant_on = false);
                    record.fence.reach(Stage::Stopped);
                })?;
                return Ok(Stopped::Off);
            }
            let waited = host.clock.now().duration_since(asked_at).unsigned_abs();
            let frozen = slot.frozen_since();
            match how {
                Stop::Graceful { timeout, .. } if waited < timeout && frozen.is_none() => {
                    if asks.count == 0 {
                        going_down(slot, Some(LastStop::Graceful))?;
                    }
                }
                Stop::Graceful { then: AfterTimeout::GiveUp, .. } => {
                    // If it goes down later, nobody wants that any more.
                    going_down(slot, None)?;
                    return Ok(frozen.map_or(Stopped::StillRunning, |since| Stopped::Frozen { since }));
                }
                Stop::Graceful { then: AfterTimeout::Force, .. } | Stop::Force => {
                    going_down(slot, Some(LastStop::Forced))?;
                    // Who cuts the power is in a hurry; a guest that is well answers at once.
                    host.clock.within(LAST_LINES, logs::fetch_all(host, slot)).await;
                    logs::keep(slot).await;
                    cut_power(host, slot).await?;
                    // The next look finds it off.
                    continue;
                }
            }
        }
        asks.ask(host, slot).await;
        wait_for_end(host, slot, LOOK).await;
    }
}

/// How a guest was asked to go down: by its power button, then by its agent, and so on until it shows that it does.
#[derive(Default)]
pub(super) struct Asks {
    last: Option<jiff::Timestamp>,
    count: u32,
}

impl Asks {
    pub(super) async fn ask(&mut self, host: &Host, slot: &Slot) {
        let now = host.clock.now();
        let lately = self.last.is_some_and(|last| now.duration_since(last).unsigned_abs() < ASK_AGAIN);
        if lately || is_stopping(slot) {
            return;
        }
        if self.count == 0 {
            // What its services wrote is there as long as it is.
            host.clock.within(Duration::from_secs(1), logs::fetch_all(host, slot)).await;
        }
        let asked = match self.count % 2 {
            0 => qmp::execute(&host.clock, &slot.folder, "system_powerdown").await.map(drop),
            _ => slot.agent.ask(&host.clock, Ask::PowerOff, Duration::from_secs(1)).await.map(drop),
        };
        if self.count == 0 {
            // While the guest goes down, so that nobody waits for it.
            logs::keep(slot).await;
        }
        if let Err(error) = asked {
            tracing::debug!(%error, vm = %slot.vm, "a guest could not be asked to go down");
        }
        self.last = Some(now);
        self.count += 1;
    }
}

fn is_stopping(slot: &Slot) -> bool {
    let state = slot.lock();
    let boot = state.record.held.as_ref().map(|held| held.boot_count);
    state
        .seen
        .as_ref()
        .is_some_and(|(report, _)| report.phase == Phase::Stopping && Some(report.boot) == boot)
}

fn going_down(slot: &Slot, how: Option<LastStop>) -> Result<()> {
    slot.change(|record| {
        if let Some(on) = record.held.as_mut().and_then(|held| held.on.as_mut()) {
            on.going_down = how;
        }
    })
}

/// Cuts the power of the machine's process, and waits until it is gone.
pub(super) async fn cut_power(host: &Host, slot: &Slot) -> Result<()> {
    match slot.process() {
        Some(process) => end(host, &process).await,
        None => Ok(()),
    }
}

async fn end(host: &Host, process: &process::Process) -> Result<()> {
    process.kill().map_err(|error| Error::Unreachable(format!("its process cannot be ended: {error}")))?;
    let late = || Error::Unreachable(format!("process {} does not end", process.pid()));
    host.clock.within(KILLED, process.ended()).await.ok_or_else(late)
}

/// Waits for the machine to go down, but not longer than this.
pub(super) async fn wait_for_end(host: &Host, slot: &Slot, limit: Duration) {
    match slot.process() {
        Some(process) => drop(host.clock.within(limit, process.ended()).await),
        None => host.clock.sleep(limit).await,
    }
}

/// Gives the machine its new configuration.
pub(super) async fn apply(host: &Arc<Host>, slot: &Arc<Slot>, at: At, machine: &Machine) -> Result<()> {
    let _turn = slot.turn.lock().await;
    if enter(slot, at, Stage::Applied)? == Entry::Passed {
        return Ok(());
    }
    let on = slot.settle(host.clock.now());
    let held = slot.held();
    if held.as_ref().is_some_and(|held| held.now.meets(machine)) {
        return slot.reach(Stage::Applied);
    }
    if on {
        return refuse("the machine is on; it has to be off for a new configuration");
    }
    // The files that were staged are the ones that come into force. Those from before need nothing from outside.
    let staged =
        slot.lock().record.staged.clone().filter(|staged| staged.machine.revision == machine.revision);
    let before = held.as_ref().and_then(|held| held.before.clone()).filter(|before| before.meets(machine));
    let (ready, _using) = match staged.or(before) {
        Some(ready) => (ready, None),
        None => {
            let (ready, using) =
                stage::prepare(host, slot, machine, &Progress::default()).await?.keep(slot).await?;
            (ready, Some(using))
        }
    };
    let _room = host.room.lock().await;
    host.fits(slot, &machine.spec)?;
    let has = held.as_ref().map_or(0, |held| held.disk_gb);
    let disk_gb = ready.machine.spec.disk_gb;
    disk::ensure(&slot.folder, has, disk_gb).await.map_err(Error::Refused)?;
    let had = held.map(|held| held.ports).unwrap_or_default();
    let taken = taken_ports(host, slot);
    let ports = ports::place(&ready.ports, &had, &taken, &host.config.ports).map_err(Error::Refused)?;
    slot.change(|record| {
        let held = match record.held.take() {
            Some(mut held) => {
                held.before = Some(std::mem::replace(&mut held.now, ready));
                held
            }
            None => Held::new(ready),
        };
        record.held = Some(Held { ports, disk_gb: held.disk_gb.max(disk_gb), ..held });
        record.staged = None;
        record.fence.reach(Stage::Applied);
    })?;
    slot.lock().failed = None;
    tidy(slot);
    Ok(())
}

/// Ports of this host that the other machines have.
pub(super) fn taken_ports(host: &Host, slot: &Slot) -> BTreeSet<u16> {
    let others = host.all().into_iter().filter(|other| other.vm != slot.vm);
    others.filter_map(|other| other.held()).flat_map(|held| held.ports).map(|port| port.host).collect()
}

/// Lets a call in, in the machine's turn. What an operation of before has staged goes with it.
fn enter(slot: &Slot, at: At, stage: Stage) -> Result<Entry> {
    let entry = slot.enter(at, stage)?;
    if entry == Entry::NewOperation {
        tidy(slot);
    }
    Ok(entry)
}

/// Removes container images that are of no use any more. In the machine's turn.
pub(super) fn tidy(slot: &Slot) {
    let used = slot.lock().record.image_files();
    let files = std::fs::read_dir(&slot.folder).into_iter().flatten().flatten();
    for name in files.filter_map(|file| file.file_name().into_string().ok()) {
        if record::is_image_file(&name)
            && !used.contains(&name)
            && let Err(error) = std::fs::remove_file(slot.folder.join(&name))
        {
            tracing::warn!(%error, vm = %slot.vm, file = name, "a file of no use stays");
        }
    }
}

/// Turns the machine on. One whose guest is still shutting down is waited for first.
pub(super) async fn start(host: &Arc<Host>, slot: &Arc<Slot>, at: At) -> Result<()> {
    loop {
        {
            let _turn = slot.turn.lock().await;
            if enter(slot, at, Stage::Started)? == Entry::Passed {
                return Ok(());
            }
            if slot.held().is_none() {
                return refuse("there is no such machine");
            }
            let on = slot.settle(host.clock.now());
            if on && !is_stopping(slot) {
                return slot.change(|record| {
                    if let Some(held) = &mut record.held {
                        held.meant_on = true;
                        held.on.iter_mut().for_each(|on| on.going_down = None);
                    }
                    record.fence.reach(Stage::Started);
                });
            }
            if !on {
                break;
            }
        }
        wait_for_end(host, slot, LOOK).await;
    }
    let accelerator = accel::decide(host).await;
    let permit = boot::permit(host).await;
    let _turn = slot.turn.lock().await;
    if enter(slot, at, Stage::Started)? == Entry::Passed {
        return Ok(());
    }
    if !slot.settle(host.clock.now()) {
        slot.change(|record| record.held.iter_mut().for_each(|held| held.restarts = 0))?;
        // Whoever asked hears of it, and decides what follows.
        let given_up = |_: &Error| slot.happened(|held| held.meant_on = false);
        boot::boot(host, slot, accelerator, permit).await.inspect_err(given_up)?;
    }
    slot.reach(Stage::Started)
}

/// Removes the machine with its disk, on or off.
pub(super) async fn remove(host: &Arc<Host>, slot: &Arc<Slot>, at: At) -> Result<()> {
    let _turn = slot.turn.lock().await;
    if slot.enter(at, Stage::Absent)? == Entry::Passed {
        // Unless the last of its files could not be deleted, there is nothing.
        return delete(&slot.trash()).map_err(lost);
    }
    slot.happened(|held| {
        held.meant_on = false;
        held.on.iter_mut().for_each(|on| on.going_down = Some(LastStop::Forced));
    });
    cut_power(host, slot).await?;
    if slot.folder.exists()
        && let Some(process) = process::Process::in_folder(&slot.folder)
    {
        // One that the record does not name, since it cannot be read or was never written.
        end(host, &process).await?;
    }
    slot.agent.hang_up().await;
    let noted = host.gone().add(slot.vm, at.generation);
    if noted.is_err() {
        // Where the disk is full, what is to be removed has to make room for the note.
        let emptied = files::change(&slot.folder.join(command::DATA)).and_then(|disk| disk.set_len(0));
        emptied.and_then(|()| host.gone().add(slot.vm, at.generation)).map_err(lost)?;
    }
    let trash = slot.removed(at.generation).map_err(lost)?;
    delete(&trash).map_err(lost)
}

/// Deletes a folder, which may not be there.
pub(super) fn delete(folder: &std::path::Path) -> std::io::Result<()> {
    files::gate(folder)?;
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
