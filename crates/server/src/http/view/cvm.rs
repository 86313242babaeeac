//! A CVM in lists and details.

use casemate_types::compose::Flag;
use casemate_types::wire;

use super::{
    Shown, addresses, endpoints, env_public_key, guest, instance_type, kms_info, kms_type, log_urls,
    node_ref, os_ref, syslog_url, teepod_ref, user_ref, workspace_ref,
};
use crate::app::App;
use crate::cvm::spec::Spec;
use crate::cvm::state::Cvm;
use crate::error::Result;
use crate::kms::keys;
use crate::workflow::operation::Kind;

/// How much of a CVM is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// In a list.
    Item,
    /// By itself, with its compose document.
    Whole,
}

/// A CVM with this spec, from API version 2026-01-21 on.
///
/// # Errors
/// Those of the store.
pub fn cvm(app: &App, cvm: &Cvm, spec: &Spec, detail: Detail) -> Result<wire::Cvm> {
    let doc = Shown::of(spec);
    let account = app.store.account(cvm.workspace_id)?;
    let endpoints = match detail {
        Detail::Whole => addresses(app, cvm)?,
        Detail::Item => endpoints(app, &cvm.app_id, cvm.instance_id.as_ref()),
    };
    let key = env_public_key(app, &cvm.kms, &cvm.app_id);
    let contract = app.config.contract_kms(&cvm.kms);
    Ok(wire::Cvm {
        id: cvm.uid.clone(),
        name: cvm.name.clone(),
        app_id: Some(cvm.app_id),
        vm_uuid: Some(cvm.vm_uuid),
        instance_id: cvm.instance_id,
        resource: wire::Resource {
            instance_type: instance_type(spec).map(str::to_owned),
            vcpu: Some(spec.vcpu),
            memory_in_gb: Some(f64::from(spec.memory_mb) / 1024.0),
            disk_in_gb: Some(spec.disk_gb),
            gpus: Some(spec.gpus.count),
            compute_billing_price: Some("0".to_owned()),
            billing_period: Some("skip".to_owned()),
        },
        node_info: Some(node_ref(app, cvm.node_id)),
        os: Some(os_ref(app, cvm.node_id, &spec.image)),
        kms_type: Some(kms_type(app, &cvm.kms)),
        kms_info: Some(wire::CvmKms {
            chain_id: contract.map(|kms| kms.chain_id),
            dstack_kms_address: contract.map(|kms| kms.contract.clone()),
            dstack_app_address: contract.map(|_| format!("0x{}", cvm.app_id)),
            encrypted_env_pubkey: key.clone(),
            k256_pubkey: Some(keys(app, &cvm.kms).k256_public_key()),
            ..wire::CvmKms::default()
        }),
        status: cvm.status.as_str().into(),
        in_progress: cvm.open.is_some(),
        progress: progress(cvm),
        compose_hash: Some(spec.compose.hash),
        docker_compose_hash: doc.docker_compose_hash(),
        pre_launch_script_hash: doc.pre_launch_script_hash(),
        gateway: wire::Gateway { base_domain: app.config.gateway_domain.clone(), cname: None },
        logs: log_urls(app, cvm.vm_uuid),
        services: Vec::new(),
        public_urls: Some(endpoints.clone()),
        public_logs: Some(doc.flag(Flag::PublicLogs)),
        public_sysinfo: Some(doc.flag(Flag::PublicSysinfo)),
        public_tcbinfo: Some(doc.flag(Flag::PublicTcbinfo)),
        gateway_enabled: Some(doc.flag(Flag::GatewayEnabled)),
        secure_time: Some(doc.flag(Flag::SecureTime)),
        listed: cvm.listed,
        storage_fs: Some(doc.document.storage_fs().to_owned()),
        workspace: Some(workspace_ref(&account)),
        creator: Some(user_ref(&account)),
        created_at: Some(cvm.created_at),
        updated_at: Some(cvm.updated_at),
        deleted_at: None,
        project_type: None,
        app_url: endpoints.first().map(|endpoint| endpoint.app.clone()),
        endpoints: Some(endpoints),
        base_image: Some(spec.image.clone()),
        runner: Some(doc.runner()),
        features: Some(doc.features()),
        manifest_version: Some(doc.document.manifest_version().to_string()),
        encrypted_env_pubkey: key,
        disk_size: Some(spec.disk_gb),
        compose_file: (detail == Detail::Whole).then(|| doc.without_nulls()),
        hosted: (detail == Detail::Item).then_some(wire::HostedRef { app_id: Some(cvm.app_id) }),
    })
}

