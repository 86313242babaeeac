//! What a node holds, and the rules by which calls change it. Nothing here waits or asks for the time: every function is
//! told what time it is and changes the node at once or not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use casemate_types::ids::VmUuid;
use casemate_types::wire::Sysinfo;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::faults::Faults;
use super::machine::Held;
use super::{guest, logs, sysinfo};
use crate::cvm::spec::{Booking, Spec, sha256};
use crate::driver::fault::{Fault, Planned};
use crate::driver::fence::{Entry, Fence, Stage};
use crate::driver::{
    AfterTimeout, At, Error, GuestKeys, LastStop, LogChannel, LogLine, Machine, NodeFacts, Observed, Result,
    Stop, Stopped,
};
use crate::driver::{inside, room};

/// What surrounds the machines of a node.
pub(super) struct Site<'a> {
    pub(super) facts: &'a NodeFacts,
    pub(super) keys: Option<&'a dyn GuestKeys>,
    /// How long a boot takes.
    pub(super) boot: Duration,
    /// How long an orderly shutdown takes.
    pub(super) stop: Duration,
}

/// What came of looking at a call.
pub(super) enum Look<T> {
    /// It is done. `changed`: by this call, just now.
    Done { value: T, changed: bool },
    /// Nothing can happen before `at`; look again then.
    Again { at: Timestamp },
}

/// Something that a call changed about a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// What it was.
    pub change: Change,
    /// The operation at work when it happened.
    pub generation: u64,
    /// Revision that the machine had afterwards, or until it was removed.
    pub revision: u64,
    /// When.
    pub at: Timestamp,
}

/// The kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It went off.
    Stop,
    /// It was created, or got another configuration.
    Apply,
    /// It went on.
    Start,
    /// It was removed with its disk.
    Remove,
}

impl Change {
    /// As tests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Apply => "apply",
            Self::Start => "start",
            Self::Remove => "remove",
        }
    }
}

/// The machines of a node and the faults planned for it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Node {
    pub(super) slots: BTreeMap<VmUuid, Slot>,
    pub(super) faults: Faults,
}

/// The place of one machine. It stays when the machine is gone, for the sake of the fence.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Slot {
    fence: Fence,
    /// Files put in place by the operation at work, not in force yet.
    staged: Option<Machine>,
    held: Option<Held>,
    effects: Vec<Effect>,
}

impl Node {
    /// Puts the files of `machine` in place, beside the machine that may be running.
    pub(super) fn stage(&mut self, at: At, machine: &Machine, site: &Site<'_>) -> Result<Look<()>> {
        if self.slot(at.vm).enter(at, Stage::Staged)? == Entry::Passed {
            return unchanged(());
        }
        self.may_refuse(at.vm)?;
        self.fits(at.vm, &machine.spec, site.facts)?;
        if inside::image(&machine.spec, site.facts).is_none() {
            return refuse(format!("image `{}` is not on this node", machine.spec.image));
        }
        if sha256(machine.spec.compose.text.as_bytes()) != *machine.spec.compose.hash.as_bytes() {
            return refuse("the compose text does not have the hash that came with it");
        }
        let slot = self.slot(at.vm);
        slot.staged = Some(machine.clone());
        slot.fence.reach(Stage::Staged);
        unchanged(())
    }

    /// Brings the machine down. `asked_at` is when this call first looked.
    pub(super) fn stop(
        &mut self,
        at: At,
        how: Stop,
        asked_at: Timestamp,
        site: &Site<'_>,
        now: Timestamp,
    ) -> Result<Look<Stopped>> {
        let slot = self.slots.entry(at.vm).or_default();
        if slot.enter(at, Stage::Stopped)? == Entry::Passed {
            return unchanged(Stopped::Off);
        }
        slot.settle(now);
        let Some(held) = slot.held.as_mut().filter(|held| held.is_on()) else {
            slot.held.iter_mut().for_each(Held::leave_off);
            slot.fence.reach(Stage::Stopped);
            return unchanged(Stopped::Off);
        };
        if let Stop::Graceful { timeout, then } = how {
            let deadline = after(asked_at, timeout);
            if now < deadline {
                if held.going_down_at().is_none()
                    && let Some(takes) = shutdown_time(&mut self.faults, at.vm, site.stop)
                {
                    held.go_down_at(after(now, takes));
                }
                let off_at = held.going_down_at().unwrap_or(deadline);
                return Ok(Look::Again { at: off_at.min(deadline) });
            }
            if then == AfterTimeout::GiveUp {
                return unchanged(Stopped::StillRunning);
            }
        }
        held.power_off(LastStop::Forced, now);
        slot.record(Change::Stop, now);
        slot.fence.reach(Stage::Stopped);
        changed(Stopped::Off)
    }

