//! A whole server inside a test: temporary store, simulated node, virtual time.
//!
//! Everything runs on the test's own thread. The store works inline and the clock follows tokio's paused time, so a run depends
//! on nothing but its seed, and an hour of waiting takes no time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use casemate_chain::Chain;
use casemate_kms::RootKeys;
use casemate_server::app::{App, Chains, LocalKeys, NewNode};
use casemate_server::auth::{Actor, Author, Scopes};
use casemate_server::clock::Clock;
use casemate_server::config::{Config, ContractKms};
use casemate_server::cvm::plan::Wish;
use casemate_server::cvm::spec::Booking;
use casemate_server::cvm::state::Cvm;
use casemate_server::driver::Driver;
use casemate_server::driver::sim::{Sim, SimConfig};
use casemate_server::error::Result;
use casemate_server::store::{Claimed, CvmFilter, Durability, Store, Work, WriterMode};
use casemate_server::workflow::operation::{Kind, Operation, StepName};
use casemate_server::workflow::update::{Outcome, Request};
use casemate_server::workflow::worker::{self, LEASE, Moment, NoProbe, Probe};
use casemate_server::workflow::{create, power, update};
use casemate_types::compose::ComposeDoc;
use casemate_types::ids::OperationId;
use casemate_types::patch::{CvmCreate, CvmPatch, CvmProvision};
use casemate_types::version::ApiVersion;
use serde_json::json;

/// A server, its one node, and somebody to act.
pub struct World {
    /// The server's parts.
    pub app: App,
    /// The node.
    pub sim: Sim,
    /// Time.
    pub clock: Clock,
    /// Who acts.
    pub actor: Actor,
    folder: tempfile::TempDir,
}

/// A compose file that runs one image.
pub fn compose(image: &str) -> String {
    format!("services:\n  web:\n    image: {image}\n")
}

impl World {
    /// A world with one ordinary node. Call it inside a runtime whose time is paused.
    pub async fn start() -> Self {
        Self::with(SimConfig::node(1), Config { dev: true, ..Config::default() }).await
    }

    /// A world with this node and these settings.
    pub async fn with(node: SimConfig, config: Config) -> Self {
        Self::build(node, config, Chains::default(), WriterMode::Inline).await
    }

    /// A world with a chain to ask, on which an app's contract decides for the key service `base`.
    pub async fn with_chain(chain: Arc<dyn Chain>) -> Self {
        Self::with_chain_and(chain, |_| ()).await
    }

    /// As [`World::with_chain`], with other settings.
    pub async fn with_chain_and(chain: Arc<dyn Chain>, change: impl FnOnce(&mut Config)) -> Self {
        Self::with_key_services([("base", 8453, chain)], change).await
    }

    /// A world with such key services, each with its slug and the id of its chain, and other settings.
    pub async fn with_key_services(
        all: impl IntoIterator<Item = (&str, u64, Arc<dyn Chain>)>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let (mut config, mut chains) = (Config { dev: true, ..Config::default() }, Chains::default());
        for (slug, chain_id, chain) in all {
            let kms = ContractKms::new(slug, chain_id, &"11".repeat(20)).expect("an address");
            config.contract_kms.push(kms);
            chains = chains.with(chain_id, chain);
        }
        change(&mut config);
        Self::build(SimConfig::node(1), config, chains, WriterMode::Inline).await
    }

    /// A world with this node, these settings, and chains that can be asked.
    pub async fn with_chains(node: SimConfig, config: Config, chains: Chains) -> Self {
        Self::build(node, config, chains, WriterMode::Inline).await
    }

    /// A world whose store commits on a thread of its own, as it does outside tests.
    pub async fn grouped() -> Self {
        Self::build(SimConfig::node(1), Config::default(), Chains::default(), WriterMode::Grouped).await
    }

