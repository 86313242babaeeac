//! A transaction from the first check to the last confirmation.

use std::fmt;
use std::time::Duration;

use alloy_primitives::{Bytes, U64, U128, U256, hex};
use alloy_sol_types::{Panic, Revert, SolCall, SolError, SolEvent};
use casemate_chain::abi::App;
use casemate_chain::{NodeError, Refused, checksummed};
use casemate_types::error::FieldError;
use casemate_types::ids::{Address, TxHash};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::error::Error;
use super::network::Network;
use super::transaction::{Signed, Transaction};
use super::wallet::Wallet;
use crate::error::Result;

const TIMEOUT: Duration = Duration::from_secs(120);
const MIN_BALANCE: u128 = 1_000_000_000_000_000;
const MAX_COST: u128 = 100_000_000_000_000_000;

/// What the maker of a block gets where the node has no opinion: 1 gwei.
const USUAL_TIP: u128 = 1_000_000_000;

/// So often another transaction of the same account may come in between while this one is made.
const ATTEMPTS: u32 = 3;

/// So often in a row a node has to say that a transaction is lost: machines behind one address are not equally far.
const LOST: u32 = 3;

/// A transaction that is not sent yet. Made by the methods of [`Network`].
///
/// ```no_run
/// # async fn example() -> casemate_sdk::Result<()> {
/// use std::time::Duration;
/// use casemate_sdk::chain::{Network, Wallet};
///
/// let wallet = Wallet::from_file("owner.key")?;
/// let app = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
/// let hash = "aa8150fb698fa81201284b1e3bf1cc63fa2149ae6bc64f670489a3dfa694e682";
/// let added = Network::new(8453)?
///     .add_compose_hash(&wallet, app, hash)
///     .confirmations(3)
///     .timeout(Duration::from_secs(60))
///     .send()
///     .await?;
/// println!("in block {}", added.block_number);
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is sent before `send`"]
pub struct Transact<R> {
    network: Network,
    wallet: Wallet,
    plan: std::result::Result<Plan<R>, Vec<FieldError>>,
    limits: Limits,
}

/// What is done, and what comes of it.
pub(super) struct Plan<R> {
    pub(super) to: Address,
    /// What should be at that address.
    pub(super) what: &'static str,
    /// Only its owner may do it.
    pub(super) owner_only: bool,
    pub(super) data: Vec<u8>,
    pub(super) done: Done<R>,
}

/// Makes a result of a transaction that succeeded.
type Done<R> = Box<dyn FnOnce(&Mined) -> Result<R, Error> + Send>;

#[derive(Clone, Copy, Debug)]
struct Limits {
    confirmations: u64,
    timeout: Duration,
    min_balance: u128,
    max_cost: u128,
    checked: bool,
}

/// A transaction that is in a block, and deep enough.
#[derive(Clone, Debug)]
pub(super) struct Mined {
    pub(super) tx: TxHash,
    pub(super) block_number: u64,
    pub(super) gas_used: u64,
    logs: Vec<Log>,
}

#[derive(Clone, Debug, Deserialize)]
struct Log {
    address: alloy_primitives::Address,
    topics: Vec<alloy_primitives::B256>,
    data: Bytes,
}

/// The parts of a receipt that matter. Its type is not one of them, so one of a kind that is new is as good as any other.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    status: U64,
    block_number: Option<U64>,
    gas_used: U64,
    logs: Vec<Log>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FeeHistory {
    base_fee_per_gas: Vec<U128>,
    #[serde(default)]
    reward: Option<Vec<Vec<U128>>>,
}

impl Mined {
    /// What this contract reported of this kind.
    pub(super) fn events<E: SolEvent>(&self, of: Address) -> impl Iterator<Item = E> {
        let mine = self.logs.iter().filter(move |log| log.address.0.0 == of.0);
        mine.filter_map(|log| E::decode_raw_log(log.topics.iter().copied(), &log.data).ok())
    }
}

impl<R> Transact<R> {
    pub(super) fn new(
        network: &Network,
        wallet: &Wallet,
        plan: std::result::Result<Plan<R>, Vec<FieldError>>,
    ) -> Self {
        let limits = Limits {
            confirmations: 1,
            timeout: TIMEOUT,
            min_balance: MIN_BALANCE,
            max_cost: MAX_COST,
            checked: true,
        };
        Self { network: network.clone(), wallet: wallet.clone(), plan, limits }
    }

