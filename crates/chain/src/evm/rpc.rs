//! JSON-RPC over HTTP, with one node.
//!
//! Calls travel in batches, and each batch begins with `eth_chainId`: whatever stands behind the address at that moment, a
//! new machine behind a load balancer or the wrong one after a change of its configuration, its answers count only together
//! with its own word for which chain it speaks.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use serde::de::{self, DeserializeOwned, DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::wire::{Data, Quantity};
use crate::ask::Error;
use crate::config::{ChainConfig, RpcUrl};

/// A node.
pub(crate) struct Endpoint {
    pub(crate) url: RpcUrl,
    http: OnceLock<Result<reqwest::Client, String>>,
    chain_id: u64,
    timeout: Duration,
    batch_calls: usize,
    max_answer_bytes: usize,
    ailing: AtomicBool,
    /// Less than is configured where that was too much for the node.
    log_blocks: AtomicU64,
}

/// What a node is asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: &'static str,
    pub(crate) params: Value,
}

/// What it answers: a result, `null` included, or that it will not.
pub(crate) type Reply = Result<Box<RawValue>, Refusal>;

/// A node's own words for why it does not do what it was asked to do, with nothing in them that is a key.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) host: String,
    pub(crate) code: i64,
    pub(crate) message: String,
    /// What a contract returned that failed, if the node tells.
    pub(crate) data: Vec<u8>,
}

/// Why a node's answer is none.
#[derive(Debug)]
pub(crate) enum Trouble {
    Unreachable(String),
    Nonsense(String),
    /// The node speaks for this chain, which is not the one it is configured for.
    OtherChain(u64, String),
    /// It is longer than the limit. Asking for less may help.
    TooLong(String),
    Refused(Refusal),
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unreachable(why) => Self::Unreachable(why),
            Trouble::Nonsense(why) | Trouble::OtherChain(_, why) | Trouble::TooLong(why) => {
                Self::Nonsense(why)
            }
            Trouble::Refused(Refusal { host, code, message, .. }) => {
                Self::Unreachable(format!("{host} refuses: {message} ({code})"))
            }
        }
    }
}

impl Refusal {
    /// The contract's code ended in an error, as opposed to a node that could not run it.
    ///
    /// Only `3` is a common code for it, and that only for reverts, so the words decide. Taking an execution error for
    /// trouble would be harmless but tiresome: no answer about an app, for ever.
    pub(crate) fn is_of_the_contract(&self) -> bool {
        const WORDS: [&str; 5] = ["revert", "opcode", "out of gas", "invalid jump", "stack underflow"];
        let message = self.message.to_ascii_lowercase();
        self.code == 3 || WORDS.iter().any(|word| message.contains(word))
    }
}

#[derive(Serialize)]
struct Request<'a> {
    jsonrpc: &'static str,
    id: usize,
    method: &'a str,
    params: &'a Value,
}

#[derive(Deserialize)]
struct Response {
    id: Option<usize>,
    result: Option<Box<RawValue>>,
    error: Option<ErrorObject>,
}

/// Reads so many responses. A list of millions of empty ones would take far more memory than its text.
struct AtMost(usize);

impl<'de> DeserializeSeed<'de> for AtMost {
    type Value = Vec<Response>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AtMost {
    type Value = Vec<Response>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {} responses", self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut responses = Vec::with_capacity(self.0);
        while let Some(response) = from.next_element()? {
            if responses.len() == self.0 {
                return Err(de::Error::invalid_length(self.0 + 1, &self));
            }
            responses.push(response);
        }
        Ok(responses)
    }
}

#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    #[serde(default)]
    message: String,
    data: Option<Box<RawValue>>,
}

impl Endpoint {
    pub(crate) fn new(config: &ChainConfig, url: RpcUrl) -> Self {
        Self {
            url,
            http: OnceLock::new(),
            chain_id: config.chain_id,
            timeout: config.call_timeout,
            batch_calls: config.batch_calls,
            max_answer_bytes: config.max_answer_bytes,
            ailing: AtomicBool::new(false),
            log_blocks: AtomicU64::new(config.log_blocks.max(1)),
        }
    }

