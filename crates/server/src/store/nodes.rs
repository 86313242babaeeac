//! Nodes and what is booked on them.

use rusqlite::params;

use super::rows::{from_json, json};
use super::{Result, Store};
use crate::cvm::spec::Booking;
use crate::driver::NodeFacts;

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
    /// Stores what a node reports of itself, and gives it a number the first time.
    pub async fn node_ensure(&self, facts: NodeFacts) -> Result<i64> {
        self.write(move |tx| {
            let capacity = facts.capacity;
            tx.execute(
                "INSERT INTO node (name, facts, vcpu, memory_mb, disk_gb, gpus) VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT (name) DO UPDATE SET facts = excluded.facts, vcpu = max(excluded.vcpu, booked_vcpu),
                   memory_mb = max(excluded.memory_mb, booked_memory_mb), disk_gb = max(excluded.disk_gb, booked_disk_gb),
                   gpus = max(excluded.gpus, booked_gpus)",
                params![
                    facts.name,
                    json(&facts),
                    capacity.vcpu,
                    capacity.memory_mb,
                    capacity.disk_gb,
                    capacity.gpus
                ],
            )?;
            Ok(tx.query_row("SELECT id FROM node WHERE name = ?", [&facts.name], |row| row.get(0))?)
        })
        .await
    }

    /// All nodes, by number.
    pub fn nodes(&self) -> Result<Vec<NodeRow>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, facts, booked_vcpu, booked_memory_mb, booked_disk_gb, booked_gpus, cvm_count FROM node ORDER BY id",
            )?;
            let mut found = statement.query([])?;
            let mut nodes = Vec::new();
            while let Some(row) = found.next()? {
                nodes.push(NodeRow {
                    id: row.get(0)?,
                    facts: from_json("node", row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?)?,
                    booked: Booking {
                        vcpu: row.get(2)?,
                        memory_mb: row.get(3)?,
                        disk_gb: row.get(4)?,
                        gpus: row.get(5)?,
                    },
                    cvm_count: row.get(6)?,
                });
            }
            Ok(nodes)
        })
    }
}
