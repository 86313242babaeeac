//! What goes over the wire, and what does not.

use casemate_sdk::env::EnvVar;
use casemate_sdk::types::patch::{GpuPatch, OnFailure};
use casemate_sdk::{Client, Error, Fault, seal};
use serde_json::json;

use crate::support::{HASH, OP, Reply, Server, accepted};

const PUBKEY: &str = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c";

#[tokio::test]
async fn every_request_names_its_version_and_key() {
    let server = Server::other([Reply::json(200, json!({}))]).await;
    server.builder().header("x-extra", "1").build().unwrap().cvm("web-1").user_config().await.unwrap();
    let asked = server.only();
    assert_eq!(asked.line(), "GET /cvms/web-1/user_config");
    assert_eq!(asked.header("x-phala-version"), Some("2026-06-23"));
    assert_eq!(asked.header("x-api-key"), Some("phak_test"));
    assert_eq!(asked.header("x-extra"), Some("1"));
    assert!(asked.header("user-agent").unwrap().starts_with("casemate-sdk/"));
    assert_eq!(asked.header("content-type"), None);
}

#[tokio::test]
async fn any_identifier_becomes_the_segment_that_every_server_reads() {
    let app = "3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091";
    for (given, segment) in [
        ("web-1".to_owned(), "web-1".to_owned()),
        ("cvm_x8Kq2Lm9".to_owned(), "cvm_x8Kq2Lm9".to_owned()),
        ("1B9D6BCD-bbfd-4b2d-9b5d-ab8dfbbd4bed".to_owned(), "1b9d6bcdbbfd4b2d9b5dab8dfbbd4bed".to_owned()),
        (app.to_owned(), format!("app_{app}")),
        (format!("app_{app}"), format!("app_{app}")),
        (format!("instance_{app}"), format!("instance_{app}")),
    ] {
        let server = Server::other([Reply::json(200, json!({}))]).await;
        server.client().cvm(&given).user_config().await.unwrap();
        assert_eq!(server.only().line(), format!("GET /cvms/{segment}/user_config"), "{given}");
    }
}

#[tokio::test]
async fn what_cannot_be_right_is_not_sent() {
    let server = Server::other([]).await;
    let client = server.client();
    let cvm = client.cvm("web-1");
    let long = "x".repeat(204_801);
    let field = |error: Error| {
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
        error.fields()[0].field()
    };
    assert_eq!(field(client.cvm("no such/id").get().await.unwrap_err()), "id");
    assert_eq!(field(client.cvm("..").get().await.unwrap_err()), "id");
    assert_eq!(field(cvm.resources().send().await.unwrap_err()), "vcpu");
    assert_eq!(field(cvm.visibility().send().await.unwrap_err()), "listed");
    assert_eq!(field(cvm.os_image("").send().await.unwrap_err()), "os_image");
    assert_eq!(field(cvm.rename("1").send().await.unwrap_err()), "name");
    assert_eq!(field(cvm.docker_compose(&long).send().await.unwrap_err()), "docker_compose_file");
    assert_eq!(field(cvm.patch().send().await.unwrap_err()), "body");
    assert_eq!(
        field(cvm.patch().vcpu(1).shutdown_timeout_secs(5).send().await.unwrap_err()),
        "shutdown_timeout"
    );
    assert_eq!(
        field(cvm.os_image("dstack-0.5.5").shutdown_timeout_secs(1201).send().await.unwrap_err()),
        "shutdown_timeout"
    );
    assert_eq!(field(cvm.patch().compose(&long).send().await.unwrap_err()), "docker_compose_file");
    assert_eq!(field(cvm.confirm("beef", "already-registered").send().await.unwrap_err()), "compose_hash");
    assert_eq!(field(cvm.confirm(HASH, "0xbeef").send().await.unwrap_err()), "transaction_hash");
    assert_eq!(field(cvm.commit_update("", HASH, "").send().await.unwrap_err()), "token");
    assert_eq!(field(cvm.compose().commit("beef").send().await.unwrap_err()), "compose_hash");
    assert_eq!(field(cvm.watch("running").interval_secs(1).send().await.unwrap_err()), "interval");
    assert_eq!(field(cvm.watch("running").timeout_secs(700).send().await.unwrap_err()), "timeout");
    assert_eq!(field(client.refresh_instance_ids(Vec::<String>::new()).send().await.unwrap_err()), "ids");
    assert_eq!(field(client.kms().get("").await.unwrap_err()), "kms");
    assert_eq!(field(client.node("..").clear_faults().await.unwrap_err()), "node");
    assert_eq!(field(client.operation("7").get().await.unwrap_err()), "correlation_id");
    assert_eq!(field(client.deploy("1", "services: {}").send().await.unwrap_err()), "name");
    assert_eq!(field(client.deploy("web-1", &long).send().await.unwrap_err()), "docker_compose_file");
    assert_eq!(server.lines(), [""; 0]);
}

