//! Named sizes of CVMs.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::wire;

use super::error::answer;
use super::extract::Caller;
use crate::cvm::plan::{DEFAULT_DISK_GB, INSTANCE_TYPES, InstanceType};
use crate::error::{Error, Resource, Result};

const FAMILIES: [&str; 2] = ["cpu", "gpu"];

fn size(size: &InstanceType) -> wire::InstanceType {
    let gpus = match size.gpus {
        0 => String::new(),
        1 => ", 1 GPU".to_owned(),
        more => format!(", {more} GPUs"),
    };
    wire::InstanceType {
        id: size.name.to_owned(),
        name: size.name.to_owned(),
        description: format!("{} vCPU, {} GB{gpus}", size.vcpu, size.memory_mb / 1024),
        vcpu: size.vcpu,
        memory_mb: size.memory_mb,
        hourly_rate: size.hourly_rate.to_owned(),
        requires_gpu: size.gpus > 0,
        default_disk_size_gb: DEFAULT_DISK_GB,
        family: Some(size.family.to_owned()),
    }
}

fn of_family(family: &str) -> Vec<wire::InstanceType> {
    INSTANCE_TYPES.iter().filter(|size| size.family == family).map(size).collect()
}

/// List named sizes
#[utoipa::path(get, path = "/instance-types", tag = "inventory",
    responses((status = 200, description = "The sizes, by family", body = wire::InstanceTypes)))]
pub async fn instance_type_list(_: Caller) -> Response {
    let group = |family: &&str| {
        let items = of_family(family);
        wire::InstanceTypeGroup { name: (*family).to_owned(), total: items.len() as u64, items }
    };
    answer(StatusCode::OK, &wire::InstanceTypes { result: FAMILIES.iter().map(group).collect() })
}

/// List named sizes of a family
#[utoipa::path(get, path = "/instance-types/{family}", tag = "inventory",
    params(("family" = String, Path, description = "`cpu` or `gpu`.")),
    responses((status = 200, description = "The sizes", body = wire::InstanceTypeFamily)))]
pub async fn instance_type_family(_: Caller, Path(family): Path<String>) -> Result<Response> {
    let items = of_family(&family);
    if items.is_empty() {
        return Err(Error::NotFound { what: Resource::Family });
    }
    Ok(answer(StatusCode::OK, &wire::InstanceTypeFamily { total: items.len() as u64, items, family }))
}
