//! A node as the server knows it: how it is reached, what it last told about itself, and whether it answers.
//!
//! A node that is away keeps nobody from starting: what it told the last time is in the store. One that never answered has no
//! capacity, no image and a name that stands in for its own, until it does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;

use crate::clock::Clock;
use crate::cvm::spec::{Booking, sha256};
use crate::driver::fault::Plan;
use crate::driver::{self, DynDriver, NodeFacts};
use crate::store::{self, NodeRow, Store};

/// How long a node may be silent before it counts as away.
pub const AWAY_AFTER: Duration = Duration::from_secs(30);

/// How long the start of the server waits for nodes to tell about themselves, for all of them together. One that takes longer is
/// away until it is looked at again.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// How old the stored time of the last contact may get while nothing else changes.
const CONTACT_KEPT: Duration = Duration::from_secs(300);

/// A node to be added to an app.
pub struct NewNode {
    /// How the configuration names it. It is recognised by this while it does not answer.
    pub address: String,
    /// How it is reached.
    pub driver: DynDriver,
    /// Set for a simulated node whose faults may be planned from outside.
    pub faults: Option<Arc<dyn Plan>>,
}

/// A node and the driver that reaches it.
pub struct Node {
    /// How the configuration names it.
    pub address: String,
    /// How it is reached.
    pub driver: DynDriver,
    /// Set for a simulated node whose faults may be planned from outside.
    pub faults: Option<Arc<dyn Plan>>,
    contact: Mutex<Contact>,
}

struct Contact {
    facts: Arc<NodeFacts>,
    seen_at: Option<Timestamp>,
    stored_at: Option<Timestamp>,
    online: bool,
}

impl Contact {
    /// With a node that answers.
    fn at(now: Timestamp, id: i64, facts: NodeFacts) -> (i64, Self) {
        (id, Self { facts: Arc::new(facts), seen_at: Some(now), stored_at: Some(now), online: true })
    }

    /// With a node that does not answer.
    fn before(row: NodeRow) -> (i64, Self) {
        let (facts, seen_at) = (Arc::new(row.facts), row.seen_at);
        (row.id, Self { facts, seen_at, stored_at: seen_at, online: false })
    }
}