    /// The answers to `calls`, in their order. All of them are of the configured chain, or there is none.
    pub(crate) async fn exchange(&self, calls: &[Call]) -> Result<Vec<Reply>, Trouble> {
        let mut replies = Vec::with_capacity(calls.len());
        for some in calls.chunks(self.batch_calls.max(2) - 1) {
            let late = || self.unreachable(format_args!("gave no whole answer within {:?}", self.timeout));
            replies.extend(tokio::time::timeout(self.timeout, self.batch(some)).await.map_err(|_| late())??);
        }
        Ok(replies)
    }

    /// How many blocks one query for logs should cover.
    pub(crate) fn log_blocks(&self) -> u64 {
        self.log_blocks.load(Ordering::Relaxed)
    }

    /// Remembers how many it may be the next time.
    pub(crate) fn set_log_blocks(&self, blocks: u64) {
        self.log_blocks.store(blocks.max(1), Ordering::Relaxed);
    }

    /// Logs when the node begins to be in trouble and when it no longer is, not each time in between.
    pub(crate) fn note(&self, trouble: Option<&Error>) {
        match (self.ailing.swap(trouble.is_some(), Ordering::Relaxed), trouble) {
            (false, Some(error)) => {
                tracing::warn!(chain.id = self.chain_id, %error, "a node of the chain fails")
            }
            (true, None) => {
                tracing::info!(chain.id = self.chain_id, node = %self.url, "a node of the chain is back")
            }
            (false, None) | (true, Some(_)) => {}
        }
    }

    async fn batch(&self, calls: &[Call]) -> Result<Vec<Reply>, Trouble> {
        let chain_id = Call { method: "eth_chainId", params: Value::Array(Vec::new()) };
        let requests: Vec<_> = std::iter::once(&chain_id)
            .chain(calls)
            .enumerate()
            .map(|(id, call)| Request { jsonrpc: "2.0", id, method: call.method, params: &call.params })
            .collect();
        let answer = self.post(serde_json::to_vec(&requests).expect("string keys only")).await?;
        let mut replies = self.sorted(&answer, requests.len())?.into_iter();
        let spoken = replies.next().ok_or_else(|| self.nonsense("answers with an empty batch"))?;
        match self.read::<Quantity>(spoken)? {
            Quantity(id) if id == self.chain_id => Ok(replies.collect()),
            Quantity(other) => {
                let url = &self.url;
                let why = format!("{url} speaks for chain {other}, not for chain {}", self.chain_id);
                Err(Trouble::OtherChain(other, why))
            }
        }
    }

    async fn post(&self, body: Vec<u8>) -> Result<Vec<u8>, Trouble> {
        let broken = |error: reqwest::Error| self.unreachable(cause(&error));
        let request = self.http()?.post(self.url.secret().clone()).header(CONTENT_TYPE, "application/json");
        let mut response = request.body(body).send().await.map_err(broken)?;
        if !response.status().is_success() {
            return Err(self.unreachable(format_args!("answers with HTTP status {}", response.status())));
        }
        let limit = self.max_answer_bytes;
        let too_long = || Trouble::TooLong(format!("{} answers with more than {limit} bytes", self.url));
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_long());
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if chunk.len() > limit - answer.len() {
                return Err(too_long());
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(answer)
    }

    /// One reply for each id below `count`.
    fn sorted(&self, answer: &[u8], count: usize) -> Result<Vec<Reply>, Trouble> {
        // A node that refuses the whole batch answers with a single object.
        if let Ok(Response { error: Some(error), .. }) = serde_json::from_slice(answer) {
            return Err(Trouble::Refused(self.refusal(error)));
        }
        let mut json = serde_json::Deserializer::from_slice(answer);
        let responses = AtMost(count)
            .deserialize(&mut json)
            .and_then(|responses| json.end().map(|()| responses))
            .map_err(|error| {
                self.nonsense(format_args!(
                    "answers with something that is not JSON-RPC: {}",
                    self.url.scrubbed(error)
                ))
            })?;
        let mut replies: Vec<Option<Reply>> = Vec::new();
        replies.resize_with(count, || None);
        for Response { id, result, error } in responses {
            let free = id.and_then(|id| replies.get_mut(id)).filter(|reply| reply.is_none());
            let Some(free) = free else { return Err(self.nonsense("answers what it was not asked")) };
            *free = Some(match error {
                Some(error) => Err(self.refusal(error)),
                None => Ok(result.unwrap_or_else(|| RawValue::NULL.to_owned())),
            });
        }
        let all: Option<Vec<_>> = replies.into_iter().collect();
        all.ok_or_else(|| self.nonsense("leaves questions unanswered"))
    }

