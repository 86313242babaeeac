//! Each way to change a running machine, and what then is to be seen from inside of it.

use std::path::PathBuf;
use std::process::Command;

use casemate_sdk::env::EnvVar;
use sha2::{Digest, Sha256};

use super::world::{NAME, World, compose, done};

/// Memory that the kernel in a machine has, of what the machine has: in MB.
async fn memory(world: &World) -> u64 {
    world.ask("/memory").await.parse::<u64>().unwrap() / 1024
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

#[tokio::test]
async fn vm_every_method_changes_what_it_says_as_seen_from_inside() {
    let mut world = World::new();
    let client = world.client.clone();
    done(client.deploy(NAME, &compose("web:1", "")).memory_mb(512).disk_gb(1).send().await).await;
    let mut boots = 1;
    assert_eq!(world.ask("/").await, "web 1");
    assert_eq!(world.ask("/cpus").await, "1");
    assert_eq!(world.ask("/count").await, "1");
    let cvm = world.cvm();

    // Two fields, one restart; what is on a volume stays.
    let patched = cvm.patch().compose(compose("web:2", "")).memory_mb(700).send().await.unwrap().accepted();
    let downtime = done(patched).await.downtime_ms.expect("it was down");
    println!("memory and compose file of a running machine: down for {downtime} ms");
    world.one_boot_more(&mut boots).await;
    assert_eq!(world.ask("/").await, "web 2");
    assert_eq!(world.ask("/count").await, "2");
    assert!((600..700).contains(&memory(&world).await));

    // updateCvmResources: a disk grows with what is on it.
    let before: u64 = world.ask("/disk").await.parse().unwrap();
    done(cvm.resources().vcpu(2).memory_mb(512).disk_gb(2).send().await).await;
    world.one_boot_more(&mut boots).await;
    assert_eq!(world.ask("/cpus").await, "2");
    assert!((400..512).contains(&memory(&world).await));
    let after: u64 = world.ask("/disk").await.parse().unwrap();
    assert!(after > before * 19 / 10, "{before} KiB, then {after} KiB");
    assert_eq!(world.ask("/data").await, "2");

    // updatePreLaunchScript: it runs before the app, and the console shows it.
    let script = "#!/bin/sh\necho from the script: $(cat /proc/sys/kernel/ostype)\n";
    done(cvm.pre_launch_script(script).send().await.unwrap().accepted()).await;
    world.one_boot_more(&mut boots).await;
    let serial = cvm.logs(casemate_sdk::LogSource::Serial).send().await.unwrap();
    assert!(serial.contains("from the script: Linux"), "{serial}");

    // updateCvmEnvs: only what the compose file allows, and it reaches the app alone.
    let secret = "correct horse battery staple";
    let sealed = cvm.seal(&[EnvVar::new("TOKEN", secret)]).await.unwrap();
    let environment = compose("web:2", "    environment: ['TOKEN=${TOKEN}']\n");
    let patch = cvm.patch().compose(environment).envs(sealed).allowed_envs(["TOKEN"]);
    done(patch.send().await.unwrap().accepted()).await;
    let seen = world.one_boot_more(&mut boots).await;
    assert_eq!(seen.env_keys, ["TOKEN"]);
    assert_eq!(world.ask("/env/TOKEN").await, sha256(secret));
    nowhere_on_the_host(&world, secret);

    // The user config is a file beside the app.
    done(cvm.patch().user_config("{\"colour\":\"blue\"}").send().await.unwrap().accepted()).await;
    let seen = world.one_boot_more(&mut boots).await;
    assert_eq!(world.ask("/config").await, sha256("{\"colour\":\"blue\"}"));
    assert_eq!(seen.user_config_sha256, Some(sha256("{\"colour\":\"blue\"}")));

    // updateOsImage
    let image = seen.image;
    let other = if image == "casemate-0.1.0" { "casemate-0.2.0" } else { "casemate-0.1.0" };
    done(cvm.os_image(other).send().await).await;
    assert_eq!(world.one_boot_more(&mut boots).await.image, other);
    assert_eq!(world.ask("/env/TOKEN").await, sha256(secret));

    // updateCvmVisibility
    done(cvm.visibility().public_logs(false).send().await.unwrap().accepted()).await;
    assert!(!world.one_boot_more(&mut boots).await.public_logs);
    cvm.listed(true).send().await.unwrap();
    assert_eq!(world.observed().await.boot_count, boots, "being listed is no matter of the machine");

    // refreshCvmInstanceId: the guest itself has another one, and still its data.
    let before = world.observed().await.instance_id;
    let refreshed = cvm.refresh_instance_id().send().await.unwrap();
    client.operation(refreshed.correlation_id.unwrap()).wait().await.unwrap();
    let after = world.one_boot_more(&mut boots).await.instance_id;
    assert!(after.is_some() && after != before);
    assert_eq!(world.ask("/data").await, "2");

    // The compose file in two steps.
    let mut document = cvm.compose_file().await.unwrap();
    document.set_docker_compose_file(&compose("web:1", ""));
    let provision = cvm.compose().provision(document).send().await.unwrap();
    done(cvm.compose().commit(provision.compose_hash).send().await.unwrap().accepted()).await;
    let seen = world.one_boot_more(&mut boots).await;
    assert_eq!(seen.compose_hash, Some(provision.compose_hash));
    assert_eq!(world.ask("/").await, "web 1");

    // Off and on, and with the cloud: nothing runs on when that has ended.
    done(cvm.stop().send().await).await;
    assert_eq!(world.machines(), [0_u32; 0]);
    done(cvm.start().send().await).await;
    world.one_boot_more(&mut boots).await;
    assert_eq!(world.ask("/data").await, "2");
    assert_eq!(world.machines().len(), 1);
    world.end();
    assert_eq!(world.machines(), [0_u32; 0]);
}

/// Looks through every file of the data folder, and through what the machine's process was told.
fn nowhere_on_the_host(world: &World, secret: &str) {
    let machines = world.machines();
    assert_eq!(machines.len(), 1);
    let told = ["cmdline", "environ"].map(|file| PathBuf::from(format!("/proc/{}/{file}", machines[0])));
    // It finds what is there: the image's name is in the same files.
    for (text, there) in [("web:2", true), (secret, false)] {
        let mut grep = Command::new("grep");
        let found = grep.args(["-rlF", "--", text]).args(&told).arg(world.data()).output().unwrap();
        let files = String::from_utf8_lossy(&found.stdout);
        assert_eq!(found.status.success(), there, "{text} in {files}");
    }
}
