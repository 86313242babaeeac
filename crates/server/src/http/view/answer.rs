//! The shape that an API version gives a CVM.

use casemate_types::version::ApiVersion;
use casemate_types::wire;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Detail, Text, flat, hosted, instance_type, kms_type, machine_info, teepod_ref, text};
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::error::Result;

/// A CVM in a list.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum ItemAnswer {
    /// From 2026-01-21 on.
    Cvm(Text),
    /// Before.
    Hosted(Box<wire::CvmHosted>),
}

/// A CVM in a list.
///
/// # Errors
/// Those of the store.
pub fn item(app: &App, of: &Cvm, version: ApiVersion) -> Result<ItemAnswer> {
    if version.has_cvm_objects() {
        return Ok(ItemAnswer::Cvm(text(app, of, Detail::Item)?));
    }
    let spec = app.store.spec(of.id, of.revision)?;
    Ok(ItemAnswer::Hosted(Box::new(hosted(app, of, &spec)?)))
}

/// A CVM by itself.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum DetailAnswer {
    /// From 2026-01-21 on.
    Cvm(Text),
    /// Before.
    Flat(Box<wire::CvmFlat>),
}

/// A CVM by itself.
///
/// # Errors
/// Those of the store.
pub fn detail(app: &App, of: &Cvm, version: ApiVersion) -> Result<DetailAnswer> {
    if version.has_cvm_objects() {
        return Ok(DetailAnswer::Cvm(text(app, of, Detail::Whole)?));
    }
    let spec = app.store.spec(of.id, of.revision)?;
    Ok(DetailAnswer::Flat(Box::new(flat(app, of, &spec)?)))
}

/// A CVM in its app.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum BasicAnswer {
    /// From 2026-01-21 on.
    Cvm(Text),
    /// Before.
    Basic(Box<wire::CvmBasic>),
}

/// A CVM in its app.
///
/// # Errors
/// Those of the store.
pub fn basic(app: &App, of: &Cvm, version: ApiVersion) -> Result<BasicAnswer> {
    if version.has_cvm_objects() {
        return Ok(BasicAnswer::Cvm(text(app, of, Detail::Item)?));
    }
    let spec = app.store.spec(of.id, of.revision)?;
    let teepod = teepod_ref(app, of.node_id);
    Ok(BasicAnswer::Basic(Box::new(wire::CvmBasic {
        vm_uuid: Some(of.vm_uuid),
        app_id: of.app_id,
        name: of.name.clone(),
        status: of.status.as_str().into(),
        vcpu: spec.vcpu,
        memory: spec.memory_mb,
        disk_size: spec.disk_gb,
        teepod_id: teepod.id,
        teepod_name: teepod.name,
        region_identifier: teepod.region_identifier,
        kms_type: Some(kms_type(app, &of.kms)),
        kms_slug: Some(of.kms.clone()),
        kms_id: Some(format!("kms_{}", of.kms)),
        instance_type: instance_type(&spec).map(str::to_owned),
        base_image: Some(spec.image.clone()),
        instance_id: of.instance_id,
        listed: Some(of.listed),
        machine_info: Some(machine_info(&spec)),
        updated_at: Some(of.updated_at),
    })))
}
