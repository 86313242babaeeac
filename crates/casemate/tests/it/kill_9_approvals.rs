//! The server is killed a hundred times between the acceptance of an approved update and the use of its token, and the update
//! is made once.

use std::path::Path;
use std::time::Duration;

use casemate_chain::Action;
use casemate_chain::dev::{ACCOUNTS, Anvil, find_anvil};
use casemate_server::driver::sim::{Change, SimConfig};
use casemate_types::ids::{AppId, ComposeHash};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::audit::Books;
use crate::client::{Answer, Api, Outcome};
use crate::cloud::{Cloud, Setup, until};
use crate::scale;

const CHAIN: u64 = 31337;

/// An anvil with a key service's contract on it, and a cloud that asks it.
struct Governed {
    anvil: Anvil,
    cloud: Cloud,
    cvm: String,
    vm: casemate_types::ids::VmUuid,
    app: AppId,
    _settings: tempfile::TempDir,
}

impl Governed {
    async fn start(seed: u64) -> Self {
        let node_modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/js/node_modules");
        let (named, path) = (std::env::var_os("ANVIL_BIN"), std::env::var_os("PATH"));
        let program = find_anvil(named.as_deref(), path.as_deref(), &[node_modules])
            .unwrap_or_else(|error| panic!("{error}; scripts/tools node installs it"));
        let anvil = Anvil::start(&program, CHAIN, 0, &[]).await.expect("it starts");
        let hash = |hash: &str| hash.parse::<ComposeHash>().expect("a hash").0;
        let images = SimConfig::node(1).facts.images;
        let images: Vec<_> = images.iter().map(|image| hash(&image.os_image_hash)).collect();
        let kms = anvil.chain.deploy(&images, "").await.expect("the node does it").kms;

        let settings = tempfile::tempdir().expect("a temporary folder");
        let file = settings.path().join("casemate.toml");
        let text = format!(
            "[kms]\nallow_operator_custody = true\n[[kms.contracts]]\nslug = \"local\"\nchain_id = {CHAIN}\ncontract = \"0x{kms}\"\n\
             [[chains]]\nchain_id = {CHAIN}\nrpc_urls = [\"{}\"]\nblocks_on_demand = true\n",
            anvil.chain.url()
        );
        std::fs::write(&file, text).expect("the folder is ours");
        let options = vec![format!("--config={}", file.display())];
        let cloud = Cloud::start(Setup { options, ..Setup::seeded(seed) }).await;

        let api = Api::new(&cloud);
        let document = json!({ "docker_compose_file": compose(0) });
        let body = json!({ "name": "governed", "compose_file": document, "kms_id": "local" });
        let prepared = api.expect(Method::POST, "/cvms/provision", Some(&body)).await.body;
        let text = |name: &str| prepared[name].as_str().unwrap_or_else(|| panic!("{name} in {prepared}"));
        let (device, first) = (text("device_id").parse().expect("a device"), text("compose_hash").parse());
        let app = anvil.chain.deploy_app(kms, ACCOUNTS[1].address, Some(device), first.ok());
        let (app, _) = app.await.expect("the node does it");
        let body = json!({ "app_id": app, "compose_hash": prepared["compose_hash"] });
        let answer = api.expect(Method::POST, "/cvms", Some(&body)).await;
        let cvm = answer.text("vm_uuid").expect("a UUID").to_owned();
        let vm = cvm.parse().expect("a UUID");
        api.rest().await;
        Self { anvil, cloud, cvm, vm, app, _settings: settings }
    }

