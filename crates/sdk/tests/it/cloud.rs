//! The client against a real server with a simulated node: what is promised is what happens.

use std::sync::Arc;
use std::time::Duration;

use casemate_kms::RootKeys;
use casemate_sdk::env::EnvVar;
use casemate_sdk::types::patch::OnFailure;
use casemate_sdk::types::version::ApiVersion;
use casemate_sdk::{Client, Error, Fault, LogSource, Operation, PatchOutcome, PutBack, wire};
use casemate_server::app::{LocalKeys, NewNode};
use casemate_server::auth::Scopes;
use casemate_server::clock::Clock;
use casemate_server::config::Config;
use casemate_server::cvm::spec::sha256;
use casemate_server::driver::sim::{Sim, SimConfig};
use casemate_server::serve::{self, Server, Start};
use casemate_server::store::{Durability, NewKey};
use futures_util::TryStreamExt;

const KEY: &str = "phak_0000000000000000000000000000000000000000000";
const COMPOSE: &str = "services:\n  web:\n    image: nginx:alpine\n";

/// A running server, its data and a client of it.
struct Cloud {
    client: Client,
    _server: Server,
    _data: tempfile::TempDir,
}

impl Cloud {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let kms = Arc::new(RootKeys::generate(&clock.random()));
        let node = SimConfig { boot_ms: 20, stop_ms: 5, call_ms: 0, ..SimConfig::node(1) };
        let keys = Arc::new(LocalKeys(Arc::clone(&kms)));
        let sim = Sim::new(node, clock.clone(), Some(keys), None).unwrap();
        let node =
            NewNode { address: "sim:1".into(), driver: Arc::new(sim.clone()), faults: Some(Arc::new(sim)) };
        let start = Start {
            data: data.path().to_owned(),
            lock: serve::lock(data.path()).unwrap(),
            listen: "127.0.0.1:0".parse().unwrap(),
            nodes: vec![node],
            kms,
            clock: clock.clone(),
            config: Config { dev: true, public_url: String::new(), ..Config::default() },
            durability: Durability::None,
        };
        let server = Server::start(start).await.unwrap();
        let store = &server.app.store;
        let uids = ["wks_1".to_owned(), "usr_1".to_owned()];
        let account = store.workspace_ensure("test".into(), "test".into(), uids, clock.now()).await.unwrap();
        let key = NewKey {
            uid: "key_1".into(),
            hash: sha256(KEY.as_bytes()),
            prefix: KEY[..10].to_owned(),
            name: "test".into(),
            scopes: Scopes::ALL,
            default_version: ApiVersion::LATEST,
            expires_at: None,
            at: clock.now(),
        };
        store.key_create(account.workspace_id, account.user_id, key, None, None).await.unwrap();
        let url = format!("http://{}/api/v1", server.address);
        let client = Client::builder().base_url(url).api_key(KEY).build().unwrap();
        Self { client, _server: server, _data: data }
    }

    /// With a CVM `web-1` that runs.
    async fn with_cvm() -> Self {
        let cloud = Self::start().await;
        let deploy = cloud.client.deploy("web-1", COMPOSE).env([EnvVar::new("TOKEN", "s3cret")]);
        succeed(&deploy.send().await.unwrap()).await;
        cloud
    }
}

/// Waits, but not for ever.
async fn wait(op: &Operation) -> Result<Option<wire::Operation>, Error> {
    tokio::time::timeout(Duration::from_secs(30), op.wait()).await.expect("an operation ends")
}

async fn succeed(op: &Operation) {
    wait(op).await.unwrap();
}

