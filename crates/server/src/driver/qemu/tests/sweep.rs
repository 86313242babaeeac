//! Every change of a file that a call makes is one after which nothing goes any further: the disk is full, or the server dies.
//! The places are found by counting, so a new one is covered the day it is written.

use super::super::files::faults;
use super::super::process;
use super::faults::{at, files, is_done, until};
use super::*;

/// What comes after the changes that did not take place.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// There is room again.
    Room,
    /// Another server opens the node.
    Reopened,
}

async fn update(rig: &FakeRig, generation: u64, machine: &Machine) -> Result<()> {
    rig.qemu().ensure_staged(at(generation), machine).await?;
    rig.qemu().ensure_stopped(at(generation), Stop::Force).await?;
    rig.qemu().ensure_applied(at(generation), machine).await?;
    rig.qemu().ensure_started(at(generation)).await
}

/// Lets the call fail after `left` changes. False if it did not come to that.
async fn cut_short(
    rig: &mut FakeRig,
    left: usize,
    then: Then,
    call: impl AsyncFnOnce(&FakeRig) -> Result<()>,
) -> bool {
    let folder = rig.config.folder.canonicalize().unwrap();
    faults::after(&folder, left);
    let outcome = call(rig).await;
    if let Then::Reopened = then {
        // While nothing goes: what is still under way must not go on beside the next one.
        rig.qemu = None;
        tokio::task::yield_now().await;
    }
    let struck = faults::clear(&folder);
    assert!(struck || outcome.is_ok(), "{outcome:?}");
    if let Then::Reopened = then {
        rig.open();
    }
    struck
}

fn assert_in_order(rig: &FakeRig, seen: &Observed, what: &str) {
    let machines = process::below(&rig.machine_folder());
    assert_eq!(machines.len(), 1, "{what}: {machines:?}");
    assert_eq!(rig.qemu().used(), seen.size, "{what}");
    let known = [
        "agent.sock",
        "boot.json",
        "containers.json",
        "data.img",
        "machine.json",
        "qemu.log",
        "qemu.out.log",
        "qmp.sock",
        "reserve",
        "serial.log",
    ];
    let slot = rig.qemu().host.slot(VM);
    let images = slot.lock().record.image_files();
    for name in files(&rig.machine_folder()) {
        assert!(known.contains(&name.as_str()) || images.contains(&name), "{what}: {name} is of no use");
    }
}

async fn updates(then: Then) {
    let mut rig = rig();
    update(&rig, 1, &rig.machine(1)).await.unwrap();
    for left in 0.. {
        let before = until(&rig, is_done).await;
        let what = format!("{then:?} after {left} changes");
        let generation = before.generation + 1;
        let mut machine = rig.machine(before.revision % 6 + 1);
        machine.spec.disk_gb = before.size.disk_gb + 1;
        let struck =
            cut_short(&mut rig, left, then, async |rig| update(rig, generation, &machine).await).await;
        let now = rig.qemu().observe(&[VM]).await.unwrap().pop().expect("it is there");
        let is_new = now.revision == machine.revision;
        let expected = if is_new {
            (machine.spec.compose.hash, machine.spec.booking())
        } else {
            (before.compose_hash, before.size)
        };
        assert_eq!((now.compose_hash, now.size), expected, "{what}: neither old nor new");
        update(&rig, generation, &machine).await.unwrap();
        let seen = until(&rig, |seen| is_done(seen) && seen.revision == machine.revision).await;
        assert_eq!(
            (seen.compose_hash, seen.size),
            (machine.spec.compose.hash, machine.spec.booking()),
            "{what}"
        );
        assert!((1..=2).contains(&(seen.boot_count - before.boot_count)), "{what}: {seen:?}");
        assert_in_order(&rig, &seen, &what);
        if !struck {
            assert!(left > 15, "an update makes more changes than {left}");
            return;
        }
    }
}

async fn removals(then: Then) {
    let mut rig = rig();
    let before = files(&rig.config.folder);
    for left in 0.. {
        let (first, second) = (2 * left as u64 + 1, 2 * left as u64 + 2);
        update(&rig, first, &rig.machine(1)).await.unwrap();
        until(&rig, is_done).await;
        let struck =
            cut_short(&mut rig, left, then, async |rig| rig.qemu().ensure_absent(at(second)).await).await;
        let what = format!("{then:?} after {left} changes");
        rig.qemu().ensure_absent(at(second)).await.unwrap();
        let folder = rig.config.folder.canonicalize().unwrap();
        assert_eq!(process::below(&folder), [], "{what}");
        assert_eq!(files(&folder), before, "{what}");
        assert_eq!(
            (rig.qemu().used(), rig.qemu().inventory().await.unwrap()),
            (Booking::default(), vec![]),
            "{what}"
        );
        if !struck {
            assert!(left > 3, "a removal makes more changes than {left}");
            return;
        }
    }
}

#[tokio::test]
async fn an_update_on_a_full_disk_goes_on_when_there_is_room() {
    updates(Then::Room).await;
}

#[tokio::test]
async fn an_update_whose_server_dies_is_gone_on_with() {
    updates(Then::Reopened).await;
}

#[tokio::test]
async fn a_removal_on_a_full_disk_goes_on_when_there_is_room() {
    removals(Then::Room).await;
}

#[tokio::test]
async fn a_removal_whose_server_dies_is_gone_on_with() {
    removals(Then::Reopened).await;
}
