//! What every update route takes besides its fields.

use casemate_types::error::FieldError;
use casemate_types::patch::{CvmPatch, OnFailure, UpdateOptions};
use casemate_types::wire;

use crate::call::Call;
use crate::error::Result;

/// How an update is done.
#[derive(Debug, Clone, Default)]
pub(crate) struct How {
    pub(crate) on_failure: Option<OnFailure>,
    pub(crate) force_restart: bool,
    pub(crate) shutdown_timeout: Option<u32>,
    pub(crate) allow_force_stop: Option<bool>,
    pub(crate) if_match: Option<String>,
    pub(crate) idempotency_key: Option<String>,
}

impl How {
    /// The part that goes into the body.
    pub(crate) fn options(&self) -> UpdateOptions {
        UpdateOptions {
            on_failure: self.on_failure,
            force_restart: self.force_restart,
            shutdown_timeout: self.shutdown_timeout,
            allow_force_stop: self.allow_force_stop,
        }
    }

    /// Checks them, and says that the body has fields that only Casemate knows, if it has.
    pub(crate) fn in_body(&self, call: Call) -> Call {
        self.in_patch(call)
            .only_casemate_if(self.shutdown_timeout.is_some(), "shutdown_timeout on this route")
            .only_casemate_if(self.allow_force_stop.is_some(), "allow_force_stop on this route")
    }

    /// The same for the one route where every server knows how the machine is to be stopped.
    pub(crate) fn in_patch(&self, call: Call) -> Call {
        let limits = CvmPatch::MIN_SHUTDOWN_TIMEOUT..=CvmPatch::MAX_SHUTDOWN_TIMEOUT;
        let outside = self.shutdown_timeout.filter(|seconds| !limits.contains(seconds));
        let problem = outside.map(|seconds| {
            let text = format!("must be {} to {} seconds, not {seconds}", limits.start(), limits.end());
            FieldError::body("shutdown_timeout", "value_error", text)
        });
        call.problems(problem)
            .only_casemate_if(self.on_failure.is_some(), "on_failure")
            .only_casemate_if(self.force_restart, "force_restart")
    }

    /// The part that goes into headers.
    pub(crate) fn in_headers(&self, call: Call) -> Call {
        let call = call.idempotency_key(self.idempotency_key.as_deref());
        match &self.if_match {
            None => call,
            Some(tag) => {
                let tag = format!("\"{}\"", tag.trim_matches('"'));
                call.header("if-match", tag).only_casemate("If-Match")
            }
        }
    }
}

/// Asks what an update would do, instead of doing it. Made by `dry_run()` of an update. Needs Casemate.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let plan = client.cvm("web-1").patch().vcpu(4).dry_run().send().await?;
/// for change in plan.diff {
///     println!("{}: {} -> {}", change.field, change.from, change.to);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct DryRun(pub(crate) Call);

impl DryRun {
    pub(crate) fn new(call: Call) -> Self {
        Self(call.query("dry_run", true).only_casemate("a dry run").read_only())
    }

    /// What would be done.
    ///
    /// # Errors
    /// Those of the update, and [`Error::Unsupported`](crate::Error::Unsupported).
    pub async fn send(self) -> Result<wire::Plan> {
        let answer: wire::DryRun = self.0.fetch().await?;
        Ok(answer.plan)
    }
}

/// The methods of an update builder with a field `how` and a method `call(&self) -> Call`.
macro_rules! update_options {
    () => {
        update_options!(@body);
        update_options!(@headers);
    };
    (@body) => {
        /// What happens if the update fails; by default the old configuration is put back. Needs Casemate.
        pub fn on_failure(mut self, on_failure: casemate_types::patch::OnFailure) -> Self {
            self.how.on_failure = Some(on_failure);
            self
        }

        /// Restarts the machine even if nothing changes. Needs Casemate.
        pub fn force_restart(mut self) -> Self {
            self.how.force_restart = true;
            self
        }

        /// How long the guest may take to shut down, in seconds: 10 to 1200. 60 by default. Outside
        /// [`Cvm::patch`](crate::Cvm::patch), needs Casemate.
        #[doc(alias = "shutdown_timeout")]
        pub fn shutdown_timeout_secs(mut self, seconds: u32) -> Self {
            self.how.shutdown_timeout = Some(seconds);
            self
        }

        /// Whether the machine is switched off when that time is over; by default the update then fails, with nothing
        /// applied. Outside [`Cvm::patch`](crate::Cvm::patch), needs Casemate.
        pub fn allow_force_stop(mut self, allow: bool) -> Self {
            self.how.allow_force_stop = Some(allow);
            self
        }
    };
    (@headers) => {
        /// Only if the CVM is still in the state with this tag, else [`Error::Changed`](crate::Error::Changed). Needs
        /// Casemate.
        pub fn if_match(mut self, etag: impl Into<String>) -> Self {
            self.how.if_match = Some(etag.into());
            self
        }

        /// Names this request, so that it is carried out once however often it is sent; it is then also repeated when no
        /// answer came. Needs Casemate. [`idempotency_key`](crate::idempotency_key) makes one.
        pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
            self.how.idempotency_key = Some(key.into());
            self
        }

        /// Asks what this would do, instead of doing it. Needs Casemate.
        pub fn dry_run(self) -> crate::DryRun {
            crate::DryRun::new(self.call())
        }
    };
}

pub(crate) use update_options;
