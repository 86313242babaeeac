//! Asks an EVM chain whether something is so: has an app's contract allowed a compose hash, did a transaction do it, may
//! this machine boot?
//!
//! [`Chain`] is what can be asked, [`Evm`] asks real nodes, [`Scripted`] answers what a test wrote down. [`Action`] is the
//! other direction: what somebody has to send so that the answer becomes yes. [`Node`] is one node asked directly, by a client
//! that signs; this crate never does.
//!
//! Nothing here knows the server. A chain that does not answer, or answers nonsense, is an [`Error`] and never a yes or a no.

pub mod abi;
mod action;
mod ask;
mod config;
#[cfg(feature = "dev")]
pub mod dev;
mod evm;
#[cfg(feature = "faults")]
pub mod faults;
mod node;
mod scripted;

pub use action::{Action, checksummed, safe_batch};
pub use ask::{
    Allowed, Block, BootAnswer, BootInfo, Chain, Change, Changes, Error, Evidence, Head, Question,
    Registration, Standing, State, Subject, Verdict, What,
};
pub use config::{ChainConfig, MAX_HEAD_AGE, MAX_LAG_BLOCKS, RpcUrl, RpcUrlError, is_local};
pub use evm::Evm;
pub use node::{Node, NodeError, Refused};
pub use scripted::Scripted;
