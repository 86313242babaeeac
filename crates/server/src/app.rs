//! What handlers and workers share.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

use casemate_chain::{Chain, Evm};
use casemate_kms::RootKeys;
use casemate_types::env::EnvVar;
use casemate_types::ids::AppId;
use jiff::Timestamp;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{Config, EMBEDDED_KMS};
use crate::driver::GuestKeys;
use crate::http::streams::Streams;
use crate::http::view::Stills;
use crate::kms::Dstack;
pub use crate::node::{NewNode, Node};
use crate::store::Store;
use crate::workflow::operation::Lane;

/// The server's shared parts. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts themselves.
pub struct Parts {
    /// What is kept.
    pub store: Store,
    /// Time and chance.
    pub clock: Clock,
    /// The embedded key service.
    pub kms: Arc<RootKeys>,
    /// Where CVMs can run, by number.
    pub nodes: BTreeMap<i64, Node>,
    /// Secret of this store, for signed log URLs and commit tokens.
    pub secret: [u8; 32],
    /// What the operator decided.
    pub config: Config,
    /// Views of CVMs, as far as they do not move.
    pub stills: Stills,
    /// Public keys of apps, to seal environments for them: deriving one takes longer than answering a request.
    pub env_keys: Cache<AppId, [u8; 32]>,
    /// Answers that are still being written.
    pub streams: Streams,
    /// Key services that are not the embedded one, by slug.
    pub dstack_kms: BTreeMap<String, Dstack>,
    /// The chains that contract-owned key services are on.
    pub chains: Chains,
    /// Who has sent wrong commit tokens lately.
    pub guesses: Guesses,
    /// What only one request at a time may do.
    pub turns: Turns,
    wake: Notify,
    wake_urgent: Notify,
}

/// Bytes of keys of apps that are remembered for certain: those of 16,000.
const ENV_KEYS: usize = 2 * 1024 * 1024;

impl App {
    /// Puts the parts together: asks each node what it is and gives it its number. A node that does not answer keeps nobody
    /// from starting.
    pub async fn start(
        store: Store,
        clock: Clock,
        kms: Arc<RootKeys>,
        nodes: Vec<NewNode>,
        config: Config,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Self::start_with(store, clock, kms, nodes, config, Chains::default()).await
    }

    /// As [`App::start`], with chains that can be asked about contract-owned key services.
    pub async fn start_with(
        store: Store,
        clock: Clock,
        kms: Arc<RootKeys>,
        nodes: Vec<NewNode>,
        config: Config,
        chains: Chains,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let secret = store.setting_ensure("secret", clock.random::<32>().to_vec()).await?;
        let secret = secret.try_into().map_err(|_| "the store's secret has not 32 bytes")?;
        let nodes = Node::open(nodes, &store, &clock).await?;
        let dstack_kms = dstack_kms(&config)?;
        let parts = Parts {
            store,
            clock,
            kms,
            nodes,
            secret,
            config,
            dstack_kms,
            chains,
            stills: Stills::default(),
            env_keys: Cache::new(ENV_KEYS),
            streams: Streams::default(),
            guesses: Guesses::default(),
            turns: Turns::default(),
            wake: Notify::new(),
            wake_urgent: Notify::new(),
        };
        Ok(Self(Arc::new(parts)))
    }

    /// The node with this number, if the configuration still names it.
    pub fn node(&self, id: i64) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// There may be work in this lane.
    pub fn wake(&self, lane: Lane) {
        self.waker(lane).notify_one();
    }

    /// Ends when there may be work in this lane.
    pub fn woken(&self, lane: Lane) -> impl Future<Output = ()> + '_ {
        self.waker(lane).notified()
    }

    fn waker(&self, lane: Lane) -> &Notify {
        match lane {
            Lane::Ordinary => &self.wake,
            Lane::Urgent => &self.wake_urgent,
        }
    }
}

