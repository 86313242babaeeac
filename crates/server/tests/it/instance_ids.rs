//! Instance ids: looked up without a restart, or issued anew with one.

use casemate_server::driver::fault::{Fault, Planned};
use casemate_types::version::ApiVersion;
use serde_json::{Value, json};

use crate::scene::Scene;

fn id(scene: &Scene) -> Value {
    json!(scene.now().instance_id.expect("known after the first boot"))
}

#[tokio::test(start_paused = true)]
async fn a_new_id_comes_with_a_restart_and_the_old_one_is_gone() {
    let scene = Scene::start().await;
    let old = id(&scene);
    let mut expected = scene.snapshot().await;
    let answer = scene.client.post(&scene.path("/refresh-instance-id"), Value::Null).await.expect(200);
    let new = answer["instance_id"].clone();
    assert_eq!((&answer["old_instance_id"], &answer["new_instance_id"]), (&old, &new));
    assert_eq!(
        (&answer["status"], &answer["cvm_id"]),
        (&json!("updated"), &json!(scene.cvm.uid.to_string()))
    );
    assert_eq!(answer["identifier"], json!(scene.cvm.uid.to_string()));
    assert_ne!(old, new);
    let path = |id: &Value| format!("/cvms/instance_{}", id.as_str().expect("an id"));
    // The old one is valid until the operation has succeeded.
    scene.client.get(&path(&old)).await.expect(200);
    scene.client.get(&path(&new)).await.expect(404);
    scene.world.settle().await;
    scene.client.get(&path(&old)).await.expect(404);
    scene.client.get(&path(&new)).await.expect(200);
    assert_eq!(json!(scene.seen().await.instance_id), new);
    expected.boots += 1;
    assert_eq!(scene.snapshot().await, expected);
    let operation = answer["correlation_id"].as_str().expect("an id");
    let operation = scene.client.get(&format!("/operations/{operation}")).await.expect(200);
    assert_eq!(operation["status"], json!("succeeded"));
    assert_eq!(operation["diff"], json!([{ "field": "instance_id", "from": old, "to": new }]));
}

#[tokio::test(start_paused = true)]
async fn a_new_id_that_does_not_boot_is_put_back() {
    let scene = Scene::start().await;
    let old = id(&scene);
    let fault = Fault::BootFail { image: None, env: None };
    scene.world.sim.plan(Planned { fault, once: true, vm: None }).expect("planned");
    scene.client.post(&scene.path("/refresh-instance-id"), json!({})).await.expect(200);
    scene.world.settle().await;
    assert_eq!((id(&scene), json!(scene.seen().await.instance_id)), (old.clone(), old));
}

#[tokio::test(start_paused = true)]
async fn several_at_once_each_for_itself() {
    let scene = Scene::start().await;
    let other = scene.world.deploy("web-other", "web:1").await;
    let busy = scene.world.deploy("web-busy", "web:1").await;
    scene.client.patch(&format!("/cvms/{}", busy.uid), json!({ "vcpu": 2 })).await.expect(202);
    let ids = json!(["web-one", other.vm_uuid, "web-busy", "web-nobody", "###", "web-one"]);
    let path = "/cvms/refresh-instance-ids";
    let dry = scene.client.post(&format!("{path}?dry_run=true"), json!({ "ids": ids })).await.expect(200);
    assert_eq!((&dry["updated"], &dry["errors"], scene.now().open), (&json!(0), &json!(2), None), "{dry}");
    let answer = scene.client.post(path, json!({ "ids": ids })).await.expect(200);
    let statuses: Vec<_> =
        answer["items"].as_array().expect("a list").iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, ["updated", "updated", "conflict", "error", "error", "conflict"], "{answer}");
    let counters = ["total", "scanned", "updated", "unchanged", "skipped", "conflicts", "errors"]
        .map(|key| &answer[key]);
    assert_eq!(counters, [6, 6, 2, 0, 0, 2, 2].map(|n| json!(n)).each_ref(), "{answer}");
    let boots = scene.seen().await.boot_count;
    scene.world.settle().await;
    assert_eq!(scene.seen().await.boot_count, boots + 1);
    for (index, cvm) in [(0, &scene.cvm), (1, &other)] {
        let item = &answer["items"][index];
        assert_eq!(json!(scene.world.cvm(cvm).instance_id), item["instance_id"]);
        assert!(item["correlation_id"].is_string());
    }
    for bad in
        [json!({}), json!({ "ids": [] }), json!({ "ids": "web-one" }), json!({ "ids": vec!["a"; 501] })]
    {
        let refused = scene.client.post("/cvms/refresh-instance-ids", bad).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", "ids"]), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_up_restarts_nothing() {
    let scene = Scene::start().await;
    let (before, known) = (scene.snapshot().await, id(&scene));
    for version in ApiVersion::ALL {
        let client = scene.client.version(version);
        let answer =
            client.patch(&scene.path("/instance-id"), json!({ "overwrite": true })).await.expect(200);
        assert_eq!((&answer["status"], &answer["new_instance_id"]), (&json!("unchanged"), &known));
        assert_eq!(answer["cvm_id"].is_string(), version.has_string_ids());
    }
    let all = scene.client.patch("/cvms/instance-ids", json!({})).await.expect(200);
    assert_eq!((&all["total"], &all["skipped"]), (&json!(1), &json!(1)), "known ones are skipped: {all}");
    let body = json!({ "cvm_ids": ["web-one", "web-nobody"], "missing_only": false });
    let some = scene.client.patch("/cvms/instance-ids", body).await.expect(200);
    assert_eq!(
        (&some["total"], &some["unchanged"], &some["errors"]),
        (&json!(2), &json!(1), &json!(1)),
        "{some}"
    );
    scene.client.patch("/cvms/instance-ids", json!({ "limit": 501 })).await.expect(422);

    scene.world.sim.plan(Planned { fault: Fault::Unreachable, once: false, vm: None }).expect("planned");
    let away = scene.client.patch(&scene.path("/instance-id"), json!({})).await.expect(200);
    assert_eq!(away["status"], "error");
    assert!(away["reason"].as_str().expect("text").contains("reachable"), "{away}");
    scene.world.sim.clear().expect("cleared");
    scene.world.settle().await;
    assert_eq!(scene.snapshot().await, before);
}

#[tokio::test(start_paused = true)]
async fn a_look_up_fills_in_what_is_missing() {
    let scene = Scene::start().await;
    let cvm = scene.world.create("web-two", "web:1").await;
    let path = format!("/cvms/{}/instance-id", cvm.uid);
    let busy = scene.client.patch(&path, json!({})).await.expect(200);
    assert_eq!(busy["status"], "conflict", "{busy}");
    // The machine is up, and the guest does not say so in time: the record has no id.
    let fault = Fault::BootFail { image: None, env: None };
    scene.world.sim.plan(Planned { fault, once: true, vm: None }).expect("planned");
    scene.world.settle().await;
    assert_eq!(scene.world.cvm(&cvm).instance_id, None);
    let tried = scene.client.patch(&format!("{path}?dry_run=true"), json!({})).await.expect(200);
    assert_eq!((&tried["status"], scene.world.cvm(&cvm).instance_id), (&json!("updated"), None));
    let found = scene.client.patch(&path, json!({})).await.expect(200);
    assert_eq!((&found["status"], &found["source"]), (&json!("updated"), &json!("teepod_info")));
    assert_eq!(json!(scene.world.cvm(&cvm).instance_id), found["new_instance_id"]);
}
