//! Questions put to one node.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use alloy_primitives::hex;
use alloy_sol_types::{SolCall, SolEvent};
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, TxHash};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::rpc::{Call, Endpoint, Reply, Trouble};
use super::wire::{Data, Header, Log, Receipt};
use crate::abi::{App, AppBootInfo, Kms};
use crate::ask::{
    Allowed, Block, BootAnswer, BootInfo, Change, Changes, Evidence, Head, Question, Registration, Standing,
    State, Subject, Verdict, What,
};
use crate::config::ChainConfig;

/// So often a node may contradict itself about blocks before it is not believed: a reorganisation can come between two
/// exchanges, and the machines behind a load balancer are not equally far.
const ATTEMPTS: u32 = 3;

/// Queries for logs in one call.
const LOG_QUERIES: u32 = 16;

/// The longest text of a contract that is passed on, in characters.
const MAX_TEXT: usize = 1000;

/// One node, while it is asked one question.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) config: Arc<ChainConfig>,
    pub(crate) endpoint: Arc<Endpoint>,
    /// The height that the chain's nodes are expected to have.
    pub(crate) newest: u64,
    /// Seconds since 1970 when the question began.
    pub(crate) now: u64,
}

/// The block whose state a contract is asked at.
#[derive(Clone, Copy)]
enum At {
    /// This block, if it is still one of the chain.
    Hash([u8; 32]),
    /// Whichever block of the chain has this height.
    Number(u64),
}

/// What a look at a transaction gave.
enum Look {
    Done(Verdict),
    /// Not there, or not deep enough.
    Later(String),
    /// The node contradicts itself.
    Torn(String),
}

impl Header {
    pub(crate) fn block(self) -> Block {
        Block { number: self.number.0, hash: self.hash.0 }
    }
}

impl From<Header> for Head {
    fn from(header: Header) -> Self {
        Self { block: header.block(), timestamp: header.timestamp.0 }
    }
}

fn call(method: &'static str, params: Value) -> Call {
    Call { method, params }
}

pub(super) fn block_by_number(number: u64) -> Call {
    call("eth_getBlockByNumber", json!([format!("0x{number:x}"), false]))
}

/// Asks for the newest block.
pub(crate) fn latest() -> Call {
    call("eth_getBlockByNumber", json!(["latest", false]))
}

fn eth_call(to: Address, function: &impl SolCall, at: At) -> Call {
    let at = match at {
        At::Hash(hash) => json!({ "blockHash": hex::encode_prefixed(hash), "requireCanonical": true }),
        At::Number(number) => json!(format!("0x{number:x}")),
    };
    let data = hex::encode_prefixed(function.abi_encode());
    call("eth_call", json!([{ "to": format!("0x{to}"), "data": data }, at]))
}

/// One `bool`, and it is true. No contract, no such function or anything else is not.
fn is_true(returned: Option<&[u8]>) -> bool {
    returned.is_some_and(|bytes| bytes.len() == 32 && bytes[..31] == [0; 31] && bytes[31] == 1)
}

fn address(returned: Option<&[u8]>) -> Option<Address> {
    let word: &[u8; 32] = returned?.try_into().ok()?;
    let (zeros, address) = word.split_at(12);
    let address: [u8; 20] = address.try_into().ok()?;
    zeros.iter().all(|byte| *byte == 0).then_some(Address(address))
}

/// Text of a contract, fit to be shown.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

impl Session {
    /// The newest block of this node, if it can be believed.
    pub(crate) async fn head(&self) -> Result<Header, Trouble> {
        let [head] = self.exchange([latest()]).await?;
        let head = self.endpoint.read(head)?;
        self.believe(head)?;
        Ok(head)
    }

    /// Is this a block that a node would have that keeps up with its chain?
    pub(crate) fn believe(&self, head: Header) -> Result<(), Trouble> {
        let (number, time) = (head.number.0, head.timestamp.0);
        if let Some(age) = self.config.max_head_age.map(|age| age.as_secs()) {
            if time.saturating_add(age) < self.now {
                let seconds = self.now - time;
                return Err(self
                    .endpoint
                    .unreachable(format_args!("is behind: its newest block is {seconds} s old")));
            }
            if time > self.now.saturating_add(age) {
                let seconds = time - self.now;
                return Err(self
                    .endpoint
                    .nonsense(format_args!("has a block from {seconds} s in the future")));
            }
        }
        if number.saturating_add(self.config.max_lag_blocks) < self.newest {
            let newest = self.newest;
            let what = format_args!("is behind: its newest block is {number}, and others have {newest}");
            return Err(self.endpoint.unreachable(what));
        }
        Ok(())
    }

