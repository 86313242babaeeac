use std::sync::Arc;
use std::time::Duration;

use casemate_types::compose::ComposeDoc;
use casemate_types::env::EnvVar;
use casemate_types::ids::{AppId, VmUuid};
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::cvm::spec::{Compose, Gpus, Spec};
use crate::driver::{AfterTimeout, Container, Guest, LastStop};

const VM: VmUuid = VmUuid(Uuid::from_u128(1));
const OTHER: VmUuid = VmUuid(Uuid::from_u128(2));
const GRACEFUL: Stop = Stop::Graceful { timeout: Duration::from_secs(60), then: AfterTimeout::GiveUp };

/// Opens environments that are sealed by writing them down: `A=1,B=2`.
pub(in crate::driver) struct OpenKeys;

impl GuestKeys for OpenKeys {
    fn unseal(&self, _: &AppId, blob: &[u8]) -> std::result::Result<Vec<EnvVar>, String> {
        let text = String::from_utf8(blob.to_vec()).map_err(|_| "wrong key".to_owned())?;
        Ok(text
            .split(',')
            .filter_map(|var| var.split_once('='))
            .map(|(key, value)| EnvVar::new(key, value))
            .collect())
    }

    fn env_secret(&self, _: &AppId) -> std::result::Result<zeroize::Zeroizing<[u8; 32]>, String> {
        Ok(zeroize::Zeroizing::new([5; 32]))
    }
}

pub(in crate::driver) fn config() -> SimConfig {
    SimConfig { boot_ms: 6000, stop_ms: 1000, call_ms: 0, ..SimConfig::node(1) }
}

fn sim() -> Sim {
    Sim::new(config(), Clock::manual(1), Some(Arc::new(OpenKeys)), None).unwrap()
}

pub(in crate::driver) fn machine(revision: u64) -> Machine {
    let document = json!({
        "name": "demo", "runner": "docker-compose", "public_logs": true, "public_tcbinfo": false,
        "docker_compose_file": format!("services:\n  web:\n    image: web:{revision}\n"),
        "allowed_envs": ["B", "A"],
    });
    let spec = Spec {
        compose: Compose::new(&ComposeDoc::from_value(document).unwrap()),
        sealed_env: Some(b"B=2,A=1,C=3".as_slice().into()),
        user_config: None,
        vcpu: 2,
        memory_mb: 4096,
        disk_gb: 40,
        gpus: Gpus::default(),
        image: "dstack-0.5.5".into(),
        instance_seed: [7; 20],
    };
    let app_id = AppId([9; 20]);
    Machine {
        name: "demo-app".into(),
        app_id,
        instance_id: spec.instance_id(&app_id),
        revision,
        spec,
        images: vec![],
    }
}

pub(in crate::driver) fn at(generation: u64) -> At {
    At { vm: VM, generation }
}

impl Sim {
    async fn update(&self, generation: u64, machine: &Machine) -> Result<()> {
        self.ensure_staged(at(generation), machine).await?;
        self.ensure_stopped(at(generation), GRACEFUL).await?;
        self.ensure_applied(at(generation), machine).await?;
        self.ensure_started(at(generation)).await
    }

    /// Creates machine [`VM`] at revision 1 in generation 1 and waits until it is up.
    async fn up(self) -> Self {
        self.ensure_staged(at(1), &machine(1)).await.unwrap();
        self.ensure_applied(at(1), &machine(1)).await.unwrap();
        self.ensure_started(at(1)).await.unwrap();
        self.sleep(6000).await;
        assert_eq!(self.seen().await.guest, Guest::Done);
        self
    }

    async fn sleep(&self, millis: u64) {
        self.0.clock.sleep(Duration::from_millis(millis)).await;
    }

    async fn seen(&self) -> Observed {
        self.observe(&[VM]).await.unwrap().pop().expect("the machine is there")
    }

    async fn failure(&self) -> String {
        match self.seen().await.guest {
            Guest::Failed { error } => error,
            other => panic!("{other:?} instead of a failed boot"),
        }
    }

    fn plan_once(&self, fault: Fault) {
        self.plan(Planned { fault, once: true, vm: None }).unwrap();
    }

