use casemate_types::env::{self, EnvVar};
use casemate_types::guest::{Ask, Container, Phase, Reply};
use serde_json::json;
use sha2::{Digest, Sha256, Sha384};

use std::time::Duration;

use crate::machine::{Disks, Image, Vm, config, config_of, is_recent, wait_for, web};

const SECRET: [u8; 32] = [7; 32];

fn sealed(vars: &[(&str, &str)]) -> Option<String> {
    let key = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(SECRET)).to_bytes();
    let vars: Vec<EnvVar> = vars.iter().map(|(key, value)| EnvVar::new(*key, *value)).collect();
    Some(hex::encode(env::seal(&key, &vars, [9; 32], [1; 12]).expect("a good key")))
}

fn keys() -> Ask {
    Ask::Keys { env_secret: hex::encode(SECRET) }
}

fn texts(vm: &mut Vm<'_>, service: &str, from: u64) -> (Vec<String>, u64) {
    match vm.ask(Ask::Logs { service: service.to_owned(), from, limit: 1000 }) {
        Reply::Logs(lines) => (lines.lines.into_iter().map(|line| line.text).collect(), lines.next),
        other => panic!("{other:?}"),
    }
}

/// SHA-384 over what the events say, computed here.
fn replayed(events: &[casemate_types::guest::Event]) -> String {
    let mut register = [0; 48];
    for event in events {
        let payload = hex::decode(&event.payload).expect("hex");
        let text = [&0x0800_0001_u32.to_le_bytes()[..], b":", event.name.as_bytes(), b":", &payload].concat();
        let digest = Sha384::digest(text);
        assert_eq!(event.digest, hex::encode(digest));
        register = Sha384::digest([&register[..], &digest].concat()).into();
    }
    hex::encode(register)
}

