//! What can be read, and by whom.

use std::time::Duration;

use axum::http::Method;
use casemate_server::cvm::spec::sha256;
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::workflow::power;
use casemate_testkit::{World, compose};
use casemate_types::patch::{CvmPatch, Sparse, StatusBatch};
use casemate_types::version::ApiVersion;
use serde_json::{Value, json};

use crate::client::Client;
use crate::scene::Scene;

const MISSING: &str = "6a1f0f5e-6f0c-4b7e-9a3e-0d7a3c1b2a10";

#[tokio::test(start_paused = true)]
async fn every_route_wants_a_key_and_hides_what_belongs_to_others() {
    let world = World::start().await;
    let (owner, stranger) = (Client::of(&world).await, Client::stranger(&world).await);
    let cvm = world.deploy("demo-app", "web:1").await;
    let op = world.app.store.operations(world.actor.workspace_id, &Default::default()).expect("reads");
    assert!(op.is_empty(), "a limit of 0 shows nothing");
    let accepted =
        world.accept_update(&cvm, CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() }).await;
    world.settle().await;
    let of_cvm = [
        "",
        "/state",
        "/stats",
        "/network",
        "/composition",
        "/docker-compose.yml",
        "/pre-launch-script",
        "/compose_file",
        "/user_config",
        "/available-os-images",
        "/revisions",
        "/observed",
    ];
    for route in of_cvm {
        let path = |id: &str| format!("/cvms/{id}{route}");
        let found = owner.get(&path("demo-app")).await;
        assert_eq!(found.status, 200, "{route}: {}", found.text());
        assert_eq!(owner.nobody().get(&path("demo-app")).await.status, 401, "{route}");
        let foreign = stranger.get(&path(cvm.uid.as_str())).await;
        let absent = stranger.get(&path(MISSING)).await;
        assert_eq!((foreign.status.as_u16(), absent.status.as_u16()), (404, 404), "{route}");
        assert_eq!(foreign.body, absent.body, "{route}");
        assert_eq!(foreign.json()["error_code"], "ERR-03-001");
    }
    for (mine, absent) in [
        (format!("/operations/{accepted}"), format!("/operations/{MISSING}")),
        (format!("/apps/{}", cvm.app_id), format!("/apps/{}", "00".repeat(20))),
        (format!("/apps/{}/cvms", cvm.app_id), format!("/apps/{}/cvms", "00".repeat(20))),
        ("/workspaces/demo".to_owned(), "/workspaces/nobody".to_owned()),
    ] {
        assert_eq!(owner.get(&mine).await.status, 200, "{mine}");
        let (foreign, absent) = (stranger.get(&mine).await, stranger.get(&absent).await);
        assert_eq!((foreign.status.as_u16(), absent.status.as_u16()), (404, 404), "{mine}");
        assert_eq!(foreign.body, absent.body, "{mine}");
    }
    for (list, items) in
        [("/cvms/paginated", "/items"), ("/cvms", ""), ("/apps", "/dstack_apps"), ("/operations", "/items")]
    {
        let count = async |client: &Client| {
            let list = client.json(list).await;
            list.pointer(items).and_then(Value::as_array).expect("a list").len()
        };
        assert!(count(&owner).await > 0, "{list}");
        assert_eq!(count(&stranger).await, 0, "{list}");
    }
    let body = json!({ "vm_uuids": [cvm.vm_uuid, MISSING, "no uuid"] });
    let states = stranger.call(Method::POST, "/status/batch", Some(&body)).await;
    assert_eq!(states.json(), json!({}));
    let audit = stranger.json("/audit").await;
    assert!(
        audit["items"].as_array().expect("a list").iter().all(|event| event["cvm_id"].is_null()),
        "{audit:#}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cvm_is_found_by_each_of_its_names() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    let (app, instance) = (cvm.app_id, cvm.instance_id.expect("it has booted"));
    let names = [
        cvm.vm_uuid.to_string(),
        cvm.vm_uuid.0.simple().to_string(),
        format!("app_{app}"),
        app.to_string().to_uppercase(),
        format!("0x{app}"),
        format!("app_0x{app}"),
        format!("instance_{instance}"),
        format!("app_{instance}"),
        cvm.uid.to_string(),
        cvm.id.to_string(),
        "demo-app".to_owned(),
    ];
    for name in names {
        assert_eq!(client.json(&format!("/cvms/{name}")).await["vm_uuid"], cvm.vm_uuid.to_string(), "{name}");
    }
    assert_eq!(client.get("/cvms/app_xyz").await.status, 400);
    assert_eq!(client.get("//cvms///demo-app").await.status, 200);
    assert_eq!(client.get("/v1/cvms/demo-app").await.status, 200);
    assert_eq!(client.get("/api/v1/nowhere").await.json()["detail"], "Route not found");
    let wrong = client.call(Method::PUT, "/cvms/demo-app", None).await;
    assert_eq!(wrong.status, 405);
    assert!(wrong.json()["detail"].is_string());
}

