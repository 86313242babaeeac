//! Who signs on a chain, and at which node.
//!
//! A private key comes from a file, from standard input, from `PRIVATE_KEY`, or is typed without being shown. It is never an
//! option's value, which every user of a machine can see, and never part of what is said.

use std::io::Read;

use casemate_sdk::Error;
use casemate_sdk::chain::{Network, Registered, Wallet, checksummed};
use casemate_sdk::wire::KmsInfo;
use clap::Args;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::environment::{PRIVATE_KEY_VAR, RPC_URL_VAR};
use crate::error::{Failure, Result};
use crate::value::Input;

/// More than a private key takes.
const LONGEST_KEY: u64 = 1024;

/// Who signs, and at which node.
#[derive(Args, PartialEq)]
#[command(next_help_heading = "Approval on chain")]
pub(crate) struct Signing {
    /// Sign for the app's contract with the private key in this file, or - for standard input [env: PRIVATE_KEY] [default: it
    /// is asked for, on a terminal]
    #[arg(long, value_name = "FILE")]
    private_key_file: Option<Input>,
    /// RPC address of a node of the chain [env: ETH_RPC_URL] [default: the one that the server names, else a public one]
    #[arg(long, value_name = "URL")]
    rpc_url: Option<String>,
    /// Refused: other users of this machine could see it
    #[arg(long, hide = true, value_name = "KEY", num_args = 0..=1, default_missing_value = "")]
    private_key: Option<Forgotten>,
}

/// A value that is not kept.
#[derive(Clone, PartialEq)]
struct Forgotten;

impl From<&str> for Forgotten {
    fn from(_: &str) -> Self {
        Self
    }
}

impl Signing {
    /// Refuses what cannot be, before anything is sent.
    pub(crate) fn check(&self, reads_stdin: bool) -> Result<()> {
        if self.private_key.is_some() {
            let text = "--private-key: a key on the command line can be seen by every user of this machine";
            return Err(Failure::usage(text).hint(format!(
                "`--private-key-file FILE` reads it from a file, `--private-key-file -` from standard input, or set {PRIVATE_KEY_VAR}"
            )));
        }
        if reads_stdin && matches!(self.private_key_file, Some(Input::Stdin)) {
            return Err(Failure::usage("standard input cannot hold a file and the private key"));
        }
        Ok(())
    }

    /// The wallet that was named, if one was.
    pub(crate) fn named(&self, cx: &Context) -> Result<Option<Wallet>> {
        let wallet = match &self.private_key_file {
            Some(Input::File(path)) => {
                Wallet::from_file(path).map_err(|error| wrong("--private-key-file", &error))?
            }
            Some(Input::Stdin) => {
                let mut text = Zeroizing::new(String::with_capacity(LONGEST_KEY as usize));
                std::io::stdin()
                    .take(LONGEST_KEY)
                    .read_to_string(&mut text)
                    .map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
                Wallet::from_private_key(&text).map_err(|error| wrong("standard input", &error))?
            }
            None => match cx.environment.private_key() {
                Some(text) => {
                    Wallet::from_private_key(&text).map_err(|error| wrong(PRIVATE_KEY_VAR, &error))?
                }
                None => return Ok(None),
            },
        };
        Ok(Some(wallet))
    }

    /// The wallet that was named, else one whose key is typed. Nobody has to.
    pub(crate) fn wallet(&self, cx: &Context, what_for: &str) -> Result<Option<Wallet>> {
        if let Some(wallet) = self.named(cx)? {
            return Ok(Some(wallet));
        }
        if !cx.out.can_be_asked() {
            return Ok(None);
        }
        let unreadable = |error: std::io::Error| Failure::usage(format!("cannot read the key: {error}"));
        let term = console::Term::stderr();
        term.write_line(what_for).map_err(unreadable)?;
        term.write_str("Private key to sign with (not shown; empty if somebody else signs): ")
            .map_err(unreadable)?;
        let text = Zeroizing::new(term.read_secure_line().map_err(unreadable)?);
        if text.trim().is_empty() {
            return Ok(None);
        }
        Wallet::from_private_key(&text).map(Some).map_err(|error| wrong("the private key", &error))
    }

    /// The chain of a key service's contract.
    pub(crate) fn network(&self, cx: &Context, kms: &KmsInfo) -> Result<Network> {
        let (url, from) = match (&self.rpc_url, &cx.environment.rpc_url) {
            (Some(url), _) => (url, "--rpc-url"),
            (None, Some(url)) => (url, RPC_URL_VAR),
            (None, None) => return Ok(Network::of(kms)?),
        };
        let Some(chain_id) = kms.chain_id.filter(|id| *id != 0) else { return Ok(Network::of(kms)?) };
        Network::at(chain_id, url).map_err(|error| wrong(from, &error))
    }
}

