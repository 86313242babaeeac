//! Updates of a single aspect, each on its own route: the answer, the restart, and what the node has afterwards.

use axum::http::Method;
use casemate_server::cvm::plan::Wish;
use casemate_server::cvm::state::Status;
use casemate_server::workflow::operation::Kind;
use casemate_server::workflow::update::{self as workflow, Outcome, Request};
use casemate_testkit::compose;
use casemate_types::patch::{CvmPatch, Sparse};
use casemate_types::version::ApiVersion;
use serde_json::{Value, json};

use crate::client::Answer;
use crate::scene::{Scene, Snapshot};

/// Sends a PATCH, waits for the end, and compares the whole machine with what it should have done.
async fn update(
    scene: &Scene,
    rest: &str,
    body: Value,
    status: u16,
    boots: u64,
    effect: impl FnOnce(&mut Snapshot),
) -> Value {
    let answer = scene.client.patch(&scene.path(rest), body).await.expect(status);
    after(scene, boots, effect, answer).await
}

async fn after(scene: &Scene, boots: u64, effect: impl FnOnce(&mut Snapshot), answer: Value) -> Value {
    // The node still has what it had: nothing has worked on the request yet.
    let mut expected = old(scene).await;
    scene.world.settle().await;
    effect(&mut expected);
    expected.boots += boots;
    assert_eq!(scene.snapshot().await, expected, "{answer}");
    assert_eq!(scene.now().status, Status::Running);
    answer
}

async fn old(scene: &Scene) -> Snapshot {
    assert_eq!(scene.seen().await.revision, scene.now().revision);
    scene.snapshot().await
}

#[tokio::test(start_paused = true)]
async fn resources_each_alone_and_together() {
    let scene = Scene::start().await;
    let answer = update(&scene, "/resources", json!({ "vcpu": 2 }), 202, 1, |now| now.size.vcpu = 2).await;
    // The accepted update, and the CVM as it will be: flat beside it, and whole.
    assert_eq!(answer["status"], "in_progress");
    assert!(answer["correlation_id"].is_string() && answer["message"].is_string(), "{answer}");
    assert_eq!(
        (&answer["vcpu"], &answer["cvm"]["vcpu"], &answer["cvm"]["status"]),
        (&json!(2), &json!(2), &json!("updating"))
    );
    assert_eq!((&answer["name"], &answer["cvm"]["name"]), (&json!("web-one"), &json!("web-one")));

    update(&scene, "/resources", json!({ "memory": 4096 }), 202, 1, |now| now.size.memory_mb = 4096).await;
    update(&scene, "/resources", json!({ "disk_size": 40.0 }), 202, 1, |now| now.size.disk_gb = 40).await;
    let all =
        json!({ "vcpu": 4, "memory": 8192, "disk_size": 60, "allow_restart": 1, "name": "not-a-rename" });
    update(&scene, "/resources", all, 202, 1, |now| {
        (now.size.vcpu, now.size.memory_mb, now.size.disk_gb) = (4, 8192, 60);
    })
    .await;
    assert_eq!(scene.now().name, "web-one");
    update(&scene, "/resources", json!({ "instance_type": "tdx.medium" }), 202, 1, |now| {
        (now.size.vcpu, now.size.memory_mb) = (2, 4096);
    })
    .await;
    // A disk only grows.
    let refused = scene.client.patch(&scene.path("/resources"), json!({ "disk_size": 59 })).await.expect(400);
    assert_eq!(refused["error_code"], "ERR-02-008");
    assert_eq!(refused["details"][0]["field"], "disk_size");
}

#[tokio::test(start_paused = true)]
async fn visibility_restarts_for_what_is_measured_only() {
    let scene = Scene::start().await;
    let hash = scene.spec().compose.hash;
    let answer = update(&scene, "/visibility", json!({ "listed": true }), 200, 0, |_| {}).await;
    assert_eq!(
        (&answer["listed"], &answer["in_progress"], &answer["status"]),
        (&json!(true), &json!(false), &json!("running"))
    );
    assert_eq!(scene.spec().compose.hash, hash);

    for flag in ["public_logs", "public_sysinfo", "public_tcbinfo"] {
        let before = scene.spec().compose.hash;
        let answer = update(&scene, "/visibility", json!({ flag: false }), 200, 1, |now| {
            now.document.insert(flag.into(), false.into());
        })
        .await;
        assert_eq!(answer[flag], false);
        assert_eq!((&answer["status"], &answer["in_progress"]), (&json!("updating"), &json!(true)));
        assert_ne!(scene.spec().compose.hash, before);
    }
    let answer =
        update(&scene, "/visibility", json!({ "public_logs": true, "listed": false }), 200, 1, |now| {
            now.document.insert("public_logs".into(), true.into());
        })
        .await;
    // The answer shows what will be; the record follows when the operation succeeds.
    assert_eq!((&answer["listed"], &answer["public_logs"]), (&json!(false), &json!(true)));
    assert!(!scene.now().listed);
    scene.client.patch(&scene.path("/visibility"), json!({})).await.expect(422);
}

