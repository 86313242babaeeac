//! What goes, and what stays.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::pull_tests::{reference, serve};
use super::store::{ImageStore, Rules};
use super::tests::{layout, pack};
use super::*;
use crate::clock::Clock;

const DAY: Duration = Duration::from_hours(24);

/// A store, and what surrounds it.
struct Scene {
    store: ImageStore,
    clock: Clock,
    held: Arc<Mutex<BTreeSet<String>>>,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let (clock, folder) = (Clock::manual(1), tempfile::tempdir().unwrap());
        let held = Arc::new(Mutex::new(BTreeSet::new()));
        let store = open(&folder.path().join("store"), &clock, &held, 7 * DAY);
        Self { store, clock, held, folder }
    }

    /// The same store, opened by another process.
    fn again(&self, keep: Duration) -> ImageStore {
        open(&self.folder.path().join("store"), &self.clock, &self.held, keep)
    }

    /// Puts an image of this name into the store, as an import does.
    fn import(&self, name: &str, content: &str) -> String {
        let from = tempfile::tempdir().unwrap();
        layout(from.path(), &[content]);
        self.store.import(from.path(), Some(&name.parse().unwrap())).unwrap().remove(0).1
    }

    /// All of this image is there.
    fn has(&self, digest: &str) -> bool {
        let document = self.store.document(digest);
        let whole = document.is_ok_and(|document| document.parts().all(|part| self.store.has(&part.digest)));
        assert!(whole || !self.store.has(digest), "an image without its parts");
        whole
    }

    fn collect(&self) -> Freed {
        let told = self.store.collect(Mode::DryRun).unwrap();
        let before = size_of(&self.folder.path().join("store"));
        let done = self.store.collect(Mode::Do).unwrap();
        assert_eq!(told, done, "what is told is what is done");
        let after = size_of(&self.folder.path().join("store"));
        // The list itself is smaller as well.
        assert!(before - after >= done.bytes && (done.bytes > 0 || before == after), "{done:?}");
        done
    }
}

fn open(folder: &Path, clock: &Clock, held: &Arc<Mutex<BTreeSet<String>>>, keep: Duration) -> ImageStore {
    let held = Arc::clone(held);
    let held = Arc::new(move || Ok(held.lock().unwrap().clone()));
    ImageStore::open(folder.to_owned()).unwrap().with_rules(Rules::new(clock.clone(), keep, held))
}

fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata().unwrap() {
        meta if meta.is_dir() => size_of(&entry.path()),
        meta => meta.len(),
    };
    entries.map(size).sum()
}