    /// How many blocks, its own included, have to be on the chain before it counts. 1 by default; 0 is read as 1.
    pub fn confirmations(mut self, blocks: u64) -> Self {
        self.limits.confirmations = blocks.max(1);
        self
    }

    /// How long that may take, from the moment it is sent. 120 seconds by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.limits.timeout = timeout;
        self
    }

    /// What the sender has to have, in wei. 0.001 ETH by default; what the transaction can cost is looked at as well.
    #[doc(alias = "minBalance")]
    pub fn min_balance_wei(mut self, wei: u128) -> Self {
        self.limits.min_balance = wei;
        self
    }

    /// What it may cost at most, in wei, whatever fees the node names. 0.1 ETH by default.
    pub fn max_cost_wei(mut self, wei: u128) -> Self {
        self.limits.max_cost = wei;
        self
    }

    /// Does not look at balance and owner before it is sent. That it is the right chain is always looked at.
    #[doc(alias = "skipPrerequisiteChecks")]
    pub fn skip_prerequisite_checks(mut self) -> Self {
        self.limits.checked = false;
        self
    }

    /// Checks, signs, sends and waits.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) with the arguments that are wrong, and [`Error::Chain`](crate::Error::Chain).
    /// [`Error::transaction`] tells whether something was sent.
    pub async fn send(self) -> Result<R> {
        let plan = self.plan.map_err(crate::Error::invalid)?;
        let sender = Sender { network: &self.network, wallet: &self.wallet, limits: self.limits };
        let mined = sender.run(plan.to, plan.what, plan.owner_only, &plan.data).await?;
        Ok((plan.done)(&mined)?)
    }
}

impl<R> fmt::Debug for Transact<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transact")
            .field("network", &self.network)
            .field("wallet", &self.wallet)
            .field("to", &self.plan.as_ref().map(|plan| plan.to))
            .field("limits", &self.limits)
            .finish()
    }
}

struct Sender<'a> {
    network: &'a Network,
    wallet: &'a Wallet,
    limits: Limits,
}

