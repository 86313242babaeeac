//! A node with a key service's contract and an app's, a server that asks it through a node that can misbehave, and a CVM.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use casemate_chain::dev::{ACCOUNTS, Anvil, Contracts, DevChain, find_anvil};
use casemate_chain::faults::Proxy;
use casemate_chain::{Action, ChainConfig, Evm};
use casemate_server::app::Chains;
use casemate_server::config::{Config, ContractKms};
use casemate_server::cvm::state::{Cvm, Status};
use casemate_server::driver::sim::SimConfig;
use casemate_server::driver::{Driver, Guest};
use casemate_testkit::{World, compose};
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, TxHash};
use serde_json::{Value, json};

use crate::approvals::{code, detail, hash, text};
use crate::client::{Answer, Client};

/// Owns the app.
pub(crate) const OWNER: Address = ACCOUNTS[1].address;
/// Owns nothing.
pub(crate) const STRANGER: Address = ACCOUNTS[2].address;

const CHAIN: u64 = 8453;
const SLUG: &str = "base";

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Site {
    pub(crate) proxy: Proxy,
    pub(crate) contracts: Contracts,
    pub(crate) world: World,
    pub(crate) client: Client,
    pub(crate) cvm: Cvm,
    anvil: Anvil,
}

/// An update that waits for somebody with a token.
pub(crate) struct Prepared {
    pub(crate) asked: ComposeHash,
    pub(crate) token: String,
    /// The approval's path.
    pub(crate) path: String,
}

/// What an update changes: the `number`th image.
pub(crate) fn image(number: u32) -> Value {
    json!({ "docker_compose_file": compose(&format!("web:{number}")) })
}

async fn anvil() -> Anvil {
    let node_modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/js/node_modules");
    let (named, path) = (std::env::var_os("ANVIL_BIN"), std::env::var_os("PATH"));
    let program = find_anvil(named.as_deref(), path.as_deref(), &[node_modules])
        .unwrap_or_else(|error| panic!("{error}; scripts/tools node installs it"));
    Anvil::start(&program, CHAIN, 0, &[]).await.unwrap_or_else(|error| panic!("{error}"))
}

