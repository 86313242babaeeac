//! Every future can be sent to another thread.

use casemate_sdk::{Client, LogSource, PatchOutcome};

use crate::support::HASH;

fn is_send<T: Send>(_: T) {}

#[test]
fn every_future_and_stream_is_send() {
    let client = Client::anonymous("http://127.0.0.1:1/api/v1").unwrap();
    let cvm = client.cvm("web-1");
    is_send(client.is_casemate());
    is_send(client.me());
    is_send(client.cvms().send());
    is_send(client.cvms().stream());
    is_send(client.apps().send());
    is_send(client.apps().stream());
    is_send(client.app_cvms("3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091".parse().unwrap()));
    is_send(client.os_images().send());
    is_send(client.operations().send());
    is_send(client.operations().stream());
    is_send(client.audit().stream());
    is_send(client.approvals().stream());
    is_send(client.app("a").allowed());
    is_send(client.app("a").is_allowed(HASH).send());
    is_send(client.app("a").cvms_allowed());
    is_send(client.app("a").device_allowlist());
    is_send(client.app("a").new_instance().send());
    is_send(cvm.is_allowed().send());
    is_send(cvm.replicate().send());
    is_send(cvm.commit_replica("t", HASH, ""));
    is_send(client.approval("a").get());
    is_send(client.approval("a").commit(""));
    is_send(client.status_batch([]));
    is_send(client.refresh_instance_ids(["web-1"]).send());
    is_send(client.look_up_instance_ids(&Default::default()));
    is_send(client.instance_types());
    is_send(client.available_nodes());
    is_send(client.fields());
    is_send(client.nodes());
    is_send(client.node(1).get());
    is_send(client.node(1).plan_fault(casemate_sdk::Fault::Crash).send());
    is_send(client.node(1).clear_faults());
    is_send(client.kms().list());
    is_send(client.kms().get("phala"));
    is_send(client.kms().nodes("phala"));
    is_send(client.kms().next_app_ids(1));
    is_send(client.keys().list());
    is_send(client.keys().create("ci").send());
    is_send(client.keys().revoke("key_1"));
    is_send(client.deploy("web-1", "services: {}").send());
    is_send(cvm.get());
    is_send(cvm.get_tagged());
    is_send(cvm.observed());
    is_send(cvm.state());
    is_send(cvm.compose_file());
    is_send(cvm.compose_text());
    is_send(cvm.docker_compose_yml());
    is_send(cvm.pre_launch_script_text());
    is_send(cvm.user_config());
    is_send(cvm.stats());
    is_send(cvm.network());
    is_send(cvm.composition());
    is_send(cvm.available_os_images());
    is_send(cvm.revisions().stream());
    is_send(cvm.logs(LogSource::Serial).send());
    is_send(cvm.logs(LogSource::Serial).follow());
    is_send(cvm.watch("running").send());
    is_send(cvm.watch("running").stream());
    is_send(cvm.resources().send());
    is_send(cvm.resources().dry_run().send());
    is_send(cvm.visibility().send());
    is_send(cvm.pre_launch_script("").send());
    is_send(cvm.docker_compose("").send());
    is_send(cvm.seal(&[]));
    is_send(cvm.os_image("x").send());
    is_send(cvm.listed(true).send());
    is_send(cvm.rename("web-2").send());
    is_send(cvm.refresh_instance_id().send());
    is_send(cvm.look_up_instance_id(Default::default()));
    is_send(cvm.compose().provision(Default::default()).send());
    is_send(cvm.compose().commit(HASH).send());
    is_send(cvm.patch().send());
    is_send(cvm.confirm(HASH, "already-registered").send());
    is_send(cvm.commit_update("t", HASH, "").send());
    is_send(cvm.start().send());
    is_send(cvm.delete().send());
    is_send(cvm.rollback(1).send());
    let op = client.operation("0198c1d2-0000-7000-8000-000000000001");
    is_send(op.get());
    is_send(op.wait());
    is_send(op.watch());
    is_send(op.cancel());
    is_send(async {
        if let Ok(PatchOutcome::NeedsApproval(ask)) = cvm.patch().send().await {
            let _ = (ask.confirm("").await, ask.commit("").await);
        }
    });
}
