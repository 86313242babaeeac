//! The app-compose document: what an app runs, what it may do, and the text whose hash identifies both.
//!
//! Two things are kept of every document: the document itself as it was received, whose strings come back byte for byte,
//! and the text that [`ComposeDoc::normalise`] makes of it once. The hash is that of the text, and the text is what a
//! node gets; it is never made a second time.

mod check;
mod normalise;
mod services;
mod substitute;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::FieldError;
pub use check::{MAX_COMPOSE_BYTES, MAX_DEPTH};
pub use normalise::{Altered, Normalised};
pub use services::{
    Command, FILE_KEYS, Key, Port, Restart, SERVICE_KEYS, ServiceSpec, VolumeMount, start_order,
};
pub use substitute::substitute;

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ComposeError {
    /// The field of the document.
    pub field: String,
    /// What is wrong and what would be right, with line and column where they are known.
    pub message: String,
    /// One of [`codes`](crate::error::codes), where there is one for it.
    pub code: Option<&'static str>,
}

impl ComposeError {
    fn new(field: &str, message: impl Into<String>, code: Option<&'static str>) -> Self {
        Self { field: field.to_owned(), message: message.into(), code }
    }
}

impl From<ComposeError> for FieldError {
    fn from(error: ComposeError) -> Self {
        Self::body(&error.field, "value_error", error.message)
    }
}

/// A yes-or-no field of the document. [`Flag::default_value`] is what an absent one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flag {
    /// Keys come from a key service.
    KmsEnabled,
    /// The gateway forwards requests to the app. Older documents call it `tproxy_enabled`.
    GatewayEnabled,
    /// Anyone may read the containers' logs.
    PublicLogs,
    /// Anyone may read system information.
    PublicSysinfo,
    /// Anyone may read the measurements.
    PublicTcbinfo,
    /// The guest waits for a verified clock before it starts.
    SecureTime,
    /// The machine has no instance id of its own.
    NoInstanceId,
    /// Keys come from a provider on the node.
    LocalKeyProviderEnabled,
}

impl Flag {
    /// Every flag.
    pub const ALL: [Self; 8] = [
        Self::KmsEnabled,
        Self::GatewayEnabled,
        Self::PublicLogs,
        Self::PublicSysinfo,
        Self::PublicTcbinfo,
        Self::SecureTime,
        Self::NoInstanceId,
        Self::LocalKeyProviderEnabled,
    ];

    /// The key in the document.
    pub const fn key(self) -> &'static str {
        match self {
            Self::KmsEnabled => "kms_enabled",
            Self::GatewayEnabled => "gateway_enabled",
            Self::PublicLogs => "public_logs",
            Self::PublicSysinfo => "public_sysinfo",
            Self::PublicTcbinfo => "public_tcbinfo",
            Self::SecureTime => "secure_time",
            Self::NoInstanceId => "no_instance_id",
            Self::LocalKeyProviderEnabled => "local_key_provider_enabled",
        }
    }

    /// What an absent flag means.
    pub const fn default_value(self) -> bool {
        match self {
            Self::KmsEnabled
            | Self::GatewayEnabled
            | Self::PublicLogs
            | Self::PublicSysinfo
            | Self::PublicTcbinfo => true,
            Self::SecureTime | Self::NoInstanceId | Self::LocalKeyProviderEnabled => false,
        }
    }
}

/// A service of a docker-compose file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its image; `None` if it is built on the machine.
    pub image: Option<String>,
}

const TPROXY: &str = "tproxy_enabled";
const COMPOSE_FILE: &str = "docker_compose_file";
const PRE_LAUNCH: &str = "pre_launch_script";
const ALLOWED_ENVS: &str = "allowed_envs";

/// An app-compose document, its keys in the order they were received.
///
/// `Debug` shows the keys only: a document may hold registry passwords.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ComposeDoc(Map<String, Value>);

impl ComposeDoc {
    /// Takes a JSON value, which must be an object.
    ///
    /// # Errors
    /// Another kind of value, or one nested deeper than [`MAX_DEPTH`].
    pub fn from_value(value: Value) -> Result<Self, ComposeError> {
        match value {
            Value::Object(map) => Self::from_map(map),
            other => Err(ComposeError::new(
                "compose_file",
                format!("the app-compose document must be a JSON object, not {}", kind_of(&other)),
                None,
            )),
        }
    }

    /// Takes the fields of the document.
    ///
    /// # Errors
    /// Nested deeper than [`MAX_DEPTH`].
    pub fn from_map(map: Map<String, Value>) -> Result<Self, ComposeError> {
        for (key, value) in &map {
            if check::deeper_than(value, MAX_DEPTH - 1) {
                return Err(ComposeError::new(
                    key,
                    format!("`{key}` must not be nested deeper than {MAX_DEPTH} levels"),
                    None,
                ));
            }
        }
        Ok(Self(map))
    }

    /// Reads JSON text.
    ///
    /// # Errors
    /// Not JSON, not an object, or nested deeper than [`MAX_DEPTH`].
    pub fn parse(text: &str) -> Result<Self, ComposeError> {
        let value = serde_json::from_str(text)
            .map_err(|error| ComposeError::new("compose_file", format!("not valid JSON: {error}"), None))?;
        Self::from_value(value)
    }

