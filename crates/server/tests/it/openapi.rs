//! The OpenAPI document: what is in it, and that it says what the server does.

use std::collections::BTreeSet;

use axum::http::Method;
use casemate_server::http::openapi;
use casemate_testkit::World;
use serde_json::Value;

use crate::client::Client;

const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

fn document() -> Value {
    serde_json::to_value(openapi::build()).expect("JSON")
}

fn operations(document: &Value) -> Vec<(String, Method, Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in METHODS {
            if let Some(operation) = item.get(method) {
                let method = method.to_uppercase().parse().expect("a method");
                all.push((path.clone(), method, operation.clone()));
            }
        }
    }
    all
}

#[test]
fn the_document_is_reviewed() {
    let text = serde_json::to_string_pretty(&document()).expect("JSON");
    insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("openapi", text);
    });
}

#[test]
fn every_reference_leads_somewhere_and_every_operation_is_described() {
    let document = document();
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    found.insert(target.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for target in &found {
        let pointer = target.strip_prefix('#').expect("all is in one document");
        assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
    }
    let tags: Vec<_> =
        document["tags"].as_array().expect("tags").iter().map(|tag| tag["name"].clone()).collect();
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let what = format!("{method} {path}");
        assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{what} has no summary");
        assert!(ids.insert(operation["operationId"].to_string()), "{what} has an id that another one has");
        assert!(tags.contains(&operation["tags"][0]), "{what} has no known tag");
        let responses = operation["responses"].as_object().expect("responses");
        assert!(responses.keys().any(|status| status.starts_with('2')), "{what} never succeeds");
        for status in ["401", "404", "422"] {
            assert!(responses.contains_key(status), "{what} lacks {status}");
        }
        let parameters = operation["parameters"].as_array().expect("parameters").iter().map(|parameter| {
            match parameter["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
                Some(pointer) => document.pointer(pointer).expect("checked above"),
                None => parameter,
            }
        });
        let in_path: BTreeSet<_> = parameters
            .filter(|own| own["in"] == "path")
            .map(|own| own["name"].as_str().expect("a name").to_owned())
            .collect();
        let named: BTreeSet<_> = path.split(['{', '}']).skip(1).step_by(2).map(str::to_owned).collect();
        assert_eq!(in_path, named, "parameters in the path of {what}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_operation_of_the_document_is_answered_by_a_route_that_wants_a_key() {
    let world = World::start().await;
    let nobody = Client::of(&world).await.nobody();
    for (path, method, operation) in operations(&document()) {
        let what = format!("{method} {path}");
        let filled = path.replace("{id}", "demo-app").replace(['{', '}'], "");
        let answer = nobody.call(method, &filled, None).await;
        // A commit token is its own permission.
        let is_public = operation["security"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one == &serde_json::json!({})));
        if is_public {
            assert!(![404, 405, 200].contains(&answer.status.as_u16()), "{what}: {}", answer.text());
        } else {
            assert_eq!(answer.status, 401, "{what}: {}", answer.text());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_document_and_its_page_are_served_and_the_page_asks_nobody_else() {
    let world = World::start().await;
    let nobody = Client::of(&world).await.nobody();
    let served = nobody.get("/api/v1/openapi.json").await;
    assert_eq!(served.json(), document());
    assert_eq!(nobody.root("/openapi.json").await.json(), document());
    let page = nobody.root("/docs").await;
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let text = page.text();
    for elsewhere in ["http://", "https://", "src=\"", "@import", "url("] {
        assert!(!text.contains(elsewhere), "the page refers to {elsewhere}");
    }
    assert!(
        page.headers["content-security-policy"]
            .to_str()
            .is_ok_and(|policy| policy.starts_with("default-src 'none'"))
    );
    assert_eq!(nobody.root("/healthz").await.text(), "ok\n");
    assert_eq!(nobody.root("/readyz").await.text(), "ready\n");
}