/// A CVM of an app that this account or contract owns.
async fn deploy(
    chain: &DevChain,
    kms: Address,
    owner: Address,
    world: &World,
    client: &Client,
    name: &str,
) -> Cvm {
    let asked =
        json!({ "name": name, "kms": SLUG, "compose_file": { "docker_compose_file": compose("web:1") } });
    let prepared = client.post("/cvms/provision", asked).await.expect(200);
    let first: ComposeHash = text(&prepared["compose_hash"]).parse().expect("a hash");
    let device: DeviceId = text(&prepared["device_id"]).parse().expect("a device");
    let (app_id, _) = chain.deploy_app(kms, owner, Some(device), Some(first)).await.expect("deployed");
    // Deep enough for whatever the server asks for.
    chain.call("anvil_mine", json!(["0x5"])).await.expect("mined");
    let asked = json!({ "app_id": format!("0x{app_id}"), "compose_hash": first });
    let made = client.post("/cvms", asked).await.expect(200);
    world.settle().await;
    let uuid = text(&made["vm_uuid"]).parse().expect("an id");
    world.app.store.cvms_by_uuid(world.actor.workspace_id, &[uuid]).expect("reads").remove(0)
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::with(|_| (), |_| OWNER).await
    }

    /// A site whose server asks the chain in a way of its own, and whose app has this owner.
    pub(crate) async fn with(
        tune: impl FnOnce(&mut ChainConfig),
        owner: impl FnOnce(&Contracts) -> Address,
    ) -> Self {
        let anvil = anvil().await;
        let node = SimConfig { boot_ms: 0, stop_ms: 0, call_ms: 0, ..SimConfig::node(1) };
        let images: Vec<[u8; 32]> = node
            .facts
            .images
            .iter()
            .map(|image| image.os_image_hash.parse::<ComposeHash>().expect("32 bytes").0)
            .collect();
        let contracts = anvil.chain.deploy(&images, "").await.expect("deployed");
        let proxy = Proxy::start(anvil.chain.rpc_url()).await.expect("it listens");
        let mut how = ChainConfig {
            poll_every: Duration::from_millis(40),
            receipt_wait: Duration::from_millis(150),
            call_timeout: Duration::from_millis(500),
            deadline: Duration::from_secs(3),
            max_answer_bytes: 1 << 20,
            max_head_age: None,
            ..ChainConfig::new(CHAIN, vec![proxy.url()])
        };
        tune(&mut how);
        let kms = ContractKms::new(SLUG, CHAIN, &contracts.kms.to_string()).expect("an address");
        let config = Config { dev: true, contract_kms: vec![kms], ..Config::default() };
        let chains = Chains::default().with(CHAIN, Arc::new(Evm::new(how, || 0)));
        let world = World::with_chains(node, config, chains).await;
        let client = Client::of(&world).await;
        let owner = owner(&contracts);
        let cvm = deploy(&anvil.chain, contracts.kms, owner, &world, &client, "web-one").await;
        Self { anvil, proxy, contracts, world, client, cvm }
    }

    /// Another CVM, of another app of the same owner.
    pub(crate) async fn another(&self, name: &str) -> Cvm {
        deploy(self.chain(), self.contracts.kms, OWNER, &self.world, &self.client, name).await
    }

    pub(crate) fn chain(&self) -> &DevChain {
        &self.anvil.chain
    }

    pub(crate) fn app(&self) -> AppId {
        self.cvm.app_id
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/cvms/{}{rest}", self.cvm.uid)
    }

    /// Any call of the node itself.
    pub(crate) async fn call(&self, method: &'static str, params: Value) -> Value {
        self.chain().call(method, params).await.expect("the node does it")
    }

    pub(crate) async fn mine(&self, blocks: u64) {
        self.call("anvil_mine", json!([format!("0x{blocks:x}")])).await;
    }

    /// The last `depth` blocks, and all that was in them, are gone.
    pub(crate) async fn reorganise(&self, depth: u64) {
        self.call("anvil_reorg", json!([depth, []])).await;
    }

    pub(crate) async fn act(&self, action: Action) -> TxHash {
        self.chain().act(OWNER, self.app(), action).await.expect("the node does it")
    }

    pub(crate) async fn register(&self, hash: ComposeHash) -> TxHash {
        self.act(Action::AddComposeHash(hash)).await
    }

    /// A transaction as it is, with no word on what becomes of it.
    pub(crate) async fn send(&self, from: Address, to: Address, data: &[u8], more: Value) -> TxHash {
        let mut transaction = json!({
            "from": format!("0x{from}"), "to": format!("0x{to}"), "gas": "0x30d40",
            "data": format!("0x{}", hex::encode(data)),
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            transaction[key] = value.clone();
        }
        text(&self.call("eth_sendTransaction", json!([transaction])).await).parse().expect("a hash")
    }

    pub(crate) async fn ask(&self, body: Value) -> ComposeHash {
        hash(&self.client.patch(&self.path(""), body).await)
    }

    pub(crate) async fn prepare(&self, body: Value) -> Prepared {
        self.prepare_with(&self.client, body).await
    }

    /// Prepares an update with this client, which may send more headers.
    pub(crate) async fn prepare_with(&self, client: &Client, body: Value) -> Prepared {
        let answer = client.header("x-prepare-only", "true").patch(&self.path(""), body).await;
        Prepared {
            asked: hash(&answer),
            token: text(&detail(&answer, "commit_token")),
            path: format!("/approvals/{}", text(&detail(&answer, "approval_id"))),
        }
    }

    pub(crate) async fn confirm(&self, hash: &str, tx: &str) -> Answer {
        let client = self.client.header("x-compose-hash", hash).header("x-transaction-hash", tx);
        client.patch(&self.path(""), json!({})).await
    }

    pub(crate) async fn commit(&self, token: &str, tx: &str) -> Answer {
        let body = json!({ "token": token, "transaction_hash": tx });
        self.client.nobody().post(&self.path("/commit-update"), body).await
    }

    /// Where an approval stands.
    pub(crate) async fn state(&self, path: &str) -> String {
        text(&self.client.json(path).await["state"])
    }

    pub(crate) async fn boots(&self) -> u64 {
        let seen = self.world.sim.observe(&[self.cvm.vm_uuid]).await.expect("the node answers");
        assert_eq!(seen[0].guest, Guest::Done, "the machine runs");
        seen[0].boot_count
    }

    /// Nothing has happened to the machine, and nothing is about to.
    pub(crate) async fn assert_untouched(&self, boots: u64) {
        let now = self.world.cvm(&self.cvm);
        assert_eq!((now.status, &now.open, self.boots().await), (Status::Running, &None, boots));
    }

    /// Works until nothing is open; then the machine runs this hash and has booted so often.
    pub(crate) async fn assert_becomes(&self, asked: ComposeHash, boots: u64) {
        self.world.settle().await;
        self.assert_untouched(boots).await;
        let now = self.world.cvm(&self.cvm);
        let spec = self.world.app.store.spec(self.cvm.id, now.revision).expect("the spec");
        assert_eq!(spec.compose.hash, asked);
    }

    /// A condition, soon.
    pub(crate) async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let wait = async {
            while !done() {
                self.world.clock.sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = self.world.clock.within(PATIENCE, wait).await;
        waited.unwrap_or_else(|| panic!("waited in vain until {what}"));
    }
}

/// A refusal because of the transaction.
#[track_caller]
pub(crate) fn assert_467(answer: &Answer, why: &str) {
    assert_eq!(code(answer, 467), "ERR-01-007");
    assert!(text(&answer.json()["message"]).contains(why), "{}", answer.text());
}

/// A refusal because of what the contract allows.
#[track_caller]
pub(crate) fn assert_468(answer: &Answer) {
    assert_eq!(code(answer, 468), "ERR-01-008");
}

/// No answer from the chain: it is said what is missing, not how it is reached, and that trying again is right.
#[track_caller]
pub(crate) fn assert_503(what: &str, answer: &Answer) {
    assert_eq!(answer.status, 503, "{what}: {}", answer.text());
    assert!(answer.headers.contains_key("retry-after"), "{what}");
    let said = answer.text();
    assert!(said.contains("The chain is not available"), "{what}: {said}");
    assert!(!said.contains(Proxy::KEY) && !said.contains("127.0.0.1"), "{what}: {said}");
}
