//! What every driver promises, as tests that any driver has to pass. A [`Rig`] is a node with a driver, and the means to let
//! things go wrong on it.

use std::time::Duration;

use async_trait::async_trait;
use casemate_types::ids::{ComposeHash, VmUuid};
use uuid::Uuid;

use super::{
    AfterTimeout, At, Driver, DynDriver, Error, Guest, LastStop, LogChannel, Machine, Observed, Result, Stop,
    Stopped,
};
use crate::clock::Clock;
use crate::cvm::spec::{Long, sha256};

/// The machine that most tests are about.
pub(super) const VM: VmUuid = VmUuid(Uuid::from_u128(1));
const OTHER: VmUuid = VmUuid(Uuid::from_u128(2));
const GRACEFUL: Stop = Stop::Graceful { timeout: Duration::from_secs(30), then: AfterTimeout::GiveUp };

/// How a guest behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// It reports that it cannot boot.
    Fails,
    /// It does not go down when it is asked.
    Hangs,
}

/// A node under test.
#[async_trait]
pub(super) trait Rig: Send + Sync {
    /// Its driver.
    fn driver(&self) -> DynDriver;
    /// Its clock.
    fn clock(&self) -> Clock;
    /// A machine that it can run, of this revision.
    fn machine(&self, revision: u64) -> Machine;
    /// A machine whose guest behaves like this.
    fn bad(&self, machine: Machine, behaviour: Behaviour) -> Machine;
    /// The machine goes down, and nobody asked.
    fn crash(&self, vm: VmUuid);
    /// The driver ends and begins again, on the node as it is. Nobody may hold on to the one before.
    async fn reopen(&mut self);
}

fn at(generation: u64) -> At {
    At { vm: VM, generation }
}

async fn seen(rig: &dyn Rig) -> Observed {
    rig.driver().observe(&[VM]).await.unwrap().pop().expect("the machine is there")
}

/// Waits until the machine is as wanted.
async fn until(rig: &dyn Rig, wanted: impl Fn(&Observed) -> bool) -> Observed {
    let limit = rig.driver().boot_deadline();
    let look = async {
        loop {
            let seen = seen(rig).await;
            if wanted(&seen) {
                return seen;
            }
            rig.clock().sleep(Duration::from_millis(20)).await;
        }
    };
    match rig.clock().within(limit, look).await {
        Some(seen) => seen,
        None => panic!("this machine never was as wanted: {:?}", seen(rig).await),
    }
}

/// Waits until machine [`VM`] is up.
pub(super) async fn until_done(rig: &dyn Rig) -> Observed {
    until(rig, is_done).await
}

fn is_done(seen: &Observed) -> bool {
    seen.guest == Guest::Done
}

async fn create(rig: &dyn Rig, generation: u64, machine: &Machine) -> Result<()> {
    let driver = rig.driver();
    driver.ensure_staged(at(generation), machine).await?;
    driver.ensure_applied(at(generation), machine).await?;
    driver.ensure_started(at(generation)).await
}

async fn update(driver: &dyn Driver, generation: u64, machine: &Machine) -> Result<()> {
    driver.ensure_staged(at(generation), machine).await?;
    driver.ensure_stopped(at(generation), GRACEFUL).await?;
    driver.ensure_applied(at(generation), machine).await?;
    driver.ensure_started(at(generation)).await
}

/// Machine [`VM`] at revision 1, of generation 1, is up.
async fn up(rig: &dyn Rig) -> Observed {
    create(rig, 1, &rig.machine(1)).await.unwrap();
    until(rig, is_done).await
}

fn refused<T: std::fmt::Debug>(outcome: Result<T>) -> String {
    match outcome {
        Err(Error::Refused(why)) => why,
        other => panic!("{other:?} instead of a refusal"),
    }
}