    /// What a reply says, if it says a `T`.
    pub(crate) fn read<T: DeserializeOwned>(&self, reply: Reply) -> Result<T, Trouble> {
        let result = reply.map_err(Trouble::Refused)?;
        serde_json::from_str(result.get()).map_err(|error| {
            self.nonsense(format_args!("answers in another form: {}", self.url.scrubbed(error)))
        })
    }

    fn http(&self) -> Result<&reqwest::Client, Trouble> {
        let built = self.http.get_or_init(|| {
            let mut builder = reqwest::Client::builder()
                .user_agent(concat!("casemate/", env!("CARGO_PKG_VERSION")))
                // The key must not follow to wherever an answer points.
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                // Shorter than any server's, so that no question meets a connection that is just being closed.
                .pool_idle_timeout(Duration::from_secs(20))
                .tcp_nodelay(true);
            // Loading certificates takes longer than everything else.
            if self.url.secret().scheme() == "http" {
                builder = builder.tls_certs_only([]);
            }
            if self.url.is_local() {
                builder = builder.no_proxy();
            }
            builder.build().map_err(|error| cause(&error))
        });
        built.as_ref().map_err(|why| self.unreachable(why))
    }

    fn refusal(&self, ErrorObject { code, message, data }: ErrorObject) -> Refusal {
        // Nodes that explain a failure in words put them here as well; only bytes are of use.
        let data = data.and_then(|data| serde_json::from_str::<Data>(data.get()).ok());
        let data = data.map(|Data(bytes)| bytes).unwrap_or_default();
        Refusal { host: self.url.host(), code, message: self.url.scrubbed(message), data }
    }

    pub(crate) fn unreachable(&self, what: impl fmt::Display) -> Trouble {
        Trouble::Unreachable(format!("{} {what}", self.url))
    }

    pub(crate) fn nonsense(&self, what: impl fmt::Display) -> Trouble {
        Trouble::Nonsense(format!("{} {what}", self.url))
    }
}

/// The innermost reason. The outer ones name the whole address.
fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    if std::ptr::addr_eq(inner, error) {
        return if error.is_timeout() { "takes too long".into() } else { "cannot be asked".into() };
    }
    format!("cannot be asked: {inner}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_responses_are_read_than_calls_were_made() {
        let endpoint = Endpoint::new(&ChainConfig::new(1, Vec::new()), "http://rpc.example".parse().unwrap());
        let sorted = |answer: &str| {
            endpoint.sorted(answer.as_bytes(), 2).map_err(|trouble| Error::from(trouble).to_string())
        };
        let replies = sorted(r#"[{"id":1,"result":null},{"id":0,"result":"0x1"}]"#).unwrap();
        assert_eq!(endpoint.read::<Quantity>(replies[0].clone()).unwrap(), Quantity(1));
        assert_eq!(endpoint.read::<Option<Quantity>>(replies[1].clone()).unwrap(), None);
        // What comes behind the third is not even looked at.
        let error = sorted(r#"[{},{},{} and so on"#).unwrap_err();
        assert!(error.contains("invalid length 3, expected a list of 2 responses"), "{error}");
        for answer in
            ["[{},{}]", r#"[{"id":0},{"id":0}]"#, r#"[{"id":0}]"#, r#"[{"id":0},{"id":1}] more"#, "7"]
        {
            assert!(sorted(answer).unwrap_err().contains("rpc.example"), "{answer}");
        }
    }
}
