//! The server is killed a hundred times around the moment in which an approval becomes an operation: never two restarts, and
//! never a lost approval.

use std::collections::HashSet;
use std::time::Duration;

use casemate_chain::Action;
use casemate_chain::dev::{ACCOUNTS, Anvil, Contracts};
use casemate_server::driver::Driver;
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, TxHash, VmUuid};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::audit::{Books, open, rows};
use crate::cli::world::anvil;
use crate::client::{Answer, Api, Outcome};
use crate::cloud::{Cloud, Setup, until};
use crate::scale;

const CHAIN: u64 = 8453;
const OWNER: Address = ACCOUNTS[1].address;
const MACHINES: usize = 4;
/// How many try one token at the same time.
const CLIENTS: usize = 3;

/// Who turns an approval into an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Clients with its token.
    Token,
    /// The server itself, as soon as it looks.
    Itself,
    /// Both at once.
    Both,
}

/// A cloud whose key service asks a contract.
struct Site {
    cloud: Cloud,
    api: Api,
    chain: Anvil,
    contracts: Contracts,
    _settings: tempfile::TempDir,
}

struct Machine {
    cvm: String,
    vm: VmUuid,
    app: AppId,
}

/// An update that is allowed and waits for somebody to commit it.
struct Waiting {
    approval: String,
    token: String,
    tx: TxHash,
    /// Effects on its machine before it.
    effects: usize,
    /// What the clients heard.
    heard: Vec<Outcome>,
}

impl Site {
    async fn start(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = folder.path().join("settings.toml");
        let options = vec![format!("--config={}", settings.display())];
        let mut cloud = Cloud::new(Setup { options, boot_ms: 5, stop_ms: 5, ..Setup::seeded(seed) }).await;
        let program = anvil().expect("an anvil; scripts/tools node installs it");
        let chain = Anvil::start(&program, CHAIN, 0, &[]).await.expect("it starts");
        let images = cloud.node.describe().await.expect("the node answers").images;
        let image = |hash: &str| hash.parse::<ComposeHash>().expect("32 bytes").0;
        let images: Vec<_> = images.iter().map(|of| image(&of.os_image_hash)).collect();
        let contracts = chain.chain.deploy(&images, "").await.expect("deployed");
        let text = format!(
            "[kms]\nallow_operator_custody = true\n[[kms.contracts]]\nslug = \"base\"\nchain_id = {CHAIN}\ncontract = \"0x{}\"\n\
             [[chains]]\nchain_id = {CHAIN}\nrpc_urls = [\"{}\"]\nblocks_on_demand = true\n",
            contracts.kms,
            chain.chain.url()
        );
        std::fs::write(settings, text).expect("the folder is ours");
        cloud.boot().await;
        let api = Api::new(&cloud);
        Self { cloud, api, chain, contracts, _settings: folder }
    }

    async fn deploy(&self, name: &str) -> Machine {
        let document = json!({ "docker_compose_file": compose(0) });
        let body = json!({
            "name": name, "kms": "base", "compose_file": document, "vcpu": 1, "memory": 1024, "disk_size": 10,
        });
        let provisioned = self.api.expect(Method::POST, "/cvms/provision", Some(&body)).await;
        let hash: ComposeHash = parsed(&provisioned, "compose_hash");
        let device: DeviceId = parsed(&provisioned, "device_id");
        let made = self.chain.chain.deploy_app(self.contracts.kms, OWNER, Some(device), Some(hash)).await;
        let app = made.expect("deployed").0;
        let body = json!({ "app_id": app, "compose_hash": hash });
        let answer = self.api.expect(Method::POST, "/cvms", Some(&body)).await;
        self.api.rest().await;
        Machine { cvm: answer.text("id").expect("an id").to_owned(), vm: parsed(&answer, "vm_uuid"), app }
    }