#[test]
fn vm_lives_through_an_update() {
    let yaml = |version: &str| {
        format!(
            "services: {{web: {{image: 'web:{version}', ports: ['80:8080'], volumes: ['data:/data'], environment: {{TOKEN: '${{TOKEN}}', NONE: '${{NO:-other}}'}}}}}}\nvolumes: {{data: }}\n"
        )
    };
    let disks = Disks::new();
    let mut first = config(1, &yaml("1"), &["TOKEN"]);
    first.sealed_env = sealed(&[("TOKEN", "s3cret")]);
    first.user_config = Some("free text".to_owned());
    let mut vm = disks.boot(&first, &[80]);
    let report = vm.settled();
    assert_eq!(report.phase, Phase::WaitsForKeys);
    assert!(matches!(vm.ask(Ask::Keys { env_secret: "00".to_owned() }), Reply::Error(_)), "no secret at all");
    assert_eq!(vm.ask(keys()), Reply::Done);
    let report = vm.done();
    assert_eq!(vm.ask(keys()), Reply::Error("the guest does not wait for keys".to_owned()));
    assert_eq!(
        (report.boot, report.compose_hash, report.instance_id),
        (1, first.compose_hash, first.instance_id)
    );
    assert_eq!(report.env_keys, ["TOKEN"]);
    assert_eq!(report.user_config_sha256, Some(hex::encode(Sha256::digest("free text"))));
    let blob = hex::decode(first.sealed_env.as_ref().unwrap()).unwrap();
    assert_eq!(report.sealed_env_sha256, Some(hex::encode(Sha256::digest(blob))));
    let Container { running: true, exit_code: None, restarts: 0, started_at: Some(at), .. } =
        report.containers[0]
    else {
        panic!("{report:?}")
    };
    assert!(is_recent(at), "{at}");
    assert_eq!(report.containers[0].digest, web("1").digest);

    assert_eq!(vm.get(80, "/"), "web 1");
    assert_eq!(vm.get(80, "/env"), "HOME\nHOSTNAME\nNONE\nPATH\nTOKEN");
    assert_eq!(vm.get(80, "/env/TOKEN"), hex::encode(Sha256::digest("s3cret")));
    assert_eq!(vm.get(80, "/env/NONE"), hex::encode(Sha256::digest("other")));
    assert_eq!((vm.get(80, "/count"), vm.get(80, "/count")), ("1".to_owned(), "2".to_owned()));
    let (lines, next) = texts(&mut vm, "web", 0);
    assert_eq!((lines[0].as_str(), lines[1].as_str()), ("web 1 listens on port 8080", "GET /"));

    let Reply::Stats(stats) = vm.ask(Ask::Stats) else { panic!("no stats") };
    let memory: u64 = vm.get(80, "/memory").parse().unwrap();
    assert_eq!(stats.memory_total, memory * 1024, "as the container sees it");
    assert!(
        stats.memory_used > 0 && stats.disk_total > 200_000_000 && stats.disk_used > 0 && stats.cpus == 1,
        "{stats:?}"
    );
    assert_eq!(stats.os, "Casemate guest 0.1.0");
    let Reply::Evidence(evidence) = vm.ask(Ask::Evidence) else { panic!("no evidence") };
    assert_eq!(evidence.rtmr3, replayed(&evidence.events));
    let event = |name: &str| evidence.events.iter().find(|event| event.name == name).unwrap().payload.clone();
    assert_eq!(event("compose-hash"), first.compose_hash.to_string());
    assert_eq!(event("compose-hash"), hex::encode(Sha256::digest(&evidence.app_compose)));
    assert_eq!(evidence.events.last().unwrap().name, "system-ready");
    assert_eq!(vm.ask(Ask::PowerOff), Reply::Done);
    println!("agent's power off: {} ms", vm.off().as_millis());

    let mut second = config(2, &yaml("2"), &["TOKEN"]);
    second.sealed_env = sealed(&[("TOKEN", "other")]);
    let mut vm = disks.boot_image("casemate-0.2.0", &second, &[80]);
    assert_eq!(vm.settled().phase, Phase::WaitsForKeys);
    let (lines, _) = texts(&mut vm, "web", 0);
    assert_eq!(lines[0], "web 1 listens on port 8080", "what earlier boots wrote, before this one writes");
    vm.ask(keys());
    vm.done();
    let Reply::Stats(stats) = vm.ask(Ask::Stats) else { panic!("no stats") };
    assert_eq!(stats.os, "Casemate guest 0.2.0");
    assert_eq!(vm.get(80, "/"), "web 2");
    assert_eq!(vm.get(80, "/data"), "2", "a volume survives");
    assert_eq!(vm.get(80, "/env/TOKEN"), hex::encode(Sha256::digest("other")));
    let (lines, _) = texts(&mut vm, "web", next.saturating_sub(1));
    assert!(lines.contains(&"web 2 listens on port 8080".to_owned()), "line numbers go on: {lines:?}");
    vm.press_power();
    println!("power button: {} ms", vm.off().as_millis());
    let serial = disks.serial();
    for wanted in
        ["boot 1 of web-1", "boot 2 of web-1", "starting the service web", "the power button was pressed"]
    {
        assert!(serial.contains(&format!("casemate: {wanted}")), "{wanted}: {serial}");
    }
    assert!(!serial.contains("s3cret") && !serial.contains("still in use"), "{serial}");
}

#[test]
fn vm_gives_every_service_its_own_network() {
    let yaml = "services:
  two:
    image: web:2
    depends_on: [one]
    ports: ['82:8080']
    entrypoint:
    - sh
    - -c
    - for name in one first; do until wget -qO - http://$$name:8080/; do sleep 0.1; done; done; hostname; id -u; exec /bin/server
    user: web
  one: {image: 'web:1', container_name: first, ports: ['81:8080']}
";
    let disks = Disks::new();
    let mut vm = disks.boot(&config(1, yaml, &[]), &[81, 82]);
    let report = vm.done();
    let names: Vec<&str> = report.containers.iter().map(|container| container.service.as_str()).collect();
    assert_eq!(names, ["two", "one"], "in the order of the file");
    // Started is not the same as listening.
    let lines = wait_for("the log", || {
        let (lines, _) = texts(&mut vm, "two", 0);
        let lines: Vec<String> = lines.into_iter().filter(|line| !line.starts_with("wget: ")).collect();
        (lines.len() >= 5).then_some(lines)
    });
    assert_eq!(lines[..5], ["web 1", "web 1", "two", "1000", "web 2 listens on port 8080"]);
    assert_eq!(
        (vm.get(81, "/"), vm.get(82, "/")),
        ("web 1".to_owned(), "web 2".to_owned()),
        "both on the same port of their own"
    );
    assert!(matches!(vm.ask(Ask::Logs { service: "none".to_owned(), from: 0, limit: 1 }), Reply::Error(_)));
}

