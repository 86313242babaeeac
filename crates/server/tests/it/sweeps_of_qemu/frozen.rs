//! A machine whose process is stopped by a signal: people hear of it, nothing waits for it, and it is well again when it goes on.

use casemate_server::workflow::operation::{FailCode, State};

use super::*;

impl Life {
    /// Compares node and store until the CVM has this status.
    async fn becomes(&self, cvm: &Cvm, status: Status) -> Cvm {
        let look = async {
            loop {
                let now = self.cvm(cvm);
                if now.status == status && now.open.is_none() {
                    return now;
                }
                reconcile::once(&self.app).await;
                self.settled(cvm).await;
                self.app.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        match self.app.clock.within(PATIENCE, look).await {
            Some(now) => now,
            None => panic!("it never becomes {status}: {:?}, {:?}", self.cvm(cvm), self.seen(cvm).await),
        }
    }

    /// How the newest operation failed.
    fn failure(&self, cvm: &Cvm) -> (FailCode, String) {
        let newest = OperationFilter { cvm_id: Some(cvm.id), limit: 1, ..OperationFilter::default() };
        let newest = self.app.store.operations(self.actor.workspace_id, &newest).expect("reads").remove(0);
        match newest.state {
            State::Failed { reason, .. } => (reason.code, reason.message),
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn tells_and_recovers(host: &Host) {
    host.live(Arc::new(worker::NoProbe), async |life| {
        let cvm = life.create().await;
        let cvm = life.becomes(&cvm, Status::Running).await;
        let before = life.seen(&cvm).await.expect("there");

        // Somebody stops it, and then it is let go on.
        send(host.folder.path(), Signal::STOP);
        let still = life.becomes(&cvm, Status::Error).await;
        let why = still.boot_error.expect("a reason");
        assert!(why.starts_with("its process on the node is stopped by a signal since 20"), "{why}");
        // An update may not cut its power, so nothing comes of it: at once, and with nothing changed.
        let patch_of = |round, allow_force_stop| CvmPatch {
            allow_force_stop: Sparse::Value(allow_force_stop),
            ..patch(round, New::Good)
        };
        life.update(&cvm, patch_of(1, false)).await;
        life.wake();
        life.settled(&cvm).await;
        let (code, why) = life.failure(&cvm);
        assert_eq!(code, FailCode::StandsStill);
        assert!(why.contains("stopped by a signal since 20") && why.contains("allow_force_stop"), "{why}");
        let now = life.cvm(&cvm);
        assert_eq!((now.status, now.revision, now.booked), (Status::Error, cvm.revision, cvm.booked));
        send(host.folder.path(), Signal::CONT);
        assert_eq!(life.becomes(&cvm, Status::Running).await.boot_error, None);
        let after = life.seen(&cvm).await.expect("there");
        assert_eq!((&after.guest, after.boot_count), (&Guest::Done, before.boot_count), "it went on");

        // One that may does.
        send(host.folder.path(), Signal::STOP);
        life.becomes(&cvm, Status::Error).await;
        life.update(&cvm, patch_of(2, true)).await;
        life.wake();
        life.settled(&cvm).await;
        let after = life.seen(&cvm).await.expect("there");
        assert_eq!((life.cvm(&cvm).status, after.boot_count), (Status::Running, before.boot_count + 1));
        assert_eq!(after.revision, life.cvm(&cvm).revision);

        // A stop and a removal cut its power in any case.
        send(host.folder.path(), Signal::STOP);
        power::stop(&life.app, life.cvm(&cvm), life.actor.author("req_test")).await.expect("accepted");
        life.wake();
        life.becomes(&cvm, Status::Stopped).await;
        assert_eq!(host.processes().len(), 0);
        power::start(&life.app, life.cvm(&cvm), life.actor.author("req_test")).await.expect("accepted");
        life.wake();
        life.becomes(&cvm, Status::Running).await;
        send(host.folder.path(), Signal::STOP);
        power::delete(&life.app, life.cvm(&cvm), life.actor.author("req_test")).await.expect("accepted");
        life.wake();
        life.settled(&cvm).await;
        assert_eq!((host.processes().len(), host.folders()), (0, vec![]));
    });
}

#[test]
fn a_machine_that_stands_still_is_told_of_and_well_again_when_it_goes_on() {
    tells_and_recovers(&Host::new());
}
