//! Which fields of an answer must be there, and which must not be `null`. Strict clients refuse an answer that breaks one of
//! these rules, so every version's shape is walked, while the CVM works, while it is busy, and while it is off.

use casemate_testkit::World;
use casemate_types::patch::{CvmPatch, Sparse};
use casemate_types::version::ApiVersion;
use serde_json::{Value, json};

use crate::client::Client;

/// What holds for a field.
#[derive(Clone, Copy, Debug)]
enum Mark {
    /// There, and not `null`.
    Req,
    /// There.
    Nul,
    /// Not `null`.
    Opt,
}
use Mark::{Nul, Opt, Req};

const CVM_INFO: &[(Mark, &str)] = &[
    (Req, "id name status resource gateway app_id vm_uuid"),
    (
        Opt,
        "in_progress logs services public_logs public_sysinfo public_tcbinfo gateway_enabled secure_time listed storage_fs",
    ),
    (Opt, "node_info.device_ids"),
    (Req, "node_info.object_type workspace.object_type workspace.id workspace.name creator.object_type"),
];

const KMS_INFO: &[(Mark, &str)] =
    &[(Req, "id url version"), (Nul, "slug chain_id kms_contract_address gateway_app_id")];

const HOSTED: &[(Mark, &str)] = &[
    (Req, "hosted name status public_urls"),
    (Req, "hosted.id hosted.name hosted.status hosted.uptime hosted.app_id"),
    (
        Nul,
        "hosted.app_url hosted.instance_id hosted.exited_at hosted.boot_progress hosted.boot_error hosted.shutdown_progress
         hosted.image_version",
    ),
    (Nul, "managed_user node kms_info vcpu memory disk_size"),
    (Nul, "dapp_dashboard_url syslog_endpoint project_id project_type billing_period gateway_domain"),
    (Opt, "listed in_progress allow_upgrade"),
];

const FLAT: &[(Mark, &str)] = &[
    (Req, "id name status app_id vcpu memory disk_size"),
    (Nul, "teepod_id vm_uuid instance_id base_image encrypted_env_pubkey"),
    (Opt, "in_progress listed public_sysinfo public_logs public_urls"),
];

const STATE: &[(Mark, &str)] = &[
    (Req, "name status vm_uuid"),
    (Opt, "id instance_id uptime exited_at boot_progress boot_error shutdown_progress"),
];

const STATUS: &[(Mark, &str)] = &[(Req, "vm_uuid status in_progress"), (Opt, "events")];

const STATS: &[(Mark, &str)] = &[
    (Req, "is_online"),
    (Opt, "is_public in_progress"),
    (Nul, "error status boot_progress boot_error sysinfo"),
];

const NETWORK: &[(Mark, &str)] =
    &[(Req, "is_online"), (Opt, "is_public"), (Nul, "error internal_ip latest_handshake public_urls")];

const COMPOSITION: &[(Mark, &str)] = &[
    (Req, "is_online"),
    (Opt, "is_public"),
    (Nul, "error docker_compose_file version runner manifest_version features containers"),
];

const CONTAINER: &[(Mark, &str)] =
    &[(Req, "id image image_id state status names created"), (Nul, "log_endpoint")];

const APP: &[(Mark, &str)] = &[(Req, "id name app_id created_at kms_type cvms cvm_count current_cvm")];

const BASIC: &[(Mark, &str)] =
    &[(Nul, "vm_uuid"), (Req, "app_id status teepod_name name vcpu memory disk_size teepod_id")];

const TEEPODS: &[(Mark, &str)] = &[(Req, "tier capacity nodes kms_list")];

const TEEPOD: &[(Mark, &str)] = &[
    (
        Req,
        "teepod_id name listed resource_score remaining_vcpu remaining_memory remaining_cvm_slots images device_id",
    ),
    (Opt, "support_onchain_kms kms_list"),
];

const CONTRACT: &[(Mark, &str)] = &[(Req, "id contract_address chain_id node_count")];

/// What `rules` say about `value`, with dots leading into objects. A parent that is absent or `null` has no fields.
#[track_caller]
fn check(what: &str, value: &Value, rules: &[(Mark, &str)]) {
    for (mark, fields) in rules {
        for path in fields.split_whitespace() {
            let (parent, field) = match path.rsplit_once('.') {
                Some((parent, field)) => (value.pointer(&format!("/{}", parent.replace('.', "/"))), field),
                None => (Some(value), path),
            };
            let Some(parent) = parent.filter(|parent| !parent.is_null()) else { continue };
            let found = parent.get(field);
            let holds = match mark {
                Req => found.is_some_and(|value| !value.is_null()),
                Nul => found.is_some(),
                Opt => found.is_none_or(|value| !value.is_null()),
            };
            assert!(holds, "{what}: {mark:?} {path} is {found:?} in {value:#}");
        }
    }
}

