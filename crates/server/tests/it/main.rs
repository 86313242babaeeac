//! Behaviour of the whole server, one file a subject.

mod approvals;
mod auth_coverage;
mod bad_input;
mod client;
mod compose_file;
mod create;
mod dev;
mod failures;
mod health;
mod idempotency;
mod instance_ids;
mod keeping;
mod keys;
mod nodes_away;
mod nulls;
mod once_wrong;
mod openapi;
mod operations;
mod patch;
mod reads;
mod scene;
mod slow_guests;
mod sweeps;
mod updates;
mod watching;
