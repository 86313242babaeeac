//! A chain asked over JSON-RPC, at several nodes.
//!
//! Every question begins with a look at the head of all nodes at once. That finds those that are down, speak for another
//! chain or are behind, and costs no more time than the fastest needs: who answers late comes last. Then one node answers the
//! whole question, and if it fails, the next one answers the whole question anew, until the deadline. So no answer is put
//! together from what two nodes say.
//!
//! How far the chain is, no node decides alone if there are several: it counts what more than half of them have reached, so
//! one that shows a block far above that puts nobody aside. Such a node has to have that block, and what the others show below
//! it; else it is asked last. One node is believed. Of two, the one that is far ahead is believed if it can show so much. Blocks
//! that are too old, or of a time to come, do not count at all.
//!
//! What a node says is checked against itself: a receipt's block has to be the one that the chain has at its height, and
//! contracts are asked at the head by its hash, which a node refuses if that block is no longer the chain's (EIP-1898). A
//! node that lies consistently is believed, if most do not contradict it: nothing but a proof of consensus could find it out.

pub(crate) mod rpc;
mod session;
pub(crate) mod wire;

use std::cmp::Reverse;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use casemate_types::ids::{Address, AppId};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use self::rpc::{Endpoint, Reply, Trouble};
use self::session::{Session, block_by_number, latest};
use self::wire::Header;
use crate::ask::{
    BootAnswer, BootInfo, Chain, Changes, Error, Head, Question, Registration, State, Subject, Verdict,
};
use crate::config::ChainConfig;

/// Once a node has shown its head, the others have so long to show theirs. Later ones are asked only if the rest fails.
const HEAD_START: Duration = Duration::from_millis(500);

/// An EVM chain, asked at the nodes of its [`ChainConfig`]. Needs a tokio runtime with time and IO.
pub struct Evm {
    config: Arc<ChainConfig>,
    endpoints: Vec<Arc<Endpoint>>,
    now: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Evm {
    /// `now` gives the present time in seconds since 1970; the age of blocks is measured by it. Connects to nothing yet.
    pub fn new(config: ChainConfig, now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let endpoints = config.rpc_urls.iter().map(|url| Arc::new(Endpoint::new(&config, url.clone())));
        Self { endpoints: endpoints.collect(), config: Arc::new(config), now: Box::new(now) }
    }

    /// Puts a question to one node after the other, until one answers.
    async fn ask<T, F>(&self, question: impl Fn(Session, Header) -> F + Send + Sync) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Trouble>> + Send,
    {
        let until = Instant::now() + self.config.deadline;
        let mut errors: Vec<Error> = Vec::new();
        for (session, head) in self.sessions(&mut errors).await {
            let attempt = async {
                let head = match head {
                    Some(head) => head,
                    None => session.head().await?,
                };
                question(session.clone(), head).await
            };
            let error = match timeout_at(until, attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(trouble)) => trouble.into(),
                Err(_) => {
                    let why =
                        format!("{} gave no answer within {:?}", session.endpoint.url, self.config.deadline);
                    Error::Unreachable(why)
                }
            };
            tracing::warn!(chain.id = self.config.chain_id, %error, "a node of the chain gave no answer");
            errors.push(error);
            if Instant::now() >= until {
                break;
            }
        }
        Err(errors.into_iter().reduce(Error::and).unwrap_or_else(|| {
            Error::Unreachable(format!("no node of chain {} is configured", self.config.chain_id))
        }))
    }

