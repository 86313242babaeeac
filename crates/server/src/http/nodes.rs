//! Nodes, as those see them who look for a place, and as those who look after them.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::wire;

use super::account::{TIER, workspace_of};
use super::error::answer;
use super::extract::{Caller, Params};
use super::page::{self, Wanted};
use super::view;
use crate::app::{App, Node};
use crate::config::EMBEDDED_KMS;
use crate::cvm::plan::{DEFAULT_DISK_GB, INSTANCE_TYPES, InstanceType};
use crate::cvm::spec::Booking;
use crate::error::Result;
use crate::store::NodeRow;

fn kms_slugs(app: &App) -> Vec<String> {
    let contracts = app.config.contract_kms.iter().map(|kms| kms.slug.clone());
    std::iter::once(EMBEDDED_KMS.to_owned()).chain(contracts).collect()
}

/// Nodes that new CVMs can be put on, the best first.
fn candidates(app: &App) -> Result<Vec<NodeRow>> {
    let mut rows = app.store.nodes()?;
    rows.retain(|row| app.node(row.id).is_some_and(Node::is_online));
    rows.sort_by_key(|row| (row.facts.capacity.gpus > 0, std::cmp::Reverse(row.free().memory_mb), row.id));
    Ok(rows)
}

fn gpus_left(rows: &[NodeRow]) -> wire::GpuAvailability {
    let gpus = rows.iter().map(|row| u64::from(row.free().gpus)).sum();
    wire::GpuAvailability {
        has_reserved_gpus: false,
        reserved_gpu_count: 0,
        has_public_gpus: gpus > 0,
        public_gpu_count: gpus,
    }
}

/// List nodes with room
///
/// The nodes that new CVMs can be put on, the best first, with what is left on them.
#[utoipa::path(get, path = "/teepods/available", tag = "inventory",
    responses((status = 200, description = "The nodes", body = wire::TeepodsAvailable)))]
pub async fn teepods_available(State(app): State<App>, _: Caller) -> Result<Response> {
    let rows = candidates(&app)?;
    let slugs = kms_slugs(&app);
    let available = wire::TeepodsAvailable {
        tier: TIER.to_owned(),
        capacity: wire::Capacity::default(),
        kms_list: slugs.iter().map(|slug| view::kms_info(&app, slug)).collect(),
        gpu_availability: Some(gpus_left(&rows)),
        nodes: rows.iter().map(|row| teepod(&app, row, &slugs)).collect(),
    };
    Ok(answer(StatusCode::OK, &available))
}

/// List what CVMs can be made of
///
/// Nodes, key services, sizes, and what goes with what.
#[utoipa::path(get, path = "/teepods/cvm-create-resources", tag = "inventory",
    responses((status = 200, description = "All of it", body = wire::CreateResources)))]
pub async fn cvm_create_resources(State(app): State<App>, _: Caller) -> Result<Response> {
    let rows = candidates(&app)?;
    let slugs = kms_slugs(&app);
    let names = |row: &NodeRow| row.facts.images.iter().map(|image| image.name.clone()).collect::<Vec<_>>();
    let services: Vec<_> = slugs
        .iter()
        .map(|slug| wire::CreateKms {
            info: view::kms_info(&app, slug),
            kms_type: view::kms_type(&app, slug).to_string(),
            supported_os_images: super::images::all(&app).into_iter().map(|image| image.name).collect(),
        })
        .collect();
    let relation = |row: &NodeRow, kms: &wire::CreateKms| wire::CreateRelation {
        teepod_id: row.id,
        kms_id: kms.info.id.clone(),
        kms_type: kms.kms_type.clone(),
        kms_contract_address: kms.info.kms_contract_address.clone(),
        supported_os_images: names(row),
    };
    let resources = wire::CreateResources {
        tier: TIER.to_owned(),
        capacity: wire::Capacity::default(),
        nodes: rows.iter().map(|row| teepod(&app, row, &slugs)).collect(),
        node_kms_relations: rows
            .iter()
            .flat_map(|row| services.iter().map(move |kms| relation(row, kms)))
            .collect(),
        kms_nodes: services,
        gateway_nodes: Vec::new(),
        instance_types: INSTANCE_TYPES.iter().map(create_size).collect(),
        gpu_availability: gpus_left(&rows),
    };
    Ok(answer(StatusCode::OK, &resources))
}

fn create_size(size: &InstanceType) -> wire::CreateSize {
    wire::CreateSize {
        id: size.name.to_owned(),
        name: size.name.to_owned(),
        vcpu: size.vcpu,
        memory_mb: size.memory_mb,
        default_disk_size_gb: DEFAULT_DISK_GB,
        requires_gpu: size.gpus > 0,
        requires_gpu_count: size.gpus,
        family: Some(size.family.to_owned()),
    }
}

/// Get the quotas of a workspace
///
/// Nothing but the nodes limits a workspace: what they have in all, and what is left.
#[utoipa::path(get, path = "/workspaces/{slug}/quotas", tag = "account",
    params(("slug" = String, Path, description = "The workspace's name in addresses.")),
    responses((status = 200, description = "The quotas", body = wire::Quotas)))]
