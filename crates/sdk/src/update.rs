//! Updates of one aspect of a CVM, each with its own route.

use casemate_types::compose::MAX_COMPOSE_BYTES;
use casemate_types::env::SealedEnv;
use casemate_types::error::FieldError;
use casemate_types::ids::CvmName;
use casemate_types::patch::{
    EnvsUpdate, ListedUpdate, NameUpdate, OsImageUpdate, ResourcesUpdate, Rollback as RollbackBody,
    VisibilityUpdate,
};
use casemate_types::wire;
use reqwest::Method;
use serde_json::{Value, json};

use crate::call::{Call, Parsed};
use crate::cvm::Cvm;
use crate::error::Result;
use crate::how::{How, update_options};
use crate::operation::{Operation, Target};
use crate::patch::{Again, PatchOutcome, outcome};

/// A new size: [`Cvm::resources`]. At least one of its fields has to be given.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let op = client.cvm("web-1").resources().vcpu(4).memory_mb(8192).disk_gb(100).send().await?;
/// op.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Resources {
    cvm: Cvm,
    body: ResourcesUpdate,
    how: How,
}

impl Resources {
    pub(crate) fn new(cvm: Cvm) -> Self {
        Self { cvm, body: ResourcesUpdate::default(), how: How::default() }
    }

    /// Virtual processors.
    pub fn vcpu(mut self, vcpu: u32) -> Self {
        self.body.vcpu = Some(vcpu);
        self
    }

    /// Memory, in MB.
    pub fn memory_mb(mut self, memory: u32) -> Self {
        self.body.memory = Some(memory);
        self
    }

    /// Disk, in GB. It can only grow.
    pub fn disk_gb(mut self, disk: u32) -> Self {
        self.body.disk_size = Some(disk);
        self
    }

    /// A named size, whose processors and memory the machine gets.
    pub fn instance_type(mut self, name: impl Into<String>) -> Self {
        self.body.instance_type = Some(name.into());
        self
    }

    update_options!();

    fn call(&self) -> Call {
        let body = ResourcesUpdate { options: self.how.options(), ..self.body.clone() };
        let empty = ResourcesUpdate { options: body.options, ..ResourcesUpdate::default() };
        let nothing = (body == empty && !self.how.force_restart).then(|| {
            FieldError::body(
                "vcpu",
                "missing",
                "at least one of vcpu, memory_mb, disk_gb and instance_type is needed",
            )
        });
        let call = self.cvm.call(Method::PATCH, ["resources"]).json(&body).problems(nothing);
        self.how.in_headers(self.how.in_body(call))
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a size that cannot be, [`Error::Conflict`](crate::Error::Conflict) for
    /// one the node does not have, [`Error::Busy`](crate::Error::Busy), and what every request can fail with.
    pub async fn send(self) -> Result<Operation> {
        let answer = self.call().answer().await?;
        Ok(Operation::of(&answer, self.cvm, Target::Settled))
    }
}

/// Who may see what: [`Cvm::visibility`]. What is not given stays as it is; at least one field has to be given.
///
/// Everything but `listed` changes the compose hash.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// client.cvm("web-1").visibility().listed(true).send().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Visibility {
    cvm: Cvm,
    body: VisibilityUpdate,
    how: How,
}

impl Visibility {
    pub(crate) fn new(cvm: Cvm) -> Self {
        Self { cvm, body: VisibilityUpdate::default(), how: How::default() }
    }

    /// Shown in the public directory. No restart if this is all.
    pub fn listed(mut self, listed: bool) -> Self {
        self.body.listed = Some(listed);
        self
    }

    /// Anyone may read the containers' logs.
    pub fn public_logs(mut self, public: bool) -> Self {
        self.body.public_logs = Some(public);
        self
    }

    /// Anyone may read system information.
    pub fn public_sysinfo(mut self, public: bool) -> Self {
        self.body.public_sysinfo = Some(public);
        self
    }

    /// Anyone may read the measurements.
    pub fn public_tcbinfo(mut self, public: bool) -> Self {
        self.body.public_tcbinfo = Some(public);
        self
    }

    update_options!();

    fn base(&self) -> Call {
        let body = VisibilityUpdate { options: self.how.options(), ..self.body.clone() };
        let empty = VisibilityUpdate { options: body.options, ..VisibilityUpdate::default() };
        let nothing = (body == empty && !self.how.force_restart).then(|| {
            let text = "at least one of listed, public_logs, public_sysinfo and public_tcbinfo is needed";
            FieldError::body("listed", "missing", text)
        });
        let call = self.cvm.call(Method::PATCH, ["visibility"]).json(&body).problems(nothing);
        self.how.in_body(call)
    }