/// The operation at work. Clients take any target for "busy", so there is none without an operation.
pub(super) fn progress(cvm: &Cvm) -> Option<wire::Progress> {
    let open = cvm.open.as_ref()?;
    let target = match open.kind {
        Kind::Delete => "deleted",
        Kind::Create
        | Kind::Update
        | Kind::RefreshInstanceId
        | Kind::Rollback
        | Kind::PutBack
        | Kind::Start
        | Kind::Stop
        | Kind::Shutdown
        | Kind::Restart
        | Kind::Recover => cvm.power.steady().as_str(),
    };
    Some(wire::Progress {
        target: Some(target.to_owned()),
        started_at: Some(open.started_at),
        correlation_id: Some(open.id.to_string()),
    })
}

/// The size of a machine, in older answers.
pub fn machine_info(spec: &Spec) -> wire::MachineInfo {
    wire::MachineInfo {
        vcpu: spec.vcpu,
        memory: spec.memory_mb,
        disk_size: spec.disk_gb,
        gpu_count: spec.gpus.count,
    }
}

fn contract_address(app: &App, cvm: &Cvm) -> Option<String> {
    app.config.kms_is_contract_owned(&cvm.kms).then(|| format!("0x{}", cvm.app_id))
}

/// A CVM by itself, before API version 2026-01-21.
///
/// # Errors
/// Those of the store.
pub fn flat(app: &App, cvm: &Cvm, spec: &Spec) -> Result<wire::CvmFlat> {
    let shown = Shown::of(spec);
    Ok(wire::CvmFlat {
        id: cvm.id,
        name: cvm.name.clone(),
        status: cvm.status.as_str().into(),
        in_progress: cvm.open.is_some(),
        teepod_id: Some(cvm.node_id),
        teepod: Some(teepod_ref(app, cvm.node_id)),
        app_id: cvm.app_id,
        vm_uuid: Some(cvm.vm_uuid),
        instance_id: cvm.instance_id,
        vcpu: spec.vcpu,
        memory: spec.memory_mb,
        disk_size: spec.disk_gb,
        base_image: Some(spec.image.clone()),
        encrypted_env_pubkey: env_public_key(app, &cvm.kms, &cvm.app_id),
        listed: cvm.listed,
        project_id: None,
        project_type: None,
        instance_type: instance_type(spec).map(str::to_owned),
        public_sysinfo: shown.flag(Flag::PublicSysinfo),
        public_logs: shown.flag(Flag::PublicLogs),
        dapp_dashboard_url: None,
        syslog_endpoint: Some(syslog_url(app, cvm.vm_uuid)),
        kms_info: Some(kms_info(app, &cvm.kms)),
        contract_address: contract_address(app, cvm),
        deployer_address: None,
        scheduled_delete_at: None,
        public_urls: addresses(app, cvm)?,
        gateway_domain: app.config.gateway_domain.clone(),
        machine_info: Some(machine_info(spec)),
        updated_at: Some(cvm.updated_at),
    })
}

/// A CVM in a list, before API version 2026-01-21.
///
/// # Errors
/// Those of the store.
pub fn hosted(app: &App, cvm: &Cvm, spec: &Spec) -> Result<wire::CvmHosted> {
    let account = app.store.account(cvm.workspace_id)?;
    let guest = guest(app, cvm)?;
    let public_urls = endpoints(app, &cvm.app_id, cvm.instance_id.as_ref());
    Ok(wire::CvmHosted {
        hosted: wire::Hosted {
            id: cvm.vm_uuid,
            name: cvm.name.clone(),
            status: cvm.status.as_str().into(),
            uptime: guest.uptime.unwrap_or_else(|| "0s".to_owned()),
            app_url: public_urls.first().map(|endpoint| endpoint.app.clone()),
            app_id: cvm.app_id,
            instance_id: cvm.instance_id,
            configuration: None,
            exited_at: guest.exited_at,
            boot_progress: guest.boot_progress,
            boot_error: guest.boot_error,
            shutdown_progress: guest.shutdown_progress,
            image_version: Some(spec.image.clone()),
        },
        name: cvm.name.clone(),
        status: cvm.status.as_str().into(),
        managed_user: Some(wire::ManagedUser { id: cvm.user_id, username: account.username }),
        node: Some(teepod_ref(app, cvm.node_id)),
        listed: cvm.listed,
        in_progress: cvm.open.is_some(),
        allow_upgrade: true,
        dapp_dashboard_url: None,
        syslog_endpoint: Some(syslog_url(app, cvm.vm_uuid)),
        project_id: None,
        project_type: None,
        billing_period: Some("skip".to_owned()),
        kms_info: Some(kms_info(app, &cvm.kms)),
        vcpu: Some(spec.vcpu),
        memory: Some(spec.memory_mb),
        disk_size: Some(spec.disk_gb),
        gateway_domain: app.config.gateway_domain.clone(),
        public_urls,
        machine_info: Some(machine_info(spec)),
        updated_at: Some(cvm.updated_at),
        contract_address: contract_address(app, cvm),
        deployer_address: None,
    })
}
