//! Compares three accounts of what happened: what clients were told, what the store keeps, and what the node did.
//!
//! Everything is counted from nothing. The store is read with plain SQL and the node is asked directly, so that an error in
//! the server's own reading does not hide one in its writing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::path::Path;

use casemate_server::cvm::spec::{Booking, sha256};
use casemate_server::driver::remote::RemoteSim;
use casemate_server::driver::sim::{Change, Effect};
use casemate_server::driver::{Driver, Guest, Observed};
use casemate_types::ids::VmUuid;
use rusqlite::{Connection, OpenFlags, Row};
use serde_json::Value;
use uuid::Uuid;

use crate::client::{Answer, Outcome};
use crate::load::{Asked, Entry, Told};

/// The store's account and the node's.
pub(crate) struct Books {
    pub(crate) cvms: BTreeMap<i64, Cvm>,
    pub(crate) operations: HashMap<Uuid, Operation>,
    pub(crate) revisions: BTreeMap<(i64, u64), Revision>,
    pub(crate) events: Vec<Event>,
    /// Booked on the node, and how many CVMs are counted there.
    pub(crate) node: (Booking, u64),
    /// CVMs and apps as the workspace counts them.
    pub(crate) counted: (u64, u64),
    /// What SQLite finds wrong with its file.
    pub(crate) damage: Vec<String>,
    pub(crate) machines: HashMap<VmUuid, Observed>,
    pub(crate) effects: HashMap<VmUuid, Vec<Effect>>,
    /// Occupied on the node.
    pub(crate) used: Booking,
}

pub(crate) struct Cvm {
    pub(crate) uid: String,
    pub(crate) vm: VmUuid,
    pub(crate) app: i64,
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) power: String,
    pub(crate) revision: u64,
    pub(crate) latest_revision: u64,
    pub(crate) generation: u64,
    pub(crate) open: bool,
    pub(crate) booked: Booking,
    pub(crate) deleted: bool,
}

pub(crate) struct Operation {
    pub(crate) cvm: i64,
    pub(crate) generation: u64,
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) steps: Vec<String>,
    pub(crate) target: u64,
    pub(crate) reason: Option<String>,
}

pub(crate) struct Revision {
    pub(crate) cause: String,
    pub(crate) op: Uuid,
    pub(crate) user_config: Option<Vec<u8>>,
    pub(crate) compose_hash: Vec<u8>,
    pub(crate) size: Booking,
}

pub(crate) struct Event {
    pub(crate) seq: i64,
    pub(crate) op: Option<Uuid>,
    pub(crate) kind: String,
    pub(crate) key: Option<i64>,
    pub(crate) request: Option<String>,
    pub(crate) step: Option<String>,
}

/// What does not fit together. Empty: all is well.
#[derive(Default)]
pub(crate) struct Findings(pub(crate) Vec<String>);

impl Findings {
    /// Notes `what` unless `holds`.
    pub(crate) fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what());
        }
    }

    fn equal<T: PartialEq + Debug>(&mut self, found: &T, wanted: &T, what: impl FnOnce() -> String) {
        self.check(found == wanted, || format!("{}: {found:?}, not {wanted:?}", what()));
    }

    /// Fails the test if there is anything.
    pub(crate) fn assert_none(&self) {
        let some = self.0.iter().take(20).cloned().collect::<Vec<_>>().join("\n  ");
        assert!(self.0.is_empty(), "{} things do not fit together:\n  {some}", self.0.len());
    }
}

/// Opens a store for reading.
pub(crate) fn open(data: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    Connection::open_with_flags(data.join("casemate.db"), flags).expect("there is a store")
}

impl Books {
    /// Reads the store in `data`, whose server has ended, and asks the node.
    pub(crate) async fn read(data: &Path, node: &RemoteSim) -> Self {
        let mut books = Self::of_store(&open(data)).expect("the store reads");
        let machines = node.inventory().await.expect("the node answers");
        books.machines = machines.into_iter().map(|machine| (machine.vm, machine)).collect();
        for cvm in books.cvms.values() {
            let effects = node.history(cvm.vm).await.expect("the node answers");
            books.effects.insert(cvm.vm, effects);
        }
        books.used = node.used().await.expect("the node answers");
        books
    }

