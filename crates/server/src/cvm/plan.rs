//! What a request means for a CVM. Pure: a rule is one short test.

use casemate_types::compose::{ComposeDoc, Service};
use casemate_types::error::{FieldError, codes};
use casemate_types::ids::AppId;
use casemate_types::patch::{AttachMode, CvmPatch, GpuPatch, Sparse};
use serde_json::{Value, json};

use super::spec::{Compose, Gpus, Long, Spec, sha256};
use super::state::{Cvm, Power};
use crate::driver::Image;
use crate::error::{Error, NoRoom, Result, Room};
use crate::workflow::operation::{Change, Kind, Options, Records, StepName};

/// A CVM as a plan sees it: its record and the spec that the plan starts from.
#[derive(Clone, Debug)]
pub struct Current<'a> {
    /// The record.
    pub cvm: &'a Cvm,
    /// The spec.
    pub spec: &'a Spec,
}

/// What a request asks for. Everything absent stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Single fields.
    pub patch: CvmPatch,
    /// A whole compose document.
    pub document: Option<ComposeDoc>,
    /// What a new instance id is derived from.
    pub instance_seed: Option<[u8; 20]>,
    /// The content of an earlier revision.
    pub content_of: Option<(u64, Spec)>,
}

impl Wish {
    /// Nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.patch.is_empty()
            && self.document.is_none()
            && self.instance_seed.is_none()
            && self.content_of.is_none()
    }

    /// Does the plan have to read the compose document that is there?
    pub fn touches_document(&self) -> bool {
        let CvmPatch { docker_compose_file, pre_launch_script, allowed_envs, .. } = &self.patch;
        let texts = [docker_compose_file.get().is_some(), pre_launch_script.get().is_some()];
        self.document.is_some()
            || self.content_of.is_some()
            || texts.contains(&true)
            || allowed_envs.get().is_some()
            || self.patch.flags().iter().any(|(_, wanted)| wanted.get().is_some())
    }
}

/// What a node and the operator allow.
#[derive(Clone, Debug)]
pub struct Rules<'a> {
    /// Bounds of single fields.
    pub limits: Limits,
    /// Images on the CVM's node.
    pub images: &'a [Image],
    /// Graphics cards that the node has.
    pub node_gpus: u32,
    /// Their product name.
    pub gpu_product: Option<&'a str>,
    /// Sizes that have a name.
    pub instance_types: &'a [InstanceType],
    /// [`NodeFacts::own_guests`](crate::driver::NodeFacts::own_guests)
    pub own_guests: bool,
    /// Does the CVM's key service belong to a contract, so that a new compose hash needs an approval?
    pub contract_owned: bool,
}

/// Bounds of single fields, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Virtual CPUs of one machine.
    pub max_vcpu: u32,
    /// Memory of one machine, in MB.
    pub max_memory_mb: u32,
    /// Disk of one machine, in GB.
    pub max_disk_gb: u32,
}

/// Longest user config, in bytes.
pub const MAX_USER_CONFIG: usize = 64 * 1024;

/// Largest sealed environment, in bytes: what a guest accepts, and room for the wrapping.
pub const MAX_SEALED_ENV: usize = 1024 * 1024 + 4096;

impl Default for Limits {
    fn default() -> Self {
        Self { max_vcpu: 256, max_memory_mb: 1024 * 1024, max_disk_gb: 16 * 1024 }
    }
}

/// A named size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceType {
    /// For example `tdx.small`.
    pub name: &'static str,
    /// `cpu` or `gpu`.
    pub family: &'static str,
    /// Virtual CPUs.
    pub vcpu: u32,
    /// Memory in MB.
    pub memory_mb: u32,
    /// Graphics cards.
    pub gpus: u32,
    /// Price that the wire shows, per hour. Nothing is ever charged here.
    pub hourly_rate: &'static str,
}

