//! The services that a machine of our own runs, out of a docker-compose file.
//!
//! [`SERVICE_KEYS`] is the one list of what is understood. Whoever accepts a document, the documentation and the guest all
//! go by it; a key that is not in it is refused by name, so that nothing in a file is silently without effect.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

use super::substitute::{check_template, substitute};
use super::{COMPOSE_FILE, ComposeDoc, ComposeError, check, kind_of};
use crate::error::codes;

/// A key of the docker-compose file and what it does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// What may stand there, and what it does.
    pub meaning: &'static str,
}

const fn key(name: &'static str, meaning: &'static str) -> Key {
    Key { name, meaning }
}

/// Every key that a service may have. Beside them any `x-…`, which has no effect.
pub const SERVICE_KEYS: [Key; 12] = [
    key(
        "image",
        "required; a reference, best with a digest. No variables: it has to be there before the machine starts",
    ),
    key("command", "a line or a list; replaces the image's. Variables"),
    key("entrypoint", "a line or a list; replaces the image's, and its command with it. Variables"),
    key("environment", "a mapping or a list. Variables; a name without a value takes the variable's"),
    key("ports", "`PUBLISHED:PORT`, `PORT`, or a mapping with `target` and `published`; TCP"),
    key(
        "volumes",
        "`NAME:/PATH`, with `:ro` to read only, or a mapping of type `volume`; named ones on the data disk",
    ),
    key("depends_on", "a list, or a mapping with the condition `service_started`; the order of the start"),
    key("restart", "`no` (the default), `always`, `unless-stopped`, `on-failure`, `on-failure:TIMES`"),
    key("user", "`UID`, `UID:GID`, or names that the image knows"),
    key("working_dir", "an absolute path"),
    key("container_name", "another name by which services reach it"),
    key("labels", "no effect"),
];

/// Every key at the top of the file. Beside them any `x-…`, which has no effect.
pub const FILE_KEYS: [Key; 4] = [
    key("services", "required"),
    key("volumes", "the names of the volumes, each with nothing more to it"),
    key("name", "no effect"),
    key("version", "no effect"),
];

/// A service as a machine runs it. Variables are still in their places; see [`ServiceSpec::with`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name in the file.
    pub name: String,
    /// The image's reference, as in the file.
    pub image: String,
    /// What replaces the image's command.
    pub command: Option<Command>,
    /// What replaces the image's entrypoint.
    pub entrypoint: Option<Command>,
    /// Variables; one without a value takes that of the environment, if it is there.
    pub environment: Vec<(String, Option<String>)>,
    /// Ports that are reached from outside.
    pub ports: Vec<Port>,
    /// Volumes and where they appear.
    pub volumes: Vec<VolumeMount>,
    /// Services that are started before it.
    pub depends_on: Vec<String>,
    /// What happens when it ends.
    pub restart: Restart,
    /// Who it runs as.
    pub user: Option<String>,
    /// Where it runs, an absolute path.
    pub working_dir: Option<String>,
    /// Another name by which services reach it.
    pub container_name: Option<String>,
}

/// A command, which is a line to be split into words or has them already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A line, split like a shell does it, without a shell.
    Line(String),
    /// Words.
    Words(Vec<String>),
}

impl Command {
    /// Its words.
    ///
    /// # Errors
    /// A quote that does not end.
    pub fn words(&self) -> Result<Vec<String>, String> {
        match self {
            Self::Line(line) => split(line),
            Self::Words(words) => Ok(words.clone()),
        }
    }

    fn with(&self, value_of: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        Ok(match self {
            Self::Line(line) => Self::Line(substitute(line, value_of)?),
            Self::Words(words) => {
                Self::Words(words.iter().map(|word| substitute(word, value_of)).collect::<Result<_, _>>()?)
            }
        })
    }
}

/// A TCP port that is reached from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Where the machine listens.
    pub published: u16,
    /// Where the container listens.
    pub target: u16,
}

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: String,
    /// Where it appears, an absolute path.
    pub target: String,
    /// May the container not write to it?
    pub read_only: bool,
}

/// What happens when a service's process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restart {
    /// It stays ended.
    #[default]
    No,
    /// It is started again.
    Always,
    /// As [`Always`](Self::Always); nobody stops a single service here.
    UnlessStopped,
    /// It is started again if it failed, so many times at most.
    OnFailure {
        /// How many times; no limit if absent.
        times: Option<u32>,
    },
}

