//! Asks a chain whether something is so: has an app's contract allowed a compose hash, and did a transaction do it?
//!
//! Nothing here knows the server. A chain that does not answer, or answers nonsense, is an [`Error`] and never a yes.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use casemate_types::ids::{AppId, ComposeHash, TxHash};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The chain: 1 Ethereum, 8453 Base, 31337 a local one.
    pub chain_id: u64,
    /// The app, whose contract has this address.
    pub app_id: AppId,
    /// The hash that has to be allowed.
    pub compose_hash: ComposeHash,
    /// The device that has to be allowed: 64 hex digits.
    pub device_id: String,
    /// The transaction that is said to have registered the hash; none: only the contract's present state counts.
    pub tx: Option<TxHash>,
}

/// What the contract allows at the head of the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The compose hash.
    pub compose_hash: bool,
    /// The device, or any device.
    pub device: bool,
}

impl Allowed {
    /// Both.
    pub fn both(self) -> bool {
        self.compose_hash && self.device
    }
}

/// The chain's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes: allowed now, and registered by the transaction if one was named.
    Confirmed(Evidence),
    /// The transaction is not on the chain yet, or not deep enough. Asking later may help.
    NotYet(String),
    /// The transaction failed, or does not register this hash on this app's contract.
    OtherTransaction(String),
    /// The contract does not allow the hash, or the device.
    NotAllowed(Allowed),
}

/// Where the yes can be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The block at whose state the contract was asked.
    pub block: u64,
    /// Its hash.
    pub block_hash: [u8; 32],
    /// The log of the transaction that registers the hash.
    pub log_index: Option<u64>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing that speaks for the chain answers.
    #[error("the chain does not answer: {0}")]
    Unreachable(String),
    /// What answers speaks for another chain, or not sensibly.
    #[error("the chain's node cannot be trusted: {0}")]
    Nonsense(String),
}

/// A chain that can be asked.
#[async_trait]
pub trait Chain: Send + Sync {
    /// Is it so? May wait a while for a transaction that was just sent; callers bound the time.
    async fn check(&self, question: &Question) -> Result<Verdict, Error>;
}

/// A chain whose answers are written down by hand.
#[derive(Default)]
pub struct Scripted(Mutex<Script>);

#[derive(Default)]
struct Script {
    hashes: HashSet<(AppId, ComposeHash)>,
    devices: HashSet<(AppId, String)>,
    transactions: HashMap<TxHash, (AppId, ComposeHash)>,
    down: bool,
    questions: Vec<Question>,
}

impl Scripted {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().expect("nothing panics while holding it")
    }

    /// The contract allows this hash from now on.
    pub fn allow_hash(&self, app: AppId, hash: ComposeHash) {
        self.script().hashes.insert((app, hash));
    }

    /// The contract no longer allows this hash.
    pub fn forbid_hash(&self, app: AppId, hash: ComposeHash) {
        self.script().hashes.remove(&(app, hash));
    }

    /// The contract allows this device from now on.
    pub fn allow_device(&self, app: AppId, device: &str) {
        self.script().devices.insert((app, device.to_owned()));
    }

    /// The transaction is on the chain and registers this hash.
    pub fn register(&self, tx: TxHash, app: AppId, hash: ComposeHash) {
        let mut script = self.script();
        script.transactions.insert(tx, (app, hash));
        script.hashes.insert((app, hash));
    }

    /// From now on the chain does not answer, or does again.
    pub fn set_down(&self, down: bool) {
        self.script().down = down;
    }

    /// Everything that was asked, in order.
    pub fn questions(&self) -> Vec<Question> {
        self.script().questions.clone()
    }
}

#[async_trait]
impl Chain for Scripted {
    async fn check(&self, question: &Question) -> Result<Verdict, Error> {
        let mut script = self.script();
        script.questions.push(question.clone());
        if script.down {
            return Err(Error::Unreachable("it is switched off".into()));
        }
        let subject = (question.app_id, question.compose_hash);
        match question.tx.map(|tx| script.transactions.get(&tx)) {
            Some(None) => return Ok(Verdict::NotYet("the transaction is not on the chain yet".into())),
            Some(Some(registered)) if *registered != subject => {
                let message = "the transaction does not register this compose hash on the app's contract";
                return Ok(Verdict::OtherTransaction(message.into()));
            }
            Some(Some(_)) | None => {}
        }
        let allowed = Allowed {
            compose_hash: script.hashes.contains(&subject),
            device: script.devices.contains(&(question.app_id, question.device_id.clone())),
        };
        if !allowed.both() {
            return Ok(Verdict::NotAllowed(allowed));
        }
        let log_index = question.tx.map(|_| 0);
        Ok(Verdict::Confirmed(Evidence { block: 1, block_hash: [1; 32], log_index }))
    }
}
