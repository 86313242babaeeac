//! `GET /cvms/{id}/user_config`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::wire;
use serde_json::Value;

use crate::app::App;
use crate::error::Result;
use crate::http::error::answer;
use crate::http::extract::On;

/// Get the user config
///
/// What the guest gets besides the compose document, as far as it is JSON with these fields.
#[utoipa::path(get, path = "/cvms/{id}/user_config", tag = "configuration",
    responses((status = 200, description = "The user config", body = wire::UserConfig)))]
pub async fn cvm_user_config(State(app): State<App>, on: On) -> Result<Response> {
    let spec = app.store.spec(on.cvm.id, on.cvm.revision)?;
    let given: Value =
        spec.user_config.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let text = |name: &str| given.get(name).and_then(Value::as_str).map(str::to_owned);
    let keys = given.get("ssh_authorized_keys").and_then(Value::as_array);
    let keys = keys.map(|keys| keys.iter().filter_map(Value::as_str).map(str::to_owned).collect());
    let config = wire::UserConfig {
        hostname: text("hostname").or_else(|| Some(on.cvm.name.clone())),
        ssh_authorized_keys: keys.unwrap_or_default(),
        default_gateway_domain: text("default_gateway_domain").or_else(|| app.config.gateway_domain.clone()),
    };
    Ok(answer(StatusCode::OK, &config))
}
