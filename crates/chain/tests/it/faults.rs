//! Nodes that are down, slow, behind or of another chain.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use casemate_chain::dev::{Anvil, StartError, find_anvil};
use casemate_chain::faults::{Fault, Proxy};
use casemate_chain::{Chain, ChainConfig, Error, Evm, Verdict};
use serde_json::{Value, json};

use crate::world::{FIRST, World, anvil, config, confirmed, evm, number};

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

/// Far above the chain.
const HEIGHT: &str = "0x7fffffff";

/// Changes a block of the chain, the newest or the one at this height, knowing the newest one as it is.
type Boast = fn(&mut Value, &str, &Value);

/// How a node may make itself newer than it is.
const BOASTS: [(&str, Boast); 6] = [
    ("has no such block", |block, at, newest| {
        if at == "latest" {
            *block = higher(newest, 1);
        }
    }),
    ("another block there", |block, at, newest| match at {
        "latest" => *block = higher(newest, 1),
        HEIGHT => *block = other(higher(newest, 1)),
        _ => {}
    }),
    ("another chain below", |block, at, newest| match at {
        "latest" | HEIGHT => *block = higher(newest, 1),
        _ => *block = other(block.take()),
    }),
    ("made at the same time", |block, at, newest| {
        if at == "latest" || at == HEIGHT {
            *block = higher(newest, 0);
        }
    }),
    ("made in a time to come", |block, at, newest| {
        if at == "latest" || at == HEIGHT {
            *block = higher(newest, 121);
        }
    }),
    ("knows no state", |block, at, newest| {
        if at == "latest" {
            *block = other(higher(newest, 1));
        }
    }),
];

/// The newest block, but far above the chain and made so many seconds later.
fn higher(newest: &Value, seconds: u64) -> Value {
    let mut block = newest.clone();
    block["number"] = json!(HEIGHT);
    block["timestamp"] = json!(format!("0x{:x}", number(&newest["timestamp"]) + seconds));
    block
}

/// With another hash.
fn other(mut block: Value) -> Value {
    block["hash"] = json!(format!("0x{}", "11".repeat(32)));
    block
}

/// A node of this world that boasts.
async fn boasting(world: &World, (_, boast): (&str, Boast)) -> Proxy {
    let newest = world.call("eth_getBlockByNumber", json!(["latest", false])).await;
    let (proxy, _) = world.proxied().await;
    proxy.lie(move |method, params, reply| {
        if method == "eth_getBlockByNumber" {
            boast(&mut reply["result"], params[0].as_str().expect("a height or a word"), &newest);
        }
    });
    proxy
}

#[tokio::test]
async fn a_node_that_makes_itself_newer_puts_nobody_aside() {
    let world = World::start().await;
    let honest = world.chain().rpc_url();
    let head = world.evm().head().await.unwrap();
    let (dead, _) = world.proxied().await;
    dead.set(Fault::Down);
    for boast in BOASTS {
        let proxy = boasting(&world, boast).await;
        let (what, liar) = (boast.0, proxy.url());
        for nodes in [
            vec![honest.clone(), liar.clone()],
            vec![liar.clone(), honest.clone()],
            vec![liar.clone(), honest.clone(), honest.clone()],
            vec![honest.clone(), liar.clone(), honest.clone()],
            vec![liar.clone(), dead.url(), honest.clone()],
        ] {
            let config = ChainConfig { max_head_age: Some(Duration::from_secs(120)), ..config(nodes) };
            let many = Evm::new(config.clone(), move || head.timestamp);
            assert_eq!(many.head().await.unwrap(), head, "{what}: {:?}", config.rpc_urls);
            confirmed(&ask(&world, &many).await.unwrap());
        }
    }
}

#[tokio::test]
async fn a_node_that_is_quick_to_boast_and_then_fails_is_not_missed() {
    let world = World::start().await;
    let boasts = boasting(&world, BOASTS[5]).await;
    let (honest, _) = world.proxied().await;
    // Too late to show its head with the other one.
    let asked = AtomicUsize::new(0);
    honest.hang_on(move |_, _| asked.fetch_add(1, Ordering::Relaxed) < 1);
    let both = ChainConfig { deadline: FOR_EVER, ..brief(config([boasts.url(), honest.url()])) };
    confirmed(
        &ask(&world, &evm(ChainConfig { call_timeout: Duration::from_secs(2), ..both })).await.unwrap(),
    );
}

