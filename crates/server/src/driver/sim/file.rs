//! The state of a node in a file: one JSON document, replaced as a whole.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;

use casemate_types::ids::VmUuid;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::faults::Faults;
use super::node::Node;

/// Where a node keeps its state.
pub(super) struct StateFile {
    path: PathBuf,
    scratch: PathBuf,
    /// The machines as they are written, so that a change of one costs no work for the others.
    slots: BTreeMap<VmUuid, Box<RawValue>>,
}

#[derive(Serialize)]
struct Document<'a> {
    slots: &'a BTreeMap<VmUuid, Box<RawValue>>,
    faults: &'a Faults,
}

impl StateFile {
    /// Opens the file, and the node as it was left in it: a fresh one if there is no file.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Node)> {
        let named = |what: &str, error: &dyn std::fmt::Display| format!("{what} {}: {error}", path.display());
        let node: Node = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Error::new(ErrorKind::InvalidData, named("no state of a simulated node in", &error))
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Node::default(),
            Err(error) => return Err(Error::new(error.kind(), named("cannot read", &error))),
        };
        let mut scratch = path.clone().into_os_string();
        scratch.push(".new");
        let slots =
            node.slots.iter().map(|(vm, slot)| Ok((*vm, to_raw_value(slot)?))).collect::<Result<_>>()?;
        Ok((Self { path, scratch: scratch.into(), slots }, node))
    }

    /// Writes the file. The rename makes it all or nothing when this process is killed; there is no flush, since a
    /// simulated node need not survive a power loss.
    pub(super) fn save(&mut self, node: &Node, changed: Changed) -> Result<()> {
        let changed = node.slots.iter().filter(|(vm, _)| match changed {
            Changed::Faults => false,
            Changed::Machine(one) => one == **vm,
            Changed::All => true,
        });
        for (vm, slot) in changed {
            self.slots.insert(*vm, to_raw_value(slot)?);
        }
        let document = Document { slots: &self.slots, faults: &node.faults };
        std::fs::write(&self.scratch, serde_json::to_vec(&document)?)?;
        std::fs::rename(&self.scratch, &self.path)
    }
}

/// What has changed since the file was written; the faults may have in any case.
#[derive(Clone, Copy)]
pub(super) enum Changed {
    Faults,
    Machine(VmUuid),
    All,
}