    async fn exchange<const N: usize>(&self, calls: [Call; N]) -> Result<[Reply; N], Trouble> {
        let replies = self.endpoint.exchange(&calls).await?;
        replies.try_into().map_err(|_| self.endpoint.nonsense("leaves questions unanswered"))
    }

    /// What a contract returned. None: nothing, because there is no contract, or because its code failed.
    fn returned(&self, reply: Reply) -> Result<Option<Vec<u8>>, Trouble> {
        match reply {
            Err(refusal) if refusal.is_of_the_contract() => Ok(None),
            reply => {
                let Data(bytes) = self.endpoint.read(reply)?;
                Ok((!bytes.is_empty()).then_some(bytes))
            }
        }
    }

    /// What contracts return at the head, and which head that was.
    ///
    /// The calls name the head by its hash, so if it is no longer the chain's, the node refuses and is asked at the new one.
    async fn at_head(
        &self,
        mut head: Header,
        calls: impl Fn(Header) -> Vec<Call> + Send,
    ) -> Result<(Header, Vec<Option<Vec<u8>>>), Trouble> {
        let mut attempt = 1;
        loop {
            let replies = self.endpoint.exchange(&calls(head)).await?;
            match replies.into_iter().map(|reply| self.returned(reply)).collect() {
                Ok(returned) => return Ok((head, returned)),
                Err(Trouble::Refused(_)) if attempt < ATTEMPTS => attempt += 1,
                Err(trouble) => return Err(trouble),
            }
            tokio::time::sleep(self.config.poll_every / 4).await;
            head = self.head().await?;
        }
    }

    async fn at_head_one(
        &self,
        head: Header,
        to: Address,
        function: impl SolCall + Sync,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let (_, returned) =
            self.at_head(head, |head| vec![eth_call(to, &function, At::Hash(head.hash.0))]).await?;
        Ok(returned.into_iter().next().flatten())
    }

    pub(crate) async fn state(&self, head: Header, subjects: &[Subject]) -> Result<State, Trouble> {
        // Each thing is asked once, however many subjects share it.
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        enum Fact {
            Hash(AppId, ComposeHash),
            Device(AppId, DeviceId),
            Any(AppId),
        }
        let mut places = HashMap::new();
        let mut facts = Vec::new();
        for Subject { app_id, compose_hash, device_id } in subjects {
            for fact in
                [Fact::Hash(*app_id, *compose_hash), Fact::Device(*app_id, *device_id), Fact::Any(*app_id)]
            {
                places.entry(fact).or_insert_with(|| {
                    facts.push(fact);
                    facts.len() - 1
                });
            }
        }
        let ask = |fact: &Fact, at| match *fact {
            Fact::Hash(app, hash) => {
                eth_call(app.into(), &App::allowedComposeHashesCall { composeHash: hash.0.into() }, at)
            }
            Fact::Device(app, device) => {
                eth_call(app.into(), &App::allowedDeviceIdsCall { deviceId: device.0.into() }, at)
            }
            Fact::Any(app) => eth_call(app.into(), &App::allowAnyDeviceCall {}, at),
        };
        let deep = self.config.confirmations.saturating_sub(1);
        let settled = |head: Header| head.number.0.checked_sub(deep);
        let calls = |head: Header| {
            let mut calls: Vec<_> = facts.iter().map(|fact| ask(fact, At::Hash(head.hash.0))).collect();
            if let Some(number) = settled(head).filter(|_| deep > 0) {
                calls.extend(facts.iter().map(|fact| ask(fact, At::Number(number))));
            }
            calls
        };
        let (head, returned) = self.at_head(head, calls).await?;
        let holds =
            |fact: Fact, from: usize| is_true(returned.get(from + places[&fact]).and_then(Option::as_deref));
        let allowed = |subject: &Subject, from: usize| Allowed {
            compose_hash: holds(Fact::Hash(subject.app_id, subject.compose_hash), from),
            device: holds(Fact::Any(subject.app_id), from)
                || holds(Fact::Device(subject.app_id, subject.device_id), from),
        };
        let before = if deep > 0 { facts.len() } else { 0 };
        let standings = subjects.iter().map(|subject| {
            let now = allowed(subject, 0);
            let confirmed = now.both() && settled(head).is_some() && allowed(subject, before).both();
            Standing { now, confirmed }
        });
        Ok(State { standings: standings.collect(), block: head.block() })
    }

