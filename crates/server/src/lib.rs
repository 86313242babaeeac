//! The control plane of Casemate.
//!
//! Two journeys explain it:
//!
//! * **An update.** [`http`] turns a request into a [`cvm::plan::Wish`]; [`workflow::update`] asks [`cvm::plan`] what it means
//!   and stores the answer in one transaction of the [`store`]; a [`workflow::worker`] claims the operation and carries it on,
//!   [`workflow::step`] by step, through a [`driver`]. Whoever watches reads the events that the transactions wrote.
//! * **A confirmation on chain.** The same road with a question in front: [`workflow::approval`].

pub mod app;
pub mod auth;
pub mod cache;
pub mod clock;
pub mod config;
pub mod cvm;
pub mod driver;
pub mod error;
pub mod http;
pub mod kms;
pub mod mac;
pub mod node;
pub mod serve;
pub mod store;
pub mod tls;
pub mod workflow;
