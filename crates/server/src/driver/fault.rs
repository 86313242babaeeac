//! Faults that a simulated node can be told to show.

use async_trait::async_trait;
use casemate_types::ids::VmUuid;
use serde::{Deserialize, Serialize};

/// Something that goes wrong on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "fault")]
pub enum Fault {
    /// The guest reports that it cannot boot, optionally only with this image or when this variable is set.
    BootFail {
        /// Only machines with this image.
        #[serde(default)]
        image: Option<String>,
        /// Only machines with this variable.
        #[serde(default)]
        env: Option<String>,
    },
    /// The node refuses stage and apply.
    Refuse,
    /// The node's own disk is full: stage, apply and start find no room.
    DiskFull,
    /// The node does not answer at all.
    Unreachable,
    /// A graceful stop takes this many seconds.
    SlowStop {
        /// How long.
        seconds: u64,
    },
    /// A graceful stop never ends by itself.
    StopHangs,
    /// The machine goes down by itself, once.
    Crash,
    /// The node says that it applied a spec and keeps the old one.
    Lie,
    /// The machine disappears from the node.
    Vanish,
    /// A call takes effect and its answer is lost.
    AnswerLost,
    /// Every call takes this many seconds.
    Slow {
        /// How long.
        seconds: u64,
    },
}

/// A fault and where it strikes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: Fault,
    /// Forgotten after it struck once.
    #[serde(default)]
    pub once: bool,
    /// Only for this machine.
    #[serde(default)]
    pub vm: Option<VmUuid>,
}

/// A node whose faults can be planned.
#[async_trait]
pub trait Plan: Send + Sync {
    /// From now on, this goes wrong.
    async fn plan(&self, planned: Planned) -> super::Result<()>;
    /// From now on, nothing goes wrong on purpose.
    async fn clear(&self) -> super::Result<()>;
    /// What is planned.
    async fn planned(&self) -> super::Result<Vec<Planned>>;
}
