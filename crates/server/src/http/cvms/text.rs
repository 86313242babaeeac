//! `PATCH /cvms/{id}/docker-compose` and `/pre-launch-script`: a text as it is, in whatever way a client sends one.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use casemate_types::error::codes;
use casemate_types::ids::CvmUid;
use casemate_types::patch::{CvmPatch, TextUpdate};
use casemate_types::wire;
use serde_json::{Map, Value};

use super::update::{self, Intent, accepted_as};
use crate::app::App;
use crate::cvm::plan::Wish;
use crate::error::{Error, Result};
use crate::http::extract::{On, Params, Raw, from_form, object};
use crate::store::Answer;
use crate::workflow::operation::Kind;

const COMPOSE: &str = "docker_compose_file";
const SCRIPT: &str = "pre_launch_script";

/// Replace the docker-compose file
///
/// Takes the file as it is, as `docker_compose_file` in JSON or a form, or as part `file` of a multipart form.
#[utoipa::path(patch, path = "/cvms/{id}/docker-compose", tag = "updates", params(("id" = CvmUid, Path)),
    request_body(content((String = "text/yaml"), (Object = "application/json"))),
    responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn cvm_docker_compose_update(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    raw: Raw,
) -> Result<Answer> {
    let params = params.only(&["dry_run"])?;
    let (text, body) = read(&headers, raw, COMPOSE).await?;
    let intent = Intent::read(params, &headers, &body)?;
    let patch = CvmPatch { docker_compose_file: text.into(), ..update::options(&body)? };
    let (wish, done) = (Wish { patch, ..Wish::default() }, accepted_as("Docker compose update"));
    update::carry_out(&app, on, &headers, Kind::Update, wish, intent, done).await
}

/// Replace the pre-launch script
///
/// Takes the script as it is, as `pre_launch_script` in JSON or a form, or as part `file` of a multipart form. An empty one
/// removes the script.
#[utoipa::path(patch, path = "/cvms/{id}/pre-launch-script", tag = "updates", params(("id" = CvmUid, Path)),
    request_body(content((String = "text/plain"), (Object = "application/json"))),
    responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn cvm_pre_launch_script_update(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    raw: Raw,
) -> Result<Answer> {
    let params = params.only(&["dry_run"])?;
    let (text, body) = read(&headers, raw, SCRIPT).await?;
    let intent = Intent::read(params, &headers, &body)?;
    let patch = CvmPatch { pre_launch_script: text.into(), ..update::options(&body)? };
    let (wish, done) = (Wish { patch, ..Wish::default() }, accepted_as("Pre-launch script update"));
    update::carry_out(&app, on, &headers, Kind::Update, wish, intent, done).await
}

/// The text, byte for byte, and what else was in the body.
async fn read(headers: &HeaderMap, raw: Raw, field: &str) -> Result<(String, Map<String, Value>)> {
    let Raw { bytes, content_type } = raw;
    if !takes(&content_type, field) {
        let message = format!(
            "a body of type `{}` is not taken here; send {} as text ({}), as JSON, or as part `file` of multipart/form-data",
            media_type(&content_type),
            field,
            raw_types(field).join(", "),
        );
        return Err(Error::rejected(codes::INVALID_REQUEST, field, message));
    }
    // Some clients say JSON on every request, also on one without a body.
    if content_type.contains("json") && !bytes.is_empty() {
        let body = object(&bytes)?;
        let asked = TextUpdate::from_json(&body, field).map_err(Error::Invalid)?;
        return Ok((asked.text, body));
    }
    if content_type.starts_with("multipart/form-data") {
        let part = part(headers, bytes, field).await?;
        return Ok((utf8(part, field)?, Map::new()));
    }
    if content_type.starts_with("application/x-www-form-urlencoded") {
        let body = from_form(&bytes);
        if let Some(Value::String(text)) = body.get(field) {
            return Ok((text.clone(), body));
        }
        // A file sent without a word about its type is said to be a form.
    }
    Ok((utf8(bytes.to_vec(), field)?, Map::new()))
}

/// What a text may be said to be when it is sent as it is, besides every kind of text and nothing at all.
fn raw_types(field: &str) -> &'static [&'static str] {
    match field {
        COMPOSE => &["text/yaml", "text/plain", "application/yaml", "application/x-yaml"],
        // Clients that send a script as a file know no better name for it than that of any bytes.
        _ => &["text/plain", "text/x-shellscript", "application/x-sh", "application/octet-stream"],
    }
}

/// Without parameters such as the character set.
fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Is a body that is said to be this taken? An image, say, is not what anybody means by a compose file.
fn takes(content_type: &str, field: &str) -> bool {
    let media = media_type(content_type);
    media.is_empty()
        || media.starts_with("text/")
        || media.contains("json")
        || media == "multipart/form-data"
        || media == "application/x-www-form-urlencoded"
        || (field == COMPOSE && media.ends_with("+yaml"))
        || raw_types(field).contains(&media)
}

fn utf8(bytes: Vec<u8>, field: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::invalid(field, format!("should be UTF-8 text; the byte at {at} is not"))
    })
}

/// The part `file` of a multipart form, or the one with the field's name.
async fn part(headers: &HeaderMap, bytes: axum::body::Bytes, field: &str) -> Result<Vec<u8>> {
    let wrong =
        |error: multer::Error| Error::invalid(field, format!("the multipart form cannot be read: {error}"));
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(content_type).map_err(wrong)?;
    let whole = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
    let mut form = multer::Multipart::new(whole, boundary);
    while let Some(part) = form.next_field().await.map_err(wrong)? {
        if part.name().is_some_and(|name| name == "file" || name == field) {
            return Ok(part.bytes().await.map_err(wrong)?.to_vec());
        }
    }
    Err(Error::invalid("file", "required: the part that holds the text"))
}
