//! The server is killed a hundred times in the middle of its work, and nothing that it accepted is lost or done twice.

use std::collections::BTreeMap;
use std::time::Duration;

use casemate_server::cvm::spec::sha256;
use casemate_server::driver::fault::{Fault, Plan, Planned};
use casemate_server::driver::sim::{Change, Effect};
use casemate_server::driver::{Driver, Guest};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::audit::{Books, Cvm, Findings};
use crate::client::{Api, Outcome};
use crate::cloud::{Cloud, Setup, until};
use crate::load::{Asked, Entry, Load, Told};
use crate::scale;

/// After the last kill, everything is as it was accepted within this time.
const CONVERGED: Duration = Duration::from_secs(10);

/// A cloud that was killed again and again.
struct Killed {
    cloud: Cloud,
    told: Told,
    books: Books,
    findings: Findings,
}

/// Kills a server `kills` times while `clients` clients change `cvms` CVMs, and lets it come to rest.
async fn kill(seed: u64, kills: u64, clients: u64, cvms: usize) -> Killed {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cloud = Cloud::start(Setup { boot_ms: 15, stop_ms: 10, ..Setup::seeded(seed) }).await;
    let load = Load::start(&cloud, seed, clients, cvms);
    let begun = Instant::now();
    let (mut boots, mut left) = (Vec::new(), kills);
    while left > 0 {
        // Anywhere in the stream of accepted changes, and anywhere between two of them.
        load.accepted(rng.random_range(1..40)).await;
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..5000))).await;
        cloud.kill();
        left -= 1;
        while left > 0 && rng.random_ratio(1, 8) {
            cloud.boot_in_vain(Duration::from_micros(rng.random_range(0..60_000))).await;
            left -= 1;
        }
        if left > 0 {
            boots.push(cloud.boot().await);
        }
    }
    let last_kill = Instant::now();
    load.end();
    boots.push(cloud.boot().await);
    let told = load.told().await;
    let api = Api::new(&cloud);
    api.rest().await;
    let converged = last_kill.elapsed();
    boots.sort_unstable();
    println!(
        "{kills} kills in {:?}; first answer after {:?} (median), {:?} (worst); at rest {converged:?} after the last kill",
        last_kill - begun,
        boots[boots.len() / 2],
        boots[boots.len() - 1],
    );
    assert!(converged <= CONVERGED, "{converged:?} after the last kill there was still something to do");
    let shown = shown(&api).await;
    let (status, _) = cloud.terminate().await;
    assert!(status.success(), "{status}");
    let books = Books::read(&cloud.data(), &cloud.node).await;
    let mut findings = books.audit(&told);
    findings
        .check(shown == kept(&books), || "the API shows something else than the store and the node".into());
    Killed { cloud, told, books, findings }
}

/// What the API shows of each CVM: the revision and the boots that its node reports.
async fn shown(api: &Api) -> BTreeMap<String, Option<(u64, u64)>> {
    let mut shown = BTreeMap::new();
    for cvm in api.get("/cvms").await.as_array().expect("a list") {
        let id = cvm["id"].as_str().expect("an id");
        let seen = match api.send(reqwest::Method::GET, &format!("/cvms/{id}/observed"), None, None).await {
            Outcome::Ok(answer) => answer.body["revision"].as_u64().zip(answer.body["boot_count"].as_u64()),
            // It was stopped before it was ever made.
            Outcome::Refused(answer) if answer.status.as_u16() == 404 => None,
            other => panic!("{id}: {other:?}"),
        };
        shown.insert(id.to_owned(), seen);
    }
    shown
}

