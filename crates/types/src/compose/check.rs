//! What a document must be before it is accepted.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{Location, Options, Spanned, UserMessageFormatter};

use super::{
    ALLOWED_ENVS, COMPOSE_FILE, ComposeDoc, ComposeError, Flag, PRE_LAUNCH, Service, TPROXY, kind_of,
};
use crate::error::codes;

/// `docker_compose_file` and `pre_launch_script` together, in bytes of UTF-8.
pub const MAX_COMPOSE_BYTES: usize = 204_800;

/// How deep a document may be nested, itself included.
pub const MAX_DEPTH: usize = 32;

/// As many variables and as long names as the guest takes.
const MAX_ENVS: usize = 1024;
const MAX_ENV_NAME: usize = 255;

impl ComposeDoc {
    /// Checks that a machine can run this document.
    ///
    /// # Errors
    /// The first thing that is wrong: a field of the wrong type, nothing to run, too many bytes, or a docker-compose file
    /// that is not YAML or has no usable services.
    pub fn check(&self) -> Result<(), ComposeError> {
        if let Some(key) = self.as_map().iter().find_map(|(key, value)| unhashable_key(key, value)) {
            return Err(invalid(
                key,
                format!(
                    "`{key}` may not be a field's name: JavaScript clients would compute another compose hash"
                ),
            ));
        }
        self.check_types()?;
        let bytes = |text: Option<&str>| text.map_or(0, str::len);
        let (file, script) = (bytes(self.docker_compose_file()), bytes(self.pre_launch_script()));
        let total = file + script;
        if total > MAX_COMPOSE_BYTES {
            // The one that takes up more is the one to shorten.
            let (longer, other) =
                if script > file { (PRE_LAUNCH, COMPOSE_FILE) } else { (COMPOSE_FILE, PRE_LAUNCH) };
            return Err(invalid(
                longer,
                format!(
                    "`{longer}` has {total} bytes together with `{other}`, and at most {MAX_COMPOSE_BYTES} are allowed"
                ),
            ));
        }
        match self.runner() {
            "docker-compose" | "nerdctl-compose" => self.read_services().map(|_| ()),
            "bash" => match self.get("bash_script").and_then(Value::as_str) {
                Some(script) if !script.is_empty() => Ok(()),
                _ => Err(ComposeError::new(
                    "bash_script",
                    "`bash_script` is required when `runner` is `bash`",
                    Some(codes::COMPOSE_FILE_REQUIRED),
                )),
            },
            other => Err(invalid(
                "runner",
                format!("`runner` must be `docker-compose`, `nerdctl-compose` or `bash`, not `{other}`"),
            )),
        }
    }

    /// The services of the docker-compose file, in its order; none if it cannot be read.
    pub fn services(&self) -> Vec<Service> {
        self.read_services().unwrap_or_default()
    }

    fn check_types(&self) -> Result<(), ComposeError> {
        for (key, value) in self.as_map().iter().filter(|(_, value)| !value.is_null()) {
            let key = key.as_str();
            let (right, wanted) = match key {
                "name"
                | "runner"
                | COMPOSE_FILE
                | "bash_script"
                | "init_script"
                | PRE_LAUNCH
                | "salt"
                | "env_pubkey"
                | "default_gateway_domain" => (value.is_string(), "a string"),
                // One of the names that clients read the document by: a text is none of their numbers.
                "manifest_version" => (value.is_u64(), "a whole number, such as 2"),
                ALLOWED_ENVS | "features" => (is_texts(value), "a list of strings"),
                "storage_fs" => (matches!(value.as_str(), Some("zfs" | "ext4")), "`zfs` or `ext4`"),
                "docker_config" => (
                    is_docker_config(value),
                    "an object with the strings `username`, `password` and, if need be, `registry`",
                ),
                _ if key == TPROXY || Flag::ALL.iter().any(|flag| flag.key() == key) => {
                    (value.is_boolean(), "true or false")
                }
                _ => continue,
            };
            if !right {
                // What is of the right kind is wrong in itself; it is not repeated, since it may be a password.
                let not = match (key, value) {
                    (ALLOWED_ENVS | "features", Value::Array(_))
                    | ("docker_config", Value::Object(_))
                    | ("storage_fs", Value::String(_))
                    | ("manifest_version", Value::Number(_)) => String::new(),
                    _ => format!(", not {}", kind_of(value)),
                };
                return Err(invalid(key, format!("`{key}` must be {wanted}{not}")));
            }
        }
        let envs = self.allowed_envs();
        if envs.len() > MAX_ENVS {
            return Err(invalid(
                ALLOWED_ENVS,
                format!("`{ALLOWED_ENVS}` has {} names, and at most {MAX_ENVS} are allowed", envs.len()),
            ));
        }
        if let Some(name) = envs.iter().find(|name| !is_env_name(name)) {
            return Err(invalid(
                ALLOWED_ENVS,
                format!(
                    "`{ALLOWED_ENVS}` has `{name}`, which cannot be a variable's name: that is 1 to {MAX_ENV_NAME} bytes without `=`, space or control character"
                ),
            ));
        }
        Ok(())
    }

    fn read_services(&self) -> Result<Vec<Service>, ComposeError> {
        let yaml = self.docker_compose_file().unwrap_or_default();
        if yaml.trim().is_empty() {
            return Err(ComposeError::new(
                COMPOSE_FILE,
                "`docker_compose_file` is required: the text of a docker-compose file",
                Some(codes::COMPOSE_FILE_REQUIRED),
            ));
        }
        services_of(yaml)
    }
}

