//! The real program: as people use it, and under load, killed, stopped, overrun, and robbed of its power.

mod audit;
mod cli;
mod client;
mod cloud;
mod kill_9;
mod kill_9_approvals;
mod load;
mod power_loss;
mod real;
mod sweep_patches;
mod sweep_stops;

/// How many times more than usual: `CASEMATE_TEST_SCALE`, 1 if it is not set.
#[expect(clippy::disallowed_methods, reason = "tests read their own settings")]
fn scale() -> u64 {
    std::env::var("CASEMATE_TEST_SCALE").ok().and_then(|scale| scale.parse().ok()).unwrap_or(1)
}
