//! Data folders as a busy cloud would leave them, written through the store itself.

use std::path::Path;

use casemate_kms::RootKeys;
use casemate_server::auth::{Author, Scopes};
use casemate_server::clock::Clock;
use casemate_server::config::EMBEDDED_KMS;
use casemate_server::cvm::spec::{Compose, Gpus, Spec, sha256};
use casemate_server::cvm::state::Power;
use casemate_server::driver::sim::Sim;
use casemate_server::driver::{At, Driver};
use casemate_server::serve;
use casemate_server::store::{Accepted, NewCvm, NewKey, NewOperation, NewSpec, Store, Work};
use casemate_server::workflow::operation::{Kind, Options, StepName};
use casemate_types::compose::ComposeDoc;
use casemate_types::ids::{AppId, OperationId, VmUuid};
use casemate_types::version::ApiVersion;
use futures_util::future::try_join_all;
use jiff::ToSpan;

use crate::Result;

/// How many transactions wait for a commit together while a folder is filled.
const AT_ONCE: usize = 256;

/// Fills `data` with `count` CVMs that run on `sim`, an app for each. Writes the ids of the CVMs, a line each, and an API key for
/// their workspace beside the store.
pub(crate) async fn fill(data: &Path, sim: &Sim, count: usize) -> Result<()> {
    let clock = Clock::system();
    std::fs::create_dir_all(data)?;
    let store = serve::open_store(data)?;
    RootKeys::load_or_create(&data.join("kms.key"), || clock.random())?;
    let uids = [format!("wks_{}", clock.random_text(10)), format!("usr_{}", clock.random_text(10))];
    let account = store.workspace_ensure("bench".into(), "bench".into(), uids, clock.now()).await?;
    let author = Author { user_id: account.user_id, key_id: None, request_id: None };
    let key = format!("phak_{}", clock.random_text(43));
    let new_key = NewKey {
        uid: format!("key_{}", clock.random_text(10)),
        hash: sha256(key.as_bytes()),
        prefix: key[..10].to_owned(),
        name: "bench".into(),
        scopes: Scopes::ALL,
        default_version: ApiVersion::LATEST,
        expires_at: None,
        at: clock.now(),
    };
    store.key_create(account.workspace_id, account.user_id, new_key, None, None).await?;
    let node_id = store.node_ensure(sim.describe().await?, String::new(), clock.now()).await?;

    let mut ids = String::new();
    let numbers: Vec<usize> = (0..count).collect();
    for numbers in numbers.chunks(AT_ONCE) {
        let creations = numbers.iter().map(|&number| {
            let new = NewCvm {
                uid: format!("cvm_{}", clock.random_text(8)).parse().expect("letters and digits"),
                vm_uuid: VmUuid(clock.new_uuid_v4()),
                workspace_id: account.workspace_id,
                app_id: AppId(clock.random()),
                app_uid: format!("dapp_{}", clock.random_text(8)),
                kms: EMBEDDED_KMS.into(),
                env_key: None,
                node_id,
                name: format!("web-{number:06}"),
                listed: false,
                spec: spec(&clock, number),
                deployer: None,
                closes: None,
                nonce: None,
                op: OperationId(clock.new_id()),
                author: author.clone(),
                at: clock.now(),
            };
            store.cvm_create(new, None)
        });
        for Accepted { cvm, .. } in try_join_all(creations).await? {
            ids.push_str(cvm.uid.as_str());
            ids.push('\n');
        }
        let lease = clock.now().checked_add(1.hour())?;
        let claimed = store.operation_claim(None, clock.now(), lease, AT_ONCE).await?.work;
        try_join_all(claimed.into_iter().map(|work| carry_out(&store, &clock, sim, work))).await?;
    }
    std::fs::write(data.join("ids"), ids)?;
    std::fs::write(data.join("key"), key)?;
    settle(data)
}

/// Accepts an update of each of the first `count` CVMs in `data`; none of them has begun.
pub(crate) async fn open_updates(data: &Path, count: usize) -> Result<()> {
    let clock = Clock::system();
    let store = serve::open_store(data)?;
    let account = store.account_by_slug("bench")?;
    let first = i64::try_from(count)?;
    let cvms = (1..=first).map(|id| store.cvm(id)).collect::<std::result::Result<Vec<_>, _>>()?;
    for cvms in cvms.chunks(AT_ONCE) {
        let accepts = cvms.iter().map(|cvm| {
            let (store, clock) = (&store, &clock);
            async move {
                let mut spec = store.spec(cvm.id, cvm.revision)?;
                spec.memory_mb *= 2;
                let new = NewOperation {
                    id: OperationId(clock.new_id()),
                    cvm_id: cvm.id,
                    kind: Kind::Update,
                    steps: Kind::Update.steps(Power::On).to_vec(),
                    power: None,
                    spec: Some(NewSpec { spec, content_of: None }),
                    options: Options::default(),
                    diff: Vec::new(),
                    closes: None,
                    author: Some(Author { user_id: account.user_id, key_id: None, request_id: None }),
                    at: clock.now(),
                };
                store.operation_accept(new, cvm.clone(), None).await
            }
        });
        try_join_all(accepts).await?;
    }
    settle(data)
}

/// Does what a worker does, the node being at hand.
async fn carry_out(store: &Store, clock: &Clock, sim: &Sim, work: Work) -> Result<()> {
    let Work { mut operation, cvm, machine } = work;
    let at = At { vm: cvm.vm_uuid, generation: operation.generation };
    sim.ensure_applied(at, &machine).await?;
    sim.ensure_started(at).await?;
    while let Some(name) = operation.current_step().map(|step| step.name) {
        let seen = match name {
            StepName::Observe => sim.observe(&[cvm.vm_uuid]).await?.pop(),
            StepName::Stage | StepName::Stop | StepName::Apply | StepName::Start | StepName::Remove => None,
        };
        operation = store.step_done(operation.held(), seen.into(), clock.now()).await?;
    }
    Ok(())
}

/// Moves everything into the one file, as the end of a server does.
fn settle(data: &Path) -> Result<()> {
    let store = rusqlite::Connection::open(data.join("casemate.db"))?;
    store.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}

/// A folder with the same content.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for file in ["casemate.db", "kms.key", "key", "ids"] {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    Ok(())
}

/// A small web application: what most CVMs are.
fn spec(clock: &Clock, number: usize) -> Spec {
    let yaml = format!(
        "services:\n  web:\n    image: registry.example.com/team/web:{number}\n    ports:\n      - \"80:8080\"\n    \
         environment:\n      - DATABASE_URL=postgres://db/app\n    depends_on:\n      - db\n    restart: always\n  db:\n    \
         image: postgres:17\n    volumes:\n      - data:/var/lib/postgresql/data\n    restart: always\nvolumes:\n  data: {{}}\n"
    );
    let name = format!("web-{number:06}");
    let mut document = ComposeDoc::default().with_defaults(&name);
    document.set_docker_compose_file(&yaml);
    document.set_allowed_envs(["DATABASE_URL"]);
    Spec {
        compose: Compose::new(&document),
        sealed_env: Some(clock.random::<256>().as_slice().into()),
        user_config: None,
        vcpu: 1,
        memory_mb: 2048,
        disk_gb: 20,
        gpus: Gpus::default(),
        image: "dstack-0.5.5".into(),
        instance_seed: clock.random(),
    }
}