    /// Gives the machine its new configuration.
    pub(super) fn apply(
        &mut self,
        at: At,
        machine: &Machine,
        site: &Site<'_>,
        now: Timestamp,
    ) -> Result<Look<()>> {
        if self.slot(at.vm).enter(at, Stage::Applied)? == Entry::Passed {
            return unchanged(());
        }
        self.may_refuse(at.vm)?;
        let lie = self.faults.strike(&[at.vm], |fault| (*fault == Fault::Lie).then_some(()));
        let slot = self.slot(at.vm);
        slot.settle(now);
        if lie.is_some() || slot.held.as_ref().is_some_and(|held| held.machine == *machine) {
            slot.fence.reach(Stage::Applied);
            return unchanged(());
        }
        if slot.is_on() {
            return refuse("the machine is on; it has to be off for a new configuration");
        }
        self.fits(at.vm, &machine.spec, site.facts)?;
        let slot = self.slot(at.vm);
        // The files that were staged are the ones that come into force, whatever has become of them.
        let staged = slot.staged.take().filter(|staged| staged.revision == machine.revision);
        let machine = staged.unwrap_or_else(|| machine.clone());
        match &mut slot.held {
            Some(held) => held.machine = machine,
            None => slot.held = Some(Held::new(machine)),
        }
        slot.record(Change::Apply, now);
        slot.fence.reach(Stage::Applied);
        changed(())
    }

    /// Turns the machine on. One whose guest is still shutting down is waited for first.
    pub(super) fn start(&mut self, at: At, site: &Site<'_>, now: Timestamp) -> Result<Look<()>> {
        if self.slot(at.vm).enter(at, Stage::Started)? == Entry::Passed {
            return unchanged(());
        }
        self.has_room(at.vm)?;
        let slot = self.slots.entry(at.vm).or_default();
        slot.settle(now);
        let Some(held) = &mut slot.held else {
            return refuse("there is no such machine");
        };
        if let Some(at) = held.going_down_at() {
            return Ok(Look::Again { at });
        }
        let turned_on = !held.is_on();
        if turned_on {
            let failure = guest::boot(at.vm, &held.machine, site, &mut self.faults);
            held.power_on(failure, site.boot, now);
            slot.record(Change::Start, now);
        }
        slot.fence.reach(Stage::Started);
        Ok(Look::Done { value: (), changed: turned_on })
    }

    /// Removes the machine with its disk, on or off.
    pub(super) fn remove(&mut self, at: At, now: Timestamp) -> Result<Look<()>> {
        let slot = self.slot(at.vm);
        if slot.enter(at, Stage::Absent)? == Entry::Passed {
            return unchanged(());
        }
        slot.settle(now);
        let existed = slot.held.is_some();
        if existed {
            slot.record(Change::Remove, now);
        }
        slot.vanish();
        slot.fence.reach(Stage::Absent);
        Ok(Look::Done { value: (), changed: existed })
    }

    /// What can be seen of a machine; none if there is none.
    pub(super) fn observe(&mut self, vm: VmUuid, site: &Site<'_>, now: Timestamp) -> Option<Observed> {
        let slot = self.slots.get_mut(&vm)?;
        slot.settle(now);
        Some(slot.held.as_ref()?.observe(vm, slot.fence.generation, site, now))
    }

    /// The machines that are there.
    pub(super) fn machines(&self) -> Vec<VmUuid> {
        self.slots.iter().filter(|(_, slot)| slot.held.is_some()).map(|(vm, _)| *vm).collect()
    }

    /// What the system inside a machine says; nothing unless its guest is up.
    pub(super) fn sysinfo(&mut self, vm: VmUuid, site: &Site<'_>, now: Timestamp) -> Option<Sysinfo> {
        let slot = self.slots.get_mut(&vm)?;
        slot.settle(now);
        sysinfo::of(slot.held.as_ref()?, site.facts, now)
    }

    /// One log of a machine.
    pub(super) fn logs(&mut self, vm: VmUuid, channel: &LogChannel, now: Timestamp) -> Result<Vec<LogLine>> {
        let slot = self.slots.get_mut(&vm);
        let held = slot.and_then(|slot| {
            slot.settle(now);
            slot.held.as_ref()
        });
        match held {
            Some(held) => logs::lines(held, channel, now),
            None => refuse("there is no such machine"),
        }
    }

    /// What calls changed about a machine.
    pub(super) fn history(&mut self, vm: VmUuid, now: Timestamp) -> Vec<Effect> {
        let slot = self.slots.get_mut(&vm);
        slot.map(|slot| {
            slot.settle(now);
            slot.effects.clone()
        })
        .unwrap_or_default()
    }

    /// What all machines occupy.
    pub(super) fn used(&self) -> Booking {
        room::occupied(self.slots.values().filter_map(Slot::spec))
    }

