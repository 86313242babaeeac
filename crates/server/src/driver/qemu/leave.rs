//! Going down with the host: its machines are brought down, and still meant to be on.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future;

use super::process::Process;
use super::slot::Slot;
use super::{Host, calls};
use crate::driver::LastStop;

/// Nobody watches from now on. Each machine is asked to go down; what takes longer than `timeout` loses its power.
pub(super) async fn all(host: &Arc<Host>, timeout: Duration) {
    host.closed.cancel();
    future::join_all(host.all().iter().map(|slot| one(host, slot, timeout))).await;
}

async fn one(host: &Host, slot: &Slot, timeout: Duration) {
    let _turn = slot.turn.lock().await;
    let Some(process) = slot.process().filter(Process::is_alive) else { return };
    let mut asks = calls::Asks::default();
    let asked = async {
        // One that stands still hears nothing.
        while process.is_alive() && !process.is_stopped() {
            asks.ask(host, slot).await;
            calls::wait_for_end(host, slot, calls::LOOK).await;
        }
    };
    host.clock.within(timeout, asked).await;
    let how = if process.is_alive() { LastStop::Forced } else { LastStop::Graceful };
    if let Err(error) = calls::cut_power(host, slot).await {
        tracing::error!(%error, vm = %slot.vm, "a machine goes on running");
        return;
    }
    let now = host.clock.now();
    slot.happened(|held| {
        held.went_down(now);
        held.last_stop = Some(how);
        held.meant_on = true;
    });
}