#[tokio::test]
async fn what_only_casemate_has_fails_before_anything_is_sent() {
    let server = Server::other([]).await;
    let client = server.client();
    let cvm = client.cvm("web-1");
    let unsupported = |error: Error| match error {
        Error::Unsupported { what, base_url } => {
            assert_eq!(base_url, server.url());
            what
        }
        other => panic!("{other:?}"),
    };
    let patch = || cvm.patch().vcpu(4);
    assert_eq!(unsupported(patch().dry_run().send().await.unwrap_err()), "a dry run");
    let resources = || client.cvm("web-1").resources().vcpu(2);
    assert_eq!(
        unsupported(resources().shutdown_timeout_secs(30).send().await.unwrap_err()),
        "shutdown_timeout on this route"
    );
    assert_eq!(
        unsupported(resources().allow_force_stop(true).send().await.unwrap_err()),
        "allow_force_stop on this route"
    );
    assert_eq!(unsupported(patch().on_failure(OnFailure::Hold).send().await.unwrap_err()), "on_failure");
    assert_eq!(unsupported(patch().force_restart().send().await.unwrap_err()), "force_restart");
    assert_eq!(unsupported(patch().if_match("1.2").send().await.unwrap_err()), "If-Match");
    assert_eq!(unsupported(patch().idempotency_key("k").send().await.unwrap_err()), "an idempotency key");
    assert_eq!(unsupported(patch().rename("web-2").send().await.unwrap_err()), "a name among other changes");
    let text = cvm.docker_compose("services: {}").force_restart();
    assert_eq!(unsupported(text.send().await.unwrap_err()), "force_restart");
    assert_eq!(unsupported(cvm.rollback(1).send().await.unwrap_err()), "a rollback");
    assert_eq!(unsupported(cvm.observed().await.unwrap_err()), "what the node observes");
    assert_eq!(unsupported(cvm.revisions().send().await.unwrap_err()), "revisions");
    assert_eq!(unsupported(cvm.refresh_instance_id().send().await.unwrap_err()), "a new instance id");
    assert_eq!(unsupported(cvm.start().idempotency_key("k").send().await.unwrap_err()), "an idempotency key");
    assert_eq!(unsupported(client.refresh_instance_ids(["a"]).send().await.unwrap_err()), "new instance ids");
    assert_eq!(unsupported(client.operation(OP).get().await.unwrap_err()), "an operation");
    assert_eq!(unsupported(client.operation(OP).wait().await.unwrap_err()), "an operation");
    assert_eq!(unsupported(client.operations().send().await.unwrap_err()), "operations");
    assert_eq!(unsupported(client.audit().send().await.unwrap_err()), "the audit trail");
    assert_eq!(unsupported(client.keys().list().await.unwrap_err()), "API keys");
    assert_eq!(unsupported(client.nodes().await.unwrap_err()), "nodes");
    assert_eq!(unsupported(client.fields().await.unwrap_err()), "the table of fields");
    assert_eq!(server.lines(), [""; 0]);
}

#[tokio::test]
async fn a_server_is_asked_once_what_it_is_and_not_at_all_if_it_told() {
    let server = Server::casemate([Reply::json(200, json!({})), accepted(), accepted()]).await;
    let client = server.client();
    client.cvm("web-1").user_config().await.unwrap();
    for _ in 0..2 {
        client.cvm("web-1").resources().vcpu(2).force_restart().send().await.unwrap();
    }
    let asked = ["GET /cvms/web-1/user_config", "PATCH /cvms/web-1/resources", "PATCH /cvms/web-1/resources"];
    assert_eq!(server.lines(), asked);
    assert!(client.is_casemate().await.unwrap());

    let nobody = Client::builder().base_url("http://127.0.0.1:1/api/v1").retries(0).build().unwrap();
    assert!(matches!(nobody.is_casemate().await, Err(Error::Transport { .. })));
}

