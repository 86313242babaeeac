//! What goes wrong on a host.

use rustix::process::{Pid, Signal, kill_process};

use super::super::process;
use super::fake::{CRASHES, ENDS, FREEZES, HANGS, MUTE, NO_PORT, SLOW, TAKES_ITS_TIME};
use super::*;
use crate::cvm::spec::Compose;
use crate::driver::{AfterTimeout, Guest, LastStop};

pub(super) fn at(generation: u64) -> At {
    At { vm: VM, generation }
}

pub(super) async fn create(rig: &FakeRig, machine: &Machine) -> Result<()> {
    rig.qemu().ensure_staged(at(1), machine).await?;
    rig.qemu().ensure_applied(at(1), machine).await?;
    rig.qemu().ensure_started(at(1)).await
}

pub(super) async fn until(rig: &FakeRig, wanted: impl Fn(&Observed) -> bool) -> Observed {
    let look = async {
        loop {
            let seen = rig.qemu().observe(&[VM]).await.unwrap().pop().expect("the machine is there");
            if wanted(&seen) {
                return seen;
            }
            rig.clock.sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = rig.clock.within(Duration::from_secs(30), look).await;
    match seen {
        Some(seen) => seen,
        None => panic!("it never was as wanted: {:?}", rig.qemu().observe(&[VM]).await),
    }
}

pub(super) fn is_done(seen: &Observed) -> bool {
    seen.guest == Guest::Done
}

/// Everything below a folder, without what comes and goes.
pub(super) fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_machine_that_dies_is_started_again_with_pauses() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    rig.crash(VM);
    let again = until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
    assert_eq!(again.last_stop, Some(LastStop::Crashed));
    let serial = rig.qemu().logs(VM, &LogChannel::Serial).await.unwrap();
    assert!(
        serial.iter().any(|line| line.text.contains("started again in 50ms, for the 1. time")),
        "{serial:?}"
    );
}

#[tokio::test]
async fn a_machine_that_always_dies_does_not_keep_the_node_busy() {
    let rig = rig();
    let mut machine = rig.machine(1);
    machine.spec.user_config = Some(Long::from(CRASHES));
    create(&rig, &machine).await.unwrap();
    until(&rig, |seen| seen.boot_count == 4).await;
    let serial = rig.qemu().logs(VM, &LogChannel::Serial).await.unwrap();
    for expected in ["again in 50ms, for the 1.", "again in 100ms, for the 2.", "again in 200ms, for the 3."]
    {
        assert!(serial.iter().any(|line| line.text.contains(expected)), "{expected}: {serial:?}");
    }
    rig.qemu().ensure_stopped(at(2), Stop::Force).await.unwrap();
    let boots = until(&rig, |seen| seen.guest == Guest::Off).await.boot_count;
    rig.clock.sleep(Duration::from_millis(500)).await;
    assert_eq!(until(&rig, |_| true).await.boot_count, boots);
}

#[tokio::test]
async fn a_machine_that_died_while_nobody_looked_is_started_again() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    rig.qemu = None;
    rig.crash(VM);
    rig.open();
    let seen = until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
    assert_eq!(seen.last_stop, Some(LastStop::Crashed));
}

#[tokio::test]
async fn machines_go_down_with_their_host_and_come_up_with_it() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    rig.qemu().shut_down(Duration::from_secs(10)).await;
    assert!(rig.process().is_none());
    rig.open();
    let again = until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
    assert_eq!(again.last_stop, Some(LastStop::Graceful));

    // One that was turned off stays so.
    rig.qemu().ensure_stopped(at(2), Stop::Force).await.unwrap();
    rig.qemu().shut_down(Duration::from_secs(10)).await;
    rig.open();
    assert!(!rig.qemu().host.slot(VM).held().unwrap().meant_on);
    assert_eq!(rig.qemu().observe(&[VM]).await.unwrap()[0].guest, Guest::Off);
}

#[tokio::test]
async fn a_machine_that_goes_on_running_is_the_same_process() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let before = rig.process().unwrap();
    rig.open();
    rig.qemu().ensure_started(at(2)).await.unwrap();
    assert_eq!(until(&rig, is_done).await.boot_count, 1);
    assert_eq!(rig.process(), Some(before));
}

#[tokio::test]
async fn a_process_that_the_record_does_not_name_yet_is_found() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let before = rig.process().unwrap();
    rig.qemu = None;
    // As a crash between making the process and writing down its number leaves it.
    let record = rig.machine_folder().join("machine.json");
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    text["held"]["on"]["process"] = serde_json::Value::Null;
    std::fs::write(&record, text.to_string()).unwrap();
    rig.open();
    until(&rig, is_done).await;
    assert_eq!(rig.qemu().host.slot(VM).process(), Some(before));
}

