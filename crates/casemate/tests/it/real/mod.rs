//! `casemate dev` on real machines, from the request to what the app inside the machine answers.

#![expect(clippy::unwrap_used, reason = "in a test, what goes wrong is a failure")]

mod world;

mod vm_demo;
mod vm_failures;
mod vm_kill_9;
mod vm_methods;
