//! Operations: accepted, claimed, carried on step by step, ended.

use casemate_types::ids::OperationId;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::answers::Receipt;
use super::approvals::Closing;
use super::events::{self, NewEvent};
use super::rows::{
    self, CVM, OPERATION, Origin, Parts, const_format, insert_revision, json, millis, named, operation_by_id,
};
use super::{Error, Result, Store, nodes};
use crate::auth::Author;
use crate::cvm::spec::Spec;
use crate::cvm::state::{Cvm, IfMatch, OpenOperation, Power, Status};
use crate::driver::{Machine, Report};
use crate::workflow::operation::{
    Aftermath, Change, FailCode, FailReason, Held, Kind, Lane, Operation, Options, Records, State, Step,
    StepName, steps_after_interrupting,
};
use crate::workflow::shares::Shares;
use crate::workflow::step::Done;

/// A piece of work to be accepted on an existing CVM.
#[derive(Clone, Debug)]
pub struct NewOperation {
    /// Its id, drawn by the caller: the answer names it.
    pub id: OperationId,
    /// The CVM.
    pub cvm_id: i64,
    /// What it does.
    pub kind: Kind,
    /// Its steps; none for work that is done with the accept itself.
    pub steps: Vec<StepName>,
    /// Desired power from now on, if it changes.
    pub power: Option<Power>,
    /// A new spec, if it brings one.
    pub spec: Option<NewSpec>,
    /// What it does beside its steps.
    pub options: Options,
    /// What it changes.
    pub diff: Vec<Change>,
    /// The approval that it carries out; closed by the same transaction.
    pub closes: Option<Closing>,
    /// Who asks; nobody if the server does it by itself.
    pub author: Option<Author>,
    /// When.
    pub at: Timestamp,
}

/// What was heard from the node of a step that is put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing, or nothing of the step.
    Nothing,
    /// That it is at work on it: it is not silent.
    FromNode,
}

/// A spec to be stored as a new revision.
#[derive(Clone, Debug)]
pub struct NewSpec {
    /// Its content.
    pub spec: Spec,
    /// The revision whose content this is, for a rollback.
    pub content_of: Option<u64>,
}

/// What an accept left behind.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The stored operation.
    pub operation: Operation,
    /// The CVM as clients see it from now on.
    pub cvm: Cvm,
}

/// A claimed operation with everything its steps need.
#[derive(Clone, Debug)]
pub struct Work {
    /// The operation; its `claim` is the caller's.
    pub operation: Operation,
    /// The CVM.
    pub cvm: Cvm,
    /// The machine as the operation wants it.
    pub machine: Machine,
}

/// What may be claimed.
#[derive(Clone, Debug)]
pub struct Room {
    /// At most so many operations.
    pub limit: usize,
    /// What each workspace has in hand; one that has its share gets nothing more.
    pub workspaces: Shares,
    /// What talks to each node; one that has its share gets nothing more.
    pub nodes: Shares,
    /// The node and workspace whose turn it is, and of those that follow them.
    pub from: (i64, i64),
}

impl From<usize> for Room {
    /// So many, whoever has how many.
    fn from(limit: usize) -> Self {
        Self { limit, workspaces: Shares::endless(), nodes: Shares::endless(), from: (0, 0) }
    }
}

/// What was claimed, and what was not.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The operations.
    pub work: Vec<Work>,
    /// If there are none: when the next is due that has room, or the lease on one ends.
    pub next: Option<Timestamp>,
    /// Something may be due for which there was no room.
    pub crowded: bool,
}

/// Which operations a list shows.
#[derive(Clone, Debug, Default)]
pub struct OperationFilter {
    /// Only of this CVM.
    pub cvm_id: Option<i64>,
    /// Only with this status.
    pub status: Option<String>,
    /// Only those that wait for something.
    pub stuck: bool,
    /// Only older than this one.
    pub before: Option<OperationId>,
    /// At most so many.
    pub limit: usize,
}

impl Store {
    /// Stores an accepted operation: revision, operation, steps and event, or none of them.
    ///
    /// `OperationOpen` if one is at work on the CVM, `Changed` if the CVM has moved on since it was `seen`.
    pub async fn operation_accept(
        &self,
        new: NewOperation,
        seen: Cvm,
        receipt: Option<Receipt<Accepted>>,
    ) -> Result<Accepted> {
        self.change_and_keep(receipt, move |tx| accept_if(tx, &new, &seen)).await
    }

    /// As [`Store::operation_accept`] for several CVMs in one transaction. One that cannot be accepted leaves the others.
    pub async fn operations_accept(
        &self,
        new: Vec<(NewOperation, Cvm)>,
        receipt: Option<Receipt<Vec<Option<Accepted>>>>,
    ) -> Result<Vec<Option<Accepted>>> {
        self.change_and_keep(receipt, move |tx| {
            let mut last = 0;
            let mut accepted = Vec::with_capacity(new.len());
            for (new, seen) in &new {
                accepted.push(match accept_if(tx, new, seen) {
                    Ok((one, seq)) => {
                        last = seq;
                        Some(one)
                    }
                    // Found out before anything was written.
                    Err(Error::OperationOpen | Error::Changed | Error::Missing) => None,
                    Err(error) => return Err(error),
                });
            }
            Ok((accepted, last))
        })
        .await
    }