fn is_texts(value: &Value) -> bool {
    value.as_array().is_some_and(|items| items.iter().all(Value::is_string))
}

/// A login for a registry, whose name may be `null`.
fn is_docker_config(value: &Value) -> bool {
    let Some(config) = value.as_object() else { return false };
    let is_text = |key| config.get(key).is_none_or(Value::is_string);
    is_text("username")
        && is_text("password")
        && config.get("registry").is_none_or(|value| value.is_string() || value.is_null())
}

fn is_env_name(name: &str) -> bool {
    (1..=MAX_ENV_NAME).contains(&name.len())
        && !name.chars().any(|c| c == '=' || c.is_whitespace() || c.is_control())
}

fn invalid(field: &str, message: impl Into<String>) -> ComposeError {
    ComposeError::new(field, message, Some(codes::INVALID_COMPOSE_FILE))
}

/// Whether a value is nested deeper than `levels`. Looks no further than that.
pub(super) fn deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| deeper_than(item, levels - 1)),
        Value::Object(map) => levels == 0 || map.values().any(|item| deeper_than(item, levels - 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A key that JavaScript objects have by birth, here or further inside. Depth is limited by then.
fn unhashable_key<'a>(key: &'a str, value: &'a Value) -> Option<&'a str> {
    if matches!(key, "__proto__" | "constructor") {
        return Some(key);
    }
    match value {
        Value::Object(map) => map.iter().find_map(|(key, value)| unhashable_key(key, value)),
        Value::Array(items) => items.iter().find_map(|item| unhashable_key("", item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// Far more than a compose file of the allowed size needs, far less than it takes to hurt.
fn limits() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_events: 100_000,
            max_nodes: 40_000,
            max_anchors: 1_000,
            max_aliases: 2_000,
            max_merge_keys: 2_000,
            max_recorded_anchor_events: 40_000,
            max_recorded_anchor_bytes: 4 * MAX_COMPOSE_BYTES,
            max_total_scalar_bytes: 4 * MAX_COMPOSE_BYTES,
            max_documents: 2,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 40_000,
            max_replay_stack_depth: 16,
            max_alias_expansions_per_anchor: 1_000,
        },
    }
}

/// Reads YAML within [`limits`].
pub(super) fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, ComposeError> {
    serde_saphyr::from_str_with_options(text, limits()).map_err(|error| {
        let reason = error.render_with_formatter(&UserMessageFormatter);
        invalid(COMPOSE_FILE, format!("`{COMPOSE_FILE}` is not a usable docker-compose file: {reason}"))
    })
}

fn services_of(text: &str) -> Result<Vec<Service>, ComposeError> {
    let Mapping(file) = yaml::<Mapping<File>>(text)?;
    match file.services {
        None => Err(invalid(COMPOSE_FILE, format!("`{COMPOSE_FILE}` must have `services`"))),
        Some(services) if services.value.0.is_empty() => {
            let message = format!("`services` of `{COMPOSE_FILE}` must have at least one service");
            Err(invalid(COMPOSE_FILE, at(services.referenced, &message)))
        }
        Some(services) => {
            services.value.0.into_iter().map(|(name, fields)| service_of(name, &fields)).collect()
        }
    }
}

fn service_of(name: String, service: &Spanned<Mapping<ServiceFields>>) -> Result<Service, ComposeError> {
    let wrong = |what: &str| {
        Err(invalid(
            COMPOSE_FILE,
            at(service.referenced, &format!("service `{name}` of `{COMPOSE_FILE}` {what}")),
        ))
    };
    let good_name =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !good_name {
        return wrong("must have a name of letters, digits, `.`, `_` and `-`");
    }
    let Mapping(ServiceFields { image, build, extends }) = &service.value;
    match image {
        Some(image) if !image.trim().is_empty() => Ok(Service { name, image: Some(image.clone()) }),
        Some(_) => wrong("has an empty `image`"),
        None if build.is_some() || extends.is_some() => Ok(Service { name, image: None }),
        None => wrong("needs an `image` or a `build`"),
    }
}

fn at(place: Location, message: &str) -> String {
    if place.line() == 0 {
        message.to_owned()
    } else {
        format!("{message} (line {}, column {})", place.line(), place.column())
    }
}

/// The top of a docker-compose file. Only its services are looked at.
#[derive(Deserialize)]
struct File {
    services: Option<Spanned<Services>>,
}

/// What decides whether a service can run: its image, or where that comes from instead.
#[derive(Deserialize)]
struct ServiceFields {
    image: Option<String>,
    build: Option<IgnoredAny>,
    extends: Option<IgnoredAny>,
}

/// A mapping; anything else is refused by that word.
struct Mapping<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Mapping<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct MappingVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for MappingVisitor<T> {
            type Value = Mapping<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mapping<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Mapping)
            }
        }
        from.deserialize_any(MappingVisitor(PhantomData))
    }
}

/// The services in the order of the file.
struct Services(Vec<(String, Spanned<Mapping<ServiceFields>>)>);

impl<'de> Deserialize<'de> for Services {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ServicesVisitor;
        impl<'de> Visitor<'de> for ServicesVisitor {
            type Value = Services;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of services")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Services, A::Error> {
                let mut services = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    services.push(entry);
                }
                Ok(Services(services))
            }
        }
        from.deserialize_any(ServicesVisitor)
    }
}