    /// Plans a fault, or lets it happen where it is an event.
    pub(super) fn plan(&mut self, planned: Planned, now: Timestamp) {
        let meant = |vm: &VmUuid| planned.vm.is_none_or(|only| only == *vm);
        let slots = self.slots.iter_mut().filter(|(vm, _)| meant(vm)).map(|(_, slot)| slot);
        match planned.fault {
            Fault::Crash => slots.for_each(|slot| slot.crash(now)),
            Fault::Vanish => slots.for_each(Slot::vanish),
            Fault::BootFail { .. }
            | Fault::Refuse
            | Fault::DiskFull
            | Fault::Unreachable
            | Fault::SlowStop { .. }
            | Fault::StopHangs
            | Fault::Lie
            | Fault::AnswerLost
            | Fault::Slow { .. } => self.faults.plan(planned),
        }
    }

    /// Damages every copy of a machine's compose text.
    pub(super) fn corrupt_compose(&mut self, vm: VmUuid) -> bool {
        let Some(slot) = self.slots.get_mut(&vm) else { return false };
        let copies = slot.staged.iter_mut().chain(slot.held.as_mut().map(|held| &mut held.machine));
        copies.filter_map(|machine| guest::flip_bit(&mut machine.spec.compose.text)).count() > 0
    }

    /// The machine resets itself.
    pub(super) fn power_cycle(&mut self, vm: VmUuid, site: &Site<'_>, now: Timestamp) -> bool {
        let Some(slot) = self.slots.get_mut(&vm) else { return false };
        slot.settle(now);
        let Some(held) = &mut slot.held else { return false };
        if !held.power_off(LastStop::Crashed, now) {
            return false;
        }
        let failure = guest::boot(vm, &held.machine, site, &mut self.faults);
        held.power_on(failure, site.boot, now);
        true
    }

    fn slot(&mut self, vm: VmUuid) -> &mut Slot {
        self.slots.entry(vm).or_default()
    }

    fn may_refuse(&mut self, vm: VmUuid) -> Result<()> {
        self.has_room(vm)?;
        match self.faults.strike(&[vm], |fault| (*fault == Fault::Refuse).then_some(())) {
            Some(()) => refuse("it was told to refuse"),
            None => Ok(()),
        }
    }

    fn has_room(&mut self, vm: VmUuid) -> Result<()> {
        match self.faults.strike(&[vm], |fault| (*fault == Fault::DiskFull).then_some(())) {
            Some(()) => Err(Error::NoRoom("it was told to have none".into())),
            None => Ok(()),
        }
    }

    /// Is there room for `spec` beside the other machines?
    fn fits(&self, vm: VmUuid, spec: &Spec, facts: &NodeFacts) -> Result<()> {
        let has = self.slots.get(&vm).and_then(Slot::spec);
        let others = self.slots.iter().filter(|(other, _)| **other != vm).filter_map(|(_, slot)| slot.spec());
        room::fits(spec, has, room::occupied(others), facts).map_err(Error::Refused)
    }
}

impl Slot {
    /// Lets a call in, or refuses it as stale. What an earlier operation has staged is of no use to a new one.
    fn enter(&mut self, at: At, stage: Stage) -> Result<Entry> {
        let entry = self.fence.enter(at, stage)?;
        if entry == Entry::NewOperation {
            self.staged = None;
        }
        Ok(entry)
    }

    fn settle(&mut self, now: Timestamp) {
        let off_at = self.held.as_ref().and_then(Held::going_down_at);
        if self.held.as_mut().is_some_and(|held| held.settle(now)) {
            self.record(Change::Stop, off_at.unwrap_or(now));
        }
    }

    fn is_on(&self) -> bool {
        self.held.as_ref().is_some_and(Held::is_on)
    }

    fn spec(&self) -> Option<&Spec> {
        self.held.as_ref().map(|held| &held.machine.spec)
    }

    fn crash(&mut self, now: Timestamp) {
        self.settle(now);
        if let Some(held) = &mut self.held {
            held.power_off(LastStop::Crashed, now);
        }
    }

    fn vanish(&mut self) {
        self.held = None;
        self.staged = None;
    }

    fn record(&mut self, change: Change, at: Timestamp) {
        let revision = self.held.as_ref().map_or(0, |held| held.machine.revision);
        self.effects.push(Effect { change, generation: self.fence.generation, revision, at });
    }
}

/// How long the guest takes to go down; none if it never does.
fn shutdown_time(faults: &mut Faults, vm: VmUuid, usual: Duration) -> Option<Duration> {
    let planned = faults.strike(&[vm], |fault| {
        if let Fault::SlowStop { seconds } = fault {
            return Some(Some(Duration::from_secs(*seconds)));
        }
        (*fault == Fault::StopHangs).then_some(None)
    });
    planned.unwrap_or(Some(usual))
}

/// `duration` later, or the end of time.
pub(super) fn after(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}

fn unchanged<T>(value: T) -> Result<Look<T>> {
    Ok(Look::Done { value, changed: false })
}

fn changed<T>(value: T) -> Result<Look<T>> {
    Ok(Look::Done { value, changed: true })
}

/// Says no.
pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Refused(why.into()))
}
