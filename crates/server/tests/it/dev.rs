//! Faults planned from outside, to rehearse with.

use casemate_server::config::Config;
use casemate_server::cvm::state::Status;
use casemate_server::driver::sim::SimConfig;
use casemate_testkit::World;
use serde_json::json;

use crate::client::Client;
use crate::scene::Scene;

#[tokio::test(start_paused = true)]
async fn a_failing_update_can_be_rehearsed() {
    let scene = Scene::start().await;
    let before = scene.snapshot().await;
    let planned = json!({ "fault": "boot-fail", "once": true, "cvm": "web-one" });
    let answer = scene.client.post("/dev/nodes/sim-1/faults", planned).await.expect(201);
    assert_eq!((&answer["fault"], &answer["once"]), (&json!("boot-fail"), &json!(true)));
    assert_eq!((&answer["cvm"], answer.get("vm")), (&json!(scene.cvm.uid), None));
    let listed = scene.client.json("/dev/nodes/1/faults").await;
    assert_eq!(listed[0]["cvm"], json!(scene.cvm.uid));
    let told = scene.client.json("/nodes").await["items"][0]["faults"][0].clone();
    assert!(told.as_str().is_some_and(|text| text.contains(scene.cvm.uid.as_str())), "{told}");
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    scene.client.patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(202);
    scene.world.settle().await;
    let now = scene.now();
    assert_eq!((now.status, scene.spec().vcpu), (Status::Running, before.size.vcpu));
    assert!(now.boot_error.expect("a reason").contains("put back"));
    assert_eq!(scene.client.json("/dev/nodes/1/faults").await, json!([]));
}

#[tokio::test(start_paused = true)]
async fn every_fault_has_a_word_and_can_be_cleared() {
    let scene = Scene::start().await;
    let words = [
        "boot-fail",
        "refuse",
        "disk-full",
        "unreachable",
        "slow-stop",
        "stop-hangs",
        "crash",
        "lie",
        "vanish",
        "answer-lost",
        "slow",
    ];
    for word in words {
        let body = json!({ "fault": word, "seconds": 5, "cvm": null });
        assert_eq!(scene.client.post("/dev/nodes/1/faults", body).await.expect(201)["fault"], word);
        scene.client.delete("/dev/nodes/1/faults").await.expect(204);
        assert_eq!(scene.client.json("/dev/nodes/1/faults").await, json!([]));
    }
    let cases = [
        (json!({}), "fault"),
        (json!({ "fault": "explode" }), "fault"),
        (json!({ "fault": "slow", "seconds": 0 }), "seconds"),
        (json!({ "fault": "slow", "seconds": "5" }), "seconds"),
        (json!({ "fault": "lie", "once": "yes" }), "once"),
        (json!({ "fault": "lie", "cvm": "web-nobody" }), "cvm"),
    ];
    for (body, field) in cases {
        let refused = scene.client.post("/dev/nodes/1/faults", body).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", field]), "{refused}");
    }
    scene.client.get("/dev/nodes/9/faults").await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn outside_dev_there_are_no_such_routes() {
    let world = World::with(SimConfig::node(1), Config { dev: false, ..Config::default() }).await;
    let client = Client::of(&world).await;
    let unknown = client.get("/nothing/here").await.expect(404);
    assert_eq!(client.get("/dev/nodes/1/faults").await.expect(404), unknown);
    assert_eq!(client.post("/dev/nodes/1/faults", json!({ "fault": "lie" })).await.expect(404), unknown);
    assert_eq!(client.delete("/dev/nodes/1/faults").await.expect(404), unknown);
}
