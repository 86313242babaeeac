//! The API: every route, one list. What is in it is in the OpenAPI document as well.

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::routing::get;
use casemate_types::error::ErrorBody;
use tower::ServiceExt;
use tower::util::MapRequest;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::error::{Error, Resource};

pub mod account;
pub mod allowance;
pub mod answer;
pub mod app_revisions;
pub mod approvals;
pub mod approve;
pub mod apps;
pub mod audit;
pub mod cancel;
pub mod cvms;
pub mod dev;
pub mod error;
pub mod extract;
pub mod fields;
pub mod health;
pub mod idempotency;
pub mod images;
pub mod keys;
pub mod kms;
pub mod layer;
pub mod logs;
pub mod nodes;
pub mod openapi;
pub mod operations;
pub mod origin;
pub mod page;
pub mod sizes;
pub mod status;
pub mod streams;
pub mod view;

/// Answers requests; cheap to clone.
pub type ApiService = MapRequest<Router, fn(Request) -> Request>;

/// The whole API.
pub fn service(app: App) -> ApiService {
    let api: Router<App> = api().into();
    let api = api.route("/openapi.json", get(openapi::document));
    let router = Router::new()
        .nest("/api/v1", api.clone())
        .nest("/v1", api)
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::docs))
        .merge(approve::routes())
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .fallback(async || Error::NotFound { what: Resource::Route })
        .method_not_allowed_fallback(async || {
            error::answer(
                StatusCode::METHOD_NOT_ALLOWED,
                &ErrorBody::plain("This route does not know this method"),
            )
        })
        .layer(axum::middleware::from_fn_with_state(app.clone(), idempotency::once))
        .layer(axum::middleware::from_fn_with_state(app.clone(), layer::around))
        .with_state(app);
    ServiceExt::<Request>::map_request(router, layer::collapse_slashes as fn(Request) -> Request)
}

/// The routes below the API's prefix.
pub fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new().merge(reads()).merge(writes())
}

/// Routes that change nothing.
fn reads() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(cvms::list::cvm_list))
        .routes(routes!(cvms::list::cvm_list_all))
        .routes(routes!(cvms::get::cvm_get))
        .routes(routes!(cvms::state::cvm_state))
        .routes(routes!(cvms::telemetry::cvm_stats))
        .routes(routes!(cvms::telemetry::cvm_network))
        .routes(routes!(cvms::composition::cvm_composition))
        .routes(routes!(cvms::attestation::cvm_attestation))
        .routes(routes!(cvms::compose::cvm_docker_compose))
        .routes(routes!(cvms::compose::cvm_pre_launch_script))
        .routes(routes!(cvms::compose::cvm_compose_file))
        .routes(routes!(cvms::user_config::cvm_user_config))
        .routes(routes!(cvms::os_images::cvm_available_os_images))
        .routes(routes!(cvms::revisions::cvm_revisions))
        .routes(routes!(cvms::observed::cvm_observed))
        .routes(routes!(status::status_batch))
        .routes(routes!(operations::operation_list))
        .routes(routes!(operations::operation_get))
        .routes(routes!(audit::audit_list))
        .routes(routes!(fields::field_list))
        .routes(routes!(apps::app_list))
        .routes(routes!(apps::app_filter_options))
        .routes(routes!(apps::app_get))
        .routes(routes!(apps::app_cvms))
        .routes(routes!(app_revisions::app_revisions))
        .routes(routes!(app_revisions::app_revision_get))
        .routes(routes!(allowance::app_device_allowlist))
        .routes(routes!(allowance::app_allowed))
        .routes(routes!(approvals::approval_list))
        .routes(routes!(approvals::approval_get))
        .routes(routes!(account::me))
        .routes(routes!(account::users_me))
        .routes(routes!(account::workspace_list))
        .routes(routes!(account::workspace_get))
        .routes(routes!(nodes::workspace_nodes))
        .routes(routes!(nodes::workspace_quotas))
        .routes(routes!(nodes::node_list))
        .routes(routes!(nodes::teepods_available))
        .routes(routes!(nodes::cvm_create_resources))
        .routes(routes!(images::os_image_list))
        .routes(routes!(sizes::instance_type_list))
        .routes(routes!(sizes::instance_type_family))
        .routes(routes!(kms::kms_list))
        .routes(routes!(kms::kms_get))
        .routes(routes!(kms::kms_nodes))
        .routes(routes!(kms::kms_pubkey))
        .routes(routes!(kms::kms_next_app_id))
        .routes(routes!(kms::kms_on_chain))
        .routes(routes!(logs::machine_log))
        .routes(routes!(logs::container_log))
}

/// Routes that change something.
fn writes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        // creation and removal
        .routes(routes!(cvms::create::cvm_provision))
        .routes(routes!(cvms::create::cvm_create))
        .routes(routes!(cvms::power::cvm_delete))
        .routes(routes!(cvms::replicas::cvm_replicate))
        .routes(routes!(cvms::replicas::cvm_commit_replica))
        .routes(routes!(cvms::replicas::app_cvm_replicate))
        .routes(routes!(cvms::replicas::app_instance_create))
        // approvals
        .routes(routes!(approvals::approval_commit))
        .routes(routes!(approvals::approval_cancel))
        .routes(routes!(approvals::approval_auto_commit))
        .routes(routes!(allowance::cvm_is_allowed))
        .routes(routes!(allowance::app_is_allowed))
        .routes(routes!(allowance::app_cvms_allowed))
        // power
        .routes(routes!(cvms::power::cvm_start))
        .routes(routes!(cvms::power::cvm_stop))
        .routes(routes!(cvms::power::cvm_shutdown))
        .routes(routes!(cvms::power::cvm_restart))
        // updates
        .routes(routes!(cvms::patch::cvm_patch))
        .routes(routes!(cvms::size::cvm_resources))
        .routes(routes!(cvms::size::cvm_os_image))
        .routes(routes!(cvms::records::cvm_visibility))
        .routes(routes!(cvms::records::cvm_listed))
        .routes(routes!(cvms::records::cvm_name))
        .routes(routes!(cvms::envs::cvm_envs))
        .routes(routes!(cvms::text::cvm_docker_compose_update))
        .routes(routes!(cvms::text::cvm_pre_launch_script_update))
        .routes(routes!(cvms::compose_file::compose_file_provision))
        .routes(routes!(cvms::compose_file::compose_file_commit_post))
        .routes(routes!(cvms::compose_file::compose_file_commit))
        .routes(routes!(cvms::compose_file::compose_file_replace))
        .routes(routes!(cvms::commit_update::cvm_commit_update))
        .routes(routes!(cvms::rollback::cvm_rollback))
        .routes(routes!(cancel::operation_cancel))
        // instance ids
        .routes(routes!(cvms::instance_id::instance_ids_look_up))
        .routes(routes!(cvms::instance_id::instance_id_look_up))
        .routes(routes!(cvms::instance_id::instance_ids_refresh))
        .routes(routes!(cvms::instance_id::instance_id_refresh))
        // keys
        .routes(routes!(keys::key_list))
        .routes(routes!(keys::key_create))
        .routes(routes!(keys::key_revoke))
        // rehearsals
        .routes(routes!(dev::fault_plan))
        .routes(routes!(dev::fault_list))
        .routes(routes!(dev::fault_clear))
}