    async fn build(node: SimConfig, config: Config, chains: Chains, writer: WriterMode) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let clock = Clock::manual(1);
        let store =
            Store::open(&folder.path().join("casemate.db"), Durability::None, writer).expect("a fresh store");
        let kms = Arc::new(RootKeys::generate(&[7; 64]));
        let keys = Arc::new(LocalKeys(Arc::clone(&kms)));
        let sim = Sim::new(node, clock.clone(), Some(keys), None).expect("a fresh node");
        let address = "sim:1".to_owned();
        let nodes =
            vec![NewNode { address, driver: Arc::new(sim.clone()), faults: Some(Arc::new(sim.clone())) }];
        let app = App::start_with(store, clock.clone(), kms, nodes, config, chains).await;
        let app = app.expect("a fresh server");
        let actor = actor(&app, "demo").await;
        Self { app, sim, clock, actor, folder }
    }

    /// The server's parts as a new process puts them together: it knows what the store knows.
    pub async fn restarted(&self) -> App {
        self.restarted_with(self.app.config.clone()).await
    }

    /// The same, with other settings.
    pub async fn restarted_with(&self, config: Config) -> App {
        let store =
            Store::open(&self.folder.path().join("casemate.db"), Durability::None, WriterMode::Inline)
                .expect("the store opens again");
        let address = "sim:1".to_owned();
        let (driver, faults) = (Arc::new(self.sim.clone()), Some(Arc::new(self.sim.clone()) as _));
        let nodes = vec![NewNode { address, driver, faults }];
        let kms = Arc::clone(&self.app.kms);
        let app =
            App::start_with(store, self.clock.clone(), kms, nodes, config, self.app.chains.clone()).await;
        app.expect("the server starts again")
    }

    /// Where the store is.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Somebody in another workspace.
    pub async fn stranger(&self) -> Actor {
        actor(&self.app, "other").await
    }

    /// As an author of changes.
    pub fn author(&self) -> Author {
        self.actor.author("req_test")
    }

    /// Provisions and creates a CVM that runs `image`, and waits until it does.
    pub async fn deploy(&self, name: &str, image: &str) -> Cvm {
        let cvm = self.create(name, image).await;
        self.settle().await;
        self.cvm(&cvm)
    }

    /// Provisions and creates a CVM that runs `image`; nothing has worked on it yet.
    pub async fn create(&self, name: &str, image: &str) -> Cvm {
        let document = json!({ "docker_compose_file": compose(image) });
        let document = ComposeDoc::from_value(document).expect("an object");
        let asked = CvmProvision::new(name.parse().expect("a valid name"), document);
        let prepared = create::provision(&self.app, &self.actor, asked, None).await.expect("provisioned");
        let asked = json!({ "app_id": prepared.app_id, "compose_hash": prepared.spec.compose.hash });
        let asked = CvmCreate::from_json(asked.as_object().expect("an object")).expect("valid");
        create::create(&self.app, &self.actor, self.author(), asked, None).await.expect("created").cvm
    }

    /// The CVM as it is now.
    pub fn cvm(&self, cvm: &Cvm) -> Cvm {
        self.app.store.cvm(cvm.id).expect("the CVM is there")
    }

    /// Asks for an update.
    pub async fn update(&self, cvm: &Cvm, patch: CvmPatch) -> Result<Outcome> {
        let wish = Wish { patch, ..Wish::default() };
        let request = Request {
            wish,
            kind: Kind::Update,
            if_match: None,
            author: self.author(),
            receipt: None,
            auto_commit: false,
        };
        update::accept(&self.app, self.cvm(cvm), request).await
    }

    /// Asks for an update that has to be accepted.
    pub async fn accept_update(&self, cvm: &Cvm, patch: CvmPatch) -> OperationId {
        match self.update(cvm, patch).await.expect("accepted") {
            Outcome::Accepted(accepted) => accepted.operation.id,
            Outcome::NeedsApproval(ask) => panic!("needs an approval: {ask:?}"),
        }
    }

    /// The operation as it is now.
    pub fn operation(&self, id: OperationId) -> Operation {
        self.app.store.operation(self.actor.workspace_id, id).expect("the operation is there")
    }

    /// Claims what is due, at most `limit` operations.
    pub async fn claim(&self, limit: usize) -> Vec<Work> {
        self.claimed(limit).await.work
    }

    async fn claimed(&self, limit: usize) -> Claimed {
        let now = self.clock.now();
        self.app.store.operation_claim(None, now, now + LEASE, limit).await.expect("claims")
    }

    /// Works until nothing is open any more.
    pub async fn settle(&self) {
        self.settle_with(&NoProbe).await;
    }

    /// As [`World::settle`], with a probe at every moment. A worker that dies is followed by a new process.
    pub async fn settle_with(&self, probe: &dyn Probe) {
        // Far more rounds than any run needs: a run that does not end is a failure and not a hang.
        for _ in 0..10_000 {
            let now = self.clock.now();
            let claimed = self.claimed(64).await;
            if claimed.work.is_empty() {
                let Some(due) = claimed.next else { return };
                let wait = Duration::try_from(due.duration_since(now)).unwrap_or_default();
                self.clock.sleep(wait.max(Duration::from_millis(1))).await;
            }
            for work in claimed.work {
                worker::carry(&self.app, work, probe).await;
            }
        }
        panic!("operations are still open after 10,000 rounds");
    }

    /// What is booked equals the sum over live machines, in the store and on the node.
    pub async fn assert_accounts(&self) {
        let mut sum = Booking::default();
        let filter = CvmFilter { limit: 1000, ..CvmFilter::default() };
        let (cvms, total) = self.app.store.cvms(self.actor.workspace_id, &filter).expect("reads");
        assert_eq!(cvms.len() as u64, total, "the counter of live CVMs");
        for cvm in &cvms {
            sum.vcpu += cvm.booked.vcpu;
            sum.memory_mb += cvm.booked.memory_mb;
            sum.disk_gb += cvm.booked.disk_gb;
            sum.gpus += cvm.booked.gpus;
        }
        let booked = self.app.store.nodes().expect("reads")[0].booked;
        assert_eq!(booked, sum, "booked on the node and by its CVMs");
        let machines = self.sim.inventory().await.expect("the node answers");
        assert!(machines.len() <= cvms.len(), "machines that belong to nobody: {machines:?}");
        if cvms.iter().all(|cvm| cvm.open.is_none()) && machines.len() == cvms.len() {
            assert_eq!(self.sim.used(), sum, "used on the node and booked");
        }
    }

    /// Event numbers of an operation only grow, and its last event says how it ended.
    pub fn assert_events(&self, id: OperationId) {
        let of = casemate_server::store::Of::Operation(id);
        let events = self.app.store.events(self.actor.workspace_id, of, 0, 1000).expect("reads");
        assert!(events.windows(2).all(|pair| pair[0].seq < pair[1].seq));
        let ends = events.iter().filter(|event| {
            ["operation.succeeded", "operation.failed", "operation.cancelled"].contains(&event.kind.as_str())
        });
        assert_eq!(ends.count(), 1, "one end: {events:?}");
    }
}

