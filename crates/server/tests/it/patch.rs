//! `PATCH /cvms/{id}`: every field alone, every pair, and all at once. Fields that are not there stay as they are, and however
//! many there are, the machine restarts once.

use axum::http::Method;
use casemate_server::cvm::spec::sha256;
use casemate_server::cvm::state::{IfMatch, Status};
use casemate_server::error::Error;
use casemate_server::workflow::power;
use casemate_testkit::compose;
use serde_json::{Map, Value, json};

use crate::scene::{Scene, Snapshot};

/// A field, a value for it, and what it does to the machine; `None` if it only says how.
struct Field {
    name: &'static str,
    value: fn(&Scene) -> Value,
    effect: Option<fn(&mut Snapshot, &Value)>,
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| number.try_into().ok()).expect("a number")
}

/// The sixteen fields that can be sent.
const FIELDS: [Field; 16] = [
    Field {
        name: "docker_compose_file",
        value: |_| compose("web:2").into(),
        effect: Some(|now, value| drop(now.document.insert("docker_compose_file".into(), value.clone()))),
    },
    Field {
        name: "pre_launch_script",
        value: |_| "#!/bin/sh\necho \u{e9}\t\r\n".into(),
        effect: Some(|now, value| drop(now.document.insert("pre_launch_script".into(), value.clone()))),
    },
    Field {
        name: "allowed_envs",
        value: |_| json!(["TOKEN", "OTHER"]),
        effect: Some(|now, value| drop(now.document.insert("allowed_envs".into(), value.clone()))),
    },
    Field {
        name: "public_logs",
        value: |_| false.into(),
        effect: Some(|now, value| drop(now.document.insert("public_logs".into(), value.clone()))),
    },
    Field {
        name: "public_sysinfo",
        value: |_| false.into(),
        effect: Some(|now, value| drop(now.document.insert("public_sysinfo".into(), value.clone()))),
    },
    Field {
        name: "public_tcbinfo",
        value: |_| false.into(),
        effect: Some(|now, value| drop(now.document.insert("public_tcbinfo".into(), value.clone()))),
    },
    Field {
        name: "encrypted_env",
        value: |scene| scene.sealed(&[("TOKEN", "secret")]).into(),
        effect: Some(|now, value| now.sealed_env = Some(sha256(&hex::decode(text(value)).expect("hex")))),
    },
    Field {
        name: "user_config",
        value: |_| "{\"a\": 1}".into(),
        effect: Some(|now, value| now.user_config = Some(sha256(text(value).as_bytes()))),
    },
    Field {
        name: "gpus",
        value: |_| json!({ "count": 2, "product_name": "H200" }),
        effect: Some(|now, value| now.size.gpus = number(&value["count"])),
    },
    Field { name: "vcpu", value: |_| 4.into(), effect: Some(|now, value| now.size.vcpu = number(value)) },
    Field {
        name: "memory",
        value: |_| 4096.into(),
        effect: Some(|now, value| now.size.memory_mb = number(value)),
    },
    Field {
        name: "disk_size",
        value: |_| 40.into(),
        effect: Some(|now, value| now.size.disk_gb = number(value)),
    },
    Field {
        name: "image",
        value: |_| "dstack-0.5.4".into(),
        effect: Some(|now, value| now.image = text(value).to_owned()),
    },
    Field { name: "shutdown_timeout", value: |_| 30.into(), effect: None },
    Field { name: "allow_force_stop", value: |_| true.into(), effect: None },
    Field { name: "prepareOnly", value: |_| true.into(), effect: None },
];

