//! Pulls, from a registry inside the test.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;

use super::manifest::MANIFEST;
use super::store::{Origin, digest_of};
use super::tests::layout;
use super::*;
use casemate_types::guest::ImageRef;
use serde_json::json;

/// What a registry has and was asked.
#[derive(Default)]
pub(super) struct Registry {
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    tags: Mutex<HashMap<String, String>>,
    /// Nobody gets in without it.
    login: Mutex<Option<String>>,
    /// It has more important things to do.
    down: AtomicBool,
    /// It has too many requests until so many more that ask for no body, and says for how many seconds.
    busy: Mutex<Option<(u32, &'static str)>>,
    /// Blobs never end.
    endless: AtomicBool,
    /// Neither does anything else, and it asks for a token.
    flood: Mutex<Option<&'static str>>,
    /// It gives this token, and takes no other.
    token: Mutex<Option<(&'static str, String)>>,
    /// It does not name manifests.
    nameless: AtomicBool,
    /// Blobs end before their end.
    cut: AtomicBool,
    asked: Mutex<Vec<String>>,
}

impl Registry {
    fn tag(&self, name: &str) -> String {
        self.tags.lock().unwrap()[name].clone()
    }

    /// What it was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// Now the tag means another image, of the same layers.
    pub(super) fn move_tag(&self, name: &str) -> String {
        let mut blobs = self.blobs.lock().unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&blobs[&self.tag(name)]).unwrap();
        manifest["annotations"] = json!({ "moved": blobs.len() });
        let manifest = manifest.to_string().into_bytes();
        let digest = digest_of(&manifest);
        blobs.insert(digest.clone(), manifest);
        self.tags.lock().unwrap().insert(name.into(), digest.clone());
        digest
    }
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if registry.down.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if let Some((left @ 1.., seconds)) = &mut *registry.busy.lock().unwrap() {
        *left -= u32::from(request.method() == axum::http::Method::HEAD);
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, *seconds)]).into_response();
    }
    let flooded = *registry.flood.lock().unwrap();
    if flooded.is_some_and(|part| path.contains(part)) && request.method() == axum::http::Method::GET {
        return (StatusCode::OK, axum::body::Body::from_stream(endless())).into_response();
    }
    let host = request.headers()[header::HOST].to_str().unwrap().to_owned();
    let token = registry.token.lock().unwrap().clone();
    if let Some((token, login)) = &token {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if path == "/token" {
            let query = request.uri().query().unwrap_or_default();
            assert_eq!(query, "scope=repository%3Ame%2Fweb%3Apull&service=test");
            return match given == Some(login.as_str()) {
                true => json!({ "access_token": token }).to_string().into_response(),
                false => StatusCode::UNAUTHORIZED.into_response(),
            };
        }
        if given != Some(&format!("Bearer {token}")) {
            let ask = format!("Bearer realm=\"http://{host}/token\",service=\"test\"");
            return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, ask)]).into_response();
        }
        if path == "/v2/" {
            return "{}".into_response();
        }
    }
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let login = registry.login.lock().unwrap().clone();
    if login.is_some() && given != login.as_deref() {
        let ask = [(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")];
        return (StatusCode::UNAUTHORIZED, ask, "{}").into_response();
    }
    if path == "/v2/" {
        return "{}".into_response();
    }
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    registry.asked.lock().unwrap().push(format!("{} {name}", request.method()));
    let digest = registry.tags.lock().unwrap().get(&name).cloned().unwrap_or(name);
    let blob = registry.blobs.lock().unwrap().get(&digest).cloned();
    match blob {
        Some(blob) if path.contains("/manifests/") && registry.nameless.load(Ordering::SeqCst) => {
            blob.into_response()
        }
        Some(blob) if path.contains("/manifests/") => {
            let digest = (HeaderName::from_static("docker-content-digest"), digest);
            ([(header::CONTENT_TYPE, MANIFEST.to_owned()), digest], blob).into_response()
        }
        Some(blob) if registry.endless.load(Ordering::SeqCst) => {
            let first = futures_util::stream::iter([Ok(blob)]);
            axum::body::Body::from_stream(futures_util::StreamExt::chain(first, endless())).into_response()
        }
        Some(blob) if registry.cut.load(Ordering::SeqCst) => blob[..blob.len() / 2].to_vec().into_response(),
        Some(blob) => blob.into_response(),
        None => {
            (StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"","detail":{}}]}"#)
                .into_response()
        }
    }
}

fn endless() -> impl futures_util::Stream<Item = std::io::Result<Vec<u8>>> {
    futures_util::stream::repeat_with(|| {
        GIVEN.fetch_add(1 << 16, Ordering::SeqCst);
        Ok(vec![0_u8; 1 << 16])
    })
}