#[tokio::test]
async fn a_guest_that_says_nothing_is_said_not_to_answer() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    std::fs::write(rig.machine_folder().join(MUTE), "").unwrap();
    until(&rig, |seen| seen.guest == Guest::Booting { progress: "the guest does not answer".into() }).await;
    std::fs::remove_file(rig.machine_folder().join(MUTE)).unwrap();
    until(&rig, is_done).await;
}

#[tokio::test]
async fn a_machine_that_stands_still_is_known_by_its_process() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    let before = until(&rig, is_done).await;
    let process = rig.process().unwrap();
    let signal = |signal| kill_process(Pid::from_raw(process.pid()).unwrap(), signal).unwrap();
    let is_frozen = |seen: &Observed| matches!(seen.guest, Guest::Frozen { .. });
    signal(Signal::STOP);
    let frozen = until(&rig, is_frozen).await;
    // Nobody waits for it, and it is as it was.
    let how = |then| Stop::Graceful { timeout: Duration::from_secs(1200), then };
    let Guest::Frozen { since } = frozen.guest else { panic!("{frozen:?}") };
    let stop = rig.qemu().ensure_stopped(at(2), how(AfterTimeout::GiveUp));
    let left = rig.clock.within(Duration::from_secs(20), stop).await.expect("at once");
    assert_eq!(left, Ok(Stopped::Frozen { since }));
    // Another server says the same of it.
    rig.open();
    assert_eq!(until(&rig, is_frozen).await, Observed { generation: 2, ..frozen });
    signal(Signal::CONT);
    assert_eq!(until(&rig, is_done).await, Observed { generation: 2, ..before });

    signal(Signal::STOP);
    until(&rig, is_frozen).await;
    let stop = rig.qemu().ensure_stopped(at(3), how(AfterTimeout::Force));
    let cut = rig.clock.within(Duration::from_secs(20), stop).await.expect("at once");
    assert_eq!(cut, Ok(Stopped::Off));
    let off = until(&rig, |_| true).await;
    assert_eq!((off.guest, off.last_stop), (Guest::Off, Some(LastStop::Forced)));
    assert!(!process.is_alive());
}

#[tokio::test]
async fn a_host_that_goes_down_does_not_wait_for_a_machine_that_stands_still() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    kill_process(Pid::from_raw(rig.process().unwrap().pid()).unwrap(), Signal::STOP).unwrap();
    until(&rig, |seen| matches!(seen.guest, Guest::Frozen { .. })).await;
    let down = rig.qemu().shut_down(Duration::from_secs(1200));
    rig.clock.within(Duration::from_secs(20), down).await.expect("at once");
    assert!(rig.process().is_none());
    rig.open();
    assert_eq!(until(&rig, is_done).await.last_stop, Some(LastStop::Forced));
}

#[tokio::test]
async fn a_machine_that_cannot_be_started_says_why_and_can_be_put_back() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let mut machine = rig.machine(2);
    machine.spec.user_config = Some(Long::from(ENDS));
    rig.qemu().ensure_staged(at(2), &machine).await.unwrap();
    rig.qemu().ensure_stopped(at(2), Stop::Force).await.unwrap();
    rig.qemu().ensure_applied(at(2), &machine).await.unwrap();
    let outcome = rig.qemu().ensure_started(at(2)).await;
    assert!(
        matches!(&outcome, Err(Error::BootFailed(why)) if why.contains("fake: this machine cannot be made")),
        "{outcome:?}"
    );
    assert!(matches!(until(&rig, |_| true).await.guest, Guest::Failed { .. }));
    rig.qemu().ensure_stopped(at(3), Stop::Force).await.unwrap();
    rig.qemu().ensure_applied(at(3), &rig.machine(1)).await.unwrap();
    rig.qemu().ensure_started(at(3)).await.unwrap();
    assert_eq!(until(&rig, is_done).await.revision, 1);
}

#[tokio::test]
async fn a_removed_machine_leaves_no_file_and_no_process() {
    let mut rig = rig();
    let before = files(&rig.config.folder);
    let mut machine = rig.machine(1);
    machine.spec.user_config = Some(Long::from(HANGS));
    create(&rig, &machine).await.unwrap();
    until(&rig, is_done).await;
    let process = rig.process().unwrap();
    rig.qemu().ensure_absent(at(2)).await.unwrap();
    assert!(!process.is_alive());
    assert_eq!(files(&rig.config.folder), before);
    assert_eq!(rig.qemu().used(), Booking::default());
    // As a crash in the middle of it leaves it: the removal is on record, and files are still there.
    let trash = rig.machine_folder().with_extension("gone");
    std::fs::create_dir(&trash).unwrap();
    std::fs::write(trash.join("data.img"), "").unwrap();
    rig.open();
    assert_eq!(files(&rig.config.folder), before);
    assert_eq!(rig.qemu().inventory().await.unwrap(), []);
}

