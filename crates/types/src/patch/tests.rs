use serde_json::json;

use super::*;
use crate::wire::KmsType;

const BLOB: [u8; 60] = [7; 60];

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn patch(value: Value) -> CvmPatch {
    CvmPatch::from_json(&map(value)).unwrap()
}

/// The fields that an error names, with its kinds.
fn wrong<T: fmt::Debug>(read: Result<T, Vec<FieldError>>) -> Vec<(String, String)> {
    read.unwrap_err().into_iter().map(|error| (error.field(), error.kind)).collect()
}

/// Every field of the unified update, as a client may send it, and as it is read.
fn every_field() -> Vec<(&'static str, Value, CvmPatch)> {
    let none = CvmPatch::default;
    let blob = hex::encode(BLOB);
    vec![
        (
            "docker_compose_file",
            json!("a"),
            CvmPatch { docker_compose_file: "a".to_owned().into(), ..none() },
        ),
        ("pre_launch_script", json!(""), CvmPatch { pre_launch_script: String::new().into(), ..none() }),
        ("allowed_envs", json!(["A"]), CvmPatch { allowed_envs: vec!["A".to_owned()].into(), ..none() }),
        ("env_keys", json!("A"), CvmPatch { allowed_envs: vec!["A".to_owned()].into(), ..none() }),
        ("public_logs", json!(false), CvmPatch { public_logs: false.into(), ..none() }),
        ("public_sysinfo", json!(0), CvmPatch { public_sysinfo: false.into(), ..none() }),
        ("public_tcbinfo", json!(1.0), CvmPatch { public_tcbinfo: true.into(), ..none() }),
        ("gateway_enabled", json!(true), CvmPatch { gateway_enabled: true.into(), ..none() }),
        ("secure_time", json!(true), CvmPatch { secure_time: true.into(), ..none() }),
        (
            "encrypted_env",
            json!(format!("0x{blob}")),
            CvmPatch { encrypted_env: blob.parse::<SealedEnv>().unwrap().into(), ..none() },
        ),
        ("user_config", json!("{}"), CvmPatch { user_config: "{}".to_owned().into(), ..none() }),
        (
            "gpus",
            json!({ "count": 0 }),
            CvmPatch { gpus: GpuPatch::Count { count: 0, product_name: None }.into(), ..none() },
        ),
        ("vcpu", json!(4.0), CvmPatch { vcpu: 4.into(), ..none() }),
        ("memory", json!(8192), CvmPatch { memory: 8192.into(), ..none() }),
        ("disk_size", json!(100), CvmPatch { disk_size: 100.into(), ..none() }),
        (
            "instance_type",
            json!("tdx.small"),
            CvmPatch { instance_type: "tdx.small".to_owned().into(), ..none() },
        ),
        ("allow_restart", json!(1), CvmPatch { allow_restart: true.into(), ..none() }),
        ("image", json!("dstack-0.5.5"), CvmPatch { image: "dstack-0.5.5".to_owned().into(), ..none() }),
        (
            "os_image_name",
            json!("dstack-0.5.5"),
            CvmPatch { image: "dstack-0.5.5".to_owned().into(), ..none() },
        ),
        ("shutdown_timeout", json!(10), CvmPatch { shutdown_timeout: 10.into(), ..none() }),
        ("allow_force_stop", json!(true), CvmPatch { allow_force_stop: true.into(), ..none() }),
        ("listed", json!(true), CvmPatch { listed: true.into(), ..none() }),
        ("name", json!("hello"), CvmPatch { name: "hello".parse::<CvmName>().unwrap().into(), ..none() }),
        ("on_failure", json!("hold"), CvmPatch { on_failure: OnFailure::Hold.into(), ..none() }),
        ("force_restart", json!(true), CvmPatch { force_restart: true.into(), ..none() }),
    ]
}

#[test]
fn each_field_is_read_alone_and_its_null_is_absent() {
    for (field, value, expected) in every_field() {
        assert_eq!(patch(json!({ field: value })), expected, "{field}");
        assert_eq!(patch(json!({ field: null })), CvmPatch::default(), "{field}");
    }
    assert_eq!(patch(json!({ "unknown": { "x": 1 } })), CvmPatch::default());
}

#[test]
fn what_is_written_reads_back_and_holds_nothing_else() {
    for (field, _, expected) in every_field() {
        let written = serde_json::to_value(&expected).unwrap();
        assert_eq!(written.as_object().unwrap().len(), 1, "{field}: {written}");
        assert_eq!(patch(written), expected, "{field}");
    }
    assert_eq!(serde_json::to_string(&CvmPatch::default()).unwrap(), "{}");
}

