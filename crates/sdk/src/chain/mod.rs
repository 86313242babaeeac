//! What owners do on the contracts that govern apps' keys, and what can be asked there. Feature `chain`.
//!
//! ```no_run
//! # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
//! use casemate_sdk::PatchOutcome;
//! use casemate_sdk::chain::Wallet;
//!
//! let wallet = Wallet::from_file("owner.key")?;
//! let patch = client.cvm("web-1").patch().compose("services: {}\n");
//! let op = match patch.send().await? {
//!     PatchOutcome::Accepted(op) => op,
//!     PatchOutcome::NeedsApproval(ask) => ask.register_with(&wallet).send().await?,
//! };
//! op.wait().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Network`] is a chain and one node of it; a [`Wallet`] holds the private key that signs. The key never leaves this
//! process: what is sent is a signed transaction. A node is believed about balances, fees and receipts, but it cannot have a
//! transaction made for another chain, or one that costs more than [`Transact::max_cost_wei`].
//!
//! Money is in wei; 1 ETH is 10^18 of them.
//!
//! | JavaScript client | here |
//! | --- | --- |
//! | `deployAppAuth` | [`Network::deploy_app_auth`]; [`Deploy::wallet`](crate::Deploy::wallet) does it along the way |
//! | `addComposeHash`, `removeComposeHash` | [`Network::add_compose_hash`], [`Network::remove_compose_hash`] |
//! | `addDevice`, `removeDevice`, `setAllowAnyDevice` | [`Network::add_device`], [`Network::remove_device`], [`Network::set_allow_any_device`] |
//! | `checkComposeHashAllowed`, `checkDeviceAllowed` | [`Network::check_compose_hash_allowed`], [`Network::check_device_allowed`] |
//! | `checkOnChainPrerequisites` | [`Network::check_on_chain_prerequisites`] |
//! | `getAllowedDevices` | [`Network::get_allowed_devices`] |

mod changes;
mod error;
mod network;
mod register;
mod transact;
mod transaction;
mod wallet;

pub use casemate_chain::{Action, RpcUrl, checksummed, safe_batch};

pub use changes::{AllowAnyDeviceChange, AppAuth, ComposeHashChange, DeviceChange, Devices, NewApp};
pub use error::Error;
pub use network::{AllowedDevices, Network, Prerequisites};
pub(crate) use register::seen;
pub use register::{Register, Registered};
pub use transact::Transact;
pub use wallet::Wallet;
