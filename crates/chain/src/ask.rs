//! What can be asked, and what comes back.

use async_trait::async_trait;
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, InstanceId, TxHash};

/// Is an update approved?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The chain: 1 Ethereum, 8453 Base, 31337 a local one. Asking the wrong [`Chain`] is an error.
    pub chain_id: u64,
    /// The app, whose contract has this address.
    pub app_id: AppId,
    /// The hash that has to be allowed.
    pub compose_hash: ComposeHash,
    /// The device that has to be allowed.
    pub device_id: DeviceId,
    /// The transaction that is said to have registered the hash; none: only the contract's present state counts.
    pub tx: Option<TxHash>,
}

/// What an app's contract is asked about, many at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The app, whose contract has this address.
    pub app_id: AppId,
    /// Is this hash allowed?
    pub compose_hash: ComposeHash,
    /// And this device?
    pub device_id: DeviceId,
}

/// What the contract allows.
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

/// The chain's answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes: allowed now, and registered by the transaction if one was named.
    Confirmed(Evidence),
    /// The transaction is not on the chain yet, or what it did is not deep enough. Asking later may help.
    NotYet(String),
    /// The transaction failed, or does not register this hash on this app's contract.
    OtherTransaction(String),
    /// The contract does not allow the hash, or the device. Also if there is no contract.
    NotAllowed(Allowed),
}

/// Where the yes can be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// With a transaction the block that it is in, else the block at whose state the contract was asked.
    pub block: u64,
    /// Its hash.
    pub block_hash: [u8; 32],
    /// The log of the transaction that registers the hash, numbered within the block.
    pub log_index: Option<u64>,
}

/// A block of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Its height.
    pub number: u64,
    /// Its hash: after a reorganisation the same height has another one.
    pub hash: [u8; 32],
}

/// The newest block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which it is.
    pub block: Block,
    /// When it was made, in seconds since 1970.
    pub timestamp: u64,
}

/// What contracts allow, all read at one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The block: the head of the chain.
    pub block: Block,
    /// One for each subject, in their order.
    pub standings: Vec<Standing>,
}

/// Where a [`Subject`] stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// At the head.
    pub now: Allowed,
    /// Hash and device are allowed now, and were already as many blocks ago as the chain's confirmations say. These two blocks
    /// alone are looked at: what was taken back between them and then allowed again counts as confirmed, although a
    /// reorganisation may undo the newer of the two. Whoever acts on it asks once more right before what cannot be undone.
    pub confirmed: bool,
}

/// What a key service's contract and the chain know of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The key service's contract lists the app.
    pub registered: bool,
    /// Who may change what the app's contract allows. None: there is no contract at the app's address that says so.
    pub owner: Option<Address>,
    /// Does the app's contract allow any device?
    pub allow_any_device: bool,
    /// The block that this was read at.
    pub block: Block,
}

/// A machine that wants to boot, as the contracts' `isAppAllowed` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// The app.
    pub app_id: AppId,
    /// What it would run.
    pub compose_hash: ComposeHash,
    /// The machine.
    pub instance_id: InstanceId,
    /// The processor that it runs on.
    pub device_id: DeviceId,
    /// All measurement registers in one.
    pub mr_aggregated: [u8; 32],
    /// Those of firmware and system in one.
    pub mr_system: [u8; 32],
    /// The OS image.
    pub os_image_hash: [u8; 32],
    /// `UpToDate`, `OutOfDate`, …
    pub tcb_status: String,
    /// Advisories that apply, `INTEL-SA-…`.
    pub advisory_ids: Vec<String>,
}

/// May it boot?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootAnswer {
    /// Yes or no.
    pub allowed: bool,
    /// Why not, in the contract's words, cut at 1,000 characters.
    pub reason: String,
}

/// What an app's contract reported in a range of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// In the order of the chain.
    pub changes: Vec<Change>,
    /// All blocks up to here were read. Reading goes on behind it.
    ///
    /// A later reorganisation can put other changes below this block; who reads on therefore begins a few blocks before
    /// its end, and asks [`Chain::state`] what holds now.
    pub read_to: Block,
    /// The head of the chain. Nothing is left to read when `read_to` is this block.
    pub head: Block,
}

/// A change that an app's contract reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub what: What,
    /// In which block.
    pub block: Block,
    /// The log's number within the block.
    pub log_index: u64,
    /// By which transaction.
    pub tx: TxHash,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// The hash is allowed from then on. Reported again when a hash that is allowed is added again.
    HashAdded(ComposeHash),
    /// The hash is no longer allowed.
    HashRemoved(ComposeHash),
    /// The device is allowed from then on.
    DeviceAdded(DeviceId),
    /// The device is no longer allowed.
    DeviceRemoved(DeviceId),
    /// Any device is allowed, or only the listed ones.
    AnyDevice(bool),
}

/// Why there is no answer. Neither says where in an endpoint's address: it may hold a key.
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
///
/// Every answer is about blocks that were the chain's at that moment. Every call ends by itself within a time that the
/// implementation knows; callers may bound it further by dropping the future.
#[async_trait]
pub trait Chain: Send + Sync {
    /// Is it so? Waits a while for a transaction that was just sent.
    async fn check(&self, question: &Question) -> Result<Verdict, Error>;

    /// The newest block.
    async fn head(&self) -> Result<Head, Error>;

    /// Where all of these stand, at one block. Cheap enough to be asked every few seconds about hundreds.
    async fn state(&self, subjects: &[Subject]) -> Result<State, Error>;

    /// What `kms`, the contract of a key service, and the app's own contract say of the app.
    async fn registration(&self, kms: Address, app: AppId) -> Result<Registration, Error>;

    /// Does the key service's contract allow this OS image?
    async fn os_image_allowed(&self, kms: Address, os_image: [u8; 32]) -> Result<bool, Error>;

    /// May this machine boot? Asks the key service's contract, which asks the app's.
    async fn is_app_allowed(&self, kms: Address, boot: &BootInfo) -> Result<BootAnswer, Error>;

    /// The app id of the gateway that the key service's contract names, in the contract's spelling. None: it names none.
    async fn gateway_app_id(&self, kms: Address) -> Result<Option<String>, Error>;

    /// What the app's contract reported from block `from_block` to `to_block`, both included, or to the head if that is
    /// lower. One call reads a bounded number of blocks: see [`Changes::read_to`].
    async fn changes(&self, app: AppId, from_block: u64, to_block: u64) -> Result<Changes, Error>;

    /// Does the app's contract allow any device? No contract allows none.
    async fn allow_any_device(&self, app: AppId) -> Result<bool, Error>;
}
