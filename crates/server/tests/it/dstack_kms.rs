//! Key services whose keys lie with a `dstack-kms`: what it says is checked, and its trouble stays its own.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use casemate_chain::Scripted;
use casemate_kms::RootKeys;
use casemate_server::app::{App, NewNode};
use casemate_server::clock::Clock;
use casemate_server::config::{Config, KmsService};
use casemate_server::driver::sim::Sim;
use casemate_server::driver::{
    self, Abilities, At, Driver, LogChannel, LogLine, Machine, NodeFacts, Observed, Stop, Stopped,
};
use casemate_server::kms::Dstack;
use casemate_server::workflow::operation::{FailCode, Operation, State as OpState, StepName};
use casemate_server::workflow::worker::{Moment, Probe};
use casemate_testkit::{World, compose};
use casemate_types::ids::{AppId, VmUuid};
use casemate_types::version::ApiVersion;
use futures_util::stream;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

use crate::approvals::{KMS, TX, allow_images, deploy_app, text};
use crate::client::{Answer, Client};

/// The certificate of the authority of a `dstack-kms` 0.6.0 that ran once, as `GetMeta` gave it.
const RECORDED_CA: &str = "-----BEGIN CERTIFICATE-----
MIIBmjCCAUCgAwIBAgIUNCbeYVdgSDQrKUcyzcUjZ5tZcjIwCgYIKoZIzj0EAwIw
KTEPMA0GA1UECgwGRHN0YWNrMRYwFAYDVQQDDA1Ec3RhY2sgS01TIENBMB4XDTc1
MDEwMTAwMDAwMFoXDTM2MTEyMjA5MzEyM1owKTEPMA0GA1UECgwGRHN0YWNrMRYw
FAYDVQQDDA1Ec3RhY2sgS01TIENBMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
S5qPwQTc+7cgIBuFQn4agjVQkPZqIvOkI3T9nUQoRNIvjhSO4I9j9h+6uvoDAhY1
fHyE79sEHN/pMjGIFbe6GqNGMEQwDwYDVR0PAQH/BAUDAweGADAdBgNVHQ4EFgQU
oZq85aot+eQTgZEy6sonJJVqTLYwEgYDVR0TAQH/BAgwBgEB/wIBATAKBggqhkjO
PQQDAgNIADBFAiAUZEHDFdc+8sz0iF/wmNl0ViQ95gWPW+JHKGrz3SSdvQIhAPhx
2SIg4i2nUSLSs68zeHc9CWkVYxT4Acm35CEUzJhy
-----END CERTIFICATE-----
";

type Change = dyn Fn(&str, &mut Value) + Send + Sync;

/// What is made of a good answer about a key.
type Lie = Arc<dyn Fn(&mut Value) + Send + Sync>;

/// How the fake answers.
#[derive(Clone)]
enum How {
    /// As the real one does.
    Well,
    /// Like this, whatever is asked.
    Raw(u16, &'static str),
    /// Never.
    Hang,
    /// Without an end.
    Huge,
    /// Somewhere else.
    Redirect,
    /// As the real one does, but for what is changed: gets the method and the answer.
    Changed(Arc<Change>),
}

struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    keys: RootKeys,
    ca: String,
    how: Mutex<How>,
    asked: Mutex<Vec<String>>,
    /// The clock of those who ask.
    clock: OnceLock<Clock>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn root() -> RootKeys {
    RootKeys::generate(&[8; 64])
}

impl Fake {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        Self::serve(address, RECORDED_CA.to_owned(), |service| {
            tokio::spawn(async move { axum::serve(listener, service).await.expect("serves") })
        })
    }

    fn serve(address: SocketAddr, ca: String, spawn: impl FnOnce(Router) -> JoinHandle<()>) -> Self {
        let shared = Arc::new(Shared {
            keys: root(),
            ca,
            how: Mutex::new(How::Well),
            asked: Mutex::default(),
            clock: OnceLock::new(),
        });
        let service = Router::new()
            .route("/prpc/{method}", axum::routing::post(answer))
            .with_state(Arc::clone(&shared));
        Self { address, shared, serving: spawn(service) }
    }

    fn service(&self) -> KmsService {
        KmsService {
            url: format!("http://{}", self.address),
            k256_public_key: root().k256_public_key(),
            ca_certificate: None,
        }
    }

    fn set(&self, how: How) {
        *self.shared.how.lock().expect("no panic while holding it") = how;
    }

    fn lie(&self, change: impl Fn(&str, &mut Value) + Send + Sync + 'static) {
        self.set(How::Changed(Arc::new(change)));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.asked.lock().expect("no panic while holding it"))
    }
}