    fn plan_always(&self, fault: Fault) {
        self.plan(Planned { fault, once: false, vm: None }).unwrap();
    }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T>) -> String {
    match outcome {
        Err(Error::Refused(why)) => why,
        other => panic!("{other:?} instead of a refusal"),
    }
}

fn is_unreachable<T>(outcome: &Result<T>) -> bool {
    matches!(outcome, Err(Error::Unreachable(_)))
}

// Fence and stages

#[tokio::test(start_paused = true)]
async fn every_call_of_an_older_generation_is_refused_and_changes_nothing() {
    let sim = sim().up().await;
    sim.update(5, &machine(2)).await.unwrap();
    let (before, effects) = (sim.seen().await, sim.effects(VM));
    let stale = Error::Stale { seen: 5 };
    assert_eq!(sim.ensure_staged(at(4), &machine(3)).await, Err(stale.clone()));
    assert_eq!(sim.ensure_stopped(at(4), Stop::Force).await, Err(stale.clone()));
    assert_eq!(sim.ensure_applied(at(4), &machine(3)).await, Err(stale.clone()));
    assert_eq!(sim.ensure_started(at(4)).await, Err(stale.clone()));
    assert_eq!(sim.ensure_absent(at(4)).await, Err(stale));
    assert_eq!((sim.seen().await, sim.effects(VM)), (before, effects));
}

#[tokio::test(start_paused = true)]
async fn a_late_worker_of_the_same_operation_changes_nothing() {
    let sim = sim().up().await;
    sim.update(2, &machine(2)).await.unwrap();
    let (before, effects) = (sim.seen().await, sim.effects(VM));
    sim.ensure_staged(at(2), &machine(2)).await.unwrap();
    assert_eq!(
        sim.ensure_stopped(at(2), Stop::Force).await,
        Ok(Stopped::Off),
        "it was, when the operation needed it"
    );
    sim.ensure_applied(at(2), &machine(2)).await.unwrap();
    assert_eq!((sim.seen().await, sim.effects(VM)), (before, effects));
}