impl ServiceSpec {
    /// The names by which services reach it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.container_name.as_deref())
    }

    /// The service with every variable replaced.
    ///
    /// # Errors
    /// A variable that its place says is required and that is not there.
    pub fn with(&self, value_of: &dyn Fn(&str) -> Option<String>) -> Result<Self, ComposeError> {
        let fail = |reason: String| self.wrong(&reason);
        let mut service = self.clone();
        service.command = self.command.as_ref().map(|c| c.with(value_of)).transpose().map_err(fail)?;
        service.entrypoint = self.entrypoint.as_ref().map(|c| c.with(value_of)).transpose().map_err(fail)?;
        service.environment.clear();
        for (name, value) in &self.environment {
            let value = match value {
                Some(template) => Some(substitute(template, value_of).map_err(fail)?),
                None => value_of(name),
            };
            if let Some(value) = value {
                service.environment.push((name.clone(), Some(value)));
            }
        }
        Ok(service)
    }

    fn wrong(&self, reason: &str) -> ComposeError {
        invalid(format!("service `{}`: {reason}", self.name))
    }
}

impl ComposeDoc {
    /// The services of the docker-compose file as a machine of our own runs them, in the order of the file.
    ///
    /// # Errors
    /// The first thing that such a machine cannot do, by service and key: another runner than `docker-compose`, a key that
    /// is not in [`SERVICE_KEYS`], or a value that is not understood.
    pub fn runnable(&self) -> Result<Vec<ServiceSpec>, ComposeError> {
        if self.runner() != "docker-compose" {
            return Err(ComposeError::new(
                "runner",
                format!(
                    "`runner` `{}` is not supported on this node; supported: `docker-compose`",
                    self.runner()
                ),
                Some(codes::INVALID_COMPOSE_FILE),
            ));
        }
        self.check()?;
        let file: Value = check::yaml(self.docker_compose_file().unwrap_or_default())?;
        let file = mapping(&file)
            .map_err(|found| invalid(format!("`{COMPOSE_FILE}` must be a mapping, not {found}")))?;
        only(file, &FILE_KEYS).map_err(|reason| invalid(format!("`{COMPOSE_FILE}`: {reason}")))?;
        let volumes = volumes(file).map_err(|reason| invalid(format!("`{COMPOSE_FILE}`: {reason}")))?;
        let listed = mapping(&file["services"])
            .map_err(|found| invalid(format!("`services` must be a mapping, not {found}")))?;
        let services: Vec<ServiceSpec> = listed
            .iter()
            .map(|(name, fields)| {
                service(name, fields, &volumes)
                    .map_err(|reason| invalid(format!("service `{name}`: {reason}")))
            })
            .collect::<Result<_, _>>()?;
        check_together(&services)?;
        Ok(services)
    }
}

/// In which order to start services, as places in `services`: those that others depend on before them.
///
/// Services that [`ComposeDoc::runnable`] returned never depend on each other in a circle; of others, those are left out.
pub fn start_order(services: &[ServiceSpec]) -> Vec<usize> {
    let mut order = Vec::new();
    let mut there = BTreeSet::new();
    while let Some(next) = (0..services.len()).find(|&at| {
        let service = &services[at];
        !there.contains(service.name.as_str())
            && service.depends_on.iter().all(|name| there.contains(name.as_str()))
    }) {
        there.insert(services[next].name.as_str());
        order.push(next);
    }
    order
}

fn invalid(message: String) -> ComposeError {
    ComposeError::new(COMPOSE_FILE, message, Some(codes::INVALID_COMPOSE_FILE))
}

fn mapping(value: &Value) -> Result<&Map<String, Value>, &'static str> {
    value.as_object().ok_or_else(|| kind_of(value))
}

/// Refuses a key that is not in the list.
fn only(fields: &Map<String, Value>, keys: &[Key]) -> Result<(), String> {
    let unknown = fields
        .keys()
        .find(|name| !name.starts_with("x-") && keys.iter().all(|key| key.name != name.as_str()));
    match unknown {
        None => Ok(()),
        Some(name) => {
            let all: Vec<&str> = keys.iter().map(|key| key.name).collect();
            Err(format!("`{name}` is not supported on this node; supported: {}", all.join(", ")))
        }
    }
}

/// Refuses a key of a mapping inside a service.
fn only_these(what: &str, fields: &Map<String, Value>, keys: &[&str]) -> Result<(), String> {
    match fields.keys().find(|name| !name.starts_with("x-") && !keys.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(format!(
            "{what} has `{name}`, which is not supported on this node; supported: {}",
            keys.join(", ")
        )),
    }
}