async fn answer(State(shared): State<Arc<Shared>>, Path(method): Path<String>, body: Bytes) -> Response {
    let method = method.trim_start_matches("KMS.").to_owned();
    shared.asked.lock().expect("no panic while holding it").push(method.clone());
    let how = shared.how.lock().expect("no panic while holding it").clone();
    let mut good = match method.as_str() {
        "GetMeta" => json!({
            "ca_cert": shared.ca, "allow_any_upgrade": false, "is_dev": false,
            "k256_pubkey": hex::encode(shared.keys.k256_public_key()), "bootstrap_info": null,
            "gateway_app_id": "any", "kms_contract_address": format!("0x{KMS}"), "chain_id": 8453,
            "app_auth_implementation": format!("0x{KMS}"),
        }),
        "GetAppEnvEncryptPubKey" => {
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            let app_id = text(&body["app_id"]).parse().expect("an app id");
            let now = shared.clock.get().expect("a clock").now().as_second();
            signed(&shared.keys, app_id, now)
        }
        other => panic!("{other} is not asked for"),
    };
    let answer = match how {
        How::Well => good.to_string().into_response(),
        How::Raw(status, text) => (StatusCode::from_u16(status).expect("a status"), text).into_response(),
        How::Hang => std::future::pending().await,
        How::Huge => {
            let endless =
                stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1 << 14])));
            Body::from_stream(endless).into_response()
        }
        How::Redirect => (StatusCode::FOUND, [("location", "/prpc/elsewhere")]).into_response(),
        How::Changed(change) => {
            change(&method, &mut good);
            good.to_string().into_response()
        }
    };
    ([("x-app-version", "v0.6.0 (fake)")], answer).into_response()
}

fn signed(keys: &RootKeys, app_id: AppId, at: i64) -> Value {
    let key = keys.env_public_key(&app_id).expect("a key");
    let at = u64::try_from(at).expect("after 1970");
    json!({
        "public_key": hex::encode(key),
        "signature": hex::encode(keys.sign_env_public_key(&app_id, &key, None)),
        "timestamp": at,
        "signature_v1": hex::encode(keys.sign_env_public_key(&app_id, &key, Some(at))),
    })
}

/// A world whose key service `base` is the fake. Its time is real, for real sockets; [`quick`] lets it pass.
struct Scene {
    world: World,
    chain: Arc<Scripted>,
    client: Client,
    fake: Fake,
}

impl Scene {
    async fn start() -> Self {
        let fake = Fake::start().await;
        let service = fake.service();
        Self::with(fake, |config| config.contract_kms[0].service = Some(service)).await
    }

    async fn with(fake: Fake, change: impl FnOnce(&mut Config)) -> Self {
        let chain = Arc::new(Scripted::default());
        let world = World::with_chain_and(chain.clone(), change).await;
        assert!(fake.shared.clock.set(world.clock.clone()).is_ok(), "one world");
        allow_images(&world, &chain);
        let client = Client::of(&world).await;
        Self { world, chain, client, fake }
    }

    async fn key(&self, app: u8) -> Answer {
        self.client.get(&format!("/kms/base/pubkey/0x{}", AppId([app; 20]))).await
    }

    /// What is wrong with the key service.
    async fn problem(&self) -> Value {
        self.client.json("/kms/base").await["problem"].clone()
    }

    /// Until nobody is told of the last trouble any more.
    async fn later(&self) {
        quick(self.world.clock.sleep(Duration::from_secs(6))).await;
    }

    async fn provision(&self) -> Value {
        let asked = json!({ "name": "web-one", "kms": "base", "compose_file": { "docker_compose_file": compose("web:1") } });
        self.client.post("/cvms/provision", asked).await.expect(200)
    }

    /// `web-one`, whose app's contract allows what it runs.
    async fn deploy(&self) -> Value {
        let prepared = self.provision().await;
        let app_id = AppId(self.world.clock.random());
        deploy_app(&self.chain, app_id, &prepared);
        let asked = json!({ "app_id": app_id, "compose_hash": prepared["compose_hash"] });
        let made = self.client.post("/cvms", asked).await.expect(200);
        quick(self.world.settle()).await;
        made
    }

