//! A node that is at work on a stage is no node that does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use casemate_server::app::{App, NewNode};
use casemate_server::driver::sim::Sim;
use casemate_server::driver::{
    Abilities, At, Driver, Error, LogChannel, LogLine, Machine, NodeFacts, Observed, Result, Stop, Stopped,
};
use casemate_server::store::{Durability, Store, WriterMode};
use casemate_server::workflow::operation::{FailCode, State};
use casemate_testkit::World;
use casemate_types::guest::ImageRef;
use casemate_types::ids::VmUuid;
use casemate_types::patch::{CvmPatch, Sparse};
use casemate_types::wire::Sysinfo;
use jiff::Timestamp;

/// A node that pulls an image until `until`, and then is away for so many calls.
struct Pulls {
    sim: Sim,
    clock: casemate_server::clock::Clock,
    until: Timestamp,
    away: AtomicU32,
}

#[async_trait]
impl Driver for Pulls {
    fn kind(&self) -> &'static str {
        self.sim.kind()
    }
    fn abilities(&self) -> Abilities {
        self.sim.abilities()
    }
    fn boot_deadline(&self) -> Duration {
        self.sim.boot_deadline()
    }
    fn poll_interval(&self) -> Duration {
        self.sim.poll_interval()
    }
    fn expect_node(&self, name: &str) {
        self.sim.expect_node(name);
    }
    async fn describe(&self) -> Result<NodeFacts> {
        self.sim.describe().await
    }
    async fn ensure_staged(&self, at: At, machine: &Machine) -> Result<Vec<ImageRef>> {
        if self.clock.now() < self.until {
            return Err(Error::AtWork("pulls image `web:2`".into()));
        }
        let away = self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if away.is_ok() {
            return Err(Error::Unreachable("it is away".into()));
        }
        self.sim.ensure_staged(at, machine).await
    }
    async fn ensure_stopped(&self, at: At, how: Stop) -> Result<Stopped> {
        self.sim.ensure_stopped(at, how).await
    }
    async fn ensure_applied(&self, at: At, machine: &Machine) -> Result<()> {
        self.sim.ensure_applied(at, machine).await
    }
    async fn ensure_started(&self, at: At) -> Result<()> {
        self.sim.ensure_started(at).await
    }
    async fn ensure_absent(&self, at: At) -> Result<()> {
        self.sim.ensure_absent(at).await
    }
    async fn observe(&self, machines: &[VmUuid]) -> Result<Vec<Observed>> {
        self.sim.observe(machines).await
    }
    async fn inventory(&self) -> Result<Vec<Observed>> {
        self.sim.inventory().await
    }
    async fn sysinfo(&self, machine: VmUuid) -> Result<Option<Sysinfo>> {
        self.sim.sysinfo(machine).await
    }
    async fn logs(&self, machine: VmUuid, channel: &LogChannel) -> Result<Vec<LogLine>> {
        self.sim.logs(machine, channel).await
    }
}

/// The outcome of an update whose images take 20 minutes, on a node that is away for `away` calls then.
async fn updated(away: u32) -> State {
    let mut world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let (sim, clock) = (world.sim.clone(), world.clock.clone());
    let until = clock.now() + minutes(20);
    let driver = Arc::new(Pulls { sim, clock, until, away: AtomicU32::new(away) });
    let file = world.folder().join("casemate.db");
    let store = Store::open(&file, Durability::None, WriterMode::Inline).expect("a store");
    let nodes = vec![NewNode { address: "sim:1".into(), driver, faults: None }];
    let (kms, config) = (Arc::clone(&world.app.kms), world.app.config.clone());
    world.app = App::start(store, world.clock.clone(), kms, nodes, config).await.expect("it starts");

    let id = world.accept_update(&cvm, CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() }).await;
    let later = async {
        world.clock.sleep(minutes(15)).await;
        let operation = world.operation(id);
        assert!(operation.state.is_open());
        assert_eq!(operation.waiting_for.as_deref(), Some("node sim-1, which pulls image `web:2`"));
    };
    tokio::join!(later, world.settle());
    world.operation(id).state
}

#[tokio::test(start_paused = true)]
async fn images_that_take_long_are_waited_for() {
    assert!(matches!(updated(0).await, State::Succeeded { .. }));
}

#[tokio::test(start_paused = true)]
async fn the_silence_of_a_node_is_counted_from_when_it_was_last_heard() {
    assert!(matches!(updated(2).await, State::Succeeded { .. }));
    match updated(u32::MAX).await {
        State::Failed { reason, .. } => assert_eq!(reason.code, FailCode::Unreachable, "{reason:?}"),
        other => panic!("{other:?}"),
    }
}