    /// The nodes in the order in which to ask them, with the head that each has shown. Errors are of those that are left out.
    async fn sessions(&self, errors: &mut Vec<Error>) -> Vec<(Session, Option<Header>)> {
        let now = (self.now)();
        let session = |endpoint: &Arc<Endpoint>, newest| {
            let (config, endpoint) = (self.config.clone(), endpoint.clone());
            Session { config, endpoint, newest, now }
        };
        let mut heads = self.heads().await;
        for (endpoint, head) in self.endpoints.iter().zip(&mut heads) {
            // What is not of this time has no say in how far the others should be.
            if let Some(Ok(shown)) = head
                && let Err(trouble) = session(endpoint, 0).believe(*shown)
            {
                *head = Some(Err(trouble));
            }
        }
        let (newest, doubtful) = self.compared(&heads).await;
        let (mut first, mut late, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for (place, (endpoint, head)) in self.endpoints.iter().zip(heads).enumerate() {
            let session = session(endpoint, newest);
            match head {
                None => late.push((session, None)),
                Some(head) => match head.and_then(|head| session.believe(head).map(|()| head)) {
                    Ok(head) => {
                        endpoint.note(None);
                        let turn = if doubtful.contains(&place) { &mut last } else { &mut first };
                        turn.push((session, Some(head)));
                    }
                    Err(trouble) => {
                        let error = trouble.into();
                        endpoint.note(Some(&error));
                        errors.push(error);
                    }
                },
            }
        }
        first.append(&mut late);
        first.append(&mut last);
        first
    }

    /// The head of each node. None: it is not quick enough.
    async fn heads(&self) -> Vec<Option<Result<Header, Trouble>>> {
        let mut looks = JoinSet::new();
        for (place, endpoint) in self.endpoints.iter().cloned().enumerate() {
            looks.spawn(async move {
                let replies = endpoint.exchange(&[latest()]).await;
                let head = replies.and_then(|mut replies| match replies.pop() {
                    Some(reply) => endpoint.read::<Header>(reply),
                    None => Err(endpoint.nonsense("leaves questions unanswered")),
                });
                (place, head)
            });
        }
        let mut heads = Vec::new();
        heads.resize_with(self.endpoints.len(), || None);
        let mut until: Option<Instant> = None;
        loop {
            let look = match until {
                None => looks.join_next().await,
                Some(until) => timeout_at(until, looks.join_next()).await.unwrap_or_default(),
            };
            match look {
                Some(Ok((place, head))) => {
                    if head.is_ok() && until.is_none() {
                        until = Some(Instant::now() + HEAD_START);
                    }
                    heads[place] = Some(head);
                }
                // Such a task ends early only when the runtime does.
                Some(Err(_)) => {}
                None => return heads,
            }
        }
    }

    /// How far nodes have to be, and the places of those that are much further and cannot show why.
    async fn compared(&self, heads: &[Option<Result<Header, Trouble>>]) -> (u64, Vec<usize>) {
        let shown = heads.iter().enumerate();
        let mut shown: Vec<(usize, Header)> =
            shown.filter_map(|(place, head)| Some((place, *head.as_ref()?.as_ref().ok()?))).collect();
        shown.sort_by_key(|(_, head)| Reverse(head.number.0));
        // More than half have at least got there. If too few show anything, nothing is decided.
        let Some((_, agreed)) = shown.get(self.endpoints.len() / 2) else { return (0, Vec::new()) };
        let usual = agreed.number.0.saturating_add(self.config.max_lag_blocks);
        let (mut newest, mut doubtful) = (agreed.number.0, Vec::new());
        for (place, head) in shown.iter().take_while(|(_, head)| head.number.0 > usual) {
            let proof = self.builds_on(&self.endpoints[*place], *head, *agreed);
            if timeout_at(Instant::now() + HEAD_START, proof).await != Ok(true) {
                doubtful.push(*place);
            } else if shown.len() == 2 {
                newest = head.number.0;
            }
        }
        (newest, doubtful)
    }

    /// Does a node have the block that it shows as its newest one, and below it, made earlier, the one that others show? Where
    /// blocks are made on demand, many may be of one second.
    async fn builds_on(&self, endpoint: &Endpoint, head: Header, below: Header) -> bool {
        let calls = [block_by_number(below.number.0), block_by_number(head.number.0)];
        let Ok(replies) = endpoint.exchange(&calls).await else { return false };
        let has = |(reply, block): (Reply, Header)| {
            endpoint
                .read::<Header>(reply)
                .is_ok_and(|there| there.hash == block.hash && there.number == block.number)
        };
        let later = self.config.max_head_age.is_none() || head.timestamp.0 > below.timestamp.0;
        later && replies.into_iter().zip([below, head]).all(has)
    }
}

impl Error {
    /// Two nodes' troubles in one. Of the first one's kind.
    fn and(self, other: Self) -> Self {
        let (Self::Unreachable(second) | Self::Nonsense(second)) = other;
        match self {
            Self::Unreachable(first) => Self::Unreachable(format!("{first}; {second}")),
            Self::Nonsense(first) => Self::Nonsense(format!("{first}; {second}")),
        }
    }
}

#[async_trait]
impl Chain for Evm {
    async fn check(&self, question: &Question) -> Result<Verdict, Error> {
        let (ours, asked) = (self.config.chain_id, question.chain_id);
        if ours != asked {
            return Err(Error::Nonsense(format!(
                "asked about chain {asked}, but it speaks for chain {ours}"
            )));
        }
        let patience = Instant::now() + self.config.receipt_wait;
        self.ask(|session, head| async move { session.check(head, question, patience).await }).await
    }

    async fn head(&self) -> Result<Head, Error> {
        self.ask(|_, head| async move { Ok(head.into()) }).await
    }

    async fn state(&self, subjects: &[Subject]) -> Result<State, Error> {
        self.ask(|session, head| async move { session.state(head, subjects).await }).await
    }

    async fn registration(&self, kms: Address, app: AppId) -> Result<Registration, Error> {
        self.ask(|session, head| async move { session.registration(head, kms, app).await }).await
    }

    async fn os_image_allowed(&self, kms: Address, os_image: [u8; 32]) -> Result<bool, Error> {
        self.ask(|session, head| async move { session.os_image_allowed(head, kms, os_image).await }).await
    }

    async fn is_app_allowed(&self, kms: Address, boot: &BootInfo) -> Result<BootAnswer, Error> {
        self.ask(|session, head| async move { session.is_app_allowed(head, kms, boot).await }).await
    }

    async fn gateway_app_id(&self, kms: Address) -> Result<Option<String>, Error> {
        self.ask(|session, head| async move { session.gateway_app_id(head, kms).await }).await
    }

    async fn changes(&self, app: AppId, from_block: u64, to_block: u64) -> Result<Changes, Error> {
        self.ask(|session, head| async move { session.changes(head, app, from_block, to_block).await }).await
    }

    async fn allow_any_device(&self, app: AppId) -> Result<bool, Error> {
        self.ask(|session, head| async move { session.allow_any_device(head, app).await }).await
    }
}