    /// Goes on as a new server with the same store, with this node and other settings.
    async fn restart(&mut self, driver: Arc<dyn Driver>, change: impl FnOnce(&mut Config)) {
        let node = NewNode { address: "sim:1".to_owned(), driver, faults: None };
        let app = &self.world.app;
        let (store, kms, chains) = (app.store.clone(), Arc::clone(&app.kms), app.chains.clone());
        let (clock, mut config) = (app.clock.clone(), app.config.clone());
        change(&mut config);
        let app = App::start_with(store, clock, kms, vec![node], config, chains).await;
        self.world.app = app.expect("starts");
        self.client = Client::of(&self.world).await;
    }

    fn public_key(&self, app_id: &AppId) -> String {
        hex::encode(root().env_public_key(app_id).expect("a key"))
    }
}

/// Does `work`, for which nobody is asked over the network, without waiting for time to pass.
async fn quick<T>(work: impl Future<Output = T>) -> T {
    tokio::time::pause();
    let done = work.await;
    tokio::time::resume();
    done
}

#[tokio::test]
async fn it_is_shown_as_what_it_is() {
    let it = Scene::start().await;
    let shown = it.client.json("/kms/base").await;
    assert_eq!((&shown["custody"], &shown["problem"]), (&json!("tee"), &Value::Null), "{shown}");
    assert_eq!(shown["k256_pubkey"], hex::encode(root().k256_public_key()));
    let older = it.client.version(ApiVersion::V20260522).json("/kms/base").await;
    assert_eq!((&older["url"], &older["version"]), (&json!(it.fake.service().url), &json!("0.6.0")));
    let list = it.client.json("/kms").await;
    assert_eq!(
        (&list["items"][0]["custody"], &list["items"][1]["custody"]),
        (&json!("operator"), &json!("tee"))
    );
    let on_chain = it.client.json("/kms/on-chain/base").await;
    assert_eq!(on_chain["contracts"][0]["k256_pubkey"], shown["k256_pubkey"]);
    assert_eq!(it.fake.asked(), ["GetMeta"], "once for all of them");
}

#[tokio::test]
async fn an_apps_key_is_asked_for_once_and_kept_with_the_app() {
    let it = Scene::start().await;
    let key = it.key(9).await.expect(200);
    assert_eq!(key["public_key"], it.public_key(&AppId([9; 20])));
    assert_eq!(key.as_object().map(serde_json::Map::len), Some(2), "strict clients take no more: {key}");
    let made = it.deploy().await;
    assert_eq!(it.fake.asked(), ["GetMeta", "GetAppEnvEncryptPubKey", "GetAppEnvEncryptPubKey"]);
    let app_id: AppId = text(&made["app_id"]).parse().expect("an id");
    let expected = it.public_key(&app_id);
    it.fake.set(How::Raw(500, ""));
    quick(it.world.clock.sleep(Duration::from_secs(3600))).await;
    assert_eq!(made["encrypted_env_pubkey"], expected);
    assert_eq!(it.key(9).await.expect(200), key);
    let shown = it.client.json("/cvms/web-one").await;
    assert_eq!(
        (&shown["encrypted_env_pubkey"], &shown["kms_info"]["k256_pubkey"]),
        (&json!(expected), &json!(hex::encode(root().k256_public_key())))
    );
    assert_eq!(it.fake.asked(), Vec::<String>::new());
    // A new process knows the keys of apps that there are, and no others.
    let again = it.world.restarted().await;
    let known = casemate_server::kms::env_public_key(&again, "base", &app_id);
    assert_eq!(known, Some(expected));
    assert_eq!(casemate_server::kms::env_public_key(&again, "base", &AppId([9; 20])), None);
}

#[tokio::test]
async fn an_app_from_before_gets_its_key_when_somebody_asks_for_it() {
    let fake = Fake::start().await;
    let service = fake.service();
    let mut it = Scene::with(fake, |_| ()).await;
    let made = it.deploy().await;
    let app_id: AppId = text(&made["app_id"]).parse().expect("an id");
    let expected = json!(it.public_key(&app_id));
    assert_ne!(it.client.json("/cvms/web-one").await["encrypted_env_pubkey"], expected);
    let sim = Arc::new(it.world.sim.clone());
    it.restart(sim.clone(), |config| config.contract_kms[0].service = Some(service)).await;
    assert_eq!(it.client.json("/cvms/web-one").await["encrypted_env_pubkey"], Value::Null);
    it.client.get(&format!("/kms/base/pubkey/{app_id}")).await.expect(200);
    assert_eq!(it.client.json("/cvms/web-one").await["encrypted_env_pubkey"], expected);
    it.fake.set(How::Raw(500, ""));
    it.restart(sim.clone(), |_| ()).await;
    assert_eq!(it.client.json("/cvms/web-one").await["encrypted_env_pubkey"], expected, "it is kept");
    it.restart(sim, |config| config.contract_kms.clear()).await;
    let nobodys = it.client.json("/cvms/web-one").await["encrypted_env_pubkey"].clone();
    assert_eq!(nobodys, Value::Null, "the key of another key service would seal for nobody");
}

