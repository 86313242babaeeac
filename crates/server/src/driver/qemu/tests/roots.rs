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