    /// Accepts a stop or delete, which never wait: it ends the operation at work and settles its spec.
    ///
    /// `OperationOpen` if a deletion is at work: nothing ends that. `Changed` if the CVM is in no state of `if_match`.
    pub async fn operation_interrupt(
        &self,
        new: NewOperation,
        if_match: Option<IfMatch>,
        receipt: Option<Receipt<Accepted>>,
    ) -> Result<Accepted> {
        self.change_and_keep(receipt, move |tx| {
            let mut cvm = rows::cvm_by_id(tx, new.cvm_id)?;
            if if_match.as_ref().is_some_and(|seen| !seen.holds(&cvm)) {
                return Err(Error::Changed);
            }
            let open = cvm.open.take().map(|open| operation_by_id(tx, open.id)).transpose()?;
            if open.as_ref().is_some_and(|open| open.kind == Kind::Delete) {
                return Err(Error::OperationOpen);
            }
            if new.kind == Kind::Delete {
                super::approvals::cancel_all(tx, cvm.id, new.author.as_ref(), new.at)?;
            }
            let steps = steps_after_interrupting(new.kind, open.as_ref());
            let new = NewOperation { steps, ..new.clone() };
            let settles = new.steps.contains(&StepName::Apply);
            if let Some(open) = &open {
                end(tx, open, "cancelled", new.at, Ending { ended_by: Some(new.id), ..Ending::default() })?;
                events::append(tx, &NewEvent::of_operation("operation.cancelled", &cvm, open, new.at))?;
            }
            let target = open.filter(|_| settles).map(|open| open.target);
            accept_onto(tx, &cvm, &new, target)
        })
        .await
    }

    /// Calls an operation off that has not touched the machine yet. `ClaimLost` if it has, `Changed` if its CVM is in no
    /// state of `if_match`.
    pub async fn operation_cancel(
        &self,
        id: OperationId,
        if_match: Option<IfMatch>,
        author: Author,
        at: Timestamp,
        receipt: Option<Receipt<Accepted>>,
    ) -> Result<Accepted> {
        self.change_and_keep(receipt, move |tx| {
            let operation = operation_by_id(tx, id)?;
            if let Some(seen) = &if_match
                && !seen.holds(&rows::cvm_by_id(tx, operation.cvm_id)?)
            {
                return Err(Error::Changed);
            }
            if !operation.can_be_cancelled() {
                return Err(Error::ClaimLost);
            }
            end(tx, &operation, "cancelled", at, Ending::default())?;
            leave_untouched(tx, &operation, at)?;
            let cvm = rows::cvm_by_id(tx, operation.cvm_id)?;
            let event = NewEvent {
                author: Some(&author),
                ..NewEvent::of_operation("operation.cancelled", &cvm, &operation, at)
            };
            let seq = events::append(tx, &event)?;
            Ok((Accepted { operation: operation_by_id(tx, id)?, cvm }, seq))
        })
        .await
    }

    /// Hands out operations of `lane`, or of any, that are due and in nobody's hands, as far as there is `room`.
    ///
    /// One that does not read back keeps nobody waiting: it fails, and whoever wants its CVM can go on with it.
    pub async fn operation_claim(
        &self,
        lane: Option<Lane>,
        now: Timestamp,
        lease_until: Timestamp,
        room: impl Into<Room>,
    ) -> Result<Claimed> {
        let room = room.into();
        let found = self.read(|connection| due(connection, lane, now, room.clone()))?;
        if found.ids.is_empty() {
            return Ok(Claimed { work: Vec::new(), next: found.next, crowded: found.crowded });
        }
        self.change(move |tx| {
            let found = due(tx, lane, now, room.clone())?;
            let (mut work, mut seq) = (Vec::new(), 0);
            for id in found.ids {
                match claim(tx, id, now, lease_until) {
                    Ok(claimed) => work.push(claimed),
                    Err(error) if error.is_about_content() => seq = give_up(tx, id, &error, now)?,
                    Err(error) => return Err(error),
                }
            }
            Ok((Claimed { work, next: Some(now), crowded: found.crowded }, seq))
        })
        .await
    }

