//! Nodes and what is booked on them.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::{const_format, from_json, json, millis, named, time};
use super::{Error, Result, Store, constraint};
use crate::cvm::spec::Booking;
use crate::driver::NodeFacts;
use crate::error::{NoRoom, Room};

/// A node as the store knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRow {
    /// Number of the node; `teepod_id` on the wire.
    pub id: i64,
    /// What the driver reported.
    pub facts: NodeFacts,
    /// Booked by live CVMs.
    pub booked: Booking,
    /// How many CVMs are on it.
    pub cvm_count: u32,
    /// When it last answered, to within some minutes; never, if it is none.
    pub seen_at: Option<Timestamp>,
}

impl NodeRow {
    /// What is still free.
    pub fn free(&self) -> Booking {
        let capacity = self.facts.capacity;
        Booking {
            vcpu: capacity.vcpu.saturating_sub(self.booked.vcpu),
            memory_mb: capacity.memory_mb.saturating_sub(self.booked.memory_mb),
            disk_gb: capacity.disk_gb.saturating_sub(self.booked.disk_gb),
            gpus: capacity.gpus.saturating_sub(self.booked.gpus),
        }
    }
}

impl Store {
    /// Stores what a node reports of itself at `address`, and gives it a number the first time. It is known by its name; what
    /// stood for it while it had never answered is replaced.
    pub async fn node_ensure(&self, facts: NodeFacts, address: String, at: Timestamp) -> Result<i64> {
        self.write(move |tx| {
            let by_name = "SELECT id FROM node WHERE name = ?";
            let known: Option<i64> = tx.query_row(by_name, [&facts.name], |row| row.get(0)).optional()?;
            let expected = "SELECT id FROM node WHERE address = ? AND seen_at IS NULL";
            let expected: Option<i64> = tx.query_row(expected, [&address], |row| row.get(0)).optional()?;
            let id = match (known, expected) {
                (Some(known), Some(expected)) if known != expected => {
                    tx.execute("DELETE FROM node WHERE id = ?", [expected])?;
                    known
                }
                (Some(id), _) | (None, Some(id)) => id,
                (None, None) => insert(tx, &facts, &address)?,
            };
            let capacity = facts.capacity;
            tx.execute(
                "UPDATE node SET name = ?1, facts = ?2, address = ?3, seen_at = ?4, vcpu = max(?5, booked_vcpu),
                   memory_mb = max(?6, booked_memory_mb), disk_gb = max(?7, booked_disk_gb), gpus = max(?8, booked_gpus)
                 WHERE id = ?9",
                params![
                    facts.name,
                    json(&facts),
                    address,
                    millis(at),
                    capacity.vcpu,
                    capacity.memory_mb,
                    capacity.disk_gb,
                    capacity.gpus,
                    id,
                ],
            )?;
            Ok(id)
        })
        .await
    }

    /// The nodes that were last at these addresses, in this order. Where none ever was, what stands in for it does from now on;
    /// so new nodes get their numbers in the order of the configuration.
    pub async fn nodes_expect(&self, expected: Vec<(String, NodeFacts)>) -> Result<Vec<NodeRow>> {
        self.write(move |tx| {
            let last_at = "SELECT id FROM node WHERE address = ? ORDER BY seen_at DESC LIMIT 1";
            let expect = |(address, unknown): &(String, NodeFacts)| -> Result<NodeRow> {
                let known: Option<i64> = tx.query_row(last_at, [address], |row| row.get(0)).optional()?;
                let id = known.map_or_else(|| insert(tx, unknown, address), Ok)?;
                let mut statement = tx.prepare_cached(&const_format(NODE, "WHERE id = ?"))?;
                let mut found = statement.query([id])?;
                found.next()?.map_or(Err(Error::Missing), node)
            };
            expected.iter().map(expect).collect()
        })
        .await
    }

    /// All nodes, by number.
    pub fn nodes(&self) -> Result<Vec<NodeRow>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&const_format(NODE, "ORDER BY id"))?;
            let mut found = statement.query([])?;
            let mut nodes = Vec::new();
            while let Some(row) = found.next()? {
                nodes.push(node(row)?);
            }
            Ok(nodes)
        })
    }
}

/// Gives a booking that does not fit its numbers. `asked` is what a CVM would have that has `booked` now.
pub(super) fn no_room(
    tx: &Connection,
    node_id: i64,
    asked: Booking,
    booked: Booking,
    error: rusqlite::Error,
) -> Error {
    let (room, of): (Room, fn(&Booking) -> u32) = match named(error) {
        Error::Constraint(constraint::VCPU) => (Room::Vcpu, |size| size.vcpu),
        Error::Constraint(constraint::MEMORY) => (Room::Memory, |size| size.memory_mb),
        Error::Constraint(constraint::DISK) => (Room::Disk, |size| size.disk_gb),
        Error::Constraint(constraint::GPUS) => (Room::Gpus, |size| size.gpus),
        other => return other,
    };
    let read = || {
        let mut statement = tx.prepare_cached(&const_format(NODE, "WHERE id = ?"))?;
        let mut found = statement.query([node_id])?;
        found.next()?.map_or(Err(Error::Missing), node)
    };
    match read() {
        Err(error) => error,
        Ok(row) => Error::NoRoom(NoRoom {
            room,
            asked: of(&asked),
            left: of(&row.free()).saturating_add(of(&booked)),
            node: Some(row.facts.name),
        }),
    }
}

const NODE: &str = "SELECT id, facts, booked_vcpu, booked_memory_mb, booked_disk_gb, booked_gpus, cvm_count, seen_at FROM node ";

fn node(row: &Row<'_>) -> Result<NodeRow> {
    Ok(NodeRow {
        id: row.get(0)?,
        facts: from_json("node", row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?)?,
        booked: Booking {
            vcpu: row.get(2)?,
            memory_mb: row.get(3)?,
            disk_gb: row.get(4)?,
            gpus: row.get(5)?,
        },
        cvm_count: row.get(6)?,
        seen_at: row.get::<_, Option<i64>>(7)?.map(time).transpose()?,
    })
}

fn insert(tx: &Connection, facts: &NodeFacts, address: &str) -> Result<i64> {
    let sql = "INSERT INTO node (name, facts, address, vcpu, memory_mb, disk_gb, gpus) VALUES (?, ?, ?, 0, 0, 0, 0)";
    tx.execute(sql, params![facts.name, json(facts), address])?;
    Ok(tx.last_insert_rowid())
}
