//! `casemate dev` on real machines, from the request to what the app inside the machine answers.

mod world;

mod vm_demo;
mod vm_failures;
mod vm_kill_9;
mod vm_methods;
