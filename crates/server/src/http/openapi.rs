//! The OpenAPI document of the API, and a page to read it.
//!
//! Routes bring their own part along. What is the same for many of them is added here: who may ask, how a CVM is named, which
//! headers count everywhere, and how it can fail.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use casemate_types::error::ErrorBody;
use casemate_types::version::ApiVersion;
use casemate_types::wire;
use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{AnyOf, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Components, Content, Info, Ref, RefOr, Required, ResponseBuilder, SecurityRequirement, Server, Tag,
};
use utoipa::{OpenApi, PartialSchema};

/// Groups of routes, in the order of the page.
const TAGS: [(&str, &str); 14] = [
    ("cvms", "Confidential VMs: made, found, watched, removed."),
    ("configuration", "What a CVM runs."),
    ("updates", "Changing what a CVM runs. Each is one operation, and all but a few restart the machine."),
    ("approvals", "Updates that wait for somebody's yes."),
    ("power", "On and off."),
    ("operations", "Accepted work: how far it is, and what has happened."),
    ("telemetry", "What a running CVM and its node report."),
    ("logs", "Logs, by signed addresses that need no API key."),
    ("apps", "Apps: CVMs with one identity and the same keys."),
    ("kms", "Key services."),
    ("inventory", "What a CVM can be put on and made of."),
    ("nodes", "The nodes, for those who look after them."),
    ("account", "The caller, the workspace, its API keys."),
    ("dev", "Faults planned on simulated nodes, to rehearse what goes wrong. Only in `casemate dev`."),
];

/// Every way to fail that has a status of its own.
const FAILURES: [(u16, &str); 16] = [
    (400, "The request cannot be done as it is, or names an API date that is not known"),
    (401, "No API key, or none that is valid"),
    (403, "The API key lacks the scope for it"),
    (404, "It does not exist, or belongs to somebody else"),
    (409, "It clashes with the present state. Without `error_code`, the same request may work later"),
    (410, "Events before the oldest one kept were asked for"),
    (412, "The CVM is not in the state that `If-Match` names"),
    (422, "Fields of the request are wrong; all of them are named"),
    (429, "Too much at once"),
    (465, "The compose hash has to be registered on chain first; `details` say where"),
    (466, "No update waits for this compose hash, or its time is over"),
    (467, "The transaction does not show that the compose hash was registered"),
    (468, "The contract does not allow the compose hash or the device"),
    (500, "A bug, or damage"),
    (502, "The node answers with rubbish"),
    (503, "Something that this needs does not answer; later it may"),
];

#[derive(OpenApi)]
#[openapi(components(schemas(ErrorBody, wire::OperationEvent, wire::WatchComplete, wire::WatchError)))]
struct MoreSchemas;

/// The document.
pub fn build() -> utoipa::openapi::OpenApi {
    let mut api = super::api().into_openapi();
    api.info = Info::new("Casemate", env!("CARGO_PKG_VERSION"));
    api.info.description = Some(DESCRIPTION.to_owned());
    api.servers = Some(vec![Server::new("/api/v1")]);
    api.tags = Some(TAGS.map(tag).into());
    api.security = Some(["api_key", "bearer"].map(|name| SecurityRequirement::new(name, [""; 0])).into());
    let mut components = api.components.take().unwrap_or_default();
    components.schemas.extend(MoreSchemas::openapi().components.unwrap_or_default().schemas);
    describe(&mut components);
    api.components = Some(components);
    for (path, item) in &mut api.paths.paths {
        for (method, operation) in operations(item) {
            complete(path, &method, operation);
        }
    }
    api
}

/// The document as text for people and their tools.
pub fn text() -> String {
    serde_json::to_string_pretty(&build()).expect("a document has string keys")
}

const DESCRIPTION: &str = "A cloud for confidential VMs. An accepted change is an operation, named by its `correlation_id`. \
Wherever a path names a CVM, its id, number, machine UUID, app id, instance id or name will do. Every answer outside 2xx has \
one of three bodies: a sentence, a list of wrong fields, or a code with details.";

fn tag((name, description): (&str, &str)) -> Tag {
    let mut tag = Tag::new(name);
    tag.description = Some(description.to_owned());
    tag
}

/// Types without a tag can fit a value both ways (an empty page has no entries to tell), which `oneOf` forbids.
fn allow_several(schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::OneOf(one)) = schema {
        let any = AnyOf { items: std::mem::take(&mut one.items), ..AnyOf::default() };
        *schema = Schema::AnyOf(AnyOf { description: one.description.take(), ..any }).into();
    }
}