#[tokio::test(start_paused = true)]
async fn lists_are_paged_and_filtered() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    for name in ["alpha-app", "beta-app", "gamma-app"] {
        world.deploy(name, "web:1").await;
    }
    let page = client.json("/cvms/paginated?page=2&page_size=2").await;
    assert_eq!(page["total"], 3);
    assert_eq!(page["pages"], 2);
    assert_eq!(page["items"][0]["name"], "alpha-app");
    assert_eq!(client.json("/cvms/paginated?page=9").await["items"], json!([]));
    for (query, count) in [
        ("node_id=1", 3),
        ("teepod_id=7", 0),
        ("family=cpu", 3),
        ("family=gpu", 0),
        ("instance_types=tdx.small&instance_types=tdx.large", 3),
        ("instance_types=tdx.large", 0),
    ] {
        let page = client.json(&format!("/cvms/paginated?{query}")).await;
        assert_eq!(
            (&page["total"], page["items"].as_array().map(Vec::len)),
            (&count.into(), Some(count)),
            "{query}"
        );
    }
    for wrong in ["page=0", "page_size=101", "page_size=x", "family=tpu", "node_id=0"] {
        assert_eq!(client.get(&format!("/cvms/paginated?{wrong}")).await.status, 422, "{wrong}");
    }
    let beta = client.json("/cvms/beta-app").await;
    let text = |field: &str| beta[field].as_str().expect("text").to_owned();
    for (query, names) in [
        ("", &["gamma-app", "beta-app", "alpha-app"][..]),
        ("page_size=1&page=2", &["beta-app"]),
        ("search=eta", &["beta-app"]),
        ("search=%25", &[]),
        (&format!("search={}", text("app_id")), &["beta-app"]),
        (&format!("search=0x{}", &text("app_id")[..12]), &["beta-app"]),
        (&format!("search={}", text("vm_uuid")), &["beta-app"]),
        (&format!("search=instance_{}", text("instance_id")), &["beta-app"]),
        ("status=stopped", &[]),
        ("status=stopped&status=running&search=alpha", &["alpha-app"]),
        ("listed=true", &[]),
        ("listed=false&search=gamma", &["gamma-app"]),
        ("base_image=nothing", &[]),
        ("instance_type=tdx.small&kms_type=phala&region=nowhere", &[]),
        ("instance_type=tdx.small&kms_type=phala&search=beta", &["beta-app"]),
        ("kms_slug=base", &[]),
    ] {
        let page = client.json(&format!("/apps?{query}")).await;
        let found: Vec<_> =
            page["dstack_apps"].as_array().expect("a list").iter().map(|app| &app["name"]).collect();
        assert_eq!(found, names, "{query}");
    }
    let node = &client.json("/nodes").await["items"][0];
    let query = format!("node={}&base_image={}", node["name"].as_str().expect("text"), text("base_image"));
    assert_eq!(client.json(&format!("/apps?{query}")).await["total"], 3);
    let options = client.json("/apps/filter-options").await;
    assert_eq!(options["nodes"], json!([node["name"]]));
    assert_eq!(options["kms_types"], json!(["phala"]));
}

