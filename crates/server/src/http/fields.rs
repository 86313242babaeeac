//! `GET /fields`: what is to know about every field that can be updated.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::compose::MAX_COMPOSE_BYTES;
use casemate_types::patch::CvmPatch;
use casemate_types::wire::{FieldRule, RestartClass};

use super::error::answer;
use super::extract::Caller;
use crate::app::App;
use crate::cvm::plan::{Limits, MAX_SEALED_ENV, MAX_USER_CONFIG};

/// Fields, all of them.
#[derive(serde::Serialize, utoipa::ToSchema)]
struct Fields {
    /// The fields.
    items: Vec<FieldRule>,
}

/// List fields that can be updated
///
/// For each: its type, unit and limits, whether it is part of the compose hash, and whether changing it restarts the machine.
#[utoipa::path(get, path = "/fields", tag = "updates",
    responses((status = 200, description = "The fields", body = Fields)))]
pub async fn field_list(State(app): State<App>, _: Caller) -> Response {
    answer(StatusCode::OK, &Fields { items: rules(&app.config.limits) })
}

fn rules(limits: &Limits) -> Vec<FieldRule> {
    let rule =
        |field: &str, kind: &str, unit: Option<&str>, limits: Option<String>, class: Class| FieldRule {
            field: field.to_owned(),
            kind: kind.to_owned(),
            unit: unit.map(str::to_owned),
            limits,
            in_compose_hash: class == Class::Hashed,
            restart: if class == Class::Record { RestartClass::Record } else { RestartClass::Restart },
        };
    let range = |least: u32, most: u32| Some(format!("{least} to {most}"));
    let texts = || {
        Some(format!(
            "{MAX_COMPOSE_BYTES} bytes together with the other of docker_compose_file and pre_launch_script"
        ))
    };
    let disk = Some(format!("1 to {}; only grows", limits.max_disk_gb));
    vec![
        rule("docker_compose_file", "string", None, texts(), Class::Hashed),
        rule("pre_launch_script", "string", None, texts(), Class::Hashed),
        rule("allowed_envs", "array of strings", None, Some("names of variables".into()), Class::Hashed),
        rule("public_logs", "boolean", None, None, Class::Hashed),
        rule("public_sysinfo", "boolean", None, None, Class::Hashed),
        rule("public_tcbinfo", "boolean", None, None, Class::Hashed),
        rule("gateway_enabled", "boolean", None, None, Class::Hashed),
        rule("secure_time", "boolean", None, None, Class::Hashed),
        rule("encrypted_env", "string", None, Some(format!("hex of {MAX_SEALED_ENV} bytes")), Class::Spec),
        rule("user_config", "string", None, Some(format!("{MAX_USER_CONFIG} bytes")), Class::Spec),
        rule("instance_type", "string", None, Some("a name of GET /instance-types".into()), Class::Spec),
        rule("vcpu", "integer", None, range(1, limits.max_vcpu), Class::Spec),
        rule("memory", "integer", Some("MB"), range(CvmPatch::MIN_MEMORY, limits.max_memory_mb), Class::Spec),
        rule("disk_size", "integer", Some("GB"), disk, Class::Spec),
        rule("gpus", "object", None, Some("as many as the node has".into()), Class::Spec),
        rule(
            "image",
            "string",
            None,
            Some("a name of GET /cvms/{id}/available-os-images".into()),
            Class::Spec,
        ),
        rule("listed", "boolean", None, None, Class::Record),
        rule(
            "name",
            "string",
            None,
            Some("5 to 63 letters, digits and single hyphens, a letter first".into()),
            Class::Record,
        ),
    ]
}

/// What a field is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The compose document, whose hash is registered.
    Hashed,
    /// The rest of the spec.
    Spec,
    /// The record beside it.
    Record,
}
