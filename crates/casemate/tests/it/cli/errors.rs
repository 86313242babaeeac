//! What is said when something is wrong, and the exit codes.

use std::fs::File;
use std::net::TcpListener;

use super::world::{World, texts};

#[test]
fn a_wrong_command_line_is_code_2_and_a_failed_request_code_1() {
    let world = World::deployed();
    for (line, code, told) in [
        ("cvms lost", 2, "unrecognized subcommand"),
        ("cvms update web-1 --memory 2X", 2, "2G or 2048M"),
        ("cvms update web-1 -c missing.yml", 2, "error: cannot read missing.yml: "),
        ("deploy -n web-2", 2, "hint: `-c FILE` names one"),
        ("cvms delete web-1", 2, "hint: `--yes` answers the question"),
        ("ops list --status lost", 2, "queued, running"),
        ("cvms get nobody", 1, "error: there is no cvm `nobody`\n\nhint: `casemate cvms list`"),
        (
            "ops show x",
            2,
            "error: OPERATION: `x` is not an operation id: a UUID\n\nhint: `casemate ops list`",
        ),
        ("--json serve", 2, "--json is an option of commands that talk to a server"),
        ("cvms list --node sim-7", 1, "--node: there is no node `sim-7`\n\nhint: there are sim-1"),
        ("ops show 0198c1d2-0000-7000-8000-000000000000", 1, "hint: `casemate ops list`"),
        ("nodes fault lost lie", 1, "hint: `casemate nodes list`"),
        ("keys revoke key_lost --yes", 1, "hint: `casemate keys list`"),
        ("cvms update web-1", 2, "error: nothing to update"),
        ("cvms update web-1 --memory 5", 1, "error: --memory: "),
        ("cvms update web-1 --disk-size 1G", 1, "error: --disk-size: "),
        (
            "cvms update web-1 --shutdown-timeout 1 --vcpu 2",
            2,
            "error: --shutdown-timeout: must be 10 to 1200",
        ),
        ("cvms update web-1 --image lost", 1, "ERR-02-010"),
        (
            "cvms rollback web-1 9",
            1,
            "error: web-1 has no such revision\n\nhint: `casemate cvms revisions web-1` shows those that there are\n",
        ),
        (
            "cvms logs web-1 lost",
            1,
            "error: the CVM has no container `lost`\n\nhint: its containers are web-1\n",
        ),
        ("deploy -n web-1 -c app.yml --node sim-7", 1, "a CVM cannot move"),
        ("deploy -n web-2 -c app.yml --node sim-7", 1, "there are sim-1"),
        ("cvms watch web-1 --until stopped --timeout 1", 2, "error: --timeout: must be 10 to 600"),
    ] {
        let err = world.fails(line, code);
        assert!(err.contains(told), "{line}: {err}");
    }
    assert_eq!(world.json("cvms observed web-1")["boot_count"], 1);
}

#[test]
fn a_server_that_is_not_there_or_is_none_is_named() {
    let world = World::empty();
    // Nobody listens on a port that was given back.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let err = world.fails(&format!("whoami --api-url http://127.0.0.1:{port} --api-key x"), 1);
    assert!(
        err.starts_with(&format!(
            "error: no answer from http://127.0.0.1:{port}/api/v1/auth/me: Connection refused"
        )),
        "{err}"
    );
    assert!(err.contains("hint: the address is from --api-url"), "{err}");
    let err = world.fails("whoami --api-url nonsense", 2);
    assert!(err.contains("--api-url") || err.contains("base_url"), "{err}");
    assert!(err.contains("`nonsense` is not a URL"), "{err}");
}

#[test]
fn a_key_that_is_missing_or_wrong_leads_to_signing_in() {
    let world = World::start();
    let url = format!("http://{}", world.address);
    let err = world.fails(&format!("cvms list --api-url {url} --api-key phak_wrong"), 1);
    assert!(err.contains("hint: the key is from --api-key; `casemate login`"), "{err}");
    std::fs::remove_file(world.path().join(".casemate/dev.env")).unwrap();
    let err = world.fails(&format!("cvms list --api-url {url}"), 1);
    assert!(err.contains("hint: `casemate login` stores a key, or set PHALA_CLOUD_API_KEY"), "{err}");
    // Nobody is asked as nobody.
    let err = world.fails("cvms list", 1);
    for part in [
        "error: no server is named, and there is no API key\n\nhint: ",
        "`casemate dev`",
        "dev.env",
        "`casemate login",
    ] {
        assert!(err.contains(part), "{part}: {err}");
    }
    let doctor = world.run("doctor");
    assert!(texts(&doctor).0.contains("FAIL key       none"), "{doctor:?}");
}

#[test]
fn a_reader_who_has_gone_is_no_error_and_a_full_disk_is_one() {
    let world = World::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = world.command("nodes list").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), texts(&output).1.as_str()), (Some(0), ""));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = world.command("nodes list").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).1.starts_with("error: cannot write the result: "));
}

#[test]
fn a_script_for_every_shell_knows_all_commands() {
    let world = World::empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = world.ok(&format!("completion {shell}"));
        for word in ["refresh-instance-id", "boot-fail", "serve"] {
            assert!(script.contains(word) || word == "boot-fail", "{shell}: {word}");
        }
    }
}