#[tokio::test(start_paused = true)]
async fn the_configuration_comes_back_byte_for_byte_and_hashes_to_the_compose_hash() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    let script = "#!/bin/sh\n# \": \" and \u{fc}\r\ntrue\n\n";
    let patch = CvmPatch { pre_launch_script: Sparse::Value(script.to_owned()), ..CvmPatch::default() };
    let empty = client.get("/cvms/demo-app/pre-launch-script").await;
    assert_eq!((empty.status.as_u16(), empty.text().as_str()), (200, ""));
    world.accept_update(&cvm, patch).await;
    world.settle().await;
    let got = client.get("/cvms/demo-app/pre-launch-script").await;
    assert_eq!(got.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(got.text(), script);
    let yaml = client.get("/cvms/demo-app/docker-compose.yml").await;
    assert_eq!(yaml.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(yaml.text(), compose("web:1"));
    let detail = client.json("/cvms/demo-app").await;
    let raw = client.get("/cvms/demo-app/compose_file?raw").await;
    assert_eq!(detail["compose_hash"], hex::encode(sha256(&raw.body)));
    let document = client.json("/cvms/demo-app/compose_file").await;
    let again =
        casemate_types::compose::ComposeDoc::from_value(document.clone()).expect("an object").normalise();
    assert_eq!(detail["compose_hash"], again.hash.to_string());
    assert_eq!(detail["compose_file"], document);
    assert_eq!(detail["docker_compose_hash"], hex::encode(sha256(compose("web:1").as_bytes())));
    assert_eq!(detail["pre_launch_script_hash"], hex::encode(sha256(script.as_bytes())));
    let observed = client.json("/cvms/demo-app/observed").await;
    assert_eq!(observed["compose_hash"], detail["compose_hash"]);
    assert_eq!((&observed["revision"], &observed["status"]), (&2.into(), &"running".into()));
}

#[tokio::test(start_paused = true)]
async fn a_busy_cvm_says_so_and_its_tag_changes() {
    let world = World::start().await;
    let client = Client::of(&world).await.version(ApiVersion::V20260121);
    let cvm = world.deploy("demo-app", "web:1").await;
    assert_eq!(client.get("/cvms/demo-app").await.headers["etag"], "\"1.1\"");
    let op = world.accept_update(&cvm, CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() }).await;
    let busy = client.get("/cvms/demo-app").await;
    assert_eq!(busy.headers["etag"], "\"1.2\"");
    let busy = busy.json();
    assert_eq!((&busy["status"], &busy["in_progress"]), (&"updating".into(), &true.into()));
    assert_eq!(
        (&busy["progress"]["target"], &busy["progress"]["correlation_id"]),
        (&"running".into(), &op.to_string().into())
    );
    let bare = cvm.vm_uuid.0.simple().to_string();
    let body = json!({ "vm_uuids": [bare, cvm.vm_uuid.to_string().to_uppercase()] });
    let states = client.call(Method::POST, "/status/batch", Some(&body)).await.json();
    assert_eq!(states.as_object().map(serde_json::Map::len), Some(2));
    assert_eq!(states[&bare]["vm_uuid"], bare);
    assert_eq!(states[&bare]["operation"]["phase"], "stage");
    assert_eq!(states[&bare]["correlation_id"], op.to_string());
    world.settle().await;
    let idle = client.get("/cvms/demo-app").await;
    assert_eq!(idle.headers["etag"], "\"2.2\"");
    assert!(idle.json()["progress"].is_null());
    assert_eq!(idle.json()["resource"]["memory_in_gb"], 4.0);
}

#[tokio::test(start_paused = true)]
async fn what_is_off_or_out_of_reach_is_offline_and_no_error() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    let online = async || {
        let mut all = Vec::new();
        for route in ["stats", "network", "composition"] {
            let told = client.json(&format!("/cvms/demo-app/{route}")).await;
            assert!(told["is_online"] == true || told["error"].is_string(), "{told:#}");
            all.push(told["is_online"] == true);
        }
        all
    };
    assert_eq!(online().await, [true; 3]);
    power::stop(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
    world.settle().await;
    assert_eq!(online().await, [false; 3]);
    let state = client.json("/cvms/demo-app/state").await;
    assert_eq!((&state["status"], state.get("uptime")), (&"stopped".into(), None));
    world.sim.plan(Planned { fault: Fault::Unreachable, once: false, vm: None }).expect("planned");
    assert_eq!(online().await, [false; 3]);
}

