//! What waits for a yes on chain, and deciding about it.

use std::fmt::{self, Display};

use casemate_types::patch::{ApprovalCommit, AutoCommit, TxProof};
use casemate_types::wire;
use reqwest::Method;

use crate::call::{Call, Parsed, parsed, problem_of, segment};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::list::{ByCursor, Cursor};
use crate::operation::Operation;

const APPROVALS: &str = "approvals";

/// One approval, by its id: [`Client::approval`].
///
/// ```no_run
/// # async fn example() -> casemate_sdk::Result<()> {
/// // Whoever has the token of a commit link needs no account.
/// let anyone = casemate_sdk::Client::anonymous("https://cloud.example.org/api/v1")?;
/// let approval = anyone.approval("0198c1d2-0000-7000-8000-000000000000").token("ct_…");
/// for call in approval.get().await?.calls {
///     println!("{}({}) on {}: {}", call.function, call.argument, call.to, call.data);
/// }
/// approval.commit("already-registered").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Approval {
    client: Client,
    id: Parsed<String>,
    token: Option<String>,
}

impl Client {
    /// What waits for a yes on chain, and what became of what waited, newest first. Needs Casemate.
    pub fn approvals(&self) -> ByCursor<wire::ApprovalPage> {
        ByCursor::new(self.call(Method::GET, [APPROVALS]).only_casemate(APPROVALS))
    }

    /// One approval. Needs Casemate.
    pub fn approval(&self, id: impl Display) -> Approval {
        Approval { client: self.clone(), id: segment("approval_id", id), token: None }
    }
}

impl ByCursor<wire::ApprovalPage> {
    /// Only those of this CVM.
    pub fn cvm(self, id: impl Display) -> Self {
        self.query("cvm", id)
    }

    /// Only those in this state; called more than once, in any of these.
    pub fn state(self, state: impl Into<wire::ApprovalState>) -> Self {
        self.query("state", state.into())
    }
}

impl Cursor for wire::ApprovalPage {
    type Item = wire::Approval;

    fn split(self) -> (Vec<wire::Approval>, Option<String>) {
        (self.items, self.next_cursor)
    }
}

impl Approval {
    /// The commit token, which is permission enough to see it and to commit it. A secret.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    fn call(&self, method: Method, action: Option<&str>) -> Call {
        let id = self.id.as_deref().unwrap_or_default();
        let call = match action {
            Some(action) => self.client.call(method, [APPROVALS, id, action]),
            None => self.client.call(method, [APPROVALS, id]),
        };
        let call = call.problems(problem_of(&self.id)).only_casemate(APPROVALS);
        match &self.token {
            Some(token) => call.bearer(token),
            None => call,
        }
    }

    /// What would change, what has to be allowed, the calls that do it, and what the contract says now.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] for a token that is none (any more), [`Error::Unsupported`], and what every
    /// request can fail with.
    pub async fn get(&self) -> Result<wire::ApprovalDetail> {
        self.call(Method::GET, None).fetch().await
    }

    /// Carries out what waits, once the contract allows it. `tx` is the transaction that registered the hash, or
    /// `already-registered`.
    ///
    /// # Errors
    /// [`Error::NotProven`] if the server does not see the registration (yet), [`Error::Busy`] (it stays open),
    /// [`Error::Invalid`] if it is not open any more, and what every request can fail with.
    pub async fn commit(&self, tx: impl Display) -> Result<Operation> {
        let transaction_hash = parsed::<TxProof>("transaction_hash", tx);
        let transaction_hash = transaction_hash.map_err(|problem| Error::invalid(vec![*problem]))?;
        let call = self.call(Method::POST, Some("commit")).json(&ApprovalCommit { transaction_hash });
        Ok(Operation::told(self.client.clone(), &call.answer().await?))
    }

    /// Calls it off. Nothing is asked of the contract; what it allows stays allowed.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is not open any more, and what every request can fail with.
    pub async fn cancel(&self) -> Result<wire::Approval> {
        self.call(Method::POST, Some("cancel")).fetch().await
    }

    /// Lets the server look at the contract itself and commit once hash and device are allowed, in the name of this API key;
    /// or no longer.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is not open any more, and what every request can fail with.
    pub async fn auto_commit(&self, enabled: bool) -> Result<wire::Approval> {
        self.call(Method::POST, Some("auto-commit")).json(&AutoCommit { enabled }).fetch().await
    }
}

impl fmt::Debug for Approval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Approval")
            .field("id", &self.id)
            .field("has_token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}
