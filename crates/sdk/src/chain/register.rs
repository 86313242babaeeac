//! The way from "needs an approval" to a running update for who can give it.

use std::fmt::Display;
use std::time::Duration;

use casemate_types::patch::TxProof;
use tokio::time::sleep;

use super::changes::{ComposeHashChange, DeviceChange};
use super::network::{Network, Prerequisites, app_id, both, compose_hash, valid};
use super::wallet::Wallet;
use crate::error::{Error, Result};
use crate::operation::Operation;
use crate::patch::Ask;

/// So often a server is told of a transaction that it does not see yet. Each time it looks for a while itself.
const CONFIRMATIONS: u32 = 4;

const PAUSE: Duration = Duration::from_secs(1);

/// Registers what an update needs and runs it: [`Ask::register_with`].
///
/// ```no_run
/// # async fn example(ask: casemate_sdk::Ask) -> casemate_sdk::Result<()> {
/// use casemate_sdk::chain::{Network, Wallet};
///
/// let wallet = Wallet::from_file("owner.key")?;
/// let network = Network::at(8453, "https://mainnet.base.org")?;
/// let op = ask.register_with(&wallet).network(network).send().await?;
/// op.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is sent before `send` or `register`"]
pub struct Register<'a> {
    ask: &'a Ask,
    wallet: &'a Wallet,
    network: Option<Network>,
}

/// What had to be registered. What was allowed already is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The device.
    pub device: Option<DeviceChange>,
    /// The compose hash.
    pub compose_hash: Option<ComposeHashChange>,
}

impl Registered {
    /// What a server takes as proof: the transaction, or that the contract allows the hash already.
    pub fn proof(&self) -> TxProof {
        self.compose_hash.as_ref().map_or(TxProof::StateOnly, |added| TxProof::Tx(added.transaction_hash))
    }
}

impl Ask {
    /// Registers the compose hash, and the device if it is not allowed either, as the owner of the app's contract, and runs the
    /// update.
    ///
    /// The hash is the one that the server named. Who does not trust the server compares it first with the text that
    /// [`Approval::get`](crate::Approval::get) shows.
    pub fn register_with<'a>(&'a self, wallet: &'a Wallet) -> Register<'a> {
        Register { ask: self, wallet, network: None }
    }
}

impl Register<'_> {
    /// The chain, at a node of your choice; [`Network::of`] the key service by default.
    pub fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// Only the first half: registers what is not allowed yet. [`confirm`](Self::confirm) is the other one.
    ///
    /// # Errors
    /// [`Error::Chain`]. If the wallet does not own the contract, nothing was sent.
    pub async fn register(&self) -> Result<Registered> {
        let ask = self.ask;
        self.chosen()?.register(self.wallet, ask.app_id, &ask.device_id, ask.compose_hash).await
    }

    /// Registers what is not allowed yet, and confirms.
    ///
    /// # Errors
    /// Those of [`register`](Self::register) and of [`Ask::confirm`]. What was registered stays registered:
    /// [`Ask::confirm`] with `already-registered` can be tried again.
    pub async fn send(self) -> Result<Operation> {
        let registered = self.register().await?;
        self.confirm(&registered).await
    }

    /// Only the second half: confirms what was registered, again and again for a few seconds if the server does not see it yet.
    ///
    /// # Errors
    /// Those of [`Ask::confirm`].
    pub async fn confirm(&self, registered: &Registered) -> Result<Operation> {
        let proof = registered.proof();
        seen(|| self.ask.confirm(proof)).await
    }

    fn chosen(&self) -> Result<Network> {
        self.network.clone().map_or_else(|| Network::of(&self.ask.kms_info), Ok)
    }
}

impl Network {
    /// Registers what an app's contract does not allow yet of a device and a compose hash, as its owner. An empty device is not
    /// looked at.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the arguments that are wrong; [`Error::Chain`]. If the wallet does not own the contract, nothing
    /// was sent.
    pub async fn register(
        &self,
        wallet: &Wallet,
        app: impl Display,
        device: impl Display,
        hash: impl Display,
    ) -> Result<Registered> {
        let (app, hash) = valid(both(app_id(app), compose_hash(hash)))?;
        let device = device.to_string();
        let holds = if device.is_empty() {
            let compose_hash_allowed = self.check_compose_hash_allowed(app, hash).await?;
            Prerequisites { allow_any_device: false, device_allowed: true, compose_hash_allowed }
        } else {
            self.check_on_chain_prerequisites(app, &device, hash).await?
        };
        let device = if holds.allow_any_device || holds.device_allowed {
            None
        } else {
            Some(self.add_device(wallet, app, &device).send().await?)
        };
        let compose_hash = if holds.compose_hash_allowed {
            None
        } else {
            Some(self.add_compose_hash(wallet, app, hash).send().await?)
        };
        Ok(Registered { device, compose_hash })
    }
}

/// Tells a server of a registration until it sees it: its node may be behind ours.
pub(crate) async fn seen<T, F: Future<Output = Result<T>>>(tell: impl Fn() -> F) -> Result<T> {
    let mut attempt = 1;
    loop {
        match tell().await {
            Err(error @ Error::NotProven(_)) if error.is_transient() && attempt < CONFIRMATIONS => {
                attempt += 1;
                sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

impl crate::Approval {
    /// Commits what was registered for it, again and again for a few seconds if the server does not see it yet.
    ///
    /// # Errors
    /// Those of [`commit`](Self::commit).
    pub async fn commit_registered(&self, registered: &Registered) -> Result<Operation> {
        let proof = registered.proof();
        seen(|| self.commit(proof)).await
    }
}