    fn call(&self) -> Call {
        self.how.in_headers(self.base())
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Busy`](crate::Error::Busy), and what every request can fail with.
    pub async fn send(self) -> Result<PatchOutcome> {
        outcome(self.call(), self.cvm, Again::Unified).await
    }
}

/// A new text: [`Cvm::pre_launch_script`], [`Cvm::docker_compose`]. Changes the compose hash.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use casemate_sdk::PatchOutcome;
///
/// match client.cvm("web-1").pre_launch_script("#!/bin/sh\necho ready\n").send().await? {
///     PatchOutcome::Accepted(op) => op.wait().await.map(drop)?,
///     PatchOutcome::NeedsApproval(ask) => println!("register {} first", ask.compose_hash),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Text {
    cvm: Cvm,
    route: &'static str,
    field: &'static str,
    content_type: &'static str,
    text: String,
    how: How,
}

impl Text {
    pub(crate) fn pre_launch_script(cvm: Cvm, text: String) -> Self {
        let (route, field) = ("pre-launch-script", "pre_launch_script");
        Self { cvm, route, field, content_type: "text/plain; charset=utf-8", text, how: How::default() }
    }

    pub(crate) fn docker_compose(cvm: Cvm, text: String) -> Self {
        let (route, field) = ("docker-compose", "docker_compose_file");
        Self { cvm, route, field, content_type: "text/yaml; charset=utf-8", text, how: How::default() }
    }

    update_options!();

    fn base(&self) -> Call {
        let call = self.cvm.call(Method::PATCH, [self.route]).problems(too_long(&self.text, ""));
        let options = self.how.options();
        if options == casemate_types::patch::UpdateOptions::default() {
            return call.text(self.content_type, self.text.clone());
        }
        let mut body = json!(options);
        body[self.field] = Value::String(self.text.clone());
        self.how.in_body(call.json(&body))
    }

    fn call(&self) -> Call {
        self.how.in_headers(self.base())
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a text that cannot be used,
    /// [`Error::Busy`](crate::Error::Busy), and what every request can fail with.
    pub async fn send(self) -> Result<PatchOutcome> {
        let again = Again::Headers(self.base());
        outcome(self.call(), self.cvm, again).await
    }
}

/// Other environment variables: [`Cvm::envs`]. They replace the old ones completely.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use casemate_sdk::env::EnvVar;
///
/// let web = client.cvm("web-1");
/// let sealed = web.seal(&[EnvVar::new("TOKEN", "s3cret")]).await?;
/// web.envs(sealed).keys(["TOKEN"]).send().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Envs {
    cvm: Cvm,
    body: EnvsUpdate,
    how: How,
}

impl Envs {
    pub(crate) fn new(cvm: Cvm, encrypted_env: SealedEnv) -> Self {
        let body = EnvsUpdate {
            encrypted_env,
            env_keys: None,
            compose_hash: None,
            transaction_hash: None,
            options: Default::default(),
        };
        Self { cvm, body, how: How::default() }
    }

    /// The variables that reach the app, by name. Others than now change the compose hash.
    pub fn keys<T: Into<String>>(mut self, keys: impl IntoIterator<Item = T>) -> Self {
        self.body.env_keys = Some(keys.into_iter().map(Into::into).collect());
        self
    }

    update_options!();

    fn body(&self) -> EnvsUpdate {
        EnvsUpdate { options: self.how.options(), ..self.body.clone() }
    }

    fn base(&self) -> Call {
        self.how.in_body(self.cvm.call(Method::PATCH, ["envs"]).json(&self.body()))
    }

    fn call(&self) -> Call {
        self.how.in_headers(self.base())
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Busy`](crate::Error::Busy), and what every request can fail with.
    pub async fn send(self) -> Result<PatchOutcome> {
        let again = Again::Body(self.base(), json!(self.body()));
        outcome(self.call(), self.cvm, again).await
    }
}

/// Another OS image: [`Cvm::os_image`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// client.cvm("web-1").os_image("dstack-0.5.5").send().await?.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct OsImage {
    cvm: Cvm,
    image: String,
    how: How,
}

impl OsImage {
    pub(crate) fn new(cvm: Cvm, image: String) -> Self {
        Self { cvm, image, how: How::default() }
    }

    update_options!();