impl Sender<'_> {
    async fn run(&self, to: Address, what: &'static str, owned: bool, data: &[u8]) -> Result<Mined, Error> {
        let balance = self.check(to, what, owned).await?;
        let mut attempt = 1;
        loop {
            let transaction = self.priced(to, data, balance).await?;
            let signed = transaction.sign(self.wallet);
            match self.broadcast(&signed, &transaction, balance).await {
                Ok(()) => return self.wait(&signed, &transaction).await,
                Err(Sent::Overtaken(_)) if attempt < ATTEMPTS => attempt += 1,
                Err(Sent::Overtaken(error) | Sent::Failed(error)) => return Err(error),
            }
        }
    }

    fn from(&self) -> String {
        format!("0x{}", self.wallet.address())
    }

    /// The right chain, a contract at the address, enough money, the right sender. Returns the balance.
    async fn check(&self, to: Address, what: &'static str, owned: bool) -> Result<u128, Error> {
        let owner = hex::encode_prefixed(App::ownerCall {}.abi_encode());
        let answers = self
            .network
            .node()
            .ask([
                ("eth_getBalance", json!([self.from(), "latest"])),
                ("eth_getCode", json!([format!("0x{to}"), "latest"])),
                ("eth_call", json!([{ "to": format!("0x{to}"), "data": owner }, "latest"])),
            ])
            .await?;
        let [balance, code, owner] = self.three(answers)?;
        // Nobody has more than 128 bits of it but on a chain that was made up.
        let balance: U256 = self.network.read(balance.map_err(refused)?)?;
        let balance = u128::try_from(balance).unwrap_or(u128::MAX);
        let code: Bytes = self.network.read(code.map_err(refused)?)?;
        let absent = || Error::NoContract { what, address: to, chain_id: self.network.chain_id() };
        if code.is_empty() {
            return Err(absent());
        }
        if !self.limits.checked {
            return Ok(balance);
        }
        if owned {
            let returned = match owner {
                Ok(returned) => self.network.read::<Bytes>(returned)?,
                Err(why) if why.of_the_contract => return Err(absent()),
                Err(why) => return Err(refused(why)),
            };
            let owner = App::ownerCall::abi_decode_returns(&returned).map_err(|_| absent())?;
            let (owner, sender) = (Address(owner.0.0), self.wallet.address());
            if owner != sender {
                return Err(Error::NotOwner { sender, owner, contract: to });
            }
        }
        self.can_pay(balance, self.limits.min_balance)?;
        Ok(balance)
    }

    fn can_pay(&self, balance_wei: u128, needed_wei: u128) -> Result<(), Error> {
        if balance_wei >= needed_wei {
            return Ok(());
        }
        let (sender, chain_id) = (self.wallet.address(), self.network.chain_id());
        Err(Error::TooLittleMoney { sender, chain_id, balance_wei, needed_wei })
    }

    fn three<T>(&self, answers: Vec<T>) -> Result<[T; 3], Error> {
        answers.try_into().map_err(|_| self.network.node().nonsense("leaves questions unanswered").into())
    }

    /// The transaction at today's fees, with the sender's next number.
    async fn priced(&self, to: Address, data: &[u8], balance: u128) -> Result<Transaction, Error> {
        let (node, from) = (self.network.node(), self.from());
        let call = json!({ "from": from, "to": format!("0x{to}"), "data": hex::encode_prefixed(data) });
        let answers = node
            .ask([
                ("eth_estimateGas", json!([call])),
                ("eth_feeHistory", json!(["0x5", "latest", [50]])),
                ("eth_getTransactionCount", json!([from, "pending"])),
            ])
            .await?;
        let [gas, fees, nonce] = self.three(answers)?;
        let gas: U64 = self.network.read(gas.map_err(|why| self.not_estimated(why, balance))?)?;
        let nonce: U64 = self.network.read(nonce.map_err(refused)?)?;
        let fees: FeeHistory = self.network.read(fees.map_err(refused)?)?;
        // The last one is that of the block to come.
        let base = fees.base_fee_per_gas.last().map(|fee| fee.to::<u128>());
        let base =
            base.ok_or_else(|| Error::from(node.nonsense("does not tell the fee of the next block")))?;
        let tip = match node.call("eth_maxPriorityFeePerGas", json!([])).await {
            Ok(tip) => self.network.read::<U128>(tip)?.to(),
            Err(NodeError::Refused(_)) => usual_tip(&fees),
            Err(error) => return Err(error.into()),
        };
        let transaction = Transaction {
            chain_id: self.network.chain_id(),
            nonce: nonce.to(),
            max_priority_fee: tip,
            // Enough for six full blocks in a row before this one, each of which raises the fee by an eighth.
            max_fee: base.saturating_mul(2).saturating_add(tip),
            // What others do before it in the block can make it dearer.
            gas: gas.to::<u64>().saturating_mul(6) / 5,
            to,
            data: data.to_vec(),
        };
        let (cost_wei, limit_wei) = (transaction.max_cost(), self.limits.max_cost);
        if cost_wei > limit_wei {
            return Err(Error::TooExpensive { cost_wei, limit_wei });
        }
        self.can_pay(balance, cost_wei)?;
        Ok(transaction)
    }

    fn not_estimated(&self, why: Refused, balance: u128) -> Error {
        if is_about_money(&why) {
            return self.too_little(balance, self.limits.min_balance);
        }
        if why.of_the_contract { Error::Reverted { tx: None, reason: reason(&why) } } else { refused(why) }
    }

    /// The node says so, and knows costs that are not known here, such as those of a rollup.
    fn too_little(&self, balance_wei: u128, needed_wei: u128) -> Error {
        let (sender, chain_id) = (self.wallet.address(), self.network.chain_id());
        let needed_wei = needed_wei.max(balance_wei.saturating_add(1));
        Error::TooLittleMoney { sender, chain_id, balance_wei, needed_wei }
    }

    /// Hands it to the node. One whose answer was lost may have arrived: the same bytes are the same transaction, however often
    /// they are sent.
    async fn broadcast(&self, signed: &Signed, made: &Transaction, balance: u128) -> Result<(), Sent> {
        let raw = json!([hex::encode_prefixed(&signed.raw)]);
        let mut attempt = 1;
        loop {
            let why = match self.network.node().call("eth_sendRawTransaction", raw.clone()).await {
                Ok(_) => return Ok(()),
                Err(NodeError::Refused(why)) => why,
                Err(NodeError::Failed(_)) if attempt < ATTEMPTS => {
                    attempt += 1;
                    sleep(self.network.pause()).await;
                    continue;
                }
                // It may have arrived all the same, and waiting finds out.
                Err(NodeError::Failed(_)) => return Ok(()),
                Err(error) => return Err(Sent::Failed(error.into())),
            };
            let words = why.message.to_ascii_lowercase();
            let says = |some: &[&str]| some.iter().any(|word| words.contains(word));
            if says(&["already known", "already imported", "known transaction", "already exists"]) {
                return Ok(());
            }
            if says(&["nonce too low", "replacement transaction", "underpriced"]) {
                // An earlier copy that is in a block by now is no other transaction.
                if attempt > 1 {
                    return Ok(());
                }
                return Err(Sent::Overtaken(refused(why)));
            }
            let error =
                if is_about_money(&why) { self.too_little(balance, made.max_cost()) } else { refused(why) };
            return Err(Sent::Failed(error));
        }
    }

    async fn wait(&self, signed: &Signed, made: &Transaction) -> Result<Mined, Error> {
        let tx = signed.hash;
        let id = format!("0x{tx}");
        let begun = Instant::now();
        let (mut known, mut unknown, mut overtaken) = (false, 0, 0);
        loop {
            let look = self
                .network
                .node()
                .ask([
                    // Before the receipt: if the number is used up, the receipt must be there.
                    ("eth_getTransactionCount", json!([self.from(), "latest"])),
                    ("eth_getTransactionByHash", json!([id])),
                    ("eth_getTransactionReceipt", json!([id])),
                    ("eth_blockNumber", json!([])),
                ])
                .await;
            let why = match look.map_err(Error::from).and_then(|answers| self.look(answers)) {
                // A node that is away for a moment has not lost anything.
                Err(error @ (Error::Node(_) | Error::Refused { .. })) => error.to_string(),
                Err(error) => return Err(error),
                Ok(Look { receipt: Some((receipt, block_number)), head, .. }) => {
                    if receipt.status.is_zero() {
                        return Err(self.reverted(tx, made, block_number).await);
                    }
                    let depth = (head + 1).saturating_sub(block_number);
                    let wanted = self.limits.confirmations;
                    if depth >= wanted {
                        let Receipt { gas_used, logs, .. } = receipt;
                        return Ok(Mined { tx, block_number, gas_used: gas_used.to(), logs });
                    }
                    (known, unknown, overtaken) = (true, 0, 0);
                    format!("it is {depth} blocks deep, and {wanted} are wanted")
                }
                Ok(Look { nonce, is_known, .. }) => {
                    overtaken = if nonce > made.nonce { overtaken + 1 } else { 0 };
                    unknown = if is_known { 0 } else { unknown + 1 };
                    known |= is_known;
                    if overtaken >= LOST {
                        return Err(Error::Replaced { tx, nonce: made.nonce });
                    }
                    if known && unknown >= LOST {
                        return Err(Error::Dropped { tx });
                    }
                    "it is in no block".to_owned()
                }
            };
            let after = self.limits.timeout;
            if begun.elapsed() >= after {
                return Err(Error::TimedOut { tx, after, why });
            }
            sleep(self.network.pause()).await;
        }
    }

    fn look(&self, answers: Vec<std::result::Result<Value, Refused>>) -> Result<Look, Error> {
        let answers: Vec<Value> =
            answers.into_iter().collect::<std::result::Result<_, _>>().map_err(refused)?;
        let Ok([nonce, transaction, receipt, head]) = <[Value; 4]>::try_from(answers) else {
            return Err(self.network.node().nonsense("leaves questions unanswered").into());
        };
        let receipt: Option<Receipt> = self.network.read(receipt)?;
        // Some nodes have receipts of transactions that wait; they are in no block.
        let receipt = receipt.and_then(|receipt| {
            let block: u64 = receipt.block_number?.to();
            Some((receipt, block))
        });
        Ok(Look {
            nonce: self.network.read::<U64>(nonce)?.to(),
            is_known: !transaction.is_null() || receipt.is_some(),
            receipt,
            head: self.network.read::<U64>(head)?.to(),
        })
    }

    /// Why it failed: a receipt does not tell, but the same call at the same block does.
    async fn reverted(&self, tx: TxHash, made: &Transaction, block: u64) -> Error {
        let call = json!({
            "from": self.from(),
            "to": format!("0x{}", made.to),
            "data": hex::encode_prefixed(&made.data),
            "gas": format!("{:#x}", made.gas),
        });
        let again = self.network.node().call("eth_call", json!([call, format!("{block:#x}")])).await;
        let reason = match again {
            Err(NodeError::Refused(why)) => reason(&why),
            Ok(_) | Err(_) => "the transaction failed".to_owned(),
        };
        Error::Reverted { tx: Some(tx), reason }
    }
}