    /// An update that waits for its token, and whose hash is registered: its token, and its approval's path.
    async fn prepare(&self, round: u64) -> (String, String) {
        let api = Api::new(&self.cloud);
        let patch = json!({ "docker_compose_file": compose(round) });
        let path = format!("/cvms/{}", self.cvm);
        let asked = api.send_with(Method::PATCH, &path, Some(&patch), &[("x-prepare-only", "true")]).await;
        let Outcome::Refused(Answer { status, body, .. }) = asked else { panic!("{asked:?}") };
        assert_eq!(status.as_u16(), 465, "{body}");
        let details = body["details"].as_array().expect("a list");
        let detail = |field: &str| {
            let found = details.iter().find(|detail| detail["field"] == field);
            found.and_then(|detail| detail["value"].as_str()).unwrap_or_else(|| panic!("{field} in {body}"))
        };
        let hash = detail("compose_hash").parse().expect("a hash");
        let action = Action::AddComposeHash(hash);
        self.anvil.chain.act(ACCOUNTS[1].address, self.app, action).await.expect("the owner may");
        (detail("commit_token").to_owned(), format!("/approvals/{}", detail("approval_id")))
    }
}

fn compose(version: u64) -> String {
    format!("services:\n  web:\n    image: web:{version}\n")
}

/// Uses a token until it is known what came of it: the operation.
async fn commit(mut api: Api, path: String, token: String) -> String {
    let body = json!({ "token": token });
    loop {
        let life = api.life();
        match api.send(Method::POST, &path, Some(&body), None).await {
            Outcome::Ok(answer) => return answer.text("correlation_id").expect("an id").to_owned(),
            // It was carried out, and nobody heard the answer: the refusal names what did it.
            Outcome::Refused(answer) if answer.status.as_u16() == 400 => {
                let used = answer.body["details"][0]["value"].as_str();
                return used.unwrap_or_else(|| panic!("{answer:?}")).to_owned();
            }
            Outcome::Refused(answer) => panic!("{answer:?}"),
            Outcome::Unknown(_) | Outcome::NotSent => api.next_life(life).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_approval_is_lost_and_none_is_carried_out_twice() {
    let mut rng = StdRng::seed_from_u64(14);
    let mut governed = Governed::start(14).await;
    let rounds = 100 * scale();
    for round in 1..=rounds {
        let (token, approval) = governed.prepare(round).await;
        let api = Api::new(&governed.cloud);
        // One of four is committed by the server itself, which looks when it starts.
        let by_itself = round % 4 == 0;
        let client = if by_itself {
            api.expect(Method::POST, &format!("{approval}/auto-commit"), Some(&json!({}))).await;
            governed.cloud.kill();
            governed.cloud.boot().await;
            None
        } else {
            let path = format!("/cvms/{}/commit-update", governed.cvm);
            Some(tokio::spawn(commit(api.clone(), path, token.clone())))
        };
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..25_000))).await;
        governed.cloud.kill();
        if rng.random_ratio(1, 8) {
            governed.cloud.boot_in_vain(Duration::from_micros(rng.random_range(0..60_000))).await;
        }
        governed.cloud.boot().await;
        let told = match client {
            Some(client) => Some(client.await.expect("no panic")),
            None => None,
        };
        let mut found = Value::Null;
        until("the approval is carried out", async || {
            found = api.get(&approval).await;
            found["state"] != "open"
        })
        .await;
        assert_eq!(found["state"], "committed", "round {round}: {found}");
        if let Some(told) = told {
            assert_eq!(found["correlation_id"], told, "round {round}");
        }
        api.rest().await;
        // The token is used up, whoever used it.
        let again = commit(api.clone(), format!("/cvms/{}/commit-update", governed.cvm), token).await;
        assert_eq!(found["correlation_id"], again, "round {round}");
    }
    let (status, _) = governed.cloud.terminate().await;
    assert!(status.success(), "{status}");
    let books = Books::read(&governed.cloud.data(), &governed.cloud.node).await;
    books.audit_alone().assert_none();
    let updates = books.operations.values().filter(|operation| operation.kind == "update");
    let ended: Vec<_> = updates.map(|operation| operation.status.as_str()).collect();
    assert_eq!(ended, vec!["succeeded"; usize::try_from(rounds).expect("not that many")]);
    let starts = books.effects[&governed.vm].iter().filter(|effect| effect.change == Change::Start).count();
    assert_eq!(starts as u64, rounds + 1, "each update restarts once");
}