#[tokio::test]
async fn what_is_kept_counts_only_if_the_configured_key_signed_it() {
    let it = Scene::start().await;
    let made = it.deploy().await;
    let app_id: AppId = text(&made["app_id"]).parse().expect("an id");
    let mut service = it.fake.service();
    let known = |service: &KmsService| {
        let kms = Dstack::open(service, None).expect("opens");
        kms.known_key(&it.world.app.store, &app_id).is_some()
    };
    assert!(known(&service));
    service.k256_public_key = RootKeys::generate(&[9; 64]).k256_public_key();
    assert!(!known(&service));
}

#[tokio::test]
async fn a_key_that_the_root_key_did_not_sign_lately_for_this_app_is_refused() {
    let it = Scene::start().await;
    let now = move |clock: &OnceLock<Clock>| clock.get().expect("a clock").now().as_second();
    let shared = Arc::clone(&it.fake.shared);
    let good = move |app: u8, after: i64| signed(&shared.keys, AppId([app; 20]), now(&shared.clock) + after);
    let good = Arc::new(good);
    let lies: [(&str, Lie); 10] = [
        (
            "another root",
            Arc::new(|key| *key = signed(&RootKeys::generate(&[9; 64]), AppId([1; 20]), 1_767_225_600)),
        ),
        ("another app", {
            let good = good.clone();
            Arc::new(move |key| *key = good(2, 0))
        }),
        ("too old", {
            let good = good.clone();
            Arc::new(move |key| *key = good(1, -302))
        }),
        ("too early", {
            let good = good.clone();
            Arc::new(move |key| *key = good(1, 62))
        }),
        (
            "another time",
            Arc::new(|key| key["timestamp"] = json!(key["timestamp"].as_u64().expect("a time") + 1)),
        ),
        ("another key", Arc::new(|key| key["public_key"] = json!("11".repeat(32)))),
        (
            "an undated one of another root",
            Arc::new(|key| {
                let other = RootKeys::generate(&[9; 64]);
                let (app, public) = (AppId([1; 20]), root().env_public_key(&AppId([1; 20])).expect("a key"));
                key["signature"] = json!(hex::encode(other.sign_env_public_key(&app, &public, None)));
            }),
        ),
        ("a short key", Arc::new(|key| key["public_key"] = json!("11"))),
        ("a dated one alone", Arc::new(|key| key["signature"] = json!(""))),
        (
            "27 and 28",
            Arc::new(|key| {
                let signature = text(&key["signature_v1"]);
                key["signature_v1"] = json!(format!("{}1b", &signature[..128]));
            }),
        ),
    ];
    for (what, lie) in lies {
        it.fake.lie(move |method, answer| {
            if method == "GetAppEnvEncryptPubKey" {
                lie(answer);
            }
        });
        let answer = it.key(1).await;
        assert_eq!(answer.status, 503, "{what}: {}", answer.text());
        assert_eq!(answer.json()["detail"], "The key service is not available", "{what}");
        // Nor is anything made with it.
        let asked = json!({ "app_id": AppId([1; 20]), "compose_hash": it.provision().await["compose_hash"] });
        it.client.post("/cvms", asked).await.expect(503);
    }
    assert_eq!(it.client.json("/cvms/paginated").await["total"], 0);
    it.fake.set(How::Well);
    it.key(1).await.expect(200);
}

#[tokio::test]
async fn signatures_without_a_time_are_taken_from_software_that_dates_none() {
    let it = Scene::start().await;
    it.fake.lie(|method, answer| {
        if method == "GetAppEnvEncryptPubKey" {
            let fields = answer.as_object_mut().expect("an object");
            fields.remove("timestamp");
            fields.remove("signature_v1");
        }
    });
    assert_eq!(it.key(1).await.expect(200)["public_key"], it.public_key(&AppId([1; 20])));
}

