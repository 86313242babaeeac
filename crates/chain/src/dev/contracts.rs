//! Our contracts on a chain whose node signs for its accounts.

use std::time::Duration;

use alloy_primitives::{U256, hex};
use alloy_sol_types::{SolCall, SolValue, sol};
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, TxHash};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::action::Action;
use crate::ask::Error;
use crate::config::{ChainConfig, RpcUrl};
use crate::evm::rpc::{Call, Endpoint};
use crate::evm::wire::{Data, Fixed, Quantity};

const APP: &str = include_str!("../../../../contracts/App.hex");
const KMS: &str = include_str!("../../../../contracts/Kms.hex");
const MULTICALL_CODE: &str = include_str!("../../../../contracts/Multicall.hex");
const WALLET: &str = include_str!("../../../../contracts/Wallet.hex");
const FORGER: &str = include_str!("../../../../contracts/Forger.hex");

/// Where clients expect a contract that makes many calls in one.
pub const MULTICALL: Address = Address([
    0xca, 0x11, 0xbd, 0xe0, 0x59, 0x77, 0xb3, 0x63, 0x11, 0x67, 0x02, 0x88, 0x62, 0xbe, 0x2a, 0x17, 0x39,
    0x76, 0xca, 0x11,
]);

/// How long a transaction may take. Anvil makes a block for each within milliseconds.
const MINED: Duration = Duration::from_secs(20);

sol! {
    interface Factory {
        function deployAndRegisterApp(address owner, bool disableUpgrades, bool allowAnyDevice, bytes32 deviceId, bytes32 composeHash) returns (address);
        function addOsImageHash(bytes32 osImageHash);
        function allowedOsImages(bytes32 osImageHash) view returns (bool);
        function setGatewayAppId(string appId);
    }

    interface TestWallet {
        struct WalletCall {
            address to;
            uint256 value;
            bytes data;
        }

        function idOf(WalletCall[] calls, uint256 salt) view returns (bytes32);
        function approve(bytes32 batch);
        function execute(WalletCall[] calls, uint256 salt);
    }

    interface TestForger {
        function forge(bytes32 composeHash);
    }
}

/// An account that anvil has funded and signs for. Its key is public: worth nothing on any other chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its address.
    pub address: Address,
    /// Its private key, for wallets: 64 hex digits.
    pub key: &'static str,
}

