//! What can go wrong on a chain.

use std::time::Duration;

use casemate_chain::{NodeError, checksummed};
use casemate_types::ids::{Address, ComposeHash, TxHash};

/// Why something did not happen on a chain, or is not known to have happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No node of this chain is known. [`Network::at`](super::Network::at) takes one.
    #[error("no public node of chain {0} is known: the RPC address of one is needed")]
    UnknownChain(u64),
    /// The node is one of another chain. Nothing was signed.
    #[error("wrong network: {host} speaks for chain {found}, not for chain {wanted}")]
    WrongNetwork {
        /// The node.
        host: String,
        /// The chain that was meant.
        wanted: u64,
        /// The node's.
        found: u64,
    },
    /// The sender cannot pay for it. Nothing was sent.
    #[error(
        "{} has {} ETH on chain {chain_id}, and {} ETH are needed",
        checksummed(*sender), eth(*balance_wei), eth(*needed_wei)
    )]
    TooLittleMoney {
        /// Who would have paid.
        sender: Address,
        /// The chain.
        chain_id: u64,
        /// What the sender has.
        balance_wei: u128,
        /// What the sender has to have.
        needed_wei: u128,
    },
    /// At the fees that the node names it could cost more than allowed. Nothing was sent.
    #[error("it could cost {} ETH at the fees that the node names, and at most {} ETH are allowed", eth(*cost_wei), eth(*limit_wei))]
    TooExpensive {
        /// What it could cost.
        cost_wei: u128,
        /// What it may cost.
        limit_wei: u128,
    },
    /// The contract belongs to somebody else. Nothing was sent.
    #[error(
        "{} does not own the contract {}: its owner is {}",
        checksummed(*sender), checksummed(*contract), checksummed(*owner)
    )]
    NotOwner {
        /// Who would have signed.
        sender: Address,
        /// Who has to.
        owner: Address,
        /// The contract.
        contract: Address,
    },
    /// The server asks to allow something else than was given: a text, script or flag that nobody wrote. Nothing was signed.
    #[error(
        "the server asks to allow compose hash 0x{asked}, and what was given has 0x{given}: it made something else of it"
    )]
    OtherComposeHash {
        /// That of what was given.
        given: ComposeHash,
        /// What the server asks to allow.
        asked: ComposeHash,
    },
    /// There is no such contract on the chain.
    #[error("there is no {what} at {} on chain {chain_id}", checksummed(*address))]
    NoContract {
        /// What should be there.
        what: &'static str,
        /// Where.
        address: Address,
        /// The chain.
        chain_id: u64,
    },
    /// The contract refuses.
    #[error("the contract refuses: {reason}{}", of(tx.as_ref()))]
    Reverted {
        /// The transaction that failed; none if it was found out before anything was sent.
        tx: Option<TxHash>,
        /// Why, as far as it is known.
        reason: String,
    },
    /// The node no longer knows the transaction, and it is in no block. It changed nothing, but could still be carried out if
    /// another node has it.
    #[error("transaction 0x{tx} was dropped: the node no longer knows it, and it is in no block")]
    Dropped {
        /// The transaction.
        tx: TxHash,
    },
    /// Another transaction of the sender with the same number was carried out in its place. This one never will be.
    #[error(
        "transaction 0x{tx} was replaced: another one of the sender, with the same nonce {nonce}, came first"
    )]
    Replaced {
        /// The transaction.
        tx: TxHash,
        /// Its number among the sender's.
        nonce: u64,
    },
    /// It was sent, and is not confirmed within the time allowed. It may be, later.
    #[error("transaction 0x{tx} is not confirmed after {} s: {why}", .after.as_secs())]
    TimedOut {
        /// The transaction.
        tx: TxHash,
        /// How long it was waited for.
        after: Duration,
        /// How far it is.
        why: String,
    },
    /// The transaction succeeded, but the contract did not report what it was made for: it is another kind of contract.
    #[error("transaction 0x{tx} succeeded, but the contract did not report that {what}")]
    NotReported {
        /// The transaction.
        tx: TxHash,
        /// What was expected.
        what: &'static str,
    },
    /// The node refuses.
    #[error("{host} refuses: {message}")]
    Refused {
        /// The node.
        host: String,
        /// Its words.
        message: String,
    },
    /// The node does not answer, or answers nonsense.
    #[error(transparent)]
    Node(#[from] casemate_chain::Error),
}

impl Error {
    /// The same may succeed later without anybody doing something about it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Node(_) | Self::Dropped { .. } => true,
            Self::UnknownChain(_)
            | Self::WrongNetwork { .. }
            | Self::TooLittleMoney { .. }
            | Self::TooExpensive { .. }
            | Self::NotOwner { .. }
            | Self::NoContract { .. }
            | Self::OtherComposeHash { .. }
            | Self::Reverted { .. }
            | Self::Replaced { .. }
            | Self::TimedOut { .. }
            | Self::NotReported { .. }
            | Self::Refused { .. } => false,
        }
    }

    /// The transaction that it is about, if one was sent.
    pub fn transaction(&self) -> Option<TxHash> {
        match self {
            Self::Dropped { tx }
            | Self::Replaced { tx, .. }
            | Self::TimedOut { tx, .. }
            | Self::NotReported { tx, .. } => Some(*tx),
            Self::Reverted { tx, .. } => *tx,
            Self::UnknownChain(_)
            | Self::WrongNetwork { .. }
            | Self::TooLittleMoney { .. }
            | Self::TooExpensive { .. }
            | Self::NotOwner { .. }
            | Self::NoContract { .. }
            | Self::OtherComposeHash { .. }
            | Self::Refused { .. }
            | Self::Node(_) => None,
        }
    }
}

impl From<NodeError> for Error {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::OtherChain { host, wanted, found } => Self::WrongNetwork { host, wanted, found },
            NodeError::Refused(refused) => Self::Refused { host: refused.host, message: refused.message },
            NodeError::Failed(error) => Self::Node(error),
        }
    }
}

impl From<Error> for crate::Error {
    fn from(error: Error) -> Self {
        Self::Chain(Box::new(error))
    }
}

fn of(tx: Option<&TxHash>) -> String {
    tx.map_or_else(String::new, |tx| format!(" (transaction 0x{tx})"))
}

/// An amount of wei in ETH, all digits that count.
fn eth(wei: u128) -> String {
    const ETH: u128 = 1_000_000_000_000_000_000;
    let text = format!("{}.{:018}", wei / ETH, wei % ETH);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_shown_in_whole_and_broken_eth() {
        for (wei, text) in [
            (0, "0"),
            (1, "0.000000000000000001"),
            (1_000_000_000_000_000, "0.001"),
            (10_u128.pow(22), "10000"),
        ] {
            assert_eq!(eth(wei), text);
        }
    }

    #[test]
    fn an_error_names_both_sides() {
        let (sender, owner, contract) = (Address([1; 20]), Address([2; 20]), Address([3; 20]));
        let text = Error::NotOwner { sender, owner, contract }.to_string();
        for address in [sender, owner, contract] {
            assert!(text.contains(&checksummed(address)), "{text}");
        }
        let error = Error::Reverted { tx: Some(TxHash([7; 32])), reason: "no".into() };
        assert!(error.to_string().ends_with(&format!("no (transaction 0x{})", "07".repeat(32))));
    }
}
