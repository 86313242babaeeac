//! `GET /cvms/{id}/composition`: the containers inside.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::compose::Flag;
use casemate_types::wire;

use super::telemetry::up;
use crate::app::App;
use crate::cvm::spec::sha256;
use crate::cvm::state::Cvm;
use crate::driver::{self, Observed};
use crate::error::Result;
use crate::http::error::answer;
use crate::http::extract::On;
use crate::http::view::{self, Shown};

/// List containers
///
/// What the node sees running inside, each with the address of its log.
#[utoipa::path(get, path = "/cvms/{id}/composition", tag = "telemetry",
    responses((status = 200, description = "The containers", body = wire::CvmComposition)))]
pub async fn cvm_composition(State(app): State<App>, on: On) -> Result<Response> {
    let shown = Shown::of(&app.store.spec(on.cvm.id, on.cvm.revision)?);
    let seen = up(&app, &on.cvm).await?;
    let composition = wire::CvmComposition {
        is_online: seen.is_ok(),
        is_public: shown.flag(Flag::PublicSysinfo),
        error: seen.as_ref().err().cloned(),
        docker_compose_file: shown.docker_compose_file(),
        manifest_version: Some(shown.document.manifest_version()),
        version: None,
        runner: Some(shown.runner()),
        features: Some(shown.features()),
        containers: Some(seen.map(|seen| containers(&app, &on.cvm, &seen)).unwrap_or_default()),
    };
    Ok(answer(StatusCode::OK, &composition))
}

/// Which number the one container of a service has.
const NUMBER: &str = "-1";

/// The name of a service's container, as docker compose gives it.
fn container_name(service: &str) -> String {
    format!("{service}{NUMBER}")
}

/// The service that a container's name may stand for, besides one of exactly this name.
pub fn service_of(name: &str) -> &str {
    name.strip_suffix(NUMBER).unwrap_or(name)
}

fn containers(app: &App, cvm: &Cvm, seen: &Observed) -> Vec<wire::Container> {
    let container = |container: &driver::Container| wire::Container {
        // The node names no id, and readers want one that stays.
        id: hex::encode(sha256(format!("{}/{}", cvm.vm_uuid, container.service).as_bytes())),
        names: vec![format!("/{}", container_name(&container.service))],
        image: container.image.clone(),
        image_id: container.digest.clone().unwrap_or_default(),
        command: None,
        created: container.started_at.or(seen.started_at).map_or(0, |at| at.as_second()),
        state: state(container).to_owned(),
        status: status(app, seen, container),
        log_endpoint: Some(view::container_log_url(app, cvm.vm_uuid, &container_name(&container.service))),
    };
    seen.containers.iter().map(container).collect()
}

/// In docker's words.
fn state(container: &driver::Container) -> &'static str {
    match (container.running, container.exit_code) {
        (true, _) => "running",
        (false, Some(_)) => "exited",
        (false, None) => "created",
    }
}

/// The same, for people: how long, how it ended, and how often it was started again.
fn status(app: &App, seen: &Observed, container: &driver::Container) -> String {
    let up = container.started_at.or(seen.started_at).map(|at| view::since(app, at));
    let status = match (container.running, container.exit_code) {
        (true, _) => up.map_or_else(|| "Up".to_owned(), |up| format!("Up {up}")),
        (false, Some(code)) => format!("Exited ({code})"),
        (false, None) => "Created".to_owned(),
    };
    match container.restarts {
        0 => status,
        1 => format!("{status}, started again once"),
        times => format!("{status}, started again {times} times"),
    }
}
