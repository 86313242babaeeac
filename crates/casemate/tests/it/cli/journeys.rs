//! What people do, from the first command to the last.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::world::{World, compose, texts};

#[test]
fn an_app_is_deployed_changed_rolled_back_and_deleted() {
    let world = World::start();
    world.file("app.yml", &compose("nginx:1"));
    world.file("app.env", "B=2\n# note\nexport C='3'\n");

    // The first time it is made …
    let told = world.ok("deploy -n web-1 -c app.yml -e A=1 -e app.env --memory 2G --vcpu 1");
    assert_eq!(told, "web-1 is up.\n");
    let seen = world.json("cvms observed web-1");
    assert_eq!(seen["env_keys"], json!(["A", "B", "C"]));
    assert_eq!((&seen["boot_count"], &seen["memory_mb"]), (&1.into(), &2048.into()));
    // … then it is left alone …
    let told = world.ok("deploy -n web-1 -c app.yml --memory 2G");
    assert!(told.contains("nothing changed"), "{told}");
    // … with nothing to say about it, nothing is sent …
    let count = || world.json("ops list")["items"].as_array().unwrap().len();
    let before = count();
    let told = world.ok("deploy -n web-1");
    assert!(told.contains("nothing changed"), "{told}");
    assert_eq!(count(), before);
    assert_eq!(world.json("deploy -n web-1")["name"], "web-1");
    // … or changed.
    world.file("app.yml", &compose("nginx:2"));
    let told = world.ok("deploy -n web-1 -c app.yml --memory 4G --listed --public-logs=false");
    assert!(told.starts_with("web-1 is updated."), "{told}");
    let seen = world.json("cvms observed web-1");
    assert_eq!((&seen["boot_count"], &seen["memory_mb"]), (&2.into(), &4096.into()));
    assert_eq!(seen["public_logs"], false);

    let listed = world.ok("cvms list --node sim-1");
    assert!(listed.contains("web-1  running"), "{listed}");
    let early = world.ok("--json cvms list --node 1");
    assert!(early.starts_with('{') && early.contains("web-1"), "{early}");
    let shown = world.ok("cvms get web-1");
    assert!(shown.contains("listed        yes"), "{shown}");
    assert!(world.ok("cvms logs web-1 --tail 3").contains("nginx:2"));

    let changed = world.ok("cvms diff web-1");
    assert!(changed.contains("memory") && changed.contains("2 GB → 4 GB"), "{changed}");
    world.file("app.yml", &compose("nginx:3"));
    assert_eq!(
        world.ok("cvms diff web-1 -c app.yml"),
        "  services:\n    web:\n-     image: nginx:2\n+     image: nginx:3\n"
    );

    let plan = world.ok("cvms rollback web-1 1 --dry-run");
    assert!(plan.starts_with("web-1 would restart once with:\n"), "{plan}");
    let early = world.fails("cvms rollback web-1 1 --shutdown-timeout 5", 2);
    assert!(early.contains("--shutdown-timeout") && early.contains("10 to 1200"), "{early}");
    let told = world.ok("cvms rollback web-1 1 --shutdown-timeout 30 --allow-force-stop");
    assert!(told.starts_with("web-1 is back at revision 1."), "{told}");
    assert_eq!(world.json("cvms observed web-1")["memory_mb"], 2048);
    let revisions = world.ok("cvms revisions web-1");
    assert!(revisions.contains("current, as revision 1"), "{revisions}");

    assert_eq!(world.ok("cvms stop web-1"), "web-1 is off.\n");
    let err = world.fails("cvms logs web-1", 1);
    assert_eq!(
        err,
        "error: web-1 is stopped, so it has no containers with a log\n\nhint: `casemate cvms logs web-1 --channel serial` \
         shows the machine's own log\nhint: `casemate cvms start web-1` switches it on\n"
    );
    assert!(!world.ok("cvms logs web-1 --channel serial").is_empty());
    assert_eq!(world.ok("cvms start web-1"), "web-1 is up.\n");
    assert_eq!(world.ok("cvms restart web-1 --force").lines().count(), 1);
    let told = world.ok("cvms refresh-instance-id web-1 --yes");
    assert!(told.starts_with("web-1 is instance "), "{told}");
    assert_eq!(world.ok("cvms delete web-1 --yes"), "web-1 is deleted.\n");
    assert_eq!(world.ok("cvms list"), "");
    let trail = world.ok("audit");
    assert!(trail.contains("operation.accepted") && trail.contains("step.finished (stop)"), "{trail}");
}