#[tokio::test]
async fn one_that_is_not_what_is_configured_is_not_used() {
    let it = Scene::start().await;
    let other = format!("0x{}", "22".repeat(20));
    for (field, value, named) in [
        (
            "kms_contract_address",
            json!(other),
            "serves contract 0x2222222222222222222222222222222222222222 on chain 8453; configured is contract 0x1111111111111111111111111111111111111111 on chain 8453",
        ),
        ("kms_contract_address", json!(""), "serves no contract; configured"),
        ("kms_contract_address", Value::Null, "serves no contract; configured"),
        ("kms_contract_address", json!(format!("0x{}", "0".repeat(40))), "serves no contract; configured"),
        ("kms_contract_address", json!("0x1"), "`0x1`, which is no address"),
        ("chain_id", json!(1), "on chain 1; configured is"),
        ("chain_id", Value::Null, "on chain 0; configured is"),
        (
            "k256_pubkey",
            json!(hex::encode(RootKeys::generate(&[9; 64]).k256_public_key())),
            "and k256_public_key is 0",
        ),
        ("is_dev", json!(true), "is set up for development"),
        ("allow_any_upgrade", json!(true), "is set up for development"),
    ] {
        it.fake.lie(move |method, answer| {
            if method == "GetMeta" {
                answer[field] = value.clone();
            }
        });
        it.later().await;
        let problem = text(&it.problem().await);
        assert!(problem.contains(named), "{field}: {problem}");
        it.fake.asked();
        it.key(1).await.expect(503);
        assert_eq!(it.fake.asked(), Vec::<String>::new(), "it was asked just now");
    }
    it.fake.set(How::Well);
    it.later().await;
    assert_eq!(it.problem().await, Value::Null);
    it.key(1).await.expect(200);
    // It may be set up anew at any time.
    it.fake.lie(|_, answer| answer["chain_id"] = json!(1));
    quick(it.world.clock.sleep(Duration::from_secs(61))).await;
    it.key(2).await.expect(503);
}

#[tokio::test]
async fn trouble_is_bounded_and_stays_where_it_is() {
    let it = Scene::start().await;
    it.key(8).await.expect(200);
    for (how, named) in [
        (How::Raw(200, "no JSON"), "answers GetMeta with something else"),
        (How::Raw(200, "{}"), "missing field `ca_cert`"),
        (How::Raw(200, ""), "answers GetMeta with something else"),
        (How::Raw(400, r#"{"error":"auth api\nis down"}"#), "answers GetMeta with HTTP status 400"),
        (How::Raw(500, "<html>"), "answers GetMeta with HTTP status 500"),
        (How::Redirect, "answers GetMeta with HTTP status 302"),
        (How::Huge, "answers with more than 1048576 bytes"),
        (How::Hang, "gave no whole answer within 5 s"),
    ] {
        // Whatever it says of itself, and whatever it says of an app.
        for what in ["GetMeta", "GetAppEnvEncryptPubKey"] {
            it.fake.set(How::Well);
            quick(it.world.clock.sleep(Duration::from_secs(61))).await;
            if what == "GetAppEnvEncryptPubKey" {
                assert_eq!(it.problem().await, Value::Null);
            }
            it.fake.set(how.clone());
            let begun = it.world.clock.now();
            let answer = match how {
                How::Hang => quick(it.key(1)).await,
                _ => it.key(1).await,
            };
            answer.expect(503);
            let took = it.world.clock.now().duration_since(begun).as_secs();
            assert!(took <= 6, "{named}: {took} s");
            // What needs no new key works.
            it.key(8).await.expect(200);
            it.client.get("/cvms/paginated").await.expect(200);
            if what == "GetMeta" {
                let problem = text(&it.problem().await);
                assert!(problem.contains(named) && !problem.contains("auth api"), "{problem}");
            }
        }
    }
    // Nobody listens.
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let service = KmsService { url: format!("http://{free}"), ..it.fake.service() };
    let nobody = Dstack::open(&service, None).expect("opens").look(&it.world.clock).await;
    assert!(nobody.expect_err("nobody").contains("cannot be asked: "));
}

#[tokio::test]
async fn many_who_ask_one_that_hangs_wait_together() {
    let it = Scene::start().await;
    it.fake.set(How::Hang);
    let begun = it.world.clock.now();
    let all = quick(futures_util::future::join_all((0..64).map(|app| it.key(app)))).await;
    assert!(all.iter().all(|answer| answer.status == 503));
    assert!(it.world.clock.now().duration_since(begun).as_secs() <= 6);
    assert!(it.fake.asked().len() <= 1, "one looks for all");
}

#[tokio::test]
async fn without_a_key_nothing_is_made() {
    let it = Scene::start().await;
    let prepared = it.provision().await;
    let app_id = AppId(it.world.clock.random());
    deploy_app(&it.chain, app_id, &prepared);
    it.fake.set(How::Raw(500, ""));
    it.later().await;
    let asked = json!({ "app_id": app_id, "compose_hash": prepared["compose_hash"] });
    it.client.post("/cvms", asked.clone()).await.expect(503);
    assert_eq!(it.client.json("/cvms/paginated").await["total"], 0);
    it.fake.set(How::Well);
    it.later().await;
    assert_eq!(
        it.client.post("/cvms", asked).await.expect(200)["encrypted_env_pubkey"],
        it.public_key(&app_id)
    );
}

/// Changes the contract's mind right before a step.
struct Before<'a, F: Fn() + Send + Sync> {
    step: StepName,
    act: &'a F,
}

#[async_trait::async_trait]
impl<F: Fn() + Send + Sync> Probe for Before<'_, F> {
    async fn reached(&self, _: &Operation, step: StepName, moment: Moment) -> bool {
        if (step, moment) == (self.step, Moment::Before) {
            (self.act)();
        }
        true
    }
}