#[tokio::test(start_paused = true)]
async fn every_call_may_be_repeated() {
    let sim = sim().up().await;
    for _ in 0..2 {
        sim.ensure_staged(at(2), &machine(2)).await.unwrap();
    }
    for _ in 0..2 {
        assert_eq!(sim.ensure_stopped(at(2), GRACEFUL).await, Ok(Stopped::Off));
    }
    for _ in 0..2 {
        sim.ensure_applied(at(2), &machine(2)).await.unwrap();
    }
    for _ in 0..2 {
        sim.ensure_started(at(2)).await.unwrap();
    }
    assert_eq!(sim.seen().await.boot_count, 2);
    for _ in 0..2 {
        sim.ensure_absent(at(3)).await.unwrap();
    }
    assert_eq!(sim.effects(VM), ["apply", "start", "stop", "apply", "start", "remove"]);
    assert_eq!(sim.inventory().await, Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_started_machine_that_crashed_is_not_started_again_by_a_repeated_call() {
    let sim = sim().up().await;
    sim.plan_once(Fault::Crash);
    sim.ensure_started(at(1)).await.unwrap();
    assert_eq!(sim.seen().await.guest, Guest::Exited);
    sim.ensure_started(at(2)).await.unwrap();
    assert_eq!(sim.seen().await.boot_count, 2);
}

#[tokio::test(start_paused = true)]
async fn a_removed_machine_does_not_come_back_with_a_late_call() {
    let sim = sim().up().await;
    sim.ensure_absent(at(3)).await.unwrap();
    assert_eq!(sim.ensure_applied(at(2), &machine(2)).await, Err(Error::Stale { seen: 3 }));
    sim.ensure_applied(at(3), &machine(2)).await.unwrap();
    assert_eq!(sim.inventory().await, Ok(vec![]), "within an operation, absent comes last");
    assert_eq!(sim.used(), Booking::default());
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_a_newer_operation_overtakes_ends_as_stale() {
    let sim = sim().up().await;
    sim.plan_once(Fault::StopHangs);
    let slow = tokio::spawn({
        let sim = sim.clone();
        async move { sim.ensure_stopped(at(2), GRACEFUL).await }
    });
    sim.sleep(5000).await;
    assert_eq!(sim.ensure_stopped(at(3), Stop::Force).await, Ok(Stopped::Off));
    assert_eq!(slow.await.unwrap(), Err(Error::Stale { seen: 3 }));
    assert_eq!(
        sim.history(VM).last().map(|effect| (effect.change, effect.generation)),
        Some((Change::Stop, 3))
    );
}

#[tokio::test(start_paused = true)]
async fn a_running_machine_gets_no_new_configuration() {
    let sim = sim().up().await;
    let why = refused(sim.ensure_applied(at(2), &machine(2)).await);
    assert_eq!(why, "the machine is on; it has to be off for a new configuration");
    sim.ensure_applied(at(2), &machine(1)).await.expect("this is the configuration that it has");
    assert_eq!(sim.effects(VM), ["apply", "start"]);
}

// Time

#[tokio::test(start_paused = true)]
async fn a_boot_follows_the_clock() {
    let sim = sim();
    sim.ensure_applied(at(1), &machine(1)).await.unwrap();
    assert_eq!(sim.seen().await.guest, Guest::Off);
    sim.ensure_started(at(1)).await.unwrap();
    let progress = async || match sim.seen().await.guest {
        Guest::Booting { progress } => progress,
        other => panic!("{other:?}"),
    };
    assert_eq!(progress().await, "starting the OS image");
    sim.sleep(2000).await;
    assert_eq!(progress().await, "getting keys");
    sim.sleep(3999).await;
    assert_eq!(progress().await, "starting containers");
    assert_eq!(sim.seen().await.containers, []);
    sim.sleep(1).await;
    let seen = sim.seen().await;
    assert_eq!(seen.guest, Guest::Done);
    assert_eq!(seen.containers, [Container::running("web", "web:1")]);
    assert_eq!((seen.started_at, seen.stopped_at), (Some(sim.0.clock.now() - Duration::from_secs(6)), None));
}

#[tokio::test(start_paused = true)]
async fn downtime_is_from_power_off_to_done() {
    let sim = sim().up().await;
    assert_eq!(sim.seen().await.last_downtime_ms, None);
    sim.ensure_stopped(at(2), GRACEFUL).await.unwrap();
    sim.sleep(500).await;
    sim.ensure_started(at(2)).await.unwrap();
    sim.sleep(5999).await;
    assert_eq!(sim.seen().await.last_downtime_ms, None, "not up yet");
    sim.sleep(1).await;
    assert_eq!(sim.seen().await.last_downtime_ms, Some(6500));
    sim.ensure_stopped(at(3), GRACEFUL).await.unwrap();
    let seen = sim.seen().await;
    assert_eq!((seen.last_downtime_ms, seen.last_stop), (Some(6500), Some(LastStop::Graceful)));
}

#[tokio::test(start_paused = true)]
async fn the_seed_decides_how_long_calls_take() {
    let times = async |seed| {
        let sim =
            Sim::new(SimConfig { call_ms: 50, seed, ..config() }, Clock::manual(1), None, None).unwrap();
        sim.update(1, &machine(1)).await.unwrap();
        sim.calls().iter().map(|called| called.at).collect::<Vec<_>>()
    };
    assert_eq!(times(1).await, times(1).await);
    assert_ne!(times(1).await, times(2).await);
}

// Honesty

#[tokio::test(start_paused = true)]
async fn what_is_observed_comes_from_the_bytes_on_the_node() {
    let sim = sim().up().await;
    let (asked, seen) = (machine(1), sim.seen().await);
    assert_eq!(seen.compose_hash, asked.spec.compose.hash);
    assert_eq!(seen.encrypted_env_sha256, Some(crate::cvm::spec::sha256(b"B=2,A=1,C=3")));
    assert_eq!(seen.env_keys, ["A", "B"], "C is not allowed");
    assert_eq!((seen.public_logs, seen.public_sysinfo, seen.public_tcbinfo), (true, false, false));
    assert_eq!((seen.revision, seen.generation, seen.boot_count), (1, 1, 1));
    assert!(sim.corrupt_compose(VM).unwrap());
    assert_ne!(sim.seen().await.compose_hash, asked.spec.compose.hash);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_compose_file_does_not_boot() {
    let sim = sim().up().await;
    sim.corrupt_compose(VM).unwrap();
    assert!(sim.power_cycle(VM).unwrap());
    sim.sleep(6000).await;
    assert!(sim.failure().await.contains("the compose file hashes to"));
    assert_eq!(sim.seen().await.boot_count, 2, "it counts boots that nobody asked for");

    // Damaged between stage and apply: what was staged is what comes into force.
    sim.ensure_staged(at(2), &machine(2)).await.unwrap();
    sim.ensure_stopped(at(2), GRACEFUL).await.unwrap();
    sim.corrupt_compose(VM).unwrap();
    sim.ensure_applied(at(2), &machine(2)).await.unwrap();
    assert_ne!(sim.seen().await.compose_hash, machine(2).spec.compose.hash);

    sim.update(3, &machine(2)).await.unwrap();
    sim.sleep(6000).await;
    assert_eq!(sim.seen().await.guest, Guest::Done, "a new operation brings good files");
}

#[tokio::test(start_paused = true)]
async fn a_boot_fails_with_a_reason() {
    let sim = sim().up().await;
    let mut sealed_for_others = machine(2);
    sealed_for_others.spec.sealed_env = Some([0xff].as_slice().into());
    sim.update(2, &sealed_for_others).await.unwrap();
    sim.sleep(2999).await;
    assert_eq!(sim.seen().await.guest, Guest::Booting { progress: "getting keys".into() });
    sim.sleep(1).await;
    assert_eq!(sim.failure().await, "the encrypted environment cannot be opened: wrong key");

    sim.set_facts(NodeFacts { images: vec![], ..config().facts });
    sim.ensure_stopped(at(3), GRACEFUL).await.unwrap();
    sim.ensure_started(at(3)).await.unwrap();
    sim.sleep(1000).await;
    assert_eq!(sim.failure().await, "OS image `dstack-0.5.5` is not on the node");
    assert_eq!(sim.seen().await.last_downtime_ms, None, "it was never up again");
}

#[tokio::test(start_paused = true)]
async fn stage_refuses_what_cannot_run() {
    let sim = sim().up().await;
    let mut generation = 1;
    let mut why = async |change: fn(&mut Machine)| {
        let mut wanted = machine(2);
        change(&mut wanted);
        generation += 1;
        refused(sim.ensure_staged(at(generation), &wanted).await)
    };
    assert_eq!(why(|m| m.spec.image = "dstack-9".into()).await, "image `dstack-9` is not on this node");
    assert_eq!(why(|m| m.spec.vcpu = 65).await, "65 vCPUs do not fit: 64 are free");
    assert_eq!(why(|m| m.spec.gpus.count = 1).await, "1 GPUs do not fit: 0 are free");
    assert_eq!(why(|m| m.spec.disk_gb = 39).await, "a disk of 40 GB cannot shrink to 39 GB");
    assert_eq!(
        why(|m| m.spec.image = "dstack-nvidia-0.5.5".into()).await,
        "image `dstack-nvidia-0.5.5` is only for machines with GPUs"
    );
    assert_eq!(
        why(|m| m.spec.compose.text = "{}".into()).await,
        "the compose text does not have the hash that came with it"
    );
    assert_eq!(sim.seen().await.guest, Guest::Done);
    assert_eq!(sim.effects(VM), ["apply", "start"]);
}

#[tokio::test(start_paused = true)]
async fn room_is_what_the_other_machines_leave() {
    let sim = sim().up().await;
    let mut big = machine(1);
    big.spec.vcpu = 63;
    let other = At { vm: OTHER, generation: 1 };
    assert_eq!(refused(sim.ensure_applied(other, &big).await), "63 vCPUs do not fit: 62 are free");
    big.spec.vcpu = 62;
    sim.ensure_applied(other, &big).await.unwrap();
    assert_eq!(sim.used(), Booking { vcpu: 64, memory_mb: 8192, disk_gb: 80, gpus: 0 });
    sim.ensure_absent(at(2)).await.unwrap();
    assert_eq!(sim.used(), Booking { vcpu: 62, memory_mb: 4096, disk_gb: 40, gpus: 0 });
}

#[test]
fn the_last_of_several_nodes_has_gpus() {
    let gpus =
        |count| SimConfig::nodes(count).iter().map(|node| node.facts.capacity.gpus).collect::<Vec<_>>();
    assert_eq!(gpus(1), [0]);
    assert_eq!(gpus(3), [0, 0, 8]);
    let names: Vec<_> = SimConfig::nodes(2).into_iter().map(|node| node.facts.name).collect();
    assert_eq!(names, ["sim-1", "sim-2"]);
}

#[tokio::test(start_paused = true)]
async fn logs_appear_as_their_time_comes_and_stay_after_an_update() {
    let sim = sim();
    sim.ensure_applied(at(1), &machine(1)).await.unwrap();
    sim.ensure_started(at(1)).await.unwrap();
    let texts = async |channel: LogChannel| {
        sim.logs(VM, &channel).await.unwrap().into_iter().map(|line| line.text).collect::<Vec<_>>()
    };
    let web = || LogChannel::Container("web".into());
    sim.sleep(1000).await;
    assert_eq!(
        texts(LogChannel::Serial).await,
        [
            "[    0.000000] boot 1 of demo-app, image dstack-0.5.5",
            "[    0.000000] starting the OS image",
            "[    1.000000] checking the compose file",
        ]
    );
    assert_eq!(texts(web()).await, [""; 0]);
    sim.sleep(5000).await;
    assert_eq!(texts(LogChannel::Serial).await.last().unwrap(), "[    6.000000] done: revision 1 is up");
    sim.update(2, &machine(2)).await.unwrap();
    sim.sleep(6000).await;
    assert_eq!(
        texts(web()).await,
        [
            "web: starting web:1",
            "web: ready, revision 1",
            "web: received SIGTERM, exiting",
            "web: starting web:2",
            "web: ready, revision 2",
        ]
    );
    sim.plan_once(Fault::Crash);
    assert_eq!(texts(LogChannel::Stderr).await, ["boot 2 went down, and nobody had asked for it"]);
    let unknown = sim.logs(VM, &LogChannel::Container("db".into())).await.map(|_| ());
    assert_eq!(refused(unknown), "there is no service `db` in this machine");
}

// Faults

#[tokio::test(start_paused = true)]
async fn boot_fail_strikes_the_machines_that_it_is_meant_for() {
    let sim = sim().up().await;
    sim.plan_always(Fault::BootFail { image: Some("dstack-0.5.4".into()), env: None });
    sim.plan_always(Fault::BootFail { image: None, env: Some("C".into()) });
    sim.update(2, &machine(2)).await.unwrap();
    sim.sleep(6000).await;
    assert_eq!(sim.seen().await.guest, Guest::Done, "other image; C does not reach the guest");

    let mut older = machine(3);
    older.spec.image = "dstack-0.5.4".into();
    sim.update(3, &older).await.unwrap();
    sim.sleep(6000).await;
    assert_eq!(sim.failure().await, "it was told not to boot with image `dstack-0.5.4`");

    sim.clear().unwrap();
    sim.plan_once(Fault::BootFail { image: None, env: Some("A".into()) });
    sim.update(4, &machine(4)).await.unwrap();
    sim.sleep(6000).await;
    assert_eq!(sim.failure().await, "it was told not to boot with variable `A`");
    assert_eq!(sim.faults(), [], "once");
}

#[tokio::test(start_paused = true)]
async fn refuse_strikes_stage_and_apply_only() {
    let sim = sim().up().await;
    sim.plan_always(Fault::Refuse);
    assert_eq!(refused(sim.ensure_staged(at(2), &machine(2)).await), "it was told to refuse");
    sim.ensure_stopped(at(2), GRACEFUL).await.unwrap();
    assert_eq!(refused(sim.ensure_applied(at(2), &machine(2)).await), "it was told to refuse");
    sim.ensure_started(at(2)).await.unwrap();
    assert_eq!(sim.seen().await.revision, 1);
}

#[tokio::test(start_paused = true)]
async fn unreachable_strikes_every_call_before_its_effect() {
    let sim = sim().up().await;
    sim.plan(Planned { fault: Fault::Unreachable, once: false, vm: Some(VM) }).unwrap();
    assert!(is_unreachable(&sim.ensure_stopped(at(2), Stop::Force).await));
    assert!(is_unreachable(&sim.observe(&[OTHER, VM]).await));
    assert!(sim.observe(&[OTHER]).await.is_ok(), "the fault is about one machine");
    sim.clear().unwrap();
    assert_eq!(sim.seen().await.generation, 1);
    sim.plan_once(Fault::Unreachable);
    assert!(is_unreachable(&sim.describe().await));
    assert!(sim.describe().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_slow_stop_is_forced_or_left_to_itself() {
    let sim = sim().up().await;
    sim.plan_always(Fault::SlowStop { seconds: 90 });
    let force = Stop::Graceful { timeout: Duration::from_secs(60), then: AfterTimeout::Force };
    let before = sim.0.clock.now();
    assert_eq!(sim.ensure_stopped(at(2), force).await, Ok(Stopped::Off));
    assert_eq!(between(before, sim.0.clock.now()), Duration::from_secs(60));
    assert_eq!(sim.seen().await.last_stop, Some(LastStop::Forced));

    sim.ensure_started(at(2)).await.unwrap();
    assert_eq!(sim.ensure_stopped(at(3), GRACEFUL).await, Ok(Stopped::StillRunning));
    assert_eq!(sim.seen().await.guest, Guest::Done);
    // The guest goes on shutting down, and whoever asks next waits for the rest of it only.
    assert_eq!(sim.ensure_stopped(at(4), GRACEFUL).await, Ok(Stopped::Off));
    let seen = sim.seen().await;
    assert_eq!((seen.guest, seen.last_stop), (Guest::Off, Some(LastStop::Graceful)));
    assert_eq!(between(seen.started_at.unwrap(), seen.stopped_at.unwrap()), Duration::from_secs(90));
    assert_eq!(sim.effects(VM), ["apply", "start", "stop", "start", "stop"]);
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_a_guest_that_is_shutting_down() {
    let sim = sim().up().await;
    sim.plan_once(Fault::SlowStop { seconds: 90 });
    assert_eq!(sim.ensure_stopped(at(2), GRACEFUL).await, Ok(Stopped::StillRunning));
    sim.ensure_started(at(3)).await.unwrap();
    let seen = sim.seen().await;
    assert_eq!((seen.boot_count, seen.started_at), (2, seen.stopped_at));
}

#[tokio::test(start_paused = true)]
async fn a_stop_hangs_until_somebody_cuts_the_power() {
    let sim = sim().up().await;
    sim.plan_always(Fault::StopHangs);
    assert_eq!(sim.ensure_stopped(at(2), GRACEFUL).await, Ok(Stopped::StillRunning));
    sim.sleep(3_600_000).await;
    assert_eq!(sim.seen().await.guest, Guest::Done);
    assert_eq!(sim.ensure_stopped(at(2), Stop::Force).await, Ok(Stopped::Off));
}

#[tokio::test(start_paused = true)]
async fn a_crash_happens_at_once_and_is_over() {
    let sim = sim().up().await;
    sim.plan(Planned { fault: Fault::Crash, once: false, vm: Some(OTHER) }).unwrap();
    assert_eq!(sim.seen().await.guest, Guest::Done);
    sim.plan_always(Fault::Crash);
    let seen = sim.seen().await;
    assert_eq!((seen.guest, seen.last_stop), (Guest::Exited, Some(LastStop::Crashed)));
    assert_eq!((sim.faults(), sim.effects(VM)), (vec![], vec!["apply", "start"]));
    sim.ensure_stopped(at(2), GRACEFUL).await.unwrap();
    let seen = sim.seen().await;
    assert_eq!((seen.guest, seen.last_stop), (Guest::Off, Some(LastStop::Crashed)), "now it may be off");
}

#[tokio::test(start_paused = true)]
async fn a_lie_is_found_by_looking() {
    let sim = sim().up().await;
    sim.plan_once(Fault::Lie);
    sim.update(2, &machine(2)).await.unwrap();
    let seen = sim.seen().await;
    assert_eq!((seen.revision, seen.compose_hash), (1, machine(1).spec.compose.hash));
    assert_eq!(sim.effects(VM), ["apply", "start", "stop", "start"]);
}

#[tokio::test(start_paused = true)]
async fn a_vanished_machine_can_be_made_anew() {
    let sim = sim().up().await;
    sim.plan_once(Fault::Vanish);
    assert_eq!((sim.observe(&[VM]).await, sim.used()), (Ok(vec![]), Booking::default()));
    assert_eq!(sim.ensure_applied(at(1), &machine(1)).await, Ok(()), "late, and harmless");
    assert_eq!(sim.observe(&[VM]).await, Ok(vec![]));
    assert_eq!(refused(sim.ensure_started(at(2)).await), "there is no such machine");
    sim.update(3, &machine(1)).await.unwrap();
    assert_eq!(sim.seen().await.boot_count, 1, "the old disk is gone");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_leaves_one_effect() {
    let sim = sim().up().await;
    sim.plan_always(Fault::AnswerLost);
    sim.ensure_staged(at(2), &machine(2)).await.expect("the machine was not changed");
    assert!(is_unreachable(&sim.ensure_stopped(at(2), GRACEFUL).await));
    assert_eq!(sim.ensure_stopped(at(2), GRACEFUL).await, Ok(Stopped::Off));
    assert!(is_unreachable(&sim.ensure_applied(at(2), &machine(2)).await));
    assert_eq!(sim.ensure_applied(at(2), &machine(2)).await, Ok(()));
    assert!(is_unreachable(&sim.ensure_started(at(2)).await));
    assert_eq!(sim.ensure_started(at(2)).await, Ok(()));
    assert_eq!(sim.effects(VM), ["apply", "start", "stop", "apply", "start"]);
    assert_eq!(sim.seen().await.boot_count, 2);
}

#[tokio::test(start_paused = true)]
async fn slow_delays_every_call() {
    let sim = sim().up().await;
    sim.plan_always(Fault::Slow { seconds: 10 });
    let before = sim.0.clock.now();
    sim.describe().await.unwrap();
    sim.ensure_stopped(at(2), Stop::Force).await.unwrap();
    assert_eq!(between(before, sim.0.clock.now()), Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn no_number_of_seconds_is_too_large() {
    let sim = sim().up().await;
    sim.plan_once(Fault::SlowStop { seconds: u64::MAX });
    assert_eq!(sim.ensure_stopped(at(2), GRACEFUL).await, Ok(Stopped::StillRunning));
    let patient = Stop::Graceful { timeout: Duration::MAX, then: AfterTimeout::GiveUp };
    sim.plan_once(Fault::Slow { seconds: u64::MAX });
    let waiting = sim.ensure_stopped(at(2), patient);
    assert!(tokio::time::timeout(Duration::from_secs(86_400), waiting).await.is_err());
}

/// Works on one operation until it is done or overtaken, whatever the node does.
async fn work(sim: &Sim, generation: u64, pause: impl Fn() -> Duration) {
    let (at, machine) = (at(generation), machine(generation));
    let mut stage = 0;
    while stage < 4 {
        sim.0.clock.sleep(pause()).await;
        let outcome = match stage {
            0 => sim.ensure_staged(at, &machine).await.map(drop),
            1 => sim
                .ensure_stopped(at, Stop::Graceful { timeout: pause(), then: AfterTimeout::Force })
                .await
                .map(|_| ()),
            2 => sim.ensure_applied(at, &machine).await,
            _ => sim.ensure_started(at).await,
        };
        match outcome {
            Ok(()) => stage += 1,
            Err(Error::Unreachable(_)) => {}
            Err(Error::Stale { .. }) => return,
            Err(other) => panic!("{other:?} at stage {stage}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_workers_do_the_newest_operation_wins_and_nothing_happens_twice() {
    for seed in 0..200 {
        let clock = Clock::manual(seed);
        let pause = || Duration::from_millis(u64::from(u16::from_le_bytes(clock.random())) / 16);
        let sim = Sim::new(SimConfig { call_ms: 300, seed, ..config() }, clock.clone(), None, None)
            .unwrap()
            .up()
            .await;
        for fault in
            [Fault::AnswerLost, Fault::AnswerLost, Fault::Unreachable, Fault::SlowStop { seconds: 3 }]
        {
            sim.plan_once(fault);
        }
        // Two workers, each believing to be the only one, on each of three operations.
        let workers = [2, 2, 3, 3, 4, 4].map(|generation| work(&sim, generation, pause));
        futures_util::future::join_all(workers).await;
        sim.sleep(6000).await;

        let seen = sim.seen().await;
        assert_eq!((&seen.guest, seen.revision, seen.generation), (&Guest::Done, 4, 4), "seed {seed}");
        let history = sim.history(VM);
        let (mut on, mut done) = (false, Vec::new());
        for effect in &history {
            let legal = match effect.change {
                Change::Stop => std::mem::replace(&mut on, false),
                Change::Start => !std::mem::replace(&mut on, true),
                Change::Apply => !on,
                Change::Remove => false,
            };
            let once = (effect.change.as_str(), effect.generation);
            assert!(legal && !done.contains(&once), "seed {seed}: {history:?}");
            done.push(once);
        }
        assert!(history.is_sorted_by_key(|effect| effect.revision), "seed {seed}: {history:?}");
    }
}

// Its own restart

#[tokio::test(start_paused = true)]
async fn a_node_that_is_restarted_has_forgotten_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(1);
    let open = || {
        Sim::new(config(), clock.clone(), Some(Arc::new(OpenKeys)), Some(folder.path().join("sim.json")))
            .unwrap()
    };
    let sim = open().up().await;
    sim.plan_once(Fault::SlowStop { seconds: 90 });
    assert_eq!(sim.ensure_stopped(at(2), GRACEFUL).await, Ok(Stopped::StillRunning));
    sim.plan_always(Fault::Lie);
    let (seen, faults) = (sim.seen().await, sim.faults());
    drop(sim);

    let sim = open();
    assert_eq!((sim.seen().await, sim.faults()), (seen, faults));
    assert_eq!(sim.ensure_started(at(1)).await, Err(Error::Stale { seen: 2 }));
    sim.sleep(30_000).await;
    assert_eq!(sim.seen().await.guest, Guest::Off, "the guest was shutting down");
    sim.ensure_started(at(3)).await.unwrap();
    drop(sim);

    let sim = open();
    assert!(matches!(sim.seen().await.guest, Guest::Booting { .. }));
    sim.sleep(6000).await;
    assert_eq!(sim.seen().await.guest, Guest::Done);
    assert_eq!(sim.effects(VM), ["apply", "start", "stop", "start"]);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_state_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sim.json");
    std::fs::write(&path, "{").unwrap();
    let error = Sim::new(config(), Clock::manual(1), None, Some(path)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("sim.json"), "{error}");
}

// The promises of every driver

mod contract {
    use async_trait::async_trait;

    use super::*;
    use crate::driver::DynDriver;
    use crate::driver::contract_tests::{Behaviour, Rig, contract};

    struct SimRig {
        sim: Sim,
        folder: tempfile::TempDir,
        clock: Clock,
    }

    fn open(folder: &std::path::Path, clock: &Clock) -> Sim {
        let config = SimConfig { boot_ms: 60, stop_ms: 10, ..config() };
        Sim::new(config, clock.clone(), Some(Arc::new(OpenKeys)), Some(folder.join("state.json"))).unwrap()
    }

    fn rig() -> SimRig {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(1));
        SimRig { sim: open(folder.path(), &clock), folder, clock }
    }

    #[async_trait]
    impl Rig for SimRig {
        fn driver(&self) -> DynDriver {
            Arc::new(self.sim.clone())
        }

        fn clock(&self) -> Clock {
            self.clock.clone()
        }

        fn machine(&self, revision: u64) -> Machine {
            machine(revision)
        }

        fn bad(&self, machine: Machine, behaviour: Behaviour) -> Machine {
            match behaviour {
                Behaviour::Fails => self.sim.plan_once(Fault::BootFail { image: None, env: None }),
                Behaviour::Hangs => self.sim.plan_always(Fault::StopHangs),
            }
            machine
        }

        fn crash(&self, _: VmUuid) {
            self.sim.plan_once(Fault::Crash);
        }

        async fn reopen(&mut self) {
            self.sim = open(self.folder.path(), &self.clock);
        }
    }

    contract!(tokio::test(start_paused = true), rig());
}
