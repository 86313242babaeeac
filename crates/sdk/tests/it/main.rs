//! The client against scripted servers, and against a real one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod aliases;
mod approvals;
mod apps;
mod chain;
mod cloud;
mod operations;
mod reading;
mod requests;
mod retries;
mod send;
mod support;
mod watching;
