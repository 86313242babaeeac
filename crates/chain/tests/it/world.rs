//! An anvil with a key service, one app, and people.

use std::path::Path;
use std::time::Duration;

use alloy_primitives::hex;
use alloy_sol_types::SolCall;
use casemate_chain::dev::{ACCOUNTS, Anvil, Contracts, DevChain, find_anvil};
use casemate_chain::faults::Proxy;
use casemate_chain::{Action, Chain, ChainConfig, Evm, Question, RpcUrl, Verdict};
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, TxHash};
use serde_json::{Value, json};

pub(crate) const CHAIN: u64 = 8453;
pub(crate) const DEVICE: DeviceId = DeviceId([0xd0; 32]);
pub(crate) const OTHER_DEVICE: DeviceId = DeviceId([0xd1; 32]);
/// Allowed when the app's contract was made.
pub(crate) const FIRST: ComposeHash = ComposeHash([0xa0; 32]);
pub(crate) const NEXT: ComposeHash = ComposeHash([0xa1; 32]);
pub(crate) const OTHER: ComposeHash = ComposeHash([0xa2; 32]);
pub(crate) const OS_IMAGE: [u8; 32] = [0x05; 32];
pub(crate) const GATEWAY: &str = "0x00000000000000000000000000000000000000aB";
/// Owns the app.
pub(crate) const OWNER: Address = ACCOUNTS[1].address;
/// Owns nothing.
pub(crate) const STRANGER: Address = ACCOUNTS[2].address;

pub(crate) struct World {
    pub(crate) anvil: Anvil,
    pub(crate) contracts: Contracts,
    pub(crate) app: AppId,
    /// The transaction that made the app's contract.
    pub(crate) made: TxHash,
}

pub(crate) async fn anvil(chain_id: u64) -> Anvil {
    let node_modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/js/node_modules");
    let (named, path) = (std::env::var_os("ANVIL_BIN"), std::env::var_os("PATH"));
    let program = find_anvil(named.as_deref(), path.as_deref(), &[node_modules])
        .unwrap_or_else(|error| panic!("{error}; scripts/tools node installs it"));
    Anvil::start(&program, chain_id, 0, &[]).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Short waits, and blocks of any age: anvil makes one only for a transaction.
pub(crate) fn config(urls: impl IntoIterator<Item = RpcUrl>) -> ChainConfig {
    ChainConfig {
        poll_every: Duration::from_millis(40),
        receipt_wait: Duration::from_millis(200),
        max_head_age: None,
        ..ChainConfig::new(CHAIN, urls.into_iter().collect())
    }
}

pub(crate) fn evm(config: ChainConfig) -> Evm {
    Evm::new(config, || 0)
}

impl World {
    pub(crate) async fn start() -> Self {
        let anvil = anvil(CHAIN).await;
        let contracts = anvil.chain.deploy(&[OS_IMAGE], GATEWAY).await.expect("the node does it");
        let (app, made) = anvil
            .chain
            .deploy_app(contracts.kms, OWNER, Some(DEVICE), Some(FIRST))
            .await
            .expect("the node does it");
        Self { anvil, contracts, app, made }
    }

    pub(crate) fn chain(&self) -> &DevChain {
        &self.anvil.chain
    }

    pub(crate) fn config(&self) -> ChainConfig {
        config([self.chain().rpc_url()])
    }

    pub(crate) fn evm(&self) -> Evm {
        evm(self.config())
    }

    /// A node in front of this one that can misbehave, and a client that knows no other.
    pub(crate) async fn proxied(&self) -> (Proxy, Evm) {
        let proxy = Proxy::start(self.chain().rpc_url()).await.expect("the node does it");
        let evm = evm(config([proxy.url()]));
        (proxy, evm)
    }

    /// Another app of the same owner, which allows any device.
    pub(crate) async fn other_app(&self) -> AppId {
        self.chain().deploy_app(self.contracts.kms, OWNER, None, None).await.expect("the node does it").0
    }

    pub(crate) async fn act(&self, action: Action) -> TxHash {
        self.chain().act(OWNER, self.app, action).await.expect("the node does it")
    }

    pub(crate) async fn register(&self, hash: ComposeHash) -> TxHash {
        self.act(Action::AddComposeHash(hash)).await
    }

    pub(crate) async fn call(&self, method: &'static str, params: Value) -> Value {
        self.chain().call(method, params).await.expect("the node does it")
    }

    /// What a contract returns.
    pub(crate) async fn ask(&self, to: Address, function: &impl SolCall) -> Vec<u8> {
        let data = hex::encode_prefixed(function.abi_encode());
        let returned =
            self.call("eth_call", json!([{ "to": format!("0x{to}"), "data": data }, "latest"])).await;
        hex::decode(returned.as_str().expect("text")).expect("bytes")
    }

    pub(crate) async fn mine(&self, blocks: u64) {
        self.call("anvil_mine", json!([format!("0x{blocks:x}")])).await;
    }

    pub(crate) async fn receipt(&self, tx: TxHash) -> Value {
        self.call("eth_getTransactionReceipt", json!([format!("0x{tx}")])).await
    }

    pub(crate) fn question(&self, hash: ComposeHash, tx: Option<TxHash>) -> Question {
        Question { chain_id: CHAIN, app_id: self.app, compose_hash: hash, device_id: DEVICE, tx }
    }

    /// What the chain itself says.
    pub(crate) async fn check(&self, hash: ComposeHash, tx: Option<TxHash>) -> Verdict {
        self.evm().check(&self.question(hash, tx)).await.expect("the node does it")
    }
}

pub(crate) fn number(quantity: &Value) -> u64 {
    let digits = quantity.as_str().and_then(|text| text.strip_prefix("0x")).expect("a number");
    u64::from_str_radix(digits, 16).expect("a number")
}

pub(crate) fn bytes32(text: &Value) -> [u8; 32] {
    text.as_str().expect("text").parse::<TxHash>().expect("32 bytes").0
}

#[track_caller]
pub(crate) fn confirmed(verdict: &Verdict) -> casemate_chain::Evidence {
    match verdict {
        Verdict::Confirmed(evidence) => *evidence,
        other => panic!("not confirmed: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn not_yet(verdict: Verdict) -> String {
    match verdict {
        Verdict::NotYet(why) => why,
        other => panic!("not `not yet`: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn other_transaction(verdict: Verdict) -> String {
    match verdict {
        Verdict::OtherTransaction(why) => why,
        other => panic!("not another transaction: {other:?}"),
    }
}