pub(super) async fn a_machine_runs_what_it_was_given(rig: &mut dyn Rig) {
    let (machine, driver) = (rig.machine(1), rig.driver());
    assert_eq!(driver.observe(&[VM]).await.unwrap(), []);
    let seen = up(rig).await;
    let Observed { vm, boot_count, generation, revision, compose_hash, instance_id, size, .. } = seen;
    assert_eq!((vm, boot_count, generation, revision), (VM, 1, 1, 1));
    assert_eq!((compose_hash, instance_id), (machine.spec.compose.hash, machine.instance_id));
    assert_eq!((size, &seen.image), (machine.spec.booking(), &machine.spec.image));
    assert_eq!(seen.encrypted_env_sha256, machine.spec.sealed_env_sha256());
    assert_eq!(seen.user_config_sha256, machine.spec.user_config_sha256());
    assert_eq!(seen.env_keys, ["A", "B"]);
    assert_eq!((seen.public_logs, seen.public_tcbinfo), (true, false));
    assert_eq!(seen.containers.iter().map(|one| one.service.as_str()).collect::<Vec<_>>(), ["web"]);
    assert!(seen.started_at.is_some() && seen.stopped_at.is_none() && seen.last_stop.is_none());
    assert_eq!(driver.inventory().await.unwrap().iter().map(|one| one.vm).collect::<Vec<_>>(), [VM]);
}

pub(super) async fn an_update_changes_what_it_says(rig: &mut dyn Rig) {
    up(rig).await;
    let mut machine = rig.machine(2);
    machine.spec.memory_mb += 256;
    machine.spec.disk_gb += 1;
    machine.spec.user_config = Some(Long::from("hello, \"world\""));
    update(&*rig.driver(), 2, &machine).await.unwrap();
    let seen = until(rig, is_done).await;
    assert_eq!((seen.boot_count, seen.generation, seen.revision), (2, 2, 2));
    assert_eq!(seen.compose_hash, machine.spec.compose.hash);
    assert_eq!(seen.size, machine.spec.booking());
    assert_eq!(seen.user_config_sha256, Some(sha256(b"hello, \"world\"")));
    assert_eq!(seen.last_stop, Some(LastStop::Graceful));
    assert!(seen.last_downtime_ms.is_some_and(|millis| millis < 60_000), "{seen:?}");
}

pub(super) async fn calls_of_an_older_generation_are_refused_and_change_nothing(rig: &mut dyn Rig) {
    up(rig).await;
    let driver = rig.driver();
    update(&*driver, 5, &rig.machine(2)).await.unwrap();
    let before = until(rig, is_done).await;
    let stale = Error::Stale { seen: 5 };
    assert_eq!(driver.ensure_staged(at(4), &rig.machine(3)).await, Err(stale.clone()));
    assert_eq!(driver.ensure_stopped(at(4), Stop::Force).await, Err(stale.clone()));
    assert_eq!(driver.ensure_applied(at(4), &rig.machine(3)).await, Err(stale.clone()));
    assert_eq!(driver.ensure_started(at(4)).await, Err(stale.clone()));
    assert_eq!(driver.ensure_absent(at(4)).await, Err(stale));
    assert_eq!(seen(rig).await, before);
}

pub(super) async fn a_late_worker_of_the_same_operation_changes_nothing(rig: &mut dyn Rig) {
    up(rig).await;
    let driver = rig.driver();
    update(&*driver, 2, &rig.machine(2)).await.unwrap();
    let before = until(rig, is_done).await;
    driver.ensure_staged(at(2), &rig.machine(2)).await.unwrap();
    assert_eq!(driver.ensure_stopped(at(2), Stop::Force).await, Ok(Stopped::Off));
    driver.ensure_applied(at(2), &rig.machine(2)).await.unwrap();
    driver.ensure_started(at(2)).await.unwrap();
    assert_eq!(seen(rig).await, before);
}

pub(super) async fn many_workers_at_once_do_it_once(rig: &mut dyn Rig) {
    let (driver, machine) = (rig.driver(), rig.machine(1));
    let workers = (0..4).map(|_| create(rig, 1, &machine));
    for outcome in futures_util::future::join_all(workers).await {
        outcome.unwrap();
    }
    assert_eq!(until(rig, is_done).await.boot_count, 1);
    let machine = rig.machine(2);
    let workers = (0..4).map(|_| update(&*driver, 2, &machine));
    for outcome in futures_util::future::join_all(workers).await {
        outcome.unwrap();
    }
    let seen = until(rig, is_done).await;
    assert_eq!((seen.boot_count, seen.revision), (2, 2));
}

