//! A machine: the configuration that was applied to it, byte for byte, and the list of its boots. All the rest follows
//! from these two and the time.

use std::collections::VecDeque;
use std::time::Duration;

use casemate_types::ids::{ComposeHash, VmUuid};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::guest::{self, Failure, STEPS};
use super::node::{Site, after};
use crate::cvm::spec::sha256;
use crate::driver::inside;
use crate::driver::{Container, Guest, LastStop, Machine, Observed};

/// How many boots a machine remembers. They are what its logs are made of.
const KEPT_BOOTS: usize = 16;

/// A machine that the node holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) machine: Machine,
    /// Should it be on, as far as the node knows? One that should and is not went down by itself.
    meant_on: bool,
    boot_count: u64,
    /// Oldest first.
    boots: VecDeque<Boot>,
}

/// One run of a machine, from power-on to power-off. How it goes is settled when it begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Boot {
    pub(super) number: u64,
    pub(super) on_at: Timestamp,
    /// How long all steps of a boot take.
    takes_ms: u64,
    pub(super) failure: Option<Failure>,
    /// Revision, image and services of this run: an update changes the machine, not its past.
    pub(super) revision: u64,
    pub(super) image: String,
    pub(super) containers: Vec<Container>,
    /// When the guest will have shut down, once it was asked to and does.
    going_down_at: Option<Timestamp>,
    pub(super) down: Option<Down>,
}

/// The end of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Down {
    pub(super) at: Timestamp,
    pub(super) how: LastStop,
}

impl Held {
    /// A machine that was never on.
    pub(super) fn new(machine: Machine) -> Self {
        Self { machine, meant_on: false, boot_count: 0, boots: VecDeque::new() }
    }

    /// Every run that is remembered, oldest first.
    pub(super) fn boots(&self) -> impl Iterator<Item = &Boot> {
        self.boots.iter()
    }

    /// Turns it on.
    pub(super) fn power_on(&mut self, failure: Option<Failure>, takes: Duration, now: Timestamp) {
        if self.boots.len() == KEPT_BOOTS {
            self.boots.pop_front();
        }
        self.meant_on = true;
        self.boot_count += 1;
        self.boots.push_back(Boot {
            number: self.boot_count,
            on_at: now,
            takes_ms: u64::try_from(takes.as_millis()).unwrap_or(u64::MAX),
            failure,
            revision: self.machine.revision,
            image: self.machine.spec.image.clone(),
            containers: inside::containers(&self.machine.spec.compose.text),
            going_down_at: None,
            down: None,
        });
    }

    /// Turns it off. False if it was off.
    pub(super) fn power_off(&mut self, how: LastStop, at: Timestamp) -> bool {
        let Some(boot) = self.running() else { return false };
        boot.down = Some(Down { at, how });
        self.meant_on &= how == LastStop::Crashed;
        true
    }

    /// It is off, and may stay so.
    pub(super) fn leave_off(&mut self) {
        self.meant_on = false;
    }

    /// Brings the record up to `now`. True if the guest has shut down since the last look.
    pub(super) fn settle(&mut self, now: Timestamp) -> bool {
        match self.going_down_at() {
            Some(at) if at <= now => self.power_off(LastStop::Graceful, at),
            Some(_) | None => false,
        }
    }

    /// The guest begins to shut down and will be off at `at`. Asking again does not begin anew.
    pub(super) fn go_down_at(&mut self, at: Timestamp) {
        if let Some(boot) = self.running() {
            boot.going_down_at.get_or_insert(at);
        }
    }

    /// When a guest that is shutting down will be off.
    pub(super) fn going_down_at(&self) -> Option<Timestamp> {
        self.boots.back().filter(|boot| boot.down.is_none())?.going_down_at
    }

    /// Is it on?
    pub(super) fn is_on(&self) -> bool {
        self.boots.back().is_some_and(|boot| boot.down.is_none())
    }