    fn call(&self) -> Call {
        let body = OsImageUpdate { image: self.image.clone(), options: self.how.options() };
        let empty = self.image.is_empty().then(|| {
            FieldError::body("os_image", "string_too_short", "must be the name or slug of an OS image")
        });
        let call = self.cvm.call(Method::PATCH, ["os-image"]).json(&body).problems(empty);
        self.how.in_headers(self.how.in_body(call))
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for an image that this CVM cannot have,
    /// [`Error::Busy`](crate::Error::Busy), and what every request can fail with.
    pub async fn send(self) -> Result<Operation> {
        let answer = self.call().answer().await?;
        Ok(Operation::of(&answer, self.cvm, Target::Settled))
    }
}

/// Shown in the public directory or not: [`Cvm::listed`]. No restart.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// client.cvm("web-1").listed(true).send().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Listed {
    cvm: Cvm,
    listed: bool,
    how: How,
}

impl Listed {
    pub(crate) fn new(cvm: Cvm, listed: bool) -> Self {
        Self { cvm, listed, how: How::default() }
    }

    update_options!(@headers);

    fn call(&self) -> Call {
        self.how
            .in_headers(self.cvm.call(Method::PATCH, ["listed"]).json(&ListedUpdate { listed: self.listed }))
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Busy`](crate::Error::Busy), and what every request can fail with.
    pub async fn send(self) -> Result<wire::Vm> {
        self.call().fetch().await
    }
}

/// Another name: [`Cvm::rename`]. No restart.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// client.cvm("web-1").rename("shop-1").send().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Rename {
    cvm: Cvm,
    name: Parsed<CvmName>,
    how: How,
}

impl Rename {
    pub(crate) fn new(cvm: Cvm, name: Parsed<CvmName>) -> Self {
        Self { cvm, name, how: How::default() }
    }

    update_options!(@headers);

    fn call(&self) -> Call {
        let call = self.cvm.call(Method::PATCH, ["name"]);
        let call = match &self.name {
            Ok(name) => call.json(&NameUpdate { name: name.clone() }),
            Err(problem) => call.problem((**problem).clone()),
        };
        self.how.in_headers(call)
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a name that cannot be or is taken, and what every request can fail with.
    pub async fn send(self) -> Result<()> {
        self.call().done().await
    }
}

/// A new instance id: [`Cvm::refresh_instance_id`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let refreshed = client.cvm("web-1").refresh_instance_id().send().await?;
/// if let Some(id) = refreshed.correlation_id {
///     client.operation(id).wait().await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct RefreshInstanceId {
    cvm: Cvm,
    how: How,
}

impl RefreshInstanceId {
    pub(crate) fn new(cvm: Cvm) -> Self {
        Self { cvm, how: How::default() }
    }

    update_options!(@headers);

    fn call(&self) -> Call {
        let call = self.cvm.call(Method::POST, ["refresh-instance-id"]).only_casemate("a new instance id");
        self.how.in_headers(call)
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported), [`Error::Conflict`](crate::Error::Conflict) if the node cannot give
    /// a new id, [`Error::Busy`](crate::Error::Busy), and what every request can fail with.
    pub async fn send(self) -> Result<wire::InstanceIdResult> {
        self.call().fetch().await
    }
}

/// An earlier configuration: [`Cvm::rollback`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let web = client.cvm("web-1");
/// let before = web.revisions().limit(2).send().await?.items[1].revision;
/// web.rollback(before).send().await?.accepted()?.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Rollback {
    cvm: Cvm,
    revision: u64,
    how: How,
}

impl Rollback {
    pub(crate) fn new(cvm: Cvm, revision: u64) -> Self {
        Self { cvm, revision, how: How::default() }
    }

    update_options!();

    fn call(&self) -> Call {
        let body = RollbackBody { revision: self.revision, options: self.how.options() };
        let call = self.cvm.call(Method::POST, ["rollback"]).only_casemate("a rollback").json(&body);
        self.how.in_headers(self.how.in_body(call))
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported), [`Error::NotFound`](crate::Error::NotFound) if there is no such
    /// revision, [`Error::Busy`](crate::Error::Busy), and what every request can fail with.
    pub async fn send(self) -> Result<PatchOutcome> {
        outcome(self.call(), self.cvm, Again::Unified).await
    }
}

/// What is wrong with two texts that are too long together.
pub(crate) fn too_long(compose: &str, script: &str) -> Option<FieldError> {
    let total = compose.len() + script.len();
    (total > MAX_COMPOSE_BYTES).then(|| {
        let text = format!(
            "has {total} bytes together with the pre-launch script; at most {MAX_COMPOSE_BYTES} are allowed"
        );
        FieldError::body("docker_compose_file", "too_long", text)
    })
}