/// How many bytes were given of what has no end.
static GIVEN: AtomicUsize = AtomicUsize::new(0);

/// A registry with the image `web:1`, changed as wanted; its host.
pub(super) async fn serve(change: impl FnOnce(&mut Registry)) -> (String, Arc<Registry>) {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path(), &["web:1"]);
    let mut registry = Registry { blobs: Mutex::new(blobs(folder.path())), ..Registry::default() };
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    registry.tags.get_mut().unwrap().insert("1".into(), digest);
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

pub(super) fn reference(host: &str, rest: &str) -> Reference {
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
    let asked = registry.asked();
    let (heads, gets): (Vec<_>, Vec<_>) = asked.iter().partition(|one| one.starts_with("HEAD"));
    assert_eq!(heads, ["HEAD 1"; 3], "whoever wants it asks");
    assert_eq!(gets.len(), 3, "manifest, configuration and layer, once each: {gets:?}");
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
        let manifest = registry.tag("1");
        registry
            .blobs
            .get_mut()
            .unwrap()
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

fn login(registry: &str) -> Login {
    Login { username: "me".into(), password: "secret".into(), registry: Some(registry.to_owned()) }
}

/// How a registry is told of the login.
fn basic() -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("me:secret"))
}

fn is_refused(got: &Result<String>) -> bool {
    matches!(got, Err(Error::Refused(why)) if why.contains("does not give it"))
}

#[tokio::test]
async fn what_one_login_pulled_is_for_nobody_without_it() {
    let (host, registry) = serve(|registry| registry.login = Mutex::new(Some(basic()))).await;
    let (store, _folder) = store();
    let (tagged, mine) = (reference(&host, ":1"), login(&host));
    let digest = store.ensure(&tagged, Some(&mine)).await.unwrap();
    let pinned = reference(&host, &format!("@{digest}"));
    registry.asked();
    for wanted in [&tagged, &pinned] {
        for wrong in [None, Some(Login { password: "wrong".into(), ..mine.clone() })] {
            let got = store.ensure(wanted, wrong.as_ref()).await;
            assert!(is_refused(&got), "{got:?}");
        }
        assert_eq!(store.ensure(wanted, Some(&mine)).await, Ok(digest.clone()));
        let asked = registry.asked();
        assert!(asked.iter().all(|one| one.starts_with("HEAD")), "nothing is pulled again: {asked:?}");
    }
    // Nobody can say whose login is right.
    registry.down.store(true, Ordering::SeqCst);
    for wanted in [&tagged, &pinned] {
        for anyones in [None, Some(&mine)] {
            let got = store.ensure(wanted, anyones).await;
            assert!(matches!(&got, Err(Error::Later(why)) if why.contains("does not answer")), "{got:?}");
        }
    }
}

#[tokio::test]
async fn another_repository_gives_nothing_by_its_digest_alone() {
    let (host, private) = serve(|registry| registry.login = Mutex::new(Some(basic()))).await;
    let (store, _folder) = store();
    let digest = store.ensure(&reference(&host, ":1"), Some(&login(&host))).await.unwrap();
    let manifest = private.blobs.lock().unwrap()[&digest].clone();
    // Somebody's own registry says yes to the digest; then it has the manifest too, but no layer.
    let (own, registry) = serve(|registry| *registry.blobs.get_mut().unwrap() = HashMap::new()).await;
    for blob in [Vec::new(), manifest] {
        registry.blobs.lock().unwrap().insert(digest.clone(), blob);
        for rest in [":1", &format!("@{digest}")] {
            let got = store.ensure(&reference(&own, rest), None).await;
            assert!(got.is_err(), "{got:?}");
        }
    }
    *registry.blobs.lock().unwrap() = private.blobs.lock().unwrap().clone();
    assert_eq!(store.ensure(&reference(&own, ":1"), None).await, Ok(digest));
}

#[tokio::test]
async fn a_public_image_is_what_it_was_last_while_its_registry_does_not_answer() {
    let (host, registry) = serve(|_| {}).await;
    let (store, _folder) = store();
    let tagged = reference(&host, ":1");
    let digest = store.ensure(&tagged, None).await.unwrap();
    registry.down.store(true, Ordering::SeqCst);
    assert_eq!(store.ensure(&tagged, None).await, Ok(digest.clone()));
    let never = store.ensure(&reference(&host, ":2"), None).await;
    assert!(matches!(never, Err(Error::Later(_))), "{never:?}");
    // A login that need not be does not make it less public; what only a login got is not.
    registry.down.store(false, Ordering::SeqCst);
    store.ensure(&tagged, Some(&login(&host))).await.unwrap();
    registry.down.store(true, Ordering::SeqCst);
    assert_eq!(store.ensure(&tagged, None).await, Ok(digest));
    registry.down.store(false, Ordering::SeqCst);
    registry.move_tag("1");
    store.ensure(&tagged, Some(&login(&host))).await.unwrap();
    registry.down.store(true, Ordering::SeqCst);
    assert!(matches!(store.ensure(&tagged, None).await, Err(Error::Later(_))));
    // One that is no more for everybody is not when nobody answers, either.
    registry.down.store(false, Ordering::SeqCst);
    store.ensure(&tagged, None).await.unwrap();
    *registry.login.lock().unwrap() = Some(basic());
    assert!(is_refused(&store.ensure(&tagged, None).await));
    registry.down.store(true, Ordering::SeqCst);
    assert!(matches!(store.ensure(&tagged, None).await, Err(Error::Later(_))));
}