#[tokio::test]
async fn the_contract_is_asked_before_the_stop_and_by_the_key_service_before_the_start() {
    enum Forbidden {
        Hash,
        Device,
        Image,
    }
    for (what, step, outcome) in [
        (Forbidden::Hash, StepName::Stage, Err("does not allow compose hash")),
        (Forbidden::Device, StepName::Stage, Err("does not allow the node's device")),
        (Forbidden::Image, StepName::Stage, Err("its contract says: OS image")),
        // A simulated machine needs no keys, so nobody asks.
        (Forbidden::Hash, StepName::Start, Ok(())),
    ] {
        let it = Scene::start().await;
        let made = it.deploy().await;
        let app_id: AppId = text(&made["app_id"]).parse().expect("an id");
        let path = format!("/cvms/{}", text(&made["vm_uuid"]));
        let ask = it.client.patch(&path, json!({ "docker_compose_file": compose("web:2") })).await;
        assert_eq!(crate::approvals::detail(&ask, "kms_info")["custody"], "tee");
        let hash = crate::approvals::hash(&ask);
        it.chain.register(TX, app_id, hash);
        let client = it.client.header("x-compose-hash", hash.to_string());
        let confirmed = client.header("x-transaction-hash", TX.to_string()).patch(&path, json!({})).await;
        let op = text(&confirmed.expect(202)["correlation_id"]).parse().expect("an id");
        let facts = it.world.app.node(1).expect("a node").facts();
        let act = || match what {
            Forbidden::Hash => it.chain.forbid_hash(app_id, hash),
            Forbidden::Device => it.chain.forbid_device(app_id, &facts.device_id),
            Forbidden::Image => {
                for image in &facts.images {
                    let mut hash = [0; 32];
                    hex::decode_to_slice(&image.os_image_hash, &mut hash).expect("a hash");
                    it.chain.forbid_os_image(KMS, hash);
                }
            }
        };
        quick(it.world.settle_with(&Before { step, act: &act })).await;
        let operation = it.world.operation(op);
        match (outcome, &operation.state) {
            (Ok(()), OpState::Succeeded { .. }) => {}
            (Err(named), OpState::Failed { reason, put_back, .. }) => {
                assert_eq!((reason.code, *put_back), (FailCode::NotAllowed, None));
                assert!(reason.message.contains(named), "{}", reason.message);
            }
            (_, other) => panic!("{other:?}"),
        }
    }
}

/// A node whose machines are in a TEE, as far as the server can see.
struct Tee(Sim);

#[async_trait::async_trait]
impl Driver for Tee {
    fn kind(&self) -> &'static str {
        "dstack"
    }
    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }
    fn boot_deadline(&self) -> Duration {
        self.0.boot_deadline()
    }
    fn poll_interval(&self) -> Duration {
        self.0.poll_interval()
    }
    async fn describe(&self) -> driver::Result<NodeFacts> {
        self.0.describe().await
    }
    async fn ensure_staged(
        &self,
        at: At,
        machine: &Machine,
    ) -> driver::Result<Vec<casemate_types::guest::ImageRef>> {
        self.0.ensure_staged(at, machine).await
    }
    async fn ensure_stopped(&self, at: At, how: Stop) -> driver::Result<Stopped> {
        self.0.ensure_stopped(at, how).await
    }
    async fn ensure_applied(&self, at: At, machine: &Machine) -> driver::Result<()> {
        self.0.ensure_applied(at, machine).await
    }
    async fn ensure_started(&self, at: At) -> driver::Result<()> {
        self.0.ensure_started(at).await
    }
    async fn ensure_absent(&self, at: At) -> driver::Result<()> {
        self.0.ensure_absent(at).await
    }
    async fn observe(&self, machines: &[VmUuid]) -> driver::Result<Vec<Observed>> {
        self.0.observe(machines).await
    }
    async fn inventory(&self) -> driver::Result<Vec<Observed>> {
        self.0.inventory().await
    }
    fn expect_node(&self, name: &str) {
        self.0.expect_node(name);
    }
    async fn sysinfo(&self, machine: VmUuid) -> driver::Result<Option<casemate_types::wire::Sysinfo>> {
        self.0.sysinfo(machine).await
    }
    async fn logs(&self, machine: VmUuid, channel: &LogChannel) -> driver::Result<Vec<LogLine>> {
        self.0.logs(machine, channel).await
    }
}