#[tokio::test(start_paused = true)]
async fn visibility_answers_in_every_version() {
    let scene = Scene::start().await;
    for version in ApiVersion::ALL {
        let client = scene.client.version(version);
        let answer = client.patch(&scene.path("/visibility"), json!({ "listed": true })).await.expect(200);
        assert_eq!(answer["id"].is_string(), version.has_string_ids(), "{answer}");
        for key in ["teepod_id", "vm_uuid", "instance_id", "base_image", "encrypted_env_pubkey"] {
            assert!(!answer[key].is_null(), "{key} in {answer}");
        }
        for key in ["public_sysinfo", "public_logs", "public_tcbinfo", "listed"] {
            assert!(answer[key].is_boolean(), "{key} in {answer}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn listed_and_name_have_routes_of_their_own() {
    let scene = Scene::start().await;
    let answer = update(&scene, "/listed", json!({ "listed": true }), 200, 0, |_| {}).await;
    assert_eq!((&answer["listed"], &answer["status"]), (&json!(true), &json!("running")));
    update(&scene, "/name", json!({ "name": "web-two" }), 204, 0, |_| {}).await;
    assert_eq!(scene.now().name, "web-two");
    // As a form, which is how one client sends it.
    let form = "application/x-www-form-urlencoded";
    scene.client.raw(Method::PATCH, &scene.path("/name"), form, "name=web-three").await.expect(204);
    assert_eq!(scene.now().name, "web-three");

    scene.world.create("web-other", "web:1").await;
    let taken = scene.client.patch(&scene.path("/name"), json!({ "name": "web-other" })).await.expect(400);
    let detail = taken["detail"].as_str().expect("a sentence");
    assert!(detail.contains("already in use") && detail.contains("web-other"), "{taken}");
    for bad in ["web", "1web-two", "web--two", "web-two-", "550e8400-e29b-11d4-a716-446655440000"] {
        let refused = scene.client.patch(&scene.path("/name"), json!({ "name": bad })).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", "name"]), "{refused}");
    }
    assert_eq!(scene.now().name, "web-three");
}

#[tokio::test(start_paused = true)]
async fn the_os_image_goes_by_name_or_slug() {
    let scene = Scene::start().await;
    let images = &scene.world.app.node(scene.cvm.node_id).expect("a node").facts().images;
    let (old, dev) = (images[2].clone(), images[1].clone());
    let (name, slug) = (old.name.clone(), dev.slug());
    let answer =
        update(&scene, "/os-image", json!({ "image": name }), 202, 1, |now| now.image = name.clone()).await;
    assert_eq!((&answer["status"], &answer["base_image"]), (&json!("in_progress"), &json!(name)));
    assert_eq!((&answer["cvm"]["base_image"], &answer["cvm"]["status"]), (&json!(name), &json!("updating")));
    update(&scene, "/os-image", json!({ "os_image_name": slug }), 202, 1, |now| now.image = dev.name.clone())
        .await;

    let unknown =
        scene.client.patch(&scene.path("/os-image"), json!({ "image": "no-such" })).await.expect(400);
    assert_eq!(
        (&unknown["error_code"], &unknown["details"][0]["field"]),
        (&json!("ERR-02-010"), &json!("image"))
    );
    let gpu = json!({ "image": "dstack-nvidia-0.5.5" });
    let unfit = scene.client.patch(&scene.path("/os-image"), gpu).await.expect(400);
    assert_eq!(unfit["error_code"], "ERR-02-013");
}

#[tokio::test(start_paused = true)]
async fn the_environment_is_replaced_and_says_whether_its_names_change() {
    let scene = Scene::start().await;
    let first = scene.sealed(&[("TOKEN", "one"), ("HIDDEN", "two")]);
    let hash = casemate_server::cvm::spec::sha256(&hex::decode(&first).expect("hex"));
    let body = json!({ "encrypted_env": format!("0x{first}"), "env_keys": ["TOKEN"] });
    let answer = update(&scene, "/envs", body, 202, 1, |now| {
        now.sealed_env = Some(hash);
        now.document.insert("allowed_envs".into(), json!(["TOKEN"]));
    })
    .await;
    assert_eq!((&answer["status"], &answer["allowed_envs_changed"]), (&json!("in_progress"), &json!(true)));
    assert_eq!(scene.seen().await.env_keys, ["TOKEN"]);

    let second = scene.sealed(&[("TOKEN", "three")]);
    let hash = casemate_server::cvm::spec::sha256(&hex::decode(&second).expect("hex"));
    let body = json!({ "encrypted_env": second, "env_keys": null });
    let answer = update(&scene, "/envs", body, 202, 1, |now| now.sealed_env = Some(hash)).await;
    assert_eq!(answer["allowed_envs_changed"], false);
    for bad in [
        json!({}),
        json!({ "encrypted_env": "zz" }),
        json!({ "encrypted_env": "00ff" }),
        json!({ "encrypted_env": 1 }),
    ] {
        let refused = scene.client.patch(&scene.path("/envs"), bad).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", "encrypted_env"]), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_environment_that_does_not_open_never_stops_the_machine() {
    let scene = Scene::start().await;
    let before = scene.snapshot().await;
    let foreign = {
        let key = scene.world.app.kms.env_public_key(&casemate_types::ids::AppId([9; 20])).expect("a key");
        hex::encode(casemate_types::env::seal(&key, &[], [3; 32], [3; 12]).expect("a good key"))
    };
    for blob in ["00".repeat(100), foreign] {
        let answer =
            scene.client.patch(&scene.path("/envs"), json!({ "encrypted_env": blob })).await.expect(202);
        scene.world.settle().await;
        let path = format!("/operations/{}", answer["correlation_id"].as_str().expect("an id"));
        let ended = scene.client.json(&path).await;
        assert_eq!((&ended["status"], &ended["step"]), (&json!("failed"), &json!("stage")), "{ended}");
        assert!(
            ended["reason"]["message"].as_str().is_some_and(|text| text.contains("cannot be opened")),
            "{ended}"
        );
        assert_eq!(scene.snapshot().await, before, "the machine did not notice");
        assert_eq!(scene.now().status, Status::Running);
    }
}

/// Every way in which a text can be sent.
async fn sent(scene: &Scene, rest: &str, field: &str, text: &str, way: usize) -> Answer {
    let (path, patch) = (scene.path(rest), Method::PATCH);
    match way {
        0 => scene.client.raw(patch, &path, "text/plain", text.to_owned()).await,
        1 => {
            let kind =
                if rest == "/docker-compose" { "application/x-yaml" } else { "application/octet-stream" };
            scene.client.raw(patch, &path, kind, text.to_owned()).await
        }
        2 => scene.client.raw(patch, &path, "", text.to_owned()).await,
        3 => scene.client.patch(&path, json!({ field: text, "compose_hash": null })).await,
        4 => {
            let part = format!(
                "--Xy\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n{text}\r\n--Xy--\r\n"
            );
            scene.client.raw(patch, &path, "multipart/form-data; boundary=Xy", part).await
        }
        5 => {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let form = format!("{field}={escaped}");
            scene.client.raw(patch, &path, "application/x-www-form-urlencoded", form).await
        }
        _ => scene.client.raw(patch, &path, "application/x-www-form-urlencoded", text.to_owned()).await,
    }
}

#[tokio::test(start_paused = true)]
async fn scripts_and_compose_files_arrive_byte_for_byte_in_every_way() {
    let scene = Scene::start().await;
    for way in 0..7 {
        let script = format!("#!/bin/sh\r\n# \u{fe} way {way}\n\techo \"a&b=c: d\"  \n\n");
        let answer = sent(&scene, "/pre-launch-script", "pre_launch_script", &script, way).await.expect(202);
        assert_eq!(answer["status"], "in_progress");
        after(
            &scene,
            1,
            |now| drop(now.document.insert("pre_launch_script".into(), script.clone().into())),
            answer,
        )
        .await;
        let shown = scene.client.get(&scene.path("/pre-launch-script")).await;
        assert_eq!(shown.text(), script, "way {way}");

        let yaml = format!("# \u{fe}\r\nservices:\n  web: {{image: 'web:{way}'}}  \n\n");
        let answer = sent(&scene, "/docker-compose", "docker_compose_file", &yaml, way).await.expect(202);
        after(
            &scene,
            1,
            |now| drop(now.document.insert("docker_compose_file".into(), yaml.clone().into())),
            answer,
        )
        .await;
        let shown = scene.client.get(&scene.path("/docker-compose.yml")).await;
        assert_eq!(shown.text(), yaml, "way {way}");
        assert_eq!(scene.seen().await.containers[0].image, format!("web:{way}"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_said_to_be_no_text_is_refused() {
    let scene = Scene::start().await;
    let tag = scene.now().tag();
    for (rest, field, content_type) in [
        ("/docker-compose", "docker_compose_file", "image/png"),
        ("/docker-compose", "docker_compose_file", "application/octet-stream"),
        ("/docker-compose", "docker_compose_file", "Application/ZIP; x=y"),
        ("/pre-launch-script", "pre_launch_script", "image/png"),
        ("/pre-launch-script", "pre_launch_script", "application/pdf"),
        ("/pre-launch-script", "pre_launch_script", "nonsense"),
    ] {
        let path = scene.path(rest);
        let refused =
            scene.client.raw(Method::PATCH, &path, content_type, compose("web:2")).await.expect(400);
        assert_eq!(refused["error_code"], "ERR-02-008");
        assert_eq!(refused["details"][0]["field"], field);
        let message = refused["message"].as_str().expect("a text");
        assert!(message.contains(field) && message.contains("text/plain"), "{message}");
    }
    assert_eq!(scene.now().tag(), tag);
    for content_type in
        ["text/yaml; charset=utf-8", "application/yaml", "application/x-yaml", "text/markdown"]
    {
        let path = format!("{}?dry_run=true", scene.path("/docker-compose"));
        scene.client.raw(Method::PATCH, &path, content_type, compose("web:2")).await.expect(200);
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_script_clears_it_and_an_empty_compose_file_is_refused() {
    let scene = Scene::start().await;
    for (content_type, empty) in
        [("text/plain", ""), ("application/json", ""), ("application/json", r#"{"pre_launch_script": ""}"#)]
    {
        update(&scene, "/pre-launch-script", json!({ "pre_launch_script": "echo" }), 202, 1, |now| {
            now.document.insert("pre_launch_script".into(), "echo".into());
        })
        .await;
        let path = scene.path("/pre-launch-script");
        let answer = scene.client.raw(Method::PATCH, &path, content_type, empty).await.expect(202);
        after(&scene, 1, |now| drop(now.document.shift_remove("pre_launch_script")), answer).await;
    }
    let path = scene.path("/docker-compose");
    for (content_type, empty) in [("text/yaml", ""), ("application/json", r#"{"docker_compose_file": ""}"#)] {
        let refused = scene.client.raw(Method::PATCH, &path, content_type, empty).await.expect(400);
        assert_eq!(refused["error_code"], "ERR-01-002");
        assert_eq!(refused["details"][0]["field"], "docker_compose_file");
    }
    for (rest, field) in
        [("/docker-compose", "docker_compose_file"), ("/pre-launch-script", "pre_launch_script")]
    {
        let bytes = b"services: \xff\xfe".to_vec();
        let refused =
            scene.client.raw(Method::PATCH, &scene.path(rest), "text/plain", bytes).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", field]), "{refused}");
        let missing = scene.client.patch(&scene.path(rest), json!({ "other": 1 })).await.expect(422);
        assert_eq!(missing["detail"][0]["loc"], json!(["body", field]), "{missing}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_says_what_would_be_and_does_nothing() {
    let scene = Scene::start().await;
    let (before, tag) = (scene.snapshot().await, scene.now().tag());
    let dry = |rest: &str| format!("{}?dry_run=true", scene.path(rest));
    let cases = [
        ("", json!({ "vcpu": 2, "public_logs": false }), "restart"),
        ("", json!({ "listed": true }), "records"),
        ("", json!({ "vcpu": before.size.vcpu }), "nothing"),
        ("/resources", json!({ "memory": 4096 }), "restart"),
        ("/visibility", json!({ "listed": true }), "records"),
        ("/listed", json!({ "listed": false }), "nothing"),
        ("/name", json!({ "name": "web-two" }), "records"),
        ("/os-image", json!({ "image": "dstack-0.5.4" }), "restart"),
        ("/envs", json!({ "encrypted_env": scene.sealed(&[]) }), "restart"),
        ("/docker-compose", json!({ "docker_compose_file": compose("web:2") }), "restart"),
        ("/pre-launch-script", json!({ "pre_launch_script": "" }), "nothing"),
    ];
    for (rest, body, kind) in cases {
        let plan = scene.client.patch(&dry(rest), body).await.expect(200);
        assert_eq!(plan["plan"]["kind"], kind, "{rest}: {plan}");
        assert_eq!(plan["plan"]["diff"].as_array().expect("a list").is_empty(), kind == "nothing", "{plan}");
        assert!(
            plan["plan"]["compose_hash"].is_string() && plan["plan"]["needs_approval"] == false,
            "{plan}"
        );
    }
    for rest in ["/rollback", "/refresh-instance-id"] {
        let plan = scene.client.post(&dry(rest), json!({ "revision": 1 })).await.expect(200);
        assert!(plan["plan"]["kind"].is_string(), "{plan}");
    }
    assert_eq!((scene.now().tag(), scene.now().open), (tag, None));
    scene.world.settle().await;
    assert_eq!(scene.snapshot().await, before);
}

#[tokio::test(start_paused = true)]
async fn every_update_route_can_be_forced_and_can_hold() {
    let scene = Scene::start().await;
    scene
        .client
        .patch(&scene.path(""), json!({ "pre_launch_script": "echo", "encrypted_env": scene.sealed(&[]) }))
        .await
        .expect(202);
    scene.world.settle().await;
    let same = [
        ("", json!({})),
        ("/resources", json!({})),
        ("/visibility", json!({})),
        ("/listed", json!({ "listed": false })),
        ("/name", json!({ "name": "web-one" })),
        ("/os-image", json!({ "image": "dstack-0.5.5" })),
        ("/envs", json!({ "encrypted_env": scene.sealed(&[]) })),
        ("/docker-compose", json!({ "docker_compose_file": compose("web:1") })),
        ("/pre-launch-script", json!({ "pre_launch_script": "echo" })),
    ];
    for (rest, mut body) in same {
        body["force_restart"] = true.into();
        body["on_failure"] = "hold".into();
        let before = scene.seen().await.boot_count;
        let status = scene.client.patch(&scene.path(rest), body).await.status;
        assert!(status.is_success(), "{rest}: {status}");
        let open = scene.world.app.store.operation_open(scene.cvm.id).expect("reads").expect("one is open");
        assert_eq!(open.options.on_failure, Some(casemate_types::patch::OnFailure::Hold), "{rest}");
        scene.world.settle().await;
        assert_eq!(scene.seen().await.boot_count, before + 1, "{rest}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_met_an_operation_which_ended_meanwhile_is_planned_again() {
    let scene = Scene::start().await;
    let world = &scene.world;
    let memory = |mb| CvmPatch { memory: Sparse::Value(mb), ..CvmPatch::default() };
    world.accept_update(&scene.cvm, memory(4096)).await;
    let seen = scene.now();
    assert!(seen.open.is_some());
    world.settle().await;
    let wish = Wish { patch: memory(8192), ..Wish::default() };
    let request = Request {
        wish,
        kind: Kind::Update,
        if_match: None,
        author: world.author(),
        receipt: None,
        auto_commit: false,
    };
    let outcome = workflow::accept(&world.app, seen, request).await.expect("there is nothing in the way");
    assert!(matches!(outcome, Outcome::Accepted(accepted) if !accepted.operation.steps.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn what_was_planned_while_an_update_ran_does_not_undo_it() {
    let scene = Scene::start().await;
    scene.client.patch(&scene.path(""), json!({ "memory": 4096 })).await.expect(202);
    // Seen while the update is at work, and carried on after it has ended.
    let seen = scene.now();
    let wish = Wish { instance_seed: Some([7; 20]), ..Wish::default() };
    let planned = workflow::plan(&scene.world.app, &seen, seen.revision, &wish).expect("a plan");
    scene.world.settle().await;
    let author = scene.world.author();
    let accepted = workflow::accept_each(
        &scene.world.app,
        vec![(seen, planned)],
        Kind::RefreshInstanceId,
        &author,
        None,
    );
    assert!(
        accepted.await.expect("the store works")[0].is_none(),
        "it was planned on what is no longer there"
    );
    scene.world.settle().await;
    assert_eq!(scene.seen().await.size.memory_mb, 4096);
}