#[test]
fn vm_starts_again_what_ended() {
    let yaml = "services:
  web: {image: 'web:1', ports: ['8080:8080'], restart: on-failure}
  once: {image: 'web:1', entrypoint: [sh, -c, 'echo out; echo err >&2; exit 3']}
  twice: {image: 'web:1', entrypoint: [sh, -c, 'exit 4'], restart: 'on-failure:1'}
";
    let disks = Disks::new();
    let mut vm = disks.boot(&config(1, yaml, &[]), &[8080]);
    vm.done();
    assert_eq!(vm.get(8080, "/crash"), "crash");
    let containers = wait_for("what ended, ended", || {
        let containers = vm.report().containers;
        let as_it_should =
            containers[0].restarts == 1 && containers[0].running && containers[2].restarts == 1;
        (as_it_should && containers[1..].iter().all(|container| !container.running)).then_some(containers)
    });
    let codes: Vec<Option<i32>> = containers.iter().map(|container| container.exit_code).collect();
    assert_eq!(codes, [Some(7), Some(3), Some(4)]);
    assert_eq!(containers[1].restarts, 0);
    assert_eq!(vm.get(8080, "/"), "web 1");
    let Reply::Logs(lines) = vm.ask(Ask::Logs { service: "once".to_owned(), from: 0, limit: 10 }) else {
        panic!()
    };
    let mut lines: Vec<(&str, bool)> =
        lines.lines.iter().map(|line| (line.text.as_str(), line.stderr)).collect();
    lines.sort_unstable();
    assert_eq!(lines, [("err", true), ("out", false)]);
}

#[test]
fn vm_that_cannot_boot_says_why() {
    let web_1 = "services: {web: {image: 'web:1'}}";
    let disks = Disks::new();
    let fails = |config: &_| {
        let mut vm = disks.boot(config, &[]);
        let why = vm.failed();
        assert_eq!(vm.ask(Ask::PowerOff), Reply::Done, "it stays and answers");
        vm.off();
        why
    };

    let mut other = config(1, web_1, &[]);
    other.compose.push(' ');
    let found = hex::encode(Sha256::digest(&other.compose));
    assert_eq!(
        fails(&other),
        format!("the compose text hashes to {found}, and {} was expected", other.compose_hash)
    );

    let no_program = config(2, "services: {web: {image: 'web:1', entrypoint: [/no/such]}}", &[]);
    let why = fails(&no_program);
    assert!(why.starts_with("service `web` cannot be started: ") && why.contains("/no/such"), "{why}");

    let script = config_of(
        3,
        &json!({"docker_compose_file": web_1, "pre_launch_script": "echo from the script; exit 5"})
            .to_string(),
    );
    assert_eq!(fails(&script), "the pre-launch script ended with code 5; its output is in the serial log");
    assert!(disks.serial().contains("from the script"));

    let mut missing = config(4, web_1, &[]);
    missing.images.clear();
    assert_eq!(fails(&missing), "service `web`: the machine was given no image `web:1`");

    let mut keys_wrong = config(5, web_1, &["A", "B"]);
    keys_wrong.sealed_env = sealed(&[("A", "1")]);
    let mut vm = disks.boot(&keys_wrong, &[]);
    assert_eq!(vm.settled().phase, Phase::WaitsForKeys);
    vm.ask(keys());
    assert_eq!(vm.failed(), "the sealed environment has no `B`, which `allowed_envs` names");
    drop(vm);
}