    /// `patience` is when a transaction, or a block more, is no longer waited for.
    pub(crate) async fn check(
        &self,
        head: Header,
        question: &Question,
        patience: Instant,
    ) -> Result<Verdict, Trouble> {
        let (mut torn, mut first) = (0, Some(head));
        loop {
            let next = Instant::now() + self.config.poll_every;
            let look = match (question.tx, first.take()) {
                (Some(tx), _) => self.look(question, tx).await?,
                (None, Some(head)) => self.look_at_state(head, question).await?,
                (None, None) => self.look_at_state(self.head().await?, question).await?,
            };
            match look {
                Look::Done(verdict) => return Ok(verdict),
                Look::Later(why) if next > patience => return Ok(Verdict::NotYet(why)),
                Look::Later(_) => {}
                Look::Torn(why) => {
                    torn += 1;
                    if torn == ATTEMPTS {
                        return Err(self.endpoint.nonsense(why));
                    }
                }
            }
            tokio::time::sleep_until(next).await;
        }
    }

    async fn look_at_state(&self, head: Header, question: &Question) -> Result<Look, Trouble> {
        let state = self.state(head, &[subject(question)]).await?;
        let standing = state.standings.first().copied().unwrap_or_default();
        Ok(match standing {
            Standing { now, .. } if !now.both() => Look::Done(Verdict::NotAllowed(now)),
            Standing { confirmed: false, .. } => {
                let wanted = self.config.confirmations;
                Look::Later(format!("the contract allows it only since fewer than {wanted} blocks"))
            }
            Standing { .. } => {
                let Block { number, hash } = state.block;
                Look::Done(Verdict::Confirmed(Evidence { block: number, block_hash: hash, log_index: None }))
            }
        })
    }

    async fn look(&self, question: &Question, tx: TxHash) -> Result<Look, Trouble> {
        let by_hash = json!([format!("0x{tx}")]);
        let [head, receipt, known] = self
            .exchange([
                latest(),
                call("eth_getTransactionReceipt", by_hash.clone()),
                call("eth_getTransactionByHash", by_hash),
            ])
            .await?;
        let head: Header = self.endpoint.read(head)?;
        self.believe(head)?;
        let receipt: Option<Receipt> = self.endpoint.read(receipt)?;
        let known: Option<IgnoredAny> = self.endpoint.read(known)?;
        let placed =
            receipt.and_then(|receipt| Some((receipt.block_number?.0, receipt.block_hash?.0, receipt)));
        let Some((number, hash, receipt)) = placed else {
            return Ok(Look::Later(match known {
                None => "the transaction is not known on the chain yet".into(),
                Some(_) => "the transaction still waits to be put into a block".into(),
            }));
        };
        if receipt.transaction_hash.0 != tx.0 {
            return Err(self.endpoint.nonsense("answers with the receipt of another transaction"));
        }
        if number > head.number.0 {
            return Ok(Look::Later(format!("the transaction's block {number} has only just been made")));
        }
        let [there] = self.exchange([block_by_number(number)]).await?;
        let there: Option<Header> = self.endpoint.read(there)?;
        if there.is_none_or(|there| there.hash.0 != hash || there.number.0 != number) {
            return Ok(Look::Torn(format!(
                "puts the transaction into a block {number} that is not the chain's"
            )));
        }
        if receipt.status.0 != 1 {
            return Ok(Look::Done(Verdict::OtherTransaction("the transaction failed on the chain".into())));
        }
        let Some(log_index) = registers(&receipt.logs, question) else {
            let message = "the transaction does not register this compose hash on the app's contract";
            return Ok(Look::Done(Verdict::OtherTransaction(message.into())));
        };
        let (depth, wanted) = (head.number.0 - number + 1, self.config.confirmations);
        if depth < wanted {
            return Ok(Look::Later(format!("the transaction has {depth} of {wanted} confirmations")));
        }
        let state = self.state(head, &[subject(question)]).await?;
        if state.block != head.block() {
            return Ok(Look::Torn("has replaced its newest block meanwhile".into()));
        }
        let now = state.standings.first().copied().unwrap_or_default().now;
        if !now.both() {
            return Ok(Look::Done(Verdict::NotAllowed(now)));
        }
        let evidence = Evidence { block: number, block_hash: hash, log_index: Some(log_index) };
        Ok(Look::Done(Verdict::Confirmed(evidence)))
    }

