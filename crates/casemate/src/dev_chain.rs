//! The chain of `casemate dev`: one that already runs, or an anvil of its own with our contracts on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use casemate_chain::dev::{ACCOUNTS, Anvil, DevChain, find_anvil};
use casemate_chain::{Node, RpcUrl, checksummed};
use casemate_server::app::App;
use casemate_server::config::{ChainConfig, Config, ContractKms};
use casemate_server::error::Source;
use casemate_types::ids::{Address, ComposeHash};
use clap::Args;
use serde_json::{Value, json};

use crate::cloud::program;

/// How long a node may take to say which chain it is of.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options of `casemate dev` about a chain.
#[derive(Args)]
pub(crate) struct ChainOptions {
    /// A chain whose contracts govern keys: off, anvil (started here), or the URL of a node
    #[arg(long, default_value = "off", value_name = "off|anvil|URL")]
    chain: Which,
    /// With a URL: the contract of the key service on that chain
    #[arg(long, value_name = "ADDRESS")]
    kms_contract: Option<Address>,
    /// Blocks that a transaction has to be deep, itself included
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    confirmations: u64,
    /// With anvil: what the chain calls itself. 8453 lets clients take it for Base. With a URL: what it has to be
    /// [default: 31337 with anvil]
    #[arg(long, value_name = "ID")]
    chain_id: Option<u64>,
}

/// What an anvil is unless it shall be something else.
const ANVIL_ID: u64 = 31337;

#[derive(Clone, Debug, PartialEq)]
enum Which {
    Off,
    Anvil,
    At(RpcUrl),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "anvil" => Ok(Self::Anvil),
            url => {
                url.parse().map(Self::At).map_err(|error| format!("should be off, anvil or a URL; {error}"))
            }
        }
    }
}

/// A chain that is ready.
pub(crate) struct Ready {
    chain: DevChain,
    kms: ContractKms,
    wallet: Option<Address>,
    /// OS images that the contract does not allow: hash and name.
    forbidden: Vec<String>,
    _anvil: Option<Anvil>,
}

impl ChainOptions {
    /// Reaches or starts the chain, and puts its key service into the settings.
    pub(crate) async fn open(&self, data: &Path, config: &mut Config) -> Result<Option<Ready>, Source> {
        let (chain, anvil, contracts) = match (&self.chain, self.kms_contract) {
            (Which::Off, None) => return Ok(None),
            (Which::Off | Which::Anvil, Some(_)) => {
                return Err(
                    "--kms-contract is for a chain that already runs; give its URL with --chain".into()
                );
            }
            (Which::At(_), None) => {
                return Err(
                    "--kms-contract is needed with --chain URL: the contract of the key service".into()
                );
            }
            (Which::At(url), Some(contract)) => {
                let id = Node::chain_at(url.clone(), PATIENCE).await?;
                if let Some(wanted) = self.chain_id.filter(|wanted| *wanted != id) {
                    return Err(format!("{} is of chain {id}, not {wanted}", url.host()).into());
                }
                let chain = DevChain::new(id, url.clone());
                let address = checksummed(contract);
                if !has_code(&chain, contract).await? {
                    return Err(
                        format!("--kms-contract: there is no contract at {address} on chain {id}").into()
                    );
                }
                chain.allows_os_image(contract, [0; 32]).await.map_err(|error| {
                    format!("--kms-contract: {address} on chain {id} is no key service's contract: {error}")
                })?;
                (chain, None, (contract, None))
            }
            (Which::Anvil, None) => {
                let anvil = self.anvil(data).await?;
                let chain = DevChain::new(anvil.chain.chain_id(), anvil.chain.rpc_url());
                let contracts = contracts(&chain, data).await?;
                (chain, Some(anvil), contracts)
            }
        };
        let id = chain.chain_id();
        let slug = match id {
            1 => "ethereum".to_owned(),
            8453 => "base".to_owned(),
            31337 => "anvil".to_owned(),
            other => format!("chain-{other}"),
        };
        let kms = ContractKms::new(&slug, id, &contracts.0.to_string())?;
        config.contract_kms.push(kms.clone());
        config.chains.push(ChainConfig {
            chain_id: id,
            rpc_urls: vec![chain.rpc_url()],
            confirmations: self.confirmations,
            from_block: 0,
            public_rpc_url: Some(chain.url()),
            // It makes a block only when there is something to put in it.
            max_head_age: None,
            max_lag_blocks: casemate_chain::MAX_LAG_BLOCKS,
        });
        Ok(Some(Ready { chain, kms, wallet: contracts.1, forbidden: Vec::new(), _anvil: anvil }))
    }

    async fn anvil(&self, data: &Path) -> Result<Anvil, Source> {
        let installed =
            [data.join("npm/node_modules"), "node_modules".into(), PathBuf::from("tests/js/node_modules")];
        let (named, path) = (std::env::var_os("ANVIL_BIN"), std::env::var_os("PATH"));
        let program = find_anvil(named.as_deref(), path.as_deref(), &installed)
            .map_err(|error| format!("{error}; `make dev CHAIN=anvil` installs it"))?;
        std::fs::create_dir_all(data)?;
        // Kept with everything else: started again, it is the same chain.
        let id = self.chain_id.unwrap_or(ANVIL_ID);
        let state = data.join(format!("anvil-{id}.json"));
        let state = state.to_str().ok_or("the data folder's name is not UTF-8")?;
        Ok(Anvil::start(&program, id, 0, &["--state", state, "--state-interval", "2"]).await?)
    }
}

