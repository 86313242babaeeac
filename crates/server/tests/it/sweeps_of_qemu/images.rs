//! What the images of a machine mean while it is updated, and what is told of one that takes long to come.

use std::collections::HashMap;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use casemate_types::guest::ImageRef;
use tokio::sync::watch;

use super::*;

/// A registry with one image that says nothing until it is let go.
struct Registry {
    blobs: HashMap<String, Vec<u8>>,
    /// Digest of `web:2`.
    digest: String,
    open: watch::Receiver<bool>,
    asked: Mutex<Vec<String>>,
}

impl Registry {
    /// Begins; its address.
    async fn serve(open: watch::Receiver<bool>) -> (String, Arc<Self>) {
        let mut blobs = HashMap::new();
        let mut put = |value: serde_json::Value| {
            let bytes = value.to_string().into_bytes();
            let (digest, size) = (format!("sha256:{}", hex::encode(sha256(&bytes))), bytes.len());
            blobs.insert(digest.clone(), bytes);
            json!({ "mediaType": "", "digest": digest, "size": size })
        };
        let config = put(json!({ "config": { "Cmd": ["of the registry"] } }));
        let manifest = put(json!({ "schemaVersion": 2, "config": config, "layers": [] }));
        let digest = manifest["digest"].as_str().expect("a digest").to_owned();
        let registry = Arc::new(Self { blobs, digest, open, asked: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound").to_string();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&registry));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (address, registry)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nothing panics").clone()
    }
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/v2/" {
        return "{}".into_response();
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    registry.asked.lock().expect("nothing panics").push(format!("{} {name}", request.method()));
    let _ = registry.open.clone().wait_for(|open| *open).await;
    let digest = if name == "2" { &registry.digest } else { name };
    match registry.blobs.get(digest).cloned() {
        Some(blob) if path.contains("/manifests/") => {
            let kind = (header::CONTENT_TYPE, "application/vnd.oci.image.manifest.v1+json".to_owned());
            let digest = (header::HeaderName::from_static("docker-content-digest"), digest.to_owned());
            ([kind, digest], blob).into_response()
        }
        Some(blob) => blob.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

impl Life {
    async fn is_done(&self, cvm: &Cvm) -> Observed {
        self.settled(cvm).await;
        assert_eq!(self.cvm(cvm).status, Status::Running, "{:?}", self.operations(cvm));
        self.seen(cvm).await.expect("there")
    }

    /// Waits until the operation is as wanted.
    async fn until(&self, id: OperationId, wanted: impl Fn(&Operation) -> bool) -> Operation {
        let now = || self.app.store.operation(self.actor.workspace_id, id).expect("there");
        let look = async {
            while !wanted(&now()) {
                self.app.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(self.app.clock.within(PATIENCE, look).await.is_some(), "{:?}", now());
        now()
    }
}

fn of_image(image: &str) -> CvmPatch {
    CvmPatch { docker_compose_file: Sparse::Value(compose(image)), ..CvmPatch::default() }
}

#[test]
fn an_image_that_takes_long_to_come_is_waited_for_and_fetched_once() {
    let mut host = Host::new();
    host.stage = Duration::from_millis(50);
    host.live(Arc::new(worker::NoProbe), async |life| {
        let (open, is_open) = watch::channel(false);
        let (address, registry) = Registry::serve(is_open).await;
        let cvm = life.create().await;
        let before = life.is_done(&cvm).await;

        let image = format!("{address}/me/web:2");
        let id = life.update(&cvm, of_image(&image)).await.id;
        life.wake();
        let waits =
            life.until(id, |operation| operation.attempt >= 3 && operation.waiting_for.is_some()).await;
        let what = format!("node qemu-1, which pulls image `{image}`");
        assert_eq!(waits.waiting_for.as_deref(), Some(what.as_str()));
        assert!(waits.current_step().is_some_and(|step| step.heard_at > step.started_at), "{waits:?}");
        assert_eq!(registry.asked(), ["HEAD 2"], "whoever asks again joins");

        // Nobody who comes after waits for it.
        power::cancel(&life.app, id, life.actor.author("req_test")).await.expect("accepted");
        life.wake();
        life.settled(&cvm).await;
        power::restart(&life.app, life.cvm(&cvm), false, life.actor.author("req_test"))
            .await
            .expect("accepted");
        life.wake();
        let seen = life.is_done(&cvm).await;
        assert_eq!((seen.revision, seen.boot_count), (before.revision, before.boot_count + 1));
        assert_eq!(registry.asked(), ["HEAD 2"]);

        let id = life.update(&cvm, of_image(&image)).await.id;
        life.wake();
        life.until(id, |operation| operation.waiting_for.as_ref() == Some(&what)).await;
        open.send(true).expect("somebody listens");
        let seen = life.is_done(&cvm).await;
        assert_eq!(seen.images, [ImageRef { reference: image, digest: registry.digest.clone() }]);
        let gets = registry.asked().into_iter().filter(|one| one.starts_with("GET")).count();
        assert_eq!(gets, 2, "manifest and configuration, once each: {:?}", registry.asked());
    });
}

#[test]
fn an_update_that_leaves_the_compose_file_as_it_is_leaves_its_images() {
    let host = Host::new();
    host.live(Arc::new(worker::NoProbe), async |life| {
        let cvm = life.create().await;
        let before = life.is_done(&cvm).await;

        // From now on, `web:1` is what `web:2` was.
        let index = host.folder.path().join("layout/index.json");
        let text = std::fs::read_to_string(&index).expect("reads");
        let mut moved: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let two = moved["manifests"].as_array_mut().expect("a list").remove(1);
        moved["manifests"] = json!([two]);
        std::fs::write(&index, moved.to_string()).expect("written");
        let name = "web:1".parse().expect("a name");
        life.qemu.images().import(&host.folder.path().join("layout"), Some(&name)).expect("imported");
        let now = two["digest"].as_str().expect("a digest");
        assert_ne!(before.images[0].digest, now);

        life.update(&cvm, CvmPatch { memory: Sparse::Value(640), ..CvmPatch::default() }).await;
        life.wake();
        let after = life.is_done(&cvm).await;
        assert_eq!((after.size.memory_mb, &after.images), (640, &before.images));

        // Another text looks again.
        let text = format!("{}# changed\n", compose("web:1"));
        life.update(&cvm, CvmPatch { docker_compose_file: Sparse::Value(text), ..CvmPatch::default() }).await;
        life.wake();
        assert_eq!(life.is_done(&cvm).await.images[0].digest, now);
    });
}
