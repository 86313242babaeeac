//! From what is stored to what the wire shows. Nothing here changes anything.
//!
//! A CVM has four shapes: [`cvm()`] since 2026-01-21, [`flat`] and [`hosted`] before, and [`vm()`], with which requests that
//! change something answer in every version.

mod answer;
mod approval;
mod compose;
mod cvm;
mod logs;
mod operation;
mod place;
mod telemetry;
mod text;
mod vm;

pub use answer::{BasicAnswer, DetailAnswer, ItemAnswer, basic, detail, item};
pub use approval::{approval, approval_detail, calls, contract_call, revocation};
pub use compose::Shown;
pub use cvm::{Detail, cvm, flat, hosted, machine_info};
pub use logs::{container_log_url, log_urls, signature_holds, syslog_url};
pub use operation::{operation, operation_detail};
pub use place::{
    addresses, endpoints, instance_type, local_endpoints, node_ref, os_ref, teepod_ref, user_ref,
    workspace_ref,
};
pub use telemetry::{Guest, guest, observed, since, uptime};
pub use text::{Still, Stills, Text, text};
pub use vm::{vm, vm_created};

pub use crate::kms::{KmsKind, env_public_key, kms_info, kms_kind, kms_type};