/// The named sizes. `tdx.small` has to be there: clients ask for it when their user names no size.
pub const INSTANCE_TYPES: &[InstanceType] = &[
    InstanceType { name: "tdx.small", family: "cpu", vcpu: 1, memory_mb: 2048, gpus: 0, hourly_rate: "0" },
    InstanceType { name: "tdx.medium", family: "cpu", vcpu: 2, memory_mb: 4096, gpus: 0, hourly_rate: "0" },
    InstanceType { name: "tdx.large", family: "cpu", vcpu: 4, memory_mb: 8192, gpus: 0, hourly_rate: "0" },
    InstanceType { name: "tdx.xlarge", family: "cpu", vcpu: 8, memory_mb: 16384, gpus: 0, hourly_rate: "0" },
    InstanceType {
        name: "tdx.2xlarge",
        family: "cpu",
        vcpu: 16,
        memory_mb: 32768,
        gpus: 0,
        hourly_rate: "0",
    },
    InstanceType {
        name: "h200.small",
        family: "gpu",
        vcpu: 24,
        memory_mb: 196_608,
        gpus: 1,
        hourly_rate: "0",
    },
];

/// Disk of a machine whose request names none, in GB.
pub const DEFAULT_DISK_GB: u32 = 20;

/// What a request comes down to.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Every field is as asked.
    Nothing,
    /// Only fields outside the spec: done at once, without a restart.
    Records {
        /// What is written.
        records: Records,
        /// What changes.
        diff: Vec<Change>,
    },
    /// A new spec, or the same one with a restart that was asked for.
    Steps(Box<Steps>),
}

/// A planned update.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// The spec that it leads to.
    pub spec: Spec,
    /// The revision whose content that is, for a rollback.
    pub content_of: Option<u64>,
    /// What changes.
    pub diff: Vec<Change>,
    /// Is somebody's yes needed first?
    pub approval: Approval,
    /// What belongs to the operation and not to the spec.
    pub options: Options,
    /// What the caller should know.
    pub warnings: Vec<String>,
}

/// Does an update need an approval on chain?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// No.
    NotNeeded,
    /// The contract has to allow the new compose hash.
    Needed,
}

impl Plan {
    /// Names of the steps on a machine with this desired power.
    pub fn steps(&self, kind: Kind, power: Power) -> &'static [StepName] {
        match self {
            Self::Nothing | Self::Records { .. } => &[],
            Self::Steps(_) => kind.steps(power),
        }
    }
}

/// What `wish` means for `current`.
///
/// Every field is checked here or while it was read: limits, images, a disk that only grows, the compose file's syntax and
/// size. All wrong fields are named at once where they are independent.
pub fn plan_update(current: &Current<'_>, wish: &Wish, rules: &Rules<'_>) -> Result<Plan> {
    let patch = &wish.patch;
    let spec = next_spec(current.spec, wish, rules)?;
    let records = records(current.cvm, patch);
    let options = options(patch, &records);
    let mut diff = diff(&current.cvm.app_id, current.spec, &spec);
    let record_diff = record_diff(current.cvm, &records);
    let restart_asked = patch.force_restart.or(false);
    if diff.is_empty() && !restart_asked {
        return Ok(match records.is_empty() {
            true => Plan::Nothing,
            false => Plan::Records { records, diff: record_diff },
        });
    }
    diff.extend(record_diff);
    let hash_changes = spec.compose.hash != current.spec.compose.hash;
    let approval = match rules.contract_owned && hash_changes {
        true => Approval::Needed,
        false => Approval::NotNeeded,
    };
    let warnings = if hash_changes { warnings(&spec, rules.contract_owned) } else { Vec::new() };
    let content_of = wish.content_of.as_ref().map(|(number, _)| *number);
    Ok(Plan::Steps(Box::new(Steps { spec, content_of, diff, approval, options, warnings })))
}