    fn of_store(db: &Connection) -> rusqlite::Result<Self> {
        let cvms = "SELECT id, uid, vm_uuid, app, name, status, power, revision, latest_revision, generation, open_op IS NOT NULL,
          booked_vcpu, booked_memory_mb, booked_disk_gb, booked_gpus, deleted_at IS NOT NULL FROM cvm";
        let operations =
            "SELECT id, cvm_id, generation, kind, status, steps, target, reason FROM operation ORDER BY id";
        let revisions = "SELECT cvm_id, number, cause, op, user_config, compose_hash, vcpu, memory_mb, disk_gb FROM revision";
        let node = "SELECT sum(booked_vcpu), sum(booked_memory_mb), sum(booked_disk_gb), sum(booked_gpus), sum(cvm_count)
          FROM node";
        let workspace = "SELECT cvm_count, app_count FROM workspace";
        let events = "SELECT seq, op, kind, key_id, request_id, data FROM event ORDER BY seq";
        Ok(Self {
            cvms: rows(db, cvms, |row| Ok((row.get(0)?, cvm(row)?)))?,
            operations: rows(db, operations, |row| Ok((row.get(0)?, operation(row)?)))?,
            revisions: rows(db, revisions, |row| Ok(((row.get(0)?, row.get(1)?), revision(row)?)))?,
            events: rows(db, events, event)?,
            node: db.query_row(node, [], |row| Ok((booking(row, 0)?, row.get(4)?)))?,
            counted: db.query_row(workspace, [], |row| Ok((row.get(0)?, row.get(1)?)))?,
            damage: damage(db)?,
            machines: HashMap::new(),
            effects: HashMap::new(),
            used: Booking::default(),
        })
    }

    /// Everything, for a cloud that has come to rest after `told`.
    pub(crate) fn audit(&self, told: &Told) -> Findings {
        let mut findings = self.audit_alone();
        findings.0.extend(told.wrong.iter().cloned());
        let index = Index::new(self);
        for entry in &told.log {
            self.entry(&index, entry, &mut findings);
        }
        self.nothing_unasked(&index, &told.log, &mut findings);
        findings
    }

    /// As much of it as does not depend on what clients were told.
    pub(crate) fn audit_alone(&self) -> Findings {
        let mut findings = Findings(self.damage.clone());
        self.events(&mut findings);
        self.at_rest(&mut findings);
        self.accounts(&mut findings);
        for cvm in self.cvms.values() {
            self.machine(cvm, &mut findings);
        }
        for operation in self.operations.values() {
            self.effects_of(operation, &mut findings);
        }
        findings
    }

    /// What a client knows is what the store keeps.
    fn entry(&self, index: &Index<'_>, entry: &Entry, findings: &mut Findings) {
        let Entry { asked, cvm, mark, outcome, repeated } = entry;
        let found = match asked {
            Asked::Create => Some(index.names.get(cvm.as_str()).copied().unwrap_or_default()),
            Asked::Update => Some(index.marks.get(&sha256(mark.as_bytes())).map_or(0, Vec::len)),
            Asked::Start | Asked::Stop | Asked::Shutdown | Asked::Restart | Asked::Delete => None,
        };
        if let Some(found) = found {
            let fits = match outcome {
                Outcome::Ok(_) => found == 1,
                Outcome::Unknown(_) => found <= 1,
                Outcome::Refused(_) | Outcome::NotSent => found == 0,
            };
            findings.check(fits, || format!("stored {found} times: {entry:?}"));
        }
        let Outcome::Ok(Answer { body, request_id, .. }) = outcome else { return };
        if let Some(id) = body["correlation_id"].as_str() {
            let id: Uuid = id.parse().expect("a UUID");
            let operation = self.operations.get(&id);
            let fits = operation.is_some_and(|operation| {
                self.cvms.get(&operation.cvm).is_some_and(|found| found.uid == *cvm)
                    && self.revisions.get(&(operation.cvm, operation.target)).is_some_and(|revision| {
                        revision.op == id && revision.user_config.as_deref() == Some(&sha256(mark.as_bytes()))
                    })
            });
            findings.check(fits, || format!("its operation is not in the store: {entry:?}"));
        }
        let accepted = index.requests.get(request_id.as_str()).copied().unwrap_or_default();
        // A second deletion, and an answer that was kept, belong to another request.
        let fits = match asked {
            Asked::Delete => accepted <= 1,
            _ if *repeated => accepted <= 1,
            _ => accepted == 1,
        };
        findings.check(fits, || format!("accepted {accepted} times: {entry:?}"));
        if *asked == Asked::Delete {
            let gone = self.cvms.values().find(|found| found.uid == *cvm).is_none_or(|found| found.deleted);
            findings.check(gone, || format!("it is still there: {entry:?}"));
        }
    }