#[tokio::test]
async fn of_two_nodes_that_prove_nothing_the_lower_one_is_asked_first_and_then_the_other() {
    let world = World::start().await;
    let proxy = boasting(&world, BOASTS[0]).await;
    let (honest, _) = world.proxied().await;
    honest.lie(|method, _, reply| {
        if method == "eth_getTransactionReceipt" {
            reply["result"] = json!("nonsense");
        }
    });
    let both = evm(config([honest.url(), proxy.url()]));
    confirmed(&ask(&world, &both).await.unwrap());
}

/// What a node may put where something else belongs.
fn abuse() -> String {
    format!("{}\n\u{1b}[31m{}", Proxy::KEY, "x".repeat(1 << 20))
}

#[tokio::test]
async fn nothing_that_a_node_says_is_passed_on_as_it_is() {
    let world = World::start().await;
    let (proxy, evm) = world.proxied().await;
    let question = world.question(FIRST, Some(world.made));
    let assert_fit = |what: &str, error: Error| {
        let shown = error.to_string();
        assert!(!shown.contains(Proxy::KEY) && !shown.chars().any(char::is_control), "{what}: {shown}");
        assert!(shown.len() < 400, "{what}: {} bytes", shown.len());
    };
    for (asked, at) in [
        ("eth_chainId", "/result"),
        ("eth_getBlockByNumber", "/result"),
        ("eth_getBlockByNumber", "/result/number"),
        ("eth_getTransactionReceipt", "/result"),
        ("eth_getTransactionReceipt", "/result/status"),
        ("eth_getTransactionReceipt", "/result/logs/0/data"),
        ("eth_call", "/result"),
        ("eth_getLogs", "/result"),
        ("eth_getLogs", "/result/0/logIndex"),
    ] {
        for refuses in [false, true] {
            proxy.lie(move |method, _, reply| {
                if method == asked && refuses {
                    *reply = json!({ "id": reply["id"] });
                    reply["error"] = json!({ "code": -1, "message": abuse(), "data": abuse() });
                } else if method == asked {
                    *reply.pointer_mut(at).expect("a good answer has it") = json!(abuse());
                }
            });
            let error = match asked {
                "eth_getLogs" => evm.changes(world.app, 0, u64::MAX).await.expect_err(at),
                _ => evm.check(&question).await.expect_err(at),
            };
            assert_fit(at, error);
        }
    }
    for whole in [
        json!([{ "id": abuse() }]),
        json!(abuse()),
        json!([{ "id": 0, "error": abuse() }]),
        json!([{ "id": 0, "error": { "code": abuse() } }]),
        json!({ "error": { "code": 1, "message": abuse() } }),
    ] {
        proxy.set(Fault::Garbage(whole.to_string().leak()));
        assert_fit("whole", evm.check(&question).await.expect_err("no answer"));
    }
}

/// Blocks that a query for logs covers; none of another call.
fn blocks(method: &str, params: &Value) -> u64 {
    match method {
        "eth_getLogs" => number(&params[0]["toBlock"]) - number(&params[0]["fromBlock"]) + 1,
        _ => 0,
    }
}

#[tokio::test]
async fn a_log_is_read_from_a_node_that_is_too_slow_for_many_blocks() {
    let world = World::start().await;
    world.mine(300).await;
    let (proxy, _) = world.proxied().await;
    let slow = evm(brief(config([proxy.url()])));
    for most in [100, 30] {
        proxy.hang_on(move |method, params| blocks(method, params) > most);
        let (mut next, mut changes, mut failed) = (0, Vec::new(), 0);
        loop {
            match slow.changes(world.app, next, u64::MAX).await {
                Ok(read) => {
                    changes.extend(read.changes);
                    next = read.read_to.number + 1;
                    if read.read_to == read.head {
                        break;
                    }
                }
                // There may be no time left for what it could do; the next question begins with less.
                Err(_) => failed += 1,
            }
            assert!(failed < 4, "read to {next}");
        }
        assert_eq!(changes.len(), 2, "the device and the hash that the app's contract was made with");
    }
    // What takes long at one node does not keep another one from being asked.
    proxy.hang_on(|method, _| method == "eth_getLogs");
    let both = evm(brief(config([proxy.url(), world.chain().rpc_url()])));
    assert_eq!(both.changes(world.app, 0, u64::MAX).await.unwrap().changes.len(), 2);
}
