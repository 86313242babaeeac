//! What goes wrong, with QEMU itself; and what a real machine can reach, and leaves behind.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit, setrlimit};

use super::super::process;
use super::faults::{at, files};
use super::vm_real::{RealRig, get, served};
use super::*;
use crate::cvm::spec::Compose;
use crate::driver::{AfterTimeout, Guest};

async fn start(rig: &RealRig, machine: &Machine) -> Observed {
    rig.0.qemu().ensure_staged(at(1), machine).await.unwrap();
    rig.0.qemu().ensure_applied(at(1), machine).await.unwrap();
    rig.0.qemu().ensure_started(at(1)).await.unwrap();
    rig.done().await
}

async fn update(qemu: Qemu, generation: u64, machine: Machine) -> Result<()> {
    let how = Stop::Graceful { timeout: Duration::from_secs(30), then: AfterTimeout::GiveUp };
    qemu.ensure_staged(at(generation), &machine).await?;
    qemu.ensure_stopped(at(generation), how).await?;
    qemu.ensure_applied(at(generation), &machine).await?;
    qemu.ensure_started(at(generation)).await
}

/// The server is killed so many milliseconds into an update, as a runtime that goes with all that it was doing; another one goes
/// on. Then the machine itself is, while it is being brought down, and while it boots.
#[test]
fn an_update_survives_kills_of_the_server_and_of_the_machine() {
    let new = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runtime = new();
    let mut rig = {
        let _inside = runtime.enter();
        RealRig::new()
    };
    runtime.block_on(start(&rig, &rig.machine(1)));
    let mut boots = 1;
    for (generation, millis) in [(2, 30), (3, 200), (4, 900)] {
        let machine = rig.machine(generation);
        let clock = rig.0.clock.clone();
        let qemu = rig.0.qemu().clone();
        runtime
            .block_on(clock.within(Duration::from_millis(millis), update(qemu, generation, machine.clone())));
        rig.0.qemu = None;
        runtime.shutdown_timeout(Duration::from_secs(10));
        runtime = new();
        let _inside = runtime.enter();
        rig.open();
        let qemu = rig.0.qemu().clone();
        runtime.block_on(async {
            update(qemu, generation, machine.clone()).await.unwrap();
            let seen = rig.done().await;
            boots += 1;
            assert_eq!((seen.revision, seen.boot_count), (generation, boots), "after {millis} ms");
            assert_eq!(process::below(&rig.0.machine_folder()).len(), 1, "after {millis} ms");
        });
    }
    runtime.block_on(async {
        let process = rig.0.process().unwrap();
        let kill = async {
            rig.0.clock.sleep(Duration::from_millis(40)).await;
            process.kill().unwrap();
        };
        let (outcome, ()) = tokio::join!(update(rig.0.qemu().clone(), 5, rig.machine(5)), kill);
        outcome.unwrap();
        // While it boots: its restart is the node's own affair.
        rig.0.process().unwrap().kill().unwrap();
        let again = rig.until(|seen| seen.boot_count == boots + 2 && seen.guest == Guest::Done).await;
        assert_eq!(again.revision, 5);
        assert_eq!(served(&rig, again.ports[0].host, "/").await, "web 1");
        let process = rig.0.process().unwrap();
        rig.0.qemu().ensure_absent(at(6)).await.unwrap();
        assert!(!process.is_alive());
        assert_eq!(process::below(&rig.0.config.folder.canonicalize().unwrap()), []);
    });
}

