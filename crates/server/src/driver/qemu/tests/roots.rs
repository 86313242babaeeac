//! The disks with container images: one file for all machines, made before anything is touched, and gone when nobody needs it.

use std::os::unix::fs::MetadataExt;

use super::faults::{at, create, files, is_done, until};
use super::*;

fn disks(folder: &Path) -> Vec<PathBuf> {
    let names = files(folder).into_iter().filter(|name| name.starts_with("image-"));
    names.map(|name| folder.join(name)).collect()
}

fn links(disk: &Path) -> u64 {
    std::fs::metadata(disk).unwrap().nlink()
}

/// As if nobody had ever staged an image here.
fn forget_roots(rig: &FakeRig) {
    std::fs::remove_dir_all(rig.config.images.join("roots")).unwrap();
}

#[tokio::test]
async fn an_image_that_the_node_has_no_room_for_is_refused_while_the_old_one_runs() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    let before = until(&rig, is_done).await;
    let process = rig.process();
    rig.qemu().images().leave_room(100);
    let outcome = rig.qemu().ensure_staged(at(2), &rig.machine(2)).await;
    let expected = "image `web:2`: unpacked it has more than the 100 bytes that this node has room for";
    assert_eq!(outcome, Err(Error::Refused(expected.to_owned())));
    assert_eq!(until(&rig, is_done).await, Observed { generation: 2, ..before });
    assert_eq!(rig.process(), process);
    assert_eq!(disks(&rig.machine_folder()).len(), 1);
}

#[tokio::test]
async fn machines_share_a_disk_and_each_keeps_it_whatever_becomes_of_the_store() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    let other = At { vm: VmUuid(uuid::Uuid::from_u128(2)), generation: 1 };
    rig.qemu().ensure_staged(other, &rig.machine(1)).await.unwrap();
    rig.qemu().ensure_applied(other, &rig.machine(1)).await.unwrap();
    let disk = disks(&rig.machine_folder()).pop().unwrap();
    assert_eq!(links(&disk), 3, "two machines and the store");
    assert_eq!(std::fs::metadata(&disk).unwrap().mode() & 0o777, 0o600);
    forget_roots(&rig);
    assert_eq!(links(&disk), 2);
    rig.qemu().ensure_absent(At { generation: 2, ..other }).await.unwrap();
    assert_eq!(links(&disk), 1);
    until(&rig, is_done).await;
    rig.crash(VM);
    until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
    // One that is gone is made again, of the blobs, before the machine starts.
    rig.qemu().ensure_stopped(at(2), Stop::Force).await.unwrap();
    std::fs::remove_file(&disk).unwrap();
    rig.qemu().ensure_started(at(2)).await.unwrap();
    assert_eq!(links(&disk), 2);
}

#[tokio::test]
async fn disks_of_no_use_go_with_the_next_configuration() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    let mut seen = Vec::new();
    for generation in 2..=4 {
        let machine = rig.machine(generation);
        rig.qemu().ensure_staged(at(generation), &machine).await.unwrap();
        assert!(disks(&rig.machine_folder()).len() <= 3, "what runs, what was before, what comes");
        rig.qemu().ensure_stopped(at(generation), Stop::Force).await.unwrap();
        rig.qemu().ensure_applied(at(generation), &machine).await.unwrap();
        let there = disks(&rig.machine_folder());
        assert_eq!(there.len(), 2, "what runs and what was before: {there:?}");
        seen.extend(there);
    }
    // One that was staged and given up goes with the next that is staged, or when the node is opened.
    rig.qemu().ensure_staged(at(5), &rig.machine(5)).await.unwrap();
    rig.qemu().ensure_staged(at(6), &rig.machine(6)).await.unwrap();
    assert_eq!(disks(&rig.machine_folder()).len(), 3);
    rig.qemu().ensure_stopped(at(7), Stop::Force).await.unwrap();
    rig.open();
    let left = disks(&rig.machine_folder());
    assert_eq!(left, seen.split_off(seen.len() - 2));
    for disk in left {
        assert_eq!(links(&disk), 2);
    }
    assert_eq!(files(&rig.config.images.join("tmp")), [""; 0]);
}

