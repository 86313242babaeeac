//! With `--json` a command says what the API says, and nothing else.

use serde_json::{Value, json};

use super::world::{World, compose, texts};

/// Some answers differ from one moment to the next.
fn without(mut value: Value, fields: &[&str]) -> Value {
    match &mut value {
        Value::Object(map) => {
            for field in fields {
                map.shift_remove(*field);
            }
            for inner in map.values_mut() {
                *inner = without(inner.take(), fields);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = without(item.take(), fields)),
        _ => {}
    }
    value
}

#[test]
fn what_is_read_is_printed_as_the_api_gives_it() {
    let world = World::start();
    world.file("app.yml", &compose("nginx:1"));
    world.ok("deploy -n web-1 -c app.yml -e A=1 --memory 2G");
    world.ok("cvms update web-1 --memory 4G");
    let cvm = world.json("cvms get web-1");
    let app = cvm["app_id"].as_str().unwrap();
    let op = world.json("ops list")["items"][0]["correlation_id"].as_str().unwrap().to_owned();
    for (command, path) in [
        ("whoami", "/auth/me".to_owned()),
        ("cvms list", "/cvms/paginated?page=1&page_size=50".to_owned()),
        ("cvms get web-1", "/cvms/web-1".to_owned()),
        ("cvms observed web-1", "/cvms/web-1/observed".to_owned()),
        ("cvms revisions web-1", "/cvms/web-1/revisions?limit=20".to_owned()),
        ("ops list", "/operations?limit=20".to_owned()),
        (&format!("ops show {op}"), format!("/operations/{op}")),
        ("apps list", "/apps?page=1&page_size=50".to_owned()),
        ("images", "/os-images?page=1&page_size=100".to_owned()),
        ("images list --cvm web-1", "/cvms/web-1/available-os-images".to_owned()),
        ("nodes list", "/nodes".to_owned()),
        ("kms list", "/kms".to_owned()),
        ("keys list", "/keys".to_owned()),
        ("audit", "/audit?limit=500".to_owned()),
    ] {
        // When a key was last used is written with each use.
        let volatile = ["last_used_at", "seen_at", "uptime"];
        let wire = without(world.wire("GET", &path, ""), &volatile);
        assert_eq!(without(world.json(command), &volatile), wire, "{command}");
    }
    let key = world.json(&format!("kms pubkey {app}"));
    let wire = world.wire("GET", &format!("/kms/phala/pubkey/{app}"), "");
    assert_eq!(key["public_key"], wire["public_key"]);
}

#[test]
fn what_is_changed_is_answered_as_the_api_answers() {
    let world = World::start();
    world.file("app.yml", &compose("nginx:1"));
    let created = world.json("deploy -n web-1 -c app.yml");
    assert_eq!((&created["kind"], &created["status"]), (&"create".into(), &"succeeded".into()));

    let body = json!({ "vcpu": 2 }).to_string();
    let wire = world.wire("PATCH", "/cvms/web-1?dry_run=true", &body);
    assert_eq!(world.json("cvms update web-1 --vcpu 2 --dry-run"), wire);

    let ended = world.json("cvms update web-1 --vcpu 2");
    let id = ended["correlation_id"].as_str().unwrap();
    assert_eq!(ended, world.wire("GET", &format!("/operations/{id}"), ""));
    assert_eq!(ended["status"], "succeeded");

    let accepted = world.json("cvms update web-1 --vcpu 3 --no-wait");
    let id = accepted["correlation_id"].as_str().unwrap();
    // The same request once more: by then there is nothing to do, or it is being done.
    let again = world.wire("PATCH", "/cvms/web-1", &json!({ "vcpu": 3 }).to_string());
    let volatile = ["correlation_id", "message"];
    assert_eq!(without(accepted.clone(), &volatile), without(again, &volatile));
    // Each line is a state.
    let states = world.ok(&format!("ops watch {id} --json"));
    let states: Vec<Value> = states.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(states.last().unwrap()["status"], "succeeded");
    assert!(states.iter().all(|state| state["correlation_id"] == id));
}

#[test]
fn an_update_that_fails_is_answered_with_its_operation() {
    let world = World::deployed();
    world.ok("nodes fault sim-1 boot-fail --once");
    let output = world.run("cvms update web-1 --vcpu 2 --json");
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(err.starts_with("error: the update of `web-1` failed: "), "{err}");
    let failed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(failed["status"], "failed");
    let id = failed["correlation_id"].as_str().unwrap();
    assert_eq!(failed, world.wire("GET", &format!("/operations/{id}"), ""));
}

#[test]
fn json_goes_to_standard_output_and_trouble_does_not() {
    let world = World::start();
    let output = world.run("cvms list --json");
    let (out, err) = texts(&output);
    assert_eq!(err, "");
    assert_eq!(out.lines().count(), 1, "one line without a terminal: {out}");
    let err = world.fails("cvms get nobody --json", 1);
    assert!(err.starts_with("error: there is no cvm `nobody`"), "{err}");
}
