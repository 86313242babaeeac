use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::error::codes;

fn doc(value: Value) -> ComposeDoc {
    ComposeDoc::from_value(value).unwrap()
}

fn with_yaml(yaml: &str) -> ComposeDoc {
    doc(json!({ "docker_compose_file": yaml }))
}

/// The vector of the API's description, with its empty script.
fn vector() -> ComposeDoc {
    doc(json!({
        "runner": "docker-compose", "name": "demo-app", "manifest_version": 2,
        "docker_compose_file": "services:\n  web:\n    image: nginx:alpine\n",
        "pre_launch_script": "", "allowed_envs": ["B", "A"], "kms_enabled": true, "gateway_enabled": true,
        "features": [], "public_logs": true, "docker_config": { "username": "u", "password": "" }
    }))
}

#[test]
fn the_text_is_the_one_that_clients_hash() {
    let normalised = vector().normalise();
    assert_eq!(
        normalised.text,
        r#"{
    "allowed_envs":[
        "B",
        "A"
    ],
    "docker_compose_file":"services:\n  web:\n    image: nginx:alpine\n",
    "docker_config":{
        "password":"",
        "username":"u"
    },
    "features":[],
    "gateway_enabled":true,
    "kms_enabled":true,
    "manifest_version":2,
    "name":"demo-app",
    "public_logs":true,
    "runner":"docker-compose"
}"#
    );
    assert_eq!(
        normalised.hash.to_string(),
        "aa8150fb698fa81201284b1e3bf1cc63fa2149ae6bc64f670489a3dfa694e682"
    );
    assert_eq!(normalised.altered, []);
}

/// What the official JavaScript client says: a selection that lies beside, or all 10,000 where a file with them is named.
#[test]
#[expect(clippy::disallowed_methods, reason = "says where the long list is")]
fn generated_documents_have_the_hash_of_the_javascript_client() {
    #[derive(serde::Deserialize)]
    struct Vector<'a> {
        #[serde(borrow)]
        doc: &'a serde_json::value::RawValue,
        hash: String,
    }
    let all = std::env::var("CASEMATE_COMPOSE_HASH_VECTORS");
    let (vectors, least) = match &all {
        Ok(file) => (std::fs::read_to_string(file).unwrap(), 10_000),
        Err(_) => (include_str!("../../tests/compose-hash-vectors.jsonl").to_owned(), 300),
    };
    let mut seen = 0;
    for line in vectors.lines() {
        let vector: Vector<'_> = serde_json::from_str(line).unwrap();
        let hash = ComposeDoc::parse(vector.doc.get()).unwrap().normalise().hash;
        assert_eq!(hash.to_string(), vector.hash, "{}", vector.doc);
        seen += 1;
    }
    assert!(seen >= least, "{seen} documents");
}