    /// Prepares the `number`th update of a machine and registers it.
    async fn prepare(&self, machine: &Machine, number: u64, how: How) -> Waiting {
        let effects = self.cloud.node.effects(machine.vm).await.expect("the node answers").len();
        let path = format!("/cvms/{}", machine.cvm);
        let body = json!({ "docker_compose_file": compose(number) });
        let automatic = if how == How::Token { "false" } else { "true" };
        let headers = [("x-prepare-only", "true"), ("x-auto-commit", automatic)];
        let asked = match self.api.send_with(Method::PATCH, &path, Some(&body), &headers).await {
            Outcome::Refused(answer) if answer.status.as_u16() == 465 => answer,
            other => panic!("{path}: {other:?}"),
        };
        let detail = |field: &str| {
            let details = asked.body["details"].as_array().expect("a list");
            let found = details.iter().find(|detail| detail["field"] == field);
            found.and_then(|detail| detail["value"].as_str()).expect("text").to_owned()
        };
        let approval = format!("/approvals/{}", detail("approval_id"));
        let hash = detail("compose_hash").parse().expect("a hash");
        let tx = self.chain.chain.act(OWNER, machine.app, Action::AddComposeHash(hash)).await;
        let tx = tx.expect("the node does it");
        Waiting { approval, token: detail("commit_token"), tx, effects, heard: Vec::new() }
    }

    async fn commit(&self, machine: &Machine, waiting: &Waiting) -> Outcome {
        commit(self.api.clone(), machine.cvm.clone(), waiting.token.clone(), waiting.tx).await
    }
}

fn compose(number: u64) -> String {
    format!("services:\n  web:\n    image: web:{number}\n")
}

#[track_caller]
fn parsed<T: std::str::FromStr>(answer: &Answer, field: &str) -> T {
    answer.text(field).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{field} in {answer:?}"))
}

async fn commit(api: Api, cvm: String, token: String, tx: TxHash) -> Outcome {
    let body = json!({ "token": token, "transaction_hash": format!("0x{tx}") });
    api.send(Method::POST, &format!("/cvms/{cvm}/commit-update"), Some(&body), None).await
}

/// How often the server was killed before and after an approval was committed: both have to happen.
#[derive(Debug, Default)]
struct Struck {
    before: u64,
    after: u64,
    /// Accepted, and the answer was lost.
    unheard: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_around_a_commit_restart_once_and_lose_no_approval() {
    let seed = 90;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut site = Site::start(seed).await;
    let mut machines = Vec::new();
    for number in 0..MACHINES {
        machines.push(site.deploy(&format!("machine-{number}")).await);
    }
    let begun = Instant::now();
    let (mut kills, mut number, mut struck) = (0, 0, Struck::default());
    while kills < 100 * scale() {
        number += 1;
        let how = [How::Token, How::Itself, How::Token, How::Both][rng.random_range(0..4)];
        let mut waiting = Vec::new();
        for machine in &machines {
            waiting.push(site.prepare(machine, number, how).await);
        }
        if how != How::Token {
            // A server looks first of all for what it is to commit.
            site.cloud.kill();
            site.cloud.boot().await;
            kills += 1;
        }
        let mut clients = JoinSet::new();
        for (place, waiting) in waiting.iter().enumerate().filter(|_| how != How::Itself) {
            for _ in 0..CLIENTS {
                let (api, cvm) = (site.api.clone(), machines[place].cvm.clone());
                let sends = commit(api, cvm, waiting.token.clone(), waiting.tx);
                clients.spawn(async move { (place, sends.await) });
            }
        }
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..40_000))).await;
        site.cloud.kill();
        kills += 1;
        while rng.random_ratio(1, 8) {
            site.cloud.boot_in_vain(Duration::from_micros(rng.random_range(0..60_000))).await;
            kills += 1;
        }
        site.cloud.boot().await;
        for (place, outcome) in clients.join_all().await {
            waiting[place].heard.push(outcome);
        }
        for (machine, waiting) in machines.iter().zip(&waiting) {
            check(&site, machine, waiting, how, &mut struck).await;
        }
    }
    println!("{kills} kills in {:?}, {number} rounds of {MACHINES} approvals: {struck:?}", begun.elapsed());
    assert!(struck.before > 0 && struck.after > 0, "it was killed elsewhere: {struck:?}");

    let (status, _) = site.cloud.terminate().await;
    assert!(status.success(), "{status}");
    let books = Books::read(&site.cloud.data(), &site.cloud.node).await;
    books.audit_alone().assert_none();
    let sql = "SELECT state, op, evidence IS NOT NULL FROM approval";
    let db = open(&site.cloud.data());
    let approvals: Vec<(String, uuid::Uuid, bool)> =
        rows(&db, sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).expect("the store reads");
    assert!(approvals.iter().all(|(state, _, proven)| state == "committed" && *proven), "{approvals:?}");
    let committed: HashSet<_> = approvals.iter().map(|(_, op, _)| *op).collect();
    let updates = books.operations.iter().filter(|(_, operation)| operation.kind == "update");
    assert_eq!(updates.map(|(id, _)| *id).collect::<HashSet<_>>(), committed, "one operation for each");
    assert_eq!((approvals.len(), committed.len() as u64), (committed.len(), number * MACHINES as u64));
}