/// The spec of a CVM to be made. `wish` gives what the request named, `document` among it.
pub fn plan_create(wish: &Wish, instance_seed: [u8; 20], rules: &Rules<'_>) -> Result<Spec> {
    let small = rules.instance_types.first().expect("there is a smallest size");
    let image = rules
        .images
        .iter()
        .find(|image| !image.is_dev && !image.requires_gpu)
        .or(rules.images.first())
        .ok_or_else(|| Error::rejected(codes::IMAGE_NOT_FOUND, "image", "the node has no OS image"))?;
    let document = wish.document.clone().ok_or_else(|| {
        Error::rejected(codes::COMPOSE_FILE_REQUIRED, "compose_file", "a compose file is needed")
    })?;
    let start = Spec {
        compose: Compose::new(&document),
        sealed_env: None,
        user_config: None,
        vcpu: small.vcpu,
        memory_mb: small.memory_mb,
        disk_gb: 1,
        gpus: Gpus::default(),
        image: image.name.clone(),
        instance_seed,
    };
    let mut wish = wish.clone();
    if wish.patch.disk_size.get().is_none() {
        wish.patch.disk_size = Sparse::Value(DEFAULT_DISK_GB);
    }
    next_spec(&start, &wish, rules)
}

fn next_spec(current: &Spec, wish: &Wish, rules: &Rules<'_>) -> Result<Spec> {
    let patch = &wish.patch;
    let mut spec = current.clone();
    if let Some((_, content)) = &wish.content_of {
        // The disk keeps its size, and the machine its identity.
        spec = Spec {
            disk_gb: current.disk_gb.max(content.disk_gb),
            instance_seed: current.instance_seed,
            ..content.clone()
        };
    }
    if let Some(seed) = wish.instance_seed {
        spec.instance_seed = seed;
    }
    sizes(&mut spec, current, patch, rules)?;
    if let Some(gpus) = patch.gpus.get() {
        spec.gpus = gpus_wanted(gpus, rules)?;
    }
    if spec.gpus != current.gpus && spec.gpus.count > rules.node_gpus {
        let (room, asked, left) = (Room::Gpus, spec.gpus.count, rules.node_gpus);
        return Err(Error::NoRoom(NoRoom { room, asked, left, node: None }));
    }
    if let Some(text) = patch.image.get() {
        spec.image = image(text, rules)?.name.clone();
    }
    if spec.image != current.image || spec.gpus != current.gpus {
        image_fits(&spec, rules)?;
    }
    if let Some(sealed) = patch.encrypted_env.get() {
        let bytes = sealed.as_bytes();
        if bytes.len() > MAX_SEALED_ENV {
            let message = format!("has {} bytes, at most {MAX_SEALED_ENV} are allowed", bytes.len());
            return Err(Error::invalid("encrypted_env", message));
        }
        spec.sealed_env = Some(Long::new(bytes));
    }
    if let Some(text) = patch.user_config.get() {
        if text.len() > MAX_USER_CONFIG {
            let message = format!("has {} bytes, at most {MAX_USER_CONFIG} are allowed", text.len());
            return Err(Error::invalid("user_config", message));
        }
        spec.user_config = (!text.is_empty()).then(|| Long::new(text.as_str()));
    }
    if let Some(document) = document(&spec.compose, wish, rules)? {
        spec.compose = Compose::new(&document);
    }
    Ok(spec)
}