#[test]
fn vm_runs_nothing_of_an_image_that_was_changed() {
    let disks = Disks::new();
    let (first, second) = (Image::web("1"), Image::web("2"));
    let yaml =
        "services: {web: {image: 'web:1', user: web, entrypoint: [sh, -c, 'echo it ran; exec sleep 1000']}}";
    let fails = |boot: u64| {
        let mut vm = disks.boot(&config(boot, yaml, &[]), &[]);
        let why = vm.failed();
        assert!(matches!(texts(&mut vm, "web", 0).0.as_slice(), []), "nothing ran");
        assert_eq!(vm.ask(Ask::PowerOff), Reply::Done, "it stays and answers");
        vm.off();
        why
    };
    let named = format!("image `web:1`, {}: ", first.named.digest);

    // Somebody would like to be somebody else.
    disks.add(&first, |mut tar| {
        let at = tar.windows(9).position(|bytes| bytes == b"web:x:100").expect("the user") + 6;
        tar[at..at + 4].copy_from_slice(b"0000");
        tar
    });
    let why = fails(1);
    assert!(why.starts_with(&format!("{named}layer 1 of 2, sha256:")), "{why}");
    assert!(why.contains("it has another content, which hashes to sha256:"), "{why}");

    // A program that no layer brought.
    disks.add(&first, |tar| {
        let mut more = layer(&[(tar::EntryType::Regular, "root/bin/other", "", 0o755, 0)]);
        more.truncate(512);
        [more, tar].concat()
    });
    let why = fails(2);
    assert_eq!(why, format!("{named}`bin/other` is on its disk and not in the image"));

    // A capability for a program, of which no layer says anything.
    disks.add(&first, |tar| {
        let named = |block: &[u8]| block.starts_with(b"root/etc/passwd\0");
        let at = tar.chunks(512).position(named).expect("a file") * 512;
        let mut more = tar::Builder::new(Vec::new());
        let capability = [&[1, 0, 0, 2, 0, 4][..], &[0; 14]].concat();
        let extensions = [("SCHILY.xattr.security.capability", &capability[..])];
        more.append_pax_extensions(extensions).expect("an archive");
        [&tar[..at], more.get_ref(), &tar[at..]].concat()
    });
    let why = fails(7);
    assert_eq!(
        why,
        format!("{named}`etc/passwd` of its disk has the extended attribute security.capability")
    );

    // One image in the place of another, under its serial number.
    disks.add(&second.in_place_of(&first), |tar| tar);
    let why = fails(3);
    assert!(why.starts_with(&format!("{named}{} has another content", first.named.digest)), "{why}");

    // No file system at all; and none that is meant.
    disks.write(&first, &[0; 8192]);
    let why = fails(4);
    assert!(why.starts_with(&format!("{named}cannot mount its disk /dev/vd")), "{why}");
    disks.remove(&first);
    let why = fails(5);
    let serial = &first.named.digest["sha256:".len()..][..20];
    assert_eq!(why, format!("{named}the machine has no disk with serial number `{serial}`"));

    disks.add(&first, |tar| tar);
    disks.boot(&config(6, yaml, &[]), &[]).done();
}

/// A layer of these entries: kind, path, content or target, mode, owner.
fn layer(entries: &[(tar::EntryType, &str, &str, u32, u64)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, path, text, mode, owner) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_mtime(1_000_000_000);
        let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        header.set_size(if is_link { 0 } else { text.len() as u64 });
        let added = match is_link {
            true => tar.append_link(&mut header, path, text),
            false => tar.append_data(&mut header, path, text.as_bytes()),
        };
        added.expect("an archive");
    }
    tar.into_inner().expect("an archive")
}

/// Waits, for as long as it is not asked to end.
const WAIT: &str = "trap 'exit 0' TERM; sleep 1000 & wait";