/// One approval after the kill: it is still open, or it has one operation. In the end it has, and its machine was restarted
/// once.
async fn check(site: &Site, machine: &Machine, waiting: &Waiting, how: How, struck: &mut Struck) {
    let what = |about: &Value| format!("{how:?}, {:?}: {about}", waiting.heard);
    let mut operations = HashSet::new();
    for outcome in &waiting.heard {
        match outcome {
            Outcome::Ok(answer) => {
                let fresh = operations.insert(parsed::<uuid::Uuid>(answer, "correlation_id"));
                assert!(fresh, "accepted twice: {:?}", waiting.heard);
            }
            Outcome::Refused(answer) => {
                let status = answer.status.as_u16();
                assert!([400, 409].contains(&status), "{answer:?}");
            }
            Outcome::Unknown(_) | Outcome::NotSent => {}
        }
    }
    assert!(operations.len() <= 1, "more than one was accepted: {:?}", waiting.heard);
    let mut approval = site.api.get(&waiting.approval).await;
    let committed = approval["state"] == "committed";
    assert!(committed || approval["state"] == "open", "{}", what(&approval));
    match (committed, operations.is_empty()) {
        (true, true) => struck.unheard += u64::from(how == How::Token),
        (true, false) => struck.after += 1,
        (false, true) => struck.before += 1,
        (false, false) => panic!("an accepted update is lost: {}", what(&approval)),
    }
    if how == How::Token && !committed {
        // Nobody used it up.
        let outcome = site.commit(machine, waiting).await;
        let Outcome::Ok(answer) = &outcome else { panic!("the token was lost: {outcome:?}") };
        operations.insert(parsed(answer, "correlation_id"));
    }
    until("the approval is committed", async || {
        approval = site.api.get(&waiting.approval).await;
        approval["state"] == "committed"
    })
    .await;
    let operation: uuid::Uuid =
        approval["correlation_id"].as_str().and_then(|id| id.parse().ok()).expect("an operation");
    assert!(operations.is_empty() || operations.contains(&operation), "{}", what(&approval));
    site.api.rest().await;
    // Asked again, it says what it became, whoever committed it.
    match site.commit(machine, waiting).await {
        Outcome::Refused(answer) if answer.status.as_u16() == 400 => {
            let said = answer.text("message").unwrap_or_default();
            assert!(said.starts_with("Invalid commit token"), "{answer:?}");
            let named = &answer.body["details"][0];
            assert_eq!(*named, json!({ "field": "correlation_id", "value": operation }), "{answer:?}");
        }
        other => panic!("a used token: {other:?}"),
    }
    let ended = site.api.get(&format!("/operations/{operation}")).await;
    assert_eq!(ended["status"], "succeeded", "{}", what(&ended));
    let effects = site.cloud.node.effects(machine.vm).await.expect("the node answers");
    assert_eq!(effects[waiting.effects..], ["stop", "apply", "start"], "{}", what(&approval));
}
