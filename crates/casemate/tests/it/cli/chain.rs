//! Updates that a contract has to allow, as one party and as several, from the first command to the last.

use std::io::{Read, Write};
use std::process::{Output, Stdio};

use casemate_chain::checksummed;
use casemate_chain::dev::ACCOUNTS;
use serde_json::{Value, json};

use super::world::{World, compose, texts};

const OWNER: &str = ACCOUNTS[1].key;
const STRANGER: &str = ACCOUNTS[2].key;

/// A cloud with a CVM `web-1` whose contract belongs to [`OWNER`], and the files that commands name.
fn cloud() -> World {
    let world = World::on_chain();
    world.file("owner.key", &format!("0x{OWNER}\n"));
    world.file("stranger.key", STRANGER);
    world.file("app.yml", &compose("nginx:1"));
    let told = world.ok("deploy -n web-1 -c app.yml --kms base --private-key-file owner.key");
    assert_eq!(told, "web-1 is up.\n");
    world.file("app.yml", &compose("nginx:2"));
    world
}

fn with_input(world: &World, line: &str, input: &str) -> Output {
    let mut command = world.command(line);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn image(world: &World) -> String {
    world.ok("cvms logs web-1 --tail 3")
}

/// No key is told to anybody.
fn assert_no_key(output: &Output) {
    let (out, err) = texts(output);
    for key in [OWNER, STRANGER] {
        assert!(!out.contains(key) && !err.contains(key), "{out}{err}");
    }
}

#[test]
fn a_cloud_uses_a_chain_that_already_runs() {
    let owner = World::on_chain();
    let url = owner.variable("ETH_RPC_URL");
    let contracts = std::fs::read(owner.path().join(".casemate/contracts-8453.json")).unwrap();
    let contracts = serde_json::from_slice::<Value>(&contracts).unwrap();
    let [kms, wallet] = ["kms", "wallet"].map(|name| contracts[name].as_str().unwrap());

    let refused = |options: &[&str], why: &str| {
        let mut world = World::empty();
        let mut said = String::new();
        world.serve(options).read_to_string(&mut said).unwrap();
        let log = std::fs::read_to_string(world.path().join("server.log")).unwrap();
        assert!(said.is_empty() && log.contains(why), "{options:?}: {said}{log}");
        assert!(!world.path().join(".casemate/casemate.db").exists(), "{options:?}: something was started");
    };
    let chain = format!("--chain={url}");
    refused(&[&chain], "--kms-contract is needed with --chain URL");
    refused(
        &["--chain=anvil", &format!("--kms-contract={kms}")],
        "--kms-contract is for a chain that already runs",
    );
    refused(&["--chain=ftp://127.0.0.1"], "should be off, anvil or a URL");
    let nobody = ACCOUNTS[0].address;
    refused(
        &[&chain, &format!("--kms-contract={nobody}")],
        &format!("there is no contract at {} on chain 8453", checksummed(nobody)),
    );
    refused(&[&chain, &format!("--kms-contract={wallet}")], "on chain 8453 is no key service's contract");
    refused(&[&chain, &format!("--kms-contract={kms}"), "--chain-id=1"], "is of chain 8453, not 1");
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("--chain=http://{}", deaf.local_addr().unwrap());
    drop(deaf);
    refused(&[&closed, &format!("--kms-contract={kms}")], "the chain does not answer");

    let world = World::with(&[&chain, &format!("--kms-contract={kms}"), "--chain-id=8453"]);
    assert_eq!(world.variable("ETH_RPC_URL"), url);
    world.file("owner.key", OWNER);
    world.file("app.yml", &compose("nginx:1"));
    let told = world.ok("deploy -n web-1 -c app.yml --kms base --private-key-file owner.key");
    assert_eq!(told, "web-1 is up.\n");
}

#[test]
fn without_an_anvil_it_says_how_to_get_one() {
    // The folder has no packages, and the environment names no folder with programs.
    let world = World::empty();
    let told = world.fails("dev --listen 127.0.0.1:0 --chain anvil", 1);
    for way in ["ANVIL_BIN", "PATH", "@foundry-rs/anvil-linux-", "`make dev CHAIN=anvil` installs it"] {
        assert!(told.contains(way), "{way}: {told}");
    }
}

#[test]
fn an_owner_creates_and_updates_with_one_command_each() {
    let world = World::on_chain();
    world.file("owner.key", OWNER);
    world.file("stranger.key", STRANGER);
    world.file("app.yml", &compose("nginx:1"));
    let refused = world.fails("deploy -n web-1 -c app.yml --kms base", 1);
    assert!(refused.contains("web-1 is not created: it needs a contract on Base (chain 8453)"), "{refused}");
    assert!(refused.contains("hint: `--private-key-file FILE`, or PRIVATE_KEY, signs for it"), "{refused}");
    let refused = world.fails("deploy -n web-1 -c app.yml --kms base --prepare-only", 2);
    assert!(refused.contains("there is no CVM `web-1` yet"), "{refused}");

    let output =
        world.run("deploy -n web-1 -c app.yml -e TOKEN=s3cret --kms base --private-key-file owner.key");
    assert_no_key(&output);
    let (out, err) = texts(&output);
    assert_eq!((output.status.code(), out.as_str()), (Some(0), "web-1 is up.\n"), "{err}");
    assert!(err.contains("Having a contract made for web-1 on Base (chain 8453) at 127.0.0.1:"), "{err}");
    assert_eq!(world.json("cvms observed web-1")["env_keys"], json!(["TOKEN"]));
    let cvm = world.wire("GET", "/cvms/web-1", "");
    assert_eq!(cvm["kms_info"]["chain_id"], 8453);

    // Nothing to do is nothing to sign.
    let told = world.ok("cvms update web-1 -c app.yml --private-key-file owner.key");
    assert!(told.contains("nothing changed"), "{told}");
    // What the contract need not know neither.
    world.ok("cvms update web-1 --memory 4G");

    world.file("app.yml", &compose("nginx:2"));
    let refused = world.run("cvms update web-1 -c app.yml --private-key-file stranger.key");
    assert_no_key(&refused);
    let (out, err) = texts(&refused);
    assert_eq!((refused.status.code(), out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("does not own the contract 0x"), "{err}");
    assert!(image(&world).contains("nginx:1"));

    let output = world.run("cvms update web-1 -c app.yml --private-key-file owner.key");
    assert_no_key(&output);
    let (out, err) = texts(&output);
    assert!(out.starts_with("web-1 is updated. It was down for"), "{out}{err}");
    assert!(err.contains("compose hash allowed by transaction 0x"), "{err}");
    // What it replaced can be forbidden, by whoever owns the contract.
    let remove = err.lines().find_map(|line| line.trim().strip_prefix("casemate ")).unwrap();
    let calls = world.json(remove);
    let before = &world.json("cvms revisions web-1")["items"][1]["compose_hash"];
    assert_eq!(calls[0]["data"], format!("0x67b3f22c{}", before.as_str().unwrap()));
    assert!(image(&world).contains("nginx:2"));

    // The same from the variable, and from standard input.
    world.file("app.yml", &compose("nginx:3"));
    let output = world.command("deploy -n web-1 -c app.yml").env("PRIVATE_KEY", OWNER).output().unwrap();
    assert_no_key(&output);
    assert!(texts(&output).0.starts_with("web-1 is updated."), "{:?}", texts(&output));
    world.file("app.yml", &compose("nginx:4"));
    let output = with_input(&world, "cvms update web-1 -c app.yml --private-key-file - --json", OWNER);
    assert_no_key(&output);
    let ended: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ended["status"], "succeeded");
    // What is allowed again is signed for by nobody.
    let told = world.ok("cvms rollback web-1 1 --private-key-file stranger.key");
    assert!(told.starts_with("web-1 is back at revision 1."), "{told}");
    let log = std::fs::read_to_string(world.path().join("server.log")).unwrap();
    assert!(!log.contains(OWNER) && !log.contains(STRANGER));
}

#[test]
fn a_key_on_the_command_line_is_refused_before_anything_is_sent() {
    let world = World::empty();
    for line in
        ["deploy", "cvms update web-1 -c app.yml", "cvms rollback web-1 1", "approvals commit 0198c1d2"]
    {
        let refused = world.run(&format!("{line} --private-key {OWNER}"));
        assert_no_key(&refused);
        let (_, err) = texts(&refused);
        assert_eq!(refused.status.code(), Some(2), "{line}: {err}");
        assert!(err.contains("`--private-key-file FILE` reads it from a file"), "{line}: {err}");
    }
}

#[test]
fn what_waits_is_listed_shown_signed_elsewhere_and_committed() {
    let world = cloud();
    let waits = world.run("cvms update web-1 -c app.yml --json");
    let body: Value = serde_json::from_slice(&waits.stdout).unwrap();
    assert_eq!(body["error_code"], "ERR-01-005");
    let waits = world.run("cvms update web-1 -c app.yml");
    let (out, err) = texts(&waits);
    assert_eq!(waits.status.code(), Some(1), "{out}{err}");
    for field in ["compose hash  0x", "device        0x", " on Base (chain 8453)"] {
        assert!(out.contains(field), "{field}: {out}");
    }
    assert!(err.contains("error: web-1 is not updated yet"), "{err}");
    let listed = world.json("approvals list");
    let waiting = listed["items"][0].clone();
    let id = waiting["id"].as_str().unwrap();
    let hash = waiting["compose_hash"].as_str().unwrap();
    for way in ["--private-key-file FILE", "safe-batch", "calldata", "auto-commit"] {
        assert!(err.contains(way), "{way}: {err}");
    }
    assert!(err.contains(&format!("casemate approvals commit {id}")), "{err}");

    assert!(world.ok("approvals list").contains("web-1"));
    let shown = world.ok(&format!("approvals show {id}"));
    for line in ["-     image: nginx:1", "+     image: nginx:2", "custody"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let text = world.ok(&format!("approvals show {id} --app-compose"));
    let file = world.file("app-compose.json", &text);
    let sum = std::process::Command::new("sha256sum").arg(file).output().unwrap();
    assert!(texts(&sum).0.starts_with(hash), "anybody can check what is hashed");

    let calls = world.json(&format!("approvals calldata {id}"));
    assert_eq!(calls.as_array().unwrap().len(), 1, "the device is allowed already");
    assert_eq!(calls[0]["data"], format!("0xdfc77223{hash}"));
    let (app, batch) =
        (waiting["app_id"].as_str().unwrap(), world.json(&format!("approvals safe-batch {id}")));
    let line = format!("approvals safe-batch --app-id {app} --compose-hash {hash} --chain-id 8453");
    let own = world.json(&line);
    assert_eq!(batch["transactions"], own["transactions"]);
    assert_eq!((&batch["chainId"], &own["chainId"]), (&json!("8453"), &json!("8453")));

    // Not allowed yet: nothing runs, and the approval stays.
    let refused = world.fails(&format!("approvals commit {id}"), 1);
    assert!(refused.contains("hint: `--private-key-file FILE` signs for it"), "{refused}");
    let refused = world.fails(&format!("approvals commit {id} --private-key-file stranger.key"), 1);
    assert!(refused.contains("does not own the contract"), "{refused}");
    let told = world.ok(&format!("approvals commit {id} --private-key-file owner.key"));
    assert!(told.starts_with("web-1 is updated."), "{told}");
    assert!(image(&world).contains("nginx:2"));
    assert!(world.fails(&format!("approvals commit {id}"), 1).contains("error: "));
    assert_eq!(world.json("approvals list --state committed")["items"][0]["id"], id);
}

#[test]
fn somebody_with_a_link_signs_and_commits_without_an_account() {
    let world = cloud();
    let prepared = world.json("cvms update web-1 -c app.yml --prepare-only");
    let link =
        prepared["details"].as_array().unwrap().iter().find(|one| one["field"] == "commit_url").unwrap();
    let link = link["value"].as_str().unwrap().replace("localhost", "127.0.0.1");
    // Somewhere else, where no server is known.
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = |line: &str| {
        let mut command = world.command(line);
        command.current_dir(elsewhere.path()).env("HOME", elsewhere.path()).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(link.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let shown = texts(&stranger("approvals show -"));
    assert!(shown.0.contains("+     image: nginx:2"), "{shown:?}");
    let key = world.path().join("owner.key");
    let committed = stranger(&format!("approvals commit - --private-key-file {}", key.display()));
    assert_no_key(&committed);
    let (out, err) = texts(&committed);
    assert_eq!(committed.status.code(), Some(0), "{out}{err}");
    assert!(out.contains("follow it with"), "{out}");
    world.ok("cvms watch web-1");
    let used = stranger("approvals commit -");
    assert_eq!(used.status.code(), Some(1));
    let token = link.split_once('#').unwrap().1;
    for output in [&committed, &used] {
        let (out, err) = texts(output);
        assert!(!out.contains(token) && !err.contains(token), "{out}{err}");
    }
}

#[test]
fn an_update_is_left_to_the_server_or_called_off() {
    let world = cloud();
    let left = world.run("cvms update web-1 -c app.yml --auto-commit");
    let (out, err) = texts(&left);
    assert_eq!(left.status.code(), Some(0), "{out}{err}");
    assert!(err.contains("nothing: the server does it once it is allowed"), "{err}");
    let id = world.json("approvals list")["items"][0]["id"].as_str().unwrap().to_owned();
    assert!(world.ok("approvals list").contains("committed by the server once it is allowed"));
    assert_eq!(world.json(&format!("approvals auto-commit {id} --off"))["auto_commit"], false);
    assert!(world.ok(&format!("approvals auto-commit {id}")).contains("updated by the server"));
    let asked = world.fails(&format!("approvals cancel {id}"), 2);
    assert!(asked.contains("--yes"), "{asked}");
    let told = world.ok(&format!("approvals cancel {id} --yes"));
    assert!(told.contains("is cancelled"), "{told}");
    assert!(texts(&world.run("approvals list")).1.contains("Nothing waits for a yes."));
    assert!(image(&world).contains("nginx:1"));
    let unknown = world.fails("approvals show 0198c1d2", 1);
    assert!(unknown.contains("`casemate approvals list` shows those that there are"), "{unknown}");
}

#[test]
fn what_a_contract_lets_boot_is_asked_and_listed() {
    let world = cloud();
    let app = world.json("apps list")["dstack_apps"][0]["app_id"].as_str().unwrap().to_owned();
    let told = world.ok("cvms is-allowed web-1");
    assert!(told.starts_with("may boot      yes\ncompose hash  0x"), "{told}");
    let strange = "ab".repeat(32);
    for line in [
        format!("cvms is-allowed web-1 --compose-hash 0x{strange}"),
        format!("apps is-allowed {app} {strange} --node 1"),
    ] {
        let refused = world.run(&line);
        let (out, err) = texts(&refused);
        assert_eq!(refused.status.code(), Some(1), "{line}: {out}{err}");
        assert!(out.starts_with("may boot      no\n"), "{line}: {out}");
        assert!(err.contains("error: the contract does not allow this"), "{line}: {err}");
    }
    let all = world.json("apps is-allowed web-1");
    assert_eq!((&all["allowed_count"], &all["denied_count"]), (&json!(1), &json!(0)));
    let hash = all["results"][0]["compose_hash"].as_str().unwrap().to_owned();
    world.ok(&format!("apps is-allowed 0x{app} {hash}"));
    let devices = world.ok("apps devices web-1");
    assert!(devices.starts_with("contract 0x") && devices.contains("on Base (chain 8453)"), "{devices}");
    assert!(devices.contains(world.json("apps devices web-1")["devices"][0]["device_id"].as_str().unwrap()));

    world.ok("cvms update web-1 -c app.yml --private-key-file owner.key");
    let listed = world.run("apps allowed web-1");
    let (out, err) = texts(&listed);
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.lines().any(|line| line.starts_with(&hash) && line.contains("  no ")), "{out}");
    let remove = err.lines().find_map(|line| line.trim().strip_prefix("casemate ")).unwrap();
    assert_eq!(world.json(remove)[0]["data"], format!("0x67b3f22c{hash}"));
    assert!(world.fails("apps allowed nobody", 1).contains("there is no app `nobody`"));
}

#[test]
fn a_replica_is_made_at_once_or_in_two_steps() {
    let world = cloud();
    assert_eq!(world.ok("cvms replicate web-1 --name web-2"), "web-1 is replicated.\n");
    let value = |details: &Value, field: &str| {
        let one = details.as_array().unwrap().iter().find(|one| one["field"] == field).unwrap();
        one["value"].as_str().unwrap().to_owned()
    };
    let prepared = world.json("cvms replicate web-1 --name web-3 --prepare-only");
    let (token, hash) =
        (value(&prepared["details"], "commit_token"), value(&prepared["details"], "compose_hash"));
    let line = format!("cvms commit-replica web-1 - {hash}");
    let (out, err) = texts(&with_input(&world, &line, &token));
    assert_eq!(out, "web-1 is replicated.\n", "{err}");
    let used = with_input(&world, &line, &token);
    assert!(texts(&used).1.contains("Invalid commit token"), "{:?}", texts(&used));

    let prepared = world.json("cvms replicate web-2 --name web-4 --prepare-only");
    let id = value(&prepared["details"], "approval_id");
    assert_eq!(world.ok(&format!("approvals commit {id}")), "web-2 is replicated.\n");
    let mut names: Vec<_> = world.json("cvms list")["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cvm| (cvm["name"].as_str().unwrap().to_owned(), cvm["status"].as_str().unwrap().to_owned()))
        .collect();
    names.sort();
    let running = |name: &str| (name.to_owned(), "running".to_owned());
    assert_eq!(names, ["web-1", "web-2", "web-3", "web-4"].map(running));
}
