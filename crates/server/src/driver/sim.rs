//! A node that is simulated. It keeps every promise of a driver, and breaks down on request.
//!
//! Three ideas carry it:
//!
//! - **It reports what it holds, never what it was told.** A machine is the bytes that were applied and the list of its
//!   boots (`sim/machine.rs`). `observe` hashes those bytes, reads its flags from them and counts those boots, so a lost
//!   or damaged update shows.
//! - **Time is arithmetic.** Nothing runs in the background. A boot is written down with the moment it will be over, a
//!   shutdown with the moment the machine will be off, and whoever looks next works out what has happened since. So
//!   hours cost nothing on a virtual clock, and a node that is restarted has forgotten nothing.
//! - **A call is a request, an effect and an answer.** The effect is one short, synchronous change (`sim/node.rs`); the
//!   request and the answer take time, drawn from the seed. Every fault strikes at one of these three moments.
//!
//! What keeps late and repeated calls harmless is in `driver/fence.rs`, what a guest makes of its configuration in
//! `sim/guest.rs`, what it writes in `sim/logs.rs` and what its system says of itself in `sim/sysinfo.rs`.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use casemate_types::guest::ImageRef;
use casemate_types::ids::VmUuid;
use casemate_types::wire::Sysinfo;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use self::file::{Changed, StateFile};
use self::node::{Look, Node, Site};
use super::fault::{Fault, Plan, Planned};
use super::{
    Abilities, At, Driver, Error, GuestKeys, LogChannel, LogLine, Machine, NodeFacts, Observed, Result, Stop,
    Stopped,
};
use crate::clock::Clock;
use crate::cvm::spec::Booking;

mod config;
mod faults;
mod file;
mod guest;
mod logs;
mod machine;
mod node;
mod sysinfo;
#[cfg(test)]
pub(super) mod tests;

pub use self::config::SimConfig;
pub use self::node::{Change, Effect};

/// What a simulated node can do.
pub const ABILITIES: Abilities = Abilities { new_instance_id: true, fence: true, ports: false };
/// A machine that takes longer than this to come up does not boot.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// How often a booting machine is worth a look.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How many calls [`Sim::calls`] remembers.
const KEPT_CALLS: usize = 10_000;

/// A simulated node. Clones share it.
#[derive(Clone)]
pub struct Sim(Arc<Inner>);

struct Inner {
    clock: Clock,
    keys: Option<Arc<dyn GuestKeys>>,
    boot: Duration,
    stop: Duration,
    call: Duration,
    state: Mutex<State>,
}

struct State {
    facts: NodeFacts,
    node: Node,
    file: Option<StateFile>,
    calls: VecDeque<Called>,
    rng: StdRng,
}

/// A call that reached the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// When the node had done it, or had decided not to.
    pub at: Timestamp,
    /// Name of the driver's function.
    pub call: Cow<'static, str>,
    /// Machine and generation; none for calls that only read.
    pub target: Option<At>,
    /// What the node decided. Its answer may have been lost on the way.
    pub outcome: Result<()>,
}

impl State {
    /// Called under the lock: the file must show the changes in their order.
    fn save(&mut self, changed: Changed) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let lost = |error| Error::Unreachable(format!("it cannot keep its state: {error}"));
        file.save(&self.node, changed).map_err(lost)
    }
}

impl Sim {
    /// Opens a node. With `keys` its guests can open sealed environments; without, they start and see none. With
    /// `state` it continues from that file, if it exists, and keeps it up to date.
    ///
    /// # Errors
    /// If the file exists and cannot be read as the state of a node.
    pub fn new(
        config: SimConfig,
        clock: Clock,
        keys: Option<Arc<dyn GuestKeys>>,
        state: Option<PathBuf>,
    ) -> std::io::Result<Self> {
        let (file, node) = state.map(StateFile::open).transpose()?.unzip();
        Ok(Self(Arc::new(Inner {
            clock,
            keys,
            boot: Duration::from_millis(config.boot_ms),
            stop: Duration::from_millis(config.stop_ms),
            call: Duration::from_millis(config.call_ms),
            state: Mutex::new(State {
                facts: config.facts,
                node: node.unwrap_or_default(),
                file,
                calls: VecDeque::new(),
                rng: StdRng::seed_from_u64(config.seed),
            }),
        })))
    }

    /// Plans a fault. [`Fault::Crash`] and [`Fault::Vanish`] are events: they happen now, to the machines that are
    /// on or there, and are not planned any further.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if the state file cannot be written.
    pub fn plan(&self, planned: Planned) -> Result<()> {
        self.change(Changed::All, |node, _, now| node.plan(planned, now))
    }