    /// Nothing was done that nobody asked for, nor more often than it was asked for.
    fn nothing_unasked(&self, index: &Index<'_>, log: &[Entry], findings: &mut Findings) {
        let mut asked: HashMap<(&str, &str), (u64, u64)> = HashMap::new();
        for entry in log {
            let (surely, perhaps) = match entry.outcome {
                Outcome::Ok(_) => (1, 1),
                Outcome::Unknown(_) => (0, 1),
                Outcome::Refused(_) | Outcome::NotSent => (0, 0),
            };
            // A restart may have become a start; then it counts there as a perhaps.
            let (first, others) = entry.asked.kinds().split_first().expect("at least one");
            let exactly = others.is_empty() && entry.asked != Asked::Delete;
            let count = asked.entry((entry.cvm.as_str(), first)).or_default();
            *count = (count.0 + if exactly { surely } else { 0 }, count.1 + perhaps);
            for other in others {
                asked.entry((entry.cvm.as_str(), other)).or_default().1 += perhaps;
            }
        }
        for ((cvm, kind), done) in &index.asked_for {
            let (least, most) = asked.get(&(*cvm, *kind)).copied().unwrap_or_default();
            findings.check((least..=most).contains(done), || {
                format!("{kind} of {cvm}: done {done} times, asked for {least} to {most} times")
            });
        }
        for operation in self.operations.values() {
            let known = operation.kind != "recover";
            findings.check(known, || format!("a machine had to be recovered: {}", operation.what()));
        }
    }

    /// Events have no gap, and tell of each operation that it was accepted and how it ended, once each.
    fn events(&self, findings: &mut Findings) {
        for (event, seq) in self.events.iter().zip(1..) {
            findings.equal(&event.seq, &seq, || "number of an event".into());
        }
        let mut of: HashMap<Uuid, (u32, u32)> = HashMap::new();
        let mut steps = HashSet::new();
        for event in &self.events {
            let Some(op) = event.op else { continue };
            let counts = of.entry(op).or_default();
            match event.kind.as_str() {
                "operation.accepted" => counts.0 += 1,
                "operation.succeeded" | "operation.failed" | "operation.cancelled" => counts.1 += 1,
                "step.finished" => {
                    let once = steps.insert((op, event.step.as_deref()));
                    findings.check(once, || format!("step {:?} of {op} was recorded twice", event.step));
                }
                _ => {}
            }
        }
        for (id, operation) in &self.operations {
            let wanted = if operation.steps.is_empty() { (0, 1) } else { (1, 1) };
            let found = of.remove(id).unwrap_or_default();
            findings.equal(&found, &wanted, || format!("accepted and ended events of {}", operation.what()));
        }
        findings.check(of.is_empty(), || format!("events of operations that are not there: {of:?}"));
    }

