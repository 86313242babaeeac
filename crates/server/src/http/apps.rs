//! Apps and their CVMs.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::ids::AppId;
use casemate_types::version::ApiVersion;
use casemate_types::wire;

use super::error::answer;
use super::extract::{Caller, Params};
use super::page::{self, Wanted};
use super::view::{self, BasicAnswer, ItemAnswer};
use crate::app::{App, Node};
use crate::config::EMBEDDED_KMS;
use crate::cvm::plan::INSTANCE_TYPES;
use crate::cvm::state::Cvm;
use crate::error::{Error, Resource, Result};
use crate::store::{self, AppFilter, AppRow};

/// Most CVMs that are shown of one app.
const MOST_CVMS: u64 = 1000;

/// The app of the caller's workspace with this id: bare, or after `app_` or `0x`.
///
/// # Errors
/// `NotFound`, also for an app of somebody else.
pub fn find(app: &App, caller: &Caller, named: &str) -> Result<AppRow> {
    let id: AppId = named.parse().map_err(|error| Error::Rejected {
        code: None,
        field: None,
        message: format!("`{named}` names no app: {error}"),
    })?;
    match app.store.app(caller.actor.workspace_id, &id) {
        Err(store::Error::Missing) => Err(Error::NotFound { what: Resource::App }),
        other => Ok(other?),
    }
}

/// The CVMs of an app, newest first.
///
/// # Errors
/// Those of the store.
pub fn cvms(app: &App, of: &AppRow) -> Result<Vec<Arc<Cvm>>> {
    Ok(app.store.cvms_of_app(of.id, MOST_CVMS)?)
}

fn record(app: &App, caller: &Caller, row: AppRow) -> Result<wire::AppRecord<BasicAnswer>> {
    let of_app = cvms(app, &row)?;
    let shown = |version: ApiVersion| of_app.iter().map(move |cvm| view::basic(app, cvm, version));
    let current_cvm = shown(caller.version).next().transpose()?;
    Ok(wire::AppRecord {
        id: row.uid,
        name: row.name,
        app_id: row.app_id,
        app_provision_type: None,
        app_icon_url: None,
        created_at: row.created_at,
        kms_type: view::kms_type(app, &row.kms),
        profile: None,
        current_cvm,
        cvms: shown(caller.version).collect::<Result<_>>()?,
        cvm_count: row.cvm_count.into(),
    })
}

/// List apps
///
/// The apps of the workspace that have a CVM, newest first, one page. Filters look at CVMs: an app is shown if one of its
/// CVMs fits all of them.
#[utoipa::path(get, path = "/apps", tag = "apps",
    params(
        ("page" = Option<u64>, Query, description = "Which page, from 1.", minimum = 1),
        ("page_size" = Option<u64>, Query, description = "How many on a page; 30 unless given.", minimum = 1, maximum = 100),
        ("search" = Option<String>, Query, description = "Part of a name, in large or small letters; or the first three digits or more of an app id, an instance id or a machine's UUID. Names are searched for the beginning if it is shorter than three characters. The newest 10,000 CVMs that it finds are shown and counted."),
        ("status" = Option<Vec<String>>, Query, description = "Only with one of these statuses."),
        ("listed" = Option<bool>, Query, description = "Only those in the public directory, or only the others."),
        ("base_image" = Option<String>, Query, description = "Only with this OS image."),
        ("instance_type" = Option<String>, Query, description = "Only of this named size."),
        ("kms_slug" = Option<String>, Query, description = "Only of this key service."),
        ("kms_type" = Option<String>, Query, description = "Only of this kind of key service."),
        ("node" = Option<String>, Query, description = "Only on the node with this name."),
        ("region" = Option<String>, Query, description = "Only on nodes in this region."),
    ),
    responses((status = 200, description = "The page", body = wire::AppPage<BasicAnswer>)))]
pub async fn app_list(State(app): State<App>, caller: Caller, params: Params) -> Result<Response> {
    let wanted = Wanted::read(&params, page::MOST)?;
    let filter = AppFilter { offset: wanted.offset(), limit: wanted.size, ..filter(&app, &params)? };
    let (rows, total) = app.store.apps(caller.actor.workspace_id, &filter)?;
    let apps = rows.into_iter().map(|row| record(&app, &caller, row)).collect::<Result<_>>()?;
    let page = wire::AppPage {
        dstack_apps: apps,
        page: wanted.page,
        page_size: wanted.size,
        total,
        total_pages: total.div_ceil(wanted.size),
    };
    Ok(answer(StatusCode::OK, &page))
}