#[test]
fn vm_runs_an_image_with_everything_that_layers_can_have() {
    use tar::EntryType::{Char, Directory, Link, Regular, Symlink};
    let long = format!("deep/{}/{}", "d".repeat(150), "f".repeat(200));
    let busybox = Image::web("1");
    let copied = "root:x:0:0:root:/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n";
    let mut layers = vec![
        layer(&[
            (Directory, "usr", "", 0o755, 0),
            (Symlink, "usr/bin", "../bin", 0o777, 0),
            (Regular, "usr/bin/hello", "#!/bin/sh\necho hello\n", 0o755, 0),
            (Link, "again", "usr/bin/hello", 0, 0),
            (Regular, "old", "old", 0o644, 0),
            (Directory, "full", "", 0o755, 0),
            (Regular, "full/old", "old", 0o644, 0),
            (Directory, "sticky", "", 0o1777, 1000),
            (Regular, "secret", "only root reads this", 0o600, 0),
            (Regular, &long, "long", 0o644, 0),
            (Char, "zero", "", 0o666, 0),
        ]),
        layer(&[
            (Regular, ".wh.old", "", 0o644, 0),
            (Regular, "full/.wh..wh..opq", "", 0o644, 0),
            (Regular, "full/new", "new", 0o644, 1000),
            (Regular, "etc/passwd", copied, 0o644, 0),
        ]),
    ];
    // As many as an image has that was built step by step.
    for number in 0..40 {
        layers.push(layer(&[(Regular, "count", &format!("{number}\n"), 0o644, 0)]));
    }
    let image = busybox.with("all:1", layers);
    let look = format!(
        "test -e /d && echo stale; mkdir -p /$$(yes d | head -n 1900 | tr '\\n' /); hello; /again; stat -c '%h %a' /bin/hello; ls / | grep -c old; ls /full; stat -c '%u %a' /sticky /full/new; \
         cat /secret; echo; cat /{long}; echo; cat /count; touch /bin/hello /made && ls /made; id -u; {WAIT}"
    );
    let look_again = format!("exec 2>&1; cat /secret; echo x >/full/new && cat /full/new; ls /made; {WAIT}");
    let yaml = json!({"services": {
        "root": {"image": "all:1", "entrypoint": ["sh", "-c", look]},
        "web": {"image": "all:1", "user": "web", "entrypoint": ["sh", "-c", look_again]},
    }});
    let disks = Disks::new();
    disks.add(&image, |tar| tar);
    let mut config = config(1, &yaml.to_string(), &[]);
    config.images.push(image.named.clone());
    let mut vm = disks.boot(&config, &[]);
    vm.done();
    let wanted: [(&str, &[&str]); 2] = [
        (
            "root",
            &[
                "hello",
                "hello",
                "2 755",
                "0",
                "new",
                "1000 1777",
                "1000 644",
                "only root reads this",
                "long",
                "39",
                "/made",
                "0",
            ],
        ),
        (
            "web",
            &["cat: can't open '/secret': Permission denied", "x", "ls: /made: No such file or directory"],
        ),
    ];
    for (service, wanted) in wanted {
        let lines = wait_for("the log", || {
            let (lines, _) = texts(&mut vm, service, 0);
            (lines.len() >= wanted.len()).then_some(lines)
        });
        assert_eq!(lines, wanted, "{service}");
    }
    // What a container changed is gone at the next boot, however deep it lies, and the disk is what it was.
    vm.ask(Ask::PowerOff);
    vm.off();
    config.boot = 2;
    let mut vm = disks.boot(&config, &[]);
    vm.done();
    for (service, wanted) in wanted {
        let lines = wait_for("the log", || {
            let (lines, _) = texts(&mut vm, service, wanted.len() as u64);
            (lines.len() >= wanted.len()).then_some(lines)
        });
        assert_eq!(lines, wanted, "{service}");
    }
}

#[test]
fn vm_answers_whoever_comes_next() {
    let disks = Disks::new();
    let mut vm = disks.boot(&config(1, "services: {web: {image: 'web:1'}}", &[]), &[]);
    vm.done();
    // A driver that went away in the middle of a frame.
    vm.write_raw(&100_u32.to_be_bytes());
    vm.write_raw(b"{\"id\":");
    vm.reconnect();
    wait_for("an answer", || {
        // What the agent still waits for may take the first question with it; a driver asks again.
        vm.try_report()
    });
    // No frame at all, and one that is too long.
    vm.write_raw(b"\0\0\0\x02{}");
    vm.reconnect();
    wait_for("an answer", || vm.try_report());
    vm.write_raw(&u32::MAX.to_be_bytes());
    vm.reconnect();
    let report = wait_for("an answer", || vm.try_report());
    assert_eq!(report.phase, Phase::Done);
}

