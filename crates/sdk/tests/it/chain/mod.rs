//! What owners do on contracts, on a real node: anvil, with our contracts on it.

mod contracts;
mod lost;
mod updates;

use std::path::Path;
use std::time::Duration;

use casemate_chain::Action;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use casemate_chain::dev::{ACCOUNTS, Anvil, Contracts, DevChain, find_anvil};
use casemate_chain::faults::{Fault, Lie, Proxy};
use casemate_sdk::chain::{self, Network, Wallet};
use casemate_sdk::ids::{Address, AppId, ComposeHash, DeviceId};
use serde_json::{Value, json};

const CHAIN: u64 = 8453;
const DEVICE: DeviceId = DeviceId([0xd0; 32]);
const OTHER_DEVICE: DeviceId = DeviceId([0xd1; 32]);
/// Allowed when the app's contract was made.
const FIRST: ComposeHash = ComposeHash([0xa0; 32]);
const NEXT: ComposeHash = ComposeHash([0xa1; 32]);
const OWNER: usize = 1;
const STRANGER: usize = 2;

struct World {
    anvil: Anvil,
    contracts: Contracts,
    app: AppId,
}

impl World {
    /// An app of account [`OWNER`], which allows [`FIRST`] on [`DEVICE`].
    async fn start() -> Self {
        let node_modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/js/node_modules");
        let (named, path) = (std::env::var_os("ANVIL_BIN"), std::env::var_os("PATH"));
        let program = find_anvil(named.as_deref(), path.as_deref(), &[node_modules])
            .unwrap_or_else(|error| panic!("{error}; scripts/tools node installs it"));
        let anvil = Anvil::start(&program, CHAIN, 0, &[]).await.unwrap();
        let contracts = anvil.chain.deploy(&[], "").await.unwrap();
        let owner = ACCOUNTS[OWNER].address;
        let (app, _) = anvil.chain.deploy_app(contracts.kms, owner, Some(DEVICE), Some(FIRST)).await.unwrap();
        Self { anvil, contracts, app }
    }

    fn chain(&self) -> &DevChain {
        &self.anvil.chain
    }

    fn network(&self) -> Network {
        at(CHAIN, &self.chain().url())
    }

    /// A node in front of this one that tells lies.
    async fn lying(&self, lie: Lie) -> (Proxy, Network) {
        let proxy = Proxy::start(self.chain().rpc_url()).await.unwrap();
        proxy.set(Fault::Lie(lie));
        let network = at(CHAIN, &format!("http://{}/v2/{}", proxy.url().host(), Proxy::KEY));
        (proxy, network)
    }

    /// A node in front of this one, and how often it has shown a transaction.
    async fn watched(&self) -> (Proxy, Network, Arc<AtomicUsize>) {
        let shown = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&shown);
        let lie: Lie = Arc::new(move |method, _, reply| {
            if method == "eth_getTransactionByHash" && !reply["result"].is_null() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let (proxy, network) = self.lying(lie).await;
        (proxy, network, shown)
    }

    async fn call(&self, method: &'static str, params: Value) -> Value {
        self.chain().call(method, params).await.unwrap()
    }

    async fn act(&self, action: Action) {
        self.chain().act(ACCOUNTS[OWNER].address, self.app, action).await.unwrap();
    }

    async fn balance(&self, of: Address, wei: u64) {
        self.call("anvil_setBalance", json!([format!("0x{of}"), format!("{wei:#x}")])).await;
    }

    async fn sent(&self, of: Address) -> u64 {
        let count = self.call("eth_getTransactionCount", json!([format!("0x{of}"), "pending"])).await;
        u64::from_str_radix(count.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    /// Waits until a transaction waits in the pool, and tells which.
    async fn waiting(&self) -> String {
        for _ in 0..1000 {
            let pool = self.call("txpool_content", json!([])).await;
            let found = pool["pending"].as_object().and_then(|senders| {
                let (_, by_nonce) = senders.iter().next()?;
                let (_, transaction) = by_nonce.as_object()?.iter().next()?;
                transaction["hash"].as_str().map(ToOwned::to_owned)
            });
            match found {
                Some(hash) => return hash,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("no transaction waits");
    }
}

fn at(chain_id: u64, url: &str) -> Network {
    Network::at(chain_id, url).unwrap().poll_every(Duration::from_millis(20))
}

fn wallet(of: usize) -> Wallet {
    let wallet = Wallet::from_private_key(ACCOUNTS[of].key).unwrap();
    assert_eq!(wallet.address(), ACCOUNTS[of].address);
    wallet
}

#[track_caller]
fn on_chain<T: std::fmt::Debug>(outcome: casemate_sdk::Result<T>) -> chain::Error {
    match outcome.unwrap_err() {
        casemate_sdk::Error::Chain(error) => *error,
        other => panic!("{other:?}"),
    }
}