/// The machine's own script is asked what it reaches: nothing of its host, and nothing beyond. And what was sealed for it is in
/// its container, and nowhere on the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_reaches_nothing_outside_and_its_secrets_stay_inside() {
    let rig = RealRig::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut machine = rig.machine(1);
    let mut document = machine.spec.compose.parsed();
    document.set_pre_launch_script(&format!(
        "ip addr; for place in '10.0.2.2 {port}' '127.0.0.1 {port}' '10.0.2.3 53' '1.1.1.1 53'; do\n\
         timeout 5 nc -w 1 $place </dev/null; [ $? = 1 ] && echo \"out of reach: $place.\" || echo \"reached $place.\"; done\n"
    ));
    machine.spec.compose = Compose::new(&document);
    let seen = start(&rig, &machine).await;
    let serial = rig.serial().await;
    assert!(serial.contains("10.0.2.15"), "it has a network: {serial}");
    for place in
        [format!("10.0.2.2 {port}"), format!("127.0.0.1 {port}"), "10.0.2.3 53".into(), "1.1.1.1 53".into()]
    {
        assert!(serial.contains(&format!("out of reach: {place}.")), "{place}: {serial}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "somebody called");
    // Its own port works: the way in is open.
    let hash = served(&rig, seen.ports[0].host, "/env/A").await;
    assert_eq!(hash, hex::encode(crate::cvm::spec::sha256(b"s3cret-value")));

    let pid = rig.0.process().unwrap().pid();
    assert_eq!(std::fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    let secrets = [b"s3cret-value".to_vec(), vec![7; 32], hex::encode([7; 32]).into_bytes()];
    let mut looked_at: Vec<PathBuf> = vec![format!("/proc/{pid}/cmdline").into()];
    let mut folders = vec![rig.0.config.folder.clone(), rig.0.config.images.clone()];
    while let Some(folder) = folders.pop() {
        assert_eq!(
            std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
            0o700,
            "{}",
            folder.display()
        );
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let meta = std::fs::symlink_metadata(entry.path()).unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_file() {
                assert_eq!(meta.permissions().mode() & 0o077, 0, "{}", entry.path().display());
                looked_at.push(entry.path());
            }
        }
    }
    assert!(looked_at.iter().any(|path| path.ends_with(command::DATA)));
    for path in looked_at {
        let mut file = std::fs::File::open(&path).unwrap();
        let (mut part, mut kept) = (vec![0; 1 << 20], Vec::new());
        loop {
            let read = std::io::Read::read(&mut file, &mut part).unwrap();
            if read == 0 {
                break;
            }
            // Most of a disk is nothing.
            if part[..read].iter().all(|byte| *byte == 0) {
                kept.clear();
                continue;
            }
            kept.extend_from_slice(&part[..read]);
            for secret in &secrets {
                assert!(!contains(&kept, secret), "{} has a secret", path.display());
            }
            kept.drain(..kept.len().saturating_sub(64));
        }
    }
    rig.0.qemu().ensure_absent(at(2)).await.unwrap();
}

/// Whoever lets core dumps be written gets none of its memory: neither the guest's, nor what passed through QEMU.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_crashes_leaves_nothing_of_its_memory() {
    // This process allows what its children are to be kept from.
    let most = getrlimit(Resource::Core).maximum;
    let all = Rlimit { current: most, maximum: most };
    setrlimit(Resource::Core, all).unwrap();
    let rig = RealRig::new();
    let folder = rig.0.machine_folder();
    let cores = || files(&folder).into_iter().filter(|name| name.starts_with("core")).collect::<Vec<_>>();
    let seen = start(&rig, &rig.machine(1)).await;
    let abort = async |boot_count: u64| {
        kill_process(Pid::from_raw(rig.0.process().unwrap().pid()).unwrap(), Signal::ABORT).unwrap();
        rig.until(|now| now.boot_count > boot_count && now.guest == Guest::Done).await.boot_count
    };
    let boot_count = abort(seen.boot_count).await;
    assert_eq!(cores(), [""; 0]);
    // Also where somebody allows it, or a program takes it over that no limit keeps from it.
    let pid = rig.0.process().unwrap().pid();
    let filter = std::fs::read_to_string(format!("/proc/{pid}/coredump_filter")).unwrap();
    let limit = prlimit(Pid::from_raw(pid), Resource::Core, all).unwrap();
    assert_eq!((filter.trim(), limit.current), ("00000000", Some(0)));
    abort(boot_count).await;
    // Whether it is a file, and where, is for this host to say.
    let is_file = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap().starts_with("core");
    let cores = cores();
    assert_eq!(cores.len(), usize::from(is_file), "{cores:?}");
    for core in cores {
        let core = std::fs::read(folder.join(core)).unwrap();
        assert!(core.len() < 8 << 20, "{} bytes", core.len());
        for secret in [b"s3cret-value".to_vec(), vec![7; 32], hex::encode([7; 32]).into_bytes()] {
            assert!(!contains(&core, &secret), "{} bytes have a secret", core.len());
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    let first = part[0];
    let mut from = 0;
    while let Some(next) = text[from..].iter().position(|byte| *byte == first) {
        from += next;
        if text[from..].starts_with(part) {
            return true;
        }
        from += 1;
    }
    false
}

/// Tells the program to be the one that has the small file system.
const INSIDE: &str = "CASEMATE_SMALL_DISK";

/// Where the node's file system is full, machines stand still, and go on when there is room. The file system is one of this test's
/// own: it runs in a namespace that goes with it.
#[test]
fn a_full_disk_lets_a_machine_stand_still_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let script = "mount -t tmpfs -o size=256m,mode=700 small \"$TMPDIR\" && exec \"$0\" \"$@\"";
    let output = unshare
        .args(["sh", "-c", script])
        .arg(me)
        .args(["--exact", "driver::qemu::tests::vm_faults::inside", "--ignored", "--nocapture"])
        .env("TMPDIR", folder.path())
        .env(INSIDE, "yes")
        .process_group(0)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it is a part of another"]
async fn inside() {
    if std::env::vars().all(|(name, _)| name != INSIDE) {
        return;
    }
    let rig = RealRig::new();
    let mut machine = rig.machine(1);
    let mut document = machine.spec.compose.parsed();
    document.set_docker_compose_file(
        "services:\n  web:\n    image: web:1\n    ports: ['80:8080']\n    volumes: ['data:/data']\n    environment: {A: '${A}'}\n  \
         writer:\n    image: web:1\n    volumes: ['data:/data']\n    \
         entrypoint: ['/bin/sh', '-c', 'sleep 2; dd if=/dev/zero of=/data/much bs=1M count=300 conv=fsync; sleep 1000']\n\
         volumes:\n  data:\n",
    );
    machine.spec.compose = Compose::new(&document);
    let seen = start(&rig, &machine).await;
    assert_eq!(served(&rig, seen.ports[0].host, "/count").await, "1");
    let stands_still =
        |seen: &Observed| matches!(&seen.guest, Guest::Booting { progress } if progress.contains("no room"));
    rig.until(stands_still).await;
    assert_eq!(rig.0.process().map(|process| process.is_alive()), Some(true));
    // Whoever asks for a change is told to wait, and nothing is touched.
    let outcome = rig.0.qemu().ensure_staged(at(2), &rig.machine(2)).await;
    assert!(matches!(&outcome, Err(Error::NoRoom(why)) if why.contains("has 0 bytes left")), "{outcome:?}");
    // There is room again, and it goes on where it stood.
    let grown = std::process::Command::new("mount")
        .args(["-o", "remount,size=900m"])
        .arg(std::env::temp_dir())
        .status();
    assert!(grown.unwrap().success());
    let seen = rig.done().await;
    assert_eq!((seen.boot_count, served(&rig, seen.ports[0].host, "/data").await), (1, "1".to_owned()));
    rig.0.qemu().ensure_absent(at(3)).await.unwrap();
    assert_eq!(files(&rig.0.config.folder).iter().filter(|name| name.len() > 30).count(), 0);
    assert!(get(seen.ports[0].host, "/").is_err());
}