    /// Nothing is open, nothing failed.
    fn at_rest(&self, findings: &mut Findings) {
        for operation in self.operations.values() {
            let ended = ["succeeded", "cancelled"].contains(&operation.status.as_str());
            findings.check(ended, || {
                format!("{} is {}: {:?}", operation.what(), operation.status, operation.reason)
            });
        }
        // The last accepted order decides, also one that ended another or was ended by one.
        let mut powers: HashMap<i64, (u64, &str)> = HashMap::new();
        for operation in self.operations.values().filter(|operation| !operation.steps.is_empty()) {
            let power = match operation.kind.as_str() {
                "create" | "start" | "restart" => "on",
                "stop" | "shutdown" => "off",
                _ => continue,
            };
            let last = powers.entry(operation.cvm).or_default();
            *last = (*last).max((operation.generation, power));
        }
        for (id, cvm) in &self.cvms {
            let steady = match (cvm.deleted, cvm.power.as_str()) {
                (true, _) => "deleted",
                (false, "on") => "running",
                (false, _) => "stopped",
            };
            findings.equal(&cvm.status.as_str(), &steady, || format!("status of {}", cvm.name));
            if let Some(wanted) = powers.get(id).map(|(_, power)| *power) {
                findings.equal(&cvm.power.as_str(), &wanted, || {
                    format!("power of {} and its last order", cvm.name)
                });
            }
            findings.check(!cvm.open, || format!("{} has an operation at work", cvm.name));
        }
    }

    /// What is booked and counted is the sum over what is there.
    fn accounts(&self, findings: &mut Findings) {
        let live = || self.cvms.iter().filter(|(_, cvm)| !cvm.deleted);
        let booked = sum(live().map(|(_, cvm)| cvm.booked));
        let current =
            |(id, cvm): (&i64, &Cvm)| self.revisions.get(&(*id, cvm.revision)).map(|revision| revision.size);
        let needed = sum(live().filter_map(current));
        let used = sum(live().filter(|(_, cvm)| self.machines.contains_key(&cvm.vm)).filter_map(current));
        findings.equal(&self.node.0, &booked, || "booked on the node and by its CVMs".into());
        findings.equal(&booked, &needed, || "booked and needed by the current revisions".into());
        findings.equal(&self.used, &used, || "occupied on the node and needed by the CVMs on it".into());
        let count = live().count() as u64;
        let apps = live().map(|(_, cvm)| cvm.app).collect::<BTreeSet<_>>().len() as u64;
        findings.equal(&self.node.1, &count, || "CVMs counted on the node".into());
        findings.equal(&self.counted, &(count, apps), || "CVMs and apps counted in the workspace".into());
        let known: HashSet<_> = live().map(|(_, cvm)| cvm.vm).collect();
        for vm in self.machines.keys() {
            findings.check(known.contains(vm), || format!("machine {vm} belongs to nobody"));
        }
    }

