//! `casemate cvms watch`.

use casemate_sdk::WatchEvent;
use casemate_sdk::wire::CvmState;
use clap::Args;
use futures_util::StreamExt;

use crate::context::Context;
use crate::error::{AboutExt, Failure, Result};

/// Watch a CVM until it has a status
///
/// Prints a line whenever something changes. With --json, each line is a state as the API gives it.
#[derive(Args)]
pub(crate) struct Watch {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    /// The status to wait for
    #[arg(long, value_name = "STATUS", default_value = "running")]
    until: String,
    /// Give up after so long, 10 to 600
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u32,
}

impl Watch {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let watch = cx.client()?.cvm(&self.cvm).watch(self.until.as_str());
        let mut events = watch.timeout_secs(self.timeout).max_attempts(1).stream();
        let mut last = None;
        while let Some(event) = events.next().await {
            match event.about_cvm(&self.cvm)? {
                WatchEvent::State(state) if last.as_ref() == Some(&state) => {}
                WatchEvent::State(state) => {
                    cx.out.result(&*state, line)?;
                    last = Some(state);
                }
                WatchEvent::Timeout(_) => {
                    let text = format!("{} was not {} within {} s", self.cvm, self.until, self.timeout);
                    return Err(Failure::failed(text));
                }
                WatchEvent::Error(text) => cx.out.warning(&text),
                // The last state has said so.
                _ => {}
            }
        }
        Ok(())
    }
}

fn line(state: &CvmState) -> String {
    let notes = [&state.boot_progress, &state.shutdown_progress, &state.boot_error];
    let notes = notes.into_iter().flatten().filter(|note| !note.is_empty());
    std::iter::once(state.status.to_string()).chain(notes.cloned()).collect::<Vec<_>>().join("  ")
}