#[tokio::test(start_paused = true)]
async fn an_image_stays_as_long_as_something_needs_it() {
    let it = Scene::new();
    let imported = it.import("imported:1", "imported");
    let replaced = it.import("replaced:1", "one");
    it.import("replaced:1", "two");
    let held = it.import("held:1", "held");
    it.import("held:1", "another");
    it.held.lock().unwrap().insert(held.clone());
    assert_eq!(it.collect(), Freed::default(), "all of it was used just now");
    for mark in std::fs::read_dir(it.folder.path().join("store/used")).unwrap().flatten() {
        assert_eq!(mark.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{mark:?}");
    }
    it.clock.sleep(6 * DAY).await;
    assert!(it.has(&replaced));
    assert_eq!(it.collect(), Freed::default(), "and may be wanted again");
    it.clock.sleep(2 * DAY).await;
    assert!(it.collect().bytes > 0);
    assert!(!it.has(&replaced), "nobody has used it for a week, and nothing names it");
    assert!(it.has(&imported) && it.has(&held));
    // A use is a use, however it came.
    it.held.lock().unwrap().clear();
    it.store.using().ensure(&format!("held@{held}").parse().unwrap(), None).await.unwrap();
    assert_eq!(it.collect(), Freed::default());
    it.clock.sleep(8 * DAY).await;
    it.collect();
    assert!(!it.has(&held) && it.has(&imported));
    assert_eq!(it.store.list().unwrap().len(), 3, "what was imported keeps its name");
}

#[tokio::test]
async fn what_was_pulled_goes_with_its_name_its_marks_and_its_disk_and_can_be_pulled_again() {
    let (host, _registry) = serve(|_| {}).await;
    let it = Scene::new();
    let tagged = reference(&host, ":1");
    let digest = it.store.ensure(&tagged, None).await.unwrap();
    let roots = it.folder.path().join("store/roots");
    std::fs::create_dir(&roots).unwrap();
    let root = roots.join(format!("{}.squashfs", digest.replace(':', "-")));
    std::fs::write(&root, "a disk").unwrap();
    std::fs::write(roots.join("something-else"), "not ours to judge").unwrap();
    assert_eq!(it.store.collect(Mode::Do).unwrap(), Freed::default());
    let impatient = it.again(Duration::ZERO);
    let in_use = it.folder.path().join("hard-link");
    std::fs::hard_link(&root, &in_use).unwrap();
    let size = impatient.collect(Mode::DryRun).unwrap().bytes;
    std::fs::remove_file(&in_use).unwrap();
    let freed = impatient.collect(Mode::Do).unwrap();
    assert_eq!(freed.names, [tagged.to_string()]);
    assert_eq!(freed.bytes, size + 6, "the disk counts where no machine has it as well");
    assert!(!it.has(&digest) && it.store.list().unwrap().is_empty() && !root.exists());
    assert!(roots.join("something-else").exists());
    let givers = std::fs::read_dir(it.folder.path().join("store/from")).unwrap().flatten();
    assert_eq!(givers.flat_map(|giver| std::fs::read_dir(giver.path()).unwrap()).count(), 0);
    assert_eq!(it.store.ensure(&tagged, None).await, Ok(digest.clone()));
    assert!(it.has(&digest));
}

#[tokio::test(start_paused = true)]
async fn an_operator_takes_a_name_away_and_gets_the_room() {
    let it = Scene::new();
    let (one, two) = (it.import("one:1", "one"), it.import("two:1", "two"));
    it.import("same:1", "one");
    it.held.lock().unwrap().insert(two.clone());
    let remove = |name: &str| it.store.remove(&name.parse().unwrap());
    let same = remove("same:1").unwrap();
    assert_eq!((same.bytes, same.names), (0, vec!["docker.io/library/same:1".to_owned()]));
    assert!(it.has(&one), "it has another name");
    assert!(remove("one:1").unwrap().bytes > 0 && !it.has(&one));
    assert_eq!(remove("two:1").unwrap().bytes, 0);
    assert!(it.has(&two), "a machine has it");
    let error = remove("two:1").unwrap_err().to_string();
    assert_eq!(error, "no image is called `docker.io/library/two:1` here");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_away_takes_nothing_else_with_it() {
    let (host, _registry) = serve(|_| {}).await;
    let it = Scene::new();
    let tagged = reference(&host, ":1");
    let pulled = it.store.ensure(&tagged, None).await.unwrap();
    let mine = it.import("mine:1", "mine");
    // The one that was pulled could go, and was not asked for.
    it.clock.sleep(8 * DAY).await;
    let size = it.store.shown().unwrap().iter().find(|one| one.digest == mine).unwrap().bytes;
    let freed = it.store.remove(&"mine:1".parse().unwrap()).unwrap();
    assert_eq!(freed.names, ["docker.io/library/mine:1"]);
    assert!(freed.bytes > 0 && freed.bytes <= size && !it.has(&mine), "{freed:?} of {size}");
    assert!(it.has(&pulled));
    let shown = it.store.shown().unwrap();
    assert_eq!(shown.iter().map(|one| &one.name).collect::<Vec<_>>(), [&tagged.to_string()]);
    assert_eq!(it.store.collect(Mode::Do).unwrap().names, [tagged.to_string()]);
}

#[tokio::test(start_paused = true)]
async fn where_room_is_wanted_the_oldest_use_goes_first_and_nothing_for_nothing() {
    let it = Scene::new();
    let imported = it.import("imported:1", "imported");
    let mut unused = Vec::new();
    for content in ["first", "second", "between", "third"] {
        unused.push(it.import("replaced:1", content));
        it.clock.sleep(Duration::from_secs(60)).await;
    }
    // `third` has the name.
    let third = unused.pop().unwrap();
    let used = size_of(&it.folder.path().join("store/blobs"));
    let size = |free: u64| *it.store.rules.size.lock().unwrap() = Some(used + free);
    size(1000);
    it.store.make_room(1000, "a pull").unwrap();
    assert!(it.has(&unused[0]), "there was room enough");
    let why = it.store.make_room(100_000, "image `big:1`").unwrap_err().to_string();
    let folder = it.folder.path().join("store");
    assert!(
        why.starts_with("image `big:1` takes 100000 bytes, and ") && why.contains(folder.to_str().unwrap()),
        "{why}"
    );
    assert!(it.has(&unused[0]), "nothing that is removed makes room for that");
    let using = {
        let mut using = it.again(DAY).using();
        using.add(&unused[0]).unwrap();
        using
    };
    it.store.make_room(1001, "a pull").unwrap();
    assert!(it.has(&unused[0]) && !it.has(&unused[1]), "somebody is at work with the oldest one");
    assert!(it.has(&unused[2]), "and more than enough is enough");
    drop(using);
    it.store.make_room(4500, "a pull").unwrap();
    assert!(!it.has(&unused[0]) && it.has(&unused[2]), "the oldest use goes first");
    it.store.make_room(6500, "a pull").unwrap();
    assert!(!it.has(&unused[2]) && it.has(&third) && it.has(&imported));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_is_at_work_with_stays_in_this_process_and_any_other() {
    let (host, registry) = serve(|_| {}).await;
    let it = Scene::new();
    let stop = tokio_util::sync::CancellationToken::new();
    let collecting = std::thread::spawn({
        // As another process does, which keeps nothing.
        let (store, stop) = (it.again(Duration::ZERO), stop.clone());
        move || {
            let mut freed = 0;
            while !stop.is_cancelled() {
                freed += store.collect(Mode::Do).unwrap().bytes;
            }
            freed
        }
    });
    for round in 0..50 {
        let mut using = it.store.using();
        let tagged = reference(&host, ":1");
        let digest = using.ensure(&tagged, None).await.unwrap();
        assert!(it.has(&digest), "round {round}");
        drop(using);
        let from = tempfile::tempdir().unwrap();
        layout(from.path(), &["mine"]);
        pack(from.path(), &it.folder.path().join("packed"));
        let name = "mine:1".parse().unwrap();
        let mine = it.store.import(&it.folder.path().join("packed"), Some(&name)).unwrap().remove(0).1;
        assert!(it.has(&mine), "round {round}");
        it.store.remove(&name).unwrap();
        registry.move_tag("1");
    }
    stop.cancel();
    assert!(collecting.join().unwrap() > 0);
    // Who died at work holds nothing.
    let mut using = it.store.using();
    let digest = using.ensure(&reference(&host, ":1"), None).await.unwrap();
    let at_work = it.folder.path().join("store/at-work");
    let left = std::fs::read_dir(&at_work).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read(&left).unwrap();
    drop(using);
    std::fs::write(&left, text).unwrap();
    it.again(Duration::ZERO).collect(Mode::Do).unwrap();
    assert!(!it.has(&digest) && std::fs::read_dir(&at_work).unwrap().next().is_none());
}

#[tokio::test]
async fn a_collection_that_is_interrupted_anywhere_leaves_a_store_in_order() {
    let (host, registry) = serve(|_| {}).await;
    let mut all = None;
    for left in 0.. {
        let it = Scene::new();
        let imported = it.import("imported:1", "imported");
        let tagged = reference(&host, ":1");
        let first = it.store.ensure(&tagged, None).await.unwrap();
        let held = registry.move_tag("1");
        it.store.ensure(&tagged, None).await.unwrap();
        it.held.lock().unwrap().insert(held.clone());
        registry.move_tag("1");
        let third = it.store.ensure(&tagged, None).await.unwrap();
        let impatient = it.again(Duration::ZERO);
        *impatient.rules.deletions.lock().unwrap() = left;
        let interrupted = impatient.collect(Mode::Do).is_err();
        // Everything that stays is whole, and what is gone comes again.
        assert!(it.has(&imported) && it.has(&held), "after {left}");
        assert_eq!(it.store.ensure(&tagged, None).await, Ok(third.clone()), "after {left}");
        assert!(it.has(&third), "after {left}");
        it.again(Duration::ZERO).collect(Mode::Do).unwrap();
        assert!(!it.store.has(&first) && !it.store.has(&third) && it.has(&held), "after {left}");
        let files: HashMap<_, _> = ["used", "blobs/sha256", "from"]
            .map(|name| (name, std::fs::read_dir(it.folder.path().join("store").join(name)).unwrap().count()))
            .into();
        assert_eq!(*all.get_or_insert_with(|| files.clone()), files, "after {left}");
        if !interrupted {
            assert!(left > 5, "{left} deletions");
            break;
        }
    }
}