/// What is wrong with a key or an address, by where it came from. The SDK does not repeat what was given.
fn wrong(from: &str, error: &Error) -> Failure {
    let what = error.fields().first().map_or_else(|| error.to_string(), |field| field.msg.clone());
    Failure::usage(format!("{from}: {what}"))
}

/// Says what was signed.
pub(crate) fn note_registered(cx: &Context, registered: &Registered) {
    let line = |what: &str, tx, block| format!("  {what:13}allowed by transaction 0x{tx}, block {block}");
    if let Some(device) = &registered.device {
        cx.out.note(&line("device", device.transaction_hash, device.block_number));
    }
    match &registered.compose_hash {
        Some(hash) => cx.out.note(&line("compose hash", hash.transaction_hash, hash.block_number)),
        None => cx.out.note("  compose hash is allowed already"),
    }
}

/// A chain by its name, if it has one that people know.
pub(crate) fn chain_name(chain_id: u64) -> String {
    match chain_id {
        1 => "Ethereum (chain 1)".to_owned(),
        8453 => "Base (chain 8453)".to_owned(),
        other => format!("chain {other}"),
    }
}

/// Says what is about to be signed, and as whom.
pub(crate) fn note_signing(cx: &Context, wallet: &Wallet, network: &Network, what: &str) {
    let (who, chain) = (checksummed(wallet.address()), chain_name(network.chain_id()));
    cx.out.note(&format!("{what} on {chain} at {}, signed by {who}", network.host()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;
    use crate::options::Options;
    use clap::Parser;

    const SECRET: &str = "deadbeef5ecre7";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        signing: Signing,
    }

    fn signing(line: &[&str]) -> Signing {
        Line::try_parse_from([&["x"], line].concat()).map(|line| line.signing).ok().unwrap()
    }

    fn context() -> Context {
        let program =
            crate::Program { commands: clap::Command::default, key_in_folder: None, container_images: None };
        Context::with(Options::default(), Environment::default(), program)
    }

    #[test]
    fn a_key_on_the_command_line_is_refused_and_not_repeated() {
        for line in [&["--private-key", SECRET][..], &["--private-key"], &["--private-key=0x12"]] {
            let refused = signing(line).check(false).unwrap_err();
            assert_eq!(refused.code(), 2);
            let told = format!("{refused:?}");
            assert!(told.contains("--private-key-file") && told.contains("PRIVATE_KEY"), "{told}");
            assert!(!told.contains(SECRET), "{told}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_key_is_told_without_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, SECRET).unwrap();
        let signing = signing(&["--private-key-file", file.to_str().unwrap()]);
        let refused = signing.named(&context()).unwrap_err();
        let told = format!("{refused:?}");
        assert!(told.contains("--private-key-file: ") && !told.contains(SECRET), "{told}");
        assert_eq!(refused.code(), 2);
        std::fs::write(&file, format!("{}\n", "1".repeat(64))).unwrap();
        assert!(signing.named(&context()).unwrap().is_some());
    }

    #[test]
    fn standard_input_holds_one_thing() {
        let signing = signing(&["--private-key-file", "-"]);
        assert_eq!(signing.check(true).unwrap_err().code(), 2);
        assert!(signing.check(false).is_ok());
    }

    #[test]
    fn a_node_is_named_by_option_before_variable_before_the_server() {
        let mut cx = context();
        let kms = |chain_id, url: Option<&str>| KmsInfo {
            id: "kms_1".into(),
            slug: None,
            url: String::new(),
            version: String::new(),
            chain_id,
            kms_contract_address: None,
            gateway_app_id: None,
            chain: url.map(|url| serde_json::json!({ "rpcUrls": { "default": { "http": [url] } } })),
            custody: None,
            problem: None,
        };
        let host = |signing: &Signing, cx: &Context, kms: &KmsInfo| signing.network(cx, kms).unwrap().host();
        let none = signing(&[]);
        assert_eq!(host(&none, &cx, &kms(Some(8453), None)), "mainnet.base.org");
        assert_eq!(host(&none, &cx, &kms(Some(2035), Some("http://server:1"))), "server:1");
        cx.environment.rpc_url = Some("http://variable:1".into());
        assert_eq!(host(&none, &cx, &kms(Some(8453), Some("http://server:1"))), "variable:1");
        let named = signing(&["--rpc-url", "http://option:1"]);
        assert_eq!(host(&named, &cx, &kms(Some(2035), None)), "option:1");
        assert!(named.network(&cx, &kms(None, None)).is_err(), "a key service without a contract");
        let wrong = signing(&["--rpc-url", "ftp://h/deadbeef5ecre7"]).network(&cx, &kms(Some(1), None));
        let told = format!("{:?}", wrong.unwrap_err());
        assert!(told.contains("--rpc-url: ") && !told.contains(SECRET), "{told}");
    }
}