fn sizes(spec: &mut Spec, current: &Spec, patch: &CvmPatch, rules: &Rules<'_>) -> Result<()> {
    if let Some(name) = patch.instance_type.get() {
        let named = rules.instance_types.iter().find(|size| size.name == name).ok_or_else(|| {
            let known: Vec<_> = rules.instance_types.iter().map(|size| size.name).collect();
            let message = format!("there is no instance type `{name}`; there are {}", known.join(", "));
            Error::rejected(codes::INSTANCE_TYPE_NOT_FOUND, "instance_type", message)
        })?;
        (spec.vcpu, spec.memory_mb) = (named.vcpu, named.memory_mb);
        // Graphics cards are part of a named size: one without any takes them away.
        match named.gpus {
            0 => spec.gpus = Gpus::default(),
            count => spec.gpus.count = count,
        }
    }
    let mut issues = Vec::new();
    let mut within = |field: &str, wanted: Option<&u32>, least: u32, most: u32, unit: &str| {
        let value = *wanted?;
        // The largest number stands for all that do not fit into one.
        if (least..=most).contains(&value) && value < u32::MAX {
            return Some(value);
        }
        issues.push(FieldError::body(
            field,
            "value_error",
            format!("should be a whole number from {least} to {most}{unit}"),
        ));
        None
    };
    let limits = rules.limits;
    let vcpu = within("vcpu", patch.vcpu.get(), CvmPatch::MIN_VCPU, limits.max_vcpu, "");
    let memory = within("memory", patch.memory.get(), CvmPatch::MIN_MEMORY, limits.max_memory_mb, " (MB)");
    let disk =
        within("disk_size", patch.disk_size.get(), CvmPatch::MIN_DISK_SIZE, limits.max_disk_gb, " (GB)");
    if !issues.is_empty() {
        return Err(Error::Invalid(issues));
    }
    spec.vcpu = vcpu.unwrap_or(spec.vcpu);
    spec.memory_mb = memory.unwrap_or(spec.memory_mb);
    if let Some(disk) = disk {
        if disk < current.disk_gb {
            let message =
                format!("the disk has {} GB and cannot shrink to {disk} GB; ask for more", current.disk_gb);
            return Err(Error::rejected(codes::INVALID_REQUEST, "disk_size", message));
        }
        spec.disk_gb = disk;
    }
    Ok(())
}

fn gpus_wanted(wanted: &GpuPatch, rules: &Rules<'_>) -> Result<Gpus> {
    let (count, product) = match wanted {
        GpuPatch::Count { count, product_name } => (*count, product_name.clone()),
        GpuPatch::Slots { gpus, attach_mode } => {
            let product = gpus.iter().find_map(|gpu| gpu.product_id.clone());
            match attach_mode {
                AttachMode::All => (rules.node_gpus, product),
                AttachMode::Listed => (u32::try_from(gpus.len()).unwrap_or(u32::MAX), product),
            }
        }
    };
    if let (Some(asked), Some(has)) = (&product, rules.gpu_product)
        && count > 0
        && !asked.eq_ignore_ascii_case(has)
    {
        let message = format!("the node has GPUs of type {has}, not {asked}");
        return Err(Error::Conflict { code: Some(codes::INSUFFICIENT_GPU), message });
    }
    Ok(if count == 0 { Gpus::default() } else { Gpus { count, product } })
}

fn image<'a>(text: &str, rules: &Rules<'a>) -> Result<&'a Image> {
    rules.images.iter().find(|image| image.is_meant_by(text)).ok_or_else(|| {
        let known: Vec<_> = rules.images.iter().map(|image| image.name.as_str()).collect();
        let message = format!("there is no OS image `{text}` on the node; there are {}", known.join(", "));
        Error::rejected(codes::IMAGE_NOT_FOUND, "image", message)
    })
}

fn image_fits(spec: &Spec, rules: &Rules<'_>) -> Result<()> {
    let needs_gpu = rules.images.iter().any(|image| image.name == spec.image && image.requires_gpu);
    if needs_gpu && spec.gpus.count == 0 {
        let message = format!("OS image `{}` is for machines with GPUs; this one has none", spec.image);
        return Err(Error::rejected(codes::OS_IMAGE_NOT_COMPATIBLE, "image", message));
    }
    Ok(())
}

/// The compose document that `wish` leads to, checked; none if it does not touch it.
fn document(current: &Compose, wish: &Wish, rules: &Rules<'_>) -> Result<Option<ComposeDoc>> {
    if !wish.touches_document() {
        return Ok(None);
    }
    let document = wish.patch.document(wish.document.clone().unwrap_or_else(|| current.parsed()));
    if wish.document.is_none() && document.to_json() == *current.document {
        return Ok(None);
    }
    let checked = if rules.own_guests { document.runnable().map(drop) } else { document.check() };
    checked.map_err(|error| match error.code {
        Some(code) => Error::Rejected { code: Some(code), field: Some(error.field), message: error.message },
        None => Error::invalid(&error.field, error.message),
    })?;
    Ok(Some(document))
}