/// The same from the store and the node.
fn kept(books: &Books) -> BTreeMap<String, Option<(u64, u64)>> {
    let live = books.cvms.values().filter(|cvm| !cvm.deleted);
    live.map(|cvm| {
        let machine = books.machines.get(&cvm.vm);
        (cvm.uid.clone(), machine.map(|machine| (cvm.revision, machine.boot_count)))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_lose_nothing_and_repeat_nothing() {
    let Killed { told, books, findings, cloud: _cloud } = kill(9, 100 * scale(), 64, 24).await;
    println!("{}", summary(&told, &books));
    findings.assert_none();
}

/// How often each thing was asked for and came to pass: a run in which hardly anything happened proves nothing.
fn summary(told: &Told, books: &Books) -> String {
    let mut asked: BTreeMap<Asked, BTreeMap<&str, u64>> = BTreeMap::new();
    for entry in &told.log {
        let word = match entry.outcome {
            Outcome::Ok(_) if entry.repeated => "ok in the end",
            Outcome::Ok(_) => "ok",
            Outcome::Refused(_) => "refused",
            Outcome::Unknown(_) => "unknown",
            Outcome::NotSent => "not sent",
        };
        *asked.entry(entry.asked).or_default().entry(word).or_default() += 1;
    }
    let mut ended: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for operation in books.operations.values() {
        *ended.entry((&operation.kind, &operation.status)).or_default() += 1;
    }
    format!("asked: {asked:?}\nended: {ended:?}")
}

/// Each of these is something that must not happen, done to the books of a cloud where all was well.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_shows_in_the_audit() {
    let Killed { cloud, told, books, findings } = kill(10, 3, 16, 8).await;
    findings.assert_none();
    type Wrong = fn(&mut Books, &Entry);
    let wrongs: [(&str, Wrong); 10] = [
        ("an accepted update has no operation", |books, entry| {
            books.operations.remove(&operation_of(entry));
        }),
        ("an accepted update has no revision", |books, entry| {
            books.revisions.retain(|_, revision| revision.op != operation_of(entry));
        }),
        ("an update was accepted twice", |books, entry| {
            let ((cvm, number), mut again) = books
                .revisions
                .extract_if(.., |_, revision| revision.op == operation_of(entry))
                .next()
                .expect("one");
            again.op = uuid::Uuid::nil();
            books.revisions.insert((cvm, number + 1000), again);
        }),
        ("an event is missing", |books, _| {
            books.events.remove(7);
        }),
        ("a machine was started twice", |books, entry| double(books, entry, Change::Start)),
        ("a spec was applied twice", |books, entry| double(books, entry, Change::Apply)),
        ("a machine was not started", |books, entry| {
            let (effects, at) = effect_of(books, entry, Change::Start);
            effects.remove(at);
        }),
        ("too much is booked", |books, _| books.node.0.vcpu += 1),
        ("an operation is still open", |books, entry| {
            books.operations.get_mut(&operation_of(entry)).expect("it is there").status = "running".into();
        }),
        ("a machine belongs to nobody", |books, entry| {
            let gone = cvm_of(books, entry).uid.clone();
            books.cvms.retain(|_, cvm| cvm.uid != gone);
        }),
    ];
    // An update of a machine that is still there, carried out while it ran.
    let suits = |entry: &&Entry| {
        let updated =
            matches!(&entry.outcome, Outcome::Ok(answer) if answer.text("correlation_id").is_some());
        updated && !cvm_of(&books, entry).deleted && {
            let operation = &books.operations[&operation_of(entry)];
            operation.status == "succeeded" && operation.steps.iter().any(|step| step == "start")
        }
    };
    let entry = told.log.iter().find(suits).expect("an update of a running machine");
    for (what, wrong) in wrongs {
        let mut books = Books::read(&cloud.data(), &cloud.node).await;
        wrong(&mut books, entry);
        assert!(!books.audit(&told).0.is_empty(), "{what}, and the audit does not notice");
    }
}

fn operation_of(entry: &Entry) -> uuid::Uuid {
    let Outcome::Ok(answer) = &entry.outcome else { panic!("{entry:?} was not accepted") };
    answer.text("correlation_id").expect("an id").parse().expect("a UUID")
}

fn cvm_of<'a>(books: &'a Books, entry: &Entry) -> &'a Cvm {
    books.cvms.values().find(|cvm| cvm.uid == entry.cvm).expect("it is there")
}

/// The effects on the machine of an update, and where among them its own of this kind is.
fn effect_of<'a>(books: &'a mut Books, entry: &Entry, change: Change) -> (&'a mut Vec<Effect>, usize) {
    let generation = books.operations[&operation_of(entry)].generation;
    let vm = cvm_of(books, entry).vm;
    let effects = books.effects.get_mut(&vm).expect("effects");
    let its = |effect: &Effect| effect.generation == generation && effect.change == change;
    let at = effects.iter().position(its).expect("it had this effect");
    (effects, at)
}

fn double(books: &mut Books, entry: &Entry, change: Change) {
    let (effects, at) = effect_of(books, entry, change);
    effects.insert(at, effects[at].clone());
}

