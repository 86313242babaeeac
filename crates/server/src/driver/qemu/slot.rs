//! The place of one machine: its folder, what is kept of it, and what was last seen of its guest.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use casemate_types::guest::{ImageRef, Phase, Report};
use casemate_types::ids::{ComposeHash, InstanceId, VmUuid};
use jiff::Timestamp;

use super::agent::Agent;
use super::logs::Kept;
use super::process::Process;
use super::record::{Held, Record};
use super::staging::Staging;
use super::{calls, files};
use crate::cvm::spec::{Booking, Spec, sha256};
use crate::driver::fence::{Entry, Stage};
use crate::driver::{At, Container, Error, Guest, Observed, Result, inside};

/// What the names of folders end with that are to be deleted.
pub(super) const TRASH: &str = "gone";

/// The place of one machine. It stays when the machine is gone, for the sake of the fence.
pub(super) struct Slot {
    pub(super) vm: VmUuid,
    pub(super) folder: PathBuf,
    pub(super) agent: Agent,
    /// Whoever changes the machine has it for as long as the change takes. Waiting for a guest is no change.
    pub(super) turn: tokio::sync::Mutex<()>,
    pub(super) staging: Staging,
    state: Mutex<State>,
}

/// What is known of the machine.
pub(super) struct State {
    pub(super) record: Record,
    /// Why its record cannot be read. Such a machine can be looked at and removed.
    broken: Option<String>,
    /// What its guest last said, and when.
    pub(super) seen: Option<(Report, Timestamp)>,
    /// Why it did not start the last time.
    pub(super) failed: Option<String>,
    /// Why the hypervisor lets it stand still.
    pub(super) halted: Option<&'static str>,
    /// What its services wrote, as far as somebody asked.
    pub(super) logs: Kept,
}

impl Slot {
    /// The place of `vm` in a node's folder, with what is kept there.
    pub(super) fn open(node: &Path, vm: VmUuid, gone: Option<u64>) -> Self {
        let folder = node.join(vm.to_string());
        let (record, broken) = match Record::read(&folder) {
            Ok(record) => (record.unwrap_or_default(), None),
            Err(error) => (Record::default(), Some(format!("its state cannot be read: {error}"))),
        };
        let slot = Self {
            vm,
            agent: Agent::new(folder.clone()),
            folder,
            turn: tokio::sync::Mutex::default(),
            staging: Staging::default(),
            state: Mutex::new(State {
                record,
                broken,
                seen: None,
                failed: None,
                halted: None,
                logs: Kept::default(),
            }),
        };
        if let Some(generation) = gone {
            slot.lock().record.fence.was_removed(generation);
        }
        slot
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding it")
    }

