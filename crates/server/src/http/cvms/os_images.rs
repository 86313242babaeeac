//! `GET /cvms/{id}/available-os-images`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::wire;

use crate::app::App;
use crate::driver::Image;
use crate::error::Result;
use crate::http::error::answer;
use crate::http::extract::On;

/// List OS images for a CVM
///
/// The OS images that the CVM may switch to, newest version first.
#[utoipa::path(get, path = "/cvms/{id}/available-os-images", tag = "configuration",
    responses((status = 200, description = "The images, by version", body = Vec<wire::OsImageGroup>)))]
pub async fn cvm_available_os_images(State(app): State<App>, on: On) -> Result<Response> {
    let spec = app.store.spec(on.cvm.id, on.cvm.revision)?;
    let facts = app.node(on.cvm.node_id).map(crate::app::Node::facts);
    let images = facts.as_ref().map_or(&[][..], |facts| &facts.images);
    Ok(answer(StatusCode::OK, &groups(images, &spec.image, spec.gpus.count > 0)))
}

fn groups(images: &[Image], current: &str, has_gpus: bool) -> Vec<wire::OsImageGroup> {
    let mut groups: BTreeMap<Reverse<&[u32]>, wire::OsImageGroup> = BTreeMap::new();
    // Where there are two of a kind, the one made for this kind of machine is taken.
    let mut fitting: Vec<_> = images.iter().filter(|image| has_gpus || !image.requires_gpu).collect();
    fitting.sort_by_key(|image| (image.name != current, image.requires_gpu != has_gpus));
    for image in fitting {
        let empty = || wire::OsImageGroup { version: image.version.clone(), prod: None, dev: None };
        let group = groups.entry(Reverse(&image.version)).or_insert_with(empty);
        let place = if image.is_dev { &mut group.dev } else { &mut group.prod };
        place.get_or_insert_with(|| wire::OsImageVariant {
            name: image.name.clone(),
            slug: image.slug(),
            os_image_hash: Some(image.os_image_hash.clone()),
            is_current: image.name == current,
            requires_gpu: image.requires_gpu,
            enabled: true,
        });
    }
    groups.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, version: &[u32], is_dev: bool, requires_gpu: bool) -> Image {
        Image {
            name: name.into(),
            version: version.into(),
            is_dev,
            os_image_hash: "ab".repeat(32),
            requires_gpu,
        }
    }

    #[test]
    fn images_are_grouped_by_version_and_those_for_gpus_kept_from_others() {
        let images = [
            image("dstack-0.5.4", &[0, 5, 4], false, false),
            image("dstack-dev-0.5.10", &[0, 5, 10], true, false),
            image("dstack-0.5.10", &[0, 5, 10], false, false),
            image("dstack-nvidia-0.5.10", &[0, 5, 10], false, true),
        ];
        let names = |has_gpus| {
            let name = |variant: Option<wire::OsImageVariant>| variant.map(|variant| variant.name);
            let groups = groups(&images, "dstack-0.5.4", has_gpus);
            groups.into_iter().map(|group| (name(group.prod), name(group.dev))).collect::<Vec<_>>()
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(
            names(false),
            [(some("dstack-0.5.10"), some("dstack-dev-0.5.10")), (some("dstack-0.5.4"), None)]
        );
        assert_eq!(names(true)[0].0, some("dstack-nvidia-0.5.10"));
    }
}
