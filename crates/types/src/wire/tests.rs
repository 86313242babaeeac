use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::ids::{AppId, ComposeHash, OperationId, VmUuid};

fn keys_with_null(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, value)| value.is_null())
        .map(|(key, _)| key.as_str())
        .collect()
}

fn has(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "`{key}` is missing in {value}");
    }
}

#[test]
fn the_smallest_cvm_of_another_server_is_read() {
    let cvm: Cvm = serde_json::from_value(json!({
        "id": "cvm_a", "name": "n", "status": "thinking", "resource": {}, "gateway": {}, "kms_type": "solana", "new_field": 1,
        "created_at": "2026-02-03T10:00:00"
    }))
    .unwrap();
    assert_eq!(cvm.status, Status::Other("thinking".into()));
    assert!(cvm.status.is_transitional());
    assert_eq!(cvm.kms_type, Some(KmsType::Other("solana".into())));
    assert_eq!(cvm.created_at, Some("2026-02-03T10:00:00Z".parse().unwrap()));
}

#[test]
fn a_cvm_never_has_null_where_clients_refuse_it() {
    let cvm: Cvm =
        serde_json::from_value(json!({ "id": "cvm_a", "name": "n", "status": "running" })).unwrap();
    let json = serde_json::to_value(&cvm).unwrap();
    let nulls = keys_with_null(&json);
    for key in [
        "services",
        "logs",
        "public_logs",
        "public_sysinfo",
        "public_tcbinfo",
        "gateway_enabled",
        "secure_time",
        "listed",
        "storage_fs",
        "in_progress",
        "resource",
        "gateway",
    ] {
        assert!(!nulls.contains(&key), "{key}");
    }
    assert!(nulls.contains(&"progress"), "an idle CVM says so with null");
    has(&json, &["encrypted_env_pubkey", "disk_size", "workspace", "creator", "compose_hash"]);
    assert!(json.get("compose_file").is_none() && json.get("hosted").is_none());
}

fn vm() -> Vm {
    serde_json::from_value(json!({
        "id": 1042, "name": "hello", "status": "updating", "vcpu": 1, "memory": 2048, "disk_size": 20,
        "created_at": "2026-02-03T10:00:00Z"
    }))
    .unwrap()
}

#[test]
fn a_vm_record_has_every_key_that_some_reader_wants() {
    let json = serde_json::to_value(vm()).unwrap();
    has(
        &json,
        &[
            "id",
            "name",
            "status",
            "teepod_id",
            "teepod",
            "user_id",
            "app_id",
            "vm_uuid",
            "instance_id",
            "app_url",
            "base_image",
            "vcpu",
            "memory",
            "disk_size",
            "manifest_version",
            "version",
            "runner",
            "docker_compose_file",
            "features",
            "created_at",
            "encrypted_env_pubkey",
        ],
    );
    assert_eq!(json["id"], 1042);
    for key in ["public_logs", "public_sysinfo", "public_tcbinfo", "listed", "in_progress"] {
        assert!(json.get(key).is_none(), "{key}");
    }
    let newer: Vm = serde_json::from_value(json!({
        "id": "cvm_a", "name": "n", "status": "running", "user_id": "usr_1", "vcpu": 1, "memory": 1, "disk_size": 1,
        "created_at": "2026-02-03T10:00:00+02:00"
    }))
    .unwrap();
    assert_eq!(newer.id.to_string(), "cvm_a");
}

#[test]
fn an_accepted_update_shows_the_cvm_flat_and_whole() {
    let operation = OperationId("0198c1d2-0000-7000-8000-000000000001".parse().unwrap());
    let answer = AcceptedCvm { accepted: Accepted::new(operation, "resize accepted"), cvm: vm() };
    let json = serde_json::to_value(&answer).unwrap();
    assert_eq!(json["status"], "in_progress");
    assert_eq!(json["cvm"]["status"], "updating");
    assert_eq!((&json["vcpu"], &json["cvm"]["vcpu"]), (&json!(1), &json!(1)));
    assert_eq!(json["correlation_id"], operation.to_string());
    assert_eq!(serde_json::from_value::<AcceptedCvm>(json).unwrap(), answer);
}

#[test]
fn an_accepted_answer_has_exactly_what_it_needs() {
    let operation = OperationId("0198c1d2-0000-7000-8000-000000000001".parse().unwrap());
    let json = serde_json::to_value(Accepted::new(operation, "accepted")).unwrap();
    assert_eq!(
        json,
        json!({ "status": "in_progress", "message": "accepted", "correlation_id": operation.to_string() })
    );
}

#[test]
fn a_state_leaves_out_what_is_not_known() {
    let state = CvmState {
        id: None,
        vm_uuid: Some(VmUuid("1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed".parse().unwrap())),
        instance_id: None,
        name: "hello".into(),
        status: Status::Running,
        uptime: None,
        exited_at: None,
        boot_progress: None,
        boot_error: None,
        shutdown_progress: None,
    };
    assert_eq!(
        serde_json::to_value(state).unwrap(),
        json!({ "vm_uuid": "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", "name": "hello", "status": "running" })
    );
}