async fn walk(client: &Client, moment: &str, vm_uuid: &str) {
    for version in ApiVersion::ALL {
        let client = client.version(version);
        let what = |route: &str| format!("{route} at {version}, {moment}");
        let new = version.has_cvm_objects();

        let page = client.json("/cvms/paginated").await;
        check(&what("page"), &page, &[(Req, "items total page page_size pages")]);
        let item = &page["items"][0];
        check(&what("item"), item, if new { CVM_INFO } else { HOSTED });
        let cvms = client.json(&format!("/apps/{}/cvms", app_id(item))).await;
        check(&what("cvm of an app"), &cvms[0], if new { CVM_INFO } else { HOSTED });
        assert_eq!(cvms[0], *item);
        assert_eq!(client.json("/cvms").await, page["items"]);

        let detail = client.json(&format!("/cvms/{vm_uuid}")).await;
        check(&what("detail"), &detail, if new { CVM_INFO } else { FLAT });
        if new {
            assert!(detail["id"].is_string() && detail["manifest_version"].is_string());
            assert_eq!(detail["progress"].is_null(), detail["in_progress"] == false, "{detail:#}");
            assert!(
                detail["compose_file"]
                    .as_object()
                    .is_some_and(|doc| doc.values().all(|value| !value.is_null()))
            );
            assert!(item.get("compose_file").is_none());
        } else {
            assert!(detail["id"].is_i64());
            assert!(detail["syslog_endpoint"].as_str().is_some_and(|url| url.contains('?')));
            check(&what("kms of a detail"), &detail["kms_info"], KMS_INFO);
            check(&what("kms of an item"), &item["kms_info"], KMS_INFO);
        }

        let state = client.json(&format!("/cvms/{vm_uuid}/state")).await;
        check(&what("state"), &state, STATE);
        assert_eq!(state.get("id").is_none(), version == ApiVersion::V20260121);
        let body = json!({ "vm_uuids": [vm_uuid] });
        let states = client.call(axum::http::Method::POST, "/status/batch", Some(&body)).await.json();
        check(&what("status"), &states[vm_uuid], STATUS);
        let stats = client.json(&format!("/cvms/{vm_uuid}/stats")).await;
        check(&what("stats"), &stats, STATS);
        check(&what("network"), &client.json(&format!("/cvms/{vm_uuid}/network")).await, NETWORK);
        let composition = client.json(&format!("/cvms/{vm_uuid}/composition")).await;
        check(&what("composition"), &composition, COMPOSITION);
        for container in composition["containers"].as_array().expect("a list") {
            check(&what("container"), container, CONTAINER);
        }

        let apps = client.json("/apps").await;
        check(&what("apps"), &apps, &[(Req, "dstack_apps page page_size total total_pages")]);
        check(&what("app"), &apps["dstack_apps"][0], APP);
        check(
            &what("cvm in an app"),
            &apps["dstack_apps"][0]["current_cvm"],
            if new { CVM_INFO } else { BASIC },
        );

        let teepods = client.json("/teepods/available").await;
        check(&what("teepods"), &teepods, TEEPODS);
        check(&what("teepod"), &teepods["nodes"][0], TEEPOD);
        check(&what("kms of teepods"), &teepods["kms_list"][0], KMS_INFO);
        let services = client.json("/kms").await;
        let by_contract = version >= ApiVersion::V20260623;
        check(&what("kms"), &services["items"][0], if by_contract { CONTRACT } else { KMS_INFO });
        check(
            &what("user config"),
            &client.json(&format!("/cvms/{vm_uuid}/user_config")).await,
            &[(Opt, "ssh_authorized_keys")],
        );
    }
}

fn app_id(item: &Value) -> &str {
    item.get("app_id").or_else(|| item["hosted"].get("app_id")).and_then(Value::as_str).expect("an app id")
}

#[tokio::test(start_paused = true)]
async fn no_answer_breaks_the_rules_about_null_in_any_version_and_at_any_time() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.create("demo-app", "web:1").await;
    let vm_uuid = cvm.vm_uuid.to_string();
    walk(&client, "being made", &vm_uuid).await;
    world.settle().await;
    walk(&client, "running", &vm_uuid).await;
    let patch = CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() };
    world.accept_update(&cvm, patch).await;
    walk(&client, "being updated", &vm_uuid).await;
    world.settle().await;
    casemate_server::workflow::power::stop(&world.app, world.cvm(&cvm), world.author())
        .await
        .expect("accepted");
    walk(&client, "going down", &vm_uuid).await;
    world.settle().await;
    walk(&client, "off", &vm_uuid).await;
}

#[tokio::test(start_paused = true)]
async fn strict_objects_have_no_field_more() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    for version in ApiVersion::ALL {
        let client = client.version(version);
        let key = client.json(&format!("/kms/phala/pubkey/0x{}", "ab".repeat(20))).await;
        assert_eq!(keys(&key), ["public_key", "signature"]);
        assert_eq!(keys(&client.json("/kms/phala/next_app_id").await), ["app_ids"]);
        assert_eq!(keys(&client.json("/kms").await), ["items", "total", "page", "page_size", "pages"]);
        let sizes = client.json("/instance-types").await;
        assert_eq!(keys(&sizes), ["result"]);
        assert_eq!(keys(&sizes["result"][0]), ["name", "items", "total"]);
        assert_eq!(keys(&client.json("/instance-types/cpu").await), ["items", "total", "family"]);
    }
}
