//! One watcher for each machine that is on: asks the guest how far it is, gives it what it waits for, and sees it end.

use std::sync::Arc;
use std::time::Duration;

use casemate_types::guest::{Ask, Phase, Reply, Report};
use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use zeroize::Zeroizing;

use super::config::Pace;
use super::process::Process;
use super::slot::Slot;
use super::{Host, accel, boot, command, console, qmp};

/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Watches this boot of the machine from now on.
pub(super) fn begin(
    host: &Arc<Host>,
    slot: &Arc<Slot>,
    boot: u64,
    process: Process,
    permit: Option<OwnedSemaphorePermit>,
) {
    let (watching, slot) = (Arc::clone(host), Arc::clone(slot));
    host.spawn(async move {
        tokio::select! {
            () = process.ended() => {}
            () = attend(&watching, &slot, boot, permit) => {}
        }
        slot.settle(watching.clock.now());
        after_the_end(&watching, &slot, boot).await;
    });
}

/// Asks the guest again and again.
async fn attend(host: &Host, slot: &Slot, boot: u64, mut permit: Option<OwnedSemaphorePermit>) {
    let Pace { booting, up, silent, boot_turn, .. } = host.config.pace;
    let begun = host.clock.now();
    let since = |at: Timestamp| host.clock.now().duration_since(at).unsigned_abs();
    let mut heard = begun;
    loop {
        let settled = match slot.agent.ask(&host.clock, Ask::Status, ANSWER).await {
            Ok(Reply::Status(report)) if report.boot == boot => {
                heard = host.clock.now();
                slot.lock().halted = None;
                take_in(host, slot, *report).await
            }
            Ok(_) => false,
            Err(error) => {
                tracing::trace!(%error, vm = %slot.vm, "a guest does not answer");
                slot.settle(host.clock.now());
                if let Ok(halted) = go_on(host, slot).await {
                    slot.lock().halted = halted;
                }
                if since(heard) > silent {
                    // What was asked may have got lost.
                    slot.agent.hang_up().await;
                    heard = host.clock.now();
                }
                false
            }
        };
        if settled || since(begun) > boot_turn {
            permit = None;
        }
        for file in [command::SERIAL, super::process::ERRORS, super::process::OUTPUT] {
            if let Err(error) = console::bound(&slot.folder, file) {
                tracing::debug!(%error, vm = %slot.vm, file, "a log cannot be shortened");
            }
        }
        host.clock.sleep(if settled && permit.is_none() { up } else { booting }).await;
    }
}

/// A machine that could not write to its disk stands still until somebody lets it go on: perhaps there is room now. Why it stands
/// still, if the hypervisor says.
async fn go_on(host: &Host, slot: &Slot) -> std::io::Result<Option<&'static str>> {
    let status = qmp::execute(&host.clock, &slot.folder, "query-status").await?;
    if status.get("status").and_then(serde_json::Value::as_str) != Some("io-error") {
        return Ok(None);
    }
    qmp::execute(&host.clock, &slot.folder, "cont").await?;
    tracing::warn!(vm = %slot.vm, "a machine stands still, since its disk cannot be written");
    Ok(Some("it stands still: its host has no room for what it writes"))
}

/// Takes in what the guest reports. True if it is up, or does not come up.
async fn take_in(host: &Host, slot: &Slot, report: Report) -> bool {
    let now = host.clock.now();
    let settled = match &report.phase {
        Phase::Done => {
            let keys = report.env_keys.clone();
            slot.happened(|held| {
                held.came_up(now);
                held.env_keys = keys;
            });
            true
        }
        Phase::WaitsForKeys => {
            give_keys(host, slot).await;
            false
        }
        Phase::Failed(_) => true,
        Phase::Booting(_) | Phase::Stopping => false,
    };
    slot.lock().seen = Some((report, now));
    settled
}

/// Gives the guest the secret that opens its environment.
async fn give_keys(host: &Host, slot: &Slot) {
    let Some(app) = slot.held().map(|held| held.now.machine.app_id) else { return };
    let Some(keys) = &host.keys else { return };
    let outcome = match keys.env_secret(&app) {
        Ok(secret) => {
            let env_secret = Zeroizing::new(hex::encode(secret.as_slice()));
            let given =
                slot.agent.ask(&host.clock, Ask::Keys { env_secret: env_secret.to_string() }, ANSWER).await;
            match given {
                Ok(Reply::Error(error)) => Err(error),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        }
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        tracing::warn!(error, vm = %slot.vm, "a guest did not take its keys");
    }
}

/// A machine that is off and should be on is turned on again: at once the first time, and then after longer and longer pauses,
/// until it stays up for a while. Whoever turns it off or on meanwhile is right.
pub(super) async fn after_the_end(host: &Arc<Host>, slot: &Arc<Slot>, mut boot: u64) {
    let Pace { back_off, back_off_max, steady, .. } = host.config.pace;
    let mut tried = None;
    loop {
        let went_down_by_itself =
            |held: &super::record::Held| held.meant_on && held.on.is_none() && held.boot_count == boot;
        let Some(held) = slot.held().filter(went_down_by_itself) else { return };
        let stayed_up = held.done_at.zip(held.stopped_at).is_some_and(|(up, down)| {
            let stayed = down.duration_since(up);
            !stayed.is_negative() && stayed.unsigned_abs() >= steady
        });
        let restarts = tried.unwrap_or(if stayed_up { 0 } else { held.restarts });
        let pause = back_off.saturating_mul(2_u32.saturating_pow(restarts)).min(back_off_max);
        let text = format!(
            "it went down by itself; it is started again in {pause:?}, for the {}. time",
            restarts.saturating_add(1)
        );
        tracing::warn!(vm = %slot.vm, boot, restarts, "a machine went down by itself");
        let _ = console::mark(&slot.folder, command::SERIAL, host.clock.now(), &text);
        host.clock.sleep(pause).await;
        let accelerator = accel::decide(host).await;
        let permit = boot::permit(host).await;
        let _turn = slot.turn.lock().await;
        if slot.held().filter(went_down_by_itself).is_none() {
            return;
        }
        slot.happened(|held| held.restarts = restarts.saturating_add(1));
        match boot::boot(host, slot, accelerator, permit).await {
            Ok(()) => return,
            // What is in the way may go away.
            Err(error) => {
                tracing::error!(%error, vm = %slot.vm, "a machine that went down by itself cannot be started again");
            }
        }
        tried = Some(restarts.saturating_add(1));
        boot = slot.held().map_or(boot, |held| held.boot_count);
    }
}
