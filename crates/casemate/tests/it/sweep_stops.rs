//! The server is asked to end, again and again, in the middle of its work.

use std::collections::HashSet;
use std::time::Duration;

use casemate_server::driver::sim::Called;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::audit::Books;
use crate::client::{Api, Outcome};
use crate::cloud::{Cloud, Setup};
use crate::load::Load;
use crate::scale;

/// The longest that it may take to end.
const ENDED: Duration = Duration::from_secs(5);

/// A request has a whole answer or no effect, and no operation begins again from its first step.
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_breaks_nothing_off() {
    let seed = 30;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cloud = Cloud::start(Setup { boot_ms: 30, stop_ms: 20, ..Setup::seeded(seed) }).await;
    let load = Load::start(&cloud, seed, 64, 24);
    let mut progress = Progress::default();
    let mut slowest = Duration::ZERO;
    let stops = 20 * scale();
    for _ in 0..stops {
        load.accepted(rng.random_range(20..60)).await;
        let (status, took) = cloud.terminate().await;
        assert!(status.success(), "{status}; {}", cloud.complaints());
        assert!(took <= ENDED, "it took {took:?} to end");
        slowest = slowest.max(took);
        progress.follow(cloud.node.calls().await.expect("the node answers"));
        cloud.boot().await;
    }
    let mut told = load.told().await;
    Api::new(&cloud).rest().await;
    progress.follow(cloud.node.calls().await.expect("the node answers"));
    let (status, _) = cloud.terminate().await;
    assert!(status.success(), "{status}");
    let mut unanswered = 0;
    for entry in &mut told.log {
        // Nothing was killed here: what was not answered was not done, and what was sent again was done then.
        if matches!(entry.outcome, Outcome::Unknown(_)) {
            unanswered += 1;
            entry.outcome = Outcome::NotSent;
        }
        entry.repeated = false;
    }
    println!("slowest stop {slowest:?}; {unanswered} requests were not answered");
    // Only a client that was silent for a while can find its connection closed in the moment when it speaks again.
    assert!(unanswered <= stops, "{unanswered} requests were not answered in {stops} stops");
    let mut findings = Books::read(&cloud.data(), &cloud.node).await.audit(&told);
    findings.0.extend(progress.wrong);
    findings.assert_none();
}

/// Watches the calls that reach the node.
#[derive(Default)]
struct Progress {
    until: Option<Timestamp>,
    beyond_stage: HashSet<String>,
    wrong: Vec<String>,
}

impl Progress {
    fn follow(&mut self, calls: Vec<Called>) {
        let until = self.until;
        for called in calls.iter().filter(|called| until.is_none_or(|until| called.at > until)) {
            let Some(at) = called.target.filter(|_| called.outcome.is_ok()) else { continue };
            let operation = format!("operation {} of {}", at.generation, at.vm);
            if called.call != "ensure_staged" {
                self.beyond_stage.insert(operation);
            } else if self.beyond_stage.contains(&operation) {
                self.wrong.push(format!("{operation} began again"));
            }
        }
        self.until = calls.last().map(|called| called.at).or(self.until);
    }
}
