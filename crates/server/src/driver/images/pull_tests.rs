//! Pulls, from a registry inside the test.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;

use super::manifest::MANIFEST;
use super::tests::layout;
use super::*;

/// What a registry has and was asked.
#[derive(Default)]
struct Registry {
    blobs: HashMap<String, Vec<u8>>,
    tags: HashMap<String, String>,
    /// Nobody gets in without it.
    login: Option<String>,
    asked: Mutex<Vec<String>>,
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if registry.login.is_some() && given != registry.login.as_deref() {
        let ask = [(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")];
        return (StatusCode::UNAUTHORIZED, ask, "{}").into_response();
    }
    if path == "/v2/" {
        return "{}".into_response();
    }
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    registry.asked.lock().unwrap().push(name.clone());
    let digest = registry.tags.get(&name).cloned().unwrap_or(name);
    match registry.blobs.get(&digest) {
        Some(blob) if path.contains("/manifests/") => {
            ([(header::CONTENT_TYPE, MANIFEST)], blob.clone()).into_response()
        }
        Some(blob) => blob.clone().into_response(),
        None => {
            (StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"","detail":{}}]}"#)
                .into_response()
        }
    }
}

/// A registry with the image `web:1`, changed as wanted; its host.
async fn serve(change: impl FnOnce(&mut Registry)) -> (String, Arc<Registry>) {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path(), &["web:1"]);
    let mut registry = Registry { blobs: blobs(folder.path()), ..Registry::default() };
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    registry.tags.insert("1".into(), digest);
    change(&mut registry);
    let registry = Arc::new(registry);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&registry));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (host, registry)
}

fn blobs(folder: &Path) -> HashMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder.join("blobs/sha256")).unwrap().flatten();
    let name = |file: &std::fs::DirEntry| format!("sha256:{}", file.file_name().into_string().unwrap());
    files.map(|file| (name(&file), std::fs::read(file.path()).unwrap())).collect()
}

fn store() -> (ImageStore, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (ImageStore::open(folder.path().join("store")).unwrap(), folder)
}

fn reference(host: &str, rest: &str) -> Reference {
    format!("{host}/me/web{rest}").parse().unwrap()
}

#[tokio::test]
async fn an_image_is_pulled_once_and_checked() {
    let (host, registry) = serve(|_| {}).await;
    let (store, _folder) = store();
    let tagged = reference(&host, ":1");
    let both = tokio::join!(store.ensure(&tagged, None), store.ensure(&tagged, None));
    let digest = both.0.unwrap();
    assert_eq!(both.1, Ok(digest.clone()));
    assert_eq!(store.ensure(&tagged, None).await, Ok(digest.clone()));
    assert_eq!(registry.asked.lock().unwrap().len(), 3, "manifest, configuration and layer, once each");
    let pinned = reference(&host, &format!("@{digest}"));
    assert_eq!(store.ensure(&pinned, None).await, Ok(digest));
}

#[tokio::test]
async fn what_a_registry_does_not_have_or_gives_wrongly_is_refused() {
    let (host, _) = serve(|_| {}).await;
    let (store, _folder) = store();
    let error = store.ensure(&reference(&host, ":2"), None).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(why) if why.contains("does not have it")), "{error:?}");
    let (host, _) = serve(|registry| {
        let manifest = registry.tags["1"].clone();
        registry
            .blobs
            .iter_mut()
            .filter(|(digest, _)| **digest != manifest)
            .for_each(|(_, blob)| blob[0] ^= 1);
    })
    .await;
    let error = store.ensure(&reference(&host, ":1"), None).await.unwrap_err();
    assert!(store.resolve(&reference(&host, ":1")).unwrap().is_none(), "{error:?}");
    let pinned = reference(&host, &format!("@sha256:{}", "0".repeat(64)));
    assert!(matches!(store.ensure(&pinned, None).await, Err(Error::Refused(_))));
    let nobody = reference("127.0.0.1:1", ":1");
    assert!(
        matches!(store.ensure(&nobody, None).await, Err(Error::Later(why)) if why.contains("does not answer"))
    );
}

#[tokio::test]
async fn a_login_is_for_its_registry_alone() {
    let password = base64::engine::general_purpose::STANDARD.encode("me:secret");
    let (host, _) = serve(|registry| registry.login = Some(format!("Basic {password}"))).await;
    let (store, _folder) = store();
    let login = |registry: &str| Login {
        username: "me".into(),
        password: "secret".into(),
        registry: Some(registry.to_owned()),
    };
    let tagged = reference(&host, ":1");
    for wrong in [None, Some(login("registry.example.org"))] {
        let error = store.ensure(&tagged, wrong.as_ref()).await.unwrap_err();
        assert!(matches!(&error, Error::Refused(why) if why.contains("does not give it")), "{error:?}");
    }
    store.ensure(&tagged, Some(&login(&format!("http://{host}/v2/")))).await.unwrap();
}