/// What operations refer to.
fn describe(components: &mut Components) {
    components.schemas.values_mut().for_each(allow_several);
    let key = ApiKeyValue::with_description("X-API-Key", "An API key, `phak_…`.");
    components.security_schemes.insert("api_key".into(), SecurityScheme::ApiKey(ApiKey::Header(key)).into());
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The same key.")).build();
    components.security_schemes.insert("bearer".into(), SecurityScheme::Http(bearer).into());
    for (status, description) in FAILURES {
        let schema = Ref::from_schema_name("ErrorBody");
        let content = Content::new(Some(RefOr::Ref(schema)));
        let response = ResponseBuilder::new().description(description).content("application/json", content);
        components.responses.insert(status.to_string(), response.build().into());
    }
    for parameter in shared() {
        components.parameters.insert(parameter.name.clone(), parameter.into());
    }
}

/// Parameters of many routes.
fn shared() -> [Parameter; 8] {
    let parameter = |name: &str, place: ParameterIn, description: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(place)
            .required(Required::False)
            .description(Some(description))
            .schema(Some(String::schema()))
    };
    let header = |name: &str, description: &str| parameter(name, ParameterIn::Header, description);
    let dates = ApiVersion::ALL.map(ApiVersion::as_str).into_iter().chain(["LATEST"]);
    let date = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(dates));
    [
        parameter(
            "id",
            ParameterIn::Path,
            "The CVM: its id, number, machine UUID, app id, instance id or name.",
        )
        .required(Required::True)
        .build(),
        parameter("dry_run", ParameterIn::Query, "Only say what would be done.")
            .schema(Some(bool::schema()))
            .build(),
        header("X-Phala-Version", "The API date that the answer follows; the key's own unless given.")
            .schema(Some(date))
            .build(),
        header(
            "Idempotency-Key",
            "The same request under the same key counts once and has one answer, for a day.",
        )
        .build(),
        header("If-Match", "Only if the CVM has this `ETag`.").build(),
        header("X-Compose-Hash", "Confirms: the compose hash that was registered.").build(),
        header(
            "X-Transaction-Hash",
            "Confirms: the transaction that registered it, or `already-registered`.",
        )
        .build(),
        header("X-Prepare-Only", "`true`: keep the update for somebody else to commit.").build(),
    ]
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    [
        (HttpMethod::Get, get),
        (HttpMethod::Put, put),
        (HttpMethod::Post, post),
        (HttpMethod::Delete, delete),
        (HttpMethod::Patch, patch),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Adds what follows from the path and the method.
fn complete(path: &str, method: &HttpMethod, operation: &mut Operation) {
    let is = |tag: &str| operation.tags.as_ref().is_some_and(|tags| tags.iter().any(|name| name == tag));
    // Asking for many states takes a body, and changes nothing.
    let changes = *method != HttpMethod::Get && path != "/status/batch";
    let updates = changes && is("updates");
    let (signed, streams) = (is("logs"), operation.responses.responses.values().any(is_stream));
    let mut names = Vec::new();
    if path.contains("{id}") {
        names.push("id");
    }
    if !signed {
        names.push("X-Phala-Version");
    }
    if changes {
        names.push("Idempotency-Key");
    }
    // A commit token stands for one update of one revision: what it may change is settled.
    let guarded = changes && (path.contains("/cvms/{id}") || path.ends_with("/cancel"));
    let guarded = guarded && !path.ends_with("/commit-update");
    if guarded {
        names.push("If-Match");
    }
    if updates && *method == HttpMethod::Patch {
        names.extend(["dry_run", "X-Compose-Hash", "X-Transaction-Hash", "X-Prepare-Only"]);
    }
    let parameters = operation.parameters.get_or_insert_default();
    parameters.retain(|own| match own {
        RefOr::T(own) => !names.contains(&own.name.as_str()),
        RefOr::Ref(_) => true,
    });
    parameters.splice(
        0..0,
        names.iter().map(|name| RefOr::Ref(Ref::new(format!("#/components/parameters/{name}")))),
    );
    let mut failures = vec![400, 401, 404, 422, 500, 503];
    if changes {
        failures.extend([403, 409]);
    }
    if guarded {
        failures.push(412);
    }
    if updates || is("approvals") {
        failures.extend([465, 466, 467, 468]);
    }
    if streams || signed || changes {
        failures.push(429);
    }
    if path == "/audit" || path == "/operations/{correlation_id}" {
        failures.push(410);
    }
    for status in failures {
        let response = RefOr::Ref(Ref::from_response_name(status.to_string()));
        operation.responses.responses.entry(status.to_string()).or_insert(response);
    }
}

fn is_stream(response: &RefOr<utoipa::openapi::Response>) -> bool {
    matches!(response, RefOr::T(response) if response.content.contains_key("text/event-stream"))
}

static DOCUMENT: LazyLock<Bytes> =
    LazyLock::new(|| serde_json::to_vec(&build()).expect("a document has string keys").into());

/// `GET /openapi.json`.
pub async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone()).into_response()
}

/// The page that shows the document. All of it is in this file: it asks nobody else for anything.
const PAGE: &str = include_str!("docs.html");

/// `GET /docs`.
pub async fn docs() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    (headers, PAGE).into_response()
}
