//! A stage that takes long. It goes on by itself; whoever asks for the same again joins it, and hears what came of it even if it
//! ended while nobody asked.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use casemate_types::guest::ImageRef;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::clock::Clock;
use crate::driver::{At, Error, Machine, Result};

/// The newest stage of a machine that was begun and of which nobody has heard the end.
#[derive(Default)]
pub(super) struct Staging(Mutex<Option<Begun>>);

#[derive(Clone)]
struct Begun {
    at: At,
    machine: Arc<Machine>,
    progress: Progress,
    ended: Shared<BoxFuture<'static, Result<Vec<ImageRef>>>>,
}

/// What a stage does at present.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<Mutex<String>>);

impl Progress {
    /// Now it does this: "pulls image `web:1`".
    pub(super) fn is(&self, what: String) {
        *self.0.lock().expect("nothing panics while holding it") = what;
    }

    fn words(&self) -> String {
        let words = self.0.lock().expect("nothing panics while holding it").clone();
        if words.is_empty() { "prepares the machine".to_owned() } else { words }
    }
}

impl Staging {
    /// Joins the stage of this operation, or begins it. One of an older operation goes on without being waited for.
    ///
    /// # Errors
    /// What came of it; [`Error::AtWork`] if it takes longer than `patience`, and `Stale` if a newer operation has begun its own.
    pub(super) async fn join<F>(
        &self,
        clock: &Clock,
        patience: Duration,
        at: At,
        machine: &Machine,
        begin: impl FnOnce(Progress) -> F,
    ) -> Result<Vec<ImageRef>>
    where
        F: Future<Output = Result<Vec<ImageRef>>> + Send + 'static,
    {
        let begun = self.begun(at, machine, begin)?;
        let Some(outcome) = clock.within(patience, begun.ended.clone()).await else {
            return Err(Error::AtWork(begun.progress.words()));
        };
        let mut present = self.0.lock().expect("nothing panics while holding it");
        // Whoever repeats the call wants it to be looked at again.
        present.take_if(|present| present.ended.ptr_eq(&begun.ended));
        outcome
    }

    fn begun<F>(&self, at: At, machine: &Machine, begin: impl FnOnce(Progress) -> F) -> Result<Begun>
    where
        F: Future<Output = Result<Vec<ImageRef>>> + Send + 'static,
    {
        let mut present = self.0.lock().expect("nothing panics while holding it");
        match &*present {
            Some(newer) if newer.at.generation > at.generation => {
                return Err(Error::Stale { seen: newer.at.generation });
            }
            Some(same) if same.at == at && *same.machine == *machine => return Ok(same.clone()),
            Some(_) | None => {}
        }
        let progress = Progress::default();
        let task = tokio::spawn(begin(progress.clone()));
        let ended = task.map(|ended| {
            ended.unwrap_or_else(|error| Err(Error::Unreachable(format!("the stage did not end: {error}"))))
        });
        let begun = Begun { at, machine: Arc::new(machine.clone()), progress, ended: ended.boxed().shared() };
        Ok(present.insert(begun).clone())
    }
}
