//! Streams: watched states, followed operations, followed logs.

use std::time::Duration;

use axum::http::Method;
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::workflow::power;
use casemate_testkit::World;
use casemate_types::patch::{CvmPatch, Sparse};
use casemate_types::version::ApiVersion;
use futures_util::future::join;
use http_body_util::BodyExt;

use crate::client::Client;

fn memory(mb: u32) -> CvmPatch {
    CvmPatch { memory: Sparse::Value(mb), ..CvmPatch::default() }
}

#[tokio::test(start_paused = true)]
async fn a_watched_cvm_shows_its_last_state_before_it_is_complete() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.create("demo-app", "web:1").await;
    let path = format!("/cvms/{}/state?target=running&interval=5&timeout=600", cvm.uid);
    let (answer, ()) = join(client.get(&path), world.settle()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-cache");
    let events = answer.events();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.first(), Some(&"state"));
    assert_eq!(names[names.len() - 2..], ["state", "complete"]);
    assert_eq!(events[0].1["status"], "creating");
    assert_eq!(events[events.len() - 2].1["status"], "running");
    let (_, complete) = &events[events.len() - 1];
    assert_eq!((&complete["status"], &complete["target"]), (&"running".into(), &"running".into()));
    assert!(complete["elapsed"].as_f64().is_some_and(|elapsed| elapsed > 0.0), "{complete}");
}

#[tokio::test(start_paused = true)]
async fn a_status_that_never_comes_is_a_timeout_and_silence_is_filled_with_pings() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    let before = world.clock.now();
    let answer = client.get(&format!("/cvms/{}/state?target=stopped&interval=30&timeout=60", cvm.uid)).await;
    assert_eq!(world.clock.now().duration_since(before).as_secs(), 60);
    let events = answer.events();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["state", "state", "state", "timeout"]);
    assert_eq!(events[3].1["elapsed"], 60.0);
    assert_eq!(events[3].1["target"], "stopped");
    assert!(answer.text().contains(": ping\n"), "{}", answer.text());
}

#[tokio::test(start_paused = true)]
async fn a_watcher_hears_that_the_cvm_is_gone() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    let deletes = async {
        power::delete(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
        world.settle().await;
    };
    let path = format!("/cvms/{}/state?target=stopped", cvm.uid);
    let (answer, ()) = join(client.get(&path), deletes).await;
    let events = answer.events();
    let last = events.last().expect("events");
    assert_eq!(last.0, "error");
    assert!(last.1["error"].as_str().is_some_and(|text| text.contains("gone")));
    assert!(events.iter().any(|(_, data)| data["status"] == "deleting"));
}