pub(super) async fn a_call_that_nobody_waits_for_leaves_nothing_half_done(rig: &mut dyn Rig) {
    up(rig).await;
    let driver = rig.driver();
    for (round, millis) in [0_u64, 1, 3, 10, 30].into_iter().enumerate() {
        let (generation, machine) = (round as u64 + 2, rig.machine(round as u64 + 2));
        let clock = rig.clock();
        let cut_off =
            clock.within(Duration::from_millis(millis), update(&*driver, generation, &machine)).await;
        drop(cut_off);
        update(&*driver, generation, &machine).await.unwrap();
        let seen = until(rig, is_done).await;
        assert_eq!((seen.boot_count, seen.revision), (generation, generation));
    }
}

pub(super) async fn a_running_machine_gets_no_new_configuration(rig: &mut dyn Rig) {
    let before = up(rig).await;
    let driver = rig.driver();
    driver.ensure_staged(at(2), &rig.machine(2)).await.unwrap();
    let why = refused(driver.ensure_applied(at(2), &rig.machine(2)).await);
    assert!(why.contains("is on"), "{why}");
    assert_eq!(seen(rig).await, Observed { generation: 2, ..before });
}

pub(super) async fn stage_refuses_what_cannot_run_and_touches_nothing(rig: &mut dyn Rig) {
    let before = up(rig).await;
    let driver = rig.driver();
    let bad = |change: &dyn Fn(&mut Machine)| {
        let mut machine = rig.machine(2);
        change(&mut machine);
        machine
    };
    for (generation, machine, expected) in [
        (
            2,
            bad(&|machine| machine.spec.image = "nobody-has-this".into()),
            "`nobody-has-this` is not on this node",
        ),
        (3, bad(&|machine| machine.spec.vcpu = 100_000), "vCPUs do not fit"),
        (4, bad(&|machine| machine.spec.disk_gb -= 1), "cannot shrink"),
        (5, bad(&|machine| machine.spec.compose.hash = ComposeHash::from([1; 32])), "does not have the hash"),
        (6, bad(&|machine| machine.spec.gpus.count = 1), "GPUs do not fit"),
    ] {
        let why = refused(driver.ensure_staged(at(generation), &machine).await);
        assert!(why.contains(expected), "{why}");
        assert_eq!(seen(rig).await, Observed { generation, ..before.clone() });
    }
    assert_eq!(driver.ensure_staged(at(5), &rig.machine(2)).await, Err(Error::Stale { seen: 6 }));
}

pub(super) async fn a_put_back_needs_no_stage(rig: &mut dyn Rig) {
    up(rig).await;
    let driver = rig.driver();
    update(&*driver, 2, &rig.bad(rig.machine(2), Behaviour::Fails)).await.unwrap();
    let failed = until(rig, |seen| matches!(seen.guest, Guest::Failed { .. })).await;
    assert_eq!(failed.revision, 2);
    driver.ensure_stopped(at(3), Stop::Force).await.unwrap();
    driver.ensure_applied(at(3), &rig.machine(1)).await.unwrap();
    driver.ensure_started(at(3)).await.unwrap();
    let seen = until(rig, is_done).await;
    assert_eq!((seen.revision, seen.compose_hash), (1, rig.machine(1).spec.compose.hash));
}