    /// One change of the record, on disk when it returns. A change that cannot be kept did not happen.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<T> {
        let mut state = self.lock();
        let mut record = state.record.clone();
        let outcome = change(&mut record);
        if record != state.record {
            record.save(&self.folder).map_err(lost)?;
            state.record = record;
        }
        Ok(outcome)
    }

    /// Something that happened to the machine. It did, whether it can be kept or not.
    pub(super) fn happened(&self, change: impl FnOnce(&mut Held)) {
        let mut state = self.lock();
        let before = state.record.clone();
        if let Some(held) = &mut state.record.held {
            change(held);
        }
        if before != state.record
            && let Err(error) = state.record.save(&self.folder)
        {
            tracing::error!(%error, vm = %self.vm, "what happened to a machine cannot be kept");
        }
    }

    /// Lets a call in, or refuses it as stale. What an earlier operation has staged is of no use to a new one.
    pub(super) fn enter(&self, at: At, stage: Stage) -> Result<Entry> {
        if stage == Stage::Absent {
            // The removal itself is what is kept.
            return self.lock().record.fence.enter(at, stage);
        }
        if let Some(broken) = &self.lock().broken {
            return refuse(format!("{broken}; delete the machine, or put its folder in order"));
        }
        self.change(|record| {
            let entry = record.fence.enter(at, stage)?;
            if entry == Entry::NewOperation {
                record.staged = None;
            }
            Ok(entry)
        })?
    }

    /// The operation has come to `stage`.
    pub(super) fn reach(&self, stage: Stage) -> Result<()> {
        self.change(|record| record.fence.reach(stage))
    }

    /// Is what is kept of it unreadable?
    pub(super) fn is_broken(&self) -> bool {
        self.lock().broken.is_some()
    }

    /// The machine is removed; its fence stays. Its folder is moved away, for the caller to delete: in one moment, so that nobody
    /// who knew it before finds a place for what it has to say of it.
    pub(super) fn removed(&self, generation: u64) -> std::io::Result<PathBuf> {
        let mut state = self.lock();
        let trash = self.trash();
        // One that was left there has its place no more.
        calls::delete(&trash)?;
        match files::put(&self.folder, &trash) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        *state = State {
            record: Record::default(),
            broken: None,
            seen: None,
            failed: None,
            halted: None,
            logs: Kept::default(),
        };
        state.record.fence.was_removed(generation);
        Ok(trash)
    }

    /// Where its folder goes when it is removed.
    pub(super) fn trash(&self) -> PathBuf {
        self.folder.with_extension(TRASH)
    }

    /// What the images of a revision mean that is staged or in force here.
    pub(super) fn images_of(&self, revision: u64) -> Vec<ImageRef> {
        let state = self.lock();
        let held = state.record.held.as_ref().map(|held| &held.now);
        let known = state.record.staged.iter().chain(held).find(|ready| ready.machine.revision == revision);
        known.map(|ready| ready.images.clone()).unwrap_or_default()
    }

    /// Does it have a machine?
    pub(super) fn held(&self) -> Option<Held> {
        self.lock().record.held.clone()
    }

    /// What the machine occupies is that of this spec.
    pub(super) fn spec(&self) -> Option<Spec> {
        self.lock().record.held.as_ref().map(|held| held.now.machine.spec.outline())
    }

    /// Since when its process is stopped by a signal, as far as was seen.
    pub(super) fn frozen_since(&self) -> Option<Timestamp> {
        self.lock().record.held.as_ref()?.frozen_since
    }

    /// Its process, if it is on.
    pub(super) fn process(&self) -> Option<Process> {
        self.lock().record.held.as_ref()?.on.as_ref()?.process.clone()
    }

    /// Takes note of a process that has ended, or stands still. True if the machine is on.
    pub(super) fn settle(&self, now: Timestamp) -> bool {
        match self.process() {
            Some(process) if process.is_alive() => {
                let stopped = process.is_stopped();
                self.happened(|held| match held.frozen_since {
                    Some(_) if stopped => {}
                    _ => held.frozen_since = stopped.then_some(now),
                });
                true
            }
            Some(process) => {
                self.happened(|held| {
                    // Not another one, that was started since.
                    if held.on.as_ref().is_some_and(|on| on.process.as_ref() == Some(&process)) {
                        held.went_down(now);
                    }
                });
                false
            }
            None => false,
        }
    }

    /// What can be seen of the machine; none if there is none.
    pub(super) fn observe(&self, silent: Duration, now: Timestamp) -> Option<Observed> {
        let on = self.settle(now);
        let state = self.lock();
        if let Some(broken) = &state.broken {
            return Some(unreadable(self.vm, broken));
        }
        let (fence, held) = (&state.record.fence, state.record.held.as_ref()?);
        let machine = &held.now.machine;
        let spec = &machine.spec;
        let flags = inside::read(&spec.compose.text);
        let report = state.seen.as_ref().filter(|(report, _)| on && report.boot == held.boot_count);
        let guest = guest(held, on, &state, report, silent, now);
        let report = report.map(|(report, _)| report);
        // What the guest found, if it got so far; else what it would find.
        let of_guest = |hash: Option<&String>| hash.and_then(|text| hex::decode(text).ok()?.try_into().ok());
        Some(Observed {
            vm: self.vm,
            // As long as this is so, its watcher starts it again and again.
            comes_back: held.meant_on && held.on.is_none(),
            boot_count: held.boot_count,
            generation: fence.generation,
            revision: machine.revision,
            compose_hash: match report {
                Some(report) => report.compose_hash,
                None => ComposeHash::from(sha256(spec.compose.text.as_bytes())),
            },
            instance_id: report.map_or(machine.instance_id, |report| report.instance_id),
            size: spec.booking(),
            image: spec.image.clone(),
            user_config_sha256: match report {
                Some(report) => of_guest(report.user_config_sha256.as_ref()),
                None => spec.user_config_sha256(),
            },
            encrypted_env_sha256: match report {
                Some(report) => of_guest(report.sealed_env_sha256.as_ref()),
                None => spec.sealed_env_sha256(),
            },
            env_keys: held.env_keys.clone(),
            public_logs: flags.public_logs,
            public_sysinfo: flags.public_sysinfo,
            public_tcbinfo: flags.public_tcbinfo,
            started_at: held.started_at,
            stopped_at: held.stopped_at,
            last_stop: held.last_stop,
            last_downtime_ms: held.last_downtime_ms,
            containers: match (report, &guest) {
                (Some(report), Guest::Done) => {
                    let one = |one: &casemate_types::guest::Container| Container {
                        service: one.service.clone(),
                        image: one.image.clone(),
                        digest: Some(one.digest.clone()).filter(|digest| !digest.is_empty()),
                        running: one.running,
                        exit_code: one.exit_code,
                        restarts: one.restarts,
                        started_at: one.started_at,
                    };
                    report.containers.iter().map(one).collect()
                }
                _ => Vec::new(),
            },
            ports: held.ports.clone(),
            images: held.now.images.clone(),
            guest,
        })
    }
}