    /// Compact JSON, keys in the order received. This is not the text that is hashed.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).expect("a JSON value always serialises")
    }

    /// All fields.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// All fields.
    pub fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// A field, unless it is absent or `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Sets a field, at its old place if it was there.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    /// Removes a field; the others keep their order.
    pub fn remove(&mut self, key: &str) {
        self.0.shift_remove(key);
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    fn texts(&self, key: &str) -> Vec<&str> {
        let list = self.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The app's name.
    pub fn name(&self) -> Option<&str> {
        self.text("name")
    }

    /// What starts the app: `docker-compose` unless the document says otherwise.
    pub fn runner(&self) -> &str {
        self.text("runner").unwrap_or("docker-compose")
    }

    /// The docker-compose file, byte for byte.
    pub fn docker_compose_file(&self) -> Option<&str> {
        self.text(COMPOSE_FILE)
    }

    /// The script that runs before the containers start, byte for byte.
    pub fn pre_launch_script(&self) -> Option<&str> {
        self.text(PRE_LAUNCH)
    }

    /// The environment variables that reach the app.
    pub fn allowed_envs(&self) -> Vec<&str> {
        self.texts(ALLOWED_ENVS)
    }

    /// Feature words.
    pub fn features(&self) -> Vec<&str> {
        self.texts("features")
    }

    /// The version of the document's form: 2 unless it says otherwise. A decimal string counts here, though none is accepted.
    pub fn manifest_version(&self) -> u64 {
        let version = self.get("manifest_version");
        version.and_then(|v| v.as_u64().or_else(|| v.as_str()?.parse().ok())).unwrap_or(2)
    }

    /// The file system of the data disk: `zfs` unless the document says otherwise.
    pub fn storage_fs(&self) -> &str {
        self.text("storage_fs").unwrap_or("zfs")
    }

    /// A flag, or what its absence means.
    pub fn flag(&self, flag: Flag) -> bool {
        let old_name = || if flag == Flag::GatewayEnabled { self.get(TPROXY) } else { None };
        let value = self.get(flag.key()).or_else(old_name);
        value.and_then(Value::as_bool).unwrap_or(flag.default_value())
    }

    /// Sets the app's name.
    pub fn set_name(&mut self, name: &str) {
        self.set("name", name);
    }

    /// Sets the docker-compose file.
    pub fn set_docker_compose_file(&mut self, text: &str) {
        self.set(COMPOSE_FILE, text);
    }

    /// Sets the script that runs before the containers start. An empty one removes it.
    pub fn set_pre_launch_script(&mut self, text: &str) {
        if text.is_empty() { self.remove(PRE_LAUNCH) } else { self.set(PRE_LAUNCH, text) }
    }

    /// Sets the environment variables that reach the app.
    pub fn set_allowed_envs<T: Into<String>>(&mut self, keys: impl IntoIterator<Item = T>) {
        let keys: Vec<Value> = keys.into_iter().map(|key| Value::String(key.into())).collect();
        self.set(ALLOWED_ENVS, keys);
    }

    /// Sets a flag.
    pub fn set_flag(&mut self, flag: Flag, value: bool) {
        if flag == Flag::GatewayEnabled {
            self.remove(TPROXY);
        }
        self.set(flag.key(), value);
    }

    /// Gives `tproxy_enabled` its present name, `gateway_enabled`, whose value counts where both are there.
    ///
    /// One that is not a boolean stays, for [`check`](Self::check) to refuse.
    pub fn rename_tproxy(&mut self) {
        let Some(Value::Bool(old)) = self.get(TPROXY) else { return };
        let old = *old;
        self.remove(TPROXY);
        if self.get(Flag::GatewayEnabled.key()).is_none() {
            self.set_flag(Flag::GatewayEnabled, old);
        }
    }

    /// The document for a new CVM: what is missing gets its default, `name` for a missing or empty name.
    ///
    /// `tproxy_enabled` becomes `gateway_enabled`, and fields that are `null` go, since clients refuse them when they read
    /// the document back. Defaults are written out because a guest's own defaults differ.
    #[must_use]
    pub fn with_defaults(mut self, name: &str) -> Self {
        self.0.retain(|_, value| !value.is_null());
        self.rename_tproxy();
        if self.get("name").is_none_or(|name| name == "") {
            self.set_name(name);
        }
        let mut default = |key: &str, value: Value| {
            self.0.entry(key).or_insert(value);
        };
        default("manifest_version", 2.into());
        default("runner", "docker-compose".into());
        for flag in Flag::ALL.into_iter().filter(|flag| flag.default_value() || *flag == Flag::SecureTime) {
            default(flag.key(), flag.default_value().into());
        }
        default(ALLOWED_ENVS, Value::Array(Vec::new()));
        default("features", Value::Array(vec!["kms".into(), "tproxy-net".into()]));
        default("storage_fs", "zfs".into());
        self
    }
}

impl std::fmt::Debug for ComposeDoc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ComposeDoc")?;
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// "a string", "a number" … for messages.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod services_tests;
#[cfg(test)]
mod tests;