#[tokio::test]
async fn a_tag_that_moves_is_followed_and_what_was_imported_stays() {
    let (host, registry) = serve(|_| {}).await;
    let (store, folder) = store();
    let tagged = reference(&host, ":1");
    let first = store.ensure(&tagged, None).await.unwrap();
    registry.asked();
    let second = registry.move_tag("1");
    assert_eq!(store.ensure(&tagged, None).await, Ok(second.clone()));
    assert_eq!(registry.asked(), ["HEAD 1", "GET 1"], "the layers are there");
    assert_eq!(store.named(&tagged).unwrap().unwrap().0, second);
    // A digest does not say what its tag is.
    store.ensure(&reference(&host, &format!(":1@{first}")), None).await.unwrap();
    assert_eq!(store.named(&tagged).unwrap().unwrap().0, second);

    let from = folder.path().join("layout");
    layout(&from, &["mine"]);
    let imported = store.import(&from, Some(&tagged)).unwrap()[0].1.clone();
    *registry.login.lock().unwrap() = Some(basic());
    registry.asked();
    assert_eq!(store.ensure(&tagged, None).await, Ok(imported.clone()));
    let elsewhere = reference("127.0.0.1:1", &format!("@{imported}"));
    assert_eq!(store.ensure(&elsewhere, None).await, Ok(imported.clone()));
    assert_eq!(registry.asked(), Vec::<String>::new());
    // A pull that was under way meanwhile changes nothing of it.
    store.name(&tagged, &second, Origin::Public).unwrap();
    assert_eq!(store.ensure(&tagged, None).await, Ok(imported));
}

#[tokio::test]
async fn a_damaged_blob_is_pulled_again() {
    let (host, _) = serve(|_| {}).await;
    let (store, folder) = store();
    let tagged = reference(&host, ":1");
    let digest = store.ensure(&tagged, None).await.unwrap();
    let image = ImageRef { reference: tagged.to_string(), digest: digest.clone() };
    let layer = store.document(&digest).unwrap().layers[0].digest.clone();
    for blob in [&layer, &digest] {
        std::fs::write(store.path(blob), b"damaged").unwrap();
        let error = store.linked(&image).unwrap_err().to_string();
        assert!(error.contains(blob.as_str()) && error.contains("damaged"), "{error}");
        assert_eq!(store.ensure(&tagged, None).await, Ok(digest.clone()));
        store.linked(&image).unwrap();
        // It is made again of the blobs.
        std::fs::remove_dir_all(folder.path().join("store/roots")).unwrap();
    }
}

#[tokio::test]
async fn a_login_is_for_its_registry_alone() {
    let (host, _) = serve(|registry| registry.login = Mutex::new(Some(basic()))).await;
    let (store, _folder) = store();
    let tagged = reference(&host, ":1");
    for wrong in [None, Some(login("registry.example.org"))] {
        let error = store.ensure(&tagged, wrong.as_ref()).await.unwrap_err();
        assert!(matches!(&error, Error::Refused(why) if why.contains("does not give it")), "{error:?}");
    }
    store.ensure(&tagged, Some(&login(&format!("http://{host}/v2/")))).await.unwrap();
}

/// Nothing of an image came into the store.
fn is_empty(store: &ImageStore) -> bool {
    let blobs = std::fs::read_dir(store.folder.join("blobs/sha256")).unwrap().count();
    let halves = std::fs::read_dir(store.folder.join("tmp")).unwrap().count();
    // The manifest came first, and was right.
    store.list().unwrap().is_empty() && blobs <= 1 && halves == 0
}