pub(super) async fn a_guest_that_does_not_go_down_is_left_alone_or_cut_off(rig: &mut dyn Rig) {
    create(rig, 1, &rig.bad(rig.machine(1), Behaviour::Hangs)).await.unwrap();
    let before = until(rig, is_done).await;
    let driver = rig.driver();
    let asked = |then| Stop::Graceful { timeout: Duration::from_millis(300), then };
    assert_eq!(driver.ensure_stopped(at(2), asked(AfterTimeout::GiveUp)).await, Ok(Stopped::StillRunning));
    let still = seen(rig).await;
    assert_eq!((still.guest, still.boot_count), (Guest::Done, before.boot_count));
    assert_eq!(driver.ensure_stopped(at(2), asked(AfterTimeout::Force)).await, Ok(Stopped::Off));
    let off = seen(rig).await;
    assert_eq!((off.guest, off.last_stop), (Guest::Off, Some(LastStop::Forced)));
    assert_eq!(driver.ensure_stopped(at(3), GRACEFUL).await, Ok(Stopped::Off));
}

pub(super) async fn a_stop_that_a_newer_operation_overtakes_ends_as_stale(rig: &mut dyn Rig) {
    create(rig, 1, &rig.bad(rig.machine(1), Behaviour::Hangs)).await.unwrap();
    until(rig, is_done).await;
    let driver = rig.driver();
    let newer = async {
        rig.clock().sleep(Duration::from_millis(100)).await;
        driver.ensure_stopped(at(3), Stop::Force).await
    };
    let (older, newer) = tokio::join!(driver.ensure_stopped(at(2), GRACEFUL), newer);
    assert_eq!((older, newer), (Err(Error::Stale { seen: 3 }), Ok(Stopped::Off)));
}

pub(super) async fn a_machine_that_goes_down_by_itself_is_seen(rig: &mut dyn Rig) {
    up(rig).await;
    rig.crash(VM);
    let at_once =
        rig.clock().within(Duration::from_secs(1), until(rig, |seen| seen.last_stop.is_some())).await;
    let down = at_once.expect("within a second");
    assert_eq!(down.last_stop, Some(LastStop::Crashed));
    assert!(!is_done(&down) || down.boot_count > 1, "{down:?}");
    // A node that says that it starts it again does so.
    if down.comes_back {
        until(rig, |seen| is_done(seen) && seen.boot_count > down.boot_count && !seen.comes_back).await;
        rig.crash(VM);
    }
    // An operation that wants it off has the last word, however it was to go on.
    let driver = rig.driver();
    assert_eq!(driver.ensure_stopped(at(2), GRACEFUL).await, Ok(Stopped::Off));
    rig.clock().sleep(Duration::from_millis(300)).await;
    let seen = seen(rig).await;
    assert_eq!((seen.guest, seen.comes_back), (Guest::Off, false));
}

pub(super) async fn a_removed_machine_does_not_come_back_with_a_late_call(rig: &mut dyn Rig) {
    up(rig).await;
    let driver = rig.driver();
    driver.ensure_absent(at(2)).await.unwrap();
    assert_eq!(driver.observe(&[VM]).await.unwrap(), []);
    assert_eq!(driver.inventory().await.unwrap(), []);
    drop(driver);
    for round in 0..2 {
        let (driver, stale) = (rig.driver(), Err(Error::Stale { seen: 2 }));
        assert_eq!(driver.ensure_staged(at(1), &rig.machine(1)).await.map(drop), stale);
        assert_eq!(driver.ensure_applied(at(1), &rig.machine(1)).await, stale);
        assert_eq!(driver.ensure_started(at(1)).await, stale);
        driver.ensure_applied(at(2), &rig.machine(1)).await.unwrap();
        driver.ensure_started(at(2)).await.unwrap();
        driver.ensure_absent(at(2)).await.unwrap();
        assert_eq!(driver.observe(&[VM]).await.unwrap(), [], "round {round}");
        drop(driver);
        rig.reopen().await;
    }
    create(rig, 3, &rig.machine(1)).await.unwrap();
    assert_eq!(until(rig, is_done).await.boot_count, 1);
}