    pub(crate) async fn registration(
        &self,
        head: Header,
        kms: Address,
        app: AppId,
    ) -> Result<Registration, Trouble> {
        let calls = |head: Header| {
            let at = At::Hash(head.hash.0);
            vec![
                eth_call(kms, &Kms::registeredAppsCall { app: app.0.into() }, at),
                eth_call(app.into(), &App::ownerCall {}, at),
                eth_call(app.into(), &App::allowAnyDeviceCall {}, at),
            ]
        };
        let (head, returned) = self.at_head(head, calls).await?;
        let answer = |place: usize| returned.get(place).and_then(Option::as_deref);
        Ok(Registration {
            registered: is_true(answer(0)),
            owner: address(answer(1)),
            allow_any_device: is_true(answer(2)),
            block: head.block(),
        })
    }

    pub(crate) async fn os_image_allowed(
        &self,
        head: Header,
        kms: Address,
        os_image: [u8; 32],
    ) -> Result<bool, Trouble> {
        let function = Kms::allowedOsImagesCall { osImageHash: os_image.into() };
        Ok(is_true(self.at_head_one(head, kms, function).await?.as_deref()))
    }

    pub(crate) async fn allow_any_device(&self, head: Header, app: AppId) -> Result<bool, Trouble> {
        Ok(is_true(self.at_head_one(head, app.into(), App::allowAnyDeviceCall {}).await?.as_deref()))
    }

    pub(crate) async fn gateway_app_id(&self, head: Header, kms: Address) -> Result<Option<String>, Trouble> {
        let returned = self.at_head_one(head, kms, Kms::gatewayAppIdCall {}).await?;
        let text = returned.and_then(|bytes| Kms::gatewayAppIdCall::abi_decode_returns(&bytes).ok());
        Ok(text.map(|text| shown(&text)).filter(|text| !text.is_empty()))
    }

    pub(crate) async fn is_app_allowed(
        &self,
        head: Header,
        kms: Address,
        boot: &BootInfo,
    ) -> Result<BootAnswer, Trouble> {
        let function = Kms::isAppAllowedCall {
            bootInfo: AppBootInfo {
                appId: boot.app_id.0.into(),
                composeHash: boot.compose_hash.0.into(),
                instanceId: boot.instance_id.0.into(),
                deviceId: boot.device_id.0.into(),
                mrAggregated: boot.mr_aggregated.into(),
                mrSystem: boot.mr_system.into(),
                osImageHash: boot.os_image_hash.into(),
                tcbStatus: boot.tcb_status.clone(),
                advisoryIds: boot.advisory_ids.clone(),
            },
        };
        let returned = self.at_head_one(head, kms, function).await?;
        let decoded = returned.as_deref().map(Kms::isAppAllowedCall::abi_decode_returns);
        Ok(match decoded {
            // The decoder takes any number but 0 for true.
            Some(Ok(answer)) => BootAnswer {
                allowed: is_true(returned.as_deref().and_then(|bytes| bytes.get(..32))),
                reason: shown(&answer.reason),
            },
            Some(Err(_)) => refused("the key service's contract answers in another form"),
            None => refused("the key service's contract gives no answer"),
        })
    }

    pub(crate) async fn changes(
        &self,
        head: Header,
        app: AppId,
        from: u64,
        to: u64,
    ) -> Result<Changes, Trouble> {
        let (last, mut next) = (to.min(head.number.0), from);
        let mut found = Changes { changes: Vec::new(), read_to: head.block(), head: head.block() };
        let mut span = self.endpoint.log_blocks();
        // What was read has to be told before the time for the whole question is over, and what was not, another node may give.
        let enough = Instant::now() + self.config.deadline / 2;
        let mut trouble = None;
        for _ in 0..LOG_QUERIES {
            if next > last || Instant::now() >= enough {
                break;
            }
            let end = last.min(next.saturating_add(span - 1));
            match self.logs(app, next, end).await {
                Ok((changes, read_to)) => {
                    found.changes.extend(changes);
                    found.read_to = read_to;
                    next = end + 1;
                    // Slowly: one query that is too long costs more than many that are short.
                    span = (span + span.div_ceil(8)).min(self.config.log_blocks.max(1));
                }
                // More than the node likes to give at once, or can find in time.
                Err(too_much @ (Trouble::Refused(_) | Trouble::TooLong(_) | Trouble::Unreachable(_)))
                    if span > 1 =>
                {
                    span = span.min(end - next + 1).div_ceil(2);
                    trouble = Some(too_much);
                }
                Err(other) => {
                    trouble = Some(other);
                    break;
                }
            }
            self.endpoint.set_log_blocks(span);
        }
        match trouble {
            Some(trouble) if next == from => Err(trouble),
            _ => Ok(found),
        }
    }