#[test]
fn nullable_keys_of_telemetry_are_always_there() {
    let stats: CvmStats = serde_json::from_value(json!({ "is_online": false })).unwrap();
    has(
        &serde_json::to_value(stats).unwrap(),
        &["error", "status", "boot_progress", "boot_error", "sysinfo"],
    );
    let network: CvmNetwork = serde_json::from_value(json!({ "is_online": false })).unwrap();
    has(
        &serde_json::to_value(network).unwrap(),
        &["error", "internal_ip", "latest_handshake", "public_urls"],
    );
    let composition: CvmComposition = serde_json::from_value(json!({ "is_online": false })).unwrap();
    has(
        &serde_json::to_value(composition).unwrap(),
        &["error", "docker_compose_file", "version", "runner", "manifest_version", "features", "containers"],
    );
    let entry: StatusEntry = serde_json::from_value(json!({ "vm_uuid": "X", "status": "running" })).unwrap();
    let json = serde_json::to_value(entry).unwrap();
    has(&json, &["in_progress", "events"]);
    assert_eq!(json["events"], json!([]));
}

#[test]
fn strict_objects_have_no_other_key() {
    let key = PubKey { public_key: "a".into(), signature: "b".into(), timestamp: None };
    assert_eq!(serde_json::to_value(key).unwrap(), json!({ "public_key": "a", "signature": "b" }));
    let page = KmsPage::new(Vec::new(), 0, 1, 30);
    assert_eq!(
        serde_json::to_value(page).unwrap(),
        json!({ "items": [], "total": 0, "page": 1, "page_size": 30, "pages": 0 })
    );
    let ids = NextAppIds { app_ids: vec![NextAppId { app_id: AppId([1; 20]), nonce: 4 }] };
    assert_eq!(
        serde_json::to_value(ids).unwrap(),
        json!({ "app_ids": [{ "app_id": "01".repeat(20), "nonce": 4 }] })
    );
}

#[test]
fn pages_are_counted_up() {
    assert_eq!(Page::new(vec![1, 2, 3], 7, 1, 3).pages, 3);
    assert_eq!(Page::new(vec![1], 6, 2, 3).pages, 2);
    assert_eq!(Page::new(vec![1], 1, 1, 1).map(|n| n + 1).items, [2]);
}

#[test]
fn instance_id_results_are_counted() {
    let item = |status: &str| InstanceIdResult {
        cvm_id: 1.into(),
        identifier: "x".into(),
        status: status.into(),
        old_instance_id: None,
        new_instance_id: None,
        instance_id: None,
        source: InstanceIdSource::None,
        verified_with_gateway: false,
        reason: None,
        correlation_id: None,
    };
    let items = ["updated", "updated", "unchanged", "skipped", "conflict", "error"].map(item).to_vec();
    let result = InstanceIdsResult::of(items, 9);
    assert_eq!((result.total, result.scanned, result.updated, result.unchanged), (9, 5, 2, 1));
    assert_eq!((result.skipped, result.conflicts, result.errors), (1, 1, 1));
}

#[test]
fn times_sort_as_texts() {
    let mut texts: Vec<String> = [
        "2026-02-03T10:00:00.5Z",
        "2026-02-03T10:00:00Z",
        "2026-02-03T09:59:59.999999999Z",
        "2026-02-03T12:00:00.25+02:00",
    ]
    .iter()
    .map(|text| {
        let app: AppRecord<Cvm> = serde_json::from_value(json!({
            "id": "a", "name": "a", "app_id": "00".repeat(20), "created_at": text, "kms_type": "phala"
        }))
        .unwrap();
        serde_json::to_value(app).unwrap()["created_at"].as_str().unwrap().to_owned()
    })
    .collect();
    texts.sort();
    assert_eq!(
        texts,
        [
            "2026-02-03T09:59:59.999999Z",
            "2026-02-03T10:00:00.000000Z",
            "2026-02-03T10:00:00.250000Z",
            "2026-02-03T10:00:00.500000Z"
        ]
    );
}

#[test]
fn amounts_are_texts_whatever_was_sent() {
    let credits: MeCredits = serde_json::from_value(
        json!({ "balance": 12.5, "granted_balance": "5.00", "outstanding_amount": null }),
    )
    .unwrap();
    assert_eq!((credits.balance.as_str(), credits.granted_balance.as_str()), ("12.5", "5.00"));
}

