//! The server is killed in each step of an update of a real machine, and started again.

use casemate_sdk::wire::OperationStatus;
use casemate_types::ids::OperationId;

use super::world::{NAME, World, compose, done};

/// Waits until the operation is at `step`, or past it.
async fn until(world: &World, id: OperationId, step: &str) {
    let operation = world.client.operation(id);
    loop {
        let now = operation.get().await.unwrap();
        let begun = now.steps.iter().any(|one| one.name == step && one.started_at.is_some());
        if begun || now.ended_at.is_some() {
            return;
        }
    }
}

#[tokio::test]
async fn vm_an_update_survives_kill_9_of_the_server_in_each_step() {
    let mut world = World::new();
    done(world.client.deploy(NAME, &compose("web:1", "")).memory_mb(512).disk_gb(1).send().await).await;
    let mut boots = 1;
    for (count, step) in ["stage", "stop", "apply", "start", "observe"].into_iter().enumerate() {
        let (version, memory) = if count % 2 == 0 { (2, 600) } else { (1, 512) };
        assert_eq!(world.ask("/count").await, (count + 1).to_string());
        let patch = world.cvm().patch().compose(compose(&format!("web:{version}"), "")).memory_mb(memory);
        let id = patch.send().await.unwrap().accepted().unwrap().id().expect("this server has operations");
        until(&world, id, step).await;
        world.kill_and_start();
        let ended = world.client.operation(id).wait().await.unwrap().expect("this server has operations");
        assert_eq!(ended.status, OperationStatus::Succeeded, "killed in {step}");
        let seen = world.one_boot_more(&mut boots).await;
        assert_eq!(seen.memory_mb, memory, "killed in {step}");
        assert_eq!(world.ask("/").await, format!("web {version}"));
        assert_eq!(world.machines().len(), 1);
    }
}
