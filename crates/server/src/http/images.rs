//! `GET /os-images`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use casemate_types::wire;
use serde::Serialize;

use super::error::answer;
use super::extract::{Caller, Params};
use super::page::Wanted;
use crate::app::App;
use crate::error::Result;

/// OS images: a page for whoever names an API date or a page, otherwise all in one array.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum OsImages {
    Page(wire::Page<wire::OsImage>),
    All(Vec<wire::OsImage>),
}

/// List OS images
///
/// The OS images of all nodes, newest version first. A request without the header `X-Phala-Version` and without `page` and
/// `page_size` is answered with a plain array.
#[utoipa::path(get, path = "/os-images", tag = "inventory",
    params(
        ("page" = Option<u64>, Query, description = "Which page, from 1.", minimum = 1),
        ("page_size" = Option<u64>, Query, description = "How many on a page; 30 unless given.", minimum = 1, maximum = 1000),
        ("is_dev" = Option<bool>, Query, description = "Only images for development, or only the others."),
    ),
    responses((status = 200, description = "The images", body = OsImages)))]
pub async fn os_image_list(
    State(app): State<App>,
    _: Caller,
    params: Params,
    headers: HeaderMap,
) -> Result<Response> {
    let is_dev = params.flag("is_dev")?;
    let wanted = Wanted::read(&params, 1000)?;
    let mut images = all(&app);
    images.retain(|image| is_dev.is_none_or(|is_dev| image.is_dev == is_dev));
    let pages = headers.contains_key("x-phala-version") || params.has("page") || params.has("page_size");
    let images = match pages {
        false => OsImages::All(images),
        true => {
            let total = images.len() as u64;
            OsImages::Page(wire::Page::new(wanted.of(images), total, wanted.page, wanted.size))
        }
    };
    Ok(answer(StatusCode::OK, &images))
}

/// The images of all nodes, each name once.
pub fn all(app: &App) -> Vec<wire::OsImage> {
    let facts: Vec<_> = app.nodes.values().map(crate::app::Node::facts).collect();
    let images = facts.iter().flat_map(|facts| &facts.images);
    let by_name: BTreeMap<_, _> = images.map(|image| (&image.name, image)).collect();
    let mut images: Vec<_> = by_name.into_values().collect();
    images.sort_by(|a, b| b.version.cmp(&a.version));
    let shown = |image: &crate::driver::Image| wire::OsImage {
        name: image.name.clone(),
        slug: image.slug(),
        version: image.version_text(),
        os_image_hash: Some(image.os_image_hash.clone()),
        is_dev: image.is_dev,
        requires_gpu: image.requires_gpu,
    };
    images.into_iter().map(shown).collect()
}