/// A key that is allowed with the one value that says what is so anyway.
fn says(what: &str, fields: &Map<String, Value>, key: &str, expected: &Value) -> Result<(), String> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if value == expected => Ok(()),
        Some(other) => Err(format!(
            "{what} has `{key}` {other}, which is not supported on this node; supported: {expected}"
        )),
    }
}

fn volumes(file: &Map<String, Value>) -> Result<BTreeSet<String>, String> {
    let Some(value) = file.get("volumes").filter(|value| !value.is_null()) else {
        return Ok(BTreeSet::new());
    };
    let listed = mapping(value).map_err(|found| format!("`volumes` must be a mapping, not {found}"))?;
    for (name, fields) in listed {
        if !is_name(name) {
            return Err(format!("volume `{name}` {NAME_RULE}"));
        }
        match fields {
            Value::Null => {}
            Value::Object(fields) => only_these(&format!("volume `{name}`"), fields, &["labels"])?,
            other => {
                return Err(format!("volume `{name}` must be a mapping or empty, not {}", kind_of(other)));
            }
        }
    }
    Ok(listed.keys().cloned().collect())
}

/// Names become folders on the machine.
const NAME_RULE: &str =
    "must have a name of at most 64 letters, digits, `_`, `.` and `-` that starts with a letter or a digit";

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn service(name: &str, fields: &Value, volumes: &BTreeSet<String>) -> Result<ServiceSpec, String> {
    if !is_name(name) {
        return Err(NAME_RULE.to_owned());
    }
    let fields = mapping(fields).map_err(|found| format!("must be a mapping, not {found}"))?;
    only(fields, &SERVICE_KEYS)?;
    let get = |key: &str| fields.get(key).filter(|value| !value.is_null());
    let text = |key: &str| get(key).map(|value| plain(value, key)).transpose();
    let Some(image) = text("image")? else { return Err("`image` is required".to_owned()) };
    let container_name = text("container_name")?;
    if container_name.as_ref().is_some_and(|name| !is_name(name)) {
        return Err(format!("`container_name` {NAME_RULE}"));
    }
    let working_dir = text("working_dir")?;
    if let Some(path) = &working_dir {
        absolute("working_dir", path)?;
    }
    Ok(ServiceSpec {
        name: name.to_owned(),
        image,
        command: get("command").map(|value| command("command", value)).transpose()?,
        entrypoint: get("entrypoint").map(|value| command("entrypoint", value)).transpose()?,
        environment: get("environment").map(environment).transpose()?.unwrap_or_default(),
        ports: items(get("ports"), "ports")?.iter().map(port).collect::<Result<_, _>>()?,
        volumes: items(get("volumes"), "volumes")?
            .iter()
            .map(|item| volume(item, volumes))
            .collect::<Result<_, _>>()?,
        depends_on: get("depends_on").map(depends_on).transpose()?.unwrap_or_default(),
        restart: get("restart").map(restart).transpose()?.unwrap_or_default(),
        user: text("user")?,
        working_dir,
        container_name,
    })
}

fn items<'a>(value: Option<&'a Value>, key: &str) -> Result<&'a [Value], String> {
    match value {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(format!("`{key}` must be a list, not {}", kind_of(other))),
    }
}

/// A text or number, as text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Number(number) if number.is_f64() => number.as_f64().map(|number| number.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A text without variables: the node needs to know it before the machine has its environment.
fn plain(value: &Value, key: &str) -> Result<String, String> {
    let text = scalar(value).ok_or_else(|| format!("`{key}` must be a text, not {}", kind_of(value)))?;
    if text.contains('$') {
        return Err(format!("`{key}` may not have variables, and `{text}` has one"));
    }
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err(format!("`{key}` must be a text of one line"));
    }
    Ok(text)
}

fn absolute(key: &str, path: &str) -> Result<(), String> {
    if path.starts_with('/') && !path.split('/').any(|part| part == "..") {
        Ok(())
    } else {
        Err(format!("`{key}` must be an absolute path without `..`, not `{path}`"))
    }
}

/// A template, whose form is checked and which cannot carry what no argument or variable can.
fn template(key: &str, text: String) -> Result<String, String> {
    if text.contains('\0') {
        return Err(format!("`{key}` may not have a zero byte"));
    }
    check_template(&text).map_err(|reason| format!("`{key}`: {reason}"))?;
    Ok(text)
}