#[tokio::test(start_paused = true)]
async fn the_system_of_a_simulated_guest_has_its_size_and_its_time() {
    let scene = Scene::start().await;
    let told = async || scene.client.json(&scene.path("/stats")).await;
    let first = told().await;
    assert_eq!(first["error"], Value::Null);
    let number = |stats: &Value, field: &str| stats["sysinfo"][field].as_u64().expect("a whole number");
    let spec = scene.spec();
    assert_eq!(number(&first, "num_cpus"), u64::from(spec.vcpu));
    let memory = u64::from(spec.memory_mb) << 20;
    assert_eq!(number(&first, "total_memory"), memory);
    let disk = &first["sysinfo"]["disks"][0];
    assert_eq!(disk["total_size"], u64::from(spec.disk_gb) << 30);
    assert!(disk["free_size"].as_u64() < disk["total_size"].as_u64(), "{disk}");
    assert_eq!(first["sysinfo"]["os_version"], "0.5.5");

    scene.world.clock.sleep(Duration::from_secs(3600)).await;
    let later = told().await;
    assert_eq!(number(&later, "uptime"), number(&first, "uptime") + 3600);
    for stats in [&first, &later] {
        assert_eq!(number(stats, "used_memory") + number(stats, "available_memory"), memory);
        assert!(number(stats, "free_memory") <= number(stats, "available_memory"));
    }
    for load in ["loadavg_one", "loadavg_five", "loadavg_fifteen"] {
        assert!(number(&later, load) < number(&first, load), "{load}: booting is over");
    }
    assert_eq!(later, told().await, "at the same time it says the same");

    scene.world.sim.plan(Planned { fault: Fault::Crash, once: true, vm: None }).expect("planned");
    let off = told().await;
    assert_eq!((&off["is_online"], &off["sysinfo"]), (&json!(false), &Value::Null));
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_bounds() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let many: Vec<_> = (0..=StatusBatch::MAX).map(|_| MISSING).collect();
    for wrong in
        [json!({}), json!({ "vm_uuids": "x" }), json!({ "vm_uuids": [1] }), json!({ "vm_uuids": many })]
    {
        let answer = client.call(Method::POST, "/status/batch", Some(&wrong)).await;
        assert_eq!(answer.status, 422);
        assert_eq!(answer.json()["detail"][0]["loc"], json!(["body", "vm_uuids"]));
    }
    let most = json!({ "vm_uuids": many[..StatusBatch::MAX] });
    assert_eq!(client.call(Method::POST, "/status/batch", Some(&most)).await.json(), json!({}));
}

#[tokio::test(start_paused = true)]
async fn operations_revisions_and_events_tell_what_happened() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    for mb in [4096, 8192] {
        world.accept_update(&cvm, CvmPatch { memory: Sparse::Value(mb), ..CvmPatch::default() }).await;
        world.settle().await;
    }
    let all = client.json("/operations?cvm=demo-app").await;
    let kinds: Vec<_> = all["items"].as_array().expect("a list").iter().map(|op| &op["kind"]).collect();
    assert_eq!(kinds, ["update", "update", "create"]);
    assert_eq!(all["items"][0]["diff"][0], json!({ "field": "memory", "from": 4096, "to": 8192 }));
    assert_eq!(all["items"][0]["cvm_id"], cvm.uid.to_string());
    let first = client.json("/operations?limit=2").await;
    let cursor = first["next_cursor"].as_str().expect("there is more");
    let rest = client.json(&format!("/operations?limit=2&cursor={cursor}")).await;
    assert_eq!((rest["items"].as_array().map(Vec::len), &rest["next_cursor"]), (Some(1), &Value::Null));
    assert_eq!(client.json("/operations?status=failed").await["items"], json!([]));
    assert_eq!(client.json("/operations?stuck=true").await["items"], json!([]));
    for wrong in ["status=done", "status=queued&status=running", "cursor=x", "stuck=maybe", "limit=0"] {
        assert_eq!(client.get(&format!("/operations?{wrong}")).await.status, 422, "{wrong}");
    }
    assert_eq!(client.get("/operations?cvm=nobody").await.status, 404);

    let revisions = client.json("/cvms/demo-app/revisions?limit=2").await;
    let numbers: Vec<_> =
        revisions["items"].as_array().expect("a list").iter().map(|item| &item["revision"]).collect();
    assert_eq!(numbers, [3, 2]);
    assert_eq!(
        (&revisions["items"][0]["current"], &revisions["items"][1]["current"]),
        (&true.into(), &false.into())
    );
    assert_eq!(revisions["items"][0]["author"], "demo");
    assert_eq!(client.json("/cvms/demo-app/revisions?cursor=2").await["items"][0]["revision"], 1);

    let of_app = client.json(&format!("/apps/0x{}/revisions?page_size=2", cvm.app_id)).await;
    assert_eq!((&of_app["total"], &of_app["total_pages"]), (&3.into(), &2.into()));
    let newest = &of_app["revisions"][0];
    assert_eq!(newest["compose_hash"], client.json("/cvms/demo-app").await["compose_hash"]);
    assert_eq!(
        (&newest["operation_type"], &newest["triggered_by"]["username"]),
        (&"update".into(), &"demo".into())
    );
    let path = format!("/apps/{}/revisions/{}", cvm.app_id, newest["revision_id"].as_str().expect("an id"));
    let detail = client.json(&path).await;
    assert_eq!((&detail["encrypted_env"], &detail["user_config"]), (&"".into(), &"".into()));
    assert_eq!(detail["compose_file"], client.json("/cvms/demo-app/compose_file").await);
    let raw = client.json(&format!("{path}?raw_compose_file=true")).await;
    assert_eq!(
        raw["compose_hash"],
        hex::encode(sha256(raw["compose_file"].as_str().expect("a text").as_bytes()))
    );
    for absent in ["rev_1_9", "rev_9_1", "rev_x", "9"] {
        assert_eq!(
            client.get(&format!("/apps/{}/revisions/{absent}", cvm.app_id)).await.status,
            404,
            "{absent}"
        );
    }

    let mut after = 0;
    let mut events = Vec::new();
    loop {
        let page = client.json(&format!("/audit?after={after}&limit=3")).await;
        events.extend(page["items"].as_array().expect("a list").clone());
        match page["next_cursor"].as_str() {
            Some(cursor) => after = cursor.parse().expect("a number"),
            None => break,
        }
    }
    let kinds: Vec<_> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "operation.accepted").count(), 3);
    let accepted = events.iter().rfind(|event| event["kind"] == "operation.accepted").expect("accepted");
    assert_eq!((&accepted["actor"], &accepted["request_id"]), (&"demo".into(), &"req_test".into()));
    assert_eq!((&accepted["cvm_id"], &accepted["revision_after"]), (&cvm.uid.to_string().into(), &3.into()));
    assert_eq!(events, client.json("/audit?limit=1000").await["items"].as_array().expect("a list").clone());
}

