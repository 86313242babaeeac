//! What the server does over time: decide first, then do, and survive anything.
//!
//! A handler decides with a pure function and stores the decision in one transaction. A [`worker`] claims what was stored and
//! carries it on, [`step`] by step; every step can be repeated, so a crash or a late worker leads to the same end.

pub mod allowance;
pub mod approval;
pub mod auto_commit;
pub mod boot;
pub mod commit_token;
pub mod create;
pub mod onchain;
pub mod operation;
pub mod power;
pub mod reconcile;
pub mod replica;
pub mod sealed;
pub mod shares;
pub mod step;
pub mod sweep;
pub mod update;
pub mod worker;