#[tokio::test(start_paused = true)]
async fn without_a_target_the_state_is_json_or_one_event() {
    let world = World::start().await;
    let client = Client::of(&world).await.version(ApiVersion::V20251028);
    let cvm = world.deploy("demo-app", "web:1").await;
    let path = format!("/cvms/{}/state", cvm.uid);
    let state = client.json(&path).await;
    assert_eq!(state["status"], "running");
    assert_eq!(state["boot_progress"], "done");
    let answer =
        client.header("accept", "text/event-stream").get(&format!("{path}?interval=5&timeout=60")).await;
    let names: Vec<_> = answer.events().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["state", "complete"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_has_bounds_and_a_user_five_of_them() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    for query in ["interval=4", "interval=31", "timeout=9", "timeout=601", "timeout=soon"] {
        let answer = client.get(&format!("/cvms/{}/state?target=stopped&{query}", cvm.uid)).await;
        assert_eq!(answer.status, 422, "{query}");
        assert_eq!(answer.json()["detail"][0]["loc"][0], "query");
    }
    let path = format!("/cvms/{}/state?target=stopped", cvm.uid);
    let mut open = Vec::new();
    for _ in 0..5 {
        let response = client.send(Method::GET, &path, None).await;
        assert_eq!(response.status(), 200);
        open.push(response);
    }
    let refused = client.get(&path).await;
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains_key("retry-after"));
    let other = Client::stranger(&world).await.get(&path).await;
    assert_eq!(other.status, 404);
    open.pop();
    assert_eq!(client.send(Method::GET, &path, None).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_followed_operation_is_resumed_without_a_gap() {
    let world = World::start().await;
    let client = Client::of(&world).await.header("accept", "text/event-stream");
    let cvm = world.deploy("demo-app", "web:1").await;
    let op = world.accept_update(&cvm, memory(4096)).await;
    let path = format!("/operations/{op}");
    let (answer, ()) = join(client.get(&path), world.settle()).await;
    let events = answer.events();
    let kinds: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(kinds.first(), Some(&"operation.accepted"));
    assert_eq!(kinds.last(), Some(&"operation.succeeded"));
    assert!(kinds.contains(&"step.finished"));
    assert_eq!(events.last().expect("events").1["operation"]["status"], "succeeded");
    let all: Vec<_> =
        events.iter().map(|(_, data)| data["event"]["seq"].as_u64().expect("a number")).collect();
    assert!(all.is_sorted());
    for (index, seq) in all.iter().enumerate() {
        let rest = client.header("last-event-id", seq.to_string()).get(&path).await;
        let rest: Vec<_> =
            rest.events().iter().map(|(_, data)| data["event"]["seq"].as_u64().expect("a number")).collect();
        assert_eq!(rest, all[index + 1..]);
    }
    assert_eq!(client.header("last-event-id", "first").get(&path).await.status, 422);
}

#[tokio::test(start_paused = true)]
async fn a_followed_log_ends_with_the_machine() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    let detail = client.version(ApiVersion::V20251028).json(&format!("/cvms/{}", cvm.uid)).await;
    let url = detail["syslog_endpoint"].as_str().expect("an address").to_owned();
    let path = url.strip_prefix(&world.app.config.public_url).expect("an address of ours");
    let nobody = client.nobody();
    let log = nobody.get(&format!("{path}&ch=serial")).await.text();
    assert!(log.contains("done: revision 1 is up"), "{log}");
    let ends = async {
        world.accept_update(&cvm, memory(4096)).await;
        world.settle().await;
        world.clock.sleep(Duration::from_secs(2)).await;
        power::delete(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
        world.settle().await;
    };
    let (followed, ()) = join(nobody.get(&format!("{path}&ch=serial&follow")), ends).await;
    let followed = followed.text();
    assert!(followed.starts_with(&log), "{followed}");
    assert_eq!(followed.matches("done: revision 1 is up").count(), 1);
    assert_eq!(followed.matches("done: revision 2 is up").count(), 1);
    assert_eq!(nobody.get(&format!("{path}&ch=serial")).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_is_a_503() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    assert_eq!(client.get(&format!("/cvms/{}/observed", cvm.uid)).await.status, 200);
    world.sim.plan(Planned { fault: Fault::Unreachable, once: false, vm: None }).expect("planned");
    let answer = client.get(&format!("/cvms/{}/observed", cvm.uid)).await;
    assert_eq!(answer.status, 503);
    assert!(answer.json()["detail"].is_string());
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_waits_for_its_node_is_listed_as_stuck_as_long_as_it_does() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    world.sim.plan(Planned { fault: Fault::Unreachable, once: false, vm: None }).expect("planned");
    let op = world.accept_update(&cvm, memory(4096)).await;
    let looks = async {
        world.clock.sleep(Duration::from_secs(120)).await;
        client.json("/operations?stuck=true").await
    };
    let (stuck, ()) = join(looks, world.settle()).await;
    assert_eq!(stuck["items"][0]["correlation_id"], op.to_string());
    assert!(stuck["items"][0]["waiting_for"].is_string(), "{stuck:#}");
    let failed = client.json(&format!("/operations/{op}")).await;
    assert_eq!((&failed["status"], &failed["reason"]["code"]), (&"failed".into(), &"unreachable".into()));
    assert_eq!(client.json("/operations?stuck=true").await["items"], serde_json::json!([]));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_any_more_is_counted_no_longer() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("demo-app", "web:1").await;
    let path = format!("/cvms/{}/state?target=stopped", cvm.uid);
    for _ in 0..20 {
        let mut body = client.send(Method::GET, &path, None).await.into_body();
        assert!(body.frame().await.is_some());
    }
}