#[tokio::test]
async fn an_update_of_one_aspect_has_the_body_of_its_route() {
    let vm = json!({
        "id": "cvm_x8Kq2Lm9", "name": "web-1", "status": "updating", "vcpu": 4, "memory": 8192, "disk_size": 100,
        "created_at": "2026-02-03T10:00:00Z",
    });
    let replies = [
        Reply::json(202, json!({ "status": "in_progress", "message": "m", "correlation_id": OP, "cvm": vm })),
        Reply::json(200, vm.clone()),
        accepted(),
        accepted(),
        accepted(),
        accepted(),
        Reply::json(200, vm),
        Reply::text("").status(204),
    ];
    let server = Server::casemate(replies).await;
    let web = server.client().cvm("web-1");

    let op = web
        .resources()
        .vcpu(4)
        .memory_mb(8192)
        .disk_gb(100)
        .on_failure(OnFailure::Hold)
        .shutdown_timeout_secs(30)
        .allow_force_stop(true)
        .send()
        .await
        .unwrap();
    assert_eq!(op.id().unwrap().to_string(), OP);
    assert_eq!(op.vm().unwrap().memory, 8192);
    let op = web.visibility().listed(true).public_logs(false).send().await.unwrap().accepted().unwrap();
    assert_eq!((op.id(), op.vm().unwrap().vcpu), (None, 4));
    let _ = web.pre_launch_script("#!/bin/sh\n").send().await.unwrap();
    let _ = web.pre_launch_script("").send().await.unwrap();
    let _ = web.docker_compose("services: {}\n").on_failure(OnFailure::PutBack).send().await.unwrap();
    web.os_image("dstack-0.5.5").send().await.unwrap();
    web.listed(false).send().await.unwrap();
    web.rename("web-2").send().await.unwrap();

    let asked = server.asked();
    assert_eq!(asked[0].line(), "PATCH /cvms/web-1/resources");
    let body = json!({ "vcpu": 4, "memory": 8192, "disk_size": 100, "on_failure": "hold",
        "shutdown_timeout": 30, "allow_force_stop": true });
    assert_eq!(asked[0].json(), body);
    assert_eq!(asked[1].line(), "PATCH /cvms/web-1/visibility");
    assert_eq!(asked[1].json(), json!({ "listed": true, "public_logs": false }));
    assert_eq!(asked[2].line(), "PATCH /cvms/web-1/pre-launch-script");
    assert_eq!(
        (asked[2].text(), asked[2].header("content-type")),
        ("#!/bin/sh\n", Some("text/plain; charset=utf-8"))
    );
    assert_eq!((asked[3].text(), asked[3].header("content-type")), ("", Some("text/plain; charset=utf-8")));
    assert_eq!(asked[4].line(), "PATCH /cvms/web-1/docker-compose");
    assert_eq!(asked[4].json(), json!({ "on_failure": "put_back", "docker_compose_file": "services: {}\n" }));
    assert_eq!(asked[5].json(), json!({ "os_image_name": "dstack-0.5.5" }));
    assert_eq!(asked[6].json(), json!({ "listed": false }));
    assert_eq!(asked[7].json(), json!({ "name": "web-2" }));
}

#[tokio::test]
async fn a_patch_has_the_fields_that_were_given_and_no_others() {
    let server = Server::casemate([accepted(), accepted(), accepted()]).await;
    let web = server.client().cvm("web-1");
    let sealed = seal(PUBKEY, &[EnvVar::new("A", "1")]).unwrap();
    let patch = web
        .patch()
        .compose("services: {}\n")
        .pre_launch_script("")
        .allowed_envs(["A"])
        .public_logs(true)
        .public_sysinfo(false)
        .public_tcbinfo(true)
        .envs(sealed.clone())
        .user_config("{}")
        .gpus(GpuPatch::Count { count: 1, product_name: Some("H200".into()) })
        .vcpu(4)
        .memory_mb(8192)
        .disk_gb(100)
        .os_image("dstack-0.5.5")
        .shutdown_timeout_secs(30)
        .allow_force_stop(true);
    let _ = patch.clone().prepare_only().send().await.unwrap();
    let _ = web.patch().vcpu(4).send().await.unwrap();
    let _ = web.patch().force_restart().if_match("\"3.7\"").idempotency_key("key-1").send().await.unwrap();

    let asked = server.asked();
    assert_eq!(asked[0].line(), "PATCH /cvms/web-1");
    assert_eq!(asked[0].header("x-prepare-only"), Some("true"));
    let all = json!({
        "docker_compose_file": "services: {}\n", "pre_launch_script": "", "allowed_envs": ["A"], "public_logs": true,
        "public_sysinfo": false, "public_tcbinfo": true, "encrypted_env": sealed.to_string(), "user_config": "{}",
        "gpus": { "count": 1, "product_name": "H200" }, "vcpu": 4, "memory": 8192, "disk_size": 100,
        "image": "dstack-0.5.5", "shutdown_timeout": 30, "allow_force_stop": true,
    });
    assert_eq!(asked[0].json(), all);
    assert_eq!(asked[1].json(), json!({ "vcpu": 4 }));
    assert_eq!(asked[1].header("x-prepare-only"), None);
    assert_eq!(asked[2].json(), json!({ "force_restart": true }));
    assert_eq!(asked[2].header("if-match"), Some("\"3.7\""));
    assert_eq!(asked[2].header("idempotency-key"), Some("key-1"));
}

