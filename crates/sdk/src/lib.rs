//! Typed client of a Casemate server. It speaks to every other server with the same API, too.
//!
//! ```no_run
//! # async fn example() -> casemate_sdk::Result<()> {
//! use casemate_sdk::{Client, PatchOutcome};
//!
//! let client = Client::from_env()?;
//! let outcome = client
//!     .cvm("web-1")
//!     .patch()
//!     .compose("services:\n  web:\n    image: nginx:alpine\n")
//!     .memory_mb(4096)
//!     .send()
//!     .await?;
//! let op = match outcome {
//!     PatchOutcome::Accepted(op) => op,
//!     PatchOutcome::NeedsApproval(ask) => {
//!         println!("register {} on the contract of app {}", ask.compose_hash, ask.app_id);
//!         let tx = "0x…"; // the transaction that did
//!         ask.confirm(tx).await?
//!     }
//! };
//! op.wait().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it is built
//!
//! What is required is an argument, what is optional a method of a builder, and `send()` is where the network is. A list has
//! `send()` for a page and `stream()` for everything. What takes no options is an `async fn`. Every future is `Send`, and
//! dropping one gives up waiting; what the server accepted goes on.
//!
//! Memory is in MB and disk in GB, as on the wire; names of methods say so. Words that a newer server uses are kept in an `Other`
//! case ([`wire::Status`], [`wire::OperationStatus`] …).
//!
//! Requests are checked before they are sent, as far as that is possible without asking: identifiers, hashes, limits, sizes.
//! What is wrong is an [`Error::Invalid`] with the names of the fields.
//!
//! # What only Casemate has
//!
//! A Casemate server signs its answers with the header `X-Casemate`. The first call that needs to know asks once
//! ([`Client::is_casemate`]). Where another server answers, such as Phala Cloud, everything that only Casemate has fails as
//! [`Error::Unsupported`] before anything is sent: `dry_run`, `on_failure`, `force_restart`, `if_match`, `idempotency_key`, new
//! instance ids, operations, revisions, rollback, what a node observes, the audit trail, API keys, nodes, the table of fields.
//! Unknown to such a server, they would be ignored and the update would run.
//!
//! [`Operation::wait`] works everywhere: where there are no operations, it looks at the CVM until nothing is at work on it.
//!
//! # Retries
//!
//! Reads are repeated, with growing pauses of random length, when no answer came or one that may pass (408, 425, 429, 500, 502,
//! 503, 504). Writes are repeated only if they have an `idempotency_key`; without one, a repeated request could restart a machine
//! twice. [`Builder::retries`] says how often.
//!
//! # Where everything is
//!
//! The methods of the API's reference by their names there, in this crate, on the command line and on the wire. All of them are
//! aliases in the documentation's search, as are the other function names of the JavaScript client.
//!
//! | reference | here | command line | route |
//! | --- | --- | --- | --- |
//! | `updateCvmResources` | [`Cvm::resources`] | `casemate cvms update CVM --vcpu --memory --disk-size` | `PATCH /cvms/{id}/resources` |
//! | `updateCvmVisibility` | [`Cvm::visibility`] | `casemate cvms update CVM --listed --public-logs …` | `PATCH /cvms/{id}/visibility` |
//! | `updatePreLaunchScript` | [`Cvm::pre_launch_script`] | `casemate cvms update CVM --pre-launch-script FILE` | `PATCH /cvms/{id}/pre-launch-script` |
//! | `updateOsImage` | [`Cvm::os_image`] | `casemate cvms update CVM --image NAME` | `PATCH /cvms/{id}/os-image` |
//! | `getAvailableOsImages` | [`Client::os_images`], of one CVM [`Cvm::available_os_images`] | `casemate images list` | `GET /os-images`, `GET /cvms/{id}/available-os-images` |
//! | `refreshCvmInstanceId` | [`Cvm::refresh_instance_id`] | `casemate cvms refresh-instance-id CVM` | `POST /cvms/{id}/refresh-instance-id` |
//! | `refreshCvmInstanceIds` | [`Client::refresh_instance_ids`] | `casemate cvms refresh-instance-id CVM …` | `POST /cvms/refresh-instance-ids` |
//! | `provisionCvmComposeFileUpdate` | [`Compose::provision`] | `casemate cvms update CVM --compose FILE` | `POST /cvms/{id}/compose_file/provision` |
//! | `commitCvmComposeFileUpdate` | [`Compose::commit`] | `casemate cvms update CVM --compose FILE` | `PATCH /cvms/{id}/compose_file`, also `POST /cvms/{id}/compose_file/commit` |
//! | `patchCvm` | [`Cvm::patch`] | `casemate cvms update CVM …` | `PATCH /cvms/{id}` |
//! | `confirmCvmPatch` | [`Cvm::confirm`], [`Ask::confirm`] | `casemate cvms confirm CVM HASH TX` | `PATCH /cvms/{id}` with `X-Compose-Hash`, `X-Transaction-Hash` |
//! | `commitCvmUpdate` | [`Cvm::commit_update`], [`Ask::commit`] | `casemate cvms commit CVM TOKEN HASH TX` | `POST /cvms/{id}/commit-update` |
//!
//! | besides | here |
//! | --- | --- |
//! | new CVMs | [`Client::deploy`], or step by step [`Client::provision`] and [`Client::create`]; more of an app [`Cvm::replicate`], [`Cvm::commit_replica`], [`App::new_instance`] |
//! | lists | [`Client::cvms`], [`Client::apps`], [`Client::status_batch`] |
//! | one CVM | [`Cvm::get`], [`Cvm::state`], [`Cvm::compose_file`], [`Cvm::composition`], [`Cvm::logs`] … |
//! | power | [`Cvm::start`], [`Cvm::stop`], [`Cvm::shutdown`], [`Cvm::restart`], [`Cvm::delete`] |
//! | following | [`Operation::wait`], [`Operation::watch`], [`Cvm::watch`] |
//! | environment variables | [`Cvm::seal`], [`seal`](seal()), [`Cvm::envs`] |
//! | approvals | [`Client::approvals`], [`Client::approval`]; signing and asking on chain: `chain`, with the feature of that name |
//! | what contracts allow | [`Cvm::is_allowed`], [`App::is_allowed`], [`App::cvms_allowed`], [`App::device_allowlist`]; what can still boot [`App::allowed`] |
//! | history | [`Cvm::revisions`], [`Cvm::rollback`], [`Client::operations`], [`Client::audit`] |
//! | the rest | [`Client::me`], [`Client::kms`], [`Client::keys`], [`Client::nodes`], [`Client::instance_types`], [`Client::fields`] |

