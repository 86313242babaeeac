//! Many clients change different fields of the same machines: all changes land, each machine has one order of them.

use std::collections::HashMap;
use std::time::Duration;

use casemate_server::driver::sim::Change;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::audit::{Books, open, rows};
use crate::client::{Answer, Api, Outcome};
use crate::cloud::{Cloud, Setup};
use crate::scale;

const CLIENTS: usize = 64;
const MACHINES: usize = 16;
/// So many, or as many as fit into [`BUDGET`].
const PATCHES: u64 = 10_000;
const BUDGET: Duration = Duration::from_secs(40);

/// The fields. Each has one owner on each machine.
const FIELDS: [&str; CLIENTS / MACHINES] = ["vcpu", "memory", "user_config", "docker_compose_file"];

/// The `n`th value of a field. Neighbours differ.
fn value(field: &str, n: u64) -> Value {
    match field {
        "vcpu" => (1 + n % 200).into(),
        "memory" => (1024 + n).into(),
        "user_config" => format!("config {n}").into(),
        _ => format!("services:\n  web:\n    image: patched:{n}\n").into(),
    }
}

/// A change that was accepted.
struct Landed {
    operation: Uuid,
    field: &'static str,
    n: u64,
    sent_at: Instant,
    answered_at: Instant,
}

