//! CVMs whose keys a contract governs: made, replicated, refused.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use casemate_chain::Scripted;
use casemate_testkit::{World, compose};
use casemate_types::ids::{Address, AppId};
use casemate_types::version::ApiVersion;
use serde_json::{Value, json};

use crate::approvals::{KMS, OWNER, Stage, allow_images, code, deploy_app, detail, hash, text};
use crate::client::{Answer, Client};

struct Prepared {
    world: World,
    chain: Arc<Scripted>,
    client: Client,
    app_id: AppId,
    prepared: Value,
}

impl Prepared {
    async fn start() -> Self {
        let chain = Arc::new(Scripted::default());
        let world = World::with_chain(chain.clone()).await;
        let client = Client::of(&world).await;
        allow_images(&world, &chain);
        let file = json!({ "docker_compose_file": compose("web:1") });
        let asked = json!({ "name": "web-one", "kms": "BASE", "compose_file": file });
        let prepared = client.post("/cvms/provision", asked).await.expect(200);
        let app_id = AppId(world.clock.random());
        Self { world, chain, client, app_id, prepared }
    }

    fn body(&self) -> Value {
        json!({
            "app_id": format!("0x{}", self.app_id.to_string().to_uppercase()),
            "compose_hash": self.prepared["compose_hash"],
            "kms_id": self.prepared["kms_info"]["slug"],
            "contract_address": format!("0x{}", self.app_id),
            "deployer_address": format!("0x{OWNER}"),
        })
    }

    async fn create(&self, change: impl FnOnce(&mut Value)) -> Answer {
        let mut body = self.body();
        change(&mut body);
        self.client.post("/cvms", body).await
    }
}

fn field(answer: &Answer) -> Value {
    answer.json()["details"][0]["field"].clone()
}