#[test]
fn steps_are_told_as_they_end_and_nothing_of_it_is_the_result() {
    let world = World::start();
    world.file("compose.yaml", &compose("nginx:1"));
    let output = world.run("deploy -n web-1");
    let (out, err) = texts(&output);
    assert_eq!(out, "web-1 is up.\n");
    let words: Vec<_> = err.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(words, ["Creating", "stage", "apply", "start", "observe"]);
    assert!(!err.contains('\u{1b}'), "colours without a terminal: {err:?}");
    let (out, err) = texts(&world.run("cvms update web-1 --vcpu 2 --quiet"));
    assert!(out.starts_with("web-1 is updated."));
    assert_eq!(err, "");
}

#[test]
fn a_failing_update_is_put_back_and_explained() {
    let world = World::start();
    world.file("app.yml", &compose("nginx:1"));
    world.ok("deploy -n web-1 -c app.yml --memory 2G");
    world.ok("nodes fault sim-1 boot-fail --once");
    let nodes = world.ok("nodes list");
    assert!(nodes.contains("boot-fail (once)"), "{nodes}");

    let told = world.fails("cvms update web-1 --memory 4G", 1);
    for part in [
        "observe  failed after",
        "Putting the old configuration back",
        "in all",
        "error: the update of `web-1` failed",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(told.contains("the old configuration was put back"), "{told}");
    assert_eq!(world.json("cvms observed web-1")["memory_mb"], 2048);
    let shown = world.ok("cvms get web-1");
    assert!(shown.contains("last failure  update "), "{shown}");

    let failed = world.json("ops list --status failed");
    let id = failed["items"][0]["correlation_id"].as_str().unwrap().to_owned();
    assert!(told.contains(&format!("`casemate ops show {id}`")), "{told}");
    assert!(world.ok(&format!("ops show {id}")).contains("put back by"));
    world.fails(&format!("ops watch {id}"), 1);
    let booted = "`casemate cvms logs web-1 --channel serial` shows how it booted";
    assert!(told.contains(booted), "{told}");

    // One that is refused before anything is touched has booted nothing.
    world.ok("nodes fault sim-1 refuse --once");
    let told = world.fails("cvms update web-1 --memory 4G", 1);
    assert!(told.contains("casemate ops show") && !told.contains("--channel serial"), "{told}");

    world.ok("nodes fault sim-1 lie");
    world.ok("nodes fault sim-1 --clear");
    world.ok("cvms update web-1 --memory 4G");
}

#[test]
fn a_busy_cvm_says_how_to_follow_what_is_at_work() {
    let world = World::deployed();
    world.ok("nodes fault sim-1 unreachable");
    let accepted = world.json("cvms update web-1 --vcpu 2 --no-wait");
    let id = accepted["correlation_id"].as_str().unwrap();
    assert_eq!(accepted["status"], "in_progress");
    let told = world.fails("cvms update web-1 --vcpu 3", 1);
    let expected = format!(
        "error: cvm `web-1` already has an update running\n\nhint: follow it with `casemate ops watch {id}`\n"
    );
    assert_eq!(told, expected);
    world.ok("nodes fault sim-1 --clear");
    let told = world.ok(&format!("ops watch {id}"));
    assert!(told.starts_with("Done. It was down for "), "{told}");
    assert_eq!(world.json("cvms observed web-1")["vcpu"], 2);
}

#[test]
fn everything_can_be_changed_in_one_command_with_one_restart() {
    let world = World::start();
    world.file("app.yml", &compose("nginx:1"));
    world.ok("deploy -n web-1 -c app.yml --image dstack-0.5.4 --memory 2G");
    let before = world.json("cvms observed web-1");
    world.file("app.yml", &compose("nginx:2"));
    world.file("script.sh", "#!/bin/sh\necho hello\n");
    world.file("user.json", "{}");
    let told = world.ok(
        "cvms update web-1 -c app.yml --pre-launch-script script.sh -e A=1 -e B=2 --user-config user.json --vcpu 2 \
         --memory 4G --disk 30G --image dstack-0.5.5 --listed --public-logs=false --public-sysinfo=false \
         --public-tcbinfo=false --gateway-enabled=false --secure-time --shutdown-timeout 20 --allow-force-stop \
         --on-failure hold --rename web-2",
    );
    assert!(told.starts_with("web-1 is updated. It was down for") || told == "web-1 is updated.\n", "{told}");
    let seen = world.json("cvms observed web-2");
    assert_eq!(seen["boot_count"], before["boot_count"].as_u64().unwrap() + 1);
    for (field, value) in [
        ("vcpu", json!(2)),
        ("memory_mb", json!(4096)),
        ("disk_gb", json!(30)),
        ("image", json!("dstack-0.5.5")),
        ("env_keys", json!(["A", "B"])),
        ("public_logs", json!(false)),
        ("public_sysinfo", json!(false)),
        ("public_tcbinfo", json!(false)),
    ] {
        assert_eq!(seen[field], value, "{field}");
    }
    assert_ne!(seen["compose_hash"], before["compose_hash"]);
    assert_ne!(seen["user_config_sha256"], before["user_config_sha256"]);
    let cvm = world.json("cvms get web-2");
    assert_eq!(
        (&cvm["listed"], &cvm["gateway_enabled"], &cvm["secure_time"]),
        (&json!(true), &json!(false), &json!(true))
    );
    assert_eq!(cvm["compose_file"]["pre_launch_script"], "#!/bin/sh\necho hello\n");
    // An empty file removes the script.
    world.ok("cvms update web-2 --pre-launch-script /dev/null");
    assert_eq!(world.json("cvms get web-2")["compose_file"].get("pre_launch_script"), None);
    world.fails("cvms get web-1", 1);
}

#[test]
fn what_is_stuck_is_listed_and_can_be_cancelled() {
    let world = World::deployed();
    world.ok("nodes fault sim-1 unreachable");
    let accepted = world.json("cvms update web-1 --vcpu 2 --no-wait");
    let id = accepted["correlation_id"].as_str().unwrap();
    // It is listed as soon as the node was asked once.
    let begun = Instant::now();
    while !world.ok("ops list --stuck").contains(id) {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not get stuck");
    }
    assert!(world.ok(&format!("ops show {id}")).contains("waits for"));
    assert_eq!(world.ok(&format!("ops cancel {id}")), "Cancelled. The machine was not touched.\n");
    assert!(world.ok(&format!("ops show {id}")).contains("status     cancelled"));
    world.ok("nodes fault sim-1 --clear");
    assert_eq!(world.json("cvms observed web-1")["vcpu"], 1);
}

#[test]
fn whoever_stops_watching_does_not_stop_the_work() {
    let world = World::deployed();
    world.ok("nodes fault sim-1 unreachable");
    let mut command = world.command("cvms update web-1 --vcpu 2");
    let mut update = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(update.stderr.take().unwrap()).lines();
    // By then it watches.
    let first = lines.find(|line| line.as_ref().unwrap().contains("waits for")).unwrap().unwrap();
    assert!(
        Command::new("sh").args(["-c", &format!("kill -INT {}", update.id())]).status().unwrap().success()
    );
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    assert_eq!(update.wait().unwrap().code(), Some(1), "{first} {rest:?}");
    assert_eq!(rest[0], "error: stopped watching; the operation goes on");
    world.ok("nodes fault sim-1 --clear");
    let (_, hint) = rest[2].split_once('`').unwrap();
    let watch = hint.split('`').next().unwrap().strip_prefix("casemate ").unwrap();
    assert!(world.ok(watch).starts_with("Done."));
    assert_eq!(world.json("cvms observed web-1")["vcpu"], 2);
}

#[test]
fn a_dry_run_changes_nothing() {
    let world = World::start();
    world.file("app.yml", &compose("nginx:1"));
    let told = world.ok("deploy -n web-1 -c app.yml --dry-run");
    assert!(told.starts_with("web-1 would be created:\n  node "), "{told}");
    assert_eq!(world.json("cvms list")["total"], 0);
    world.ok("deploy -n web-1 -c app.yml");
    let told = world.ok("deploy -n web-1 -c app.yml --vcpu 2 --dry-run");
    assert_eq!(told, "web-1 would restart once with:\n  vcpu  1 → 2\n");
    for line in ["deploy -n web-1 -e A=1 --dry-run", "cvms update web-1 -e A=1 --dry-run"] {
        let (out, err) = texts(&world.run(line));
        assert!(out.starts_with("web-1 would restart once with:\n  encrypted_env"), "{out}");
        assert!(err.contains("sealed anew each time"), "{err}");
    }
    let told = world.ok("cvms update web-1 --rename web-2 --dry-run");
    assert!(told.starts_with("web-1 would change without a restart:\n"), "{told}");
    assert_eq!(world.json("cvms observed web-1")["boot_count"], 1);
}