#[test]
fn altered_names_every_line_whose_text_is_not_what_was_written() {
    let compose = "services:\n  web:\n    image: nginx\n    labels: {\"a\": \"b\", \"c\": 1}\n    command: {\"d\": 2}\n";
    let doc = doc(json!({
        "docker_compose_file": compose,
        "name": ": odd",
        "list": ["fine", { "deep": "x\": " }],
        "key\": ": "a key is not a value",
    }));
    let normalised = doc.normalise();
    let altered: Vec<_> = normalised.altered.iter().map(|a| (a.field.as_str(), a.line)).collect();
    assert_eq!(
        altered,
        [("docker_compose_file", 4), ("docker_compose_file", 5), ("list[1].deep", 1), ("name", 1)]
    );
    assert!(normalised.text.contains(r#"labels: {\"a\":\"b\", \"c\":1}"#));
    assert!(normalised.altered[0].to_string().starts_with("docker_compose_file, line 4: "));
    assert_eq!(doc.docker_compose_file(), Some(compose));
}

#[test]
fn keys_numbers_and_strings_are_written_as_javascript_does() {
    for (written, text) in [
        (r#"{"10":1,"9":2,"01":3,"-1":4}"#, r#"{"9":2,"10":1,"-1":4,"01":3}"#),
        (r#"{"4294967295":1,"4294967294":2}"#, r#"{"4294967294":2,"4294967295":1}"#),
        // By UTF-16, the emoji's surrogates come before U+FFEE.
        (r#"{"￮":1,"😀":2}"#, r#"{"😀":2,"￮":1}"#),
        (r#"{"n":9007199254740993}"#, r#"{"n":9007199254740992}"#),
        (r#"{"n":12345678901234567890}"#, r#"{"n":12345678901234567000}"#),
        (r#"{"n":-0}"#, r#"{"n":0}"#),
        (r#"{"n":1e21}"#, r#"{"n":1e+21}"#),
        (r#"{"n":0.000001}"#, r#"{"n":0.000001}"#),
        (r#"{"n":0.0000001}"#, r#"{"n":1e-7}"#),
        (r#"{"n":123456789012345680000}"#, r#"{"n":123456789012345680000}"#),
        // Halfway between two spellings of 16 digits: the even one.
        (r#"{"n":714794151796175.25}"#, r#"{"n":714794151796175.2}"#),
        (r#"{"s":"\u0001\u2028é/\u007f"}"#, "{\"s\":\"\\u0001\u{2028}é/\u{7f}\"}"),
        (r#"{"e":{},"l":[]}"#, r#"{"e":{},"l":[]}"#),
    ] {
        let normalised = ComposeDoc::parse(written).unwrap().normalise().text;
        let one_line = normalised.replace("\n    ", "").replace('\n', "");
        assert_eq!(one_line, text, "{written}");
    }
}

#[test]
fn the_runner_decides_which_script_is_hashed() {
    let both =
        |runner: &str| doc(json!({ "runner": runner, "docker_compose_file": "a", "bash_script": "b" }));
    let text = |runner| both(runner).normalise().text;
    assert!(!text("bash").contains("docker_compose_file") && text("bash").contains("bash_script"));
    assert!(
        text("docker-compose").contains("docker_compose_file")
            && !text("docker-compose").contains("bash_script")
    );
    assert!(text("other").contains("docker_compose_file") && text("other").contains("bash_script"));
}

#[test]
fn defaults_are_written_out_and_nulls_are_not() {
    let doc = doc(json!({
        "docker_compose_file": "x", "tproxy_enabled": false, "name": "", "salt": null, "storage_fs": null, "mine": 1
    }))
    .with_defaults("web-1");
    let expected = json!({
        "docker_compose_file": "x", "name": "web-1", "mine": 1, "gateway_enabled": false, "manifest_version": 2,
        "runner": "docker-compose", "kms_enabled": true, "public_logs": true, "public_sysinfo": true,
        "public_tcbinfo": true, "secure_time": false, "allowed_envs": [], "features": ["kms", "tproxy-net"],
        "storage_fs": "zfs"
    });
    assert_eq!(Value::Object(doc.clone().into_map()), expected);
    assert_eq!(doc.clone().with_defaults("other"), doc, "what is there stays");
}

#[test]
fn flags_have_defaults_and_the_gateway_has_two_names() {
    let empty = ComposeDoc::default();
    for flag in Flag::ALL {
        assert_eq!(empty.flag(flag), flag.default_value(), "{flag:?}");
    }
    let old = doc(json!({ "tproxy_enabled": false }));
    assert!(!old.flag(Flag::GatewayEnabled));
    let mut both = old;
    both.set_flag(Flag::GatewayEnabled, true);
    assert_eq!(both.to_json(), r#"{"gateway_enabled":true}"#);
}

#[test]
fn setters_keep_the_order_of_the_fields() {
    let mut doc =
        ComposeDoc::parse(r#"{"z":1,"docker_compose_file":"a","pre_launch_script":"b","a":2}"#).unwrap();
    doc.set_docker_compose_file("c");
    doc.set_pre_launch_script("");
    doc.set_allowed_envs(["K"]);
    assert_eq!(doc.to_json(), r#"{"z":1,"docker_compose_file":"c","a":2,"allowed_envs":["K"]}"#);
    assert_eq!(doc.pre_launch_script(), None);
    assert_eq!(doc.allowed_envs(), ["K"]);
}

#[test]
fn a_usable_file_has_services_with_images() {
    let doc = with_yaml(
        "x-base: &base\n  restart: always\n  image: busybox\nservices:\n  web:\n    image: ${IMAGE:-nginx}\n    ports: [\"80:80\"]\n  \
         job:\n    <<: *base\n  own:\n    build: .\n",
    );
    doc.check().unwrap();
    let services: Vec<_> = doc.services().into_iter().map(|s| (s.name, s.image)).collect();
    let image = |text: &str| Some(text.to_owned());
    assert_eq!(
        services,
        [("web".into(), image("${IMAGE:-nginx}")), ("job".into(), image("busybox")), ("own".into(), None)]
    );
}

#[test]
fn an_unusable_file_is_refused_with_the_place() {
    for (yaml, says) in [
        ("services:\n  web:\n    image: nginx\n   bad: x\n", "line 4, column 4"),
        (
            "services:\n  web:\n    ports: [80]\n",
            "service `web` of `docker_compose_file` needs an `image` or a `build` (line 3, column 5)",
        ),
        ("services:\n  web: hello\n", "expected a mapping at line 2"),
        ("services:\n  web:\n", "expected a mapping at line 2"),
        ("services: [a]\n", "expected a mapping of services at line 1"),
        ("services: {}\n", "at least one service (line 1, column 11)"),
        ("services:\n  web:\n    image: ''\n", "has an empty `image`"),
        ("services:\n  a b:\n    image: x\n", "must have a name"),
        ("services:\n  web:\n    image: a\n  web:\n    image: b\n", "`web` is not allowed here at line 4"),
        ("services:\n  web:\n    <<: *gone\n", "unknown value at line 3"),
        ("services:\n  a:\n    image: x\n---\nservices: {}\n", "only single YAML document"),
        ("version: '3'\n", "must have `services`"),
        ("nonsense", "expected a mapping"),
    ] {
        let error = with_yaml(yaml).check().unwrap_err();
        assert_eq!(
            (error.field.as_str(), error.code),
            ("docker_compose_file", Some(codes::INVALID_COMPOSE_FILE))
        );
        assert!(error.message.contains(says), "{yaml:?}: {}", error.message);
        assert_eq!(with_yaml(yaml).services(), []);
    }
    for nothing in [ComposeDoc::default(), with_yaml(""), with_yaml(" \n")] {
        assert_eq!(nothing.check().unwrap_err().code, Some(codes::COMPOSE_FILE_REQUIRED));
    }
}

#[test]
fn bombs_are_refused_quickly() {
    let tail = "services:\n  web:\n    image: x\n";
    let mut aliases = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..10 {
        let item = format!("*a{}", level - 1);
        aliases += &format!("a{level}: &a{level} [{}]\n", [item.as_str(); 10].join(","));
    }
    let flow = format!("deep: {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
    let block: String = (0..200).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    let many = format!("x: [{}]\n", "a,".repeat(101_000));
    for bomb in [aliases, flow, block, many] {
        let error = with_yaml(&format!("{bomb}{tail}")).check().unwrap_err();
        assert_eq!(error.code, Some(codes::INVALID_COMPOSE_FILE));
        assert!(error.message.len() < 500, "{}", error.message);
    }
}

#[test]
fn the_size_limit_counts_bytes_of_both_texts() {
    let yaml = "services:\n  web:\n    image: x\n# ";
    let fill = |total: usize| format!("{yaml}{}", "é".repeat((total - yaml.len()) / 2));
    let mut doc = with_yaml(&fill(MAX_COMPOSE_BYTES - 100));
    doc.set_pre_launch_script(&"x".repeat(100));
    doc.check().unwrap();
    doc.set_pre_launch_script(&"x".repeat(102));
    let error = doc.check().unwrap_err();
    assert!(error.message.contains("204800"), "{}", error.message);
    assert_eq!(error.field, "docker_compose_file", "the longer one");
    let mut doc = with_yaml(yaml);
    doc.set_pre_launch_script(&"x".repeat(MAX_COMPOSE_BYTES));
    let error = doc.check().unwrap_err();
    assert_eq!(error.field, "pre_launch_script");
    assert!(error.message.starts_with("`pre_launch_script` has "), "{}", error.message);
}

#[test]
fn wrong_types_are_named() {
    for (key, value) in [
        ("name", json!(5)),
        ("docker_compose_file", json!({})),
        ("pre_launch_script", json!(["x"])),
        ("public_logs", json!("yes")),
        ("tproxy_enabled", json!(1)),
        ("allowed_envs", json!("A")),
        ("allowed_envs", json!(["A", 1])),
        ("allowed_envs", json!(["A=B"])),
        ("features", json!({})),
        ("storage_fs", json!("btrfs")),
        ("manifest_version", json!(1.5)),
        ("manifest_version", json!("2")),
        ("manifest_version", json!(-1)),
        ("salt", json!(5)),
        ("env_pubkey", json!(5)),
        ("init_script", json!([])),
        ("tproxy_enabled", json!("x")),
        ("default_gateway_domain", json!(5)),
        ("docker_config", json!("x")),
        ("docker_config", json!({ "username": "u", "password": 5 })),
        ("docker_config", json!({ "username": null })),
        ("docker_config", json!({ "registry": 5 })),
        ("runner", json!("podman")),
        ("constructor", json!(1)),
        ("__proto__", json!({})),
    ] {
        let mut doc = with_yaml("services:\n  web:\n    image: x\n");
        doc.set(key, value);
        let error = doc.check().unwrap_err();
        assert_eq!(error.field, key);
        assert!(error.message.contains(&format!("`{key}`")), "a sentence by itself: {}", error.message);
        // What is wrong is not lost on the way to a new CVM.
        assert_eq!(doc.with_defaults("demo").check().unwrap_err().field, key);
    }
    for (key, value) in [
        ("salt", json!("5")),
        ("salt", json!(null)),
        ("docker_config", json!({ "username": "u", "password": "", "registry": null })),
        ("key_provider", json!(5)),
    ] {
        let mut doc = with_yaml("services:\n  web:\n    image: x\n");
        doc.set(key, value);
        doc.check().unwrap();
    }
    let bash = doc(json!({ "runner": "bash" }));
    assert_eq!(bash.check().unwrap_err().field, "bash_script");
    doc(json!({ "runner": "bash", "bash_script": "echo" })).check().unwrap();
}

#[test]
fn only_shallow_objects_are_documents() {
    assert!(ComposeDoc::parse("[]").unwrap_err().message.contains("a list"));
    assert!(ComposeDoc::parse("{").unwrap_err().message.contains("line 1"));
    let deep = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    ComposeDoc::parse(&deep(MAX_DEPTH)).unwrap();
    assert!(ComposeDoc::parse(&deep(MAX_DEPTH + 1)).is_err());
    assert!(ComposeDoc::parse(&deep(5000)).is_err());
}

#[test]
fn debug_shows_no_values() {
    let debug = format!("{:?}", vector());
    assert!(debug.contains("docker_config") && !debug.contains("nginx"), "{debug}");
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        "[\": a-c\n\\\\]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec(("[0-9a-c_]{0,4}", inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn any_doc() -> impl Strategy<Value = ComposeDoc> {
    proptest::collection::vec(("[a-z_0-9]{0,5}", any_value()), 0..6)
        .prop_map(|entries| ComposeDoc::from_map(entries.into_iter().collect()).unwrap())
}

proptest! {
    #[test]
    fn the_text_does_not_depend_on_the_order_of_the_fields(doc in any_doc()) {
        let reversed: Map<String, Value> = doc.as_map().clone().into_iter().rev().collect();
        prop_assert_eq!(ComposeDoc::from_map(reversed).unwrap().normalise(), doc.normalise());
    }

    #[test]
    fn the_text_is_json_and_normal_unless_a_value_was_altered(doc in any_doc()) {
        let normalised = doc.normalise();
        let again = ComposeDoc::parse(&normalised.text).unwrap();
        if normalised.altered.is_empty() {
            prop_assert_eq!(again.normalise().text, normalised.text);
        }
    }

    #[test]
    fn altered_is_empty_only_if_every_string_comes_back(text in "[\": a-c\n]{0,20}") {
        let doc = ComposeDoc::from_value(json!({ "s": text })).unwrap();
        let normalised = doc.normalise();
        let back: Value = serde_json::from_str(&normalised.text).unwrap();
        prop_assert_eq!(back["s"] == doc.as_map()["s"], normalised.altered.is_empty());
    }
}