#[tokio::test]
async fn a_machine_whose_state_is_damaged_is_shown_and_can_be_removed_but_not_overwritten() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let process = rig.process().unwrap();
    rig.qemu = None;
    std::fs::write(rig.machine_folder().join("machine.json"), "{").unwrap();
    rig.open();
    for seen in [rig.qemu().observe(&[VM]).await.unwrap(), rig.qemu().inventory().await.unwrap()] {
        assert!(
            matches!(&seen[0].guest, Guest::Failed { error } if error.contains("cannot be read")),
            "{seen:?}"
        );
    }
    for outcome in [
        rig.qemu().ensure_staged(at(2), &rig.machine(1)).await.map(drop),
        rig.qemu().ensure_applied(at(2), &rig.machine(1)).await,
        rig.qemu().ensure_started(at(2)).await,
    ] {
        assert!(
            matches!(&outcome, Err(Error::Refused(why)) if why.contains("cannot be read")),
            "{outcome:?}"
        );
    }
    assert!(process.is_alive());
    rig.qemu().ensure_absent(at(3)).await.unwrap();
    assert!(!process.is_alive() && !rig.machine_folder().exists());
}

#[tokio::test]
async fn what_is_in_force_needs_nothing_from_outside() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    std::fs::remove_dir_all(&rig.config.images).unwrap();
    rig.qemu().ensure_staged(at(2), &rig.machine(1)).await.unwrap();
    rig.qemu().ensure_stopped(at(2), Stop::Force).await.unwrap();
    rig.qemu().ensure_started(at(2)).await.unwrap();
    until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
    // Anything else does.
    rig.qemu().ensure_staged(at(3), &rig.machine(2)).await.unwrap_err();
}

