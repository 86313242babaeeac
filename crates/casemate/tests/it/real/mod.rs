//! `casemate dev` on real machines, from the request to what the app inside the machine answers.

mod world;

mod vm_failures;
mod vm_methods;