/// The first three accounts of every anvil, derived from `test test … junk`.
///
/// The first one owns the key service's contract, and all three the test wallet.
pub const ACCOUNTS: [Account; 3] = [
    Account {
        address: Address([
            0xf3, 0x9f, 0xd6, 0xe5, 0x1a, 0xad, 0x88, 0xf6, 0xf4, 0xce, 0x6a, 0xb8, 0x82, 0x72, 0x79, 0xcf,
            0xff, 0xb9, 0x22, 0x66,
        ]),
        key: "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    },
    Account {
        address: Address([
            0x70, 0x99, 0x79, 0x70, 0xc5, 0x18, 0x12, 0xdc, 0x3a, 0x01, 0x0c, 0x7d, 0x01, 0xb5, 0x0e, 0x0d,
            0x17, 0xdc, 0x79, 0xc8,
        ]),
        key: "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    },
    Account {
        address: Address([
            0x3c, 0x44, 0xcd, 0xdd, 0xb6, 0xa9, 0x00, 0xfa, 0x2b, 0x58, 0x5d, 0xd2, 0x99, 0xe0, 0x3d, 0x12,
            0xfa, 0x42, 0x93, 0xbc,
        ]),
        key: "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    },
];

/// What [`DevChain::deploy`] has put on a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contracts {
    /// The key service's contract, which is also the factory of app contracts.
    pub kms: Address,
    /// A wallet of [`ACCOUNTS`]: two of the three can have it make calls.
    pub wallet: Address,
}

/// A batch of calls of the test wallet: who is called, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Tells batches of the same calls apart.
    pub salt: u64,
    /// The calls.
    pub calls: Vec<(Address, Vec<u8>)>,
}

impl Batch {
    fn encoded(&self) -> Vec<TestWallet::WalletCall> {
        let call = |(to, data): &(Address, Vec<u8>)| TestWallet::WalletCall {
            to: to.0.into(),
            value: U256::ZERO,
            data: data.clone().into(),
        };
        self.calls.iter().map(call).collect()
    }
}

/// A chain whose node signs for its accounts, as anvil does for [`ACCOUNTS`].
pub struct DevChain {
    endpoint: Endpoint,
    chain_id: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mined {
    status: Quantity,
    contract_address: Option<Fixed<20>>,
}

impl DevChain {
    /// The chain that this node makes.
    pub fn new(chain_id: u64, url: RpcUrl) -> Self {
        Self { endpoint: Endpoint::new(&ChainConfig::new(chain_id, Vec::new()), url), chain_id }
    }

    /// Where it is asked, for humans and wallets.
    pub fn url(&self) -> String {
        self.endpoint.url.secret().as_str().trim_end_matches('/').to_owned()
    }

    /// Where it is asked.
    pub fn rpc_url(&self) -> RpcUrl {
        self.endpoint.url.clone()
    }

    /// What it calls itself.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// Any JSON-RPC call.
    pub async fn call(&self, method: &'static str, params: Value) -> Result<Value, Error> {
        let mut replies = self.endpoint.exchange(&[Call { method, params }]).await?;
        let reply = replies.pop().ok_or_else(|| self.endpoint.nonsense("leaves questions unanswered"))?;
        Ok(self.endpoint.read(reply)?)
    }

    /// Sends a transaction, with no word on what becomes of it.
    pub async fn send_only(&self, from: Address, to: Address, data: &[u8]) -> Result<TxHash, Error> {
        self.submit(json!({ "from": hex(from), "to": hex(to), "data": hex::encode_prefixed(data) })).await
    }

    /// Sends a transaction and waits until it has succeeded.
    pub async fn send(&self, from: Address, to: Address, data: &[u8]) -> Result<TxHash, Error> {
        let tx = self.send_only(from, to, data).await?;
        self.mined(tx).await?;
        Ok(tx)
    }

    /// Lets the owner of an app's contract do something.
    pub async fn act(&self, owner: Address, app: AppId, action: Action) -> Result<TxHash, Error> {
        self.send(owner, app.into(), &action.calldata()).await
    }

    async fn submit(&self, transaction: Value) -> Result<TxHash, Error> {
        let tx: Fixed<32> = self.typed("eth_sendTransaction", json!([transaction])).await?;
        Ok(TxHash(tx.0))
    }

    async fn typed<T: serde::de::DeserializeOwned>(
        &self,
        method: &'static str,
        params: Value,
    ) -> Result<T, Error> {
        let answer = self.call(method, params).await?;
        serde_json::from_value(answer).map_err(|error| Error::Nonsense(format!("{method}: {error}")))
    }

    async fn mined(&self, tx: TxHash) -> Result<Mined, Error> {
        let until = tokio::time::Instant::now() + MINED;
        loop {
            let mined: Option<Mined> =
                self.typed("eth_getTransactionReceipt", json!([format!("0x{tx}")])).await?;
            match mined {
                Some(mined) if mined.status.0 == 1 => return Ok(mined),
                Some(_) => return Err(Error::Nonsense(format!("transaction {tx} failed"))),
                None if tokio::time::Instant::now() > until => {
                    return Err(Error::Unreachable(format!(
                        "transaction {tx} is in no block after {MINED:?}"
                    )));
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn create(&self, code: &str, arguments: &[u8]) -> Result<Address, Error> {
        let data = format!("0x{}{}", code.trim(), hex::encode(arguments));
        let tx = self.submit(json!({ "from": hex(ACCOUNTS[0].address), "data": data })).await?;
        let mined = self.mined(tx).await?;
        let address = mined.contract_address.map(|address| Address(address.0));
        address.ok_or_else(|| Error::Nonsense(format!("transaction {tx} made no contract")))
    }

    async fn code(&self, at: Address) -> Result<Vec<u8>, Error> {
        let Data(code) = self.typed("eth_getCode", json!([hex(at), "latest"])).await?;
        Ok(code)
    }

    /// Puts the contracts on the chain, and code at [`MULTICALL`] if none is there.
    ///
    /// The key service's contract allows these OS images and names this gateway. Only a node like anvil lets code be put at
    /// a given address.
    pub async fn deploy(&self, os_images: &[[u8; 32]], gateway_app_id: &str) -> Result<Contracts, Error> {
        let owner = ACCOUNTS[0].address;
        let app = self.create(APP, &[]).await?;
        let arguments = (alloy_primitives::Address::from(owner.0), alloy_primitives::Address::from(app.0));
        let kms = self.create(KMS, &arguments.abi_encode_params()).await?;
        let owners = ACCOUNTS.map(|account| alloy_primitives::Address::from(account.address.0));
        let wallet = self.create(WALLET, &owners.abi_encode()).await?;
        for image in os_images {
            self.allow_os_image(kms, *image).await?;
        }
        let gateway = Factory::setGatewayAppIdCall { appId: gateway_app_id.to_owned() };
        self.send(owner, kms, &gateway.abi_encode()).await?;
        if self.code(MULTICALL).await?.is_empty() {
            let made = self.create(MULTICALL_CODE, &[]).await?;
            let code = hex::encode_prefixed(self.code(made).await?);
            self.call("anvil_setCode", json!([hex(MULTICALL), code])).await?;
        }
        Ok(Contracts { kms, wallet })
    }

    /// Has a key service's contract that [`DevChain::deploy`] made allow an OS image.
    pub async fn allow_os_image(&self, kms: Address, os_image: [u8; 32]) -> Result<TxHash, Error> {
        let call = Factory::addOsImageHashCall { osImageHash: os_image.into() };
        self.send(ACCOUNTS[0].address, kms, &call.abi_encode()).await
    }

    /// Does a key service's contract allow an OS image?
    pub async fn allows_os_image(&self, kms: Address, os_image: [u8; 32]) -> Result<bool, Error> {
        let call = Factory::allowedOsImagesCall { osImageHash: os_image.into() }.abi_encode();
        let asked = json!([{ "to": hex(kms), "data": hex::encode_prefixed(call) }, "latest"]);
        let Fixed::<32>(word) = self.typed("eth_call", asked).await?;
        Ok(word != [0; 32])
    }

    /// Makes an app's contract through the factory, as clients do, and says which transaction did it. The owner may be a
    /// wallet: somebody else sends it.
    ///
    /// Without a device it allows any.
    pub async fn deploy_app(
        &self,
        kms: Address,
        owner: Address,
        device: Option<DeviceId>,
        hash: Option<ComposeHash>,
    ) -> Result<(AppId, TxHash), Error> {
        let call = Factory::deployAndRegisterAppCall {
            owner: owner.0.into(),
            disableUpgrades: false,
            allowAnyDevice: device.is_none(),
            deviceId: device.map_or([0; 32], |device| device.0).into(),
            composeHash: hash.map_or([0; 32], |hash| hash.0).into(),
        };
        let (data, sender) = (call.abi_encode(), ACCOUNTS[0].address);
        // The same call, asked before it is made, says which address the app gets.
        let asked =
            json!([{ "from": hex(sender), "to": hex(kms), "data": hex::encode_prefixed(&data) }, "latest"]);
        let Data(word) = self.typed("eth_call", asked).await?;
        let app = word.get(12..32).and_then(|bytes| bytes.try_into().ok()).map(AppId);
        let app = app.ok_or_else(|| Error::Nonsense("the factory gave no address".into()))?;
        Ok((app, self.send(sender, kms, &data).await?))
    }

    /// Has the wallet make a batch of calls: two owners approve it, and then `trigger`, anyone, sends the transaction that
    /// is returned.
    pub async fn through_wallet(
        &self,
        wallet: Address,
        batch: &Batch,
        trigger: Address,
    ) -> Result<TxHash, Error> {
        let (calls, salt) = (batch.encoded(), U256::from(batch.salt));
        let id = TestWallet::idOfCall { calls: calls.clone(), salt }.abi_encode();
        let asked = json!([{ "to": hex(wallet), "data": hex::encode_prefixed(id) }, "latest"]);
        let Fixed(id) = self.typed("eth_call", asked).await?;
        let approve = TestWallet::approveCall { batch: id.into() }.abi_encode();
        for owner in &ACCOUNTS[..2] {
            self.send(owner.address, wallet, &approve).await?;
        }
        self.send(trigger, wallet, &TestWallet::executeCall { calls, salt }.abi_encode()).await
    }

    /// A contract that reports, with the data of [`forge_calldata`], what no app's contract did.
    pub async fn deploy_forger(&self) -> Result<Address, Error> {
        self.create(FORGER, &[]).await
    }
}

/// Has the contract of [`DevChain::deploy_forger`] report that a hash is allowed.
pub fn forge_calldata(hash: ComposeHash) -> Vec<u8> {
    TestForger::forgeCall { composeHash: hash.0.into() }.abi_encode()
}

fn hex(address: Address) -> String {
    format!("0x{address}")
}