#[tokio::test]
async fn a_sealed_environment_is_not_opened_here() {
    for in_a_tee in [false, true] {
        let mut it = Scene::start().await;
        let made = it.deploy().await;
        let (uuid, path) = (text(&made["vm_uuid"]), format!("/cvms/{}", text(&made["vm_uuid"])));
        if in_a_tee {
            let driver = Arc::new(Tee(it.world.sim.clone()));
            it.restart(driver, |_| ()).await;
        }
        let boots = async || {
            it.world.sim.observe(&[uuid.parse().expect("an id")]).await.expect("answers")[0].boot_count
        };
        let before = boots().await;
        // Nobody here could tell whether it is good.
        let asked = it.client.patch(&path, json!({ "encrypted_env": "07".repeat(100) })).await.expect(202);
        quick(it.world.settle()).await;
        let operation = it.world.operation(text(&asked["correlation_id"]).parse().expect("an id"));
        let OpState::Failed { reason, .. } = &operation.state else { panic!("{:?}", operation.state) };
        if in_a_tee {
            assert_eq!(reason.code, FailCode::BootFailed, "the guest found out, and not stage: {reason:?}");
        } else {
            // That it would never open, is known.
            assert_eq!((reason.code, boots().await), (FailCode::Refused, before), "{reason:?}");
            assert!(reason.message.contains("machines in a TEE only"), "{}", reason.message);
        }
    }
}

#[tokio::test]
async fn it_can_stand_in_for_the_embedded_one() {
    let fake = Fake::start().await;
    let service = fake.service();
    let it = Scene::with(fake, |config| config.kms_service = Some(service)).await;
    let problem = text(&it.client.json("/kms/phala").await["problem"]);
    assert!(problem.contains("serves contract 0x1111111111111111111111111111111111111111 on chain 8453; configured is no contract"), "{problem}");
    let asked = json!({ "name": "web-one", "compose_file": { "docker_compose_file": compose("web:1") } });
    it.client.post("/cvms/provision", asked.clone()).await.expect(503);
    it.fake.lie(|method, answer| {
        if method == "GetMeta" {
            answer["kms_contract_address"] = json!("0x0000000000000000000000000000000000000000");
            answer["chain_id"] = json!(0);
        }
    });
    it.later().await;
    let shown = it.client.json("/kms/phala").await;
    assert_eq!(
        (&shown["custody"], &shown["label"], &shown["chain_id"]),
        (&json!("tee"), &json!("dstack-kms"), &json!(0))
    );
    let prepared = it.client.post("/cvms/provision", asked).await.expect(200);
    let app_id: AppId = text(&prepared["app_id"]).parse().expect("an id");
    assert_eq!(prepared["app_env_encrypt_pubkey"], it.public_key(&app_id));
    assert_eq!(prepared["kms_info"]["custody"], "tee");
    // The other one is where it was.
    assert_eq!(it.client.json("/kms/base").await["custody"], "operator");
}

