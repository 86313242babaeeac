//! The same with QEMU itself, and with the guest that `make guest` builds. Boots take their time, so one machine is updated again
//! and again.

use super::*;
use crate::vm_inside::served;

impl Host {
    fn real() -> Self {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.casemate-guest");
        assert!(made.join("images").is_dir(), "there is no OS image: run `make guest`");
        let layouts = ["web-1", "web-2"].map(|layout| made.join("oci").join(layout)).into();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut host = Self::with(folder, "qemu-system-x86_64".into(), made.join("images"), layouts);
        host.look = Duration::from_millis(100);
        host
    }

    /// Files in the machine's folder that nobody needs.
    fn useless(&self, cvm: &Cvm) -> Vec<String> {
        let folder = self.folder.path().join("nodes/qemu-1").join(cvm.vm_uuid.to_string());
        let record = std::fs::read_to_string(folder.join("machine.json")).expect("its record");
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
        let names = std::fs::read_dir(folder).expect("its folder").flatten();
        let names = names.map(|entry| entry.file_name().into_string().expect("ours"));
        // An image is named after the beginning of its digest.
        let named =
            |name: &str| match name.strip_prefix("image-").and_then(|rest| rest.strip_suffix(".squashfs")) {
                Some(digest) => record.contains(&format!("sha256:{digest}")),
                None => record.contains(name),
            };
        names.filter(|name| !known.contains(&name.as_str()) && !named(name)).collect()
    }
}

/// It serves the version that is in force, and has every line that was written to its volume.
async fn serves(host: &Host, life: &Life, cvm: &Cvm, lines: &Mutex<u64>, what: &str) {
    let seen = life.seen(cvm).await.expect("there");
    let url = format!("http://127.0.0.1:{}", seen.ports[0].host);
    let spec = life.app.store.spec(cvm.id, seen.revision).expect("the current spec");
    let version = if spec.compose.text.contains("web:2") { "web 2" } else { "web 1" };
    assert_eq!(served(&life.app.clock, &url, "/").await, version, "{what}");
    let kept = served(&life.app.clock, &url, "/data").await;
    assert_eq!(kept, lines.lock().expect("nobody panicked").to_string(), "{what}: lines in its volume");
    let now = served(&life.app.clock, &url, "/count").await.parse().expect("a number");
    *lines.lock().expect("nobody panicked") = now;
    assert_eq!(host.useless(cvm), Vec::<String>::new(), "{what}");
}

#[test]
fn an_update_of_a_real_machine_survives_a_server_that_is_killed_anywhere() {
    let (host, lines) = (Host::real(), Mutex::new(0));
    sweep(&host, New::Good, 1, async |life, cvm, what| serves(&host, life, cvm, &lines, what).await);
}

#[test]
fn a_real_machine_that_does_not_boot_is_put_back_by_whoever_lives() {
    // Each place takes two boots. With a hypervisor that is played, all of them are tried each time.
    let each = if scale() < 2 { 7 } else { 1 };
    let (host, lines) = (Host::real(), Mutex::new(0));
    sweep(&host, New::Bad, each, async |life, cvm, what| serves(&host, life, cvm, &lines, what).await);
}

/// How many times more than usual: `CASEMATE_TEST_SCALE`, 1 if it is not set.
#[expect(clippy::disallowed_methods, reason = "tests read their own settings")]
fn scale() -> u64 {
    std::env::var("CASEMATE_TEST_SCALE").ok().and_then(|scale| scale.parse().ok()).unwrap_or(1)
}

/// The worker that comes to a place stands still there, until it is let go.
#[derive(Default)]
struct Late {
    place: Mutex<Option<Place>>,
    reached: Notify,
    let_go: Notify,
}

#[async_trait]
impl Probe for Late {
    async fn reached(&self, operation: &Operation, step: StepName, moment: Moment) -> bool {
        let here = Place { kind: operation.kind, step, moment };
        if self.place.lock().expect("no panic while holding it").take_if(|place| *place == here).is_some() {
            self.reached.notify_one();
            self.let_go.notified().await;
        }
        true
    }
}

#[test]
fn an_update_of_a_real_machine_is_not_harmed_by_a_worker_that_is_late() {
    let (host, lines) = (Host::real(), Mutex::new(0));
    let (cvm, places) = begin(&host, New::Good);
    let late = Arc::new(Late::default());
    host.live(Arc::clone(&late) as _, async |life| {
        for (round, place) in (1..).zip(places) {
            let what = format!("late at {place:?}");
            *late.place.lock().expect("nobody panicked") = Some(place);
            let before = life.begin(&cvm, patch(round, New::Good)).await;
            let stands = life.app.clock.within(PATIENCE, late.reached.notified()).await;
            assert!(stands.is_some(), "{what}: not reached");
            // Everybody has it but the one that stands here. Not earlier: the lanes may not have begun.
            let at_rest = Arc::strong_count(&late) - 1;
            // Its lease is over, and somebody else goes on.
            life.app.store.operation_void_leases().await.expect("written");
            life.wake();
            let ended = life.ended(&cvm, &before, New::Good, &what).await;
            late.let_go.notify_one();
            let gone = async {
                while Arc::strong_count(&late) > at_rest {
                    life.app.clock.sleep(Duration::from_millis(5)).await;
                }
            };
            assert!(life.app.clock.within(PATIENCE, gone).await.is_some(), "{what}: it does not end");
            assert_eq!(life.ended(&cvm, &before, New::Good, &what).await, ended, "{what}");
            serves(&host, life, &cvm, &lines, &what).await;
            assert_eq!(host.processes().len(), 1, "{what}");
        }
    });
}

#[test]
fn a_real_machine_that_stands_still_is_told_of_and_well_again_when_it_goes_on() {
    frozen::tells_and_recovers(&Host::real());
}
