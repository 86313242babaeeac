//! A node whose own disk is full. It is a small file system of this test's own, in a namespace that goes with it.

use super::faults::{at, create, is_done, until};
use super::*;
use crate::driver::{AfterTimeout, Error, Guest, Stop};

/// Tells the program to be the one that has the small file system.
const INSIDE: &str = "CASEMATE_FULL_DISK";

#[test]
fn a_full_disk_is_told_before_the_stop_and_keeps_no_machine_from_being_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let script = "mount -t tmpfs -o size=100m,mode=700 small \"$TMPDIR\" && exec \"$0\" \"$@\"";
    let output = unshare
        .args(["sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "driver::qemu::tests::full::inside", "--ignored", "--nocapture"])
        .env("TMPDIR", folder.path())
        .env(INSIDE, "yes")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

/// Takes every byte that is left.
fn fill(path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let some = vec![1; size];
        while std::io::Write::write_all(&mut &file, &some).is_ok() {}
    }
    assert_eq!(std::fs::write(path.with_extension("more"), b"more").unwrap_err().raw_os_error(), Some(28));
    std::fs::remove_file(path.with_extension("more")).unwrap();
}

fn no_room<T: std::fmt::Debug>(outcome: Result<T>) -> String {
    match outcome {
        Err(Error::NoRoom(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
#[ignore = "it is a part of another"]
async fn inside() {
    if std::env::vars().all(|(name, _)| name != INSIDE) {
        return;
    }
    let mut rig = rig();
    let (folder, full) = (rig.config.folder.canonicalize().unwrap(), std::env::temp_dir().join("full"));
    create(&rig, &rig.machine(1)).await.unwrap();
    let before = until(&rig, is_done).await;

    // Nothing begins: who wants something is told where room is wanted, and how much.
    fill(&full);
    let why = no_room(rig.qemu().ensure_staged(at(2), &rig.machine(2)).await);
    let named = format!("{} has 0 bytes left, and 33554432 are needed", folder.display());
    assert!(why.starts_with(&named), "{why}");
    assert_eq!(until(&rig, is_done).await.boot_count, before.boot_count, "it was not touched");

    // What was staged while there was room ends old or new, and goes on when there is some.
    std::fs::remove_file(&full).unwrap();
    rig.qemu().ensure_staged(at(3), &rig.machine(2)).await.unwrap();
    fill(&full);
    rig.qemu().ensure_stopped(at(3), Stop::Force).await.unwrap();
    let mut told = Vec::new();
    let applied = rig.qemu().ensure_applied(at(3), &rig.machine(2)).await;
    told.extend(applied.err());
    told.extend(rig.qemu().ensure_started(at(3)).await.err());
    assert!(!told.is_empty() && told.iter().all(|error| matches!(error, Error::NoRoom(_))), "{told:?}");
    let seen = rig.qemu().observe(&[VM]).await.unwrap().remove(0);
    assert!([1, 2].contains(&seen.revision) && !is_done(&seen), "{seen:?}");
    std::fs::remove_file(&full).unwrap();
    rig.qemu().ensure_applied(at(3), &rig.machine(2)).await.unwrap();
    rig.qemu().ensure_started(at(3)).await.unwrap();
    assert_eq!(until(&rig, is_done).await.revision, 2);

    // A machine can be stopped, again and again, and whoever looks next knows that it was.
    for generation in [4, 14, 24] {
        rig.qemu().ensure_started(at(generation)).await.unwrap();
        until(&rig, is_done).await;
        fill(&full);
        let how = Stop::Graceful { timeout: Duration::from_secs(30), then: AfterTimeout::GiveUp };
        for (generation, how) in [(generation + 1, how), (generation + 2, Stop::Force)] {
            rig.qemu().ensure_stopped(at(generation), how).await.unwrap();
            assert_eq!(rig.process(), None);
        }
        std::fs::remove_file(&full).unwrap();
        rig.open();
        let seen = rig.qemu().observe(&[VM]).await.unwrap().remove(0);
        assert_eq!((seen.generation, &seen.guest), (generation + 2, &Guest::Off));
    }
    fill(&full);
    rig.qemu().ensure_absent(at(1000)).await.unwrap();
    assert!(!rig.machine_folder().exists());
}
