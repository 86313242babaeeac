//! The kinds of failure. A kind exists because someone acts differently on it; nothing here knows HTTP.

use casemate_types::error::FieldError;
use casemate_types::ids::OperationId;

/// The cause of a failure, for the log. Clients never see it.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Outcome of what the server does.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not exist, or the caller may not know that it does.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for.
        what: Resource,
    },
    /// One or more fields of the request are wrong.
    #[error("{} of the request is not valid", fields(.0))]
    Invalid(Vec<FieldError>),
    /// The request is well-formed and cannot be done as it is.
    #[error("{message}")]
    Rejected {
        /// A code of `casemate_types::error::codes`, if there is one for it.
        code: Option<&'static str>,
        /// The field that is at fault, if it is one.
        field: Option<String>,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The node has too little left of something.
    #[error("{0}")]
    NoRoom(NoRoom),
    /// It clashes with the present state. Without a code: the same request may work later.
    #[error("{message}")]
    Conflict {
        /// A code, if repeating the request is pointless.
        code: Option<&'static str>,
        /// What it clashes with.
        message: String,
    },
    /// No credentials, or none that hold.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The key lacks a scope.
    #[error("the API key has no scope `{scope}`")]
    Forbidden {
        /// The scope that it would need.
        scope: &'static str,
    },
    /// `If-Match` names a state that has passed.
    #[error("the CVM has changed since {expected}")]
    Changed {
        /// The tag that the caller sent.
        expected: String,
    },
    /// The approval was committed before.
    #[error("{what} was committed already; operation {by} carries it out")]
    Committed {
        /// The approval, or the token that belongs to it.
        what: &'static str,
        /// The operation that it started.
        by: OperationId,
    },
    /// The proof that came with a confirmation does not hold.
    #[error("{message}")]
    Proof {
        /// Which check failed.
        check: ProofCheck,
        /// What is wrong.
        message: String,
    },
    /// Events before `oldest` are no longer kept.
    #[error("events before {oldest} are gone")]
    Gone {
        /// The first number that is still there.
        oldest: i64,
    },
    /// Too much at once.
    #[error("{0}")]
    Busy(String),
    /// Something that this needs does not answer; trying later may help.
    #[error("{service} is not available")]
    Unavailable {
        /// What does not answer.
        service: &'static str,
        /// Why.
        source: Source,
    },
    /// The settings lack something that this needs; the message names it.
    #[error("{0}")]
    NotConfigured(String),
    /// A bug, or damage.
    #[error("internal error while trying to {doing}")]
    Internal {
        /// What was going on.
        doing: &'static str,
        /// Why it failed.
        source: Source,
    },
}

/// What can be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A machine.
    Cvm,
    /// An app.
    App,
    /// A piece of work.
    Operation,
    /// A numbered spec.
    Revision,
    /// A host.
    Node,
    /// A key service.
    Kms,
    /// An API key.
    Key,
    /// Something that waits for a yes.
    Approval,
    /// A container of a machine.
    Container,
    /// A machine on its node.
    Machine,
    /// A tenant.
    Workspace,
    /// A family of named sizes.
    Family,
    /// A chain.
    Chain,
    /// A path that nothing answers on.
    Route,
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cvm => "CVM",
            Self::App => "app",
            Self::Operation => "operation",
            Self::Revision => "revision",
            Self::Node => "node",
            Self::Kms => "KMS",
            Self::Key => "API key",
            Self::Approval => "approval",
            Self::Container => "container",
            Self::Machine => "machine on the node",
            Self::Workspace => "workspace",
            Self::Family => "family of instance types",
            Self::Chain => "chain",
            Self::Route => "route",
        })
    }
}

/// Something that a node has only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Virtual CPUs.
    Vcpu,
    /// Memory, in MB.
    Memory,
    /// Disk, in GB.
    Disk,
    /// Graphics cards.
    Gpus,
}

/// What was asked of a node, and what it has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Of what there is too little.
    pub room: Room,
    /// As much as the CVM would have in all.
    pub asked: u32,
    /// As much as it could have.
    pub left: u32,
    /// Name of the node, where one was asked for or found.
    pub node: Option<String>,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { room, asked, left, node } = self;
        let what = match room {
            Room::Vcpu => "vCPUs",
            Room::Memory => "MB of memory",
            Room::Disk => "GB of disk",
            Room::Gpus => "GPUs",
        };
        match node {
            Some(node) => write!(f, "{asked} {what} asked for, node {node} has {left} left"),
            None => write!(f, "{asked} {what} asked for, the node has {left}"),
        }
    }
}

/// Which question about an approval got a "no".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofCheck {
    /// No open approval for this hash.
    Hash,
    /// The transaction does not register the hash.
    Transaction,
    /// The contract does not allow the hash or the device.
    Contract,
}

impl Error {
    /// One wrong field: `message` says what would be right.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError::body(field, "value_error", message)])
    }

    /// A well-formed request that cannot be done.
    pub fn rejected(code: &'static str, field: &str, message: impl Into<String>) -> Self {
        Self::Rejected { code: Some(code), field: Some(field.to_owned()), message: message.into() }
    }

    /// Wraps what should not have happened.
    pub fn internal(doing: &'static str) -> impl FnOnce(Source) -> Self {
        move |source| Self::Internal { doing, source }
    }

    /// What it says, and what each of its causes says: for the log.
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }

    /// May the same request work later, with nothing else changed?
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Conflict { code, .. } => code.is_none(),
            Self::Busy(_) | Self::Unavailable { .. } | Self::NotConfigured(_) => true,
            Self::NotFound { .. }
            | Self::Invalid(_)
            | Self::NoRoom(_)
            | Self::Rejected { .. }
            | Self::Unauthenticated(_)
            | Self::Forbidden { .. }
            | Self::Changed { .. }
            | Self::Committed { .. }
            | Self::Proof { .. }
            | Self::Gone { .. }
            | Self::Internal { .. } => false,
        }
    }
}

fn fields(issues: &[FieldError]) -> String {
    issues.iter().map(FieldError::field).collect::<Vec<_>>().join(", ")
}
