//! `casemate cvms get` and `observed`: what is recorded of a CVM, and what its node says.

use casemate_sdk::wire::{self, Cvm, CvmState};
use clap::Args;
use jiff::Timestamp;

use super::list::memory;
use crate::context::Context;
use crate::error::{AboutExt, Result};
use crate::human::{self, NOTHING, yes_no};
use crate::output::fields;

/// Show a CVM
#[derive(Args)]
pub(crate) struct Get {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
}

impl Get {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let cvm = cx.client()?.cvm(&self.cvm);
        if cx.out.is_json() {
            return cx.out.json(&cvm.get().await.about_cvm(&self.cvm)?);
        }
        // What went wrong lately is in the state; without it there is still enough to show.
        let (known, state) = tokio::join!(cvm.get(), cvm.state());
        let known = known.about_cvm(&self.cvm)?;
        cx.out.print(&shown(&known, state.ok().as_ref(), human::now()))
    }
}

fn shown(cvm: &Cvm, state: Option<&CvmState>, now: Timestamp) -> String {
    let time = |at| format!("{} ({})", human::time(at), human::ago(now, at));
    let id = |id: Option<String>| id.filter(|id| !id.is_empty());
    let size = [
        cvm.resource.instance_type.clone(),
        cvm.resource.vcpu.map(|vcpu| format!("{vcpu} vCPU")),
        cvm.resource.memory_in_gb.map(|gb| format!("{} memory", memory(gb))),
        cvm.resource.disk_in_gb.map(|gb| format!("{gb} GB disk")),
        cvm.resource.gpus.filter(|&gpus| gpus > 0).map(|gpus| format!("{gpus} GPUs")),
    ];
    let public: Vec<_> =
        [("logs", cvm.public_logs), ("sysinfo", cvm.public_sysinfo), ("tcbinfo", cvm.public_tcbinfo)]
            .into_iter()
            .filter_map(|(what, public)| public?.then_some(what))
            .collect();
    let node = cvm.node_info.as_ref();
    let place = [node.and_then(|node| node.name.clone()), node.and_then(|node| node.region.clone())];
    let work = cvm.progress.as_ref().map(|progress| {
        let since =
            progress.started_at.map(|at| format!(", accepted {}", human::ago(now, at))).unwrap_or_default();
        format!("{}{since}", progress.correlation_id.as_deref().unwrap_or("at work"))
    });
    fields([
        ("name", Some(cvm.name.clone())),
        ("status", Some(cvm.status.to_string())),
        ("operation", work),
        ("last failure", state.and_then(|state| id(state.boot_error.clone()))),
        ("up for", state.and_then(|state| id(state.uptime.clone()))),
        ("size", joined(size)),
        ("image", cvm.os.as_ref().and_then(|os| os.name.clone()).or_else(|| cvm.base_image.clone())),
        ("node", joined(place)),
        ("key service", cvm.kms_type.as_ref().map(ToString::to_string)),
        ("compose hash", cvm.compose_hash.map(|hash| hash.to_string())),
        ("public", Some(if public.is_empty() { "nothing".into() } else { public.join(", ") })),
        ("listed", Some(yes_no(cvm.listed).into())),
        ("address", addresses(cvm)),
        ("id", Some(cvm.id.to_string())),
        ("app id", cvm.app_id.map(|id| id.to_string())),
        ("machine", cvm.vm_uuid.map(|id| id.to_string())),
        ("instance id", cvm.instance_id.map(|id| id.to_string())),
        ("created", cvm.created_at.map(time)),
        ("changed", cvm.updated_at.map(time)),
    ])
}

/// Where a CVM is reached, with commas.
pub(crate) fn addresses(cvm: &Cvm) -> Option<String> {
    let mut known: Vec<&str> = cvm.endpoints.iter().flatten().map(|endpoint| endpoint.app.as_str()).collect();
    known.retain(|address| !address.is_empty());
    (!known.is_empty()).then(|| known.join(", "))
}

/// What is known, with commas.
fn joined<const N: usize>(parts: [Option<String>; N]) -> Option<String> {
    let known: Vec<_> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    (!known.is_empty()).then(|| known.join(", "))
}

