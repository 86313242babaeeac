//! Updates that a contract has to approve: asked for, proven, committed.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use casemate_chain::Scripted;
use casemate_server::config::Config;
use casemate_server::cvm::state::{Cvm, Status};
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::driver::{Driver, Guest};
use casemate_server::error::Error;
use casemate_server::workflow::approval;
use casemate_server::workflow::commit_token::{self, Named};
use casemate_server::workflow::operation::{FailCode, Operation, State, StepName};
use casemate_server::workflow::update::Outcome;
use casemate_server::workflow::worker::{self, Moment, NoProbe, Probe};
use casemate_testkit::{World, compose};
use casemate_types::ids::{Address, AppId, ComposeHash, OperationId, TxHash};
use casemate_types::patch::{CommitUpdate, TxProof};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::client::{Answer, Client};

pub(crate) const TX: TxHash = TxHash([7; 32]);
const OTHER_TX: TxHash = TxHash([8; 32]);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// The contract of the key service `base`, and who owns apps.
pub(crate) const KMS: Address = Address([0x11; 20]);
pub(crate) const OWNER: Address = Address([0x22; 20]);

/// A CVM of an app whose contract decides.
pub(crate) async fn deploy(world: &World, chain: &Scripted, client: &Client) -> Cvm {
    deploy_as(world, chain, client, "web-one").await
}

/// What the factory of a key service's contract does for a client: an app's contract that allows a hash and a device.
pub(crate) fn deploy_app(chain: &Scripted, app_id: AppId, prepared: &Value) {
    chain.register_app(KMS, app_id, OWNER);
    chain.allow_hash(app_id, text(&prepared["compose_hash"]).parse().expect("a hash"));
    chain.allow_device(app_id, prepared["device_id"].as_str().expect("a device"));
}

/// The images have to be allowed before anything can be prepared.
pub(crate) fn allow_images(world: &World, chain: &Scripted) {
    for image in &world.app.node(1).expect("a node").facts().images {
        let mut hash = [0; 32];
        hex::decode_to_slice(&image.os_image_hash, &mut hash).expect("a hash");
        chain.allow_os_image(KMS, hash);
    }
}

pub(crate) async fn deploy_as(world: &World, chain: &Scripted, client: &Client, name: &str) -> Cvm {
    deploy_at(world, chain, client, name, ("BASE", 8453)).await
}

/// The same with another key service: its name and the id of its chain.
pub(crate) async fn deploy_at(
    world: &World,
    chain: &Scripted,
    client: &Client,
    name: &str,
    (kms, chain_id): (&str, u64),
) -> Cvm {
    allow_images(world, chain);
    let asked = json!({
        "name": name, "kms": kms, "compose_file": { "docker_compose_file": compose("web:1") },
    });
    let prepared = client.post("/cvms/provision", asked).await.expect(200);
    assert_eq!(prepared["kms_info"]["chain_id"], chain_id);
    assert_eq!(prepared["app_id"], Value::Null, "the address of a contract that is yet to be deployed");
    let app_id = AppId(world.clock.random());
    deploy_app(chain, app_id, &prepared);
    let asked = json!({ "app_id": app_id, "compose_hash": prepared["compose_hash"] });
    let made = client.post("/cvms", asked).await.expect(200);
    world.settle().await;
    let uuid = made["vm_uuid"].as_str().expect("an id").parse().expect("an id");
    world.app.store.cvms_by_uuid(world.actor.workspace_id, &[uuid]).expect("reads").remove(0)
}

pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) chain: Arc<Scripted>,
    pub(crate) client: Client,
    pub(crate) cvm: Cvm,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        let chain = Arc::new(Scripted::default());
        let world = World::with_chain(chain.clone()).await;
        let client = Client::of(&world).await;
        let cvm = deploy(&world, &chain, &client).await;
        chain.allow_device(cvm.app_id, &world.app.node(cvm.node_id).expect("a node").facts().device_id);
        let stage = Self { world, chain, client, cvm };
        stage.chain.allow_hash(stage.cvm.app_id, stage.hash_of(1));
        stage
    }

    /// Compose hash of a revision.
    pub(crate) fn hash_of(&self, revision: u64) -> ComposeHash {
        self.world.app.store.spec(self.cvm.id, revision).expect("the revision").compose.hash
    }

    /// An update that is accepted and approved, and on which nobody has worked.
    async fn approved(&self, body: Value) -> OperationId {
        let hash = self.ask(body).await;
        self.register(TX, hash);
        let answer = self.confirm(hash, &TX.to_string()).await;
        text(&answer.expect(202)["correlation_id"]).parse().expect("an id")
    }

    /// The device that the CVM is on.
    pub(crate) fn device(&self) -> String {
        self.world.app.node(self.cvm.node_id).expect("a node").facts().device_id.clone()
    }

    /// Works until nothing is open; right before the next start the contract forbids this hash.
    pub(crate) async fn forbid_before_start(&self, hash: ComposeHash) {
        self.world.settle_with(&ForbidBeforeStart { stage: self, hash }).await;
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/cvms/{}{rest}", self.cvm.uid)
    }

    pub(crate) fn now(&self) -> Cvm {
        self.world.cvm(&self.cvm)
    }

    pub(crate) async fn boots(&self) -> u64 {
        self.world.sim.observe(&[self.cvm.vm_uuid]).await.expect("answers")[0].boot_count
    }

    /// Asks for `body`, and gives the hash that has to be registered.
    pub(crate) async fn ask(&self, body: Value) -> ComposeHash {
        hash(&self.client.patch(&self.path(""), body).await)
    }

    /// Prepares `body` for somebody else: the hash, and the token.
    pub(crate) async fn prepare(&self, body: Value) -> (ComposeHash, String) {
        let answer = self.client.header("x-prepare-only", "true").patch(&self.path(""), body).await;
        (hash(&answer), text(&detail(&answer, "commit_token")))
    }

    pub(crate) async fn confirm(&self, hash: ComposeHash, tx: &str) -> Answer {
        let client = self.client.header("x-compose-hash", hash.to_string()).header("x-transaction-hash", tx);
        client.patch(&self.path(""), json!({})).await
    }

    pub(crate) async fn commit(&self, token: &str, hash: &str, tx: &str) -> Answer {
        let body = json!({ "token": token, "compose_hash": hash, "transaction_hash": tx });
        self.client.nobody().post(&self.path("/commit-update"), body).await
    }

    pub(crate) fn register(&self, tx: TxHash, hash: ComposeHash) {
        self.chain.register(tx, self.cvm.app_id, hash);
    }
}