mod approvals;
mod apps;
mod call;
#[cfg(feature = "chain")]
pub mod chain;
mod client;
mod compose;
mod create;
mod cvm;
mod error;
mod how;
mod list;
mod logs;
mod operation;
mod patch;
mod platform;
mod power;
mod retry;
mod seal;
mod sse;
mod update;
mod watch;

/// Everything that server and client agree on.
pub use casemate_types as types;
pub use casemate_types::{env, ids, wire};

pub use approvals::Approval;
pub use apps::{App, CheckAllowed, Replicate};
pub use client::{API_KEY_VAR, BASE_URL_VAR, Builder, Client, DEFAULT_BASE_URL};
pub use compose::{CommitCompose, Compose, ProvisionCompose};
pub use create::{Create, Deploy, NewContract, Provision};
pub use cvm::{Cvm, Tagged};
pub use error::{Error, Failure, Invalid, PutBack, Result};
pub use how::DryRun;
pub use list::{Apps, ByCursor, ByPage, Cursor};
pub use logs::{LogSource, Logs};
pub use operation::Operation;
pub use patch::{Ask, Commit, Confirm, Patch, PatchOutcome};
pub use platform::{CreateKey, Fault, Keys, Kms, Node, PlanFault, RefreshInstanceIds};
pub use power::{Delete, Power};
pub use seal::{idempotency_key, seal};
pub use update::{Envs, Listed, OsImage, RefreshInstanceId, Rename, Resources, Rollback, Text, Visibility};
pub use watch::{Watch, WatchEvent};
