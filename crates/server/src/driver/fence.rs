//! What keeps late and repeated calls harmless.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{At, Error, Result};

/// How far an operation has come on a machine, in the order in which that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::driver) enum Stage {
    Staged,
    Stopped,
    Applied,
    Started,
    Absent,
}

/// The newest operation that has been at a machine. It outlives the machine: a late call must not bring it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::driver) struct Fence {
    pub(in crate::driver) generation: u64,
    /// The last stage that this operation has reached.
    reached: Option<Stage>,
}

/// What a call finds at the fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver) enum Entry {
    /// First call of its operation.
    NewOperation,
    /// The operation is known and has not come this far.
    Ahead,
    /// The stage is reached or passed. The call has nothing to do, even if the machine has changed since: what came
    /// after is none of its business.
    Passed,
}

impl Fence {
    /// Refuses older operations, and remembers newer ones whatever becomes of the call.
    pub(in crate::driver) fn enter(&mut self, at: At, stage: Stage) -> Result<Entry> {
        match at.generation.cmp(&self.generation) {
            Ordering::Less => Err(Error::Stale { seen: self.generation }),
            Ordering::Equal if self.reached >= Some(stage) => Ok(Entry::Passed),
            Ordering::Equal => Ok(Entry::Ahead),
            Ordering::Greater => {
                *self = Self { generation: at.generation, reached: None };
                Ok(Entry::NewOperation)
            }
        }
    }

    /// This operation has removed the machine, if no newer one was here since.
    pub(in crate::driver) fn was_removed(&mut self, generation: u64) {
        if generation >= self.generation {
            *self = Self { generation, reached: Some(Stage::Absent) };
        }
    }

    /// The operation has come to `stage`.
    pub(in crate::driver) fn reach(&mut self, stage: Stage) {
        self.reached = Some(stage);
    }
}