#[test]
fn empty_means_that_no_field_is_named() {
    for (field, value, expected) in every_field() {
        assert!(!expected.is_empty(), "{field}: {value}");
    }
    assert!(CvmPatch::default().is_empty());
    assert!(patch(json!({ "vcpu": null, "unknown": 1 })).is_empty());
}

#[test]
fn every_wrong_field_is_named_with_what_would_be_right() {
    let body = map(json!({
        "docker_compose_file": 5, "allowed_envs": ["A", 1], "public_logs": "yes", "encrypted_env": "zz", "gpus": 2, "vcpu": 1.5,
        "memory": "8G", "disk_size": -1, "image": "", "shutdown_timeout": 5, "allow_force_stop": 2, "name": "x",
        "on_failure": "panic"
    }));
    let read = CvmPatch::from_json(&body);
    let messages: Vec<_> = read.clone().unwrap_err().iter().map(ToString::to_string).collect();
    let found = wrong(read);
    let found: Vec<_> = found.iter().map(|(field, kind)| (field.as_str(), kind.as_str())).collect();
    assert_eq!(
        found,
        [
            ("docker_compose_file", "string_type"),
            ("allowed_envs", "string_type"),
            ("public_logs", "bool_type"),
            ("encrypted_env", "value_error"),
            ("gpus", "dict_type"),
            ("vcpu", "int_from_float"),
            ("memory", "int_type"),
            ("disk_size", "greater_than_equal"),
            ("image", "string_too_short"),
            ("shutdown_timeout", "greater_than_equal"),
            ("allow_force_stop", "bool_type"),
            ("name", "value_error"),
            ("on_failure", "value_error"),
        ]
    );
    for says in [
        "docker_compose_file: must be a string, not a number",
        "vcpu: must be a whole number",
        "memory: must be a whole number, not a string",
        "shutdown_timeout: must be at least 10",
        "on_failure: must be `put_back` or `hold`",
        "name: a CVM name has at least 5 characters",
    ] {
        assert!(messages.contains(&says.to_owned()), "{says} in {messages:#?}");
    }
}

#[test]
fn an_error_has_the_form_that_clients_read() {
    let errors = CvmPatch::from_json(&map(json!({ "shutdown_timeout": 5000 }))).unwrap_err();
    assert_eq!(
        serde_json::to_value(&errors).unwrap(),
        json!([{
            "loc": ["body", "shutdown_timeout"], "msg": "must be at most 1200", "type": "less_than_equal", "ctx": { "le": 1200 },
            "input": 5000
        }])
    );
    let long = "x".repeat(1000);
    let errors = CvmPatch::from_json(&map(json!({ "encrypted_env": long }))).unwrap_err();
    assert_eq!(errors[0].input, None, "long texts are not repeated");
}

#[test]
fn huge_numbers_are_too_large_and_not_something_else() {
    for value in [json!(4_294_967_296_u64), json!(u64::MAX), json!(1e300)] {
        let gpus = json!({ "gpus": { "count": value } });
        assert_eq!(wrong(CvmPatch::from_json(&map(gpus)))[0].1, "less_than_equal", "{value}");
        // The bounds of a size are the server's to say.
        assert_eq!(patch(json!({ "vcpu": value })).vcpu, u32::MAX.into(), "{value}");
    }
}

#[test]
fn a_negative_size_is_told_the_least_one() {
    let errors =
        CvmPatch::from_json(&map(json!({ "vcpu": -1, "memory": -1.0, "disk_size": -5 }))).unwrap_err();
    let messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        ["vcpu: must be at least 1", "memory: must be at least 512", "disk_size: must be at least 1"]
    );
}