#[tokio::test(start_paused = true)]
async fn logs_are_read_by_signed_addresses_and_by_no_others() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    let composition = client.json("/cvms/demo-app/composition").await;
    let container = &composition["containers"][0];
    assert_eq!(container["names"], json!(["/web-1"]));
    let url = container["log_endpoint"].as_str().expect("an address");
    let path = url.strip_prefix(&world.app.config.public_url).expect("an address of ours");
    let nobody = client.nobody();
    let plain = nobody.get(&format!("{path}&text&bare")).await;
    assert_eq!(plain.headers["content-type"], "text/plain; charset=utf-8");
    assert!(plain.text().contains("web: ready, revision 1\n"), "{}", plain.text());
    let encoded = nobody.get(path).await;
    assert_eq!(encoded.headers["content-type"], "application/x-ndjson");
    for line in encoded.text().lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["channel"], "stdout");
        assert!(line["message"].as_str().is_some_and(|text| text.len() % 4 == 0));
    }
    let count = async |query: &str| nobody.get(&format!("{path}&text{query}")).await.text().lines().count();
    let all = count("").await;
    assert!(all > 1);
    assert_eq!(count("&tail=1&lines=1").await, 1);
    assert_eq!(count("&since=2020-01-01T00:00:00Z").await, all);
    assert_eq!(count("&until=90d").await, 0);
    assert_eq!(count("&since=2100-01-01T00%3A00%3A00Z").await, 0);
    assert!(nobody.get(&format!("{path}&text&timestamps")).await.text().starts_with("2026-01-01T"));
    for wrong in ["since=soon", "tail=few", "follow=perhaps"] {
        assert_eq!(nobody.get(&format!("{path}&{wrong}")).await.status, 422, "{wrong}");
    }
    let base = client.json("/cvms/demo-app").await["logs"]["container_log_base"]
        .as_str()
        .expect("an address")
        .to_owned();
    let base = base.strip_prefix(&world.app.config.public_url).expect("an address of ours");
    for name in ["web-1", "web", "/web-1"] {
        assert_eq!(nobody.get(&format!("{base}{name}")).await.body, encoded.body, "{name}");
    }
    let absent = nobody.get(&format!("{base}db")).await;
    assert_eq!(
        (absent.status.as_u16(), absent.json()["detail"].as_str()),
        (404, Some("Container not found"))
    );

    // Neither another machine, nor another time, nor a digit less.
    let signature = path.split("sig=").nth(1).and_then(|rest| rest.split('&').next()).expect("a signature");
    for wrong in [
        path.replace(&cvm.vm_uuid.to_string(), MISSING),
        path.replace("expires=1", "expires=2"),
        path.replace(signature, &signature[1..]),
        path.replace(signature, ""),
        format!("/logs/{}", cvm.vm_uuid),
    ] {
        assert_eq!(nobody.get(&wrong).await.status, 401, "{wrong}");
        assert_eq!(client.get(&wrong).await.status, 401, "a key is no signature: {wrong}");
    }
    world.clock.sleep(std::time::Duration::from_secs(49 * 3600)).await;
    assert_eq!(nobody.get(path).await.status, 401);
}

