//! Removes what is no longer kept, every hour, a little at a time.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::App;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(3600);

/// Sweeps until `stop` is cancelled.
pub async fn run(app: App, stop: CancellationToken) {
    while stop.run_until_cancelled(app.clock.sleep(EVERY)).await.is_some() {
        once(&app).await;
    }
}

/// Removes everything that is no longer kept.
pub async fn once(app: &App) {
    loop {
        match app.store.sweep(app.config.keep, app.clock.now()).await {
            Ok(0) => return,
            Ok(rows) => tracing::debug!(rows, "swept"),
            Err(error) => return tracing::warn!(%error, "what is no longer kept cannot be removed"),
        }
    }
}