#[test]
fn an_operation_reads_back() {
    let operation = Operation {
        correlation_id: OperationId("0198c1d2-0000-7000-8000-000000000001".parse().unwrap()),
        cvm_id: "cvm_a".parse().unwrap(),
        kind: "update".into(),
        status: OperationStatus::Failed,
        step: Some("observe".into()),
        attempt: 1,
        waiting_for: None,
        steps: vec![OperationStep {
            name: "stage".into(),
            started_at: Some(Timestamp::UNIX_EPOCH),
            ended_at: None,
        }],
        diff: vec![Diff { field: "vcpu".into(), from: json!(1), to: json!(2) }],
        reason: Some(Reason { code: "boot_failed".into(), message: "no".into() }),
        put_back: Some(OperationId("0198c1d2-0000-7000-8000-000000000002".parse().unwrap())),
        revocation: None,
        downtime_ms: Some(1200),
        created_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
    };
    assert!(operation.status.is_final());
    let json = serde_json::to_value(&operation).unwrap();
    has(&json, &["ended_at", "step", "steps", "diff"]);
    assert!(json.get("waiting_for").is_none());
    assert_eq!(serde_json::from_value::<Operation>(json).unwrap(), operation);
}

#[test]
fn a_new_key_is_not_shown_by_debug() {
    let key: NewApiKey = serde_json::from_value(json!({
        "key": "phak_secret", "id": "1", "name": "ci", "prefix": "phak_s", "scopes": [], "default_version": "latest",
        "created_at": "2026-02-03T10:00:00Z"
    }))
    .unwrap();
    assert!(!format!("{key:?}").contains("phak_secret"));
    assert_eq!(serde_json::to_value(&key).unwrap()["default_version"], "2026-06-23");
}

#[test]
fn a_plan_names_its_hash() {
    let plan = DryRun {
        plan: Plan {
            kind: PlanKind::Restart,
            diff: Vec::new(),
            compose_hash: Some(ComposeHash([0; 32])),
            needs_approval: false,
            warnings: Vec::new(),
        },
    };
    let json = serde_json::to_value(plan).unwrap();
    has(&json["plan"], &["kind", "diff", "compose_hash", "needs_approval", "warnings"]);
}

#[cfg(feature = "openapi")]
#[test]
fn every_schema_can_be_made() {
    use utoipa::{OpenApi, ToSchema};

    #[derive(OpenApi)]
    #[openapi(components(schemas(
        Cvm, CvmFlat, CvmHosted, Vm, Page<Cvm>, AppPage<Cvm>, CvmState, StatusEntry, CvmStats, CvmNetwork, CvmComposition, Observed,
        ProvisionAnswer, ComposeProvisionAnswer, AcceptedCvm, InstanceIdsResult, KmsContract, PubKey, NextAppIds, OsImageGroup, OsImage,
        TeepodsAvailable, InstanceTypes, InstanceTypeFamily, Node, NewApiKey, OperationPage, DryRun, RevisionPage, AuditPage, FieldRule, Me, MeFlat,
        crate::error::ErrorBody, crate::patch::CvmPatch, crate::patch::CvmProvision, crate::patch::CvmCreate, crate::patch::ComposeProvision,
        crate::patch::ComposeCommit, crate::patch::EnvsUpdate, crate::patch::ResourcesUpdate, crate::patch::VisibilityUpdate,
        crate::patch::OsImageUpdate, crate::patch::InstanceIdsLookup, crate::patch::InstanceIdsRefresh, crate::patch::CommitUpdate,
        crate::patch::StatusBatch, crate::patch::Rollback
    )))]
    struct Api;

    let api = serde_json::to_value(Api::openapi()).unwrap();
    let schemas = api["components"]["schemas"].as_object().unwrap();
    let mut dangling = Vec::new();
    find_refs(&api, &mut |target| {
        let name = target.rsplit('/').next().unwrap();
        if !schemas.contains_key(name) {
            dangling.push(name.to_owned());
        }
    });
    assert_eq!(dangling, Vec::<String>::new());

    let patch = &schemas["CvmPatch"];
    assert!(patch.get("required").is_none(), "{patch}");
    assert_eq!(patch["properties"]["vcpu"]["type"], json!(["integer", "null"]));
    assert_eq!(patch["properties"]["encrypted_env"]["type"], json!(["string", "null"]));
    for (body, required) in [
        ("CommitUpdate", json!(["token"])),
        ("InstanceIdsLookup", Value::Null),
        ("ComposeCommit", json!(["compose_hash"])),
        ("CvmProvision", json!(["name", "compose_file"])),
    ] {
        let text = schemas[body].to_string();
        let found = schemas[body].get("required").or_else(|| schemas[body]["allOf"][0].get("required"));
        let found = found.or_else(|| schemas[body]["allOf"][1].get("required"));
        assert_eq!(found.cloned().unwrap_or_default(), required, "{text}");
    }
    assert_eq!(schemas["Operation"]["properties"]["created_at"]["format"], "date-time");
    assert_eq!(schemas["AppId"]["type"], "string");
    assert_eq!(schemas["ApiVersion"]["type"], "string");
    assert_eq!(Status::name(), "Status");
}

#[cfg(feature = "openapi")]
fn find_refs(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(target) if key == "$ref" => found(target),
                    other => find_refs(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| find_refs(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
