//! The record with which creating, switching on and off, and the like answer.

use casemate_types::compose::Flag;
use casemate_types::version::ApiVersion;
use casemate_types::wire;

use super::{Shown, endpoints, env_public_key, teepod_ref};
use crate::app::App;
use crate::cvm::spec::Spec;
use crate::cvm::state::Cvm;
use crate::error::Result;
use crate::workflow::create::Created;

/// The record of a CVM with this spec.
///
/// # Errors
/// Those of the store.
pub fn vm(app: &App, cvm: &Cvm, spec: &Spec, version: ApiVersion) -> Result<wire::Vm> {
    let deployer = match app.config.kms_is_contract_owned(&cvm.kms) {
        true => app.store.app(cvm.workspace_id, &cvm.app_id)?.deployer,
        false => None,
    };
    vm_deployed_by(app, cvm, spec, deployer, version)
}

/// The record of a CVM that was just made, perhaps in a transaction that is not over: who deployed its app's contract is not
/// read.
///
/// # Errors
/// Those of the store.
pub fn vm_created(app: &App, created: &Created, version: ApiVersion) -> Result<wire::Vm> {
    vm_deployed_by(app, &created.cvm, &created.spec, created.deployer.clone(), version)
}

fn vm_deployed_by(
    app: &App,
    cvm: &Cvm,
    spec: &Spec,
    deployer: Option<String>,
    version: ApiVersion,
) -> Result<wire::Vm> {
    let shown = Shown::of(spec);
    let (id, user_id) = if version.has_string_ids() {
        let user = app.store.account(cvm.workspace_id)?.user_uid;
        (cvm.uid.to_string().into(), user.into())
    } else {
        (cvm.id.into(), cvm.user_id.into())
    };
    let contract = app.config.kms_is_contract_owned(&cvm.kms).then(|| format!("0x{}", cvm.app_id));
    Ok(wire::Vm {
        id,
        name: cvm.name.clone(),
        status: cvm.status.as_str().into(),
        in_progress: Some(cvm.open.is_some()),
        teepod_id: Some(cvm.node_id),
        teepod: Some(teepod_ref(app, cvm.node_id)),
        user_id: Some(user_id),
        app_id: Some(cvm.app_id),
        vm_uuid: Some(cvm.vm_uuid),
        instance_id: cvm.instance_id,
        app_url: endpoints(app, &cvm.app_id, cvm.instance_id.as_ref()).pop().map(|endpoint| endpoint.app),
        base_image: Some(spec.image.clone()),
        vcpu: spec.vcpu,
        memory: spec.memory_mb,
        disk_size: spec.disk_gb,
        manifest_version: Some(shown.document.manifest_version()),
        version: None,
        runner: Some(shown.runner()),
        docker_compose_file: shown.docker_compose_file(),
        features: Some(shown.features()),
        created_at: cvm.created_at,
        encrypted_env_pubkey: env_public_key(app, &cvm.kms, &cvm.app_id),
        deployer_address: deployer.filter(|_| contract.is_some()),
        app_auth_contract_address: contract,
        public_sysinfo: Some(shown.flag(Flag::PublicSysinfo)),
        public_logs: Some(shown.flag(Flag::PublicLogs)),
        public_tcbinfo: Some(shown.flag(Flag::PublicTcbinfo)),
        listed: Some(cvm.listed),
    })
}