    /// A machine went through an orderly life, and is what its current revision says.
    fn machine(&self, cvm: &Cvm, findings: &mut Findings) {
        let name = &cvm.name;
        let effects = self.effects.get(&cvm.vm).map(Vec::as_slice).unwrap_or_default();
        let mut seen = HashSet::new();
        let (mut on, mut removed, mut last_revision, mut generation, mut starts) = (false, false, 0, 0, 0);
        for effect in effects {
            let once = seen.insert((effect.generation, effect.change.as_str()));
            let order = effect.generation >= generation && !removed;
            let fits = match effect.change {
                Change::Start => !std::mem::replace(&mut on, true),
                Change::Stop => std::mem::replace(&mut on, false),
                Change::Apply => !on && effect.revision > last_revision,
                Change::Remove => !std::mem::replace(&mut removed, true),
            };
            findings.check(once && order && fits, || {
                format!("{name}: {effect:?} is out of place in {effects:?}")
            });
            if effect.change == Change::Apply {
                last_revision = effect.revision;
            }
            starts += u64::from(effect.change == Change::Start);
            generation = effect.generation;
        }
        findings.check(generation <= cvm.generation, || {
            format!("{name}: an effect of an operation that is not stored")
        });
        let Some(machine) = self.machines.get(&cvm.vm).filter(|_| !cvm.deleted) else {
            let never_made = effects.iter().all(|effect| effect.change == Change::Remove);
            findings.check(cvm.deleted || (never_made && cvm.power == "off"), || {
                format!("{name} is not on its node")
            });
            return;
        };
        findings.equal(&machine.boot_count, &starts, || format!("boots of {name} and starts"));
        findings.equal(&machine.revision, &cvm.revision, || format!("revision of {name} on the node"));
        findings.equal(&last_revision, &cvm.revision, || format!("revision last applied to {name}"));
        let wanted = if cvm.power == "on" { Guest::Done } else { Guest::Off };
        findings.equal(&machine.guest, &wanted, || format!("guest of {name}"));
        let id =
            self.cvms.iter().find(|(_, other)| other.vm == cvm.vm).map(|(id, _)| *id).expect("it is there");
        let Some(revision) = self.revisions.get(&(id, cvm.revision)) else {
            return findings.check(false, || format!("the current revision of {name} is not there"));
        };
        findings.equal(&machine.compose_hash.as_bytes().to_vec(), &revision.compose_hash, || {
            format!("compose hash of {name} on the node")
        });
        findings.equal(&machine.size, &revision.size, || format!("size of {name} on the node"));
        findings.equal(&machine.user_config_sha256.map(Vec::from), &revision.user_config, || {
            format!("user config of {name} on the node")
        });
        for number in 1..=cvm.latest_revision {
            findings.check(self.revisions.contains_key(&(id, number)), || {
                format!("{name} lacks revision {number}")
            });
        }
    }

    /// An operation that succeeded has had its effects, each once.
    fn effects_of(&self, operation: &Operation, findings: &mut Findings) {
        let Some(cvm) = self.cvms.get(&operation.cvm) else {
            return findings.check(false, || format!("{} has no CVM", operation.what()));
        };
        if operation.status != "succeeded" || operation.steps.is_empty() {
            return;
        }
        let effects = self.effects.get(&cvm.vm).map(Vec::as_slice).unwrap_or_default();
        let count = |change: Change| {
            let by_it =
                |effect: &&Effect| effect.generation == operation.generation && effect.change == change;
            effects.iter().filter(by_it).count()
        };
        let has = |step: &str| operation.steps.iter().any(|name| name == step);
        if has("start") {
            findings.equal(&count(Change::Start), &1, || format!("starts of {}", operation.what()));
        }
        let brings_a_spec = ["create", "update", "put_back"].contains(&operation.kind.as_str());
        if has("apply") && brings_a_spec {
            let applied = effects
                .iter()
                .filter(|effect| effect.change == Change::Apply && effect.revision == operation.target)
                .collect::<Vec<_>>();
            let fits = matches!(applied.as_slice(), [one] if one.generation == operation.generation);
            findings.check(fits, || format!("{} was applied as {applied:?}", operation.what()));
        }
    }
}

impl Operation {
    fn what(&self) -> String {
        format!("{} {} of CVM {}", self.kind, self.generation, self.cvm)
    }
}

/// The store's account by what clients know.
struct Index<'a> {
    /// How many CVMs have this name.
    names: HashMap<&'a str, usize>,
    /// Revisions that updates made, by the hash of their user config.
    marks: HashMap<[u8; 32], Vec<(i64, u64)>>,
    /// How many operations were accepted in this request.
    requests: HashMap<&'a str, usize>,
    /// How many operations of this kind were asked for by a key, by CVM (for a create: its name) and kind.
    asked_for: HashMap<(&'a str, &'a str), u64>,
}

