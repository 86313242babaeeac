//! The power goes at any moment, and nothing that a client was told is lost.
//!
//! A kill does not show whether anything reached the disk: the operating system keeps what was written. So all that the real
//! program writes and flushes is recorded ([`recording`]), and from the record many disks are made ([`disk`]) as a loss of
//! power may leave them: what was flushed, and of the rest a seeded part. Each is opened, checked by SQLite, and has to
//! hold everything that a client had been told by then.

mod disk;
mod recording;

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use casemate_server::cvm::spec::sha256;
use casemate_server::serve;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use tokio::time::Instant;

use self::disk::{Disk, Luck};
use self::recording::{Happened, Witness};
use crate::audit::{damage, rows};
use crate::client::Outcome;
use crate::cloud::{Cloud, Setup};
use crate::load::{Asked, Entry, Load};
use crate::scale;

/// Records a server with these options from its very first start, until `changes` changes have been accepted.
async fn record(seed: u64, options: &[&str], changes: u64) -> Vec<Happened> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let setup = Setup {
        options: options.iter().map(ToString::to_string).collect(),
        recorder: Some(recording::build(folder.path())),
        ..Setup::seeded(seed)
    };
    let mut cloud = Cloud::new(setup).await;
    let witness = Witness::new(&cloud.record());
    witness.answered(&format!("key {}", cloud.key));
    cloud.boot().await;
    let kms = std::fs::read_to_string(cloud.data().join("kms.key")).expect("it was made by the start");
    witness.answered(&format!("kms {kms}"));
    let load =
        Load::start_with(&cloud, seed, 16, 12, Box::new(move |entry| witness.answered(&promise(entry))));
    load.accepted(changes).await;
    load.told().await;
    // A clean stop is recorded, too.
    cloud.terminate().await;
    let recording = recording::read(&cloud.record());
    assert_complete(&recording, &cloud.data());
    recording
}

/// With all that was recorded, a disk holds exactly the files that there are. If not, the recorder missed something.
fn assert_complete(recording: &[Happened], data: &Path) {
    let mut disk = Disk::default();
    recording.iter().for_each(|happened| disk.happens(happened));
    let copy = tempfile::tempdir().expect("a temporary folder");
    disk.lose_power(Luck::Everything, &mut StdRng::seed_from_u64(0), copy.path());
    let names = |folder: &Path| -> BTreeSet<_> {
        std::fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect()
    };
    let real: BTreeSet<_> = names(data).into_iter().filter(|name| name != "casemate.db-shm").collect();
    assert_eq!(names(copy.path()), real);
    for name in real {
        let [is, was] = [copy.path(), data].map(|folder| std::fs::read(folder.join(&name)).expect("a file"));
        assert!(is == was, "the recorder missed something in {}", name.display());
    }
    let flushed = |file: &str| {
        let of_it = |happened: &&Happened| matches!(happened, Happened::Write { file: of, .. } if of == file);
        recording.iter().filter(of_it).count()
    };
    println!("{} writes to the log, {} to the store", flushed("casemate.db-wal"), flushed("casemate.db"));
}

/// What a client may rely on after this answer.
fn promise(entry: &Entry) -> String {
    let Outcome::Ok(answer) = &entry.outcome else { panic!("{entry:?} was not accepted") };
    match answer.text("correlation_id") {
        Some(id) => format!("update {id} {}", entry.mark),
        // Two deletions in a row are one, which belongs to the first request.
        None if entry.asked == Asked::Delete => "nothing".to_owned(),
        None => format!("request {}", answer.request_id),
    }
}

/// A store that was found after a loss of power.
struct Found {
    db: Connection,
    keys: HashSet<Vec<u8>>,
    requests: HashSet<String>,
    /// Operation and user config of each revision.
    revisions: HashSet<(uuid::Uuid, Option<Vec<u8>>)>,
    operations: HashSet<uuid::Uuid>,
}

impl Found {
    /// None if there is no schema yet.
    fn open(folder: &Path) -> rusqlite::Result<Option<Self>> {
        let db = Connection::open(folder.join("casemate.db"))?;
        db.execute_batch("PRAGMA synchronous = OFF")?;
        let version: u32 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 {
            return Ok(None);
        }
        let requests = "SELECT request_id FROM event WHERE request_id IS NOT NULL";
        let revisions = "SELECT op, user_config FROM revision";
        Ok(Some(Self {
            keys: rows(&db, "SELECT hash FROM api_key", |row| row.get(0))?,
            requests: rows(&db, requests, |row| row.get(0))?,
            revisions: rows(&db, revisions, |row| Ok((row.get(0)?, row.get(1)?)))?,
            operations: rows(&db, "SELECT id FROM operation", |row| row.get(0))?,
            db,
        }))
    }

    fn keeps(&self, folder: &Path, promise: &str) -> bool {
        let (what, of) = promise.split_once(' ').unwrap_or((promise, ""));
        match what {
            "key" => self.keys.contains(sha256(of.as_bytes()).as_slice()),
            "kms" => std::fs::read_to_string(folder.join("kms.key")).is_ok_and(|kms| kms == of),
            "request" => self.requests.contains(of),
            "update" => {
                let (id, mark) = of.split_once(' ').expect("id and mark");
                let id = id.parse().expect("a UUID");
                let config = sha256(mark.as_bytes()).to_vec();
                self.operations.contains(&id) && self.revisions.contains(&(id, Some(config)))
            }
            _ => true,
        }
    }
}