#[tokio::test]
async fn a_machine_has_room_for_so_many_images() {
    let rig = rig();
    let compose = |count: usize| {
        let services: String = (0..count).map(|n| format!("  s{n}: {{image: 'web:{}'}}\n", n + 1)).collect();
        let mut machine = rig.machine(1);
        let mut document = machine.spec.compose.parsed();
        document.set_docker_compose_file(&format!("services:\n{services}"));
        machine.spec.compose = crate::cvm::spec::Compose::new(&document);
        machine
    };
    let names: Vec<String> = (1..=65).map(|number| format!("web:{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    images::tests::fill(rig.qemu().images(), &names);
    assert_eq!(
        rig.qemu().ensure_staged(at(1), &compose(65)).await,
        Err(Error::Refused(
            "its services have 65 different images, and a machine has room for 64".to_owned()
        ))
    );
    rig.qemu().ensure_staged(at(2), &compose(64)).await.unwrap();
    assert_eq!(disks(&rig.machine_folder()).len(), 64);
}

/// Changes some bytes of a file where it lies, for everybody who has it.
fn damage(disk: &Path) {
    use std::os::unix::fs::FileExt;
    std::fs::OpenOptions::new().write(true).open(disk).unwrap().write_all_at(b"damaged!", 600).unwrap();
}

fn inode(disk: &Path) -> u64 {
    std::fs::metadata(disk).unwrap().ino()
}

#[tokio::test]
async fn a_damaged_disk_is_made_again_before_a_machine_is_touched_or_started() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let disk = disks(&rig.machine_folder()).pop().unwrap();
    let root = files(&rig.config.images.join("roots")).pop().unwrap();
    let root = rig.config.images.join("roots").join(root);
    let right = std::fs::read(&disk).unwrap();
    let is_right = || std::fs::read(&disk).unwrap() == right && inode(&disk) == inode(&root);
    assert!(is_right(), "they are the same file");
    let mut last = inode(&disk);
    let mut is_new = || std::mem::replace(&mut last, inode(&disk)) != inode(&disk);

    // By itself, after it went down.
    damage(&disk);
    rig.crash(VM);
    until(&rig, |seen| seen.boot_count == 2 && is_done(seen)).await;
    assert!(is_right() && is_new());
    // Before a restart stops it.
    damage(&disk);
    let mut restarted = rig.machine(1);
    restarted.images = rig.qemu().ensure_staged(at(2), &rig.machine(1)).await.unwrap();
    assert!(is_right() && is_new());
    assert_eq!(until(&rig, is_done).await.boot_count, 2);
    // At its start.
    rig.qemu().ensure_stopped(at(2), Stop::Force).await.unwrap();
    damage(&disk);
    rig.qemu().ensure_started(at(2)).await.unwrap();
    assert!(is_right() && is_new());
    // With an update that keeps its images.
    damage(&disk);
    let update = Machine { name: "another".into(), ..restarted };
    rig.qemu().ensure_staged(at(3), &update).await.unwrap();
    assert!(is_right() && is_new());
    rig.qemu().ensure_stopped(at(3), Stop::Force).await.unwrap();
    rig.qemu().ensure_applied(at(3), &update).await.unwrap();
    rig.qemu().ensure_started(at(3)).await.unwrap();
    until(&rig, is_done).await;
    assert!(is_right() && !is_new());
    assert!(files(&rig.machine_folder()).iter().all(|name| !name.ends_with(".new")));

    // What cannot be made again is told while the machine runs.
    damage(&disk);
    std::fs::remove_dir_all(rig.config.images.join("blobs/sha256")).unwrap();
    std::fs::create_dir(rig.config.images.join("blobs/sha256")).unwrap();
    let outcome = rig.qemu().ensure_staged(at(4), &update).await;
    assert!(matches!(&outcome, Err(Error::Refused(_))), "{outcome:?}");
    assert!(is_done(&until(&rig, is_done).await) && rig.process().is_some());
}

#[tokio::test]
async fn what_is_staged_stays_in_the_store_until_the_machine_has_it_in_its_record() {
    let mut rig = rig();
    rig.config.image_keep = Duration::ZERO;
    rig.open();
    create(&rig, &rig.machine(1)).await.unwrap();
    let host = &rig.qemu().host;
    let slot = host.slot(VM);
    let prepared = stage::prepare(host, &slot, &rig.machine(2), &staging::Progress::default()).await.unwrap();
    host.store.remove(&"web:2".parse().unwrap()).unwrap();
    let (ready, using) = prepared.keep(&slot).await.unwrap();
    host.store.collect(images::Mode::Do).unwrap();
    drop(host.store.disk(&ready.images[0]).await.unwrap());
    drop(using);
    host.store.collect(images::Mode::Do).unwrap();
    assert!(host.store.disk(&ready.images[0]).await.is_err(), "nobody says that he needs it");
}

#[tokio::test]
async fn what_was_staged_and_given_up_goes_when_another_operation_begins() {
    let rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    let count = || disks(&rig.machine_folder()).len();
    for generation in [2, 12, 22] {
        rig.qemu().ensure_staged(at(generation), &rig.machine(2)).await.unwrap();
        assert_eq!(count(), 2);
        match generation {
            2 => drop(rig.qemu().ensure_staged(at(generation + 1), &rig.machine(1)).await.unwrap()),
            12 => drop(rig.qemu().ensure_stopped(at(generation + 1), Stop::Force).await.unwrap()),
            _ => rig.qemu().ensure_started(at(generation + 1)).await.unwrap(),
        }
        assert_eq!(count(), 1);
    }
}

#[tokio::test]
async fn an_emulated_machine_is_given_no_more_than_it_can_verify_in_time() {
    let mut rig = rig();
    create(&rig, &rig.machine(1)).await.unwrap();
    until(&rig, is_done).await;
    let size = std::fs::metadata(&disks(&rig.machine_folder())[0]).unwrap().len();
    for (generation, limit, is_refused) in [(2, size, false), (3, size - 1, true)] {
        rig.config.pace.emulated_images = limit;
        rig.open();
        let outcome = rig.qemu().ensure_staged(at(generation), &rig.machine(2)).await;
        let told = format!(
            "the disks of its images have {size} bytes, and without KVM a machine verifies no more than {limit} in the time that it \
             has to boot; use a host with KVM, or smaller images"
        );
        match outcome {
            Err(Error::Refused(why)) if is_refused => assert_eq!(why, told),
            Ok(_) if !is_refused => {}
            other => panic!("{other:?}"),
        }
        assert!(rig.process().is_some());
    }
    // What is in force did come up.
    rig.qemu().ensure_staged(at(4), &rig.machine(1)).await.unwrap();
}