#[tokio::test(start_paused = true)]
async fn the_platform_is_described_as_clients_want_it() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let me = client.json("/auth/me").await;
    assert_eq!((&me["workspace"]["slug"], &me["credits"]["balance"]), (&"demo".into(), &"0".into()));
    let flat = client.version(ApiVersion::V20251028).json("/auth/me").await;
    assert_eq!((&flat["username"], &flat["credits"]), (&"demo".into(), &0.0.into()));
    assert_eq!(client.json("/workspaces").await["data"][0], client.json("/workspaces/demo").await);
    assert_eq!(client.json("/workspaces/demo/nodes").await["items"][0]["object_type"], "node");

    let array = client.json("/os-images").await;
    let page = client.version(ApiVersion::V20260121).json("/os-images").await;
    assert_eq!(array, page["items"]);
    assert_eq!(client.json("/os-images?page=1&page_size=100").await["items"], array);
    assert!(array[0]["version"].is_string());
    let dev = client.json("/os-images?is_dev=true").await;
    assert!(dev.as_array().expect("a list").iter().all(|image| image["is_dev"] == true));
    let teepods = client.json("/teepods/available").await;
    assert!(teepods["nodes"][0]["images"][0]["version"].is_array());

    let sizes = client.json("/instance-types").await;
    assert_eq!(sizes["result"][0]["items"][0]["id"], "tdx.small");
    assert!(sizes["result"][0]["items"][0]["hourly_rate"].is_string());
    assert_eq!(client.get("/instance-types/tpu").await.status, 404);

    for named in ["phala", "kms_phala", "PHALA"] {
        assert_eq!(
            client.version(ApiVersion::V20260522).json(&format!("/kms/{named}")).await["slug"],
            "phala"
        );
    }
    assert_eq!(client.json("/kms/kc_phala").await["contract_address"], "phala");
    assert_eq!(client.json("/kms/phala/nodes").await["total"], 1);
    assert_eq!(client.get("/kms/nobody").await.json()["error_code"], "ERR-02-011");
    assert_eq!(client.json("/kms?is_onchain=true").await["items"], json!([]));
    assert_eq!(client.json("/kms/on-chain/base").await["contracts"], json!([]));
    assert_eq!(client.get("/kms/on-chain/other").await.status, 404);
    let ids = client.json("/kms/phala/next_app_id?counts=20").await;
    assert_eq!(ids["app_ids"].as_array().map(Vec::len), Some(20));
    assert_eq!(client.json("/kms/phala/next_app_id").await["app_ids"][0], ids["app_ids"][0]);
    assert_eq!(client.get("/kms/phala/next_app_id?counts=21").await.status, 422);

    let cvm = world.deploy("demo-app", "web:1").await;
    let key = client.json(&format!("/kms/phala/pubkey/{}", cvm.app_id)).await;
    assert_eq!(key["public_key"], client.json("/cvms/demo-app").await["encrypted_env_pubkey"]);
    assert_eq!(key["signature"].as_str().map(str::len), Some(130));
    let images = client.json("/cvms/demo-app/available-os-images").await;
    let current =
        images.as_array().expect("a list").iter().filter(|group| group["prod"]["is_current"] == true);
    assert_eq!(current.count(), 1);

    let resources = client.json("/teepods/cvm-create-resources").await;
    assert_eq!(resources["node_kms_relations"][0]["kms_id"], resources["kms_nodes"][0]["id"]);
    let quotas = client.json("/workspaces/demo/quotas").await;
    let vcpu = &quotas["quotas"]["vcpu"];
    assert_eq!(vcpu["remaining"].as_u64().map(|left| left + 1), vcpu["limit"].as_u64());
    assert_eq!(client.json("/users/me").await, me);
    let evidence = client.json("/cvms/demo-app/attestation").await;
    assert_eq!((&evidence["is_online"], &evidence["tcb_info"]), (&true.into(), &Value::Null));

    let node = &client.json("/nodes").await["items"][0];
    assert_eq!((&node["driver"], &node["status"]), (&"sim".into(), &"ONLINE".into()));
    let fields = client.json("/fields").await;
    let rule = |name: &str| {
        let fields = fields["items"].as_array().expect("a list");
        fields.iter().find(|rule| rule["field"] == name).cloned().expect("a rule")
    };
    assert_eq!((&rule("memory")["unit"], &rule("memory")["restart"]), (&"MB".into(), &"restart".into()));
    assert_eq!(
        (&rule("listed")["restart"], &rule("listed")["in_compose_hash"]),
        (&"record".into(), &false.into())
    );
    assert_eq!(rule("docker_compose_file")["in_compose_hash"], true);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_lack_of_room_says_of_what_and_how_much() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    world.deploy("demo-app", "web:1").await;
    let free = client.json("/nodes").await["items"][0]["free"].clone();
    for (field, code, too_much) in [("memory", "ERR-02-004", 1024 * 1024), ("vcpu", "ERR-02-003", 256)] {
        let refused = client.patch("/cvms/demo-app", json!({ field: too_much })).await.expect(409);
        assert_eq!(refused["error_code"], code);
        let detail = |name: &str| {
            let details = refused["details"].as_array().expect("a list");
            details.iter().find(|detail| detail["field"] == name).map(|detail| detail["value"].clone())
        };
        let (name, has) = if field == "memory" { ("memory_mb", 2048) } else { ("vcpu", 1) };
        let left = free[name].as_u64().expect("a number") + has;
        assert_eq!((detail("resource"), detail("asked")), (Some(json!(field)), Some(json!(too_much))));
        assert_eq!(detail("left"), Some(json!(left)), "with what it has itself: {refused}");
        assert!(
            refused["message"].as_str().is_some_and(|text| text.contains(&left.to_string())),
            "{refused}"
        );
    }
    let body = json!({ "name": "too-large", "compose_file": { "docker_compose_file": compose("web:1") }, "memory": 1024 * 1024 });
    let refused = client.post("/cvms/provision", body).await.expect(409);
    assert_eq!(
        (&refused["error_code"], &refused["details"][0]["value"]),
        (&json!("ERR-02-004"), &json!("memory"))
    );
    assert_eq!(refused["details"][2], json!({ "field": "left", "value": free["memory_mb"] }));
}

