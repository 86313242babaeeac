//! Removes what is no longer kept, soon after the start and every hour, a little at a time.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::App;

/// When it first looks: a server that is started every day has to come to it, but not while it has better things to do.
const FIRST: Duration = Duration::from_secs(60);

/// How often it looks then.
const EVERY: Duration = Duration::from_secs(3600);

/// Sweeps until `stop` is cancelled.
pub async fn run(app: App, stop: CancellationToken) {
    let mut rest = FIRST;
    while stop.run_until_cancelled(app.clock.sleep(rest)).await.is_some() {
        once(&app).await;
        rest = EVERY;
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