#[tokio::test]
async fn a_dry_run_is_the_same_request_with_a_question() {
    let plan = json!({ "plan": { "kind": "restart", "diff": [{ "field": "vcpu", "from": 1, "to": 4 }],
        "compose_hash": HASH, "needs_approval": false, "warnings": [] } });
    let server = Server::casemate([Reply::json(200, plan)]).await;
    let plan = server.client().cvm("web-1").patch().vcpu(4).dry_run().send().await.unwrap();
    assert_eq!(plan.kind, "restart");
    assert_eq!(server.only().line(), "PATCH /cvms/web-1?dry_run=true");
    assert_eq!(server.only().json(), json!({ "vcpu": 4 }));
}

#[tokio::test]
async fn a_deployment_seals_its_variables() {
    let provision = json!({
        "app_id": "3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091", "app_env_encrypt_pubkey": null, "compose_hash": HASH,
        "kms_id": "kms_1",
    });
    let vm = json!({
        "id": "cvm_x8Kq2Lm9", "name": "web-1", "status": "creating", "vcpu": 1, "memory": 2048, "disk_size": 20,
        "created_at": "2026-02-03T10:00:00Z", "vm_uuid": "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed",
    });
    let key = json!({ "public_key": PUBKEY, "signature": "00" });
    let server =
        Server::other([Reply::json(200, provision), Reply::json(200, key), Reply::json(200, vm)]).await;
    let deploy =
        server.client().deploy("web-1", "services: {}\n").env([EnvVar::new("TOKEN", "s3cret")]).disk_gb(40);
    let op = deploy.send().await.unwrap();
    assert_eq!(op.vm().unwrap().name, "web-1");

    let asked = server.asked();
    assert_eq!(asked[0].line(), "POST /cvms/provision");
    let body = json!({
        "name": "web-1", "compose_file": { "docker_compose_file": "services: {}\n", "allowed_envs": ["TOKEN"] },
        "instance_type": "tdx.small", "disk_size": 40, "env_keys": ["TOKEN"],
    });
    assert_eq!(asked[0].json(), body);
    assert_eq!(asked[1].line(), "GET /kms/kms_1/pubkey/3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091");
    assert_eq!(asked[2].line(), "POST /cvms");
    assert!(asked[2].json()["encrypted_env"].as_str().unwrap().len() > 120);
    assert!(asked.iter().all(|asked| !asked.text().contains("s3cret")));
}

#[tokio::test]
async fn a_rehearsed_fault_says_what_where_and_how_often() {
    let server = Server::casemate([Reply::json(201, json!({})), Reply::json(201, json!({}))]).await;
    let node = server.client().node("sim-1");
    node.plan_fault("slow-stop=90".parse().unwrap()).once().cvm("web-1").send().await.unwrap();
    node.plan_fault(Fault::BootFail).image("dstack-0.5.4").send().await.unwrap();
    let asked = server.asked();
    assert_eq!(asked[0].line(), "POST /dev/nodes/sim-1/faults");
    assert_eq!(asked[0].json(), json!({ "fault": "slow-stop", "seconds": 90, "once": true, "cvm": "web-1" }));
    assert_eq!(asked[1].json(), json!({ "fault": "boot-fail", "image": "dstack-0.5.4" }));
    for word in ["lie", "slow=3", "answer-lost", "boot-fail"] {
        assert_eq!(word.parse::<Fault>().unwrap().to_string(), word);
    }
    assert!("slow-stop".parse::<Fault>().unwrap_err().contains("slow-stop=SECONDS"));
}