impl Node {
    /// Asks the nodes what they are, all at once, and gives them their numbers. One that does not answer is what the store knows
    /// of it.
    pub(crate) async fn open(
        new: Vec<NewNode>,
        store: &Store,
        clock: &Clock,
    ) -> store::Result<BTreeMap<i64, Self>> {
        let expect = |new: &NewNode| (new.address.clone(), unknown(&new.address));
        // Whoever answers first, numbers follow the configuration.
        store.nodes_expect(new.iter().map(expect).collect()).await?;
        let answers = new.iter().map(|new| clock.within(FIRST_ANSWER, new.driver.describe()));
        let answers = join_all(answers).await;
        let now = clock.now();
        let known = answers.into_iter().zip(&new).map(async |(answer, new)| match answer {
            Some(Ok(facts)) => {
                let id = store.node_ensure(facts.clone(), new.address.clone(), now).await?;
                Ok(Some(Contact::at(now, id, facts)))
            }
            Some(Err(error)) => Ok(absent(&new.address, &error)),
            None => Ok(absent(&new.address, &silence())),
        });
        let known: Vec<_> = join_all(known).await.into_iter().collect::<store::Result<_>>()?;
        // Only now: one that answered may have moved here from where another is expected.
        let silent = new.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(new, _)| expect(new));
        let mut silent = store.nodes_expect(silent.collect()).await?.into_iter();
        let known = known.into_iter().map(|known| known.or_else(|| silent.next().map(Contact::before)));
        let nodes = new.into_iter().zip(known).filter_map(|(new, known)| {
            let NewNode { address, driver, faults } = new;
            let (id, contact) = known?;
            if contact.seen_at.is_some() {
                driver.expect_node(&contact.facts.name);
            }
            Some((id, Self { address, driver, faults, contact: Mutex::new(contact) }))
        });
        Ok(nodes.collect())
    }

    /// What it last told about itself.
    pub fn facts(&self) -> Arc<NodeFacts> {
        Arc::clone(&self.contact().facts)
    }

    /// The same, and does it answer? As long as it is the same `Arc`, it is the same.
    pub(crate) fn told(&self) -> (Arc<NodeFacts>, bool) {
        let contact = self.contact();
        (Arc::clone(&contact.facts), contact.online)
    }

    /// When it last answered; never, if it is none.
    pub fn seen_at(&self) -> Option<Timestamp> {
        self.contact().seen_at
    }

    /// Does it answer? Known from the last comparison, not asked now.
    pub fn is_online(&self) -> bool {
        self.contact().online
    }

    /// Asks it what it is now, for at most `limit`, and remembers that it answered or did not.
    ///
    /// # Errors
    /// Why it counts as not answering.
    pub(crate) async fn look(
        &self,
        id: i64,
        limit: Duration,
        store: &Store,
        clock: &Clock,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let answer = clock.within(limit, self.driver.describe()).await.unwrap_or_else(|| Err(silence()));
        let now = clock.now();
        match answer {
            Ok(facts) => self.answered(id, facts, store, now).await,
            Err(error) => {
                self.missed(now);
                Err(error.into())
            }
        }
    }

    async fn answered(
        &self,
        id: i64,
        facts: NodeFacts,
        store: &Store,
        now: Timestamp,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (known, seen_at, stored_at) = {
            let contact = self.contact();
            (Arc::clone(&contact.facts), contact.seen_at, contact.stored_at)
        };
        if seen_at.is_some() && facts.name != known.name {
            // Its machines are not those of this node: nobody has to wait to be sure.
            self.lost("another node answers in its place");
            return Err(format!("{} answers where {} should be", facts.name, known.name).into());
        }
        let stale = stored_at.is_none_or(|at| now.duration_since(at).unsigned_abs() >= CONTACT_KEPT);
        if stale || facts != *known {
            let is = store.node_ensure(facts.clone(), self.address.clone(), now).await?;
            if is != id {
                self.lost("it is known by another address");
                return Err(
                    format!("{} is known by another address; start the server again", facts.name).into()
                );
            }
            self.contact().stored_at = Some(now);
        }
        if seen_at.is_none() {
            self.driver.expect_node(&facts.name);
        }
        let mut contact = self.contact();
        if !contact.online {
            tracing::info!(node = %facts.name, "the node answers");
        }
        contact.seen_at = Some(now);
        contact.online = true;
        if facts != *known {
            contact.facts = Arc::new(facts);
        }
        Ok(())
    }

    fn missed(&self, now: Timestamp) {
        let seen_at = self.contact().seen_at;
        if seen_at.is_none_or(|seen| now.duration_since(seen).unsigned_abs() >= AWAY_AFTER) {
            self.lost("it does not answer any more");
        }
    }

    /// From now on it is away.
    fn lost(&self, why: &'static str) {
        let mut contact = self.contact();
        if std::mem::take(&mut contact.online) {
            tracing::warn!(node = %contact.facts.name, why, "the node is away");
        }
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().expect("nothing panics while holding it")
    }
}

/// Says so; there is no contact with it.
fn absent<T>(address: &str, error: &driver::Error) -> Option<T> {
    tracing::warn!(%error, address, "a node does not answer; the server starts without it");
    None
}

fn silence() -> driver::Error {
    driver::Error::Unreachable("no answer in time".into())
}

/// What stands in for the facts of a node that never answered. Its name says nothing about where it is.
fn unknown(address: &str) -> NodeFacts {
    NodeFacts {
        name: format!("node-{}", hex::encode(&sha256(address.as_bytes())[..4])),
        region: String::new(),
        device_id: String::new(),
        version: String::new(),
        capacity: Booking::default(),
        gpu_product: None,
        images: Vec::new(),
        own_guests: false,
    }
}
