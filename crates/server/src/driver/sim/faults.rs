//! Faults that are planned and have not struck yet.

use casemate_types::ids::VmUuid;
use serde::{Deserialize, Serialize};

use crate::driver::fault::{Fault, Planned};

/// The faults of a node. Where two could strike, the one planned first does.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Faults(Vec<Planned>);

impl Faults {
    pub(super) fn plan(&mut self, planned: Planned) {
        self.0.push(planned);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn list(&self) -> Vec<Planned> {
        self.0.clone()
    }

    /// Looks for a fault that is meant for one of `vms`, or for the whole node, and that `wanted` recognises. One that
    /// strikes only once is gone afterwards.
    pub(super) fn strike<T>(&mut self, vms: &[VmUuid], wanted: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let (index, found) = self.0.iter().enumerate().find_map(|(index, planned)| {
            let meant = planned.vm.is_none_or(|vm| vms.contains(&vm));
            meant.then(|| wanted(&planned.fault)).flatten().map(|found| (index, found))
        })?;
        if self.0.get(index).is_some_and(|planned| planned.once) {
            self.0.remove(index);
        }
        Some(found)
    }
}
