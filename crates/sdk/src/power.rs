//! Switching CVMs on and off, and removing them.

use casemate_types::patch::Restart;
use reqwest::Method;

use crate::cvm::Cvm;
use crate::error::Result;
use crate::operation::{Operation, Target};

/// Switches a CVM on or off: [`Cvm::start`], [`Cvm::stop`], [`Cvm::shutdown`], [`Cvm::restart`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let web = client.cvm("web-1");
/// web.stop().send().await?.wait().await?;
/// web.start().send().await?.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Power {
    cvm: Cvm,
    verb: &'static str,
    target: Target,
    restart: Option<Restart>,
    idempotency_key: Option<String>,
}

impl Power {
    fn new(cvm: Cvm, verb: &'static str, target: Target) -> Self {
        Self { cvm, verb, target, restart: None, idempotency_key: None }
    }

    pub(crate) fn start(cvm: Cvm) -> Self {
        Self::new(cvm, "start", Target::Running)
    }

    pub(crate) fn stop(cvm: Cvm) -> Self {
        Self::new(cvm, "stop", Target::Stopped)
    }

    pub(crate) fn shutdown(cvm: Cvm) -> Self {
        Self::new(cvm, "shutdown", Target::Stopped)
    }

    pub(crate) fn restart(cvm: Cvm) -> Self {
        Self { restart: Some(Restart::default()), ..Self::new(cvm, "restart", Target::Running) }
    }

    /// Switches off without asking the guest. Only a restart has this choice; `stop` always and `shutdown` never does so.
    pub fn force(mut self) -> Self {
        if let Some(restart) = &mut self.restart {
            restart.force = true;
        }
        self
    }

    /// Names this request, so that it is carried out once however often it is sent; it is then also repeated when no answer
    /// came. Needs Casemate. [`idempotency_key`](crate::idempotency_key) makes one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Busy`](crate::Error::Busy), except for `stop`, and what every request can fail with.
    pub async fn send(self) -> Result<Operation> {
        let call = self.cvm.call(Method::POST, [self.verb]).idempotency_key(self.idempotency_key.as_deref());
        let call = match &self.restart {
            Some(restart) => call.json(restart),
            None => call,
        };
        let answer = call.answer().await?;
        Ok(Operation::of(&answer, self.cvm, self.target))
    }
}

/// Removes a CVM for good: [`Cvm::delete`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// client.cvm("web-1").delete().send().await?.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Delete {
    cvm: Cvm,
    idempotency_key: Option<String>,
}

impl Delete {
    pub(crate) fn new(cvm: Cvm) -> Self {
        Self { cvm, idempotency_key: None }
    }

    /// Names this request, so that it is carried out once however often it is sent; it is then also repeated when no answer
    /// came. Needs Casemate. [`idempotency_key`](crate::idempotency_key) makes one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), and what every request can fail with.
    pub async fn send(self) -> Result<Operation> {
        let call = self.cvm.call(Method::DELETE, []).idempotency_key(self.idempotency_key.as_deref());
        let answer = call.answer().await?;
        Ok(Operation::of(&answer, self.cvm, Target::Gone))
    }
}
