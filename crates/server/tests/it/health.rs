//! What tells whoever keeps the server running whether it can work.

use axum::http::StatusCode;
use casemate_testkit::World;

use crate::client::Client;

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_store_anything_is_alive_and_not_ready() {
    let world = World::start().await;
    let nobody = Client::of(&world).await.nobody();
    assert_eq!(nobody.root("/readyz").await.status, StatusCode::OK);
    let store = rusqlite::Connection::open(world.folder().join("casemate.db")).expect("the store");
    store.execute_batch("ALTER TABLE setting RENAME TO gone").expect("damaged");
    world.clock.sleep(std::time::Duration::from_secs(10)).await;
    let answer = nobody.root("/readyz").await;
    assert_eq!(
        (answer.status, answer.text()),
        (StatusCode::SERVICE_UNAVAILABLE, "the store cannot be written\n".to_owned())
    );
    assert_eq!(nobody.root("/healthz").await.status, StatusCode::OK);
    store.execute_batch("ALTER TABLE gone RENAME TO setting").expect("mended");
    assert_eq!(nobody.root("/readyz").await.status, StatusCode::OK);
}
