//! A CVM as JSON text. Most of it goes by the revision and by what a process never changes, and is made once. What goes by the
//! node is made once for all its CVMs with the same OS image, and again when the node tells something else or comes and goes.
//!
//! What is shown of a CVM most often is shown as text that is put together: the part that moves is written, the rest is copied.
//! [`cvm`](super::cvm()) says what is in it; the two are held to each other by a test.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use casemate_types::ids::InstanceId;
use casemate_types::wire;
use jiff::Timestamp;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::cvm::progress;
use super::{Detail, addresses, cvm, endpoints, log_urls, node_ref, os_ref};
use crate::app::{App, Node};
use crate::cache::Cache;
use crate::cvm::state::Cvm;
use crate::driver::NodeFacts;
use crate::error::Result;

/// A CVM from API version 2026-01-21 on, written already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(String);

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        // As a `RawValue` does it, which could only be had by reading the whole text again.
        const RAW: &str = "$serde_json::private::RawValue";
        let mut raw = to.serialize_struct(RAW, 1)?;
        raw.serialize_field(RAW, &self.0)?;
        raw.end()
    }
}

impl PartialSchema for Text {
    fn schema() -> RefOr<Schema> {
        wire::Cvm::schema()
    }
}

impl ToSchema for Text {
    fn name() -> Cow<'static, str> {
        wire::Cvm::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        wire::Cvm::schemas(schemas);
    }
}

/// What moves: fields that change without a new revision.
#[derive(Serialize)]
struct Moving<'a> {
    name: &'a str,
    instance_id: Option<InstanceId>,
    status: &'static str,
    in_progress: bool,
    progress: Option<wire::Progress>,
    logs: wire::LogUrls,
    listed: bool,
    endpoints: &'a [wire::Endpoint],
    public_urls: &'a [wire::Endpoint],
    app_url: Option<&'a str>,
    #[serde(with = "wire::time")]
    updated_at: Timestamp,
}

/// What goes by the node.
#[derive(Serialize)]
struct Place {
    node_info: wire::NodeRef,
    os: wire::OsRef,
}

/// Fields that many CVMs have in common.
const SHARED: [&str; 7] =
    ["kms_type", "gateway", "services", "workspace", "creator", "deleted_at", "project_type"];

/// What a CVM's view keeps from one request to the next.
pub struct Still {
    revision: u64,
    /// Fields of this CVM, as they stand in an object.
    own: Box<str>,
    /// Those of many.
    shared: Arc<String>,
    /// The compose document.
    document: Box<str>,
    /// The name of the OS image.
    image: Box<str>,
}

/// What is remembered of views.
pub struct Stills {
    by_cvm: Cache<i64, Still>,
    /// Texts that many views share, each once.
    shared: Cache<String, String>,
    /// Fields that go by the node, by its number. As many as there are nodes and OS images.
    places: Mutex<HashMap<i64, Places>>,
}

/// Fields that go by one node, by OS image, as long as it is `told`: what it tells of itself, and that it answers.
#[derive(Default)]
struct Places {
    told: Option<(Arc<NodeFacts>, bool)>,
    by_image: HashMap<Box<str>, Arc<str>>,
}