/// The key services that are to be asked over the network.
fn dstack_kms(config: &Config) -> Result<BTreeMap<String, Dstack>, String> {
    let on_chain = config.contract_kms.iter().filter_map(|kms| {
        let service = kms.service.as_ref()?;
        Some((kms.slug.as_str(), service, Some((kms.chain_id, kms.address()))))
    });
    let off_chain = config.kms_service.iter().map(|service| (EMBEDDED_KMS, service, None));
    let open = |(slug, service, contract): (&str, _, _)| {
        let opened = Dstack::open(service, contract);
        opened.map(|kms| (slug.to_owned(), kms)).map_err(|why| format!("key service `{slug}`: {why}"))
    };
    on_chain.chain(off_chain).map(open).collect()
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Chains that can be asked, by their id.
#[derive(Clone, Default)]
pub struct Chains(BTreeMap<u64, Arc<dyn Chain>>);

impl Chains {
    /// These, and this one.
    #[must_use]
    pub fn with(mut self, chain_id: u64, chain: Arc<dyn Chain>) -> Self {
        self.0.insert(chain_id, chain);
        self
    }

    /// The chains that are configured, asked at their nodes. Connects to nothing yet.
    pub fn open(config: &Config, clock: &Clock) -> Self {
        config.chains.iter().fold(Self::default(), |chains, chain| {
            let clock = clock.clone();
            let now = move || u64::try_from(clock.now().as_second()).unwrap_or_default();
            chains.with(chain.chain_id, Arc::new(Evm::new(chain.how_asked(), now)))
        })
    }

    /// The chain with this id.
    pub fn get(&self, chain_id: u64) -> Option<&Arc<dyn Chain>> {
        self.0.get(&chain_id)
    }
}

/// Wrong commit tokens, by the address that they came from.
#[derive(Default)]
pub struct Guesses(Mutex<HashMap<IpAddr, (Timestamp, u32)>>);

impl Guesses {
    /// Wrong tokens that an address may send in a minute.
    pub const IN_A_MINUTE: u32 = 20;
    /// Networks that are remembered. Those of earlier minutes are forgotten then; if there are too many of this minute, newer
    /// ones have no guess at all.
    const MOST: usize = 10_000;

    /// One more from this address, or from another one of its IPv6 network. False: it is one too many.
    pub fn again(&self, address: IpAddr, now: Timestamp) -> bool {
        let network = match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        };
        let over = |begun: Timestamp| now.duration_since(begun).as_secs() >= 60;
        let mut all = self.0.lock().expect("nothing panics while holding it");
        if all.len() >= Self::MOST {
            all.retain(|_, (begun, _)| !over(*begun));
        }
        if all.len() >= Self::MOST && !all.contains_key(&network) {
            return false;
        }
        let (begun, count) = all.entry(network).or_insert((now, 0));
        if over(*begun) {
            (*begun, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= Self::IN_A_MINUTE
    }
}

/// Things that only one request at a time may do, by name. Forgotten when the process ends, as the requests are.
#[derive(Clone, Default)]
pub struct Turns(Arc<Mutex<HashSet<Vec<u8>>>>);

/// Somebody's turn; it ends when this is dropped.
pub struct Turn {
    turns: Turns,
    name: Vec<u8>,
}

impl Turns {
    /// The turn at `name`, unless somebody has it.
    pub fn take(&self, name: &[u8]) -> Option<Turn> {
        let fresh = self.names().insert(name.to_vec());
        fresh.then(|| Turn { turns: self.clone(), name: name.to_vec() })
    }

    fn names(&self) -> MutexGuard<'_, HashSet<Vec<u8>>> {
        self.0.lock().expect("nothing panics while holding it")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.names().remove(&self.name);
    }
}

/// The channel by which guests on local nodes get their secrets.
pub struct LocalKeys(pub Arc<RootKeys>);

impl GuestKeys for LocalKeys {
    fn unseal(&self, app: &AppId, blob: &[u8]) -> Result<Vec<EnvVar>, String> {
        self.0.unseal_env(app, blob).map_err(|error| error.to_string())
    }

    fn env_secret(&self, app: &AppId) -> Result<Zeroizing<[u8; 32]>, String> {
        self.0.app_keys(app, None).map(|keys| keys.env_key).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_counted_by_network_and_remembered_within_bounds() {
        let (guesses, now) = (Guesses::default(), Timestamp::UNIX_EPOCH);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for last in 0..Guesses::IN_A_MINUTE {
            assert!(guesses.again(address(&format!("2001:db8:0:1::{last:x}")), now));
        }
        assert!(!guesses.again(address("2001:db8:0:1:ffff::1"), now), "the same network");
        assert!(guesses.again(address("2001:db8:0:2::1"), now));
        for one in 0..Guesses::IN_A_MINUTE {
            assert!(guesses.again(address(if one % 2 == 0 { "192.0.2.1" } else { "::ffff:192.0.2.1" }), now));
        }
        assert!(!guesses.again(address("192.0.2.1"), now), "the same address in two spellings");
        for many in 0..2 * Guesses::MOST {
            guesses.again(IpAddr::V4((many as u32).into()), now);
        }
        assert_eq!(guesses.0.lock().unwrap().len(), Guesses::MOST);
        assert!(guesses.again(address("192.0.2.7"), now + jiff::SignedDuration::from_secs(60)));
    }
}