    /// Keeps the claim for longer. `ClaimLost` if it is somebody else's by now.
    pub async fn operation_renew(&self, held: Held, lease_until: Timestamp) -> Result<()> {
        self.write(move |tx| {
            let sql =
                "UPDATE operation SET lease_until = ? WHERE id = ? AND claim = ? AND status = 'running'";
            match tx.prepare_cached(sql)?.execute(params![millis(lease_until), held.id.0, held.claim])? {
                0 => Err(Error::ClaimLost),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Every lease of an earlier process is void: nobody else works on this file.
    pub async fn operation_void_leases(&self) -> Result<usize> {
        self.write(|tx| {
            let sql = "UPDATE operation SET lease_until = 0 WHERE status IN ('queued', 'running') AND lease_until > 0";
            Ok(tx.prepare_cached(sql)?.execute([])?)
        })
        .await
    }

    /// Records the end of a step and begins the next, or ends the operation with the last one.
    ///
    /// Finishing `apply` makes the new revision current. `ClaimLost` if the claim was taken over or the step was recorded.
    pub async fn step_done(&self, held: Held, done: Done, at: Timestamp) -> Result<Operation> {
        self.change(move |tx| {
            let mut operation = recordable(tx, held)?;
            let name = operation.steps[held.step].name;
            operation.steps[held.step].ended_at = Some(at);
            operation.step += 1;
            begin_step(&mut operation, at);
            if name == StepName::Apply {
                let sql = "UPDATE cvm SET revision = ?, updated_at = ? WHERE id = ?";
                tx.prepare_cached(sql)?.execute(params![operation.target, millis(at), operation.cvm_id])?;
            }
            if let Some(why) = &done.hold {
                operation.options.hold_because = Some(why.clone());
                tx.prepare_cached("UPDATE operation SET options = ? WHERE id = ?")?
                    .execute(params![json(&operation.options), held.id.0])?;
            }
            if let Some(seen) = &done.seen {
                let sql = "INSERT OR REPLACE INTO observation (cvm_id, report) VALUES (?, ?)";
                tx.prepare_cached(sql)?.execute(params![operation.cvm_id, Report::of(seen).as_str()])?;
            }
            if !done.images.is_empty() {
                // Settled once: whatever runs this revision later runs the same.
                let sql = "UPDATE revision SET images = ? WHERE cvm_id = ? AND number = ? AND images IS NULL";
                let images = json(&done.images);
                tx.prepare_cached(sql)?.execute(params![images, operation.cvm_id, operation.target])?;
            }
            let last = operation.step == operation.steps.len();
            if last {
                let downtime = downtime(&operation, at);
                end(tx, &operation, "succeeded", at, Ending { downtime_ms: downtime, ..Ending::default() })?;
                succeed(tx, &operation, at)?;
            } else {
                tx.prepare_cached(
                    "UPDATE operation SET steps = ?, step = ?, attempt = 1, waiting_for = NULL WHERE id = ?",
                )?
                .execute(params![json(&operation.steps), operation.step, held.id.0])?;
            }
            let kind = if last { "operation.succeeded" } else { "step.finished" };
            let event = NewEvent {
                step: Some(name),
                note: done.hold.clone(),
                ..NewEvent::of_record(kind, &operation, at)
            };
            let seq = events::append_for(tx, operation.cvm_id, event)?;
            Ok((operation_by_id(tx, held.id)?, seq))
        })
        .await
    }

    /// Puts the present step aside until `not_before`, saying what it waits for, and whether its node has said so.
    pub async fn step_postpone(
        &self,
        held: Held,
        waiting_for: String,
        not_before: Timestamp,
        heard: Heard,
        at: Timestamp,
    ) -> Result<()> {
        self.change(move |tx| {
            let mut operation = recordable(tx, held)?;
            if heard == Heard::FromNode {
                operation.steps[held.step].heard_at = Some(at);
            }
            let news = operation.waiting_for.as_deref() != Some(&waiting_for);
            tx.prepare_cached(
                "UPDATE operation SET status = 'queued', attempt = attempt + 1, waiting_for = ?, not_before = ?, steps = ?,
                 lease_until = 0 WHERE id = ?",
            )?
            .execute(params![waiting_for, millis(not_before), json(&operation.steps), held.id.0])?;
            let seq = match news {
                false => 0,
                true => {
                    let step = Some(operation.steps[held.step].name);
                    let event = NewEvent { step, ..NewEvent::of_record("operation.waiting", &operation, at) };
                    events::append_for(tx, operation.cvm_id, event)?
                }
            };
            Ok(((), seq))
        })
        .await
    }

    /// Ends an operation that did not work, and inserts what follows in the same transaction: nothing slips in between.
    pub async fn operation_fail(
        &self,
        held: Held,
        reason: FailReason,
        aftermath: Aftermath,
        put_back: OperationId,
        at: Timestamp,
    ) -> Result<Operation> {
        self.change(move |tx| {
            let operation = recordable(tx, held)?;
            let follows = matches!(aftermath, Aftermath::PutBack(_)).then_some(put_back);
            let downtime_ms = downtime(&operation, at);
            let ending = Ending { reason: Some(&reason), put_back: follows, downtime_ms, ..Ending::default() };
            end(tx, &operation, "failed", at, ending)?;
            let event = NewEvent {
                step: operation.steps.get(held.step).map(|step| step.name),
                note: Some(reason.message.clone()),
                ..NewEvent::of_record("operation.failed", &operation, at)
            };
            let mut seq = events::append_for(tx, operation.cvm_id, event)?;
            match &aftermath {
                Aftermath::Untouched => leave_untouched(tx, &operation, at)?,
                Aftermath::Error => {
                    let sql = "UPDATE cvm SET status = ?, boot_error = ?, open_op = NULL, updated_at = ? WHERE id = ?";
                    let values = params![Status::Error.as_str(), reason.message, millis(at), operation.cvm_id];
                    tx.prepare_cached(sql)?.execute(values)?;
                    // Where the node may have either spec, room for both stays booked.
                    if operation.has_done(StepName::Apply) || !operation.has_begun(StepName::Apply) {
                        book_current(tx, operation.cvm_id)?;
                    }
                }
                Aftermath::PutBack(options) => {
                    let refused = reason.code == FailCode::Refused;
                    seq = insert_put_back(tx, &operation, refused, put_back, options, at)?;
                }
            }
            Ok((operation_by_id(tx, held.id)?, seq))
        })
        .await
    }

    /// One operation of a workspace.
    pub fn operation(&self, workspace_id: i64, id: OperationId) -> Result<Operation> {
        self.read(|connection| {
            let sql = const_format(OPERATION, "WHERE id = ? AND workspace_id = ?");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = statement.query(params![id.0, workspace_id])?;
            found.next()?.map_or(Err(Error::Missing), rows::operation)
        })
    }

    /// The operation at work on a CVM, whoever asks.
    pub fn operation_open(&self, cvm_id: i64) -> Result<Option<Operation>> {
        self.read(|connection| {
            let sql = const_format(OPERATION, "WHERE id = (SELECT open_op FROM cvm WHERE id = ?)");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = statement.query([cvm_id])?;
            found.next()?.map(rows::operation).transpose()
        })
    }

    /// Operations of a workspace, newest first. One that does not read back is left out.
    pub fn operations(&self, workspace_id: i64, filter: &OperationFilter) -> Result<Vec<Operation>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&const_format(OPERATION, &listed(filter)))?;
            let mut found = statement.query(params![
                workspace_id,
                filter.cvm_id,
                filter.status,
                filter.before.map_or(Uuid::max(), |id| id.0),
                filter.limit,
            ])?;
            let mut operations = Vec::new();
            while let Some(row) = found.next()? {
                match rows::operation(row) {
                    Ok(operation) => operations.push(operation),
                    Err(error) if error.is_about_content() => {
                        tracing::error!(%error, "an operation is left out of a list");
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(operations)
        })
    }

    /// Runs `work` as one transaction, then wakes whoever follows the events that it wrote.
    pub(super) async fn change<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Connection) -> Result<(T, i64)> + Send + 'static,
    {
        let store = self.clone();
        let (value, _) = self.write_then(work, move |(_, seq)| store.announce(*seq)).await?;
        Ok(value)
    }
}

/// The rest of the query for a list. A CVM has an index of its own, and so has what is open; everything else is read along the
/// workspace, from the newest on. SQLite would take the primary key, which passes by the operations of all others.
fn listed(filter: &OperationFilter) -> String {
    let open = filter.stuck || matches!(filter.status.as_deref(), Some("queued" | "running"));
    let index = match (filter.cvm_id, open) {
        (Some(_), _) => "operation_one_at_a_time",
        (None, true) => "operation_due",
        (None, false) => "operation_of_workspace",
    };
    let mut tail = format!("INDEXED BY {index} WHERE workspace_id = ?1 AND id < ?4");
    let conditions = [
        (open, " AND status IN ('queued', 'running')"),
        (filter.cvm_id.is_some(), " AND cvm_id = ?2"),
        (filter.status.is_some(), " AND status = ?3"),
        (filter.stuck, " AND waiting_for IS NOT NULL"),
    ];
    tail.extend(conditions.into_iter().filter(|(wanted, _)| *wanted).map(|(_, condition)| condition));
    tail.push_str(" ORDER BY id DESC LIMIT ?5");
    tail
}

/// The condition on open operations of a lane, in the words of the index that finds them.
fn open_in(lane: Option<Lane>) -> &'static str {
    match lane {
        None => "status IN ('queued', 'running')",
        Some(Lane::Ordinary) => "status IN ('queued', 'running') AND kind NOT IN ('stop', 'delete')",
        Some(Lane::Urgent) => "status IN ('queued', 'running') AND kind IN ('stop', 'delete')",
    }
}

/// Operations that are due, as far as there is room.
#[derive(Default)]
struct Due {
    ids: Vec<OperationId>,
    next: Option<Timestamp>,
    crowded: bool,
}

/// Looks for what is due, one node and workspace after the other. What has no room is passed by as a whole: it takes no longer
/// however much of it there is.
fn due(connection: &Connection, lane: Option<Lane>, now: Timestamp, mut room: Room) -> Result<Due> {
    let open = open_in(lane);
    let mut pairs = connection.prepare_cached(&pair_from(open))?;
    let mut of_one = connection.prepare_cached(&of_pair(open))?;
    let mut due = Due::default();
    let mut earliest: Option<i64> = None;
    // From where it is somebody's turn to the end, and then from the beginning to there.
    let (mut at, mut again) = (room.from, room.from > (0, 0));
    while due.ids.len() < room.limit {
        let pair = pairs.query_row([at.0, at.1], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((node, workspace)) = pair.filter(|pair| again || *pair < room.from || room.from == (0, 0))
        else {
            if !std::mem::take(&mut again) {
                break;
            }
            at = (0, 0);
            continue;
        };
        at = (node, workspace + 1);
        if !room.nodes.may_take(node) {
            due.crowded = true;
            at = (node + 1, 0);
            continue;
        }
        if !room.workspaces.may_take(workspace) {
            due.crowded = true;
            continue;
        }
        let mut found = of_one.query([node, workspace])?;
        while let Some(row) = found.next()? {
            let (not_before, lease_until): (i64, i64) = (row.get(1)?, row.get(2)?);
            let from = not_before.max(lease_until);
            if from > millis(now) {
                earliest = Some(earliest.map_or(from, |earliest| earliest.min(from)));
                if not_before > millis(now) {
                    // Those that follow are not due before this one.
                    break;
                }
            } else if due.ids.len() < room.limit
                && room.workspaces.may_take(workspace)
                && room.nodes.take(node)
            {
                room.workspaces.take(workspace);
                due.ids.push(OperationId(row.get(0)?));
            } else {
                due.crowded = true;
                break;
            }
        }
    }
    due.next = earliest.map(rows::time).transpose()?;
    Ok(due)
}

/// The first node and workspace from these on that have open operations. For `>` SQLite would pass by all of the one before.
fn pair_from(open: &str) -> String {
    format!(
        "SELECT node_id, workspace_id FROM operation WHERE {open} AND (node_id, workspace_id) >= (?1, ?2)
         ORDER BY node_id, workspace_id LIMIT 1"
    )
}

/// The open operations of a node and a workspace, in the order in which they are due.
fn of_pair(open: &str) -> String {
    format!(
        "SELECT id, not_before, lease_until FROM operation WHERE {open} AND node_id = ?1 AND workspace_id = ?2
         ORDER BY not_before"
    )
}

fn claim(tx: &Connection, id: OperationId, now: Timestamp, lease_until: Timestamp) -> Result<Work> {
    let mut operation = operation_by_id(tx, id)?;
    begin_step(&mut operation, now);
    tx.prepare_cached(
        "UPDATE operation SET status = 'running', claim = claim + 1, lease_until = ?, steps = ? WHERE id = ?",
    )?
    .execute(params![millis(lease_until), json(&operation.steps), id.0])?;
    work(tx, id)
}

/// Ends an operation that nobody can work on because something that belongs to it does not read back. Reads nothing of it.
fn give_up(tx: &Connection, id: OperationId, error: &Error, at: Timestamp) -> Result<i64> {
    let (cvm_id, workspace_id, stored): (i64, i64, String) = tx
        .prepare_cached(
            "SELECT cvm_id, workspace_id, kind || ' ' || steps || ' ' || options || ' ' || diff FROM operation WHERE id = ?",
        )?
        .query_row([id.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::error!(cvm.id = cvm_id, op.id = %id, %error, source, stored, "an operation cannot be worked on");
    let reason = FailReason {
        code: FailCode::Unreadable,
        message: "what is stored of this operation cannot be read; look into the server's log".into(),
    };
    // Whatever it is that does not read, the row does from now on.
    tx.prepare_cached(
        "UPDATE operation SET status = 'failed', reason = ?, steps = '[]', step = 0, options = '{}', diff = '[]', lease_until = 0,
           waiting_for = NULL, put_back = NULL, ended_by = NULL, downtime_ms = NULL, ended_at = ? WHERE id = ?",
    )?
    .execute(params![json(&reason), millis(at), id.0])?;
    // What the node has is not known, so room for everything stays booked.
    let sql = "UPDATE cvm SET status = ?, boot_error = ?, open_op = NULL, updated_at = ? WHERE id = ?";
    tx.prepare_cached(sql)?.execute(params![Status::Error.as_str(), reason.message, millis(at), cvm_id])?;
    let event = NewEvent {
        cvm_id: Some(cvm_id),
        op: Some(id),
        note: Some(reason.message),
        ..NewEvent::of_workspace("operation.failed", workspace_id, at)
    };
    events::append(tx, &event)
}

/// Marks the present step as begun, if it was not.
fn begin_step(operation: &mut Operation, at: Timestamp) {
    if let Some(step) = operation.steps.get_mut(operation.step) {
        step.started_at.get_or_insert(at);
    }
}

/// The operation, if it is still held so.
fn recordable(tx: &Connection, held: Held) -> Result<Operation> {
    let operation = operation_by_id(tx, held.id)?;
    let running = matches!(operation.state, State::Running { .. });
    if running && operation.held() == held { Ok(operation) } else { Err(Error::ClaimLost) }
}

fn work(tx: &Connection, id: OperationId) -> Result<Work> {
    let operation = operation_by_id(tx, id)?;
    let cvm = {
        let sql = const_format(CVM, "WHERE c.id = ?");
        let mut statement = tx.prepare_cached(&sql)?;
        let mut found = statement.query([operation.cvm_id])?;
        rows::cvm(found.next()?.ok_or(Error::Missing)?)?
    };
    let spec = rows::spec(tx, operation.cvm_id, operation.target, Parts::All)?;
    let images = rows::images(tx, operation.cvm_id, operation.target)?;
    let machine = Machine { images, ..Machine::of(&cvm, operation.target, spec) };
    Ok(Work { operation, cvm, machine })
}

/// Milliseconds from the moment the machine was off until `at`, for operations that take a running machine down and up.
fn downtime(operation: &Operation, at: Timestamp) -> Option<u64> {
    if !operation.has(StepName::Observe) || operation.kind.stops_hard() {
        return None;
    }
    let stop = operation.steps.iter().find(|step| step.name == StepName::Stop)?;
    let down = stop.ended_at?;
    u64::try_from(at.as_millisecond() - down.as_millisecond()).ok()
}

#[derive(Default)]
struct Ending<'a> {
    reason: Option<&'a FailReason>,
    put_back: Option<OperationId>,
    ended_by: Option<OperationId>,
    downtime_ms: Option<u64>,
}

fn end(
    tx: &Connection,
    operation: &Operation,
    status: &str,
    at: Timestamp,
    ending: Ending<'_>,
) -> Result<()> {
    tx.prepare_cached(
        "UPDATE operation SET status = ?, steps = ?, step = ?, reason = ?, put_back = ?, ended_by = ?, downtime_ms = ?,
           ended_at = ?, lease_until = 0, waiting_for = NULL WHERE id = ?",
    )?
    .execute(params![
        status,
        json(&operation.steps),
        operation.step,
        ending.reason.map(json),
        ending.put_back.map(|id| id.0),
        ending.ended_by.map(|id| id.0),
        ending.downtime_ms,
        millis(at),
        operation.id.0,
    ])?;
    Ok(())
}

/// The machine goes on as it was before the operation.
fn leave_untouched(tx: &Connection, operation: &Operation, at: Timestamp) -> Result<()> {
    let cvm = rows::cvm_by_id(tx, operation.cvm_id)?;
    let (status, power) = operation.options.before.unwrap_or((cvm.power.steady(), cvm.power));
    let sql = "UPDATE cvm SET status = ?, power = ?, open_op = NULL, updated_at = ? WHERE id = ?";
    tx.prepare_cached(sql)?.execute(params![status.as_str(), power.as_str(), millis(at), cvm.id])?;
    book_current(tx, cvm.id)
}

/// Books what the current revision needs, and nothing more.
fn book_current(tx: &Connection, cvm_id: i64) -> Result<()> {
    let revision =
        tx.prepare_cached("SELECT revision FROM cvm WHERE id = ?")?.query_row([cvm_id], |row| row.get(0))?;
    let booked = rows::booking(tx, cvm_id, revision)?;
    tx.prepare_cached(
        "UPDATE cvm SET booked_vcpu = ?, booked_memory_mb = ?, booked_disk_gb = ?, booked_gpus = ? WHERE id = ?",
    )?
    .execute(params![booked.vcpu, booked.memory_mb, booked.disk_gb, booked.gpus, cvm_id])
    .map_err(named)?;
    Ok(())
}

/// Writes what a finished operation means for its CVM.
fn succeed(tx: &Connection, operation: &Operation, at: Timestamp) -> Result<()> {
    let cvm = rows::cvm_by_id(tx, operation.cvm_id)?;
    if operation.kind == Kind::Delete {
        tx.prepare_cached(
            "UPDATE cvm SET status = 'deleted', open_op = NULL, booked_vcpu = 0, booked_memory_mb = 0, booked_disk_gb = 0,
               booked_gpus = 0, updated_at = ?1, deleted_at = ?1 WHERE id = ?2",
        )?
        .execute(params![millis(at), cvm.id])?;
        return Ok(());
    }
    book_current(tx, cvm.id)?;
    // The node has the current spec, by this operation or an earlier one.
    let instance_id = match operation.has(StepName::Apply) || cvm.instance_id.is_some() {
        true => Some(rows::spec(tx, cvm.id, cvm.revision, Parts::Short)?.instance_id(&cvm.app_id)),
        false => cvm.instance_id,
    };
    let boot_error = operation.options.undoes.map(|undone| {
        let cause = operation.options.undoes_because.as_deref().unwrap_or("unknown");
        format!("update {undone} failed and was put back: {cause}")
    });
    tx.prepare_cached(
        "UPDATE cvm SET status = ?, boot_error = ?, open_op = NULL, instance_id = ?, updated_at = ? WHERE id = ?",
    )?
    .execute(params![
        cvm.power.steady().as_str(),
        boot_error,
        instance_id.map(|id| id.0),
        millis(at),
        cvm.id,
    ])
    .map_err(named)?;
    write_records(tx, cvm.id, &operation.options)
}

fn write_records(tx: &Connection, cvm_id: i64, options: &Options) -> Result<()> {
    let records = &options.records;
    if records.is_empty() {
        return Ok(());
    }
    // A name that was free when the operation was accepted may have been given away since. What the operation did counts
    // all the same; the CVM keeps its old name.
    tx.prepare_cached(
        "UPDATE cvm SET listed = ifnull(?1, listed), name = CASE
           WHEN ?2 IS NULL OR EXISTS (SELECT 1 FROM cvm other WHERE other.workspace_id = cvm.workspace_id AND other.name = ?2
             AND other.deleted_at IS NULL AND other.id <> cvm.id) THEN name ELSE ?2 END WHERE id = ?3",
    )?
    .execute(params![records.listed, records.name, cvm_id])
    .map_err(named)?;
    Ok(())
}

fn ensure_name_free(tx: &Connection, cvm: &Cvm, name: &str) -> Result<()> {
    let sql = "SELECT 1 FROM cvm WHERE workspace_id = ? AND name = ? AND deleted_at IS NULL AND id <> ?";
    match tx.prepare_cached(sql)?.exists(params![cvm.workspace_id, name, cvm.id])? {
        true => Err(Error::Constraint(super::constraint::CVM_NAME)),
        false => Ok(()),
    }
}

/// Accepts `new` if nothing is at work on its CVM and nobody was faster than who has `seen` it. Writes nothing otherwise.
fn accept_if(tx: &Connection, new: &NewOperation, seen: &Cvm) -> Result<(Accepted, i64)> {
    let sql = "SELECT open_op IS NOT NULL, generation FROM cvm WHERE id = ? AND deleted_at IS NULL";
    let now = tx.prepare_cached(sql)?.query_row([new.cvm_id], |row| Ok((row.get(0)?, row.get(1)?)));
    let (open, generation): (bool, u64) = now.optional()?.ok_or(Error::Missing)?;
    if open {
        return Err(Error::OperationOpen);
    }
    // An operation that ends moves the revision and not the generation: who saw one at work has seen what was before its end.
    if generation != seen.generation || seen.open.is_some() {
        return Err(Error::Changed);
    }
    // Nothing was or is at work and every change has a generation of its own: what was seen is what is there.
    accept_onto(tx, seen, new, None)
}

/// `target` is the revision to bring about when it is neither a new one nor the current one.
fn accept_onto(
    tx: &Connection,
    cvm: &Cvm,
    new: &NewOperation,
    target: Option<u64>,
) -> Result<(Accepted, i64)> {
    let power = new.power.unwrap_or(cvm.power);
    let options = Options { before: Some((cvm.status, cvm.power)), ..new.options.clone() };
    let mut booked = cvm.booked;
    let mut latest = cvm.latest_revision;
    let target = match &new.spec {
        None => target.unwrap_or(cvm.revision),
        Some(new_spec) => {
            latest += 1;
            booked = booked.max(new_spec.spec.booking());
            let origin = Origin {
                cause: new.kind.as_str(),
                content_of: new_spec.content_of,
                user_id: new.author.as_ref().map(|author| author.user_id),
                op: new.id,
                at: new.at,
            };
            insert_revision(tx, cvm.id, latest, &new_spec.spec, &origin)?;
            latest
        }
    };
    if let Some(name) = &options.records.name {
        ensure_name_free(tx, cvm, name)?;
    }
    let done = new.steps.is_empty();
    // Nothing changed: the state that callers know is still the state.
    let unchanged = done && options.records.is_empty();
    let generation = if unchanged { cvm.generation } else { cvm.generation + 1 };
    let operation = Inserted {
        id: new.id,
        cvm_id: cvm.id,
        workspace_id: cvm.workspace_id,
        node_id: cvm.node_id,
        generation,
        kind: new.kind,
        steps: &new.steps,
        target,
        previous: cvm.revision,
        options: &options,
        diff: &new.diff,
        user_id: new.author.as_ref().map(|author| author.user_id),
        at: new.at,
    };
    let operation = operation.insert(tx)?;
    let mut after = Cvm { updated_at: new.at, ..cvm.clone() };
    if done {
        let Records { listed, name } = options.records.clone();
        after.listed = listed.unwrap_or(after.listed);
        after.name = name.unwrap_or(after.name);
        after.generation = generation;
        write_records(tx, cvm.id, &options)?;
        tx.prepare_cached("UPDATE cvm SET generation = ?, updated_at = ? WHERE id = ?")?.execute(params![
            generation,
            millis(new.at),
            cvm.id
        ])?;
    } else {
        after.status = new.kind.status();
        after.power = power;
        after.generation = generation;
        after.latest_revision = latest;
        after.open = Some(OpenOperation { id: new.id, kind: new.kind, started_at: new.at });
        after.booked = booked;
        tx.prepare_cached(
            "UPDATE cvm SET status = ?, power = ?, generation = ?, latest_revision = ?, open_op = ?, booked_vcpu = ?,
               booked_memory_mb = ?, booked_disk_gb = ?, booked_gpus = ?, updated_at = ? WHERE id = ?",
        )?
        .execute(params![
            after.status.as_str(),
            power.as_str(),
            generation,
            latest,
            new.id.0,
            booked.vcpu,
            booked.memory_mb,
            booked.disk_gb,
            booked.gpus,
            millis(new.at),
            cvm.id,
        ])
        .map_err(|error| nodes::no_room(tx, cvm.node_id, booked, cvm.booked, error))?;
    }
    if let Some(closing) = &new.closes {
        closing.close(tx, new.id)?;
    }
    // What was written is known; reading it again would cost as much as writing it.
    let cvm = after;
    debug_assert_eq!(operation, operation_by_id(tx, new.id)?);
    debug_assert_eq!(cvm, rows::cvm_by_id(tx, cvm.id)?);
    let kind = if done { "operation.succeeded" } else { "operation.accepted" };
    let event = NewEvent {
        author: new.author.as_ref(),
        before_rev: Some(operation.previous),
        after_rev: Some(operation.target),
        ..NewEvent::of_operation(kind, &cvm, &operation, new.at)
    };
    let seq = events::append(tx, &event)?;
    Ok((Accepted { operation, cvm }, seq))
}

/// A row of `operation` to be written.
pub(super) struct Inserted<'a> {
    pub id: OperationId,
    pub cvm_id: i64,
    pub workspace_id: i64,
    pub node_id: i64,
    pub generation: u64,
    pub kind: Kind,
    pub steps: &'a [StepName],
    pub target: u64,
    pub previous: u64,
    pub options: &'a Options,
    pub diff: &'a [Change],
    pub user_id: Option<i64>,
    pub at: Timestamp,
}

impl Inserted<'_> {
    pub(super) fn insert(self, tx: &Connection) -> Result<Operation> {
        let steps: Vec<Step> = self
            .steps
            .iter()
            .map(|&name| Step { name, started_at: None, heard_at: None, ended_at: None })
            .collect();
        let state = match steps.is_empty() {
            true => State::Succeeded { at: self.at },
            false => State::Queued { not_before: self.at },
        };
        tx.prepare_cached(
            "INSERT INTO operation (id, cvm_id, workspace_id, node_id, generation, kind, status, step, steps, not_before, target,
               previous, options, diff, user_id, created_at, ended_at) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            self.id.0,
            self.cvm_id,
            self.workspace_id,
            self.node_id,
            self.generation,
            self.kind.as_str(),
            state.name(),
            json(&steps),
            millis(self.at),
            self.target,
            self.previous,
            json(self.options),
            json(self.diff),
            self.user_id,
            millis(self.at),
            state.ended_at().map(millis),
        ])
        .map_err(named)?;
        Ok(Operation {
            id: self.id,
            cvm_id: self.cvm_id,
            generation: self.generation,
            kind: self.kind,
            state,
            steps,
            step: 0,
            attempt: 1,
            claim: 0,
            waiting_for: None,
            target: self.target,
            previous: self.previous,
            options: self.options.clone(),
            diff: self.diff.to_vec(),
            downtime_ms: None,
            user_id: self.user_id,
            created_at: self.at,
        })
    }
}