struct TlsListener {
    listener: TcpListener,
    tls: TlsAcceptor,
    ready: VecDeque<(TlsStream<TcpStream>, SocketAddr)>,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return ready;
            }
            let Ok((stream, address)) = self.listener.accept().await else { continue };
            // A client that does not like the certificate goes away.
            if let Ok(stream) = self.tls.accept(stream).await {
                self.ready.push_back((stream, address));
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

#[tokio::test]
async fn the_certificate_has_to_come_from_the_configured_authority() {
    let (ours, other) = (authority(), authority());
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &ours).expect("a certificate");
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        )
        .expect("they belong together");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let listener = TlsListener { listener, tls: TlsAcceptor::from(Arc::new(config)), ready: VecDeque::new() };
    let fake = Fake::serve(address, ours.pem(), |service| {
        tokio::spawn(async move { axum::serve(listener, service).await.expect("serves") })
    });
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let service = |host: &str, ca: PathBuf| KmsService {
        url: format!("https://{host}:{}", address.port()),
        ca_certificate: Some(ca),
        ..fake.service()
    };
    let contract = Some((8453, KMS));
    let clock = Clock::system();
    let look = |service: KmsService| {
        let clock = clock.clone();
        async move { Dstack::open(&service, contract).expect("opens").look(&clock).await }
    };
    assert_eq!(look(service("localhost", file("ours.pem", &ours.pem()))).await, Ok(()));
    for (host, ca) in
        [("localhost", other.pem()), ("localhost", RECORDED_CA.to_owned()), ("127.0.0.1", ours.pem())]
    {
        let why = look(service(host, file("other.pem", &ca))).await.expect_err("not the one");
        assert!(why.contains("cannot be asked") && why.contains("certificate"), "{why}");
    }
    for (text, named) in [
        ("", "there is no `-----BEGIN CERTIFICATE-----` in it"),
        (&*format!("{}{}", ours.pem(), other.pem()), "should be one certificate"),
    ] {
        let why =
            Dstack::open(&service("localhost", file("wrong.pem", text)), contract).expect_err("refused");
        assert!(why.contains(named) && why.contains("wrong.pem"), "{why}");
    }
    let missing = Dstack::open(&service("localhost", folder.path().join("none.pem")), contract);
    assert!(missing.expect_err("refused").contains("none.pem"));
}

#[tokio::test]
async fn the_authority_that_it_speaks_of_is_the_configured_one() {
    let it = Scene::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    for (pem, good) in [(RECORDED_CA.to_owned(), true), (authority().pem(), false)] {
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, pem).expect("written");
        let service = KmsService { ca_certificate: Some(path), ..it.fake.service() };
        let kms = Dstack::open(&service, Some((8453, KMS))).expect("opens");
        let found = kms.look(&it.world.clock).await;
        assert_eq!(found.is_ok(), good, "{found:?}");
        let key = kms.ca_public_key().map(hex::encode).expect("a key");
        let recorded = "044b9a8fc104dcfbb720201b85427e1a82355090f66a22f3a42374fd9d442844d22f8e148ee08f63f61fbabafa030216357c7c84efdb041cdfe932318815b7ba1a";
        assert_eq!(key == recorded, good);
    }
}

/// What a `dstack-kms` 0.6.0 answered for app `a0a1…b2b3`.
#[tokio::test]
async fn an_answer_of_the_real_one_is_believed() {
    let it = Scene::start().await;
    it.fake.lie(|method, answer| match method {
        "GetMeta" => answer["k256_pubkey"] = json!(RECORDED_K256),
        _ => {
            *answer = json!({
                "public_key": "83bcf29ece166244a66f9f6adeeec6fe282afbb2cec54f803fe250adca85c31f",
                "signature": "a27d8c9b71b4dcafcd2db983dbc97fd3dba4e15eee90a0c66edf4153f676f77d00b5e01d05e18691c91dee71a97b79a410f51b8597045501d49d7d77aa9d3a3a00",
                "timestamp": 1_795_599_086,
                "signature_v1": "3ab2f71e33d7fef6d68fbb232b2851f450767554f8439565217dad04e468425b1306fd30dce0053affe93f367d2212d654e299c048f2b1850d279fa8c421947600",
            });
        }
    });
    let mut service = it.fake.service();
    hex::decode_to_slice(RECORDED_K256, &mut service.k256_public_key).expect("a key");
    let app_id = AppId(std::array::from_fn(|index| 0xa0 + index as u8));
    let kms = Dstack::open(&service, Some((8453, KMS))).expect("opens");
    let (store, clock) = (&it.world.app.store, &it.world.clock);
    // In January it is dated far ahead.
    let why = kms.key(clock, store, &app_id).await.expect_err("not yet");
    assert!(why.contains("more than 60 seconds ahead"), "{why}");
    let until = jiff::Timestamp::from_second(1_795_599_086 + 200).expect("a time");
    let wait = Duration::try_from(until.duration_since(clock.now())).expect("later");
    quick(clock.sleep(wait)).await;
    let key = kms.key(clock, store, &app_id).await.expect("believed");
    assert_eq!(
        hex::encode(key.public_key),
        "83bcf29ece166244a66f9f6adeeec6fe282afbb2cec54f803fe250adca85c31f"
    );
}

const RECORDED_K256: &str = "02e1330408d7d122b8d93d42604fb13ba65d305454eb861b98332b4ea9262c6d6c";
