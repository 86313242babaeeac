//! `GET /cvms/paginated` and `GET /cvms`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::error::FieldError;
use casemate_types::wire;

use crate::app::App;
use crate::cvm::plan::INSTANCE_TYPES;
use crate::error::{Error, Result};
use crate::http::error::answer;
use crate::http::extract::{Caller, Params};
use crate::http::page::{self, Wanted};
use crate::http::view::{self, ItemAnswer};
use crate::store::CvmFilter;

/// List CVMs
///
/// The CVMs of the workspace, newest first, one page.
#[utoipa::path(get, path = "/cvms/paginated", tag = "cvms",
    params(
        ("page" = Option<u64>, Query, description = "Which page, from 1.", minimum = 1),
        ("page_size" = Option<u64>, Query, description = "How many on a page; 30 unless given.", minimum = 1, maximum = 100),
        ("node_id" = Option<u64>, Query, description = "Only CVMs on this node. `teepod_id` says the same."),
        ("family" = Option<String>, Query, description = "`cpu`: only CVMs without GPUs, `gpu`: only those with, `all`: both."),
        ("instance_types" = Option<Vec<String>>, Query, description = "Only CVMs of these named sizes."),
    ),
    responses((status = 200, description = "The page", body = wire::Page<ItemAnswer>)))]
pub async fn cvm_list(State(app): State<App>, caller: Caller, params: Params) -> Result<Response> {
    let wanted = Wanted::read(&params, page::MOST)?;
    let filter = CvmFilter { offset: wanted.offset(), limit: wanted.size, ..filter(&params)? };
    let (cvms, total) = app.store.cvms(caller.actor.workspace_id, &filter)?;
    let items = cvms.iter().map(|cvm| view::item(&app, cvm, caller.version)).collect::<Result<_>>()?;
    Ok(answer(StatusCode::OK, &wire::Page::<ItemAnswer>::new(items, total, wanted.page, wanted.size)))
}

/// List all CVMs
///
/// The same CVMs as an array, at most 1000 of them.
#[utoipa::path(get, path = "/cvms", tag = "cvms",
    params(("node_id" = Option<u64>, Query, description = "Only CVMs on this node. `teepod_id` says the same.")),
    responses((status = 200, description = "The CVMs, newest first", body = Vec<ItemAnswer>)))]
pub async fn cvm_list_all(State(app): State<App>, caller: Caller, params: Params) -> Result<Response> {
    const MOST: u64 = 1000;
    let filter = CvmFilter { limit: MOST, ..filter(&params)? };
    let (cvms, _) = app.store.cvms(caller.actor.workspace_id, &filter)?;
    let items = cvms.iter().map(|cvm| view::item(&app, cvm, caller.version)).collect::<Result<Vec<_>>>()?;
    Ok(answer(StatusCode::OK, &items))
}

fn filter(params: &Params) -> Result<CvmFilter> {
    const LAST: u64 = i64::MAX as u64;
    let (node, teepod) = (params.number("node_id", 1, LAST)?, params.number("teepod_id", 1, LAST)?);
    if node.is_some() && teepod.is_some() && node != teepod {
        let message = "`node_id` and `teepod_id` are two names of one parameter and say different things";
        return Err(Error::Invalid(vec![FieldError::query("node_id", "value_error", message)]));
    }
    let node = node.or(teepod);
    let gpus = match params.get("family") {
        None | Some("" | "all") => None,
        Some("cpu") => Some(false),
        Some("gpu") => Some(true),
        Some(other) => {
            let message = format!("should be `all`, `cpu` or `gpu`, not `{other}`");
            return Err(Error::Invalid(vec![FieldError::query("family", "enum", message)]));
        }
    };
    let names = params.all("instance_types");
    let sizes = INSTANCE_TYPES.iter().filter(|size| names.contains(&size.name));
    Ok(CvmFilter {
        node_id: node.map(i64::try_from).transpose().expect("bounded above"),
        gpus,
        sizes: (!names.is_empty())
            .then(|| sizes.map(|size| (size.vcpu, size.memory_mb, size.gpus)).collect()),
        ..CvmFilter::default()
    })
}