/// Changes one field of one machine, one value after the other. Waits when the machine is busy, as clients do.
async fn change(
    api: Api,
    cvm: String,
    field: &'static str,
    count: u64,
    until: Instant,
    mut rng: StdRng,
) -> (Vec<Landed>, u64) {
    let path = format!("/cvms/{cvm}");
    let (mut landed, mut busy) = (Vec::new(), 0);
    for n in 1..=count {
        if Instant::now() >= until {
            break;
        }
        let mut patience = 8;
        loop {
            let sent_at = Instant::now();
            match api.send(Method::PATCH, &path, Some(&json!({ field: value(field, n) })), None).await {
                Outcome::Ok(answer) => {
                    let operation =
                        answer.text("correlation_id").and_then(|id| id.parse().ok()).expect("a UUID");
                    landed.push(Landed { operation, field, n, sent_at, answered_at: Instant::now() });
                    break;
                }
                Outcome::Refused(Answer { status, .. }) if status.as_u16() == 409 => {
                    busy += 1;
                    tokio::time::sleep(Duration::from_millis(rng.random_range(1..patience))).await;
                    patience = (patience * 2).min(512);
                }
                other => panic!("{field} of {cvm}: {other:?}"),
            }
        }
    }
    (landed, busy)
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_different_fields_all_land_in_one_order() {
    let seed = 40;
    let mut cloud = Cloud::start(Setup::seeded(seed)).await;
    let api = Api::new(&cloud);
    let mut cvms = Vec::new();
    for machine in 0..MACHINES {
        cvms.push(api.deploy(&format!("machine-{machine}")).await.0);
    }
    let each = (PATCHES * scale()).div_ceil(CLIENTS as u64);
    let begun = Instant::now();
    let until = begun + BUDGET * u32::try_from(scale()).expect("not that much");
    let mut clients = JoinSet::new();
    for (client, number) in (0..CLIENTS).zip(0..) {
        let (cvm, field) = (cvms[client % MACHINES].clone(), FIELDS[client / MACHINES]);
        let rng = StdRng::seed_from_u64(seed ^ (number << 32));
        let changes = change(Api::new(&cloud), cvm.clone(), field, each, until, rng);
        clients.spawn(async move { (cvm, changes.await) });
    }
    let (mut landed, mut busy): (HashMap<String, Vec<Landed>>, u64) = (HashMap::new(), 0);
    while let Some(client) = clients.join_next().await {
        let (cvm, (its, refused)) = client.expect("no client panics");
        assert!(!its.is_empty(), "every client has its turn");
        landed.entry(cvm).or_default().extend(its);
        busy += refused;
    }
    let took = begun.elapsed();
    api.rest().await;
    let (status, _) = cloud.terminate().await;
    assert!(status.success(), "{status}");
    let total = landed.values().map(Vec::len).sum::<usize>();
    println!(
        "{total} patches in {took:?}, {:.0} a second; {busy} found the machine busy",
        total as f64 / took.as_secs_f64()
    );

    let books = Books::read(&cloud.data(), &cloud.node).await;
    books.audit_alone().assert_none();
    let histories = histories(&cloud);
    for (id, cvm) in &books.cvms {
        let landed = landed.remove(&cvm.uid).expect("it was changed");
        let history = &histories[id];
        assert_eq!(history.len(), landed.len() + 1, "{}: a revision for each change", cvm.name);
        one_order(&cvm.name, history, &landed);
        let applied: Vec<_> = books.effects[&cvm.vm]
            .iter()
            .filter(|effect| effect.change == Change::Apply)
            .map(|effect| effect.revision)
            .collect();
        assert_eq!(
            applied,
            (1..=cvm.revision).collect::<Vec<_>>(),
            "{}: each applied once, in order",
            cvm.name
        );
        let kept = &history.last().expect("at least one").fields;
        for (field, kept) in FIELDS.iter().zip(kept) {
            let last = landed.iter().filter(|change| change.field == *field).map(|change| change.n).max();
            let last = value(field, last.expect("it was changed"));
            assert_eq!(*kept, last, "{}: the last {field} is what its owner wrote last", cvm.name);
        }
    }
}

/// A revision as the store keeps it.
struct Kept {
    operation: Uuid,
    generation: u64,
    fields: [Value; FIELDS.len()],
}

/// All revisions of each CVM, by number.
fn histories(cloud: &Cloud) -> HashMap<i64, Vec<Kept>> {
    let db = open(&cloud.data());
    let sql = "SELECT r.cvm_id, r.op, o.generation, r.vcpu, r.memory_mb, CAST(c.bytes AS TEXT), CAST(d.bytes AS TEXT)
      FROM revision r JOIN operation o ON o.id = r.op JOIN body d ON (d.cvm_id, d.sha256) = (r.cvm_id, r.document)
        LEFT JOIN body c ON (c.cvm_id, c.sha256) = (r.cvm_id, r.user_config)
      ORDER BY r.cvm_id, r.number";
    let found: Vec<(i64, Kept)> = rows(&db, sql, |row| {
        let (vcpu, memory): (u64, u64) = (row.get(3)?, row.get(4)?);
        let (config, document): (Option<String>, String) = (row.get(5)?, row.get(6)?);
        let document: Value = serde_json::from_str(&document).expect("JSON");
        let fields = [vcpu.into(), memory.into(), config.into(), document["docker_compose_file"].clone()];
        Ok((row.get(0)?, Kept { operation: row.get(1)?, generation: row.get(2)?, fields }))
    })
    .expect("the store reads");
    let mut histories: HashMap<i64, Vec<Kept>> = HashMap::new();
    for (cvm, kept) in found {
        histories.entry(cvm).or_default().push(kept);
    }
    histories
}

/// Each revision is the one before it with one accepted change, and no change stands before one that was answered before
/// it was sent.
fn one_order(name: &str, history: &[Kept], landed: &[Landed]) {
    let of: HashMap<Uuid, &Landed> = landed.iter().map(|change| (change.operation, change)).collect();
    let mut last_n: HashMap<&str, u64> = HashMap::new();
    for pair in history.windows(2) {
        let [before, after] = pair else { unreachable!("windows of two") };
        let change =
            of.get(&after.operation).unwrap_or_else(|| panic!("{name}: a revision that nobody asked for"));
        let mut wanted = before.fields.clone();
        let index = FIELDS.iter().position(|field| *field == change.field).expect("one of them");
        wanted[index] = value(change.field, change.n);
        assert_eq!(after.fields, wanted, "{name}: {} {} and nothing else", change.field, change.n);
        assert!(after.generation > before.generation, "{name}: generations grow");
        let last = last_n.insert(change.field, change.n).unwrap_or(0);
        assert_eq!(change.n, last + 1, "{name}: {} in its owner's order", change.field);
    }
    let mut first_answer = None;
    for kept in history[1..].iter().rev() {
        let change = of[&kept.operation];
        let later: Instant = *first_answer.get_or_insert(change.answered_at);
        assert!(change.sent_at <= later, "{name}: a change was answered before an earlier one was sent");
        first_answer = Some(later.min(change.answered_at));
    }
}