#[test]
fn names_of_one_field_say_the_same_or_are_refused_together() {
    let hash = "ab".repeat(32);
    for equal in [
        json!({ "image": "a", "os_image_name": "a" }),
        json!({ "image": "", "os_image_name": "a" }),
        json!({ "image": null, "os_image_name": "a" }),
    ] {
        assert_eq!(patch(equal.clone()).image, "a".to_owned().into(), "{equal}");
    }
    assert_eq!(
        patch(json!({ "allowed_envs": ["A", "B"], "env_keys": "A, B" })).allowed_envs,
        vec!["A".to_owned(), "B".to_owned()].into()
    );
    let same = json!({ "compose_hash": hash, "composeHash": format!("0x{}", hash.to_uppercase()) });
    assert!(PatchControl::from_json(&map(same)).unwrap().compose_hash.is_some());
    let told =
        |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    for (different, names) in [
        (json!({ "image": "a", "os_image_name": "b" }), ["`image`", "`os_image_name`"]),
        (json!({ "image": "a", "os_image_name": 5 }), ["`image`", "`os_image_name`"]),
        (json!({ "allowed_envs": ["A"], "env_keys": ["B"] }), ["`allowed_envs`", "`env_keys`"]),
        (json!({ "allowed_envs": [], "env_keys": "B" }), ["`allowed_envs`", "`env_keys`"]),
    ] {
        let message = told(CvmPatch::from_json(&map(different.clone())).unwrap_err());
        assert!(names.iter().all(|name| message.contains(name)), "{different}: {message}");
    }
    let provision = |more: Value| {
        let mut body = map(json!({ "name": "hello", "compose_file": {} }));
        body.extend(map(more));
        CvmProvision::from_json(&body)
    };
    assert_eq!(provision(json!({ "node_id": 3, "teepod_id": 3.0 })).unwrap().node_id, Some(3));
    assert_eq!(provision(json!({ "kms": "PHALA", "kms_type": "phala" })).unwrap().kms, Some(KmsType::Phala));
    for (different, names) in [
        (json!({ "node_id": 3, "teepod_id": 4 }), ["`teepod_id`", "`node_id`"]),
        (json!({ "kms": "base", "kms_type": "phala" }), ["`kms`", "`kms_type`"]),
    ] {
        let message = told(provision(different.clone()).unwrap_err());
        assert!(names.iter().all(|name| message.contains(name)), "{different}: {message}");
    }
}

#[test]
fn names_of_variables_can_come_in_one_text() {
    for text in ["A,B", " A , B ", "A,,B,"] {
        assert_eq!(patch(json!({ "env_keys": text })), patch(json!({ "env_keys": ["A", "B"] })), "{text}");
    }
    assert_eq!(patch(json!({ "env_keys": "" })), patch(json!({ "env_keys": [] })));
}

#[test]
fn gpus_are_counted_or_listed_by_slot() {
    let gpus = |value| CvmPatch::from_json(&map(json!({ "gpus": value }))).map(|patch| patch.gpus);
    assert_eq!(
        gpus(json!({ "count": 2.0, "product_name": "H100" })),
        Ok(GpuPatch::Count { count: 2, product_name: Some("H100".into()) }.into())
    );
    let slots = GpuPatch::Slots {
        gpus: vec![GpuSlot { slot: "0000:01:00.0".into(), product_id: None }],
        attach_mode: AttachMode::Listed,
    };
    assert_eq!(
        gpus(json!({ "gpus": [{ "slot": "0000:01:00.0" }], "attach_mode": "listed" })),
        Ok(slots.clone().into())
    );
    assert_eq!(gpus(serde_json::to_value(&slots).unwrap()), Ok(slots.into()));
    assert_eq!(
        gpus(json!({ "attach_mode": "all" })),
        Ok(GpuPatch::Slots { gpus: vec![], attach_mode: AttachMode::All }.into())
    );
    for (value, field) in [
        (json!({}), "gpus.count"),
        (json!({ "count": -1 }), "gpus.count"),
        (json!({ "gpus": 1 }), "gpus.gpus"),
        (json!({ "gpus": [1] }), "gpus.gpus"),
        (json!({ "gpus": [{ "slot": "a" }, {}] }), "gpus.gpus.1.slot"),
        (json!({ "gpus": [], "attach_mode": "some" }), "gpus.attach_mode"),
    ] {
        assert_eq!(wrong(gpus(value.clone()))[0].0, field, "{value}");
    }
}

#[test]
fn control_fields_come_in_two_spellings() {
    let hash = "ab".repeat(32);
    let read = |value| PatchControl::from_json(&map(value)).unwrap();
    let confirm =
        read(json!({ "compose_hash": format!("0x{hash}"), "transaction_hash": format!("0x{hash}") }));
    assert_eq!(confirm, read(json!({ "composeHash": hash, "transactionHash": hash })));
    assert_eq!(confirm.compose_hash, Some(hash.parse().unwrap()));
    assert_eq!(confirm.transaction_hash, Some(TxProof::Tx(hash.parse().unwrap())));
    assert!(
        read(json!({ "prepareOnly": true })).prepare_only && read(json!({ "prepare_only": 1 })).prepare_only
    );
    assert_eq!(read(json!({ "vcpu": 1 })), PatchControl::default());
    assert_eq!(wrong(PatchControl::from_json(&map(json!({ "compose_hash": "12" }))))[0].0, "compose_hash");
}