struct ForbidBeforeStart<'a> {
    stage: &'a Stage,
    hash: ComposeHash,
}

#[async_trait::async_trait]
impl Probe for ForbidBeforeStart<'_> {
    async fn reached(&self, _: &Operation, step: StepName, moment: Moment) -> bool {
        if (step, moment) == (StepName::Start, Moment::Before) {
            self.stage.chain.forbid_hash(self.stage.cvm.app_id, self.hash);
        }
        true
    }
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

pub(crate) fn detail(answer: &Answer, field: &str) -> Value {
    let body = answer.expect(465);
    assert_eq!(body["error_code"], "ERR-01-005");
    let details = body["details"].as_array().expect("a list");
    let found = details.iter().find(|detail| detail["field"] == field);
    found.unwrap_or_else(|| panic!("no {field} in {body}"))["value"].clone()
}

pub(crate) fn hash(answer: &Answer) -> ComposeHash {
    text(&detail(answer, "compose_hash")).parse().expect("a hash")
}

pub(crate) fn code(answer: &Answer, status: u16) -> Value {
    answer.expect(status)["error_code"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_new_hash_is_asked_for_and_nothing_else_is() {
    let stage = Stage::start().await;
    let (tag, questions) = (stage.now().tag(), stage.chain.questions());
    let answer = stage
        .client
        .patch(&stage.path(""), json!({ "docker_compose_file": compose("web:2"), "vcpu": 2 }))
        .await;
    assert_eq!(detail(&answer, "app_id"), json!(stage.cvm.app_id));
    assert_eq!(text(&detail(&answer, "device_id")).len(), 64);
    let kms = detail(&answer, "kms_info");
    for key in ["id", "slug", "url", "version", "chain_id", "kms_contract_address", "gateway_app_id"] {
        assert!(kms.get(key).is_some(), "{key} in {kms}");
    }
    let fields: Vec<_> = answer.json()["details"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| text(&entry["field"]))
        .collect();
    assert_eq!(fields, ["compose_hash", "app_id", "device_id", "kms_info", "approval_id", "warnings"]);
    assert_eq!((stage.now().tag(), stage.now().status, stage.now().open), (tag, Status::Running, None));
    for (rest, body) in [
        ("/visibility", json!({ "public_logs": false })),
        ("/docker-compose", json!({ "docker_compose_file": compose("web:3") })),
        ("/pre-launch-script", json!({ "pre_launch_script": "echo" })),
    ] {
        hash(&stage.client.patch(&stage.path(rest), body).await);
    }
    let dry =
        stage.client.patch(&stage.path("?dry_run=true"), json!({ "public_logs": false })).await.expect(200);
    assert_eq!(dry["plan"]["needs_approval"], true);
    assert_eq!(stage.chain.questions(), questions);
    let audit = stage.client.json("/audit").await;
    assert!(audit.to_string().contains("approval.opened"), "{audit}");
    // What is not measured needs nobody's yes, and neither does nothing.
    stage.client.patch(&stage.path(""), json!({ "docker_compose_file": compose("web:1") })).await.expect(202);
    stage.client.patch(&stage.path(""), json!({ "vcpu": 2 })).await.expect(202);
}

#[tokio::test(start_paused = true)]
async fn a_proven_update_runs_and_fields_outside_it_keep_their_values() {
    for spelling in 0..3 {
        let stage = Stage::start().await;
        let asked = stage.ask(json!({ "docker_compose_file": compose("web:2") })).await;
        // Not on the chain yet: nothing is used up.
        let early = stage.confirm(asked, &format!("0x{TX}")).await;
        assert_eq!(code(&early, 467), "ERR-01-007");
        stage.client.patch(&stage.path("/resources"), json!({ "vcpu": 4 })).await.expect(202);
        let busy = stage.confirm(asked, &format!("0x{TX}")).await.expect(409);
        assert!(busy.get("error_code").is_none(), "{busy}");
        stage.world.settle().await;

        stage.register(TX, asked);
        let boots = stage.boots().await;
        let confirmed = match spelling {
            0 => stage.confirm(asked, &format!("0x{TX}")).await,
            1 => {
                let body = json!({ "compose_hash": asked, "transaction_hash": format!("0x{TX}") });
                stage.client.patch(&stage.path(""), body).await
            }
            _ => {
                let body =
                    json!({ "composeHash": format!("0x{asked}"), "transactionHash": format!("0x{TX}") });
                stage.client.patch(&stage.path(""), body).await
            }
        };
        let confirmed = confirmed.expect(202);
        // Sent again while it runs, it is the same update; afterwards it is over.
        let again = stage.confirm(asked, &format!("0x{TX}")).await.expect(202);
        assert_eq!(again["correlation_id"], confirmed["correlation_id"]);
        stage.world.settle().await;
        assert_eq!(code(&stage.confirm(asked, &format!("0x{TX}")).await, 466), "ERR-01-006");
        let spec = stage.world.app.store.spec(stage.cvm.id, stage.now().revision).expect("the spec");
        assert_eq!((spec.vcpu, spec.compose.hash, stage.boots().await), (4, asked, boots + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_proof_that_does_not_hold_says_which_check_failed() {
    let stage = Stage::start().await;
    let asked = stage.ask(json!({ "public_logs": false })).await;
    let unknown = ComposeHash([9; 32]);
    assert_eq!(code(&stage.confirm(unknown, "already-registered").await, 466), "ERR-01-006");
    stage.register(OTHER_TX, unknown);
    assert_eq!(code(&stage.confirm(asked, &format!("0x{OTHER_TX}")).await, 467), "ERR-01-007");
    for state_only in ["already-registered", ""] {
        assert_eq!(code(&stage.confirm(asked, state_only).await, 468), "ERR-01-008");
    }
    stage.register(TX, asked);
    stage.chain.forbid_hash(stage.cvm.app_id, asked);
    assert_eq!(code(&stage.confirm(asked, &format!("0x{TX}")).await, 468), "ERR-01-008");
    stage.chain.set_down(true);
    let down = stage.confirm(asked, &format!("0x{TX}")).await;
    assert!(down.headers.contains_key("retry-after"));
    down.expect(503);
    stage.chain.set_down(false);
    stage.confirm(asked, "nonsense").await.expect(422);
    let lone = stage.client.header("x-transaction-hash", "already-registered");
    lone.patch(&stage.path(""), json!({})).await.expect(422);
    assert_eq!(stage.now().open, None);
    // After all that it is still good, for seven days.
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.confirm(asked, "already-registered").await.expect(202);
    stage.world.settle().await;
    let asked = stage.ask(json!({ "public_logs": true })).await;
    stage.world.clock.sleep(7 * DAY).await;
    assert_eq!(code(&stage.confirm(asked, "already-registered").await, 466), "ERR-01-006");
}

#[tokio::test(start_paused = true)]
async fn a_field_that_somebody_else_changed_is_named() {
    let stage = Stage::start().await;
    let asked = stage.ask(json!({ "public_logs": false, "vcpu": 2 })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.client.patch(&stage.path("/resources"), json!({ "vcpu": 3 })).await.expect(202);
    stage.world.settle().await;
    let questions = stage.chain.questions().len();
    let refused = stage.confirm(asked, "already-registered").await;
    assert!(
        text(&refused.expect(466)["message"]).contains("Vcpu") || refused.text().contains("vcpu"),
        "{}",
        refused.text()
    );
    assert_eq!(stage.chain.questions().len(), questions, "nobody is asked about what cannot run");
    // A later request with the same hash takes the place of the earlier one.
    assert_eq!(stage.ask(json!({ "public_logs": false })).await, asked);
    stage.confirm(asked, "already-registered").await.expect(202);
    stage.world.settle().await;
    let spec = stage.world.app.store.spec(stage.cvm.id, stage.now().revision).expect("the spec");
    assert_eq!((spec.vcpu, spec.compose.hash), (3, asked));
}

/// What is asked for is kept as it is spelled: a value that was the same then is asked for all the same.
#[tokio::test(start_paused = true)]
async fn a_field_that_was_as_asked_is_not_undone_later() {
    for (field, same, meanwhile) in [
        ("vcpu", json!(1), json!(3)),
        ("disk_size", json!(20), json!(30)),
        ("listed", json!(false), json!(true)),
        ("name", json!("web-one"), json!("web-two")),
    ] {
        let stage = Stage::start().await;
        let asked = stage.ask(json!({ "public_logs": false, field: same })).await;
        stage.chain.allow_hash(stage.cvm.app_id, asked);
        stage.client.patch(&stage.path(""), json!({ field: meanwhile })).await;
        stage.world.settle().await;
        let before = stage.now();
        let refused = stage.confirm(asked, "already-registered").await;
        assert_eq!(code(&refused, 466), "ERR-01-006", "{field}");
        assert!(refused.text().to_lowercase().contains(field), "{}", refused.text());
        assert_eq!(stage.now(), before);
        assert_ne!(before.generation, stage.cvm.generation, "{field} was changed");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_to_agree_sees_all_that_it_does() {
    let stage = Stage::start().await;
    let body = json!({
        "public_logs": false, "name": "by-approval", "listed": true, "shutdown_timeout": 600, "allow_force_stop": true,
        "on_failure": "hold",
    });
    let answer = stage.client.patch(&stage.path(""), body).await;
    let approval = format!("/approvals/{}", text(&detail(&answer, "approval_id")));
    let shown = stage.client.json(&approval).await;
    let rows: Vec<_> =
        shown["diff"].as_array().expect("rows").iter().map(|row| row["field"].clone()).collect();
    assert_eq!(
        rows,
        [
            "public_logs",
            "compose_hash",
            "name",
            "listed",
            "shutdown_timeout",
            "allow_force_stop",
            "on_failure"
        ]
    );
    assert_eq!(shown["diff"][2]["from"], "web-one");
    assert_eq!(shown["problem"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn what_needs_no_restart_waits_for_a_yes_as_well_if_that_is_asked_for() {
    let stage = Stage::start().await;
    let (hash, token) = stage.prepare(json!({ "listed": true, "name": "web-two" })).await;
    assert_eq!(hash, stage.hash_of(1), "nothing of what runs changes");
    let now = stage.now();
    assert_eq!((now.listed, now.name.as_str()), (false, "web-one"));
    let boots = stage.boots().await;
    stage.commit(&token, &hash.to_string(), "").await.expect(202);
    stage.world.settle().await;
    let now = stage.now();
    assert_eq!((now.listed, now.name.as_str()), (true, "web-two"));
    assert_eq!(stage.boots().await, boots);
}

#[tokio::test(start_paused = true)]
async fn text_and_environment_routes_confirm_with_the_same_body() {
    let stage = Stage::start().await;
    let (patch, yaml) = (Method::PATCH, "text/yaml");
    let asked =
        hash(&stage.client.raw(patch.clone(), &stage.path("/docker-compose"), yaml, compose("web:2")).await);
    stage.register(TX, asked);
    let proven = stage
        .client
        .header("x-compose-hash", asked.to_string())
        .header("x-transaction-hash", format!("0x{TX}"));
    let other = proven.raw(patch.clone(), &stage.path("/docker-compose"), yaml, compose("web:9")).await;
    assert_eq!(code(&other, 466), "ERR-01-006");
    let confirmed =
        proven.raw(patch, &stage.path("/docker-compose"), yaml, compose("web:2")).await.expect(202);
    assert_eq!(confirmed["status"], "in_progress");
    stage.world.settle().await;

    let key = stage.world.app.kms.env_public_key(&stage.cvm.app_id).expect("a key");
    let sealed = hex::encode(casemate_types::env::seal(&key, &[], [3; 32], [3; 12]).expect("sealed"));
    let mut body = json!({ "encrypted_env": sealed, "env_keys": ["TOKEN"], "compose_hash": null, "transaction_hash": null });
    let asked = hash(&stage.client.patch(&stage.path("/envs"), body.clone()).await);
    body["compose_hash"] = json!(asked);
    body["transaction_hash"] = "already-registered".into();
    assert_eq!(code(&stage.client.patch(&stage.path("/envs"), body.clone()).await, 468), "ERR-01-008");
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let confirmed = stage.client.patch(&stage.path("/envs"), body).await.expect(202);
    assert_eq!(confirmed["allowed_envs_changed"], true);
    stage.world.settle().await;

    let script = json!({ "pre_launch_script": "echo" });
    let asked = hash(&stage.client.patch(&stage.path("/pre-launch-script"), script).await);
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let script = json!({ "pre_launch_script": "echo", "compose_hash": asked, "transaction_hash": "" });
    stage.client.patch(&stage.path("/pre-launch-script"), script).await.expect(202);
}

#[tokio::test(start_paused = true)]
async fn whoever_has_the_token_commits_once() {
    let stage = Stage::start().await;
    let answer =
        stage.client.patch(&stage.path(""), json!({ "public_logs": false, "prepareOnly": true })).await;
    let (asked, token) = (hash(&answer), text(&detail(&answer, "commit_token")));
    let uuid = stage.cvm.vm_uuid.0.simple();
    assert!(text(&detail(&answer, "commit_url")).ends_with(&format!("#{token}")));
    assert!(
        text(&detail(&answer, "api_commit_url")).ends_with(&format!("/api/v1/cvms/{uuid}/commit-update"))
    );
    let status = detail(&answer, "onchain_status");
    assert_eq!(
        status,
        json!({ "compose_hash_allowed": false, "device_id_allowed": true, "is_allowed": false })
    );

    let other = deploy_as(&stage.world, &stage.chain, &stage.client, "web-two").await;
    let questions = stage.chain.questions().len();
    let mut wrong = token.clone();
    wrong.replace_range(token.len() - 1.., if token.ends_with('0') { "1" } else { "0" });
    for bad in [wrong.as_str(), "nonsense", "ct_", "ct_00", &token[..40]] {
        let refused = stage.commit(bad, "", "").await.expect(400);
        assert!(text(&refused["detail"]).starts_with("Invalid commit token"), "{refused}");
    }
    let refused = stage.commit(&token, &"00".repeat(32), "").await.expect(400);
    assert!(text(&refused["detail"]).starts_with("Invalid commit token"), "{refused}");
    for foreign in [other.uid.to_string(), "web-nobody".into(), "%23".into()] {
        let body = json!({ "token": token, "transaction_hash": "" });
        let refused =
            stage.client.nobody().post(&format!("/cvms/{foreign}/commit-update"), body).await.expect(400);
        assert!(text(&refused["detail"]).starts_with("Invalid commit token"), "{refused}");
    }
    assert_eq!(stage.chain.questions().len(), questions, "no question without a good token");
    stage.client.nobody().post(&stage.path("/commit-update"), json!({})).await.expect(422);

    assert_eq!(code(&stage.commit(&token, "", &format!("0x{TX}")).await, 467), "ERR-01-007");
    assert_eq!(code(&stage.commit(&token, "", "").await, 468), "ERR-01-008");
    stage.register(TX, asked);
    stage.client.post(&stage.path("/restart"), json!({})).await.expect(200);
    stage.commit(&token, "", "").await.expect(409);
    stage.world.settle().await;
    let boots = stage.boots().await;
    let committed = stage.commit(&token, &format!("0x{asked}"), &format!("0x{TX}")).await.expect(202);
    assert_eq!(committed["status"], "in_progress");
    stage.world.settle().await;
    assert_eq!(stage.boots().await, boots + 1);
    let used = stage.commit(&token, "", "").await.expect(400);
    assert!(text(&used["message"]).starts_with("Invalid commit token"), "{used}");
    assert_eq!(
        used["details"][0],
        json!({ "field": "correlation_id", "value": committed["correlation_id"] })
    );
}

#[tokio::test(start_paused = true)]
async fn tokens_expire_and_are_replaced() {
    let stage = Stage::start().await;
    let (asked, first) = stage.prepare(json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let (_, second) = stage.prepare(json!({ "public_logs": false, "vcpu": 2 })).await;
    assert_ne!(first, second);
    let refused = stage.commit(&first, "", "").await.expect(400);
    assert!(text(&refused["detail"]).starts_with("Invalid commit token"), "{refused}");
    // One with another hash stands beside it.
    let (_, third) = stage.prepare(json!({ "public_sysinfo": false })).await;
    stage.world.clock.sleep(14 * DAY - Duration::from_secs(60)).await;
    stage.commit(&second, "", "").await.expect(202);
    stage.world.settle().await;
    stage.world.clock.sleep(Duration::from_secs(60)).await;
    let expired = stage.commit(&third, "", "").await.expect(400);
    assert!(text(&expired["detail"]).contains("expired"), "{expired}");
}

#[tokio::test(start_paused = true)]
async fn who_comes_second_with_a_token_hears_which_operation_used_it() {
    let stage = Stage::start().await;
    let (asked, token) = stage.prepare(json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    // Both find it open before either has the turn.
    let found = commit_token::approval_of(&stage.world.app, &token).expect("it is open");
    let named = stage.cvm.uid.to_string();
    let commit = || {
        let body = json!({ "token": token });
        let asked = CommitUpdate::from_json(body.as_object().expect("an object")).expect("valid");
        let app = &stage.world.app;
        approval::commit_with_token(app, &named, found.clone(), asked, "req_test".into(), None)
    };
    stage.chain.hold();
    let mut first = std::pin::pin!(commit());
    assert!(futures_util::poll!(&mut first).is_pending(), "it asks the contract");
    let second = commit();
    assert!(matches!(commit().await, Err(Error::Conflict { code: None, .. })), "one at a time");
    stage.chain.let_go();
    let Ok(Outcome::Accepted(accepted)) = first.await else { panic!("not accepted") };
    stage.world.settle().await;
    // By now the CVM has another revision, with the same field changed.
    match second.await {
        Err(Error::Committed { by, .. }) => assert_eq!(by, accepted.operation.id),
        other => panic!("{other:?}"),
    }
    // By its id it is the same.
    let again = approval::commit_as_asked(
        &stage.world.app,
        &found,
        Named::Id,
        TxProof::StateOnly,
        stage.world.author(),
        None,
    );
    assert!(matches!(again.await, Err(Error::Committed { by, .. }) if by == accepted.operation.id));
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_that_comes_too_late_hears_what_became_of_the_approval() {
    let stage = Stage::start().await;
    let ask = async || {
        stage.world.clock.sleep(Duration::from_millis(1)).await;
        let answer = stage.client.patch(&stage.path(""), json!({ "public_logs": false })).await;
        (hash(&answer), text(&detail(&answer, "approval_id")))
    };
    let (asked, first) = ask().await;
    let (_, second) = ask().await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.client.post(&format!("/approvals/{second}/cancel"), json!({})).await.expect(200);
    let refused = text(&stage.confirm(asked, "").await.expect(466)["message"]);
    let why = format!("pproval {first} was superseded by approval {second}, and that one was cancelled");
    assert!(refused.contains(&why), "{refused}");
    let refused = stage.client.post(&format!("/approvals/{first}/commit"), json!({})).await.expect(400);
    assert!(text(&refused["detail"]).contains(&format!("superseded by approval {second}")), "{refused}");

    // One that is superseded while the contract is asked about it.
    let (_, third) = ask().await;
    stage.chain.hold();
    let mut confirmed = std::pin::pin!(stage.confirm(asked, ""));
    assert!(futures_util::poll!(&mut confirmed).is_pending());
    let (_, fourth) = ask().await;
    stage.chain.let_go();
    let refused = text(&confirmed.await.expect(466)["message"]);
    assert!(refused.contains(&format!("superseded by approval {fourth}")), "{refused}");
    assert_ne!(third, fourth);

    stage.world.clock.sleep(7 * DAY).await;
    let refused = text(&stage.confirm(asked, "").await.expect(466)["message"]);
    let why = format!("superseded by approval {fourth}, and that one has expired");
    assert!(refused.contains(&why), "{refused}");
    let refused = text(&stage.confirm(ComposeHash([9; 32]), "").await.expect(466)["message"]);
    assert!(refused.contains("no update of this CVM waits") || refused.starts_with("No update"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn prepare_only_waits_even_for_the_same_hash_and_not_without_a_contract() {
    let stage = Stage::start().await;
    let (asked, token) = stage.prepare(json!({ "vcpu": 2 })).await;
    assert_eq!(stage.world.app.store.spec(stage.cvm.id, 1).expect("the spec").compose.hash, asked);
    let nothing = stage.client.header("x-prepare-only", "true");
    nothing.patch(&stage.path(""), json!({ "docker_compose_file": compose("web:1") })).await.expect(202);
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.commit(&token, "", "").await.expect(202);
    stage.world.settle().await;
    assert_eq!(stage.world.app.store.spec(stage.cvm.id, stage.now().revision).expect("the spec").vcpu, 2);

    let plain = stage.world.deploy("web-plain", "web:1").await;
    let path = format!("/cvms/{}", plain.uid);
    nothing.patch(&path, json!({ "public_logs": false })).await.expect(202);
    stage.world.settle().await;
    let proven = stage.client.header("x-compose-hash", "00".repeat(32)).header("x-transaction-hash", "");
    assert_eq!(code(&proven.patch(&path, json!({})).await, 466), "ERR-01-006");
}

#[tokio::test(start_paused = true)]
async fn a_provisioned_document_runs_once_it_is_registered() {
    let stage = Stage::start().await;
    let sent = json!({ "docker_compose_file": compose("web:2") });
    let provisioned =
        stage.client.post(&stage.path("/compose_file/provision"), sent.clone()).await.expect(200);
    assert_eq!(
        (&provisioned["compose_hash_registered"], &provisioned["kms_info"]["chain_id"]),
        (&json!(false), &json!(8453))
    );
    let asked: ComposeHash = text(&provisioned["compose_hash"]).parse().expect("a hash");
    let body = json!({ "compose_hash": asked });
    assert_eq!(hash(&stage.client.patch(&stage.path("/compose_file"), body.clone()).await), asked);
    let proven = json!({ "compose_hash": asked, "transaction_hash": format!("0x{TX}") });
    let path = stage.path("/compose_file/commit");
    let kept = async || (stage.client.json("/approvals").await, stage.client.json("/audit").await);
    let before = kept().await;
    assert_eq!(code(&stage.client.post(&path, proven.clone()).await, 467), "ERR-01-007");
    stage.chain.set_down(true);
    stage.client.post(&path, proven.clone()).await.expect(503);
    stage.client.post(&path, json!({ "compose_hash": asked })).await.expect(503);
    stage.chain.set_down(false);
    assert_eq!(kept().await, before, "nothing is written before the proof holds");
    stage.register(TX, asked);
    let provisioned = stage.client.post(&stage.path("/compose_file/provision"), sent).await.expect(200);
    assert_eq!(provisioned["compose_hash_registered"], true);
    let committed = stage.client.post(&path, proven).await.expect(202);
    assert_eq!(committed["compose_hash"], json!(asked));
    let approvals = stage.client.json("/approvals").await;
    let items = approvals["items"].as_array().expect("a list");
    let of = |state: &str| items.iter().find(|one| one["state"] == state).expect("one of each");
    let (mine, asked_before) = (of("committed"), of("superseded"));
    assert_eq!((items.len(), &mine["correlation_id"]), (2, &committed["correlation_id"]));
    assert_eq!((&asked_before["state"], &asked_before["superseded_by"]), (&json!("superseded"), &mine["id"]));
    stage.world.settle().await;
    assert_eq!(
        stage.world.app.store.spec(stage.cvm.id, stage.now().revision).expect("the spec").compose.hash,
        asked
    );
}

#[tokio::test(start_paused = true)]
async fn a_rollback_asks_as_well() {
    let stage = Stage::start().await;
    let first = stage.world.app.store.spec(stage.cvm.id, 1).expect("the spec").compose.hash;
    let asked = stage.ask(json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.confirm(asked, "").await.expect(202);
    stage.world.settle().await;
    let back = stage.client.post(&stage.path("/rollback"), json!({ "revision": 1 })).await;
    assert_eq!(hash(&back), first);
    stage.chain.allow_hash(stage.cvm.app_id, first);
    let confirmed = stage.confirm(first, "").await.expect(202);
    let operation = stage.world.operation(text(&confirmed["correlation_id"]).parse().expect("an id"));
    assert_eq!(operation.kind.as_str(), "rollback");
    stage.world.settle().await;
    assert_eq!(
        stage.world.app.store.spec(stage.cvm.id, stage.now().revision).expect("the spec").compose.hash,
        first
    );
}

#[tokio::test(start_paused = true)]
async fn one_verification_at_a_time_and_none_for_ever() {
    let chain = Arc::new(Scripted::default());
    let world = World::with_chain(chain.clone()).await;
    let client = Client::of(&world).await;
    let cvm = deploy(&world, &chain, &client).await;
    chain.hold();
    let path = format!("/cvms/{}", cvm.uid);
    let asked = hash(&client.patch(&path, json!({ "public_logs": false })).await);
    let proof = json!({ "compose_hash": asked, "transaction_hash": "" });

    // A chain that does not answer is no yes, and the caller hears so before it gives up.
    let began = world.clock.now();
    client.patch(&path, proof.clone()).await.expect(503);
    assert!(world.clock.now().as_second() - began.as_second() < 30);

    let mut first = std::pin::pin!(client.patch(&path, proof.clone()));
    assert!(futures_util::poll!(&mut first).is_pending());
    let second = client.patch(&path, proof).await.expect(409);
    assert!(second.get("error_code").is_none(), "{second}");
    chain.allow_hash(cvm.app_id, asked);
    chain.allow_device(cvm.app_id, &world.app.node(cvm.node_id).expect("a node").facts().device_id);
    chain.let_go();
    first.await.expect(202);
}

fn failed(stage: &Stage, id: OperationId) -> (FailCode, String, bool) {
    match stage.world.operation(id).state {
        State::Failed { reason, put_back, .. } => (reason.code, reason.message, put_back.is_some()),
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_longer_allowed_right_before_the_stop_stops_nothing() {
    let stage = Stage::start().await;
    let boots = stage.boots().await;
    let id = stage.approved(json!({ "docker_compose_file": compose("web:2") })).await;
    let hash = stage.hash_of(2);
    stage.chain.forbid_hash(stage.cvm.app_id, hash);
    stage.world.settle().await;
    let (code, message, put_back) = failed(&stage, id);
    assert_eq!((code, put_back), (FailCode::NotAllowed, false));
    assert!(message.contains(&hash.to_string()), "{message}");
    assert_eq!((stage.now().status, stage.now().revision, stage.boots().await), (Status::Running, 1, boots));

    // An update of something else runs with the hash that is in force, if that is still allowed.
    let memory = json!({ "memory": 4096 });
    let answer = stage.client.patch(&stage.path(""), memory.clone()).await;
    stage.world.settle().await;
    let id = text(&answer.expect(202)["correlation_id"]).parse().expect("an id");
    assert_eq!(stage.world.operation(id).state.name(), "succeeded");
    stage.chain.forbid_hash(stage.cvm.app_id, stage.hash_of(1));
    let boots = stage.boots().await;
    let answer = stage.client.patch(&stage.path(""), json!({ "memory": 2048 })).await;
    stage.world.settle().await;
    let id = text(&answer.expect(202)["correlation_id"]).parse().expect("an id");
    assert_eq!(failed(&stage, id).0, FailCode::NotAllowed);
    assert_eq!((stage.now().status, stage.boots().await), (Status::Running, boots));
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_is_away_before_the_stop_is_given_up_after_five_minutes() {
    let stage = Stage::start().await;
    let boots = stage.boots().await;
    let id = stage.approved(json!({ "docker_compose_file": compose("web:2") })).await;
    stage.chain.set_down(true);
    let begun = stage.world.clock.now();
    let work = stage.world.claim(1).await.remove(0);
    worker::carry(&stage.world.app, work, &NoProbe).await;
    let waiting_for = stage.world.operation(id).waiting_for.expect("says what it waits for");
    assert_eq!(waiting_for, "the chain, which does not answer");
    stage.world.settle().await;
    let (code, message, put_back) = failed(&stage, id);
    assert_eq!((code, put_back), (FailCode::Unreachable, false));
    assert!(message.contains("the chain"), "{message}");
    let seconds = stage.world.clock.now().as_second() - begun.as_second();
    assert!((300..400).contains(&seconds), "gave up after {seconds} s");
    assert_eq!((stage.now().status, stage.boots().await), (Status::Running, boots));

    stage.chain.set_down(false);
    let id = stage.approved(json!({ "docker_compose_file": compose("web:3") })).await;
    stage.chain.set_down(true);
    let answers_again = async {
        stage.world.clock.sleep(Duration::from_secs(100)).await;
        stage.chain.set_down(false);
    };
    tokio::join!(stage.world.settle(), answers_again);
    assert_eq!(stage.world.operation(id).state.name(), "succeeded");
}

#[tokio::test(start_paused = true)]
async fn an_old_hash_that_is_no_longer_allowed_does_not_come_back() {
    let stage = Stage::start().await;
    let boot_fails = Planned { fault: Fault::BootFail { image: None, env: None }, once: true, vm: None };
    let id = stage.approved(json!({ "docker_compose_file": compose("web:2") })).await;
    stage.world.sim.plan(boot_fails).expect("planned");
    stage.chain.forbid_hash(stage.cvm.app_id, stage.hash_of(1));
    stage.world.settle().await;
    let (code, message, put_back) = failed(&stage, id);
    assert_eq!((code, put_back), (FailCode::BootFailed, false), "{message}");
    assert!(message.contains(&stage.hash_of(1).to_string()), "says why it was not put back: {message}");
    assert_eq!((stage.now().status, stage.now().open), (Status::Error, None));
}

/// 32 bytes of the hash of an image of the node.
fn image_hash(stage: &Stage, name: &str) -> [u8; 32] {
    let facts = stage.world.app.node(1).expect("a node").facts();
    let image = facts.images.iter().find(|image| image.name == name).expect("the image");
    let mut hash = [0; 32];
    hex::decode_to_slice(&image.os_image_hash, &mut hash).expect("a hash");
    hash
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_forbidden_meanwhile_stops_nothing() {
    let stage = Stage::start().await;
    let boots = stage.boots().await;
    let hash = stage.ask(json!({ "image": "dstack-0.5.4", "public_logs": false })).await;
    stage.register(TX, hash);
    let id = text(&stage.confirm(hash, &TX.to_string()).await.expect(202)["correlation_id"]);
    stage.chain.forbid_os_image(KMS, image_hash(&stage, "dstack-0.5.4"));
    stage.world.settle().await;
    let now = stage.now();
    assert_eq!((now.status, now.revision, stage.boots().await), (Status::Running, 1, boots));
    let operation = stage.client.json(&format!("/operations/{id}")).await;
    assert_eq!(operation["status"], "failed");
    assert!(operation.to_string().contains("OS image is not allowed"), "{operation}");
}

#[tokio::test(start_paused = true)]
async fn what_stays_off_needs_no_keys() {
    let stage = Stage::start().await;
    stage.client.post(&stage.path("/stop"), json!({})).await.expect(200);
    stage.world.settle().await;
    stage
        .client
        .patch(&stage.path("/os-image"), json!({ "os_image_name": "dstack-0.5.4" }))
        .await
        .expect(202);
    stage.chain.forbid_os_image(KMS, image_hash(&stage, "dstack-0.5.4"));
    stage.world.settle().await;
    assert_eq!((stage.now().status, stage.now().revision), (Status::Stopped, 2));
}

#[tokio::test(start_paused = true)]
async fn what_could_not_come_back_with_its_old_image_is_held() {
    let stage = Stage::start().await;
    let fault = Fault::BootFail { image: Some("dstack-0.5.4".into()), env: None };
    stage.world.sim.plan(Planned { fault, vm: None, once: false }).expect("planned");
    let old = stage.world.app.store.spec(stage.cvm.id, 1).expect("the spec").image;
    stage
        .client
        .patch(&stage.path("/os-image"), json!({ "os_image_name": "dstack-0.5.4" }))
        .await
        .expect(202);
    stage.chain.forbid_os_image(KMS, image_hash(&stage, &old));
    stage.world.settle().await;
    assert_eq!((stage.now().status, stage.now().revision), (Status::Error, 2), "nothing was put back");
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_could_not_boot_stops_nothing() {
    let stage = Stage::start().await;
    let (boots, first) = (stage.boots().await, stage.hash_of(1));
    stage.chain.forbid_hash(stage.cvm.app_id, first);
    stage.client.post(&stage.path("/restart"), json!({})).await.expect(200);
    stage.world.settle().await;
    assert_eq!((stage.now().status, stage.boots().await), (Status::Running, boots));
    // A chain that does not answer is waited for while the machine runs.
    stage.chain.allow_hash(stage.cvm.app_id, first);
    stage.chain.set_down(true);
    stage.client.post(&stage.path("/restart"), json!({})).await.expect(200);
    stage.world.settle().await;
    assert_eq!((stage.now().status, stage.boots().await), (Status::Running, boots));
    stage.chain.set_down(false);
    stage.client.post(&stage.path("/restart"), json!({})).await.expect(200);
    stage.world.settle().await;
    assert_eq!((stage.now().status, stage.boots().await), (Status::Running, boots + 1));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_still_runs_after_a_failure_is_not_taken_down_by_what_could_not_boot() {
    let stage = Stage::start().await;
    let (boots, first) = (stage.boots().await, stage.hash_of(1));
    let planned = Planned { fault: Fault::StopHangs, vm: None, once: false };
    stage.world.sim.plan(planned).expect("planned");
    stage.client.patch(&stage.path(""), json!({ "vcpu": 2 })).await.expect(202);
    stage.world.settle().await;
    stage.world.sim.clear().expect("cleared");
    assert_eq!((stage.now().status, stage.boots().await), (Status::Error, boots), "it could not be stopped");
    let runs = async || {
        let seen = stage.world.sim.observe(&[stage.cvm.vm_uuid]).await.expect("answers").remove(0);
        (seen.guest, seen.boot_count)
    };
    for route in ["/restart", "/start"] {
        stage.chain.forbid_hash(stage.cvm.app_id, first);
        stage.client.post(&stage.path(route), json!({})).await.expect(200);
        stage.world.settle().await;
        assert_eq!(runs().await, (Guest::Done, boots), "{route}");
        stage.chain.allow_hash(stage.cvm.app_id, first);
        stage.chain.set_down(true);
        stage.client.post(&stage.path(route), json!({})).await.expect(200);
        stage.world.settle().await;
        assert_eq!(runs().await, (Guest::Done, boots), "{route}");
        stage.chain.set_down(false);
    }
    stage.client.post(&stage.path("/start"), json!({})).await.expect(200);
    stage.world.settle().await;
    assert_eq!((stage.now().status, stage.boots().await), (Status::Running, boots + 1));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_off_waits_for_a_chain_that_does_not_answer() {
    let stage = Stage::start().await;
    stage.client.post(&stage.path("/stop"), json!({})).await.expect(200);
    stage.world.settle().await;
    let boots = stage.boots().await;
    stage.chain.set_down(true);
    let app = stage.world.app.clone();
    let stop = CancellationToken::new();
    let working = tokio::spawn(worker::run(app, Arc::new(NoProbe), stop.clone()));
    stage.client.post(&stage.path("/start"), json!({})).await.expect(200);
    stage.world.clock.sleep(Duration::from_secs(3600)).await;
    assert_eq!((stage.now().status, stage.boots().await), (Status::Starting, boots));
    stage.chain.set_down(false);
    stage.world.clock.sleep(Duration::from_secs(600)).await;
    assert_eq!((stage.now().status, stage.boots().await), (Status::Running, boots + 1));
    stop.cancel();
    working.await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_key_service_taken_out_of_the_settings_frees_nobody_from_approval() {
    let stage = Stage::start().await;
    let boots = stage.boots().await;
    let config = Config { contract_kms: Vec::new(), ..stage.world.app.config.clone() };
    let again = stage.client.at(stage.world.restarted_with(config).await);
    for (path, body) in [
        ("", json!({ "docker_compose_file": compose("web:2") })),
        ("", json!({ "public_logs": false, "vcpu": 2 })),
        ("/os-image", json!({ "os_image_name": "dstack-0.5.4" })),
    ] {
        let refused = again.patch(&stage.path(path), body).await.expect(503);
        assert!(refused.to_string().contains("key service"), "{refused}");
    }
    assert_eq!(again.json(&stage.path("")).await["status"], "running");
    assert_eq!((stage.now().revision, stage.boots().await), (1, boots));
}

struct AtStart<'a>(&'a Stage, std::sync::Mutex<Vec<(u64, bool)>>);

#[async_trait::async_trait]
impl Probe for AtStart<'_> {
    async fn reached(&self, _: &Operation, step: StepName, moment: Moment) -> bool {
        if (step, moment) == (StepName::Start, Moment::Before) {
            let known = self.0.world.app.store.known_revisions(self.0.cvm.app).expect("reads");
            *self.1.lock().expect("held by nobody") =
                known.iter().map(|one| (one.number, one.current)).collect();
        }
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_hash_that_a_put_back_would_need_is_in_use() {
    let stage = Stage::start().await;
    stage.approved(json!({ "public_logs": false })).await;
    let probe = AtStart(&stage, std::sync::Mutex::default());
    stage.world.settle_with(&probe).await;
    assert_eq!(*probe.1.lock().expect("held by nobody"), [(2, true), (1, true)]);
    let known = stage.world.app.store.known_revisions(stage.cvm.app).expect("reads");
    assert_eq!(known.iter().map(|one| one.current).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test(start_paused = true)]
async fn without_its_key_service_nothing_boots_and_the_answer_names_the_setting() {
    let stage = Stage::start().await;
    let prepare = stage.client.header("x-prepare-only", "true");
    let answer = prepare.patch(&stage.path(""), json!({ "public_logs": false })).await;
    let (asked, token) = (hash(&answer), text(&detail(&answer, "commit_token")));
    let approval = format!("/approvals/{}", text(&detail(&answer, "approval_id")));
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.client.post(&stage.path("/stop"), json!({})).await.expect(200);
    stage.world.settle().await;
    let config = Config { contract_kms: Vec::new(), ..stage.world.app.config.clone() };
    let app = stage.world.restarted_with(config).await;
    let without = stage.client.at(app.clone());
    let refused = |answer: Answer| {
        let body = answer.expect(503).to_string();
        assert!(body.contains("`kms.contracts`") && body.contains("`base`"), "{body}");
    };
    for (route, body) in [
        ("/start", json!({})),
        ("/restart", json!({})),
        ("/compose_file/provision", json!({ "docker_compose_file": compose("web:2") })),
        ("/is-allowed", json!({})),
        ("/replicas", json!({})),
        ("/commit-update", json!({ "token": token, "compose_hash": "", "transaction_hash": "" })),
    ] {
        refused(without.post(&stage.path(route), body).await);
    }
    refused(without.patch(&stage.path(""), json!({ "docker_compose_file": compose("web:2") })).await);
    refused(without.get(&approval).await);
    refused(without.get(&format!("/apps/{}/allowed", stage.cvm.app_id)).await);

    // What was accepted before waits for the setting, and says so.
    stage.client.post(&stage.path("/start"), json!({})).await.expect(200);
    let open = stage.now().open.expect("it is being started").id;
    let now = stage.world.clock.now();
    let claimed = app.store.operation_claim(None, now, now + Duration::from_secs(30), 1).await;
    for work in claimed.expect("claims").work {
        worker::carry(&app, work, &NoProbe).await;
    }
    let waiting_for = stage.world.operation(open).waiting_for.expect("says what it waits for");
    assert!(waiting_for.contains("`kms.contracts`"), "{waiting_for}");
    // With the setting everything goes on.
    stage.world.settle().await;
    assert_eq!(stage.now().status, Status::Running);
    stage.commit(&token, "", "").await.expect(202);
    stage.world.settle().await;
    assert_eq!(stage.hash_of(stage.now().revision), asked);
}

#[tokio::test(start_paused = true)]
async fn who_says_yes_is_told_which_images_the_hash_does_not_settle() {
    let stage = Stage::start().await;
    let pinned = compose(&format!("web@sha256:{}", "0".repeat(64)));
    let told = |warnings: &Value| {
        let warnings = warnings.as_array().expect("a list");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(text(&warnings[0]).contains("covers only the name `web:2`"), "{warnings:?}");
    };
    let prepares = stage.client.header("x-prepare-only", "true");
    for (client, image) in
        [(&stage.client, compose("web:2")), (&prepares, compose("web:2")), (&stage.client, pinned)]
    {
        let answer =
            client.patch(&stage.path(""), json!({ "docker_compose_file": image, "memory": 4096 })).await;
        let shown = stage.client.json(&format!("/approvals/{}", text(&detail(&answer, "approval_id")))).await;
        if image.contains("web:2") {
            told(&detail(&answer, "warnings"));
            told(&shown["warnings"]);
        } else {
            assert!(!answer.expect(465).to_string().contains("warnings"));
            assert_eq!(shown["warnings"], Value::Null);
        }
    }
}