/// Why a transaction was not taken.
enum Sent {
    /// Another one of the sender came first.
    Overtaken(Error),
    Failed(Error),
}

struct Look {
    /// The sender's next number.
    nonce: u64,
    is_known: bool,
    receipt: Option<(Receipt, u64)>,
    head: u64,
}

fn refused(why: Refused) -> Error {
    NodeError::Refused(why).into()
}

fn is_about_money(why: &Refused) -> bool {
    why.message.to_ascii_lowercase().contains("insufficient funds")
}

/// What makers of blocks got lately.
fn usual_tip(fees: &FeeHistory) -> u128 {
    let mut tips: Vec<u128> =
        fees.reward.iter().flatten().filter_map(|tips| tips.first()).map(|tip| tip.to()).collect();
    tips.sort_unstable();
    tips.get(tips.len() / 2).copied().filter(|tip| *tip > 0).unwrap_or(USUAL_TIP)
}

/// Why a contract's code failed, in words.
fn reason(why: &Refused) -> String {
    let data = why.data.as_slice();
    if let Ok(not_owner) = App::OwnableUnauthorizedAccount::abi_decode(data) {
        let sender = checksummed(Address(not_owner.account.0.0));
        return format!("{sender} does not own it (OwnableUnauthorizedAccount)");
    }
    if let Ok(says) = Revert::abi_decode(data) {
        let text = says.reason.chars().map(|c| if c.is_control() { ' ' } else { c });
        return text.take(200).collect();
    }
    if let Ok(panic) = Panic::abi_decode(data) {
        return panic.to_string();
    }
    match data.get(..4) {
        Some(selector) => format!("{} ({})", why.message, hex::encode_prefixed(selector)),
        None => why.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(message: &str, data: Vec<u8>) -> Refused {
        Refused { host: "h".into(), code: 3, message: message.into(), data, of_the_contract: true }
    }

    #[test]
    fn a_reason_is_told_in_words() {
        let account = alloy_primitives::Address::from([0x11; 20]);
        let not_owner = App::OwnableUnauthorizedAccount { account }.abi_encode();
        let text = reason(&why("execution reverted", not_owner));
        assert_eq!(
            text,
            format!("{} does not own it (OwnableUnauthorizedAccount)", checksummed(Address([0x11; 20])))
        );
        assert_eq!(reason(&why("x", Revert::from("app is\nfrozen").abi_encode())), "app is frozen");
        assert!(reason(&why("x", Panic::from(0x11_u64).abi_encode())).contains("overflow"));
        assert_eq!(
            reason(&why("execution reverted", vec![1, 2, 3, 4, 5])),
            "execution reverted (0x01020304)"
        );
        assert_eq!(reason(&why("execution reverted", vec![])), "execution reverted");
    }

    #[test]
    fn a_node_without_an_opinion_leads_to_the_usual_tip() {
        let fees = |reward| FeeHistory { base_fee_per_gas: vec![], reward };
        assert_eq!(usual_tip(&fees(None)), USUAL_TIP);
        assert_eq!(usual_tip(&fees(Some(vec![vec![U128::from(0)]]))), USUAL_TIP);
        let some = [5_u64, 1, 9].map(|tip| vec![U128::from(tip)]).to_vec();
        assert_eq!(usual_tip(&fees(Some(some))), 5);
    }
}
