//! Which nodes speak for a chain, and how far they are believed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;

/// How old the newest block of a node may usually be: ten blocks of Ethereum, sixty of Base. What was taken back on the chain
/// can be believed for so long, and a chain that pauses for longer cannot be asked.
pub const MAX_HEAD_AGE: Duration = Duration::from_secs(120);

/// How many blocks a node may usually be behind others: 40 s on Base. Where blocks take longer, their age decides.
pub const MAX_LAG_BLOCKS: u64 = 20;

/// Where and how a chain is asked.
#[derive(Clone, Debug)]
pub struct ChainConfig {
    /// What every endpoint has to call itself: 1 Ethereum, 8453 Base, 31337 a local chain.
    pub chain_id: u64,
    /// Nodes of this chain, the preferred one first. The others are asked when it does not answer, or answers nonsense.
    /// Each question costs every one of them a look at its newest block.
    pub rpc_urls: Vec<RpcUrl>,
    /// How many blocks, its own included, have to be on the chain for a transaction to count. 0 is read as 1.
    pub confirmations: u64,
    /// How long one exchange with one endpoint may take, connection and whole answer included.
    pub call_timeout: Duration,
    /// How long one question may take, with all its exchanges, endpoints and waiting.
    pub deadline: Duration,
    /// How long a transaction that is not there yet, or not deep enough, is waited for.
    pub receipt_wait: Duration,
    /// How often it is looked for meanwhile.
    pub poll_every: Duration,
    /// How many calls travel in one request, `eth_chainId` included; at least 2. Nodes refuse more than they like, often 100
    /// or 1,000, some public ones 10.
    pub batch_calls: usize,
    /// More bytes than this in one answer are not read.
    pub max_answer_bytes: usize,
    /// An endpoint whose newest block is older than this, or as far in the future, is not believed. None: any age, for chains
    /// that make a block only when there is something to put in it.
    pub max_head_age: Option<Duration>,
    /// Nor is one whose newest block is more blocks than this behind the one that most endpoints have reached.
    pub max_lag_blocks: u64,
    /// How many blocks one query for logs covers. Nodes refuse more than they like, often 2,000 or 10,000; a refused query
    /// is repeated for half as many, and so is one that takes too long; that is remembered for each endpoint.
    pub log_blocks: u64,
}

impl ChainConfig {
    /// The usual bounds, for the chain with this id asked at these endpoints.
    pub fn new(chain_id: u64, rpc_urls: Vec<RpcUrl>) -> Self {
        Self {
            chain_id,
            rpc_urls,
            confirmations: 1,
            call_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(18),
            receipt_wait: Duration::from_secs(15),
            poll_every: Duration::from_secs(1),
            batch_calls: 100,
            max_answer_bytes: 8 << 20,
            max_head_age: Some(MAX_HEAD_AGE),
            max_lag_blocks: MAX_LAG_BLOCKS,
            log_blocks: 2000,
        }
    }
}

/// The address of a node's JSON-RPC interface. Paths and queries of such addresses hold keys, so it is shown without them.
#[derive(Clone, PartialEq, Eq)]
pub struct RpcUrl(Url);

/// Shorter parts of an address, such as `v2` or `mainnet`, are words.
const SHORTEST_KEY: usize = 8;

/// Why a text is no [`RpcUrl`]. Does not repeat the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcUrlError {
    /// Not an address at all.
    #[error("the RPC address is not a URL")]
    Form,
    /// Neither `http` nor `https`.
    #[error("an RPC address begins with https:// or http://")]
    Scheme,
}

/// Is this the URL of something on this machine? Then no proxy leads to it, and nobody can listen on the way.
pub fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl RpcUrl {
    /// The whole address, keys and all.
    pub(crate) fn secret(&self) -> &Url {
        &self.0
    }

    /// Is the node on this machine? Then no proxy leads to it.
    pub(crate) fn is_local(&self) -> bool {
        is_local(&self.0)
    }

    /// What a node said, fit to be shown: short, on one line, and without any part of the address that may be a key.
    pub(crate) fn scrubbed(&self, said: impl fmt::Display) -> String {
        let (url, mut text) = (&self.0, said.to_string());
        let query = url.query_pairs().map(|(_, value)| value.into_owned());
        let path = url.path().split('/').chain(url.query().unwrap_or_default().split(['&', '=']));
        let user = [url.username(), url.password().unwrap_or_default()];
        let secrets: Vec<_> = path.chain(user).map(ToOwned::to_owned).chain(query).collect();
        for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST_KEY) {
            text = text.replace(secret.as_str(), "…");
        }
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
    }

    /// Host and port, as they may be shown.
    pub fn host(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        self.0.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

impl FromStr for RpcUrl {
    type Err = RpcUrlError;

    fn from_str(text: &str) -> Result<Self, RpcUrlError> {
        let url = Url::parse(text.trim()).map_err(|_| RpcUrlError::Form)?;
        match url.scheme() {
            "http" | "https" => Ok(Self(url)),
            _ => Err(RpcUrlError::Scheme),
        }
    }
}

impl fmt::Display for RpcUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.host())
    }
}

impl fmt::Debug for RpcUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RpcUrl({})", self.host())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rpc_address_never_shows_its_key() {
        let url: RpcUrl = "https://me:pass@rpc.example:8443/v2/KEY?k=KEY".parse().unwrap();
        assert_eq!(
            (url.to_string(), format!("{url:?}")),
            ("rpc.example:8443".into(), "RpcUrl(rpc.example:8443)".into())
        );
        let url: RpcUrl = "https://me:password@rpc.example/v2/0123456789?k=abcdefghi".parse().unwrap();
        let said = url.scrubbed("v2 with 0123456789,\nabcdefghi or password");
        assert_eq!(said, "v2 with …, … or …");
        for (text, local) in
            [("http://127.0.0.1:8545", true), ("http://[::1]:1", true), ("https://rpc.example", false)]
        {
            assert_eq!(text.parse::<RpcUrl>().unwrap().is_local(), local, "{text}");
        }
        for (text, error) in [("KEY", RpcUrlError::Form), ("wss://rpc.example/KEY", RpcUrlError::Scheme)] {
            assert_eq!(text.parse::<RpcUrl>(), Err(error));
            assert!(!error.to_string().contains("KEY"));
        }
    }
}