impl Places {
    fn are(&self, told: Option<&(Arc<NodeFacts>, bool)>) -> bool {
        match (&self.told, told) {
            (Some((then, was_online)), Some((now, is_online))) => {
                Arc::ptr_eq(then, now) && was_online == is_online
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

impl Default for Stills {
    fn default() -> Self {
        // With the usual compose file a view weighs 2.5 KB, so more than 10,000 are remembered for certain.
        Self {
            by_cvm: Cache::new(26 * 1024 * 1024),
            shared: Cache::new(256 * 1024),
            places: Mutex::default(),
        }
    }
}

impl Stills {
    fn shared(&self, text: String) -> Arc<String> {
        if let Some(known) = self.shared.get(&text) {
            return known;
        }
        let (weight, shared) = (2 * text.len(), Arc::new(text.clone()));
        self.shared.put(text, Arc::clone(&shared), weight);
        shared
    }

    fn place(&self, app: &App, node_id: i64, image: &str) -> Arc<str> {
        let told = app.node(node_id).map(Node::told);
        let mut places = self.places.lock().expect("nothing panics while holding it");
        let places = places.entry(node_id).or_default();
        if !places.are(told.as_ref()) {
            *places = Places { told, by_image: HashMap::new() };
        }
        if let Some(known) = places.by_image.get(image) {
            return Arc::clone(known);
        }
        let fields = object(&Place { node_info: node_ref(app, node_id), os: os_ref(app, node_id, image) });
        let text: Arc<str> = inside(fields).into();
        places.by_image.insert(image.into(), Arc::clone(&text));
        text
    }
}

/// A CVM, from API version 2026-01-21 on.
///
/// # Errors
/// Those of the store.
pub fn text(app: &App, cvm: &Cvm, detail: Detail) -> Result<Text> {
    let still = still(app, cvm)?;
    let endpoints = match detail {
        Detail::Whole => addresses(app, cvm)?,
        Detail::Item => endpoints(app, &cvm.app_id, cvm.instance_id.as_ref()),
    };
    let moving = Moving {
        name: &cvm.name,
        instance_id: cvm.instance_id,
        status: cvm.status.as_str(),
        in_progress: cvm.open.is_some(),
        progress: progress(cvm),
        logs: log_urls(app, cvm.vm_uuid),
        listed: cvm.listed,
        endpoints: &endpoints,
        public_urls: &endpoints,
        app_url: endpoints.first().map(|endpoint| endpoint.app.as_str()),
        updated_at: cvm.updated_at,
    };
    // An id, a dozen of addresses and the names of the fields.
    const MOVING: usize = 1400;
    let place = app.stills.place(app, cvm.node_id, &still.image);
    let length = still.own.len() + still.shared.len() + place.len() + still.document.len() + MOVING;
    let mut bytes = Vec::with_capacity(length);
    serde_json::to_writer(&mut bytes, &moving).expect("wire types have string keys");
    let mut text = String::from_utf8(bytes).expect("JSON is text");
    text.pop();
    for fields in [&*still.own, still.shared.as_str(), &*place] {
        text.push(',');
        text.push_str(fields);
    }
    match detail {
        Detail::Whole => {
            text.push_str(",\"compose_file\":");
            text.push_str(&still.document);
        }
        Detail::Item => {
            text.push_str(",\"hosted\":{\"app_id\":\"");
            text.push_str(&cvm.app_id.to_string());
            text.push_str("\"}");
        }
    }
    text.push('}');
    Ok(Text(text))
}

fn still(app: &App, of: &Cvm) -> Result<Arc<Still>> {
    // Of the maps and pointers around a view.
    const REST: usize = 160;
    if let Some(still) = app.stills.by_cvm.get(&of.id).filter(|still| still.revision == of.revision) {
        return Ok(still);
    }
    let spec = app.store.spec(of.id, of.revision)?;
    let view = cvm(app, of, &spec, Detail::Whole)?;
    // Where the key service has yet to be asked for the key, it may be known the next time.
    let lasts = view.encrypted_env_pubkey.is_some();
    let still = Arc::new(make(app, of, &spec.image, view));
    if lasts {
        let weight = still.own.len() + still.document.len() + still.image.len() + REST;
        app.stills.by_cvm.put(of.id, Arc::clone(&still), weight);
    }
    Ok(still)
}

fn make(app: &App, of: &Cvm, image: &str, view: wire::Cvm) -> Still {
    let mut fields = object(&view);
    let document = fields.remove("compose_file").unwrap_or(Value::Null);
    let moving = Moving {
        name: "",
        instance_id: None,
        status: "",
        in_progress: false,
        progress: None,
        logs: wire::LogUrls::default(),
        listed: false,
        endpoints: &[],
        public_urls: &[],
        app_url: None,
        updated_at: of.updated_at,
    };
    let place = Place { node_info: wire::NodeRef::default(), os: wire::OsRef::default() };
    for name in object(&moving).keys().chain(object(&place).keys()) {
        fields.remove(name);
    }
    let (shared, own): (Map<_, _>, Map<_, _>) =
        fields.into_iter().partition(|(name, _)| SHARED.contains(&name.as_str()));
    Still {
        revision: of.revision,
        own: inside(own).into(),
        shared: app.stills.shared(inside(shared)),
        document: document.to_string().into(),
        image: image.into(),
    }
}

fn object(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        other => unreachable!("a struct is an object: {other:?}"),
    }
}

/// The text of an object, without its braces.
fn inside(fields: Map<String, Value>) -> String {
    let text = Value::Object(fields).to_string();
    text[1..text.len() - 1].to_owned()
}
