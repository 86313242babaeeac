//! Nodes that are down, slow, behind or of another chain.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use casemate_chain::dev::{Anvil, StartError, find_anvil};
use casemate_chain::faults::{Fault, Proxy};
use casemate_chain::{Chain, ChainConfig, Error, Evm, Verdict};
use serde_json::json;

use crate::world::{FIRST, World, anvil, config, confirmed, evm};

/// Longer than any question may take here, by far.
const FOR_EVER: Duration = Duration::from_secs(60);

fn brief(config: ChainConfig) -> ChainConfig {
    ChainConfig {
        call_timeout: Duration::from_millis(500),
        deadline: Duration::from_secs(3),
        max_answer_bytes: 1 << 20,
        ..config
    }
}

/// An answer, or none, but within a bounded time.
async fn ask(world: &World, evm: &Evm) -> Result<Verdict, Error> {
    let question = world.question(FIRST, Some(world.made));
    tokio::time::timeout(FOR_EVER, evm.check(&question)).await.expect("bounded in time")
}

#[tokio::test]
async fn a_node_in_trouble_gives_no_answer_and_another_one_does() {
    let world = World::start().await;
    let proxy = Proxy::start(world.chain().rpc_url()).await.unwrap();
    let alone = evm(brief(config([proxy.url()])));
    let first = evm(ChainConfig {
        deadline: Duration::from_secs(20),
        ..brief(config([proxy.url(), world.chain().rpc_url()]))
    });
    confirmed(&ask(&world, &alone).await.unwrap());
    for (what, fault) in [
        ("down", Fault::Down),
        ("hanging", Fault::Hang),
        ("dripping", Fault::Drip),
        ("huge", Fault::Huge),
        ("no JSON", Fault::Garbage("<html>secret0123456789</html>")),
        ("empty", Fault::Garbage("")),
        ("no batch", Fault::Garbage("{}")),
        ("an empty batch", Fault::Garbage("[]")),
        ("too deep", Fault::Garbage(DEEP)),
        (
            "a refusal",
            Fault::Garbage(r#"{"error":{"code":-1,"message":"key secret0123456789 is\nunknown"}}"#),
        ),
        ("one answer twice", Fault::Garbage(r#"[{"id":0,"result":"0x2105"},{"id":0,"result":"0x2105"}]"#)),
        ("another id", Fault::Garbage(r#"[{"id":0,"result":"0x2105"},{"id":7,"result":null}]"#)),
        ("no answer but the chain", Fault::Garbage(r#"[{"id":0,"result":"0x2105"}]"#)),
        ("a null block", Fault::Garbage(r#"[{"id":0,"result":"0x2105"},{"id":1,"result":null}]"#)),
        ("rate-limited", Fault::Status(429)),
        ("broken", Fault::Status(500)),
        ("moved", Fault::Status(302)),
    ] {
        proxy.set(fault);
        let error = ask(&world, &alone).await.expect_err(what);
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(&proxy.url().host()), "{what}: {shown}");
        assert!(!shown.contains(Proxy::KEY) && !shown.contains("\\n"), "{what}: {shown}");
        let verdict = ask(&world, &first).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        confirmed(&verdict);
    }
    proxy.set(Fault::None);
    confirmed(&ask(&world, &alone).await.unwrap());
    // What was sent was taken or lay in the buffers of sockets, for each of the two questions to the huge one.
    assert!(proxy.sent() < 64 << 20, "{} bytes", proxy.sent());
}

const DEEP: &str = "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[";

#[tokio::test]
async fn no_node_is_no_answer() {
    let world = World::start().await;
    let error = ask(&world, &evm(config([]))).await.unwrap_err();
    assert_eq!(error.to_string(), "the chain does not answer: no node of chain 8453 is configured");
    let [one, two] = [Proxy::start(world.chain().rpc_url()), Proxy::start(world.chain().rpc_url())];
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    one.set(Fault::Status(429));
    two.set(Fault::Hang);
    let error = ask(&world, &evm(brief(config([one.url(), two.url()])))).await.unwrap_err().to_string();
    assert!(error.contains("429") && error.contains("gave no whole answer within 500ms"), "{error}");
}

#[tokio::test]
async fn a_node_of_another_chain_is_never_believed() {
    let world = World::start().await;
    let other = anvil(1).await;
    let alone = evm(config([other.chain.rpc_url()]));
    let error = ask(&world, &alone).await.unwrap_err().to_string();
    assert!(error.ends_with("speaks for chain 1, not for chain 8453"), "{error}");
    let both = evm(config([other.chain.rpc_url(), world.chain().rpc_url()]));
    confirmed(&ask(&world, &both).await.unwrap());

    // The address is given to another machine after the first exchange.
    let (proxy, behind) = world.proxied().await;
    let seen = std::sync::atomic::AtomicUsize::new(0);
    proxy.lie(move |method, _, reply| {
        if method == "eth_chainId" && seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0 {
            reply["result"] = json!("0x1");
        }
    });
    let error = ask(&world, &behind).await.unwrap_err().to_string();
    assert!(error.ends_with("speaks for chain 1, not for chain 8453"), "{error}");
}

#[tokio::test]
async fn a_node_that_is_behind_is_passed_over() {
    let world = World::start().await;
    world.mine(100).await;
    // A node that knows the first block only.
    let first = world.call("eth_getBlockByNumber", json!(["0x0", false])).await;
    let (behind, alone) = world.proxied().await;
    behind.lie(move |method, params, reply| {
        if method == "eth_getBlockByNumber" && params[0] == "latest" {
            reply["result"] = first.clone();
        }
    });
    let both = evm(config([behind.url(), world.chain().rpc_url()]));
    confirmed(&ask(&world, &both).await.unwrap());
    let three = evm(config([behind.url(), world.chain().rpc_url(), world.chain().rpc_url()]));
    confirmed(&ask(&world, &three).await.unwrap());
    // It is good enough when nobody knows better.
    assert!(matches!(ask(&world, &alone).await.unwrap(), Verdict::NotYet(_)));
    // And while it is only a little behind, it may answer.
    let lenient =
        evm(ChainConfig { max_lag_blocks: 1000, ..config([behind.url(), world.chain().rpc_url()]) });
    assert!(matches!(ask(&world, &lenient).await.unwrap(), Verdict::NotYet(_)));
}

#[tokio::test]
async fn a_node_whose_newest_block_is_old_is_not_believed() {
    let world = World::start().await;
    let made = world.evm().head().await.unwrap().timestamp;
    let at = |now: u64| {
        let config = ChainConfig { max_head_age: Some(Duration::from_secs(300)), ..world.config() };
        Evm::new(config, move || now)
    };
    for now in [made - 300, made, made + 300] {
        confirmed(&ask(&world, &at(now)).await.unwrap());
    }
    let error = ask(&world, &at(made + 301)).await.unwrap_err().to_string();
    assert!(error.ends_with("is behind: its newest block is 301 s old"), "{error}");
    let error = ask(&world, &at(made - 301)).await.unwrap_err().to_string();
    assert!(error.ends_with("has a block from 301 s in the future"), "{error}");
}

#[tokio::test]
async fn an_anvil_that_cannot_be_started_says_why() {
    let missing = find_anvil(None, None, &["/nowhere".into()]).unwrap_err();
    assert!(missing.to_string().contains("ANVIL_BIN"), "{missing}");
    let named = find_anvil(Some("/bin/false".as_ref()), None, &[]).unwrap();
    let error = Anvil::start(&named, 1, 0, &[]).await.err().expect("not an anvil");
    assert!(matches!(error, StartError::Silent { .. }), "{error}");
    let running = anvil(1).await;
    let port = running.chain.url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let real = std::env::var_os("ANVIL_BIN").map(Into::into);
    let node_modules = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/js/node_modules");
    let real = real
        .unwrap_or_else(|| find_anvil(None, std::env::var_os("PATH").as_deref(), &[node_modules]).unwrap());
    let error = Anvil::start(&real, 1, port, &[]).await.err().expect("the port is taken").to_string();
    assert!(error.contains("in use"), "{error}");
}

#[tokio::test]
async fn an_anvil_ends_with_its_owner() {
    let running = anvil(1).await;
    let chain = || evm(ChainConfig { chain_id: 1, ..config([running.chain.rpc_url()]) });
    chain().head().await.unwrap();
    let gone = chain();
    drop(running);
    let error = gone.head().await.unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
}

/// Makes this program, started once more, one that has an anvil and waits to be killed.
const HOLD: &str = "CASEMATE_TEST_HOLD_ANVIL";

#[tokio::test]
async fn an_anvil_ends_with_a_killed_owner() {
    if std::env::var_os(HOLD).is_some() {
        let running = anvil(1).await;
        println!("holds {}", running.chain.url());
        std::future::pending::<()>().await;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::an_anvil_ends_with_a_killed_owner", "--nocapture"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    let url = said.filter_map(|line| Some(line.split_once("holds ")?.1.to_owned())).next().expect("a URL");
    let chain = evm(ChainConfig { chain_id: 1, ..config([url.parse().unwrap()]) });
    chain.head().await.unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let gone = async { while chain.head().await.is_ok() {} };
    tokio::time::timeout(FOR_EVER, gone).await.expect("it ends too");
}

/// A proxy whose newest block has another number than it has.
fn ahead(proxy: &Proxy) {
    proxy.lie(|method, params, reply| {
        if method == "eth_getBlockByNumber" && params[0] == "latest" {
            reply["result"]["number"] = json!("0x7fffffff");
        }
        if method == "eth_getBlockByNumber" && params[0] != "latest" {
            reply["result"] = json!(null);
        }
    });
}

#[tokio::test]
async fn a_node_that_makes_itself_newer_puts_nobody_aside() {
    let world = World::start().await;
    let (proxy, _) = world.proxied().await;
    ahead(&proxy);
    // As one of two, and as one of three: the honest ones, preferred, go on answering.
    let honest = world.chain().rpc_url();
    for nodes in [vec![honest.clone(), proxy.url()], vec![honest.clone(), proxy.url(), honest.clone()]] {
        let many = evm(config(nodes));
        let head = many.head().await.unwrap();
        assert!(head.block.number < 0x7fff_ffff, "{head:?}");
        confirmed(&ask(&world, &many).await.unwrap());
    }
}

#[tokio::test]
async fn a_log_is_read_from_a_node_that_is_slow_with_many_blocks() {
    let world = World::start().await;
    world.mine(300).await;
    let (proxy, _) = world.proxied().await;
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    proxy.lie(move |method, params, reply| {
        if method == "eth_getLogs" {
            let number = |key: &str| {
                u64::from_str_radix(params[0][key].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
            };
            let blocks = number("toBlock") - number("fromBlock") + 1;
            seen.lock().unwrap().push(blocks);
            if blocks > 40 {
                *reply = json!({ "jsonrpc": "2.0", "id": reply["id"], "error": { "code": -32005, "message": "too slow" } });
            }
        }
    });
    let slow = evm(config([proxy.url()]));
    let (mut next, mut rounds) = (0, 0);
    loop {
        let changes = slow.changes(world.app, next, u64::MAX).await.unwrap();
        rounds += 1;
        if changes.read_to.number >= changes.head.number {
            break;
        }
        next = changes.read_to.number + 1;
        assert!(rounds < 30, "{:?}", asked.lock().unwrap());
    }
}