#[tokio::test(start_paused = true)]
async fn nodes_show_what_is_free_and_not_what_others_have() {
    let world = World::start().await;
    let (owner, stranger) = (Client::of(&world).await, Client::stranger(&world).await);
    world.deploy("demo-app", "web:1").await;
    for client in [&owner, &stranger] {
        let node = client.json("/nodes").await["items"][0].clone();
        assert!(node.get("booked").is_none() && node.get("cvms").is_none(), "{node}");
        let left = node["capacity"]["memory_mb"].as_u64().expect("a number") - 2048;
        assert_eq!(node["free"]["memory_mb"], left);
        let available = client.json("/teepods/available").await["nodes"][0].clone();
        assert_eq!(available["remaining_memory"], left);
        assert_eq!(available["remaining_cvm_slots"], node["free"]["slots"]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_audit_trail_says_what_was_changed_and_by_whom() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    let other = world.deploy("other-app", "web:1").await;
    let sealed = {
        let key = world.app.kms.env_public_key(&cvm.app_id).expect("a key");
        hex::encode(casemate_types::env::seal(&key, &[], [3; 32], [3; 12]).expect("sealed"))
    };
    let body = json!({
        "memory": 4096, "allowed_envs": ["TOKEN"], "encrypted_env": sealed, "user_config": "{\"password\": 1}", "listed": true
    });
    client.patch("/cvms/demo-app", body).await.expect(202);
    world.settle().await;
    client.patch("/cvms/other-app", json!({ "listed": true })).await.expect(202);
    let all = client.json("/audit?limit=1000").await["items"].as_array().expect("a list").clone();
    let update = all.iter().find(|event| event["operation"] == "update").expect("it was accepted");
    assert_eq!((&update["kind"], &update["actor"]), (&"operation.accepted".into(), &"demo".into()));
    assert_eq!((&update["revision_before"], &update["revision_after"]), (&1.into(), &2.into()));
    let change = |field: &str| {
        let changes = update["changes"].as_array().expect("a list");
        changes.iter().find(|change| change["field"] == field).cloned().unwrap_or_default()
    };
    assert_eq!(change("memory"), json!({ "field": "memory", "from": 2048, "to": 4096 }));
    assert_eq!(change("allowed_envs"), json!({ "field": "allowed_envs", "from": [], "to": ["TOKEN"] }));
    assert_eq!(change("listed")["to"], true);
    for secret in ["encrypted_env", "user_config"] {
        assert_eq!(change(secret), json!({ "field": secret }), "its name and no more");
    }
    let done =
        all.iter().rfind(|event| event["kind"] == "operation.succeeded").expect("the record was changed");
    assert_eq!((&done["operation"], &done["changes"][0]["field"]), (&"update".into(), &"listed".into()));
    let finished = all.iter().find(|event| event["kind"] == "step.finished").expect("a step");
    assert!(finished.get("operation").is_none() && finished.get("changes").is_none(), "{finished}");

    // Of one CVM, in pages.
    let of = |event: &Value, cvm: &casemate_server::cvm::state::Cvm| event["cvm_id"] == cvm.uid.to_string();
    let wanted: Vec<_> = all.iter().filter(|event| of(event, &other)).cloned().collect();
    let mut found = Vec::new();
    let mut cursor = "0".to_owned();
    loop {
        let page = client.json(&format!("/audit?cvm=other-app&limit=2&cursor={cursor}")).await;
        found.extend(page["items"].as_array().expect("a list").clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(found, wanted);
    power::delete(&world.app, world.cvm(&other), world.author()).await.expect("accepted");
    world.settle().await;
    let gone = client.json(&format!("/audit?cvm={}&limit=1000", other.uid)).await;
    assert!(gone["items"].as_array().is_some_and(|items| items.len() > wanted.len()), "{gone}");
    client.get("/audit?cvm=nobody-here").await.expect(404);
    Client::stranger(&world).await.get(&format!("/audit?cvm={}", other.uid)).await.expect(404);
    Client::stranger(&world).await.get(&format!("/audit?cvm={}", cvm.uid)).await.expect(404);
    client.get("/audit?after=1&cursor=2").await.expect(422);
    client.get("/audit?cursor=x").await.expect(422);
}

#[tokio::test(start_paused = true)]
async fn revisions_are_read_page_by_page() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    for mb in [4096, 8192, 4096, 8192] {
        world.accept_update(&cvm, CvmPatch { memory: Sparse::Value(mb), ..CvmPatch::default() }).await;
        world.settle().await;
    }
    let stored = |before, limit| {
        let revisions = world.app.store.revisions(cvm.id, before, limit).expect("reads");
        revisions.into_iter().map(|revision| revision.number).collect::<Vec<_>>()
    };
    assert_eq!(stored(None, 2), [5, 4], "no more are read than are asked for");
    assert_eq!(stored(Some(4), 2), [3, 2]);
    let mut numbers = Vec::new();
    let mut path = "/cvms/demo-app/revisions?limit=2".to_owned();
    loop {
        let page = client.json(&path).await;
        numbers.extend(page["items"].as_array().expect("a list").iter().map(|item| item["revision"].clone()));
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/cvms/demo-app/revisions?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(numbers, [5, 4, 3, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn after_a_hold_nothing_is_shown_of_the_machine_that_was() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    world.deploy("demo-app", "web:1").await;
    assert_eq!(client.json("/cvms/demo-app/state").await["boot_progress"], "done");
    let fault = Fault::BootFail { image: None, env: None };
    world.sim.plan(Planned { fault, once: false, vm: None }).expect("planned");
    client.patch("/cvms/demo-app", json!({ "memory": 4096, "on_failure": "hold" })).await.expect(202);
    world.settle().await;
    let state = client.json("/cvms/demo-app/state").await;
    assert_eq!(state["status"], "error");
    assert!(state["boot_error"].is_string(), "{state}");
    for stale in ["boot_progress", "uptime"] {
        assert!(state.get(stale).is_none_or(Value::is_null), "{stale}: {state}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_api_date_is_refused_and_latest_is_known() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let answer = client.header("x-phala-version", "2024-01-01").get("/cvms").await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["detail"].as_str().is_some_and(|text| text.contains("2026-06-23")));
    assert_eq!(client.header("x-phala-version", "Latest").get("/cvms").await.status, 200);
}