    /// Forgets all planned faults. What they have done stays done.
    ///
    /// # Errors
    /// As [`Sim::plan`].
    pub fn clear(&self) -> Result<()> {
        self.change(Changed::Faults, |node, _, _| node.faults.clear())
    }

    /// The faults that are still to strike.
    pub fn faults(&self) -> Vec<Planned> {
        self.lock().node.faults.list()
    }

    /// What calls really changed about a machine, oldest first: `stop`, `apply`, `start`, `remove`. Repeated, refused
    /// and stale calls leave nothing here.
    pub fn effects(&self, vm: VmUuid) -> Vec<&'static str> {
        self.history(vm).iter().map(|effect| effect.change.as_str()).collect()
    }

    /// The same with generation, revision and time.
    pub fn history(&self, vm: VmUuid) -> Vec<Effect> {
        self.look(|node, _, now| node.history(vm, now))
    }

    /// The calls that reached the node, oldest first. Only the last 10,000 are kept; a restart forgets them.
    pub fn calls(&self) -> Vec<Called> {
        self.lock().calls.iter().cloned().collect()
    }

    /// The sum of what its machines occupy.
    pub fn used(&self) -> Booking {
        self.lock().node.used()
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.lock().facts.name.clone()
    }

    /// Changes the host itself: its images, its capacity.
    pub fn set_facts(&self, facts: NodeFacts) {
        self.lock().facts = facts;
    }

    /// Flips one bit in every copy of the machine's compose text that the node holds. False if it holds none.
    ///
    /// # Errors
    /// As [`Sim::plan`].
    pub fn corrupt_compose(&self, vm: VmUuid) -> Result<bool> {
        self.change(Changed::Machine(vm), |node, _, _| node.corrupt_compose(vm))
    }

    /// The machine goes down and boots again, and no call asked for it. False if it was not on.
    ///
    /// # Errors
    /// As [`Sim::plan`].
    pub fn power_cycle(&self, vm: VmUuid) -> Result<bool> {
        self.change(Changed::Machine(vm), |node, site, now| node.power_cycle(vm, site, now))
    }

    /// The road of every call that changes something: request, effect, answer.
    async fn ensure<T: Send>(
        &self,
        call: &'static str,
        at: At,
        mut look: impl FnMut(&mut Node, &Site<'_>, Timestamp) -> Result<Look<T>> + Send,
    ) -> Result<T> {
        self.request(&[at.vm]).await?;
        // Having had to wait means having begun something.
        let mut waited = false;
        let (value, changed) = loop {
            match self.change(Changed::Machine(at.vm), &mut look)? {
                Ok(Look::Again { at }) => {
                    waited = true;
                    self.0.clock.sleep(between(self.0.clock.now(), at)).await;
                }
                Ok(Look::Done { value, changed }) => {
                    self.called(call, Some(at), Ok(()));
                    break (value, changed || waited);
                }
                Err(error) => {
                    self.called(call, Some(at), Err(error.clone()));
                    return Err(error);
                }
            }
        };
        self.answer(at.vm, changed).await?;
        Ok(value)
    }

    /// The road of every call that only reads. `vms` are the machines it is about.
    async fn read<T>(
        &self,
        call: &'static str,
        vms: &[VmUuid],
        of: impl FnOnce(&mut Node, &Site<'_>, Timestamp) -> Result<T> + Send,
    ) -> Result<T> {
        self.request(vms).await?;
        let outcome = self.look(of);
        self.called(call, None, outcome.as_ref().map(|_| ()).map_err(Clone::clone));
        outcome
    }

    /// The way to the node.
    async fn request(&self, vms: &[VmUuid]) -> Result<()> {
        let slow = self.strike(vms, |fault| {
            let Fault::Slow { seconds } = fault else { return None };
            Some(Duration::from_secs(*seconds))
        })?;
        self.latency(slow.unwrap_or_default()).await;
        match self.strike(vms, |fault| (*fault == Fault::Unreachable).then_some(()))? {
            Some(()) => Err(Error::Unreachable("it does not answer".into())),
            None => Ok(()),
        }
    }

    /// The way back. Only the answer to a call that changed something can get lost, so repeating such a call helps.
    async fn answer(&self, vm: VmUuid, changed: bool) -> Result<()> {
        let lost = if changed {
            self.strike(&[vm], |fault| (*fault == Fault::AnswerLost).then_some(()))?
        } else {
            None
        };
        self.latency(Duration::ZERO).await;
        match lost {
            Some(()) => Err(Error::Unreachable("its answer got lost".into())),
            None => Ok(()),
        }
    }

    /// One way takes up to the configured time of a call, so that a call takes that long on average.
    async fn latency(&self, extra: Duration) {
        let drawn = self.lock().rng.random_range(Duration::ZERO..=self.0.call);
        let latency = extra.saturating_add(drawn);
        if !latency.is_zero() {
            self.0.clock.sleep(latency).await;
        }
    }

    fn strike<T>(&self, vms: &[VmUuid], wanted: impl Fn(&Fault) -> Option<T>) -> Result<Option<T>> {
        let mut state = self.lock();
        let found = state.node.faults.strike(vms, wanted);
        if found.is_some() {
            state.save(Changed::Faults)?;
        }
        Ok(found)
    }

    /// One change of the node, on disk when it returns.
    fn change<T>(
        &self,
        changed: Changed,
        change: impl FnOnce(&mut Node, &Site<'_>, Timestamp) -> T,
    ) -> Result<T> {
        let mut state = self.lock();
        let outcome = self.with_site(&mut state, change);
        state.save(changed)?;
        Ok(outcome)
    }

    /// A look at the node. It may bring the node's records up to now, which the next look would do just the same.
    fn look<T>(&self, of: impl FnOnce(&mut Node, &Site<'_>, Timestamp) -> T) -> T {
        self.with_site(&mut self.lock(), of)
    }

    fn with_site<T>(&self, state: &mut State, then: impl FnOnce(&mut Node, &Site<'_>, Timestamp) -> T) -> T {
        let State { facts, node, .. } = state;
        let site = Site { facts, keys: self.0.keys.as_deref(), boot: self.0.boot, stop: self.0.stop };
        then(node, &site, self.0.clock.now())
    }

    fn called(&self, call: &'static str, target: Option<At>, outcome: Result<()>) {
        let mut state = self.lock();
        if state.calls.len() == KEPT_CALLS {
            state.calls.pop_front();
        }
        state.calls.push_back(Called { at: self.0.clock.now(), call: Cow::Borrowed(call), target, outcome });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while changing the node")
    }
}

#[async_trait]
impl Driver for Sim {
    fn kind(&self) -> &'static str {
        "sim"
    }

    fn abilities(&self) -> Abilities {
        ABILITIES
    }

    fn boot_deadline(&self) -> Duration {
        BOOT_DEADLINE
    }

    fn poll_interval(&self) -> Duration {
        POLL_INTERVAL
    }

    /// It is part of this process: nobody else can answer.
    fn expect_node(&self, _: &str) {}

    async fn describe(&self) -> Result<NodeFacts> {
        self.read("describe", &[], |_, site, _| Ok(site.facts.clone())).await
    }

    /// It has no images of services, so it does not know what they mean.
    async fn ensure_staged(&self, at: At, machine: &Machine) -> Result<Vec<ImageRef>> {
        self.ensure("ensure_staged", at, |node, site, _| node.stage(at, machine, site)).await?;
        Ok(machine.images.clone())
    }

    async fn ensure_stopped(&self, at: At, how: Stop) -> Result<Stopped> {
        let mut asked_at = None;
        self.ensure("ensure_stopped", at, |node, site, now| {
            node.stop(at, how, *asked_at.get_or_insert(now), site, now)
        })
        .await
    }

    async fn ensure_applied(&self, at: At, machine: &Machine) -> Result<()> {
        self.ensure("ensure_applied", at, |node, site, now| node.apply(at, machine, site, now)).await
    }

    async fn ensure_started(&self, at: At) -> Result<()> {
        self.ensure("ensure_started", at, |node, site, now| node.start(at, site, now)).await
    }

    async fn ensure_absent(&self, at: At) -> Result<()> {
        self.ensure("ensure_absent", at, |node, _, now| node.remove(at, now)).await
    }

    async fn observe(&self, machines: &[VmUuid]) -> Result<Vec<Observed>> {
        self.read("observe", machines, |node, site, now| {
            Ok(machines.iter().filter_map(|vm| node.observe(*vm, site, now)).collect())
        })
        .await
    }

    async fn inventory(&self) -> Result<Vec<Observed>> {
        self.read("inventory", &[], |node, site, now| {
            Ok(node.machines().into_iter().filter_map(|vm| node.observe(vm, site, now)).collect())
        })
        .await
    }

    async fn sysinfo(&self, machine: VmUuid) -> Result<Option<Sysinfo>> {
        self.read("sysinfo", &[machine], |node, site, now| Ok(node.sysinfo(machine, site, now))).await
    }

    async fn logs(&self, machine: VmUuid, channel: &LogChannel) -> Result<Vec<LogLine>> {
        self.read("logs", &[machine], |node, _, now| node.logs(machine, channel, now)).await
    }
}

#[async_trait]
impl Plan for Sim {
    async fn plan(&self, planned: Planned) -> Result<()> {
        self.plan(planned)
    }

    async fn clear(&self) -> Result<()> {
        self.clear()
    }

    async fn planned(&self) -> Result<Vec<Planned>> {
        Ok(self.faults())
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or(Duration::ZERO)
}