/// The put-back of `failed`, open from the moment that one ends.
fn insert_put_back(
    tx: &Connection,
    failed: &Operation,
    refused: bool,
    id: OperationId,
    options: &Options,
    at: Timestamp,
) -> Result<i64> {
    let cvm = rows::cvm_by_id(tx, failed.cvm_id)?;
    let mut latest = cvm.latest_revision;
    // Where the apply was not sent, the current revision is still the old one.
    let target = if failed.has_begun(StepName::Apply) {
        let mut spec = rows::spec(tx, cvm.id, failed.previous, Parts::Short)?;
        if failed.has_done(StepName::Apply) || !refused {
            // It may have grown, and cannot shrink.
            spec.disk_gb = spec.disk_gb.max(rows::booking(tx, cvm.id, failed.target)?.disk_gb);
        }
        latest += 1;
        let origin = Origin {
            cause: Kind::PutBack.as_str(),
            content_of: Some(failed.previous),
            user_id: None,
            op: id,
            at,
        };
        insert_revision(tx, cvm.id, latest, &spec, &origin)?;
        latest
    } else {
        cvm.revision
    };
    let generation = cvm.generation + 1;
    let put_back = Inserted {
        id,
        cvm_id: cvm.id,
        workspace_id: cvm.workspace_id,
        node_id: cvm.node_id,
        generation,
        kind: Kind::PutBack,
        steps: Kind::PutBack.steps(cvm.power),
        target,
        previous: cvm.revision,
        options,
        diff: &[],
        user_id: None,
        at,
    };
    let put_back = put_back.insert(tx)?;
    tx.prepare_cached(
        "UPDATE cvm SET generation = ?, latest_revision = ?, open_op = ?, updated_at = ? WHERE id = ?",
    )?
    .execute(params![generation, latest, id.0, millis(at), cvm.id])?;
    let event = NewEvent {
        before_rev: Some(put_back.previous),
        after_rev: Some(put_back.target),
        ..NewEvent::of_operation("operation.accepted", &cvm, &put_back, at)
    };
    events::append(tx, &event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Durability, WriterMode};

    /// How SQLite means to answer.
    fn plan(sql: &str) -> String {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(&folder.path().join("test.db"), Durability::None, WriterMode::Inline);
        let plan = store.expect("a fresh store").read(|connection| {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
            let lines = statement.raw_query().mapped(|row| row.get::<_, String>(3));
            Ok(lines.collect::<rusqlite::Result<Vec<_>>>()?.join("\n"))
        });
        plan.expect("a plan")
    }

    #[test]
    fn lists_read_what_they_show_and_no_more() {
        let list = |filter: &OperationFilter| plan(&const_format(OPERATION, &listed(filter)));
        let all = OperationFilter::default();
        let page = list(&all);
        assert!(page.contains("operation_of_workspace (workspace_id=? AND id<?)"), "{page}");
        assert!(!page.contains("TEMP B-TREE"), "{page}");
        let ended = list(&OperationFilter { status: Some("failed".into()), ..all.clone() });
        assert!(ended.contains("operation_of_workspace") && !ended.contains("TEMP B-TREE"), "{ended}");
        let of_one = list(&OperationFilter { cvm_id: Some(1), ..all.clone() });
        assert!(of_one.contains("operation_one_at_a_time (cvm_id=?"), "{of_one}");
        for filter in [
            OperationFilter { stuck: true, ..all.clone() },
            OperationFilter { status: Some("running".into()), ..all.clone() },
        ] {
            let open = list(&filter);
            assert!(open.contains("operation_due"), "{open}");
        }
    }

    #[test]
    fn claims_look_only_at_their_own_lane_and_jump_over_what_has_no_room() {
        for (lane, index) in [(Lane::Urgent, "operation_urgent"), (Lane::Ordinary, "operation_due")] {
            let open = open_in(Some(lane));
            let pair = plan(&pair_from(open));
            assert!(pair.contains(&format!("{index} ((node_id,workspace_id)>(?,?))")), "{pair}");
            let rows = plan(&of_pair(open));
            assert!(
                rows.contains(&format!("COVERING INDEX {index} (node_id=? AND workspace_id=?)")),
                "{rows}"
            );
            for plan in [pair, rows] {
                assert!(!plan.contains("TEMP B-TREE"), "{plan}");
            }
        }
        for kind in [Kind::Stop, Kind::Delete] {
            assert_eq!(kind.lane(), Lane::Urgent, "as the index and the condition have it");
        }
    }

    #[test]
    fn a_crowd_costs_no_more_than_one() {
        let connection = Connection::open_in_memory().expect("a database in memory");
        let crowd = "PRAGMA foreign_keys = OFF;
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
            INSERT INTO operation (id, cvm_id, workspace_id, node_id, generation, kind, status, step, steps, not_before, target,
              previous, options, diff, created_at)
            SELECT randomblob(16), i, 1, 1, 1, 'update', 'queued', 0, '[]', i, 1, 1, '{}', '[]', 0 FROM n";
        for sql in [include_str!("migrations/0001_start.sql"), crowd] {
            connection.execute_batch(sql).expect("the schema, and rows that it takes");
        }
        let mut next = connection.prepare(&pair_from(open_in(Some(Lane::Ordinary)))).expect("a query");
        assert!(next.exists([1, 1]).expect("an answer") && !next.exists([1, 2]).expect("an answer"));
        let instructions = next.get_status(rusqlite::StatementStatus::VmStep);
        assert!(instructions < 200, "{instructions} instructions of SQLite for two looks");
    }
}
