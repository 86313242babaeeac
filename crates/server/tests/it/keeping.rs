//! What is kept, and what goes after its time.

use std::time::Duration;

use casemate_server::cvm::spec::{Long, Spec};
use casemate_server::cvm::state::Power;
use casemate_server::store::{Error, NewOperation, NewSpec, Of};
use casemate_server::workflow::operation::{Kind, Options};
use casemate_server::workflow::{power, sweep};
use casemate_testkit::{World, compose};
use casemate_types::ids::{ComposeHash, OperationId};
use casemate_types::patch::{CvmPatch, Sparse};
use tokio_util::sync::CancellationToken;

const MONTH: Duration = Duration::from_secs(31 * 24 * 3600);

#[tokio::test(start_paused = true)]
async fn a_live_cvm_keeps_its_revisions_and_its_audit_trail_and_a_deleted_one_goes() {
    let world = World::start().await;
    let (kept, deleted) = (world.deploy("web-one", "web:1").await, world.deploy("web-two", "web:1").await);
    let patch = CvmPatch { docker_compose_file: Sparse::Value(compose("web:2")), ..CvmPatch::default() };
    let update = world.accept_update(&kept, patch).await;
    world.settle().await;
    power::delete(&world.app, world.cvm(&deleted), world.author()).await.expect("accepted");
    world.settle().await;

    sweep::once(&world.app).await;
    let events = |after| world.app.store.events(world.actor.workspace_id, Of::Workspace, after, 1000);
    let before = events(0).expect("nothing is old enough");
    assert!(before.iter().any(|event| event.kind == "step.finished"));
    assert!(world.app.store.cvm_uid(deleted.id).is_ok());

    world.clock.sleep(MONTH).await;
    sweep::once(&world.app).await;
    assert!(matches!(world.app.store.cvm_uid(deleted.id), Err(Error::Missing)));
    assert_eq!(world.app.store.revisions(kept.id, None, 100).expect("reads").len(), 2);
    world.app.store.spec(kept.id, 1).expect("an old revision of a live CVM can be brought back");
    world.assert_events(update);
    let after = events(0).expect("reads from the beginning");
    assert!(
        after.iter().all(|event| event.kind != "step.finished" && event.cvm.as_ref() != Some(&deleted.uid))
    );
    let first = before.first().expect("there were some").seq;
    assert!(matches!(world.app.store.events_since(first), Err(Error::Swept(_))), "who missed some is told");
    assert!(!events(first).expect("the audit trail goes on").is_empty());
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_deleted_cvm_leaves_goes_in_small_pieces_and_completely() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    power::delete(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
    world.settle().await;
    let store = rusqlite::Connection::open(world.folder().join("casemate.db")).expect("the store");
    // Among them such that belong to no operation.
    let events = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
      INSERT INTO event (workspace_id, cvm_id, op, kind, at)
      SELECT workspace_id, cvm_id, iif(i % 2, id, NULL), 'note', created_at FROM n, (SELECT * FROM operation LIMIT 1)";
    store.execute(events, []).expect("written");
    let left = || -> i64 {
        let sql = "SELECT (SELECT count(*) FROM event) + (SELECT count(*) FROM operation) + (SELECT count(*) FROM revision)
          + (SELECT count(*) FROM body) + (SELECT count(*) FROM observation) + (SELECT count(*) FROM cvm)";
        store.query_row(sql, [], |row| row.get(0)).expect("reads")
    };
    world.clock.sleep(MONTH).await;
    let mut pieces = 0;
    loop {
        let before = left();
        let rows = world.app.store.sweep(world.app.config.keep, world.clock.now()).await.expect("sweeps");
        if rows == 0 {
            break;
        }
        let gone = before - left();
        assert!(gone <= 1000, "{gone} rows went in one transaction");
        pieces += 1;
    }
    assert!(pieces > 5, "{pieces}");
    assert_eq!(left(), 0);
    assert!(matches!(world.app.store.cvm_uid(cvm.id), Err(Error::Missing)));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_runs_for_a_minute_sweeps() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    power::delete(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
    world.settle().await;
    world.clock.sleep(MONTH).await;
    let stop = CancellationToken::new();
    let sweeping = tokio::spawn(sweep::run(world.app.clone(), stop.clone()));
    world.clock.sleep(Duration::from_secs(61)).await;
    assert!(matches!(world.app.store.cvm_uid(cvm.id), Err(Error::Missing)));
    stop.cancel();
    sweeping.await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn no_revision_is_stored_without_its_long_parts() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let mut spec = world.app.store.spec(cvm.id, 1).expect("the spec").outline();
    spec.vcpu += 1;
    let accept = |spec: Spec| {
        let new = NewOperation {
            id: OperationId(world.clock.new_id()),
            cvm_id: cvm.id,
            kind: Kind::Update,
            steps: Kind::Update.steps(Power::On).to_vec(),
            power: None,
            spec: Some(NewSpec { spec, content_of: None }),
            options: Options::default(),
            diff: Vec::new(),
            closes: None,
            author: Some(world.author()),
            at: world.clock.now(),
        };
        world.app.store.operation_accept(new, world.cvm(&cvm), None)
    };
    let lost: [fn(&mut Spec); 4] = [
        |spec| spec.compose.hash = ComposeHash([9; 32]),
        |spec| spec.compose.document = Long::elsewhere([9; 32]),
        |spec| spec.sealed_env = Some(Long::elsewhere([9; 32])),
        |spec| spec.user_config = Some(Long::elsewhere([9; 32])),
    ];
    for lose in lost {
        let mut spec = spec.clone();
        lose(&mut spec);
        accept(spec).await.expect_err("nobody has that part");
        assert_eq!(world.cvm(&cvm).open, None);
    }
    accept(spec).await.expect("its parts are those of the first revision");
}