fn guest(
    held: &Held,
    on: bool,
    state: &State,
    report: Option<&(Report, Timestamp)>,
    silent: Duration,
    now: Timestamp,
) -> Guest {
    let booting = |progress: &str| Guest::Booting { progress: progress.to_owned() };
    if let Some(since) = held.frozen_since.filter(|_| on) {
        return Guest::Frozen { since };
    }
    if let Some(why) = state.halted.filter(|_| on) {
        return booting(why);
    }
    match (on, report) {
        (false, _) => match &state.failed {
            Some(error) => Guest::Failed { error: error.clone() },
            None if held.on.is_some() => booting("starting the machine"),
            None if held.meant_on => Guest::Exited,
            None => Guest::Off,
        },
        (true, None) => booting("starting the OS image"),
        (true, Some((report, at))) => match &report.phase {
            Phase::Failed(error) => Guest::Failed { error: error.clone() },
            _ if now.duration_since(*at).unsigned_abs() > silent => booting("the guest does not answer"),
            Phase::Booting(progress) => booting(progress),
            Phase::WaitsForKeys => booting("getting keys"),
            Phase::Done => Guest::Done,
            Phase::Stopping if held.done_at.is_some() => Guest::Done,
            Phase::Stopping => booting("shutting down"),
        },
    }
}

/// A machine of which only its folder is known.
fn unreadable(vm: VmUuid, why: &str) -> Observed {
    Observed {
        vm,
        guest: Guest::Failed { error: why.to_owned() },
        comes_back: false,
        boot_count: 0,
        generation: 0,
        revision: 0,
        compose_hash: ComposeHash::from([0; 32]),
        instance_id: InstanceId([0; 20]),
        size: Booking::default(),
        image: String::new(),
        user_config_sha256: None,
        encrypted_env_sha256: None,
        env_keys: Vec::new(),
        public_logs: false,
        public_sysinfo: false,
        public_tcbinfo: false,
        started_at: None,
        stopped_at: None,
        last_stop: None,
        last_downtime_ms: None,
        containers: Vec::new(),
        ports: Vec::new(),
        images: Vec::new(),
    }
}

/// Says no.
pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Refused(why.into()))
}

/// The node's own disk does not do what it should.
pub(super) fn lost(error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::NoRoom(format!("it cannot keep its state: {error}"))
        }
        _ => Error::Unreachable(format!("it cannot keep its state: {error}")),
    }
}
