//! One node, asked directly: for a client that knows no other, and that also sends what it has signed.

use std::time::Duration;

use serde_json::Value;

use crate::ask::Error;
use crate::config::{ChainConfig, RpcUrl};
use crate::evm::rpc::{Call, Endpoint, Refusal, Trouble};

/// No answer that such a client asks for is nearly as long.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// A node of a chain. Connects to nothing before it is asked. Needs a tokio runtime with time and IO.
pub struct Node {
    endpoint: Endpoint,
    chain_id: u64,
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It is a node of another chain.
    #[error("{host} speaks for chain {found}, not for chain {wanted}")]
    OtherChain {
        /// Which it is, without what may be a key.
        host: String,
        /// The chain that was expected.
        wanted: u64,
        /// The chain that it speaks for.
        found: u64,
    },
    /// It will not, and says why.
    #[error("{} refuses: {}", .0.host, .0.message)]
    Refused(Refused),
    /// It gave no answer, or none that can be believed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// A node's words for why it will not.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Which node, without what may be a key.
    pub host: String,
    /// JSON-RPC's number for it.
    pub code: i64,
    /// Its words, on one line and cut at 200 characters.
    pub message: String,
    /// What the contract returned, if it was its code that failed and the node tells.
    pub data: Vec<u8>,
    /// The contract's code ended in an error, as opposed to a node that could not run it.
    pub of_the_contract: bool,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let of_the_contract = refusal.is_of_the_contract();
        let Refusal { host, code, message, data } = refusal;
        Self { host, code, message, data, of_the_contract }
    }
}

impl Node {
    /// The node at this address, of the chain with this id. An exchange with it may take `timeout`.
    pub fn new(chain_id: u64, url: RpcUrl, timeout: Duration) -> Self {
        let config = ChainConfig {
            call_timeout: timeout,
            max_answer_bytes: MAX_ANSWER_BYTES,
            ..ChainConfig::new(chain_id, Vec::new())
        };
        Self { endpoint: Endpoint::new(&config, url), chain_id }
    }

    /// The chain that the node at this address speaks for. The exchange may take `timeout`.
    ///
    /// # Errors
    /// [`NodeError::Failed`].
    pub async fn chain_at(url: RpcUrl, timeout: Duration) -> Result<u64, NodeError> {
        // No chain has the number 0, so whichever it is, it is another one.
        match Self::new(0, url, timeout).call("eth_chainId", Value::Array(Vec::new())).await {
            Ok(_) => Ok(0),
            Err(NodeError::OtherChain { found, .. }) => Ok(found),
            Err(error) => Err(error),
        }
    }

    /// The chain.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// Where it is, for people.
    pub fn host(&self) -> String {
        self.endpoint.url.host()
    }

    /// Makes JSON-RPC calls, in one exchange; one answer for each, in their order. With them goes the question which chain it
    /// speaks for.
    ///
    /// # Errors
    /// [`NodeError::OtherChain`], [`NodeError::Failed`]; and a refusal of all calls together.
    pub async fn ask(
        &self,
        calls: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Result<Vec<Result<Value, Refused>>, NodeError> {
        let calls: Vec<_> = calls.into_iter().map(|(method, params)| Call { method, params }).collect();
        let replies = self.endpoint.exchange(&calls).await.map_err(|trouble| self.error(trouble))?;
        let answers = replies.into_iter().map(|reply| match reply {
            Ok(result) => self.endpoint.read(Ok(result)).map(Ok).map_err(|trouble| self.error(trouble)),
            Err(refusal) => Ok(Err(refusal.into())),
        });
        answers.collect()
    }

    /// Makes one call.
    ///
    /// # Errors
    /// Each kind.
    pub async fn call(&self, method: &'static str, params: Value) -> Result<Value, NodeError> {
        let answer = self.ask([(method, params)]).await?.pop();
        let answer =
            answer.ok_or_else(|| self.error(self.endpoint.nonsense("leaves questions unanswered")))?;
        answer.map_err(NodeError::Refused)
    }

    /// An answer that is not what was asked for.
    pub fn nonsense(&self, what: &str) -> NodeError {
        self.error(self.endpoint.nonsense(what))
    }

    fn error(&self, trouble: Trouble) -> NodeError {
        match trouble {
            Trouble::OtherChain(found, _) => {
                NodeError::OtherChain { host: self.host(), wanted: self.chain_id, found }
            }
            Trouble::Refused(refusal) => NodeError::Refused(refusal.into()),
            other => NodeError::Failed(other.into()),
        }
    }
}