#[tokio::test(start_paused = true)]
async fn the_apps_id_is_the_address_of_the_contract_that_the_client_deploys() {
    let it = Prepared::start().await;
    assert_eq!(
        (&it.prepared["app_id"], &it.prepared["app_env_encrypt_pubkey"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(it.prepared["kms_info"]["kms_contract_address"], format!("0x{KMS}"));
    deploy_app(&it.chain, it.app_id, &it.prepared);
    let made = it.create(|_| ()).await.expect(200);
    assert_eq!(made["app_id"], json!(it.app_id));
    assert_eq!(made["app_auth_contract_address"], format!("0x{}", it.app_id));
    assert_eq!(made["deployer_address"], format!("0x{OWNER}"));
    it.world.settle().await;
    assert_eq!(it.client.json("/cvms/web-one").await["status"], "running");
    let again = it.create(|_| ()).await.expect(200);
    assert_eq!(again["vm_uuid"], made["vm_uuid"], "the same request is the same machine");
    // The key of an app that nobody here has heard of yet.
    let key = it.client.json(&format!("/kms/base/pubkey/0x{}", AppId([9; 20]))).await;
    assert_eq!(text(&key["public_key"]).len(), 64);
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_is_repeated_gets_the_same_answer() {
    let it = Prepared::start().await;
    deploy_app(&it.chain, it.app_id, &it.prepared);
    let client = it.client.header("idempotency-key", "once");
    let first = client.post("/cvms", it.body()).await.expect(200);
    assert_eq!(first["deployer_address"], format!("0x{OWNER}"));
    assert_eq!(client.post("/cvms", it.body()).await.expect(200), first);
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_chain_takes_altogether_has_one_deadline() {
    let it = Prepared::start().await;
    deploy_app(&it.chain, it.app_id, &it.prepared);
    let timed = async |answer: std::pin::Pin<Box<dyn Future<Output = Answer> + '_>>| {
        let begun = it.world.clock.now();
        let answer = answer.await;
        (answer, it.world.clock.now().duration_since(begun).as_secs())
    };
    let assert_late = |(answer, seconds): (Answer, i64)| {
        assert_eq!(text(&answer.expect(503)["detail"]), "The chain is not available");
        assert!(answer.headers.contains_key("retry-after"));
        assert_eq!(seconds, 25);
    };
    // Registration, proof and image: each in time, together not.
    it.chain.set_slow(Duration::from_secs(9));
    assert_late(timed(Box::pin(it.create(|_| ()))).await);
    it.chain.set_slow(Duration::from_secs(8));
    let (made, seconds) = timed(Box::pin(it.create(|_| ()))).await;
    assert_eq!((made.status.as_u16(), seconds), (200, 24), "{}", made.text());
    it.chain.set_slow(Duration::ZERO);
    it.world.settle().await;

    it.chain.set_slow(Duration::from_secs(9));
    let allowed = format!("/apps/{}/allowed", it.app_id);
    assert_late(timed(Box::pin(it.client.get(&allowed))).await);
    assert_late(timed(Box::pin(it.client.post("/cvms/web-one/is-allowed", json!({})))).await);
    let (there, seconds) = timed(Box::pin(it.client.get("/kms/on-chain/base"))).await;
    let images = there.expect(200)["contracts"][0]["os_images"].clone();
    let images = images.as_array().expect("a list");
    assert!(images.len() > 2 && images.iter().all(|image| image["on_chain_allowed"] == true), "{images:?}");
    assert_eq!(seconds, 9, "all images at once");
}

#[tokio::test(start_paused = true)]
async fn every_refusal_names_what_is_wrong() {
    let it = Prepared::start().await;
    let begun = it.world.clock.now();
    let unregistered = it.create(|_| ()).await;
    assert_eq!(
        (code(&unregistered, 400), field(&unregistered)),
        (json!("ERR-02-008"), json!("contract_address"))
    );
    let waited = it.world.clock.now().duration_since(begun).as_secs();
    assert!((10..30).contains(&waited), "it may be seen a little later: {waited} s");

    // One of another key service is none of ours.
    it.chain.register_app(Address([0x33; 20]), it.app_id, OWNER);
    let foreign = it.create(|_| ()).await;
    assert_eq!(field(&foreign), "contract_address");
    assert!(foreign.text().contains("not registered"), "{}", foreign.text());
    it.chain.register_app(KMS, it.app_id, OWNER);
    let hash = text(&it.prepared["compose_hash"]);
    let refused = it.create(|_| ()).await;
    assert_eq!(code(&refused, 468), "ERR-01-008");
    assert!(refused.text().contains(&hash), "{}", refused.text());
    it.chain.allow_hash(it.app_id, hash.parse().expect("a hash"));
    let refused = it.create(|_| ()).await;
    assert_eq!(code(&refused, 468), "ERR-01-008");
    assert!(refused.text().contains("device"), "{}", refused.text());

    deploy_app(&it.chain, it.app_id, &it.prepared);
    let other = it.create(|body| body["contract_address"] = format!("0x{}", "99".repeat(20)).into()).await;
    assert_eq!((code(&other, 400), field(&other)), (json!("ERR-02-008"), json!("contract_address")));
    let other = it.create(|body| body["kms_id"] = "phala".into()).await;
    assert_eq!((code(&other, 400), field(&other)), (json!("ERR-02-008"), json!("kms_id")));
    let unknown = it.create(|body| body["transaction_hash"] = format!("0x{}", "77".repeat(32)).into()).await;
    assert_eq!(code(&unknown, 467), "ERR-01-007");
    for image in &it.world.app.node(1).expect("a node").facts().images {
        let mut bytes = [0; 32];
        hex::decode_to_slice(&image.os_image_hash, &mut bytes).expect("a hash");
        it.chain.forbid_os_image(KMS, bytes);
    }
    let image = it.create(|_| ()).await;
    assert_eq!((code(&image, 400), field(&image)), (json!("ERR-02-013"), json!("image")));
    allow_images(&it.world, &it.chain);
    it.chain.set_down(true);
    it.create(|_| ()).await.expect(503);
    it.chain.set_down(false);
    assert_eq!(it.client.json("/cvms").await.as_array().map_or(0, Vec::len), 0, "nothing was made");
    it.create(|_| ()).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn an_app_id_that_was_chosen_needs_no_number() {
    let it = Prepared::start().await;
    let file = json!({ "docker_compose_file": compose("web:1") });
    let mut asked = json!({ "name": "web-two", "kms": "BASE", "compose_file": file, "app_id": it.app_id });
    let prepared = it.client.post("/cvms/provision", asked.clone()).await.expect(200);
    assert_eq!(prepared["app_id"], json!(it.app_id));
    assert_eq!(text(&prepared["app_env_encrypt_pubkey"]).len(), 64);
    asked["nonce"] = 3.into();
    it.client.post("/cvms/provision", asked).await.expect(422);
}

#[tokio::test(start_paused = true)]
async fn a_replica_waits_for_its_device_and_is_made_once() {
    let stage = Stage::start().await;
    let device = stage.world.app.node(1).expect("a node").facts().device_id.clone();
    let made = stage.client.post(&stage.path("/replicas"), json!({})).await.expect(200);
    assert_eq!((&made["name"], &made["app_id"]), (&json!("web-one-2"), &json!(stage.cvm.app_id)));
    stage.world.settle().await;
    assert_eq!(stage.client.json("/cvms/web-one-2").await["status"], "running");

    stage.chain.forbid_device(stage.cvm.app_id, &device);
    let asked = stage.client.post(&stage.path("/replicas"), json!({})).await;
    let (token, hash) = (text(&detail(&asked, "commit_token")), hash(&asked));
    assert_eq!(detail(&asked, "onchain_status")["device_id_allowed"], false);
    let route = text(&detail(&asked, "api_commit_url"));
    assert!(route.ends_with(&format!("/cvms/{}/commit-replica", stage.cvm.vm_uuid.0.simple())), "{route}");
    let body = json!({ "token": token, "compose_hash": format!("0x{hash}"), "transaction_hash": "already-registered" });
    assert_eq!(
        code(&stage.client.post(&stage.path("/commit-replica"), body.clone()).await, 468),
        "ERR-01-008"
    );
    // It is no update, and the other way round.
    stage.commit(&token, "", "").await.expect(400);
    let (_, update) = stage.prepare(json!({ "public_logs": false })).await;
    let wrong = json!({ "token": update, "compose_hash": "", "transaction_hash": "" });
    stage.client.post(&stage.path("/commit-replica"), wrong).await.expect(400);
    stage.chain.allow_device(stage.cvm.app_id, &device);
    let made = stage.client.post(&stage.path("/commit-replica"), body.clone()).await.expect(200);
    assert_eq!(made["name"], "web-one-3");
    let used = stage.client.post(&stage.path("/commit-replica"), body).await.expect(400);
    assert!(text(&used["message"]).starts_with("Invalid commit token"), "{used}");
    stage.world.settle().await;
    stage.world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_prepared_and_committed_on_one_route() {
    let stage = Stage::start().await;
    let path = format!("/apps/{}/instances", stage.cvm.app_id);
    let asked = stage.client.header("x-prepare-only", "true").post(&path, json!({ "name": "web-two" })).await;
    let (token, hash) = (text(&detail(&asked, "commit_token")), hash(&asked));
    let body = json!({ "token": token, "compose_hash": hash, "transaction_hash": "already-registered" });
    let stranger = Client::stranger(&stage.world).await;
    stranger.post(&path, body.clone()).await.expect(404);
    let made = stage.client.post(&path, body).await.expect(201);
    assert_eq!((&made["name"], &made["vcpu"]), (&json!("web-two"), &json!(1)));
    assert!(made["id"].is_string() && made["resource"]["vcpu"] == 1, "{made}");
    let older = stage.client.version(ApiVersion::V20251028);
    let made = older.post(&path, json!({ "docker_compose_file": compose("web:1") })).await.expect(201);
    assert!(made["id"].is_number() && made.get("resource").is_none(), "{made}");
    let other = stage.client.post(&path, json!({ "docker_compose_file": compose("web:2") })).await;
    assert_eq!(detail(&other, "onchain_status")["compose_hash_allowed"], false);
    stage.client.post(&path, json!({ "node_id": 99 })).await.expect(404);
    let unknown = stage.client.post(&path, json!({ "compose_hash": "ab".repeat(32) })).await;
    assert_eq!(field(&unknown), "compose_hash");
    // Where no contract has a say nothing is asked for.
    let plain = stage.world.deploy("web-plain", "web:1").await;
    let headers = stage.client.header("x-prepare-only", "true");
    headers.post(&format!("/cvms/{}/replicas", plain.uid), json!({})).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn a_boot_that_the_contract_refuses_is_put_back_with_its_reason() {
    let stage = Stage::start().await;
    let asked = stage.ask(json!({ "docker_compose_file": compose("web:2") })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let id = text(&stage.confirm(asked, "").await.expect(202)["correlation_id"]);
    // Right before the start, after the last look: nobody else could have told.
    stage.forbid_before_start(asked).await;
    let operation = stage.client.json(&format!("/operations/{id}")).await;
    assert_eq!(operation["status"], "failed", "{operation}");
    assert!(text(&operation["reason"]["message"]).contains("Compose hash not allowed"), "{operation}");
    assert!(operation["put_back"].is_string(), "{operation}");
    assert_eq!(stage.client.json(&stage.path("")).await["status"], "running");
    assert_eq!(stage.hash_of(stage.now().revision), stage.hash_of(1));
}