    fn running(&mut self) -> Option<&mut Boot> {
        self.boots.back_mut().filter(|boot| boot.down.is_none())
    }

    /// What the node sees of it.
    pub(super) fn observe(&self, vm: VmUuid, generation: u64, site: &Site<'_>, now: Timestamp) -> Observed {
        let Machine { spec, app_id: _, instance_id, revision, name: _, images } = &self.machine;
        let inside = inside::read(&spec.compose.text);
        let guest = self.guest(now);
        let boot = self.boots.back();
        let last_down = self.boots.iter().rev().find_map(|boot| boot.down);
        Observed {
            vm,
            comes_back: false,
            boot_count: self.boot_count,
            generation,
            revision: *revision,
            compose_hash: ComposeHash::from(sha256(spec.compose.text.as_bytes())),
            instance_id: *instance_id,
            size: spec.booking(),
            image: spec.image.clone(),
            user_config_sha256: spec.user_config_sha256(),
            encrypted_env_sha256: spec.sealed_env_sha256(),
            env_keys: guest::env_keys(&self.machine, &inside, site.keys).unwrap_or_default(),
            public_logs: inside.public_logs,
            public_sysinfo: inside.public_sysinfo,
            public_tcbinfo: inside.public_tcbinfo,
            started_at: boot.map(|boot| boot.on_at),
            stopped_at: last_down.map(|down| down.at),
            last_stop: last_down.map(|down| down.how),
            last_downtime_ms: self.last_downtime_ms(now),
            containers: boot
                .filter(|_| guest == Guest::Done)
                .map(|boot| boot.containers.clone())
                .unwrap_or_default(),
            ports: Vec::new(),
            images: images.clone(),
            guest,
        }
    }

    /// The run whose guest is up.
    pub(super) fn up(&self, now: Timestamp) -> Option<&Boot> {
        self.boots.back().filter(|_| self.guest(now) == Guest::Done)
    }

    fn guest(&self, now: Timestamp) -> Guest {
        match self.boots.back().filter(|boot| boot.down.is_none()) {
            None if self.meant_on => Guest::Exited,
            None => Guest::Off,
            Some(boot) if now < boot.settled_at() => Guest::Booting { progress: boot.step(now).into() },
            Some(Boot { failure: Some(failure), .. }) => Guest::Failed { error: failure.error.clone() },
            Some(Boot { failure: None, .. }) => Guest::Done,
        }
    }

    /// From the power-off before the last successful boot to its "done".
    fn last_downtime_ms(&self, now: Timestamp) -> Option<u64> {
        let (index, done_at) = self
            .boots
            .iter()
            .enumerate()
            .rev()
            .find_map(|(index, boot)| Some((index, boot.done_at(now)?)))?;
        let before = self.boots.get(index.checked_sub(1)?)?.down?;
        u64::try_from(done_at.as_millisecond() - before.at.as_millisecond()).ok()
    }
}

impl Boot {
    /// When the step with this index begins. One past the last is the end of the boot.
    pub(super) fn step_at(&self, index: usize) -> Timestamp {
        let (index, steps) = (index as u64, STEPS.len() as u64);
        after(self.on_at, Duration::from_millis(self.takes_ms.saturating_mul(index) / steps))
    }

    /// When the guest is up, or gives up at the end of the step that failed.
    pub(super) fn settled_at(&self) -> Timestamp {
        self.step_at(self.failure.as_ref().map_or(STEPS.len(), |failure| failure.step + 1))
    }

    /// When the guest was up, if it has been by `now`.
    pub(super) fn done_at(&self, now: Timestamp) -> Option<Timestamp> {
        let at = self.settled_at();
        let until = self.down.map_or(now, |down| down.at.min(now));
        (self.failure.is_none() && at <= until).then_some(at)
    }

    fn step(&self, now: Timestamp) -> &'static str {
        let begun = (1..STEPS.len()).take_while(|index| self.step_at(*index) <= now).count();
        STEPS.get(begun).copied().unwrap_or_default()
    }
}