/// The user of a workspace, which is made if it is not there.
pub async fn actor(app: &App, slug: &str) -> Actor {
    let uids = [format!("wks_{slug}"), format!("usr_{slug}")];
    let account = app.store.workspace_ensure(slug.into(), slug.into(), uids, app.clock.now()).await;
    let account = account.expect("a workspace");
    Actor {
        workspace_id: account.workspace_id,
        user_id: account.user_id,
        key_id: 0,
        scopes: Scopes::ALL,
        default_version: ApiVersion::LATEST,
    }
}

/// A place in a workflow where a worker can be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// What the operation does.
    pub kind: Kind,
    /// The step.
    pub step: StepName,
    /// Before its call, between call and record, or after.
    pub moment: Moment,
}

/// Writes down every place that a run comes by.
#[derive(Default)]
pub struct Recorder(Mutex<Vec<Place>>);

impl Recorder {
    /// The places, in order.
    pub fn places(self) -> Vec<Place> {
        self.0.into_inner().expect("no panic while recording")
    }
}

#[async_trait]
impl Probe for Recorder {
    async fn reached(&self, operation: &Operation, step: StepName, moment: Moment) -> bool {
        self.0.lock().expect("no panic while recording").push(Place { kind: operation.kind, step, moment });
        true
    }
}

/// What happens to the worker that reaches a place first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// The process dies there; a new one starts.
    Crash,
    /// The worker stands still there until somebody else has finished everything, then goes on.
    Late,
    /// The worker stands still there until somebody else has done one step more, then goes on.
    Overtaken,
    /// Somebody stops the machine, and the worker goes on knowing nothing of it.
    Stop,
    /// Somebody deletes the CVM, and the worker goes on knowing nothing of it.
    Delete,
}

/// A worker that dies after its first step.
struct OneStep;

#[async_trait]
impl Probe for OneStep {
    async fn reached(&self, _: &Operation, _: StepName, moment: Moment) -> bool {
        moment != Moment::After
    }
}

/// Interrupts the first worker that reaches `place`.
pub struct Interrupter<'a> {
    world: &'a World,
    place: Place,
    how: Interruption,
    struck: Mutex<bool>,
}

impl<'a> Interrupter<'a> {
    /// Waits at `place`.
    pub fn new(world: &'a World, place: Place, how: Interruption) -> Self {
        Self { world, place, how, struck: Mutex::new(false) }
    }

    /// Did it interrupt anybody?
    pub fn has_struck(&self) -> bool {
        *self.struck.lock().expect("no panic while holding it")
    }
}

#[async_trait]
impl Probe for Interrupter<'_> {
    async fn reached(&self, operation: &Operation, step: StepName, moment: Moment) -> bool {
        let here = Place { kind: operation.kind, step, moment };
        let strikes = {
            let mut struck = self.struck.lock().expect("no panic while holding it");
            let strikes = !*struck && here == self.place;
            *struck |= strikes;
            strikes
        };
        if !strikes {
            return true;
        }
        match self.how {
            Interruption::Crash => {
                self.world.app.store.operation_void_leases().await.expect("a new process starts");
                false
            }
            Interruption::Late => {
                // Its lease ends, somebody else takes over and finishes; only then does it wake up.
                Box::pin(self.world.settle()).await;
                true
            }
            Interruption::Overtaken => {
                let world = self.world;
                if world.operation(operation.id).state.is_open() {
                    world.clock.sleep(LEASE).await;
                    for work in world.claim(64).await {
                        Box::pin(worker::carry(&world.app, work, &OneStep)).await;
                    }
                }
                true
            }
            Interruption::Stop => {
                if let Ok(cvm) = self.world.app.store.cvm(operation.cvm_id) {
                    power::stop(&self.world.app, cvm, self.world.author()).await.expect("a stop never waits");
                }
                true
            }
            Interruption::Delete => {
                if let Ok(cvm) = self.world.app.store.cvm(operation.cvm_id) {
                    power::delete(&self.world.app, cvm, self.world.author())
                        .await
                        .expect("a delete never waits");
                }
                true
            }
        }
    }
}