fn filter(app: &App, params: &Params) -> Result<AppFilter> {
    let given = |name: &str| params.get(name).filter(|value| !value.is_empty());
    let (node, region) = (given("node"), given("region"));
    let fits = |facts: &crate::driver::NodeFacts| {
        node.is_none_or(|name| facts.name.eq_ignore_ascii_case(name))
            && region.is_none_or(|region| facts.region.eq_ignore_ascii_case(region))
    };
    let nodes = || app.nodes.iter().filter(|(_, node)| fits(&node.facts())).map(|(&id, _)| id).collect();
    let (slug, kind) = (given("kms_slug"), given("kms_type"));
    let services =
        std::iter::once(EMBEDDED_KMS).chain(app.config.contract_kms.iter().map(|kms| kms.slug.as_str()));
    let fits = |service: &&str| {
        slug.is_none_or(|slug| slug.eq_ignore_ascii_case(service))
            && kind.is_none_or(|kind| view::kms_type(app, service).as_str().eq_ignore_ascii_case(kind))
    };
    let size = given("instance_type").map(|name| INSTANCE_TYPES.iter().filter(move |size| size.name == name));
    Ok(AppFilter {
        search: given("search").map(str::to_owned),
        statuses: params
            .all("status")
            .into_iter()
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect(),
        listed: params.flag("listed")?,
        image: given("base_image").map(str::to_owned),
        sizes: size.map(|sizes| sizes.map(|size| (size.vcpu, size.memory_mb, size.gpus)).collect()),
        kms: (slug.is_some() || kind.is_some()).then(|| services.filter(fits).map(str::to_owned).collect()),
        nodes: (node.is_some() || region.is_some()).then(nodes),
        ..AppFilter::default()
    })
}

/// List filters for apps
///
/// The values that filters of the list of apps can have here.
#[utoipa::path(get, path = "/apps/filter-options", tag = "apps",
    responses((status = 200, description = "The values, by filter", body = wire::AppFilterOptions)))]
pub async fn app_filter_options(State(app): State<App>, _: Caller) -> Response {
    let nodes = || app.nodes.values().map(Node::facts);
    let services =
        || std::iter::once(EMBEDDED_KMS).chain(app.config.contract_kms.iter().map(|kms| kms.slug.as_str()));
    let distinct = |values: &mut dyn Iterator<Item = String>| {
        values.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    let options = wire::AppFilterOptions {
        statuses: crate::cvm::state::Status::ALL.iter().map(ToString::to_string).collect(),
        image_versions: super::images::all(&app).into_iter().map(|image| image.name).collect(),
        instance_types: INSTANCE_TYPES.iter().map(|size| size.name.to_owned()).collect(),
        kms_slugs: services().map(str::to_owned).collect(),
        kms_types: distinct(&mut services().map(|slug| view::kms_type(&app, slug).to_string())),
        regions: distinct(&mut nodes().map(|facts| facts.region.clone())),
        nodes: nodes().map(|facts| facts.name.clone()).collect(),
    };
    answer(StatusCode::OK, &options)
}

/// Get an app
#[utoipa::path(get, path = "/apps/{app_id}", tag = "apps",
    params(("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`.")),
    responses((status = 200, description = "The app", body = wire::AppRecord<BasicAnswer>)))]
pub async fn app_get(State(app): State<App>, caller: Caller, Path(named): Path<String>) -> Result<Response> {
    let row = find(&app, &caller, &named)?;
    Ok(answer(StatusCode::OK, &record(&app, &caller, row)?))
}

/// List the CVMs of an app
///
/// Newest first.
#[utoipa::path(get, path = "/apps/{app_id}/cvms", tag = "apps",
    params(("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`.")),
    responses((status = 200, description = "The CVMs", body = Vec<ItemAnswer>)))]
pub async fn app_cvms(State(app): State<App>, caller: Caller, Path(named): Path<String>) -> Result<Response> {
    let row = find(&app, &caller, &named)?;
    let cvms = cvms(&app, &row)?;
    let items = cvms.iter().map(|cvm| view::item(&app, cvm, caller.version)).collect::<Result<Vec<_>>>()?;
    Ok(answer(StatusCode::OK, &items))
}