#[test]
fn vm_keeps_its_containers_in() {
    let look = "mknod /disk b 254 0 && head -c 1 /disk; chroot / true; ls /data; ps | grep -c '[g]uest'; cat /dstack/user_config; \
                ls -ld /volume | cut -c1-10; stat -c %u /volume; echo x >/volume/file && echo written; echo x >/readonly/file; cut -d: -f1 /etc/group";
    let yaml = json!({
        "services": {"web": {
            "image": "web:1",
            "entrypoint": ["sh", "-c", format!("({look}) 2>&1; exec sleep 1000")],
            "volumes": ["mine:/volume", "mine:/readonly:ro", "etc:/etc"],
        }},
        "volumes": {"mine": null, "etc": {}},
    });
    let disks = Disks::new();
    let mut config = config(1, &yaml.to_string(), &[]);
    config.user_config = Some("free text\n".to_owned());
    let mut vm = disks.boot(&config, &[]);
    vm.done();
    let lines = wait_for("the log", || {
        let (lines, _) = texts(&mut vm, "web", 0);
        (lines.len() >= 10).then_some(lines)
    });
    let wanted = [
        "head: /disk: Operation not permitted",
        "chroot: can't change root directory to '/': Operation not permitted",
        "0",
        "free text",
        "drwxr-xr-x",
        "0",
        "written",
        "sh: can't create /readonly/file: Read-only file system",
        // A new volume begins as what the image has there.
        "root",
        "web",
    ];
    assert_eq!(lines, wanted);
    // As process 1 of its container, sleep does not hear what asks it to end.
    assert_eq!(vm.ask(Ask::PowerOff), Reply::Done);
    assert_eq!(vm.report().phase, Phase::Stopping);
    let took = vm.off();
    assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&took), "{took:?}");
}

#[test]
fn vm_ends_with_its_agent() {
    let disks = Disks::new();
    let script = "echo before; kill -9 $PPID; sleep 100";
    let compose =
        json!({"docker_compose_file": "services: {web: {image: 'web:1'}}", "pre_launch_script": script});
    disks.boot(&config_of(1, &compose.to_string()), &[]).off();
    let serial = disks.serial();
    assert!(serial.contains("casemate: the agent was ended by signal 9; the machine goes down"), "{serial}");

    // Nor does one that waits for keys have to be killed.
    let mut waits = config(2, "services: {web: {image: 'web:1'}}", &["A"]);
    waits.sealed_env = sealed(&[("A", "1")]);
    let mut vm = disks.boot(&waits, &[]);
    assert_eq!(vm.settled().phase, Phase::WaitsForKeys);
    vm.press_power();
    vm.off();
}

#[test]
fn vm_with_a_full_disk_goes_on_and_boots_again() {
    let fill = "dd if=/dev/zero of=/data/fill bs=1M 2>/dev/null; exec /bin/server";
    let yaml = json!({
        "services": {"web": {"image": "web:1", "entrypoint": ["sh", "-c", fill], "ports": ["80:8080"], "volumes": ["data:/data"]}},
        "volumes": {"data": null},
    })
    .to_string();
    let disks = Disks::new();
    for boot in 1..=2 {
        let mut vm = disks.boot(&config(boot, &yaml, &[]), &[80]);
        vm.done();
        assert_eq!(vm.get(80, "/"), "web 1");
        let Reply::Stats(stats) = vm.ask(Ask::Stats) else { panic!("no stats") };
        assert!(stats.disk_total - stats.disk_used < 16 * 1024 * 1024, "it is full: {stats:?}");
        assert!(matches!(
            vm.ask(Ask::Logs { service: "web".to_owned(), from: 0, limit: 10 }),
            Reply::Logs(_)
        ));
        vm.ask(Ask::PowerOff);
        vm.off();
    }
}
