//! What goes wrong on a host.

use rustix::process::{Pid, Signal, kill_process};

use super::fake::{CRASHES, ENDS, HANGS};
use super::*;
use crate::driver::{AfterTimeout, Guest, LastStop};

fn at(generation: u64) -> At {
    At { vm: VM, generation }
}

async fn create(rig: &FakeRig, machine: &Machine) -> Result<()> {
    rig.qemu().ensure_staged(at(1), machine).await?;
    rig.qemu().ensure_applied(at(1), machine).await?;
    rig.qemu().ensure_started(at(1)).await
}

async fn until(rig: &FakeRig, wanted: impl Fn(&Observed) -> bool) -> Observed {
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

fn is_done(seen: &Observed) -> bool {
    seen.guest == Guest::Done
}

/// Everything below a folder, without what comes and goes.
fn files(folder: &Path) -> Vec<String> {
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
async fn a_frozen_machine_is_said_not_to_answer_and_can_be_brought_down() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let process = rig.process().unwrap();
    kill_process(Pid::from_raw(process.pid()).unwrap(), Signal::STOP).unwrap();
    until(&rig, |seen| seen.guest == Guest::Booting { progress: "the guest does not answer".into() }).await;
    kill_process(Pid::from_raw(process.pid()).unwrap(), Signal::CONT).unwrap();
    until(&rig, is_done).await;
    kill_process(Pid::from_raw(process.pid()).unwrap(), Signal::STOP).unwrap();
    let how = Stop::Graceful { timeout: Duration::from_millis(300), then: AfterTimeout::Force };
    rig.qemu().ensure_stopped(at(2), how).await.unwrap();
    assert_eq!(until(&rig, |_| true).await.guest, Guest::Off);
    assert!(!process.is_alive());
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
    std::fs::create_dir(rig.machine_folder()).unwrap();
    std::fs::write(rig.machine_folder().join("data.img"), "").unwrap();
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
        rig.qemu().ensure_staged(at(2), &rig.machine(1)).await,
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
async fn what_is_missing_is_named_before_anything_is_touched() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    let before = until(&rig, is_done).await;
    let with = |compose: &str| {
        let mut machine = rig.machine(2);
        let mut document = machine.spec.compose.parsed();
        document.set_docker_compose_file(compose);
        machine.spec.compose = crate::cvm::spec::Compose::new(&document);
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