fn records(cvm: &Cvm, patch: &CvmPatch) -> Records {
    Records {
        listed: patch.listed.get().copied().filter(|listed| *listed != cvm.listed),
        name: patch.name.get().map(ToString::to_string).filter(|name| *name != cvm.name),
    }
}

fn options(patch: &CvmPatch, records: &Records) -> Options {
    Options {
        shutdown_timeout: patch.shutdown_timeout.get().copied(),
        allow_force_stop: patch.allow_force_stop.or(false),
        on_failure: patch.on_failure.get().copied(),
        records: records.clone(),
        ..Options::default()
    }
}

/// Fields of the spec of a CVM of `app` that differ, by their names on the wire. Long and secret values are shown as a hash.
pub fn diff(app: &AppId, from: &Spec, to: &Spec) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut compare = |field: &str, from: Value, to: Value| {
        if from != to {
            changes.push(Change { field: field.to_owned(), from, to });
        }
    };
    compare("vcpu", from.vcpu.into(), to.vcpu.into());
    compare("memory", from.memory_mb.into(), to.memory_mb.into());
    compare("disk_size", from.disk_gb.into(), to.disk_gb.into());
    compare("gpus", json!(from.gpus), json!(to.gpus));
    compare("image", from.image.as_str().into(), to.image.as_str().into());
    let digest =
        |sha256: Option<[u8; 32]>| json!(sha256.map(|sha256| format!("sha256:{}", hex::encode(sha256))));
    compare("encrypted_env", digest(from.sealed_env_sha256()), digest(to.sealed_env_sha256()));
    compare("user_config", digest(from.user_config_sha256()), digest(to.user_config_sha256()));
    compare("instance_id", json!(from.instance_id(app)), json!(to.instance_id(app)));
    if from.compose.document != to.compose.document {
        let (old, new) = (from.compose.parsed(), to.compose.parsed());
        let keys =
            old.as_map().keys().chain(new.as_map().keys().filter(|key| !old.as_map().contains_key(*key)));
        for key in keys {
            let value = |document: &ComposeDoc| match document.as_map().get(key) {
                Some(Value::String(text)) if text.len() > 64 || text.contains('\n') => {
                    digest(Some(sha256(text.as_bytes())))
                }
                // It has a password in it.
                Some(login) if key == "docker_config" => digest(Some(sha256(login.to_string().as_bytes()))),
                Some(value) => value.clone(),
                None => Value::Null,
            };
            compare(key, value(&old), value(&new));
        }
        compare("compose_hash", json!(from.compose.hash), json!(to.compose.hash));
    }
    changes
}

fn record_diff(cvm: &Cvm, records: &Records) -> Vec<Change> {
    let listed = records.listed.map(|to| ("listed", json!(cvm.listed), json!(to)));
    let name = records.name.as_ref().map(|to| ("name", json!(cvm.name), json!(to)));
    [listed, name]
        .into_iter()
        .flatten()
        .map(|(field, from, to)| Change { field: field.to_owned(), from, to })
        .collect()
}

/// Where the text that is hashed and run differs from what was sent; and, where a contract allows by hash, which images the
/// hash does not settle.
pub fn warnings(spec: &Spec, contract_owned: bool) -> Vec<String> {
    let document = spec.compose.parsed();
    let services = if contract_owned { document.services() } else { Vec::new() };
    let tag = |service: Service| {
        let image = service.image.filter(|image| !image.contains("@sha256:"))?;
        Some(format!(
            "service `{}`: the compose hash covers only the name `{image}`, which may mean another image tomorrow; pin a \
             digest: `{image}@sha256:…`",
            service.name
        ))
    };
    let altered = document.normalise().altered.into_iter().map(|altered| {
        format!(
            "{} line {}: the space after `\":` is removed from the text that is hashed and run",
            altered.field, altered.line
        )
    });
    altered.chain(services.into_iter().filter_map(tag)).collect()
}

#[cfg(test)]
mod tests {
    use casemate_types::ids::VmUuid;
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::cvm::state::Status;

    const YAML: &str = "services:\n  web:\n    image: nginx\n";