pub(super) async fn a_node_that_is_opened_again_has_forgotten_nothing(rig: &mut dyn Rig) {
    up(rig).await;
    let driver = rig.driver();
    update(&*driver, 2, &rig.machine(2)).await.unwrap();
    let before = until(rig, is_done).await;
    driver.ensure_staged(at(3), &rig.machine(3)).await.unwrap();
    drop(driver);
    rig.reopen().await;
    let after = until(rig, is_done).await;
    assert_eq!(after, Observed { generation: 3, ..before });
    let driver = rig.driver();
    assert_eq!(driver.ensure_stopped(at(2), Stop::Force).await, Err(Error::Stale { seen: 3 }));
    driver.ensure_stopped(at(3), GRACEFUL).await.unwrap();
    drop(driver);
    rig.reopen().await;
    assert_eq!(seen(rig).await.guest, Guest::Off);
    let driver = rig.driver();
    driver.ensure_applied(at(3), &rig.machine(3)).await.unwrap();
    driver.ensure_started(at(3)).await.unwrap();
    let seen = until(rig, is_done).await;
    assert_eq!((seen.boot_count, seen.revision), (3, 3));
}

pub(super) async fn room_is_what_the_other_machines_leave(rig: &mut dyn Rig) {
    let driver = rig.driver();
    let all = driver.describe().await.unwrap().capacity;
    let mut machine = rig.machine(1);
    machine.spec.vcpu = all.vcpu;
    driver.ensure_staged(at(1), &machine).await.unwrap();
    driver.ensure_applied(at(1), &machine).await.unwrap();
    let other = At { vm: OTHER, generation: 1 };
    let why = refused(driver.ensure_staged(other, &rig.machine(1)).await);
    assert!(why.contains("vCPUs do not fit: 0 are free"), "{why}");
    driver.ensure_absent(at(2)).await.unwrap();
    driver.ensure_staged(At { vm: OTHER, generation: 2 }, &rig.machine(1)).await.unwrap();
}

pub(super) async fn logs_go_on_from_boot_to_boot(rig: &mut dyn Rig) {
    up(rig).await;
    let driver = rig.driver();
    update(&*driver, 2, &rig.machine(2)).await.unwrap();
    until(rig, is_done).await;
    let serial = driver.logs(VM, &LogChannel::Serial).await.unwrap();
    let boots: Vec<_> = serial.iter().filter(|line| line.text.contains("boot ")).collect();
    assert!(boots.len() >= 2, "{serial:?}");
    assert!(serial.is_sorted_by_key(|line| line.at));
    let web = driver.logs(VM, &LogChannel::Container("web".into())).await.unwrap();
    assert!(!web.is_empty());
    let why = refused(driver.logs(VM, &LogChannel::Container("nobody".into())).await.map(drop));
    assert!(why.contains("no service `nobody`"), "{why}");
    let why = refused(driver.logs(OTHER, &LogChannel::Serial).await.map(drop));
    assert!(why.contains("no such machine"), "{why}");
}

/// The whole suite, on the rig that an expression makes.
macro_rules! contract {
    ($test:meta, $rig:expr, [$($name:ident),* $(,)?]) => {
        $(#[$test] async fn $name() {
            let mut rig = $rig;
            $crate::driver::contract_tests::$name(&mut rig).await;
        })*
    };
    ($test:meta, $rig:expr) => {
        $crate::driver::contract_tests::contract!($test, $rig, [
            a_machine_runs_what_it_was_given,
            an_update_changes_what_it_says,
            calls_of_an_older_generation_are_refused_and_change_nothing,
            a_late_worker_of_the_same_operation_changes_nothing,
            many_workers_at_once_do_it_once,
            a_call_that_nobody_waits_for_leaves_nothing_half_done,
            a_running_machine_gets_no_new_configuration,
            stage_refuses_what_cannot_run_and_touches_nothing,
            a_put_back_needs_no_stage,
            a_guest_that_does_not_go_down_is_left_alone_or_cut_off,
            a_stop_that_a_newer_operation_overtakes_ends_as_stale,
            a_machine_that_goes_down_by_itself_is_seen,
            a_removed_machine_does_not_come_back_with_a_late_call,
            a_node_that_is_opened_again_has_forgotten_nothing,
            room_is_what_the_other_machines_leave,
            logs_go_on_from_boot_to_boot,
        ]);
    };
}
pub(super) use contract;