    async fn logs(&self, app: AppId, from: u64, to: u64) -> Result<(Vec<Change>, Block), Trouble> {
        let topics: Vec<_> = EVENTS.iter().map(|(topic, _)| hex::encode_prefixed(topic)).collect();
        let filter = json!([{
            "address": format!("0x{app}"),
            "topics": [topics],
            "fromBlock": format!("0x{from:x}"),
            "toBlock": format!("0x{to:x}"),
        }]);
        let [logs, end] = self.exchange([call("eth_getLogs", filter), block_by_number(to)]).await?;
        let logs: Vec<Log> = self.endpoint.read(logs)?;
        let end: Header = self.endpoint.read(end)?;
        let others = || self.endpoint.nonsense("answers with logs that were not asked for");
        if end.number.0 != to {
            return Err(self.endpoint.nonsense("answers with another block"));
        }
        let mut changes = Vec::with_capacity(logs.len());
        for log in logs.iter().filter(|log| !log.removed) {
            if log.address.0 != app.0 || !(from..=to).contains(&log.block_number.0) {
                return Err(others());
            }
            changes.push(change(log).ok_or_else(others)?);
        }
        changes.sort_by_key(|change| (change.block.number, change.log_index));
        Ok((changes, end.block()))
    }
}

fn subject(question: &Question) -> Subject {
    let Question { app_id, compose_hash, device_id, .. } = *question;
    Subject { app_id, compose_hash, device_id }
}

fn refused(reason: &str) -> BootAnswer {
    BootAnswer { allowed: false, reason: reason.into() }
}

/// The log by which the app's own contract reports that it allows the hash. Hashes are not indexed: the log has one topic.
fn registers(logs: &[Log], question: &Question) -> Option<u64> {
    let event = App::ComposeHashAdded::SIGNATURE_HASH.0;
    let is_it = |log: &&Log| {
        log.address.0 == question.app_id.0
            && matches!(log.topics.as_slice(), [topic] if topic.0 == event)
            && log.data.0 == question.compose_hash.0
            && !log.removed
    };
    logs.iter().find(is_it).map(|log| log.log_index.0)
}

type Meaning = fn([u8; 32]) -> Option<What>;

/// What an app's contract reports, and what the 32 bytes of each report mean.
const EVENTS: [([u8; 32], Meaning); 5] = [
    (App::ComposeHashAdded::SIGNATURE_HASH.0, |word| Some(What::HashAdded(ComposeHash(word)))),
    (App::ComposeHashRemoved::SIGNATURE_HASH.0, |word| Some(What::HashRemoved(ComposeHash(word)))),
    (App::DeviceAdded::SIGNATURE_HASH.0, |word| Some(What::DeviceAdded(DeviceId(word)))),
    (App::DeviceRemoved::SIGNATURE_HASH.0, |word| Some(What::DeviceRemoved(DeviceId(word)))),
    (App::AllowAnyDeviceSet::SIGNATURE_HASH.0, |word| {
        let known = word[..31] == [0; 31] && word[31] < 2;
        known.then_some(What::AnyDevice(word[31] == 1))
    }),
];

fn change(log: &Log) -> Option<Change> {
    let [topic] = log.topics.as_slice() else { return None };
    let (_, meaning) = EVENTS.iter().find(|(event, _)| *event == topic.0)?;
    Some(Change {
        what: meaning(log.data.0.as_slice().try_into().ok()?)?,
        block: Block { number: log.block_number.0, hash: log.block_hash.0 },
        log_index: log.log_index.0,
        tx: TxHash(log.transaction_hash.0),
    })
}