#[test]
fn a_proof_is_a_transaction_or_the_state_alone() {
    assert_eq!("already-registered".parse(), Ok(TxProof::StateOnly));
    assert_eq!("".parse(), Ok(TxProof::StateOnly));
    let tx: TxProof = "cd".repeat(32).parse().unwrap();
    assert_eq!(tx.to_string(), format!("0x{}", "cd".repeat(32)));
    assert!("0x12".parse::<TxProof>().is_err());
}

#[test]
fn provisioning_reads_every_spelling() {
    let app = "3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091";
    let read = CvmProvision::from_json(&map(json!({
        "name": "hello-tee", "compose_file": { "docker_compose_file": "x" }, "vcpu": 2.0, "memory": 2048, "node_id": 7,
        "kms_type": "BASE", "custom_app_id": format!("0x{app}"), "nonce": 3, "encrypted_env": "", "region": "",
        "storage_fs": "ext4", "secure_time": true, "instance_type": null, "listed": 0, "kms_contract_id": "kc_1"
    })))
    .unwrap();
    assert_eq!((read.vcpu, read.memory, read.node_id, read.nonce), (Some(2), Some(2048), Some(7), Some(3)));
    assert_eq!((read.kms, read.app_id), (Some(KmsType::Base), Some(app.parse().unwrap())));
    assert_eq!((read.encrypted_env, read.region, read.listed), (None, None, Some(false)));
    assert_eq!(read.kms_contract.as_deref(), Some("kc_1"));
    assert_eq!(
        read.compose_file.to_json(),
        r#"{"docker_compose_file":"x","storage_fs":"ext4","secure_time":true}"#
    );

    let found = wrong(CvmProvision::from_json(&map(json!({ "kms": "SOLANA", "node_id": 0 }))));
    let fields: Vec<_> = found.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["name", "compose_file", "node_id", "kms"]);
    assert_eq!(found[0].1, "missing");
}

#[test]
fn creating_takes_an_address_for_the_app_id() {
    let app = "3F1C0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091";
    let read = CvmCreate::from_json(&map(json!({
        "app_id": format!("0x{app}"), "compose_hash": "ab".repeat(32), "encrypted_env": null, "env_keys": null,
        "contract_address": format!("0x{app}"), "transaction_hash": ""
    })))
    .unwrap();
    assert_eq!(read.app_id.to_string(), app.to_lowercase());
    assert_eq!(read.contract_address, Some(read.app_id));
    assert_eq!(read.transaction_hash, Some(TxProof::StateOnly));
    assert_eq!(
        wrong(CvmCreate::from_json(&Map::new())),
        [("app_id".into(), "missing".into()), ("compose_hash".into(), "missing".into())]
    );
}