/// The key service's contract and the test wallet: those of the last time, if the chain still has them.
async fn contracts(chain: &DevChain, data: &Path) -> Result<(Address, Option<Address>), Source> {
    let file = data.join(format!("contracts-{}.json", chain.chain_id()));
    let known = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let known = known.and_then(|known| {
        let address = |name: &str| known[name].as_str()?.parse::<Address>().ok();
        Some((address("kms")?, address("wallet")?))
    });
    if let Some((kms, wallet)) = known
        && has_code(chain, kms).await?
    {
        return Ok((kms, Some(wallet)));
    }
    let made = chain.deploy(&[], "").await?;
    std::fs::write(file, json!({ "kms": made.kms, "wallet": made.wallet }).to_string())?;
    Ok((made.kms, Some(made.wallet)))
}

async fn has_code(chain: &DevChain, at: Address) -> Result<bool, Source> {
    let code = chain.call("eth_getCode", json!([format!("0x{at}"), "latest"])).await?;
    Ok(code.as_str().is_some_and(|code| code.len() > 2))
}

impl Ready {
    /// Has the key service's contract, if it is ours, allow the OS images of all nodes. Notes those that it does not allow.
    pub(crate) async fn allow_images(&mut self, app: &App) -> Result<(), Source> {
        let images: BTreeMap<String, String> = app
            .nodes
            .values()
            .flat_map(|node| node.facts().images.clone())
            .map(|image| (image.os_image_hash, image.name))
            .collect();
        for (hex, name) in images {
            let Ok(hash) = hex.parse::<ComposeHash>() else { continue };
            if self.wallet.is_some() {
                self.chain.allow_os_image(self.kms.address(), hash.0).await?;
            } else if !self.chain.allows_os_image(self.kms.address(), hash.0).await? {
                self.forbidden.push(format!("0x{hex}  {name}"));
            }
        }
        Ok(())
    }

    /// Lines of the environment file: what clients read for a chain.
    pub(crate) fn env(&self) -> String {
        let mut lines = format!("export ETH_RPC_URL={}\n", self.chain.url());
        if self.wallet.is_some() {
            lines.push_str(&format!("export PRIVATE_KEY=0x{}\n", ACCOUNTS[0].key));
        }
        lines
    }

    /// What to know about it, and what to try with this compose file.
    pub(crate) fn told(&self, env: &Path, compose: &Path) -> String {
        let kms = &self.kms;
        let (program, env, compose) = (program(), env.display(), compose.display());
        let mut text = format!(
            "\n  Chain      {}, id {}\n  KMS        slug {}, contract {}; its keys lie with this server (custody: operator)",
            self.chain.url(),
            kms.chain_id,
            kms.slug,
            checksummed(kms.address())
        );
        let deploy = format!("{program} deploy -n web-one -c {compose}");
        if let Some(wallet) = self.wallet {
            let owners = ACCOUNTS.map(|account| checksummed(account.address)).join(", ");
            let wallet = checksummed(wallet);
            // The official command knows kinds.
            let kind = if kms.chain_id == 8453 { "base" } else { "ethereum" };
            text.push_str(&format!(
                "\n  Account    {} with test money, its key in {env} as PRIVATE_KEY (a published test key: worth nothing elsewhere)\
                 \n  Multisig   {wallet}, two of {owners}\n\n\
                 Rehearse an update that a contract has to allow. PRIVATE_KEY signs:\n  \
                 source {env}\n  \
                 {deploy} --kms {slug}   # change the file, and the same is an update\n  \
                 {deploy} --prepare-only   # prints the page to approve it on\n\
                 With the multisig as the contract's owner from the beginning (docs/onchain.md goes on from there):\n  \
                 {program} deploy -n web-two -c {compose} --kms {slug} --owner {wallet}\n\
                 The same with the official command:\n  \
                 phala deploy -n web-one -c {compose} --kms {kind} --rpc-url \"$ETH_RPC_URL\" --private-key \"$PRIVATE_KEY\"\n  \
                 {program} cvms watch web-one   # ends when it runs; before that it takes no update\n  \
                 phala deploy --cvm-id web-one -c {compose} --prepare-only   # prints the page to approve it on",
                checksummed(ACCOUNTS[0].address),
                slug = kms.slug,
            ));
        } else {
            text.push_str(&format!(
                "\n\nAn app whose code a contract has to allow, with the key of whoever shall own that:\n  source {env}\n  \
                 {deploy} --kms {} --private-key-file owner.key",
                kms.slug
            ));
        }
        if !self.forbidden.is_empty() {
            text.push_str(&format!(
                "\n\nThe contract does not allow these OS images. A machine boots with one once the contract's owner has called \
                 addOsImageHash with its hash:\n  {}",
                self.forbidden.join("\n  ")
            ));
        }
        text
    }
}