/// Sends these fields in one request, and compares the whole machine with what they should have done to it.
async fn send(fields: &[&Field]) {
    let scene = Scene::start().await;
    let names: Vec<_> = fields.iter().map(|field| field.name).collect();
    let mut expected = scene.snapshot().await;
    let mut body = Map::new();
    for field in fields {
        let value = (field.value)(&scene);
        if let Some(effect) = field.effect {
            effect(&mut expected, &value);
        }
        body.insert(field.name.into(), value);
    }
    let restarts = fields.iter().any(|field| field.effect.is_some());
    expected.boots += u64::from(restarts);

    let accepted = scene.client.patch(&scene.path(""), Value::Object(body)).await.expect(202);
    assert_eq!(accepted["status"], "in_progress", "{names:?}");
    assert_eq!(accepted["requires_on_chain_hash"], false, "{names:?}");
    let id = text(&accepted["correlation_id"]).parse().expect("an id");
    let while_at_work = if restarts { Status::Updating } else { Status::Running };
    assert_eq!(scene.now().status, while_at_work, "{names:?}");
    scene.world.settle().await;

    assert_eq!(scene.world.operation(id).state.name(), "succeeded", "{names:?}");
    assert_eq!(scene.snapshot().await, expected, "{names:?}");
    let seen = scene.seen().await;
    for (flag, seen) in [
        ("public_logs", seen.public_logs),
        ("public_sysinfo", seen.public_sysinfo),
        ("public_tcbinfo", seen.public_tcbinfo),
    ] {
        assert_eq!(expected.document[flag], seen, "{flag} after {names:?}");
    }
    let sent = |name| names.contains(&name);
    let opened =
        if sent("encrypted_env") && sent("allowed_envs") { vec!["TOKEN".to_owned()] } else { Vec::new() };
    assert_eq!(seen.env_keys, opened, "{names:?}");
    assert_eq!(scene.now().status, Status::Running, "{names:?}");
    scene.world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn every_field_alone() {
    for field in &FIELDS {
        send(&[field]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_pair_of_fields() {
    for (index, first) in FIELDS.iter().enumerate() {
        for second in &FIELDS[index + 1..] {
            send(&[first, second]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_fields_at_once() {
    send(&FIELDS.iter().collect::<Vec<_>>()).await;
}

#[tokio::test(start_paused = true)]
async fn integral_floats_count_and_nulls_do_not() {
    let scene = Scene::start().await;
    let before = scene.snapshot().await;
    let body = json!({
        "vcpu": 4.0, "memory": 4096.0, "disk_size": 40.0, "image": null, "gpus": null, "user_config": null,
        "docker_compose_file": null, "encrypted_env": null, "public_logs": null, "allowed_envs": null,
        "shutdown_timeout": null, "allow_force_stop": null, "something_unknown": 1,
    });
    scene.client.patch(&scene.path(""), body).await.expect(202);
    scene.world.settle().await;
    let mut expected = before.clone();
    (expected.size.vcpu, expected.size.memory_mb, expected.size.disk_gb) = (4, 4096, 40);
    expected.boots += 1;
    assert_eq!(scene.snapshot().await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_patch_that_changes_nothing_is_done_at_once_and_can_be_forced() {
    let scene = Scene::start().await;
    let (before, spec) = (scene.snapshot().await, scene.spec());
    let same = json!({
        "vcpu": spec.vcpu, "memory": spec.memory_mb, "docker_compose_file": compose("web:1"), "listed": false,
        "public_logs": true, "image": spec.image,
    });
    let accepted = scene.client.patch(&scene.path(""), same.clone()).await.expect(202);
    let id = text(&accepted["correlation_id"]).parse().expect("an id");
    assert_eq!(scene.world.operation(id).state.name(), "succeeded");
    assert!(text(&accepted["message"]).contains("force_restart"), "{accepted}");
    assert_eq!(scene.now().status, Status::Running);
    assert_eq!(scene.snapshot().await, before);

    let mut forced = same;
    forced["force_restart"] = true.into();
    scene.client.patch(&scene.path(""), forced).await.expect(202);
    scene.world.settle().await;
    assert_eq!(scene.seen().await.boot_count, before.boots + 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_to_update_is_refused() {
    let scene = Scene::start().await;
    for body in [json!({}), json!({ "vcpu": null }), json!({ "unknown": 1 })] {
        let refused = scene.client.patch(&scene.path(""), body).await.expect(400);
        assert!(text(&refused["detail"]).contains("othing to update"), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn listed_and_name_alone_do_not_restart() {
    let scene = Scene::start().await;
    let before = scene.snapshot().await;
    scene.client.patch(&scene.path(""), json!({ "listed": true, "name": "web-two" })).await.expect(202);
    let now = scene.now();
    assert_eq!((now.listed, now.name.as_str(), now.status), (true, "web-two", Status::Running));
    scene.world.settle().await;
    assert_eq!(scene.snapshot().await, before);
}

#[tokio::test(start_paused = true)]
async fn records_in_a_mixed_patch_are_written_when_it_succeeds() {
    let scene = Scene::start().await;
    let body = json!({ "listed": true, "name": "web-two", "vcpu": 2 });
    scene.client.patch(&scene.path(""), body).await.expect(202);
    assert_eq!((scene.now().listed, scene.now().name.as_str()), (false, "web-one"));
    scene.world.settle().await;
    assert_eq!((scene.now().listed, scene.now().name.as_str()), (true, "web-two"));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_given_away_meanwhile_does_not_hold_an_update_up() {
    let scene = Scene::start().await;
    scene.client.patch(&scene.path(""), json!({ "name": "web-two", "vcpu": 2 })).await.expect(202);
    scene.world.create("web-two", "web:1").await;
    scene.world.settle().await;
    let now = scene.now();
    assert_eq!((now.status, now.name.as_str(), scene.spec().vcpu), (Status::Running, "web-one", 2));
    // And one that is taken is refused before anything stops.
    let refused =
        scene.client.patch(&scene.path(""), json!({ "name": "web-two", "vcpu": 3 })).await.expect(409);
    assert_eq!(refused["error_code"], "ERR-01-004");
}

#[tokio::test(start_paused = true)]
async fn a_busy_cvm_refuses_without_a_code_and_the_same_target_joins() {
    let scene = Scene::start().await;
    let first = scene.client.patch(&scene.path(""), json!({ "vcpu": 2, "memory": 4096 })).await.expect(202);
    let busy = scene.client.patch(&scene.path(""), json!({ "vcpu": 3 })).await;
    assert!(busy.headers.contains_key("retry-after"));
    let busy = busy.expect(409);
    assert!(busy.get("error_code").is_none() && busy["detail"].is_string(), "{busy}");
    for (path, same) in [
        ("", json!({ "vcpu": 2, "memory": 4096 })),
        ("", json!({ "memory": 4096 })),
        ("/resources", json!({ "vcpu": 2 })),
    ] {
        let joined = scene.client.patch(&scene.path(path), same).await.expect(202);
        assert_eq!(joined["correlation_id"], first["correlation_id"]);
    }
    for path in ["/start", "/shutdown", "/restart"] {
        let busy = scene.client.post(&scene.path(path), json!({})).await.expect(409);
        assert!(busy.get("error_code").is_none(), "{path}: {busy}");
    }
    let before = scene.seen().await.boot_count;
    scene.world.settle().await;
    assert_eq!(scene.seen().await.boot_count, before + 1);
}

#[tokio::test(start_paused = true)]
async fn if_match_guards_what_the_caller_has_seen() {
    let scene = Scene::start().await;
    let tag = format!("\"{}\"", scene.now().tag());
    let with = |tag: &str| scene.client.header("if-match", tag.to_owned());
    let passed = with("\"1.99\"").patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(412);
    assert!(passed["detail"].is_string(), "{passed}");
    with(&tag).patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(202);
    scene.world.settle().await;
    with(&tag).patch(&scene.path(""), json!({ "vcpu": 3 })).await.expect(412);
    with(&tag).patch(&scene.path("/resources"), json!({ "vcpu": 3 })).await.expect(412);
    with(&format!("W/\"{}\"", scene.now().tag()))
        .patch(&scene.path(""), json!({ "vcpu": 3 }))
        .await
        .expect(412);
    let either = format!("{tag} , \"{}\"", scene.now().tag());
    let accepted = with(&either).patch(&scene.path(""), json!({ "vcpu": 3 })).await.expect(202);
    let cancel = format!("/operations/{}/cancel", accepted["correlation_id"].as_str().expect("an id"));
    with(&tag).post(&cancel, json!({})).await.expect(412);
    with(&format!("\"{}\"", scene.now().tag())).post(&cancel, json!({})).await.expect(200);
    with("*").patch(&scene.path(""), json!({ "vcpu": 3 })).await.expect(202);
    // What ends an operation has to have seen it.
    with(&either).post(&scene.path("/stop"), json!({})).await.expect(412);
    with(&either).delete(&scene.path("")).await.expect(412);
    with(&format!("\"{}\"", scene.now().tag())).post(&scene.path("/stop"), json!({})).await.expect(200);
    scene.world.settle().await;
    with(&format!("\"{}\"", scene.now().tag()))
        .post(&scene.path("/rollback"), json!({ "revision": 1 }))
        .await
        .expect(202);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_passes_while_a_stop_is_on_its_way_is_told() {
    let scene = Scene::start().await;
    let seen = scene.now();
    let order = |cvm: &casemate_server::cvm::state::Cvm| power::Order {
        if_match: IfMatch::read(&format!("\"{}\"", cvm.tag())),
        ..scene.world.author().into()
    };
    scene.client.patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(202);
    // As if the change had come between the look at the CVM and the transaction.
    let passed = power::stop(&scene.world.app, seen.clone(), order(&seen)).await;
    assert!(matches!(passed, Err(Error::Changed { .. })), "{passed:?}");
    let passed = power::delete(&scene.world.app, seen.clone(), order(&seen)).await;
    assert!(matches!(passed, Err(Error::Changed { .. })), "{passed:?}");
    power::stop(&scene.world.app, scene.now(), order(&scene.now())).await.expect("accepted");
}

#[tokio::test(start_paused = true)]
async fn who_has_seen_another_state_switches_nothing_off_and_removes_nothing() {
    let scene = Scene::start().await;
    let with = |tag: String| scene.client.header("if-match", tag);
    let now = scene.now().tag();
    for old in ["\"1.0\"".to_owned(), "\"0.1\", \"0.2\"".to_owned()] {
        let stale = with(old);
        for order in ["/stop", "/restart", "/shutdown", "/start"] {
            stale.post(&scene.path(order), json!({})).await.expect(412);
        }
        stale.delete(&scene.path("")).await.expect(412);
        stale.patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(412);
    }
    assert_eq!(scene.now().tag(), now);
    with(format!("\"0.1\", \"{now}\"")).patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(202);
    scene.world.settle().await;
    let now = scene.now().tag();
    with(format!("\"{now}\"")).post(&scene.path("/stop"), json!({})).await.expect(200);
    with("*".into()).delete(&scene.path("")).await.expect(204);
}

#[tokio::test(start_paused = true)]
async fn a_parameter_that_comes_twice_applies_nothing() {
    let scene = Scene::start().await;
    let path = scene.path("?dry_run=true&dry_run=false");
    let told = scene.client.patch(&path, json!({ "vcpu": 2 })).await.expect(422);
    assert_eq!(told["detail"][0]["loc"], json!(["query", "dry_run"]));
    assert_eq!(scene.now().open, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_text_is_not_taken_for_one() {
    let scene = Scene::start().await;
    for (route, body) in [("/docker-compose", "services: {}"), ("/pre-launch-script", "#!/bin/sh")] {
        for kind in ["image/png", "application/zip"] {
            let answer = scene.client.raw(Method::PATCH, &scene.path(route), kind, body).await;
            assert_eq!(answer.status, 400, "{kind}");
            assert!(answer.json().to_string().contains(kind), "{}", answer.json());
        }
    }
    for kind in ["text/x-shellscript", "application/octet-stream", "text/plain; charset=utf-8"] {
        let answer = scene.client.raw(Method::PATCH, &scene.path("/pre-launch-script"), kind, kind).await;
        assert_eq!(answer.status, 202, "{kind}");
        scene.world.settle().await;
    }
}