#[test]
fn a_document_is_provisioned_flat_or_nested() {
    let flat = ComposeProvision::from_json(&map(
        json!({ "docker_compose_file": "x", "update_env_vars": null, "odd": 1 }),
    ));
    let nested = ComposeProvision::from_json(&map(json!({
        "id": "my-app", "app_compose": { "docker_compose_file": "x", "odd": 1 }
    })));
    assert_eq!(flat, nested);
    assert_eq!(flat.unwrap().app_compose.to_json(), r#"{"docker_compose_file":"x","odd":1}"#);
    assert_eq!(wrong(ComposeProvision::from_json(&map(json!({ "app_compose": "x" }))))[0].0, "app_compose");
}

#[test]
fn a_commit_may_be_in_camel_case() {
    let hash = "ab".repeat(32);
    let snake =
        json!({ "compose_hash": hash, "env_keys": ["A"], "update_env_vars": true, "transaction_hash": "0x" });
    assert_eq!(wrong(ComposeCommit::from_json(&map(snake)))[0].0, "transaction_hash");
    let camel = ComposeCommit::from_json(&map(json!({
        "composeHash": hash, "envKeys": ["A"], "updateEnvVars": true, "on_failure": "hold"
    })))
    .unwrap();
    assert_eq!((camel.compose_hash, camel.update_env_vars), (hash.parse().unwrap(), Some(true)));
    assert_eq!(camel.options.on_failure, Some(OnFailure::Hold));
    let written = serde_json::to_value(&camel).unwrap();
    assert_eq!(ComposeCommit::from_json(&map(written)), Ok(camel));
}

#[test]
fn single_aspect_bodies_become_patches() {
    let body = map(json!({
        "vcpu": 4, "memory": null, "name": "renamed-not", "id": "x", "app_id": "y", "allow_restart": 1, "on_failure": "hold",
        "shutdown_timeout": 30, "allow_force_stop": true
    }));
    let resources: CvmPatch = ResourcesUpdate::from_json(&body).unwrap().into();
    assert_eq!(
        resources,
        patch(
            json!({ "vcpu": 4, "allow_restart": true, "on_failure": "hold", "shutdown_timeout": 30, "allow_force_stop": true })
        )
    );
    let visibility =
        VisibilityUpdate::from_json(&map(json!({ "public_logs": false, "public_tcbinfo": null }))).unwrap();
    assert_eq!(CvmPatch::from(visibility), patch(json!({ "public_logs": false })));
    for field in ["image", "os_image_name"] {
        let image = OsImageUpdate::from_json(&map(json!({ field: "dstack-0.5.5" }))).unwrap();
        assert_eq!(CvmPatch::from(image), patch(json!({ "image": "dstack-0.5.5" })));
    }
    let env = json!({ "encrypted_env": hex::encode(BLOB), "env_keys": ["A"], "force_restart": true });
    let envs = EnvsUpdate::from_json(&map(env.clone())).unwrap();
    assert_eq!(CvmPatch::from(envs), patch(env));
    let name = NameUpdate::from_json(&map(json!({ "name": "hello" }))).unwrap();
    assert_eq!(CvmPatch::from(name), patch(json!({ "name": "hello" })));
    let listed = ListedUpdate::from_json(&map(json!({ "listed": true }))).unwrap();
    assert_eq!(CvmPatch::from(listed), patch(json!({ "listed": true })));
}

#[test]
fn bodies_without_their_point_are_refused() {
    let none = Map::new();
    let missing = |found: Vec<(String, String)>| {
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, "missing");
        found[0].0.clone()
    };
    assert_eq!(missing(wrong(ResourcesUpdate::from_json(&none))), "vcpu");
    assert_eq!(missing(wrong(VisibilityUpdate::from_json(&none))), "listed");
    assert_eq!(missing(wrong(OsImageUpdate::from_json(&none))), "image");
    assert_eq!(missing(wrong(EnvsUpdate::from_json(&none))), "encrypted_env");
    assert_eq!(missing(wrong(CommitUpdate::from_json(&none))), "token");
    assert_eq!(missing(wrong(InstanceIdsRefresh::from_json(&none))), "ids");
    assert_eq!(missing(wrong(StatusBatch::from_json(&none))), "vm_uuids");
    assert_eq!(missing(wrong(TextUpdate::from_json(&none, "pre_launch_script"))), "pre_launch_script");
    assert_eq!(missing(wrong(Rollback::from_json(&none))), "revision");
    assert_eq!(InstanceIdLookup::from_json(&none), Ok(InstanceIdLookup::default()));
    assert_eq!(InstanceIdsLookup::from_json(&none), Ok(InstanceIdsLookup::default()));
    assert_eq!(Restart::from_json(&none), Ok(Restart { force: false }));
}

#[test]
fn an_empty_script_is_a_text_all_the_same() {
    let update =
        TextUpdate::from_json(&map(json!({ "pre_launch_script": "" })), "pre_launch_script").unwrap();
    assert_eq!(update.text, "");
}

#[test]
fn a_commit_token_can_come_with_empty_hashes() {
    let update =
        CommitUpdate::from_json(&map(json!({ "token": "ct_1", "compose_hash": "", "transaction_hash": "" })))
            .unwrap();
    assert_eq!((update.compose_hash, update.transaction_hash), (None, TxProof::StateOnly));
    assert!(!format!("{update:?}").contains("ct_1"));
}

#[test]
fn lists_have_limits() {
    let ids = |count: usize| InstanceIdsRefresh::from_json(&map(json!({ "ids": vec!["a"; count] })));
    assert!(ids(1).is_ok() && ids(500).is_ok());
    assert_eq!(wrong(ids(0))[0].1, "too_short");
    assert_eq!(wrong(ids(501))[0].1, "too_long");
    for limit in [0, 501] {
        assert_eq!(wrong(InstanceIdsLookup::from_json(&map(json!({ "limit": limit }))))[0].0, "limit");
    }
}
