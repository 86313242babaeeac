//! What the images of services mean is settled once, when they are staged.

use super::*;
use crate::driver::contract_tests::until_done;
use crate::driver::sim::tests::at;
use crate::driver::{AfterTimeout, Machine, Stop};
use casemate_types::guest::ImageRef;

/// From now on, `web:1` is another image; its digest.
fn move_tag(rig: &FakeRig, to: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    images::tests::layout(folder.path(), &[to]);
    let name = "web:1".parse().unwrap();
    rig.qemu().images().import(folder.path(), Some(&name)).unwrap().remove(0).1
}

fn web(digest: &str) -> Vec<ImageRef> {
    vec![ImageRef { reference: "web:1".into(), digest: digest.into() }]
}

/// The same content as another revision.
fn as_revision(machine: &Machine, revision: u64) -> Machine {
    let memory_mb = machine.spec.memory_mb + 16;
    Machine { revision, spec: Spec { memory_mb, ..machine.spec.clone() }, ..machine.clone() }
}

async fn down(rig: &FakeRig, generation: u64) {
    let how = Stop::Graceful { timeout: Duration::from_secs(30), then: AfterTimeout::GiveUp };
    rig.qemu().ensure_stopped(at(generation), how).await.unwrap();
}

async fn up(rig: &FakeRig, generation: u64, machine: &Machine) -> Observed {
    rig.qemu().ensure_applied(at(generation), machine).await.unwrap();
    rig.qemu().ensure_started(at(generation)).await.unwrap();
    let seen = until_done(rig).await;
    let running: Vec<_> = seen.containers.iter().filter_map(|one| one.digest.clone()).collect();
    assert_eq!(running, seen.images.iter().map(|image| image.digest.clone()).collect::<Vec<_>>());
    seen
}

#[tokio::test]
async fn what_was_staged_runs_wherever_its_tag_goes() {
    let mut rig = rig();
    let first = rig.machine(1);
    let one = rig.qemu().ensure_staged(at(1), &first).await.unwrap();
    let two = web(&move_tag(&rig, "two"));
    assert_ne!(one, two);
    assert_eq!(rig.qemu().ensure_staged(at(1), &first).await.unwrap(), one, "a repeated call says the same");
    assert_eq!(up(&rig, 1, &first).await.images, one);
    assert_eq!(rig.qemu().ensure_staged(at(1), &first).await.unwrap(), one, "also a late one");

    // A restart, told or not what was settled; also with another name, and after the node began anew.
    let settled = Machine { images: one.clone(), ..first.clone() };
    let renamed = Machine { name: "another".into(), ..settled.clone() };
    for (generation, machine) in [(2, &first), (3, &settled), (4, &renamed)] {
        assert_eq!(rig.qemu().ensure_staged(at(generation), machine).await.unwrap(), one);
        down(&rig, generation).await;
        rig.open();
        assert_eq!(up(&rig, generation, machine).await.images, one);
    }

    // A new revision looks again, once.
    let second = as_revision(&first, 2);
    assert_eq!(rig.qemu().ensure_staged(at(5), &second).await.unwrap(), two);
    let three = web(&move_tag(&rig, "three"));
    down(&rig, 5).await;
    assert_eq!(up(&rig, 5, &second).await.images, two);

    // What ran before comes back as it was, though nobody has its image any more.
    for image in &one {
        std::fs::remove_file(rig.config.images.join("blobs").join(image.digest.replace(':', "/"))).unwrap();
    }
    let back = as_revision(&settled, 3);
    assert_eq!(rig.qemu().ensure_staged(at(6), &back).await.unwrap(), one);
    down(&rig, 6).await;
    assert_eq!(up(&rig, 6, &back).await.images, one);

    // A stop that settles an update which had its images, in an operation of its own.
    let fourth = as_revision(&first, 4);
    assert_eq!(rig.qemu().ensure_staged(at(7), &fourth).await.unwrap(), three);
    move_tag(&rig, "four");
    down(&rig, 8).await;
    let settled = Machine { images: three.clone(), ..fourth };
    rig.qemu().ensure_applied(at(8), &settled).await.unwrap();
    assert_eq!(rig.qemu().observe(&[VM]).await.unwrap()[0].images, three);
}