    fn images() -> Vec<Image> {
        let image = |name: &str, is_dev, requires_gpu| Image {
            name: name.into(),
            version: vec![0, 5, 5],
            is_dev,
            os_image_hash: "ab".repeat(32),
            requires_gpu,
        };
        vec![image("prod", false, false), image("dev", true, false), image("gpu", false, true)]
    }

    #[test]
    fn where_a_contract_allows_by_hash_a_tag_is_warned_of() {
        let images = images();
        let yaml = format!(
            "services:\n  web:\n    image: nginx:1\n  db:\n    image: db@sha256:{}\n",
            "a".repeat(64)
        );
        let wish = Wish {
            patch: CvmPatch { docker_compose_file: Sparse::Value(yaml), ..CvmPatch::default() },
            ..Wish::default()
        };
        let (cvm, spec) = running();
        let current = Current { cvm: &cvm, spec: &spec };
        let warnings = |contract_owned| {
            let rules = Rules { contract_owned, ..rules(&images) };
            match plan_update(&current, &wish, &rules).unwrap() {
                Plan::Steps(steps) => steps.warnings,
                other => panic!("{other:?}"),
            }
        };
        assert!(warnings(false).is_empty());
        let warned = warnings(true);
        assert!(
            warned.len() == 1 && warned[0].contains("`web`") && warned[0].contains("nginx:1@sha256:"),
            "{warned:?}"
        );
    }

