//! A chain to develop and rehearse on: anvil, with our own contracts on it.
//!
//! [`Anvil`] is the process, [`DevChain`] sends transactions from the accounts that such a node signs for, and
//! [`DevChain::deploy`] puts a key service's contract, an app factory and a 2-of-3 wallet on it. The contracts' sources are
//! in `contracts/`; they have the functions and events of dstack's.

mod anvil;
mod contracts;

pub use anvil::{Anvil, StartError, find_anvil};
pub use contracts::{ACCOUNTS, Account, Batch, Contracts, DevChain, MULTICALL, forge_calldata};