fn command(key: &str, value: &Value) -> Result<Command, String> {
    match value {
        Value::String(line) => {
            let line = template(key, line.clone())?;
            split(&line).map_err(|reason| format!("`{key}`: {reason}"))?;
            Ok(Command::Line(line))
        }
        Value::Array(words) => words
            .iter()
            .map(|word| {
                let text = scalar(word)
                    .ok_or_else(|| format!("`{key}` must be a list of texts, and has {}", kind_of(word)))?;
                template(key, text)
            })
            .collect::<Result<_, _>>()
            .map(Command::Words),
        other => Err(format!("`{key}` must be a line or a list, not {}", kind_of(other))),
    }
}

/// Splits a line into words: blanks separate, quotes join, a backslash takes the next character as it is.
fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = chars.next().ok_or("it ends in a backslash")?;
                // Inside double quotes a backslash is an ordinary character before most others.
                if quote.is_some() && !"\"\\$`".contains(next) {
                    word.get_or_insert_default().push('\\');
                }
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("the quote {open} does not end"));
    }
    words.extend(word);
    Ok(words)
}

fn environment(value: &Value) -> Result<Vec<(String, Option<String>)>, String> {
    let pairs: Vec<(String, Option<String>)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| match value {
                Value::Null => Ok((name.clone(), None)),
                other => scalar(other).map(|text| (name.clone(), Some(text))).ok_or_else(|| {
                    format!("`environment` has {} for `{name}`, which must be a text", kind_of(other))
                }),
            })
            .collect::<Result<_, _>>()?,
        Value::Array(items) => items
            .iter()
            .map(|item| {
                let text = item.as_str().ok_or_else(|| {
                    format!("`environment` must be a list of `NAME=VALUE`, and has {}", kind_of(item))
                })?;
                Ok(match text.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (text.to_owned(), None),
                })
            })
            .collect::<Result<_, String>>()?,
        other => return Err(format!("`environment` must be a mapping or a list, not {}", kind_of(other))),
    };
    for (name, value) in &pairs {
        let good = !name.is_empty()
            && !name.chars().any(|c| c == '=' || c == '$' || c.is_whitespace() || c.is_control());
        if !good {
            return Err(format!("`environment` has `{name}`, which cannot be a variable's name"));
        }
        template(&format!("environment.{name}"), value.clone().unwrap_or_default())?;
    }
    Ok(pairs)
}

fn port_number(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!(
            "`ports`: `{text}` is not a port from 1 to 65535 (ranges, addresses and variables are not supported)"
        )),
    }
}

fn tcp(protocol: &str) -> Result<(), String> {
    match protocol {
        "tcp" => Ok(()),
        other => Err(format!("`ports`: protocol `{other}` is not supported on this node; supported: tcp")),
    }
}