#[tokio::test]
async fn what_is_missing_is_named_before_anything_is_touched() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    let before = until(&rig, is_done).await;
    let with = |compose: &str| {
        let mut machine = rig.machine(2);
        let mut document = machine.spec.compose.parsed();
        document.set_docker_compose_file(compose);
        machine.spec.compose = Compose::new(&document);
        machine
    };
    for (generation, compose, expected) in [
        (2, "services:\n  web:\n    image: web:1\n    privileged: true\n", "`privileged` is not supported"),
        (3, "services:\n  web:\n    image: Web\n", "service `web`: `Web` is no reference of an image"),
        (4, "services:\n  web:\n    image: 127.0.0.1:1/nobody/has:this\n", "127.0.0.1:1 does not answer"),
    ] {
        let error = rig.qemu().ensure_staged(at(generation), &with(compose)).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(until(&rig, |_| true).await, Observed { generation, ..before.clone() });
    }
    for (generation, variables, expected) in
        [(5, &b"A=1,B=2,C=3"[..], "has `C`, which `allowed_envs` does not name"), (6, b"A=1", "has no `B`")]
    {
        let mut machine = rig.machine(2);
        machine.spec.sealed_env = Some(variables.into());
        let error = rig.qemu().ensure_staged(at(generation), &machine).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn secrets_are_in_no_file_and_no_argument() {
    let rig = rig();
    let machine = rig.machine(1);
    create(&rig, &machine).await.unwrap();
    until(&rig, is_done).await;
    let folder = rig.machine_folder();
    let pid = rig.process().unwrap().pid();
    let secret = hex::encode([5; 32]);
    let mut looked_at = vec![format!("/proc/{pid}/cmdline").into(), format!("/proc/{pid}/environ").into()];
    for name in files(&folder) {
        let path = folder.join(&name);
        let meta = std::fs::symlink_metadata(&path).unwrap();
        if meta.is_file() {
            assert_eq!(meta.permissions().mode() & 0o077, 0, "{name} can be read by others");
            looked_at.push(path);
        }
    }
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    for path in looked_at {
        if !path.ends_with("data.img") {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains(&secret), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn boots_wait_for_their_turn() {
    let mut rig = rig();
    rig.config.boots_at_once = 1;
    rig.open();
    let mut slow = rig.machine(1);
    // Without keys it never gets further.
    slow.spec.user_config = Some(Long::from(HANGS));
    create(&rig, &slow).await.unwrap();
    let permits = || rig.qemu().host.boots.available_permits();
    until(&rig, is_done).await;
    let back = async {
        while permits() == 0 {
            rig.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(rig.clock.within(Duration::from_secs(5), back).await.is_some(), "the permit came back");
    let other = VmUuid(uuid::Uuid::from_u128(2));
    let taken = rig.qemu().host.boots.clone().acquire_owned().await.unwrap();
    let at = At { vm: other, generation: 1 };
    rig.qemu().ensure_staged(at, &rig.machine(1)).await.unwrap();
    rig.qemu().ensure_applied(at, &rig.machine(1)).await.unwrap();
    let waits = rig.clock.within(Duration::from_millis(200), rig.qemu().ensure_started(at)).await;
    assert_eq!(waits, None);
    drop(taken);
    rig.qemu().ensure_started(at).await.unwrap();
    rig.qemu().ensure_absent(At { generation: 2, ..at }).await.unwrap();
}

async fn update(rig: &FakeRig, generation: u64, machine: &Machine) -> Result<()> {
    rig.qemu().ensure_staged(at(generation), machine).await?;
    rig.qemu().ensure_stopped(at(generation), Stop::Force).await?;
    rig.qemu().ensure_applied(at(generation), machine).await?;
    rig.qemu().ensure_started(at(generation)).await
}

fn with(mut machine: Machine, user_config: &str) -> Machine {
    machine.spec.user_config = Some(Long::from(user_config));
    machine
}

/// Changes the record of a machine that nobody has in hand.
fn tamper(rig: &FakeRig, change: impl FnOnce(&mut serde_json::Value)) {
    let record = rig.machine_folder().join("machine.json");
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    change(&mut text);
    std::fs::write(&record, text.to_string()).unwrap();
}

/// A process that is none of ours, in a folder of ours.
struct Foreign(tokio::process::Child);

impl Foreign {
    fn begin(folder: &Path) -> (Self, i32) {
        let mut sleep = tokio::process::Command::new("sleep");
        let child = sleep.arg("600").current_dir(folder).kill_on_drop(true).spawn().unwrap();
        let pid = child.id().unwrap().try_into().unwrap();
        (Self(child), pid)
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

#[tokio::test]
async fn a_machine_that_dies_at_any_step_of_an_update_ends_up_new() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    for dies_before in ["stage", "stop", "apply", "start", "observe"] {
        let before = until(&rig, is_done).await;
        let (generation, machine) = (before.generation + 1, rig.machine(before.revision % 6 + 1));
        for step in ["stage", "stop", "apply", "start", "observe"] {
            if step == dies_before
                && let Some(process) = rig.process()
            {
                process.kill().unwrap();
            }
            let outcome = match step {
                "stage" => rig.qemu().ensure_staged(at(generation), &machine).await.map(drop),
                "stop" => rig.qemu().ensure_stopped(at(generation), Stop::Force).await.map(drop),
                "apply" => rig.qemu().ensure_applied(at(generation), &machine).await,
                "start" => rig.qemu().ensure_started(at(generation)).await,
                _ => Ok(()),
            };
            assert_eq!(outcome, Ok(()), "{step} after it died before {dies_before}");
        }
        let boots = if dies_before == "observe" { 2 } else { 1 };
        let wanted = |seen: &Observed| is_done(seen) && seen.boot_count >= before.boot_count + boots;
        let seen = until(&rig, wanted).await;
        assert_eq!((seen.revision, seen.compose_hash), (machine.revision, machine.spec.compose.hash));
        assert_eq!(process::below(&rig.machine_folder()).len(), 1, "{dies_before}");
        assert_eq!(rig.qemu().used(), machine.spec.booking());
    }
}

#[tokio::test]
async fn a_hypervisor_that_stands_still_at_its_start_is_ended() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    rig.config.pace.answers = Duration::from_millis(300);
    rig.open();
    let outcome = update(&rig, 2, &with(rig.machine(2), FREEZES)).await;
    assert!(
        matches!(&outcome, Err(Error::BootFailed(why)) if why.contains("does not answer")),
        "{outcome:?}"
    );
    assert_eq!(process::below(&rig.machine_folder()), []);
    rig.config.pace.answers = Pace::default().answers;
    rig.open();
    update(&rig, 3, &rig.machine(1)).await.unwrap();
    assert_eq!(until(&rig, is_done).await.revision, 1);
}

#[tokio::test]
async fn a_guest_that_goes_down_after_everybody_gave_up_is_started_again() {
    let rig = rig();
    create(&rig, &with(rig.machine(1), SLOW)).await.unwrap();
    until(&rig, is_done).await;
    let how = Stop::Graceful { timeout: Duration::from_millis(50), then: AfterTimeout::GiveUp };
    assert_eq!(rig.qemu().ensure_stopped(at(2), how).await, Ok(Stopped::StillRunning));
    let again = until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
    assert_eq!((again.last_stop, again.revision), (Some(LastStop::Crashed), 1));
}

#[tokio::test]
async fn a_pause_before_the_next_start_outlives_the_server() {
    let mut rig = rig();
    rig.config.pace.back_off = Duration::from_secs(600);
    rig.config.pace.back_off_max = Duration::from_secs(600);
    rig.open();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    rig.crash(VM);
    assert!(until(&rig, |seen| seen.guest == Guest::Exited).await.comes_back);
    rig.config.pace.back_off = Duration::from_millis(50);
    rig.open();
    until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
}

#[tokio::test]
async fn what_keeps_a_dead_machine_down_is_waited_for() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let image = rig.config.os_images[0].join("dstack-0.5.5");
    let aside = rig.config.os_images[0].join("aside");
    std::fs::rename(&image, &aside).unwrap();
    rig.crash(VM);
    let why = |seen: &Observed| matches!(&seen.guest, Guest::Failed { error } if error.contains("not on this node"));
    assert!(until(&rig, why).await.comes_back);
    let pauses = async |text: &str| {
        let serial = rig.qemu().logs(VM, &LogChannel::Serial).await.unwrap();
        serial.iter().any(|line| line.text.contains(text))
    };
    let third = async {
        while !pauses("again in 200ms, for the 3. time").await {
            rig.clock.sleep(Duration::from_millis(10)).await;
        }
    };
    rig.clock.within(Duration::from_secs(30), third).await.expect("it is tried again and again");
    std::fs::rename(&aside, &image).unwrap();
    until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
}

#[tokio::test]
async fn after_a_restart_of_the_host_machines_come_back_and_no_other_process_is_taken_for_one() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let process = rig.process().unwrap();
    rig.qemu = None;
    process.end(Duration::from_secs(10)).unwrap();
    // The number belongs to somebody else now, who even works in the same place.
    let (mut foreign, pid) = Foreign::begin(&rig.machine_folder());
    tamper(&rig, |record| {
        let named = &mut record["held"]["on"]["process"];
        (named["pid"], named["host_boot"]) = (pid.into(), "another".into());
    });
    rig.open();
    let again = until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
    assert_eq!(again.last_stop, Some(LastStop::Crashed));
    rig.qemu = None;
    tamper(&rig, |record| record["held"]["on"]["process"]["pid"] = pid.into());
    rig.open();
    // Which is not the machine that was meant to be, and so it is in the way of the one that is.
    until(&rig, |seen| seen.boot_count == 3 && is_done(seen)).await;
    assert_eq!(process::below(&rig.machine_folder()).len(), 1);
    rig.qemu().ensure_stopped(at(2), Stop::Force).await.unwrap();
    rig.qemu().ensure_absent(at(3)).await.unwrap();
    assert!(foreign.is_alive());
}

#[tokio::test]
async fn what_a_server_had_begun_ends_with_it() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let machine = rig.process().unwrap();
    rig.qemu = None;
    // A program that is at a disk, a machine of nobody, and one whose folder is gone.
    let folder = rig.config.folder.canonicalize().unwrap();
    let nobodys = folder.join(VmUuid(uuid::Uuid::from_u128(7)).to_string());
    std::fs::create_dir(&nobodys).unwrap();
    let begin = |name: &str, word: &str, place: &Path| {
        let mut sleep = std::process::Command::new("bash");
        std::os::unix::process::CommandExt::arg0(&mut sleep, name);
        tokio::process::Command::from(sleep)
            .args(["-c", "read -t 600 <> <(:)", word])
            .current_dir(place)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let mark = String::from_utf8_lossy(command::MARK).into_owned();
    let mut begun = vec![
        begin("resize2fs", "", &rig.machine_folder()),
        begin("bash", &mark, &nobodys),
        begin("mke2fs", "", &nobodys),
    ];
    let found = async {
        while process::below(&folder).len() < 4 {
            rig.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    rig.clock.within(Duration::from_secs(5), found).await.expect("all are at work");
    std::fs::remove_dir(&nobodys).unwrap();
    rig.open();
    for child in &mut begun {
        let ended = rig.clock.within(Duration::from_secs(5), child.wait()).await;
        assert!(ended.is_some(), "{child:?} goes on");
    }
    assert_eq!(rig.process(), Some(machine), "this one is somebody's");
}

#[tokio::test]
async fn a_folder_belongs_to_one_server() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    let second = Qemu::open(rig.config.clone(), rig.clock.clone(), None);
    let why = second.err().expect("the first one has it").to_string();
    assert!(why.contains("another casemate uses it") && why.contains("qemu-1"), "{why}");
    rig.open();
    until(&rig, is_done).await;
}

#[tokio::test]
async fn a_deletion_in_the_middle_of_an_update_leaves_nothing() {
    let rig = rig();
    let (before, mut generation) = (files(&rig.config.folder), 0);
    for millis in [0, 1, 2, 5, 10, 20, 40, 80, 160] {
        let (first, second, third) = (generation + 1, generation + 2, generation + 3);
        generation = third;
        update(&rig, first, &with(rig.machine(1), HANGS)).await.unwrap();
        let mut machine = with(rig.machine(2), TAKES_ITS_TIME);
        machine.spec.disk_gb += 1;
        let deletion = async {
            rig.clock.sleep(Duration::from_millis(millis)).await;
            rig.qemu().ensure_absent(at(third)).await
        };
        let (updated, deleted) = tokio::join!(update(&rig, second, &machine), deletion);
        assert_eq!(deleted, Ok(()), "after {millis} ms");
        assert!(matches!(updated, Ok(()) | Err(Error::Stale { .. })), "after {millis} ms: {updated:?}");
        assert_eq!(files(&rig.config.folder), before, "after {millis} ms");
        assert_eq!(process::below(&rig.config.folder.canonicalize().unwrap()), [], "after {millis} ms");
        assert_eq!((rig.qemu().used(), rig.qemu().inventory().await.unwrap()), (Booking::default(), vec![]));
    }
}

#[tokio::test]
async fn a_disk_that_is_gone_is_not_replaced_by_an_empty_one() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    let before = until(&rig, is_done).await;
    std::fs::remove_file(rig.machine_folder().join("data.img")).unwrap();
    let is_gone = |outcome: Result<()>| {
        assert!(
            matches!(&outcome, Err(Error::Refused(why)) if why == "its data disk is gone"),
            "{outcome:?}"
        );
    };
    is_gone(rig.qemu().ensure_staged(at(2), &rig.machine(2)).await.map(drop));
    assert_eq!(until(&rig, |_| true).await, Observed { generation: 2, ..before }, "it was not touched");
    rig.qemu().ensure_stopped(at(3), Stop::Force).await.unwrap();
    is_gone(rig.qemu().ensure_applied(at(3), &rig.machine(2)).await);
    is_gone(rig.qemu().ensure_started(at(3)).await);
    assert!(!rig.machine_folder().join("data.img").exists());
    rig.qemu().ensure_absent(at(4)).await.unwrap();
}

#[tokio::test]
async fn a_lost_or_damaged_record_costs_no_data() {
    let mut rig = rig();
    // Such a machine was here once, and was removed.
    create(&rig, &rig.machine(1)).await.unwrap();
    rig.qemu().ensure_absent(at(2)).await.unwrap();
    update(&rig, 3, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let record = rig.machine_folder().join("machine.json");
    let (whole, process) = (std::fs::read(&record).unwrap(), rig.process().unwrap());
    for damaged in [None, Some(&b""[..]), Some(&whole[..whole.len() / 2]), Some(b"{}"), Some(b"\xff")] {
        rig.qemu = None;
        match damaged {
            None => std::fs::remove_file(&record).unwrap(),
            Some(bytes) => std::fs::write(&record, bytes).unwrap(),
        }
        rig.open();
        let seen = rig.qemu().inventory().await.unwrap().pop().expect("it is shown");
        assert!(
            matches!(&seen.guest, Guest::Failed { error } if error.contains("cannot be read")),
            "{seen:?}"
        );
        let outcome = rig.qemu().ensure_applied(at(4), &rig.machine(1)).await;
        assert!(
            matches!(&outcome, Err(Error::Refused(why)) if why.contains("cannot be read")),
            "{outcome:?}"
        );
        assert!(process.is_alive() && rig.machine_folder().join("data.img").exists(), "{damaged:?}");
    }
    rig.qemu = None;
    std::fs::write(&record, whole).unwrap();
    rig.open();
    assert_eq!(until(&rig, is_done).await.boot_count, 1);
    assert_eq!(rig.process(), Some(process), "put in order, it is as it was");
}

/// A machine that publishes ports of which none can have its own number on the host.
fn publishing(rig: &FakeRig, number: u128) -> (At, Machine) {
    let mut machine = rig.machine(1);
    let mut document = machine.spec.compose.parsed();
    document.set_docker_compose_file(
        "services:\n  web:\n    image: web:1\n    ports: ['80:80', '81:81', '82:82']\n",
    );
    machine.spec.compose = Compose::new(&document);
    (At { vm: VmUuid(uuid::Uuid::from_u128(number)), generation: 1 }, machine)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn machines_that_boot_at_once_share_no_port_and_take_none_of_anybody() {
    let mut rig = rig();
    rig.config.boots_at_once = 8;
    rig.open();
    let machines: Vec<_> = (1..=8).map(|number| publishing(&rig, number)).collect();
    let ports = async || -> Vec<u16> {
        let all = rig.qemu().inventory().await.unwrap();
        let ports: Vec<u16> = all.iter().flat_map(|seen| &seen.ports).map(|port| port.host).collect();
        let different: std::collections::BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!((ports.len(), different.len()), (24, 24), "{ports:?}");
        ports
    };
    let all_at_once = machines.iter().map(async |(at, machine)| {
        rig.qemu().ensure_staged(*at, machine).await.unwrap();
        rig.qemu().ensure_applied(*at, machine).await.unwrap();
        rig.qemu().ensure_started(*at).await.unwrap();
    });
    futures_util::future::join_all(all_at_once).await;
    let before = ports().await;
    let next = |at: At| At { generation: 2, ..at };
    for (at, _) in &machines {
        rig.qemu().ensure_stopped(next(*at), Stop::Force).await.unwrap();
    }
    // Meanwhile somebody listens on one port of each.
    let listen = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).unwrap();
    let others: Vec<_> = before.iter().step_by(3).map(listen).collect();
    let all_at_once =
        machines.iter().map(async |(at, _)| rig.qemu().ensure_started(next(*at)).await.unwrap());
    futures_util::future::join_all(all_at_once).await;
    let now = ports().await;
    for other in &others {
        let port = other.local_addr().unwrap().port();
        assert!(!now.contains(&port), "{port} is somebody else's: {now:?}");
    }
    let kept = before.iter().filter(|port| now.contains(port)).count();
    assert_eq!(kept, 16, "what nobody took stays: {before:?}, {now:?}");
}

#[tokio::test]
async fn a_port_that_is_taken_at_the_last_moment_is_replaced() {
    let rig = rig();
    let taken = rig.config.folder.join(NO_PORT);
    std::fs::write(&taken, "").unwrap();
    create(&rig, &rig.machine(1)).await.unwrap();
    let seen = until(&rig, is_done).await;
    assert_eq!(seen.boot_count, 1, "one boot, whatever it took");
    assert!(!taken.exists());
    let errors = rig.qemu().logs(VM, &LogChannel::Stderr).await.unwrap();
    let said = |line: &LogLine| line.text.contains("Could not set up host forwarding rule");
    assert!(errors.iter().any(said), "{errors:?}");
}

#[tokio::test]
async fn an_image_that_is_being_fetched_keeps_no_other_machine_waiting() {
    let rig = rig();
    // It takes the question and says nothing.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut machine = rig.machine(1);
    let mut document = machine.spec.compose.parsed();
    let image = format!("{}/web:1", registry.local_addr().unwrap());
    document.set_docker_compose_file(&format!("services:\n  web:\n    image: {image}\n"));
    machine.spec.compose = Compose::new(&document);
    let other = At { vm: VmUuid(uuid::Uuid::from_u128(2)), generation: 1 };
    let qemu = rig.qemu().clone();
    let stage = tokio::spawn(async move { qemu.ensure_staged(other, &machine).await });
    let asked = tokio::task::spawn_blocking(move || registry.accept().map(|(stream, _)| (stream, registry)));
    let asked = rig.clock.within(Duration::from_secs(30), asked).await.expect("it is asked");
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    update(&rig, 2, &rig.machine(2)).await.unwrap();
    until(&rig, |seen| is_done(seen) && seen.revision == 2).await;
    assert!(!stage.is_finished(), "it is still being fetched");
    drop(asked);
    stage.abort();
}

#[tokio::test]
async fn no_more_machines_boot_at_once_than_there_are_places() {
    let mut rig = rig();
    rig.config.boots_at_once = 2;
    rig.open();
    let machine = with(rig.machine(1), TAKES_ITS_TIME);
    let all: Vec<VmUuid> = (1..=6).map(|number| VmUuid(uuid::Uuid::from_u128(number))).collect();
    for &vm in &all {
        let at = At { vm, generation: 1 };
        rig.qemu().ensure_staged(at, &machine).await.unwrap();
        rig.qemu().ensure_applied(at, &machine).await.unwrap();
    }
    let starts = all.iter().map(|&vm| rig.qemu().ensure_started(At { vm, generation: 1 }));
    let mut most = 0;
    let watch = async {
        loop {
            let slots = rig.qemu().host.all();
            let held: Vec<_> = slots.iter().filter_map(|slot| slot.held()).collect();
            let booting = held.iter().filter(|held| held.on.is_some() && held.done_at.is_none()).count();
            most = most.max(booting);
            if held.iter().all(|held| held.done_at.is_some()) {
                return;
            }
            rig.clock.sleep(Duration::from_millis(2)).await;
        }
    };
    let (started, watched) = tokio::join!(
        futures_util::future::join_all(starts),
        rig.clock.within(Duration::from_secs(30), watch)
    );
    assert!(started.into_iter().all(|outcome| outcome.is_ok()) && watched.is_some());
    assert_eq!(most, 2);
    let processes: std::collections::BTreeSet<_> =
        rig.qemu().host.all().iter().filter_map(|slot| slot.process()).map(|one| one.pid()).collect();
    assert_eq!(processes.len(), 6);
}

#[tokio::test]
async fn links_in_a_machines_folder_lead_nowhere() {
    let rig = rig();
    let outside = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        let target = outside.path().join(name);
        std::fs::write(&target, "untouched").unwrap();
        let _ = std::fs::remove_file(rig.machine_folder().join(name));
        std::os::unix::fs::symlink(&target, rig.machine_folder().join(name)).unwrap();
    };
    rig.qemu().ensure_staged(at(1), &rig.machine(1)).await.unwrap();
    let mut generation = 1;
    for (name, applies, says) in [
        ("machine.json.new", false, "symbolic link"),
        ("data.img.new", false, "symbolic link"),
        ("boot.json.new", true, "symbolic link"),
        ("serial.log", true, "symbolic link"),
        ("qemu.log", true, "symbolic link"),
        ("qemu.out.log", true, "symbolic link"),
        ("data.img", true, "its data disk is gone"),
    ] {
        generation += 1;
        if applies {
            update(&rig, generation, &rig.machine(1)).await.unwrap();
            until(&rig, is_done).await;
            rig.qemu().ensure_stopped(at(generation + 1), Stop::Force).await.unwrap();
        } else {
            rig.qemu().ensure_staged(at(generation), &rig.machine(1)).await.unwrap();
        }
        generation += 2;
        link(name);
        let outcome = match applies {
            true => rig.qemu().ensure_started(at(generation)).await,
            false => rig.qemu().ensure_applied(at(generation), &rig.machine(1)).await,
        };
        let why = outcome.expect_err(name).to_string();
        assert!(why.contains(says), "{name}: {why}");
        assert_eq!(std::fs::read(outside.path().join(name)).unwrap(), b"untouched", "{name}");
        let _ = std::fs::remove_file(rig.machine_folder().join(name));
        assert_eq!(process::below(&rig.machine_folder()), [], "{name}");
    }
    // Nor is a folder that is a link one of ours.
    rig.qemu().ensure_absent(at(generation + 1)).await.unwrap();
    let other = VmUuid(uuid::Uuid::from_u128(9));
    std::os::unix::fs::symlink(outside.path(), rig.config.folder.join(other.to_string())).unwrap();
    let at = At { vm: other, generation: 1 };
    let before = files(outside.path());
    assert!(rig.qemu().ensure_staged(at, &rig.machine(1)).await.is_err());
    rig.qemu().ensure_absent(At { generation: 2, ..at }).await.unwrap();
    assert_eq!(files(outside.path()), before);
    assert!(std::fs::symlink_metadata(rig.config.folder.join(other.to_string())).is_err());
}

#[tokio::test]
async fn what_users_choose_is_in_no_argument() {
    let rig = rig();
    let mut machine = with(rig.machine(1), "chosen,file=/etc/passwd");
    machine.name = "chosen $(touch chosen) `chosen`,chosen=on".into();
    create(&rig, &machine).await.unwrap();
    until(&rig, is_done).await;
    let pid = rig.process().unwrap().pid();
    // The program that stands in for the hypervisor keeps the words of its command line there.
    let words = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let words = String::from_utf8_lossy(&words);
    assert!(words.contains("-nodefaults") && !words.contains("chosen"), "{words}");
    assert!(!rig.machine_folder().join("chosen").exists());
}