/// Ask the node itself what it runs
///
/// Everything in the answer is computed by the node from what it holds, and nothing by the server from its records.
#[derive(Args)]
pub(crate) struct Observed {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
}

impl Observed {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let observed = cx.client()?.cvm(&self.cvm).observed().await.about_cvm(&self.cvm)?;
        cx.out.result(&observed, seen)
    }
}

fn seen(seen: &wire::Observed) -> String {
    let public: Vec<_> =
        [("logs", seen.public_logs), ("sysinfo", seen.public_sysinfo), ("tcbinfo", seen.public_tcbinfo)]
            .into_iter()
            .filter_map(|(what, public)| public.then_some(what))
            .collect();
    let ports: Vec<_> = seen.ports.iter().map(|one| format!("{} at {}", one.port, one.at)).collect();
    let list = |items: &[String]| if items.is_empty() { NOTHING.to_owned() } else { items.join(", ") };
    fields([
        ("status", Some(seen.status.to_string())),
        ("boots", Some(seen.boot_count.to_string())),
        ("last stop", seen.last_stop.as_ref().map(ToString::to_string)),
        ("last downtime", seen.last_downtime_ms.map(human::millis)),
        ("revision", Some(seen.revision.to_string())),
        ("generation", Some(seen.generation.to_string())),
        ("compose hash", seen.compose_hash.map(|hash| hash.to_string())),
        ("instance id", seen.instance_id.map(|id| id.to_string())),
        ("vCPU", Some(seen.vcpu.to_string())),
        ("memory", Some(human::megabytes(seen.memory_mb.into()))),
        ("disk", Some(format!("{} GB", seen.disk_gb))),
        ("GPUs", (seen.gpus > 0).then(|| seen.gpus.to_string())),
        ("image", Some(seen.image.clone())),
        ("environment", Some(list(&seen.env_keys))),
        ("public", Some(if public.is_empty() { "nothing".into() } else { public.join(", ") })),
        ("ports", (!ports.is_empty()).then(|| ports.join(", "))),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::{cvm, noon};
    use super::*;
    use serde_json::json;

    #[test]
    fn every_address_is_shown() {
        let at = |url: &str| json!({ "app": url, "instance": url });
        let reached =
            cvm(json!({ "endpoints": [at("http://127.0.0.1:20000"), at("http://127.0.0.1:8080")] }));
        let text = shown(&reached, None, noon());
        assert!(
            text.lines().any(|line| line.starts_with("address ")
                && line.ends_with(" http://127.0.0.1:20000, http://127.0.0.1:8080")),
            "{text}"
        );
        assert_eq!(addresses(&cvm(json!({ "endpoints": [] }))), None);
    }

    #[test]
    fn a_cvm_is_told_in_lines_and_what_went_wrong_is_among_them() {
        let busy = cvm(json!({
            "status": "updating",
            "in_progress": true,
            "progress": {
                "target": "running",
                "started_at": "2026-03-01T11:59:30Z",
                "correlation_id": "0198c1d2-0000-7000-8000-000000000000",
            },
        }));
        let state = json!({ "status": "updating", "uptime": "", "boot_error": "update x failed and was put back: no" });
        let state: CvmState = serde_json::from_value(state).unwrap();
        assert_eq!(
            shown(&busy, Some(&state), noon()),
            "\
name          web-1
status        updating
operation     0198c1d2-0000-7000-8000-000000000000, accepted 30 s ago
last failure  update x failed and was put back: no
size          tdx.small, 1 vCPU, 2 GB memory, 20 GB disk
image         dstack-0.5.5
node          sim-1, local
key service   phala
compose hash  4903e3f970e92e5ea3d34c61be8bd4b02c2157c0f55ef7ee374251f558c623ce
public        logs, sysinfo
listed        no
id            cvm_AR0ShvD7NR
app id        0a41ef128383c4f192cfdc7ce20960d25f102df0
machine       908d24b6-026d-4024-849e-a5adbfb8ba46
instance id   a26a73c1039f5348da2a7b370b9e0ebc35fa3181
created       2026-03-01 10:00:00 UTC (2 h ago)
changed       2026-03-01 11:58:00 UTC (2 min ago)"
        );
    }
}