#[tokio::test]
async fn a_blob_that_is_not_what_it_should_be_is_refused_and_leaves_nothing() {
    // Of the right size and other bytes; without an end; with more bytes; with fewer, which may be better next time.
    type Change = fn(&mut Registry);
    let changes: [(Change, &str, bool); 4] = [
        (|registry| change_blobs(registry, |blob| blob[0] ^= 1), "gave something else for blob", true),
        (|registry| registry.endless = AtomicBool::new(true), "has more bytes than it should", true),
        (|registry| change_blobs(registry, |blob| blob.push(0)), "has more bytes than it should", true),
        (|registry| registry.cut = AtomicBool::new(true), "ended after", false),
    ];
    for (change, told, is_final) in changes {
        let (host, registry) = serve(change).await;
        let (store, _folder) = store();
        let got = store.ensure(&reference(&host, ":1"), None).await;
        match got {
            Err(Error::Refused(why)) if is_final => assert!(why.contains(told), "{told}: {why}"),
            Err(Error::Later(why)) if !is_final => assert!(why.contains(told), "{told}: {why}"),
            other => panic!("{told}: {other:?}"),
        }
        assert!(is_empty(&store), "{told}");
        registry.cut.store(false, Ordering::SeqCst);
        assert_eq!(store.ensure(&reference(&host, ":1"), None).await.is_ok(), !is_final, "{told}");
    }
}

fn change_blobs(registry: &mut Registry, change: impl Fn(&mut Vec<u8>)) {
    let manifest = registry.tag("1");
    let blobs = registry.blobs.get_mut().unwrap().iter_mut();
    blobs.filter(|(digest, _)| **digest != manifest).for_each(|(_, blob)| change(blob));
}

#[tokio::test]
async fn a_manifest_that_is_not_the_one_asked_for_is_refused() {
    let (host, registry) = serve(|_| {}).await;
    let (store, _folder) = store();
    let digest = registry.tag("1");
    let other = registry.move_tag("1");
    let blobs = || registry.blobs.lock().unwrap();
    let bytes = blobs()[&other].clone();
    blobs().insert(digest.clone(), bytes);
    for rest in [format!("@{digest}"), format!(":1@{digest}")] {
        let got = store.ensure(&reference(&host, &rest), None).await;
        assert!(matches!(&got, Err(Error::Refused(why)) if why.contains("gave")), "{got:?}");
    }
    assert!(is_empty(&store));
}

#[tokio::test]
async fn a_registry_with_too_many_requests_is_left_alone_for_as_long_as_it_says() {
    let (host, registry) = serve(|registry| registry.busy = Mutex::new(Some((2, "2")))).await;
    let (store, _folder) = store();
    let tagged = reference(&host, ":1");
    let began = tokio::time::Instant::now();
    store.ensure(&tagged, None).await.unwrap();
    let waited = began.elapsed();
    assert!(waited >= std::time::Duration::from_secs(2), "{waited:?}");
    // That is bounded, and told.
    *registry.busy.lock().unwrap() = Some((u32::MAX, "3600"));
    let got = store.ensure(&reference(&host, ":2"), None).await;
    let told = "has too many requests, and asks to come back in 3600 s";
    assert!(matches!(&got, Err(Error::Later(why)) if why.contains(told)), "{got:?}");
    // What everybody may have is what it was last.
    store.ensure(&tagged, None).await.unwrap();
}

#[tokio::test]
async fn a_document_without_an_end_is_refused() {
    let given = || GIVEN.load(Ordering::SeqCst);
    for (part, nameless) in [("/manifests/", false), ("/manifests/", true), ("/token", false)] {
        let (host, registry) = serve(|registry| {
            registry.flood = Mutex::new(Some(part));
            registry.nameless = AtomicBool::new(nameless);
        })
        .await;
        if part == "/token" {
            *registry.token.lock().unwrap() = Some(("secret", basic()));
        }
        let (store, _folder) = store();
        let got = store.ensure(&reference(&host, ":1"), Some(&login(&host))).await;
        let told = "answers with a document of more than ";
        assert!(given() < 64 << 20, "{} bytes were read", given());
        assert!(matches!(&got, Err(Error::Refused(why)) if why.contains(told)), "{got:?}");
    }
}

#[tokio::test]
async fn a_registry_that_asks_for_a_token_gets_one_and_a_new_one_when_it_has_expired() {
    let (host, registry) = serve(|registry| registry.token = Mutex::new(Some(("first", basic())))).await;
    let (store, _folder) = store();
    let tagged = reference(&host, ":1");
    assert!(is_refused(&store.ensure(&tagged, None).await));
    let asks = super::registry::Registry::new(&tagged, Some(&login(&host)), crate::clock::Clock::system());
    let asks = asks.unwrap();
    let digest = asks.digest().await.unwrap();
    *registry.token.lock().unwrap() = Some(("second", basic()));
    assert_eq!(digest_of(&asks.manifest(&tagged).await.unwrap()), digest);
    assert_eq!(store.ensure(&tagged, Some(&login(&host))).await, Ok(digest.clone()));
    // One that does not name what it gives is asked for all of it.
    registry.nameless.store(true, Ordering::SeqCst);
    assert_eq!(store.ensure(&tagged, Some(&login(&host))).await, Ok(digest));
}
