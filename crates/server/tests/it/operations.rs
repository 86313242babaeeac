//! Operations called off, and revisions brought back.

use casemate_server::cvm::state::Status;
use casemate_server::workflow::worker::{NoProbe, carry};
use casemate_testkit::compose;
use serde_json::json;

use crate::client::Client;
use crate::scene::Scene;

#[tokio::test(start_paused = true)]
async fn cancel_works_until_the_machine_is_touched() {
    let scene = Scene::start().await;
    let before = scene.snapshot().await;
    let accepted =
        scene.client.patch(&scene.path(""), json!({ "vcpu": 2, "listed": true })).await.expect(202);
    let path = format!("/operations/{}/cancel", accepted["correlation_id"].as_str().expect("an id"));
    Client::stranger(&scene.world).await.post(&path, json!({})).await.expect(404);
    let cancelled = scene.client.post(&path, json!({})).await.expect(200);
    assert_eq!(
        (&cancelled["status"], &cancelled["correlation_id"]),
        (&json!("cancelled"), &accepted["correlation_id"])
    );
    assert_eq!((scene.now().status, scene.now().open, scene.now().listed), (Status::Running, None, false));
    scene.world.settle().await;
    assert_eq!(scene.snapshot().await, before);
    scene.world.assert_accounts().await;
    // Too late, since it has ended.
    let ended = scene.client.post(&path, json!({})).await.expect(409);
    assert!(ended["error_code"].is_string());
    assert!(
        ended["message"].as_str().is_some_and(|text| text.contains("has ended: it was called off")),
        "{ended}"
    );
    let accepted = scene.client.patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(202);
    let path = format!("/operations/{}/cancel", accepted["correlation_id"].as_str().expect("an id"));
    scene.client.post(&scene.path("/stop"), json!({})).await.expect(200);
    let ended = scene.client.post(&path, json!({})).await.expect(409);
    assert!(ended["message"].as_str().is_some_and(|text| text.contains("took over")), "{ended}");
    let stop = scene.client.json("/operations?status=queued").await["items"][0]["correlation_id"].clone();
    let stop = format!("/operations/{}/cancel", stop.as_str().expect("an id"));
    let refused = scene.client.post(&stop, json!({})).await.expect(409);
    assert!(
        refused["message"].as_str().is_some_and(|text| text.contains("stop is not called off")),
        "{refused}"
    );
    scene.world.settle().await;
    let ended = scene.client.post(&stop, json!({})).await.expect(409);
    assert!(ended["message"].as_str().is_some_and(|text| text.contains("it succeeded at")), "{ended}");
    for id in ["nonsense", "0198c1d2-0000-7000-8000-000000000000"] {
        scene.client.post(&format!("/operations/{id}/cancel"), json!({})).await.expect(404);
    }
}

#[tokio::test(start_paused = true)]
async fn cancel_after_the_stop_began_is_refused_with_a_code() {
    let scene = Scene::start().await;
    let accepted = scene.client.patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(202);
    let id = accepted["correlation_id"].as_str().expect("an id");
    // One worker gets as far as the stop, and dies there.
    struct UntilStop;
    #[async_trait::async_trait]
    impl casemate_server::workflow::worker::Probe for UntilStop {
        async fn reached(
            &self,
            _: &casemate_server::workflow::operation::Operation,
            step: casemate_server::workflow::operation::StepName,
            _: casemate_server::workflow::worker::Moment,
        ) -> bool {
            step != casemate_server::workflow::operation::StepName::Stop
        }
    }
    for work in scene.world.claim(1).await {
        carry(&scene.world.app, work, &UntilStop).await;
    }
    let late = scene.client.post(&format!("/operations/{id}/cancel"), json!({})).await.expect(409);
    assert!(
        late["error_code"].is_string() && late["message"].as_str().expect("text").contains("stop"),
        "{late}"
    );
    scene.world.settle_with(&NoProbe).await;
    assert_eq!(scene.spec().vcpu, 2);
}

#[tokio::test(start_paused = true)]
async fn power_calls_answer_with_what_was_asked_for() {
    let scene = Scene::start().await;
    let status = async |path: &str| {
        let answer = scene.client.post(&scene.path(path), json!({})).await.expect(200);
        let status = answer["status"].as_str().expect("a text").to_owned();
        scene.world.settle().await;
        status
    };
    assert_eq!(status("/start").await, "starting", "of one that runs");
    assert_eq!(status("/stop").await, "stopping");
    assert_eq!(status("/restart").await, "restarting", "of one that is off");
    assert_eq!(scene.now().status, Status::Running);
    assert_eq!(status("/restart").await, "restarting");
    assert_eq!(status("/shutdown").await, "shutting_down");
    assert_eq!(scene.now().status, Status::Stopped);
}

#[tokio::test(start_paused = true)]
async fn rollback_brings_content_back_but_not_the_disk() {
    let scene = Scene::start().await;
    let first = scene.snapshot().await;
    let body =
        json!({ "docker_compose_file": compose("web:2"), "vcpu": 4, "disk_size": 40, "user_config": "x" });
    scene.client.patch(&scene.path(""), body).await.expect(202);
    scene.world.settle().await;
    let answer = scene.client.post(&scene.path("/rollback"), json!({ "revision": 1 })).await.expect(202);
    assert_eq!(answer["status"], "in_progress");
    scene.world.settle().await;
    let mut expected = first;
    expected.size.disk_gb = 40;
    expected.boots += 2;
    assert_eq!(scene.snapshot().await, expected);
    assert_eq!((scene.now().revision, json!(scene.spec().compose.hash)), (3, answer["compose_hash"].clone()));
    scene.client.post(&scene.path("/rollback"), json!({ "revision": 99 })).await.expect(404);
    for bad in [json!({}), json!({ "revision": 0 }), json!({ "revision": "one" })] {
        let refused = scene.client.post(&scene.path("/rollback"), bad).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", "revision"]));
    }
}

#[tokio::test(start_paused = true)]
async fn the_audit_trail_of_a_cvm_says_what_changed_also_when_it_is_gone() {
    let scene = Scene::start().await;
    let other = scene.world.deploy("web-two", "web:1").await;
    scene.client.patch(&format!("/cvms/{}", other.uid), json!({ "vcpu": 3 })).await.expect(202);
    scene.client.patch(&scene.path(""), json!({ "vcpu": 2, "memory": 4096 })).await.expect(202);
    scene.world.settle().await;
    scene.client.delete(&scene.path("")).await.expect(204);
    scene.world.settle().await;
    let uid = scene.cvm.uid.to_string();
    let (mut cursor, mut events) = (String::from("0"), Vec::new());
    loop {
        let page = scene.client.json(&format!("/audit?cvm={uid}&limit=4&cursor={cursor}")).await;
        events.extend(page["items"].as_array().expect("a list").clone());
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert!(events.iter().all(|event| event["cvm_id"] == json!(uid)), "{events:?}");
    let changed: Vec<_> = events.iter().filter(|event| event.get("changes").is_some()).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    let changes = changed[0]["changes"].as_array().expect("a list");
    let fields: Vec<_> = changes.iter().map(|change| &change["field"]).collect();
    assert_eq!(fields, ["vcpu", "memory"]);
    scene.client.get("/audit?cvm=web-none").await.expect(404);
}