pub async fn workspace_quotas(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
) -> Result<Response> {
    let account = workspace_of(&app, &caller, &slug)?;
    let rows = candidates(&app)?;
    let quota = |of: fn(&Booking) -> u32| wire::Quota {
        limit: rows.iter().map(|row| u64::from(of(&row.facts.capacity))).sum(),
        remaining: rows.iter().map(|row| u64::from(of(&row.free()))).sum(),
    };
    let quotas = wire::Quotas {
        team_slug: account.slug,
        tier: TIER.to_owned(),
        quotas: wire::QuotaSet {
            // As many as there are virtual processors.
            vm_slots: quota(|room| room.vcpu),
            vcpu: quota(|room| room.vcpu),
            memory_mb: quota(|room| room.memory_mb),
            disk_gb: quota(|room| room.disk_gb),
        },
        reserved_nodes: wire::Quota::default(),
        reserved_gpu: wire::ReservedGpus::default(),
        as_of: app.clock.now(),
    };
    Ok(answer(StatusCode::OK, &quotas))
}

fn teepod(app: &App, row: &NodeRow, slugs: &[String]) -> wire::Teepod {
    let (free, facts) = (row.free(), &row.facts);
    let images = facts.images.iter().map(|image| wire::TeepodImage {
        name: image.name.clone(),
        slug: image.slug(),
        is_dev: image.is_dev,
        version: image.version.clone(),
        os_image_hash: Some(image.os_image_hash.clone()),
        requires_gpu: image.requires_gpu,
        enabled: true,
    });
    wire::Teepod {
        teepod_id: row.id,
        name: facts.name.clone(),
        listed: true,
        resource_score: f64::from(free.memory_mb) / f64::from(facts.capacity.memory_mb.max(1)),
        remaining_vcpu: free.vcpu.into(),
        remaining_memory: free.memory_mb.into(),
        // Every CVM has a virtual processor of its own; nothing else limits their number.
        remaining_cvm_slots: free.vcpu.into(),
        images: images.collect(),
        support_onchain_kms: !app.config.contract_kms.is_empty(),
        fmspc: None,
        device_id: Some(facts.device_id.clone()),
        region_identifier: Some(facts.region.clone()),
        default_kms: Some(EMBEDDED_KMS.to_owned()),
        kms_list: slugs.to_vec(),
    }
}

/// List the nodes of a workspace
#[utoipa::path(get, path = "/workspaces/{slug}/nodes", tag = "inventory",
    params(
        ("slug" = String, Path, description = "The workspace's name in addresses."),
        ("page" = Option<u64>, Query, description = "Which page, from 1.", minimum = 1),
        ("page_size" = Option<u64>, Query, description = "How many on a page; 30 unless given.", minimum = 1, maximum = 100),
    ),
    responses((status = 200, description = "The page", body = wire::Page<wire::NodeRef>)))]
pub async fn workspace_nodes(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
    params: Params,
) -> Result<Response> {
    workspace_of(&app, &caller, &slug)?;
    let wanted = Wanted::read(&params, page::MOST)?;
    let nodes: Vec<_> = app.nodes.keys().map(|&id| view::node_ref(&app, id)).collect();
    let total = nodes.len() as u64;
    Ok(answer(StatusCode::OK, &wire::Page::new(wanted.of(nodes), total, wanted.page, wanted.size)))
}

/// Nodes, all of them.
#[derive(serde::Serialize, utoipa::ToSchema)]
struct Nodes {
    /// The nodes, by number.
    items: Vec<wire::Node>,
}

/// List nodes
///
/// Every node with its capacity and what of it is free. Nodes that do not answer or are no longer configured are `OFFLINE`.
#[utoipa::path(get, path = "/nodes", tag = "nodes",
    responses((status = 200, description = "The nodes", body = Nodes)))]
pub async fn node_list(State(app): State<App>, _: Caller) -> Result<Response> {
    let mut items = Vec::new();
    for row in app.store.nodes()? {
        let node = app.node(row.id);
        let mut shown = node_shown(&row, node);
        if let Some(plan) = node.and_then(|node| node.faults.as_ref()).filter(|_| app.config.dev) {
            // A node that does not answer may well be what was planned.
            let planned = plan.planned().await.unwrap_or_default();
            let text = |planned| Ok(serde_json::Value::Object(super::dev::shown(&app, planned)?).to_string());
            shown.faults = planned.iter().map(text).collect::<Result<_>>()?;
        }
        items.push(shown);
    }
    Ok(answer(StatusCode::OK, &Nodes { items }))
}

/// What everybody may see of a node.
///
/// Nodes are shared by all workspaces. Where there is room has to be told to whoever looks for a place, as the lists of nodes
/// with room and the quotas do; how many CVMs others have there, and of what size, is theirs. So there is no count of CVMs, and
/// what is free is one number for each resource.
fn node_shown(row: &NodeRow, node: Option<&Node>) -> wire::Node {
    let facts = &row.facts;
    // Every CVM has a virtual processor of its own; nothing else limits their number.
    let room = |booking: Booking| wire::NodeRoom {
        vcpu: booking.vcpu.into(),
        memory_mb: booking.memory_mb.into(),
        disk_gb: booking.disk_gb.into(),
        gpus: booking.gpus.into(),
        slots: booking.vcpu.into(),
    };
    // A node that never answered has told nothing yet.
    let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    wire::Node {
        id: row.id,
        name: facts.name.clone(),
        driver: node.map_or("none", |node| node.driver.kind()).to_owned(),
        region: known(&facts.region),
        status: match node.is_some_and(Node::is_online) {
            true => wire::NodeStatus::Online,
            false => wire::NodeStatus::Offline,
        },
        version: known(&facts.version),
        device_id: known(&facts.device_id),
        capacity: room(facts.capacity),
        free: room(row.free()),
        images: facts.images.iter().map(|image| image.name.clone()).collect(),
        can_renew_instance_id: node.is_some_and(|node| node.driver.abilities().new_instance_id),
        faults: Vec::new(),
        seen_at: node.map_or(row.seen_at, Node::seen_at),
    }
}