    fn rules(images: &[Image]) -> Rules<'_> {
        Rules {
            limits: Limits::default(),
            images,
            node_gpus: 2,
            gpu_product: Some("H200"),
            instance_types: INSTANCE_TYPES,
            own_guests: false,
            contract_owned: false,
        }
    }

    fn running() -> (Cvm, Spec) {
        let document = serde_json::json!({ "docker_compose_file": YAML });
        let document = ComposeDoc::from_value(document).unwrap().with_defaults("web-one");
        let spec = Spec {
            compose: Compose::new(&document),
            sealed_env: None,
            user_config: None,
            vcpu: 1,
            memory_mb: 2048,
            disk_gb: 20,
            gpus: Gpus::default(),
            image: "prod".into(),
            instance_seed: [7; 20],
        };
        let cvm = Cvm {
            id: 1,
            uid: "cvm_a".parse().unwrap(),
            vm_uuid: VmUuid(Uuid::nil()),
            workspace_id: 1,
            user_id: 1,
            app: 1,
            app_id: AppId([1; 20]),
            kms: "phala".into(),
            node_id: 1,
            name: "web-one".into(),
            listed: false,
            instance_id: None,
            status: Status::Running,
            power: Power::On,
            generation: 1,
            revision: 1,
            latest_revision: 1,
            boot_error: None,
            open: None,
            booked: spec.booking(),
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        };
        (cvm, spec)
    }

    fn planned(json: Value) -> Result<Plan> {
        planned_with(json, |_| {})
    }

    fn planned_with(json: Value, change: impl FnOnce(&mut Rules<'_>)) -> Result<Plan> {
        let (cvm, spec) = running();
        let patch = CvmPatch::from_json(json.as_object().unwrap()).map_err(Error::Invalid)?;
        let images = images();
        let mut rules = rules(&images);
        change(&mut rules);
        plan_update(&Current { cvm: &cvm, spec: &spec }, &Wish { patch, ..Wish::default() }, &rules)
    }

    fn steps(json: Value) -> Steps {
        match planned(json).unwrap() {
            Plan::Steps(steps) => *steps,
            other => panic!("{other:?}"),
        }
    }

    fn fields(steps: &Steps) -> Vec<&str> {
        steps.diff.iter().map(|change| change.field.as_str()).collect()
    }

    fn refusal(json: Value) -> String {
        let error = planned(json).unwrap_err();
        match &error {
            Error::Invalid(issues) => issues.iter().map(|issue| issue.field()).collect::<Vec<_>>().join(","),
            Error::Rejected { field: Some(field), code: Some(code), .. } => format!("{code} {field}"),
            Error::Conflict { code: Some(code), .. } => (*code).to_owned(),
            Error::NoRoom(room) => room.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn more_memory_needs_a_restart_but_no_approval() {
        let plan = planned_with(json!({ "memory": 4096 }), |rules| rules.contract_owned = true).unwrap();
        let names: Vec<_> = plan.steps(Kind::Update, Power::On).iter().map(|step| step.as_str()).collect();
        assert_eq!(names, ["stage", "stop", "apply", "start", "observe"]);
        let Plan::Steps(steps) = plan else { panic!("{plan:?}") };
        assert_eq!(steps.approval, Approval::NotNeeded);
        assert_eq!(fields(&steps), ["memory"]);
    }

    #[test]
    fn what_guests_of_our_own_cannot_do_is_refused_by_name() {
        let asked =
            json!({ "docker_compose_file": "services:\n  web:\n    image: web:1\n    privileged: true\n" });
        assert!(planned(asked.clone()).is_ok());
        let error = planned_with(asked, |rules| rules.own_guests = true).unwrap_err();
        let Error::Rejected { field, message, .. } = error else { panic!("{error:?}") };
        assert_eq!(field.as_deref(), Some("docker_compose_file"));
        assert!(message.contains("service `web`: `privileged` is not supported"), "{message}");
    }

    #[test]
    fn a_new_compose_file_needs_an_approval_where_a_contract_has_a_say() {
        let asked = json!({ "docker_compose_file": "services:\n  web:\n    image: caddy\n" });
        let plan = planned_with(asked.clone(), |rules| rules.contract_owned = true).unwrap();
        assert!(matches!(plan, Plan::Steps(steps) if steps.approval == Approval::Needed));
        assert_eq!(steps(asked).approval, Approval::NotNeeded);
    }

    #[test]
    fn what_is_already_so_is_nothing() {
        for same in [
            json!({ "memory": 2048.0, "vcpu": 1, "disk_size": 20, "image": "prod" }),
            json!({ "docker_compose_file": YAML, "public_logs": true, "allowed_envs": [] }),
            json!({ "pre_launch_script": "", "gpus": { "count": 0 }, "user_config": "" }),
            json!({ "listed": false, "shutdown_timeout": 30 }),
            json!({ "image": "prod-abababab" }),
        ] {
            assert_eq!(planned(same.clone()).unwrap(), Plan::Nothing, "{same}");
        }
        let restart = steps(json!({ "memory": 2048, "force_restart": true }));
        assert_eq!(fields(&restart), Vec::<&str>::new());
    }

    #[test]
    fn listed_alone_changes_without_a_restart_and_in_company_with_it() {
        let plan = planned(json!({ "listed": true })).unwrap();
        assert!(plan.steps(Kind::Update, Power::On).is_empty());
        assert!(matches!(plan, Plan::Records { .. }));
        let mixed = steps(json!({ "listed": true, "vcpu": 2 }));
        assert_eq!(mixed.options.records.listed, Some(true));
        assert_eq!(fields(&mixed), ["vcpu", "listed"]);
    }

    #[test]
    fn absent_fields_stay_as_they_are() {
        let (_, old) = running();
        let new = steps(json!({ "public_logs": false })).spec;
        assert_eq!(Spec { compose: old.compose.clone(), ..new.clone() }, old);
        assert_ne!(new.compose.hash, old.compose.hash);
        assert_eq!(new.compose.parsed().docker_compose_file(), Some(YAML));
    }

    #[test]
    fn every_wrong_field_is_named() {
        assert_eq!(refusal(json!({ "vcpu": 0, "memory": 1, "disk_size": 0 })), "vcpu,memory,disk_size");
        assert_eq!(refusal(json!({ "disk_size": 19 })), "ERR-02-008 disk_size");
        assert_eq!(refusal(json!({ "image": "none" })), "ERR-02-010 image");
        assert_eq!(refusal(json!({ "image": "gpu" })), "ERR-02-013 image");
        assert_eq!(refusal(json!({ "instance_type": "huge" })), "ERR-02-001 instance_type");
        assert_eq!(refusal(json!({ "gpus": { "count": 3 } })), "3 GPUs asked for, the node has 2");
        assert_eq!(refusal(json!({ "gpus": { "count": 1, "product_name": "A100" } })), "ERR-02-007");
        assert_eq!(refusal(json!({ "encrypted_env": "zz" })), "encrypted_env");
        assert_eq!(refusal(json!({ "shutdown_timeout": 9 })), "shutdown_timeout");
        assert_eq!(refusal(json!({ "user_config": "x".repeat(MAX_USER_CONFIG + 1) })), "user_config");
    }

    #[test]
    fn sizes_out_of_bounds_are_told_the_bounds() {
        let told = |json: Value| match planned(json).unwrap_err() {
            Error::Invalid(issues) => issues.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            other => panic!("{other:?}"),
        };
        for vcpu in [json!(0), json!(257), json!(1e12), json!(u64::MAX)] {
            assert_eq!(
                told(json!({ "vcpu": vcpu })),
                "vcpu: should be a whole number from 1 to 256",
                "{vcpu}"
            );
        }
        assert_eq!(
            told(json!({ "memory": 1e12 })),
            "memory: should be a whole number from 512 to 1048576 (MB)"
        );
        assert_eq!(
            told(json!({ "disk_size": 0 })),
            "disk_size: should be a whole number from 1 to 16384 (GB)"
        );
        assert_eq!(told(json!({ "memory": -1 })), "memory: must be at least 512");
    }

    #[test]
    fn a_named_size_brings_its_gpus_and_takes_those_that_it_has_not() {
        let (cvm, mut spec) = running();
        spec.gpus = Gpus { count: 1, product: Some("H200".into()) };
        let after = |json: Value| {
            let patch = CvmPatch::from_json(json.as_object().unwrap()).unwrap();
            let images = images();
            let wish = Wish { patch, ..Wish::default() };
            match plan_update(&Current { cvm: &cvm, spec: &spec }, &wish, &rules(&images)).unwrap() {
                Plan::Steps(steps) => steps.spec.gpus,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(after(json!({ "instance_type": "tdx.medium" })), Gpus::default());
        assert_eq!(after(json!({ "instance_type": "h200.small" })), spec.gpus);
        assert_eq!(after(json!({ "instance_type": "tdx.medium", "gpus": { "count": 2 } })).count, 2);
        assert_eq!(after(json!({ "vcpu": 4 })), spec.gpus);
    }

    #[test]
    fn gpus_come_by_number_and_by_slot() {
        assert_eq!(steps(json!({ "gpus": { "count": 2 } })).spec.gpus.count, 2);
        let slots = json!({ "gpus": { "gpus": [{ "slot": "0" }], "attach_mode": "listed" } });
        assert_eq!(steps(slots).spec.gpus.count, 1);
        let all = json!({ "gpus": { "gpus": [], "attach_mode": "all" } });
        assert_eq!(steps(all).spec.gpus.count, 2);
    }

    #[test]
    fn a_rollback_keeps_the_disk_and_the_identity() {
        let (cvm, mut spec) = running();
        let earlier = spec.clone();
        spec = Spec { memory_mb: 8192, disk_gb: 50, instance_seed: [9; 20], ..spec };
        let images = images();
        let wish = Wish { content_of: Some((1, earlier)), ..Wish::default() };
        let plan = plan_update(&Current { cvm: &cvm, spec: &spec }, &wish, &rules(&images)).unwrap();
        let Plan::Steps(steps) = plan else { panic!("{plan:?}") };
        assert_eq!((steps.spec.memory_mb, steps.spec.disk_gb, steps.spec.instance_seed), (2048, 50, [9; 20]));
        assert_eq!(steps.content_of, Some(1));
    }

    #[test]
    fn a_space_that_the_hash_loses_is_told() {
        let yaml = "services:\n  web:\n    image: nginx\n    labels: {\"k\": 1}\n";
        let warnings = steps(json!({ "docker_compose_file": yaml })).warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("docker_compose_file line 4"), "{warnings:?}");
    }
}
