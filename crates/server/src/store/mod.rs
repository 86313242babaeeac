//! What is kept, and why it can be trusted.
//!
//! One SQLite file in WAL mode with `synchronous=FULL`. One method of [`Store`] is one transaction: all of it or nothing.
//! Invariants are constraints of the schema (one operation at work per CVM, no node booked over its capacity, unique
//! names), and code turns their violation into an [`Error`].
//!
//! A single writer commits whatever transactions are waiting together, and answers after the commit. One that fails undoes
//! itself alone. CVMs that were read lately are remembered, and forgotten by whatever changes them. Reads run where they are asked for, on connections with cached statements: a point read takes
//! microseconds, less than moving it to another thread would.

#[cfg(test)]
mod contract;
mod recent;
mod rows;
mod sqlite;

mod accounts;
mod answers;
mod app_logs;
mod approvals;
mod cvms;
mod env_keys;
mod events;
mod lists;
mod nodes;
mod operations;
mod provisions;
mod sweep;

pub use accounts::{Account, ApiKey, KeyCheck, NewKey};
pub use answers::{Answer, Receipt, RequestKey};
pub use app_logs::{AppLog, KnownRevision};
pub use approvals::{Approval, ApprovalFilter, ApprovalState, Auto, AutoBy, Closing, NewApproval, Purpose};
pub use cvms::{AppRevisionInfo, AppRow, Found, NewCvm, RevisionInfo};
pub use events::{Event, NewEvent, Of};
pub use lists::{AppFilter, CvmFilter};
pub use nodes::NodeRow;
pub use operations::{Accepted, Claimed, Heard, NewOperation, NewSpec, OperationFilter, Room, Work};
pub use provisions::Provision;
pub use sqlite::{Durability, Store, WriterMode};
pub use sweep::Keep;

/// Why the store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The row is not there.
    #[error("no such row")]
    Missing,
    /// An operation is at work on the CVM.
    #[error("an operation is at work on this CVM")]
    OperationOpen,
    /// The CVM has moved past the expected generation.
    #[error("the CVM has moved on")]
    Changed,
    /// The worker's claim was taken over or the operation was ended.
    #[error("the operation is in other hands")]
    ClaimLost,
    /// A constraint that a request can run into, by its name in the schema.
    #[error("{0} does not hold")]
    Constraint(&'static str),
    /// The node has too little left of something.
    #[error("{0}")]
    NoRoom(crate::error::NoRoom),
    /// The request was answered already, by another one of the same name.
    #[error("the request was answered already")]
    Answered,
    /// The approval is no longer open.
    #[error("the approval is no longer open")]
    ApprovalClosed,
    /// Events before this number are gone.
    #[error("events before {0} are gone")]
    Swept(i64),
    /// The commit failed: nothing of it is stored.
    #[error("the store cannot write")]
    Unavailable(#[source] std::sync::Arc<rusqlite::Error>),
    /// A bug or damage.
    #[error("the store failed")]
    Broken(#[source] rusqlite::Error),
    /// A stored text does not read back.
    #[error("a stored {what} does not read back")]
    Unreadable {
        /// Which.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Is it what one row holds that is wrong? Other rows can be read all the same.
    pub(crate) fn is_about_content(&self) -> bool {
        use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
        match self {
            Self::Unreadable { .. } | Self::Missing => true,
            Self::Broken(error) => matches!(
                error,
                FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..)
            ),
            Self::OperationOpen
            | Self::Changed
            | Self::ClaimLost
            | Self::Constraint(_)
            | Self::NoRoom(_)
            | Self::Answered
            | Self::ApprovalClosed
            | Self::Swept(_)
            | Self::Unavailable(_) => false,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DiskFull, FileLockingProtocolFailed, ReadOnly, SystemIoFailure,
        };
        match error.sqlite_error_code() {
            Some(
                CannotOpen | DatabaseBusy | DiskFull | FileLockingProtocolFailed | ReadOnly | SystemIoFailure,
            ) => Self::Unavailable(std::sync::Arc::new(error)),
            _ => Self::Broken(error),
        }
    }
}

/// Outcome of a store call.
pub type Result<T> = std::result::Result<T, Error>;

/// Names of constraints that requests can run into, as `Error::Constraint` gives them.
pub mod constraint {
    /// Two live CVMs of a workspace have different names.
    pub const CVM_NAME: &str = "cvm_name";
    /// An app id belongs to one app.
    pub const APP_ID: &str = "app_id";
    /// Not more vCPUs than the node has.
    pub const VCPU: &str = "insufficient_vcpu";
    /// Not more memory than the node has.
    pub const MEMORY: &str = "insufficient_memory";
    /// Not more disk than the node has.
    pub const DISK: &str = "insufficient_disk";
    /// Not more graphics cards than the node has.
    pub const GPUS: &str = "insufficient_gpus";
}