fn port(item: &Value) -> Result<Port, String> {
    if let Value::Object(fields) = item {
        only_these("an entry of `ports`", fields, &["target", "published", "protocol", "mode"])?;
        says("an entry of `ports`", fields, "mode", &"ingress".into())?;
        let get = |key: &str| fields.get(key).filter(|value| !value.is_null()).and_then(scalar);
        tcp(get("protocol").as_deref().unwrap_or("tcp"))?;
        let target = get("target").ok_or("an entry of `ports` needs a `target`")?;
        let target = port_number(&target)?;
        let published = get("published").map(|text| port_number(&text)).transpose()?.unwrap_or(target);
        return Ok(Port { published, target });
    }
    let text = scalar(item)
        .ok_or_else(|| format!("`ports` must be a list of `PUBLISHED:PORT`, and has {}", kind_of(item)))?;
    let (ports, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    tcp(protocol)?;
    let (published, target) = ports.split_once(':').unwrap_or((ports, ports));
    Ok(Port { published: port_number(published)?, target: port_number(target)? })
}

fn volume(item: &Value, known: &BTreeSet<String>) -> Result<VolumeMount, String> {
    let mount = match item {
        Value::Object(fields) => {
            let get = |key: &str| fields.get(key).filter(|value| !value.is_null()).and_then(scalar);
            if let Some(kind) = get("type").filter(|kind| kind != "volume") {
                return Err(format!(
                    "`volumes`: type `{kind}` is not supported on this node; supported: volume"
                ));
            }
            only_these("an entry of `volumes`", fields, &["type", "source", "target", "read_only"])?;
            let read_only = match fields.get("read_only") {
                None | Some(Value::Null) => false,
                Some(value) => value.as_bool().ok_or("`volumes`: `read_only` must be true or false")?,
            };
            VolumeMount {
                volume: get("source")
                    .ok_or("an entry of `volumes` needs a `source`, the name of a volume")?,
                target: get("target")
                    .ok_or("an entry of `volumes` needs a `target`, a path in the container")?,
                read_only,
            }
        }
        Value::String(text) => {
            let mut parts = text.split(':');
            let (Some(volume), Some(target)) = (parts.next(), parts.next()) else {
                return Err(format!("`volumes`: `{text}` has no name in front: `NAME:/PATH`"));
            };
            let read_only = match (parts.next(), parts.next()) {
                (None, None) | (Some("rw"), None) => false,
                (Some("ro"), None) => true,
                _ => return Err(format!("`volumes`: `{text}` ends in something else than `:ro` or `:rw`")),
            };
            VolumeMount { volume: volume.to_owned(), target: target.to_owned(), read_only }
        }
        other => return Err(format!("`volumes` must be a list of `NAME:/PATH`, and has {}", kind_of(other))),
    };
    let VolumeMount { volume, target, .. } = &mount;
    if volume.starts_with(['/', '.', '~']) {
        return Err(format!(
            "`volumes`: `{volume}` is a path of the machine, which is not supported on this node; supported: named volumes"
        ));
    }
    if !known.contains(volume) {
        return Err(format!("`volumes`: `{volume}` is not among the `volumes` at the top of the file"));
    }
    absolute("volumes", target)?;
    if target.contains('$') || target.trim_end_matches('/').is_empty() {
        return Err(format!("`volumes`: `{target}` must be a path without variables below `/`"));
    }
    Ok(mount)
}

fn depends_on(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(names) => names
            .iter()
            .map(|name| {
                name.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| "`depends_on` must be a list of services".to_owned())
            })
            .collect(),
        Value::Object(map) => {
            for (name, fields) in map {
                let fields = mapping(fields).map_err(|found| {
                    format!("`depends_on` has {found} for `{name}`, which must be a mapping")
                })?;
                let what = format!("`depends_on` of `{name}`");
                only_these(&what, fields, &["condition", "required", "restart"])?;
                says(&what, fields, "required", &true.into())?;
                says(&what, fields, "restart", &false.into())?;
                match fields.get("condition") {
                    None | Some(Value::Null) => {}
                    Some(Value::String(text)) if text == "service_started" => {}
                    Some(other) => {
                        let other = scalar(other).unwrap_or_else(|| kind_of(other).to_owned());
                        return Err(format!(
                            "`depends_on`: condition `{other}` is not supported on this node; supported: service_started"
                        ));
                    }
                }
            }
            Ok(map.keys().cloned().collect())
        }
        other => Err(format!("`depends_on` must be a list or a mapping, not {}", kind_of(other))),
    }
}

fn restart(value: &Value) -> Result<Restart, String> {
    let wrong = |found: &dyn fmt::Display| {
        format!(
            "`restart` must be `no`, `always`, `unless-stopped`, `on-failure` or `on-failure:TIMES`, not `{found}`"
        )
    };
    match value {
        // Older YAML takes a bare `no` for false.
        Value::Bool(false) => Ok(Restart::No),
        Value::String(text) => match text.as_str() {
            "no" => Ok(Restart::No),
            "always" => Ok(Restart::Always),
            "unless-stopped" => Ok(Restart::UnlessStopped),
            "on-failure" => Ok(Restart::OnFailure { times: None }),
            other => match other.strip_prefix("on-failure:").map(str::parse) {
                Some(Ok(times)) => Ok(Restart::OnFailure { times: Some(times) }),
                _ => Err(wrong(&other)),
            },
        },
        other => Err(wrong(&kind_of(other))),
    }
}

/// What is wrong between services.
fn check_together(services: &[ServiceSpec]) -> Result<(), ComposeError> {
    let mut published = BTreeSet::new();
    for (at, service) in services.iter().enumerate() {
        let taken = |name: &str| {
            let others = services.iter().enumerate().filter(|(other, _)| *other != at);
            others.flat_map(|(_, other)| other.names()).any(|other| other == name)
        };
        if let Some(name) = service.container_name.as_deref().filter(|name| taken(name)) {
            return Err(
                service.wrong(&format!("`container_name` `{name}` is the name of another service as well"))
            );
        }
        for port in &service.ports {
            if !published.insert(port.published) {
                return Err(service.wrong(&format!("port {} is published twice", port.published)));
            }
        }
        for name in &service.depends_on {
            if services.iter().all(|other| other.name != *name) {
                return Err(
                    service.wrong(&format!("`depends_on` names `{name}`, and there is no such service"))
                );
            }
        }
    }
    let order = start_order(services);
    match services.iter().enumerate().find(|(at, _)| !order.contains(at)) {
        None => Ok(()),
        Some((_, service)) => Err(service.wrong("`depends_on` goes in a circle")),
    }
}