/// What many losses of power did to a recorded run.
#[derive(Debug, Default)]
struct Losses {
    images: usize,
    /// Images in which something promised was missing, and some of what it was.
    forgetful: Vec<String>,
    /// Images that SQLite found fault with.
    damaged: Vec<String>,
}

/// Takes the power away `images` times in the course of `recording`.
fn lose_power(recording: &[Happened], seed: u64, images: usize) -> Losses {
    let mut rng = StdRng::seed_from_u64(seed);
    let moments = moments(recording, &mut rng, images);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut disk, mut promises, mut done) = (Disk::default(), Vec::new(), 0);
    let mut losses = Losses { images, ..Losses::default() };
    for (number, &moment) in moments.iter().enumerate() {
        for happened in &recording[done..moment] {
            disk.happens(happened);
            if let Happened::Answered(promise) = happened {
                promises.push(promise.as_str());
            }
        }
        done = moment;
        let luck = Luck::ALL[number % Luck::ALL.len()];
        let image = folder.path().join(number.to_string());
        std::fs::create_dir(&image).expect("the folder is ours");
        disk.lose_power(luck, &mut rng, &image);
        let what =
            || format!("seed {seed}, image {number} (record {moment} of {}, {luck:?})", recording.len());
        match examine(&image, &promises) {
            Err(error) => losses.damaged.push(format!("{}: {error}", what())),
            Ok((damage, broken)) => {
                losses.damaged.extend(damage.first().map(|damage| format!("{}: {damage}", what())));
                let count = broken.len();
                losses
                    .forgetful
                    .extend(broken.first().map(|one| format!("{}: {count} lost, first {one}", what())));
            }
        }
        // The server itself opens some of them: that it could is the point.
        if number % 20 == 0 && losses.damaged.is_empty() {
            serve::open_store(&image).expect("the server opens it");
        }
        std::fs::remove_dir_all(&image).expect("the folder is ours");
    }
    losses
}

/// What is wrong with an image, and which promises it breaks.
fn examine(image: &Path, promises: &[&str]) -> rusqlite::Result<(Vec<String>, Vec<String>)> {
    let Some(found) = Found::open(image)? else {
        return Ok((Vec::new(), promises.iter().map(ToString::to_string).collect()));
    };
    let broken = promises.iter().filter(|promise| !found.keeps(image, promise));
    Ok((damage(&found.db)?, broken.map(ToString::to_string).collect()))
}

/// When the power goes, in order: half of the time right after an answer, often right before or after a flush, and else
/// anywhere.
fn moments(recording: &[Happened], rng: &mut StdRng, images: usize) -> Vec<usize> {
    let places = |wanted: fn(&Happened) -> bool| -> Vec<usize> {
        recording
            .iter()
            .enumerate()
            .filter(|(_, happened)| wanted(happened))
            .map(|(index, _)| index)
            .collect()
    };
    let answers = places(|happened| matches!(happened, Happened::Answered(_)));
    let flushes = places(|happened| matches!(happened, Happened::Flush { .. } | Happened::FlushNames));
    let mut moments: Vec<_> = (0..images)
        .map(|_| match rng.random_range(0..10) {
            0..5 => answers[rng.random_range(0..answers.len())] + 1,
            5..8 if !flushes.is_empty() => {
                flushes[rng.random_range(0..flushes.len())] + rng.random_range(0..2)
            }
            _ => rng.random_range(0..=recording.len()),
        })
        .collect();
    moments.sort_unstable();
    moments
}

fn image_count(images: u64) -> usize {
    usize::try_from(images * scale()).expect("not that many")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answered_change_is_lost() {
    let recording = record(20, &[], 400).await;
    let begun = Instant::now();
    let losses = lose_power(&recording, 20, image_count(1000));
    println!("{} records, {} images in {:?}", recording.len(), losses.images, begun.elapsed());
    assert!(losses.damaged.is_empty() && losses.forgetful.is_empty(), "{losses:#?}");
}

/// The same with less durable commits. If the test could not tell, it would be worth nothing.
#[tokio::test(flavor = "multi_thread")]
async fn commits_that_are_not_flushed_show() {
    for durability in ["none", "checkpoint"] {
        let recording = record(21, &["--durability", durability], 100).await;
        let losses = lose_power(&recording, 21, 60);
        println!("{durability}: {} of {} images forget", losses.forgetful.len(), losses.images);
        assert!(losses.forgetful.len() > 10, "durability {durability}: {losses:#?}");
    }
}

/// The same recording, had each answer gone out before the commit that it waits for was flushed.
#[tokio::test(flavor = "multi_thread")]
async fn answers_before_the_flush_show() {
    let recording = record(22, &[], 100).await;
    let sound = lose_power(&recording, 22, 60);
    assert!(sound.damaged.is_empty() && sound.forgetful.is_empty(), "{sound:#?}");
    let mut early: Vec<Happened> = Vec::new();
    for happened in recording {
        let is_flush = |happened: &Happened| matches!(happened, Happened::Flush { .. });
        let before = early.iter().rposition(is_flush).filter(|_| matches!(happened, Happened::Answered(_)));
        match before {
            Some(flush) => early.insert(flush, happened),
            None => early.push(happened),
        }
    }
    let losses = lose_power(&early, 22, 60);
    println!("early answers: {} of {} images forget", losses.forgetful.len(), losses.images);
    assert!(losses.forgetful.len() > 5, "{losses:#?}");
}