impl<'a> Index<'a> {
    fn new(books: &'a Books) -> Self {
        let mut index = Self {
            names: HashMap::new(),
            marks: HashMap::new(),
            requests: HashMap::new(),
            asked_for: HashMap::new(),
        };
        for cvm in books.cvms.values() {
            *index.names.entry(&cvm.name).or_default() += 1;
        }
        for (place, revision) in &books.revisions {
            if revision.cause == "update"
                && let Some(config) = &revision.user_config
            {
                let hash: [u8; 32] = config.as_slice().try_into().expect("SHA-256");
                index.marks.entry(hash).or_default().push(*place);
            }
        }
        for event in &books.events {
            let accepts = matches!(event.kind.as_str(), "operation.accepted" | "operation.succeeded");
            let (Some(_), true, Some(op)) = (event.key, accepts, event.op) else { continue };
            if let Some(request) = &event.request {
                *index.requests.entry(request).or_default() += 1;
            }
            let Some(operation) = books.operations.get(&op) else { continue };
            let Some(cvm) = books.cvms.get(&operation.cvm) else { continue };
            let of = if operation.kind == "create" { &cvm.name } else { &cvm.uid };
            *index.asked_for.entry((of, &operation.kind)).or_default() += 1;
        }
        index
    }
}

/// What SQLite finds wrong with a file.
pub(crate) fn damage(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut found: Vec<String> = rows(db, "PRAGMA integrity_check", |row| row.get(0))?;
    found.retain(|line| line != "ok");
    found.extend(rows::<_, Vec<_>>(db, "PRAGMA foreign_key_check", |row| {
        let table: String = row.get(0)?;
        Ok(format!("a row of {table} refers to nothing"))
    })?);
    Ok(found)
}

/// All rows that `sql` gives.
pub(crate) fn rows<T, C: FromIterator<T>>(
    db: &Connection,
    sql: &str,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<C> {
    db.prepare(sql)?.query_map([], read)?.collect()
}

fn booking(row: &Row<'_>, at: usize) -> rusqlite::Result<Booking> {
    let [vcpu, memory_mb, disk_gb, gpus] =
        [row.get(at)?, row.get(at + 1)?, row.get(at + 2)?, row.get(at + 3)?];
    Ok(Booking { vcpu, memory_mb, disk_gb, gpus })
}

fn sum(bookings: impl Iterator<Item = Booking>) -> Booking {
    bookings.fold(Booking::default(), |sum, one| Booking {
        vcpu: sum.vcpu + one.vcpu,
        memory_mb: sum.memory_mb + one.memory_mb,
        disk_gb: sum.disk_gb + one.disk_gb,
        gpus: sum.gpus + one.gpus,
    })
}

fn cvm(row: &Row<'_>) -> rusqlite::Result<Cvm> {
    Ok(Cvm {
        uid: row.get(1)?,
        vm: VmUuid(row.get(2)?),
        app: row.get(3)?,
        name: row.get(4)?,
        status: row.get(5)?,
        power: row.get(6)?,
        revision: row.get(7)?,
        latest_revision: row.get(8)?,
        generation: row.get(9)?,
        open: row.get(10)?,
        booked: booking(row, 11)?,
        deleted: row.get(15)?,
    })
}

fn operation(row: &Row<'_>) -> rusqlite::Result<Operation> {
    let steps: String = row.get(5)?;
    let steps: Value = serde_json::from_str(&steps).expect("steps are JSON");
    let steps = steps.as_array().expect("a list");
    Ok(Operation {
        cvm: row.get(1)?,
        generation: row.get(2)?,
        kind: row.get(3)?,
        status: row.get(4)?,
        steps: steps.iter().map(|step| step["name"].as_str().expect("a name").to_owned()).collect(),
        target: row.get(6)?,
        reason: row.get(7)?,
    })
}

fn revision(row: &Row<'_>) -> rusqlite::Result<Revision> {
    Ok(Revision {
        cause: row.get(2)?,
        op: row.get(3)?,
        user_config: row.get(4)?,
        compose_hash: row.get(5)?,
        size: Booking { vcpu: row.get(6)?, memory_mb: row.get(7)?, disk_gb: row.get(8)?, gpus: 0 },
    })
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let data: Option<String> = row.get(5)?;
    let data: Value = data.and_then(|data| serde_json::from_str(&data).ok()).unwrap_or_default();
    Ok(Event {
        seq: row.get(0)?,
        op: row.get(1)?,
        kind: row.get(2)?,
        key: row.get(3)?,
        request: row.get(4)?,
        step: data["step"].as_str().map(str::to_owned),
    })
}