/// Many clients send one request under one key, and the server is killed while it answers: one effect, and one answer for
/// all of them.
#[tokio::test(flavor = "multi_thread")]
async fn one_key_has_one_effect_and_one_answer() {
    let mut rng = StdRng::seed_from_u64(13);
    let mut cloud = Cloud::start(Setup::seeded(13)).await;
    let (cvm, vm) = Api::new(&cloud).deploy("one-key").await;
    let rounds = 10 * scale();
    for round in 0..rounds {
        let mut clients = JoinSet::new();
        for _ in 0..64 {
            clients.spawn(persist(Api::new(&cloud), format!("/cvms/{cvm}"), round));
        }
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..30_000))).await;
        cloud.kill();
        cloud.boot().await;
        let answers = clients.join_all().await;
        assert!(answers.iter().all(|answer| *answer == answers[0]), "round {round}: {answers:?}");
        Api::new(&cloud).rest().await;
    }
    cloud.terminate().await;
    let books = Books::read(&cloud.data(), &cloud.node).await;
    books.audit_alone().assert_none();
    let updates = books.operations.values().filter(|operation| operation.kind == "update").count();
    assert_eq!(updates as u64, rounds);
    let applied = books.effects[&vm].iter().filter(|effect| effect.change == Change::Apply).count();
    assert_eq!(applied as u64, rounds + 1);
}

/// Sends an update until it is answered. Status and body.
async fn persist(mut api: Api, path: String, round: u64) -> (u16, serde_json::Value) {
    let patch = json!({ "user_config": format!("round {round}") });
    loop {
        let life = api.life();
        match api.send(reqwest::Method::PATCH, &path, Some(&patch), Some(&format!("round-{round}"))).await {
            Outcome::Ok(answer) => return (answer.status.as_u16(), answer.body),
            // The first of them is still being answered.
            Outcome::Refused(answer) if answer.status.as_u16() == 409 => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Outcome::Refused(answer) => panic!("{answer:?}"),
            Outcome::Unknown(_) | Outcome::NotSent => api.next_life(life).await,
        }
    }
}

/// What the node holds is damaged between stage and start. The update must not pass for one that succeeded.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_on_the_node_fails_the_update() {
    let cloud = Cloud::start(Setup::seeded(11)).await;
    let api = Api::new(&cloud);
    let (cvm, vm) = api.deploy("flipped").await;
    let before = cloud.node.observe(&[vm]).await.expect("it answers").remove(0);
    let slow = Planned { fault: Fault::SlowStop { seconds: 1 }, once: true, vm: Some(vm) };
    cloud.node.plan(slow).await.expect("planned");
    let compose = "services:\n  web:\n    image: web:2\n";
    let patch = json!({ "docker_compose_file": compose, "memory": 2048, "user_config": "new" });
    let answer = api.expect(reqwest::Method::PATCH, &format!("/cvms/{cvm}"), Some(&patch)).await;
    let operation = format!("/operations/{}", answer.text("correlation_id").expect("an id"));
    until("the machine goes down", async || api.get(&operation).await["step"] == "stop").await;
    assert_eq!(cloud.node.corrupt_compose(vm).await, Ok(true));
    api.rest().await;
    let operation = api.get(&operation).await;
    assert_eq!(operation["status"], "failed", "{operation}");
    assert_eq!(operation["reason"]["code"], "boot_failed", "{operation}");
    let put_back = operation["put_back"].as_str().expect("it was put back");
    assert_eq!(api.get(&format!("/operations/{put_back}")).await["status"], "succeeded");
    let after = cloud.node.observe(&[vm]).await.expect("it answers").remove(0);
    assert_eq!(after.guest, Guest::Done);
    assert_eq!((after.compose_hash, after.size), (before.compose_hash, before.size));
    assert_eq!(after.user_config_sha256, None);
    assert_eq!(after.boot_count, 3);
}

/// The answers to stop, apply and start are lost, so each call is repeated, and each has one effect.
#[tokio::test(flavor = "multi_thread")]
async fn answers_lost_after_the_effect_leave_one_effect() {
    let cloud = Cloud::start(Setup::seeded(12)).await;
    let api = Api::new(&cloud);
    let (cvm, vm) = api.deploy("answers").await;
    for _ in 0..3 {
        let lost = Planned { fault: Fault::AnswerLost, once: true, vm: Some(vm) };
        cloud.node.plan(lost).await.expect("planned");
    }
    let operation = api.update(&cvm, &json!({ "memory": 2048, "user_config": "new" })).await;
    assert_eq!(operation["status"], "succeeded", "{operation}");
    assert_eq!(cloud.node.planned().await, Ok(vec![]), "all three have struck");
    let effects = cloud.node.effects(vm).await.expect("it answers");
    assert_eq!(effects, ["apply", "start", "stop", "apply", "start"]);
    let seen = cloud.node.observe(&[vm]).await.expect("it answers").remove(0);
    assert_eq!((seen.boot_count, seen.user_config_sha256), (2, Some(sha256(b"new"))));
}
