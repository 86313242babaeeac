//! `casemate cvms list`.

use casemate_sdk::wire::{Cvm, Page};
use clap::Args;
use futures_util::TryStreamExt;
use jiff::Timestamp;

use crate::commands::nodes;
use crate::context::Context;
use crate::error::Result;
use crate::human::{self, NOTHING};
use crate::output::{Col, table};

/// List CVMs, newest first
#[derive(Args)]
pub(crate) struct List {
    /// Which page
    #[arg(long, value_name = "N", default_value_t = 1)]
    page: u64,
    /// How many on a page, 1 to 100
    #[arg(long, value_name = "N", default_value_t = 50)]
    page_size: u32,
    /// All pages, as one
    #[arg(long, conflicts_with_all = ["page", "page_size"])]
    all: bool,
    /// Only those on this node, by name or number
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

impl List {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let mut list = cx.client()?.cvms();
        if let Some(node) = &self.node {
            list = list.node(nodes::number(cx, node).await?);
        }
        let page = if self.all {
            let items: Vec<Cvm> = list.page_size(100).stream().try_collect().await?;
            let total = items.len() as u64;
            Page::new(items, total, 1, total.max(1))
        } else {
            list.page(self.page).page_size(self.page_size).send().await?
        };
        cx.out.result(&page, |page| rows(&page.items, human::now()))?;
        if !cx.out.is_json() {
            match (page.items.len(), page.total) {
                (0, 0) if self.node.is_some() => cx.out.note("No CVMs there."),
                (0, 0) => cx.out.note("No CVMs yet. `casemate deploy` makes one."),
                (shown, total) if (shown as u64) < total => {
                    cx.out.note(&format!(
                        "Page {} of {}, {total} CVMs in all. `--all` shows them.",
                        page.page, page.pages
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// CVMs as a table.
pub(crate) fn rows(cvms: &[Cvm], now: Timestamp) -> String {
    if cvms.is_empty() {
        return String::new();
    }
    let columns = [
        Col::Left("NAME"),
        Col::Left("STATUS"),
        Col::Right("VCPU"),
        Col::Right("MEMORY"),
        Col::Right("DISK"),
        Col::Left("IMAGE"),
        Col::Left("NODE"),
        Col::Left("CHANGED"),
    ];
    let number =
        |number: Option<u32>, unit: &str| number.map_or(NOTHING.into(), |number| format!("{number}{unit}"));
    table(
        &columns,
        cvms.iter().map(|cvm| {
            let text = |text: Option<&String>| text.map_or(NOTHING, String::as_str).to_owned();
            vec![
                cvm.name.clone(),
                cvm.status.to_string(),
                number(cvm.resource.vcpu, ""),
                cvm.resource.memory_in_gb.map_or(NOTHING.into(), memory),
                number(cvm.resource.disk_in_gb.or(cvm.disk_size), " GB"),
                text(cvm.os.as_ref().and_then(|os| os.name.as_ref()).or(cvm.base_image.as_ref())),
                text(cvm.node_info.as_ref().and_then(|node| node.name.as_ref())),
                human::ago_opt(now, cvm.updated_at.or(cvm.created_at)),
            ]
        }),
    )
}

/// Memory in GB, as the wire gives it.
pub(crate) fn memory(gb: f64) -> String {
    if gb.fract() == 0.0 { format!("{gb} GB") } else { format!("{} MB", (gb * 1024.0).round()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A CVM with everything that is shown.
    pub(crate) fn cvm(changes: Value) -> Cvm {
        let mut cvm = json!({
            "id": "cvm_AR0ShvD7NR",
            "name": "web-1",
            "app_id": "0a41ef128383c4f192cfdc7ce20960d25f102df0",
            "vm_uuid": "908d24b6-026d-4024-849e-a5adbfb8ba46",
            "instance_id": "a26a73c1039f5348da2a7b370b9e0ebc35fa3181",
            "resource": { "instance_type": "tdx.small", "vcpu": 1, "memory_in_gb": 2.0, "disk_in_gb": 20, "gpus": 0 },
            "node_info": { "object_type": "node", "id": 1, "name": "sim-1", "region": "local" },
            "os": { "name": "dstack-0.5.5", "is_dev": false },
            "kms_type": "phala",
            "status": "running",
            "compose_hash": "4903e3f970e92e5ea3d34c61be8bd4b02c2157c0f55ef7ee374251f558c623ce",
            "public_logs": true,
            "public_sysinfo": true,
            "public_tcbinfo": false,
            "listed": false,
            "created_at": "2026-03-01T10:00:00.000000Z",
            "updated_at": "2026-03-01T11:58:00.000000Z",
        });
        let (Value::Object(cvm_map), Value::Object(changes)) = (&mut cvm, changes) else {
            panic!("two objects")
        };
        cvm_map.extend(changes);
        serde_json::from_value(cvm).unwrap()
    }

    pub(crate) fn noon() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn cvms_are_a_table() {
        let bare = json!({ "name": "worker", "status": "creating", "resource": {}, "node_info": null, "os": null,
            "updated_at": null, "created_at": null });
        assert_eq!(
            rows(&[cvm(json!({})), cvm(bare)], noon()),
            "\
NAME    STATUS    VCPU  MEMORY   DISK  IMAGE         NODE   CHANGED
web-1   running      1    2 GB  20 GB  dstack-0.5.5  sim-1  2 min ago
worker  creating     -       -      -  -             -      -"
        );
        assert_eq!(rows(&[], noon()), "");
    }

    #[test]
    fn memory_that_is_no_whole_gb_is_in_mb() {
        assert_eq!(memory(2.0), "2 GB");
        assert_eq!(memory(1.5), "1536 MB");
    }
}