#[tokio::test]
async fn a_cvm_from_its_deployment_to_its_removal() {
    let cloud = Cloud::start().await;
    let client = &cloud.client;
    assert!(client.is_casemate().await.unwrap());
    assert_eq!(client.casemate_version().await.unwrap().as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(client.me().await.unwrap().workspace.name, "test");

    let deploy =
        client.deploy("web-1", COMPOSE).env([EnvVar::new("TOKEN", "s3cret")]).vcpu(1).memory_mb(2048);
    let op = deploy.send().await.unwrap();
    assert_eq!(op.vm().unwrap().status, "creating");
    let web = client.cvm("web-1");
    succeed(&op).await;
    assert_eq!(web.watch("running").timeout_secs(10).send().await.unwrap().status, "running");
    assert_eq!(web.docker_compose_yml().await.unwrap(), COMPOSE);
    let seen = web.observed().await.unwrap();
    assert_eq!((seen.boot_count, seen.vcpu, seen.memory_mb), (1, 1, 2048));
    assert_eq!(seen.env_keys, ["TOKEN"]);
    assert_eq!(web.compose_text().await.unwrap().len(), {
        let hash = sha256(web.compose_text().await.unwrap().as_bytes());
        assert_eq!(web.get().await.unwrap().compose_hash.unwrap().0, hash);
        web.compose_text().await.unwrap().len()
    });

    let all: Vec<_> = client.cvms().page_size(1).stream().try_collect().await.unwrap();
    let uuid = all[0].vm_uuid.unwrap();
    assert_eq!(client.status_batch([uuid]).await.unwrap().len(), 1);
    assert_eq!(client.apps().send().await.unwrap().total, 1);
    assert_eq!(client.app_cvms(all[0].app_id.unwrap()).await.unwrap().len(), 1);

    succeed(&web.stop().send().await.unwrap()).await;
    assert_eq!(web.state().await.unwrap().status, "stopped");
    succeed(&web.start().send().await.unwrap()).await;
    succeed(&web.restart().force().send().await.unwrap()).await;
    succeed(&web.shutdown().send().await.unwrap()).await;
    succeed(&web.start().send().await.unwrap()).await;
    assert_eq!(web.observed().await.unwrap().boot_count, 4);

    succeed(&web.delete().send().await.unwrap()).await;
    assert!(matches!(web.get().await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn an_update_boots_once_however_many_fields_it_has() {
    let cloud = Cloud::with_cvm().await;
    let web = cloud.client.cvm("web-1");
    let yaml = COMPOSE.replace("nginx:alpine", "nginx:1");
    let patch =
        web.patch().compose(&yaml).pre_launch_script("echo hi\n").vcpu(2).memory_mb(4096).public_logs(false);
    let plan = patch.clone().dry_run().send().await.unwrap();
    assert_eq!(plan.kind, wire::PlanKind::Restart);
    assert_eq!(web.observed().await.unwrap().boot_count, 1);

    let op = patch.send().await.unwrap().accepted().unwrap();
    let seen: Vec<_> = op.watch().try_collect().await.unwrap();
    let last = seen.last().unwrap();
    assert_eq!(last.status, "succeeded");
    assert_eq!(
        last.steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(),
        ["stage", "stop", "apply", "start", "observe"]
    );
    assert!(last.downtime_ms.is_some());
    succeed(&op).await;

    let seen = web.observed().await.unwrap();
    assert_eq!((seen.boot_count, seen.vcpu, seen.memory_mb, seen.public_logs), (2, 2, 4096, false));
    assert_eq!(seen.compose_hash, plan.compose_hash);
    assert_eq!(web.docker_compose_yml().await.unwrap(), yaml);
    assert_eq!(web.pre_launch_script_text().await.unwrap(), "echo hi\n");
}

#[tokio::test]
async fn each_aspect_has_its_method() {
    let cloud = Cloud::with_cvm().await;
    let web = cloud.client.cvm("web-1");
    let boots = async || web.observed().await.unwrap().boot_count;

    let op = web.resources().vcpu(2).disk_gb(30).send().await.unwrap();
    assert_eq!(op.vm().unwrap().vcpu, 2);
    succeed(&op).await;
    succeed(&web.visibility().public_tcbinfo(false).send().await.unwrap().accepted().unwrap()).await;
    succeed(&web.pre_launch_script("echo 1\n").send().await.unwrap().accepted().unwrap()).await;
    succeed(&web.docker_compose(COMPOSE.replace("alpine", "1")).send().await.unwrap().accepted().unwrap())
        .await;
    succeed(&web.os_image("dstack-0.5.4").send().await.unwrap()).await;
    let sealed = web.seal(&[EnvVar::new("TOKEN", "n3w")]).await.unwrap();
    succeed(&web.envs(sealed).keys(["TOKEN"]).send().await.unwrap().accepted().unwrap()).await;
    assert_eq!(boots().await, 7);
    succeed(&web.pre_launch_script("").send().await.unwrap().accepted().unwrap()).await;
    assert_eq!(web.pre_launch_script_text().await.unwrap(), "");
    assert_eq!(boots().await, 8);

    web.listed(true).send().await.unwrap();
    let outcome = web.visibility().listed(false).send().await.unwrap();
    assert!(matches!(outcome, PatchOutcome::Accepted(_)));
    web.rename("web-2").send().await.unwrap();
    let web = cloud.client.cvm("web-2");
    assert_eq!(web.observed().await.unwrap().boot_count, 8);

    let mut doc = web.compose_file().await.unwrap();
    doc.set_docker_compose_file(COMPOSE);
    let provision = web.compose().provision(doc).send().await.unwrap();
    let op = web.compose().commit(provision.compose_hash).send().await.unwrap().accepted().unwrap();
    assert_eq!(op.compose_hash(), Some(provision.compose_hash));
    succeed(&op).await;
    assert_eq!(web.get().await.unwrap().compose_hash, Some(provision.compose_hash));

    let before = web.get().await.unwrap().instance_id;
    let refreshed = web.refresh_instance_id().send().await.unwrap();
    assert_ne!(refreshed.instance_id, before);
    succeed(&cloud.client.operation(refreshed.correlation_id.unwrap()).clone()).await;
    let many = cloud.client.refresh_instance_ids(["web-2", "nobody-1"]).send().await.unwrap();
    assert_eq!((many.updated, many.errors), (1, 1));
    let issued = many.items.iter().find_map(|item| item.correlation_id).unwrap();
    succeed(&cloud.client.operation(issued)).await;
    assert_eq!(web.look_up_instance_id(Default::default()).await.unwrap().status, "unchanged");
}

#[tokio::test]
async fn a_failing_update_is_put_back_and_says_so() {
    let cloud = Cloud::with_cvm().await;
    let web = cloud.client.cvm("web-1");
    cloud.client.node("sim-1").plan_fault(Fault::BootFail).once().send().await.unwrap();
    let op = web.resources().vcpu(2).send().await.unwrap();
    match wait(&op).await.unwrap_err() {
        Error::UpdateFailed { reason, put_back: PutBack::Done(put_back), operation } => {
            assert_eq!(reason.code, "boot_failed");
            assert_eq!(operation.unwrap().put_back, Some(put_back.correlation_id));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(web.observed().await.unwrap().vcpu, 1);

    cloud.client.node("sim-1").plan_fault(Fault::BootFail).once().send().await.unwrap();
    let op = web.resources().vcpu(2).on_failure(OnFailure::Hold).send().await.unwrap();
    let error = wait(&op).await.unwrap_err();
    assert!(matches!(error, Error::UpdateFailed { put_back: PutBack::None, .. }), "{error:?}");
    cloud.client.node("sim-1").clear_faults().await.unwrap();
}

#[tokio::test]
async fn history_can_be_read_and_repeated() {
    let cloud = Cloud::with_cvm().await;
    let web = cloud.client.cvm("web-1");
    let before = web.get_tagged().await.unwrap();
    succeed(
        &web.patch().vcpu(2).if_match(before.etag.clone().unwrap()).send().await.unwrap().accepted().unwrap(),
    )
    .await;
    let late = web.patch().vcpu(3).if_match(before.etag.unwrap()).send().await.unwrap_err();
    assert!(matches!(late, Error::Changed(_)), "{late:?}");

    let revisions: Vec<_> = web.revisions().limit(1).stream().try_collect().await.unwrap();
    assert_eq!(revisions.len(), 2);
    succeed(&web.rollback(1).send().await.unwrap().accepted().unwrap()).await;
    assert_eq!(web.observed().await.unwrap().vcpu, 1);

    let operations: Vec<_> =
        cloud.client.operations().cvm("web-1").limit(1).stream().try_collect().await.unwrap();
    assert_eq!(operations.len(), 3);
    let audit: Vec<_> = cloud.client.audit().limit(5).stream().try_collect().await.unwrap();
    assert!(audit.len() > 6);
    assert!(audit.is_sorted_by_key(|event| event.seq));
    let rest = cloud.client.audit().after(audit[audit.len() - 2].seq).send().await.unwrap();
    assert_eq!(rest.items, audit[audit.len() - 1..]);
}

#[tokio::test]
async fn a_request_with_a_key_counts_once() {
    let cloud = Cloud::with_cvm().await;
    let web = cloud.client.cvm("web-1");
    let key = casemate_sdk::idempotency_key().unwrap();
    let first = web.restart().idempotency_key(&key).send().await.unwrap();
    succeed(&first).await;
    web.restart().idempotency_key(&key).send().await.unwrap();
    assert_eq!(web.observed().await.unwrap().boot_count, 2);
    let other = web.restart().force().idempotency_key(&key).send().await.unwrap_err();
    assert!(matches!(other, Error::Invalid(_)), "{other:?}");
}

#[tokio::test]
async fn errors_are_told_apart() {
    let cloud = Cloud::with_cvm().await;
    let web = cloud.client.cvm("web-1");
    assert!(matches!(cloud.client.cvm("nobody-1").get().await, Err(Error::NotFound(_))));
    let anonymous = Client::anonymous(cloud.client.base_url()).unwrap();
    assert!(matches!(anonymous.cvm("web-1").get().await, Err(Error::Unauthorized(_))));

    let error = web.patch().vcpu(0).send().await.unwrap_err();
    assert_eq!(error.fields()[0].field(), "vcpu");
    assert!(error.request_id().is_some());
    let error = web.docker_compose("services: [").send().await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(422), Some("ERR-01-003")));
    let error = web.os_image("no-such-image").send().await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");

    let _ = web.restart().send().await.unwrap();
    let error = web.restart().send().await.unwrap_err();
    assert!(matches!(error, Error::Busy(_)) && error.is_transient(), "{error:?}");
    let error = web.commit_update("nonsense", "00".repeat(32), "").send().await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
}

#[tokio::test]
async fn the_rest_of_the_cloud_can_be_read() {
    let cloud = Cloud::with_cvm().await;
    let client = &cloud.client;
    let web = client.cvm("web-1");
    assert!(client.os_images().dev(true).send().await.unwrap().items.iter().all(|image| image.is_dev));
    assert!(
        web.available_os_images()
            .await
            .unwrap()
            .iter()
            .any(|group| group.prod.as_ref().is_some_and(|one| one.is_current))
    );
    assert!(!client.instance_types().await.unwrap().is_empty());
    assert_eq!(client.available_nodes().await.unwrap().nodes.len(), 1);
    assert_eq!(client.nodes().await.unwrap().len(), 1);
    assert_eq!(client.node(1).get().await.unwrap().name, client.node("sim-1").get().await.unwrap().name);
    assert!(matches!(client.node("sim-9").get().await, Err(Error::NotFound(_))));
    assert!(client.fields().await.unwrap().iter().any(|rule| rule.field == "vcpu"));

    let kms = client.kms();
    let one = &kms.list().await.unwrap()[0];
    assert_eq!(one.custody.as_deref(), Some("operator"));
    assert_eq!(kms.get(&one.id).await.unwrap(), *one);
    assert_eq!(kms.nodes(&one.id).await.unwrap().len(), 1);
    assert_eq!(kms.next_app_ids(2).await.unwrap().len(), 2);
    let detail = web.get().await.unwrap();
    let pubkey = kms.pubkey("phala", detail.app_id.unwrap()).await.unwrap().public_key;
    assert_eq!(detail.encrypted_env_pubkey, Some(pubkey));

    let end: jiff::Timestamp = "2999-12-31T00:00:00Z".parse().unwrap();
    let new = client.keys().create("ci").scopes(["read"]).expires_at(end).send().await.unwrap();
    assert_eq!(new.info.expires_at.map(|at| at.as_second()), Some(end.as_second()));
    let reader = Client::builder().base_url(client.base_url()).api_key(&new.key).build().unwrap();
    assert!(matches!(reader.cvm("web-1").restart().send().await, Err(Error::Forbidden(_))));
    client.keys().revoke(&new.info.id).await.unwrap();
    assert!(matches!(reader.me().await, Err(Error::Unauthorized(_))));
    assert_eq!(client.keys().list().await.unwrap().len(), 2);

    assert!(web.stats().await.unwrap().is_online);
    assert!(web.network().await.unwrap().is_online);
    assert_eq!(web.composition().await.unwrap().containers.unwrap().len(), 1);
    web.user_config().await.unwrap();
    assert!(!web.logs(LogSource::Serial).tail(5).send().await.unwrap().is_empty());
    assert!(!web.logs(LogSource::Container("web".into())).send().await.unwrap().is_empty());
}
