//! What can go wrong, by what somebody can do about it.

use std::fmt;
use std::time::Duration;

use casemate_types::error::{ErrorBody, FieldError};
use casemate_types::wire::{self, Reason};
use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use crate::patch::Ask;

/// What the SDK's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a call failed. A variant exists because somebody acts differently on it.
///
/// ```
/// # use casemate_sdk::Error;
/// fn advice(error: &Error) -> &'static str {
///     match error {
///         Error::Unauthorized(_) => "check PHALA_CLOUD_API_KEY",
///         Error::Busy(_) => "an operation is at work: wait for it, or try again later",
///         Error::Invalid(_) => "correct the request",
///         Error::Unsupported { .. } => "this needs a Casemate server",
///         _ if error.is_transient() => "try again later",
///         _ => "read the message",
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No API key, or one that is not valid (any more). Status 401.
    #[error("not signed in: {0}")]
    Unauthorized(Box<Failure>),
    /// The API key may not do this. Status 403.
    #[error("not allowed: {0}")]
    Forbidden(Box<Failure>),
    /// It does not exist, or the caller may not see it. Status 404.
    #[error("{0}")]
    NotFound(Box<Failure>),
    /// Something is at work that has to end first; the same request can succeed later. Status 409 without a code.
    #[error("{0}")]
    Busy(Box<Failure>),
    /// The request contradicts what is there; it will not succeed later by itself. Status 409 with a code.
    #[error("{0}")]
    Conflict(Box<Failure>),
    /// The CVM has moved past the state that `if_match` named: read it again. Status 412.
    #[error("{0}")]
    Changed(Box<Failure>),
    /// The request is wrong and has to be corrected. Status 400 or 422, or found before anything was sent.
    #[error("{0}")]
    Invalid(Box<Invalid>),
    /// A compose hash has to be registered on a chain first, and the caller expected that it need not. Status 465.
    #[error("compose hash {} has to be registered on the app's contract first", .0.compose_hash)]
    NeedsApproval(Box<Ask>),
    /// The proof of a registration does not hold, yet or at all. Status 466 (hash unknown or expired), 467 (transaction), 468
    /// (contract state). A failed proof uses nothing up: it can be sent again.
    #[error("{0}")]
    NotProven(Box<Failure>),
    /// Any other answer outside 2xx.
    #[error("the server answered {status}: {0}", status = .0.status)]
    Api(Box<Failure>),
    /// An operation was accepted and did not succeed.
    #[error("{}{put_back}", .reason.message)]
    UpdateFailed {
        /// Why. On a server other than Casemate the code is the CVM's status.
        reason: Reason,
        /// What became of the old configuration.
        put_back: PutBack,
        /// The operation at its end; `None` where the server has no operations.
        operation: Option<Box<wire::Operation>>,
    },
    /// An operation was ended by a stop, a deletion or a cancel.
    #[error("operation {} was cancelled", .0.correlation_id)]
    Cancelled(Box<wire::Operation>),
    /// A watched CVM was not seen in the status that was waited for.
    #[error("gave up watching after {attempts} attempts")]
    WatchEnded {
        /// Connections that were opened.
        attempts: u32,
    },
    /// No answer: the server is not reachable, or the connection broke or took too long.
    #[error("no answer from {url}")]
    Transport {
        /// What was asked, without its query.
        url: String,
        /// The cause.
        source: Source,
    },
    /// The answer is not what was expected.
    #[error("cannot read the answer of {url}")]
    Decode {
        /// What was asked, without its query.
        url: String,
        /// The cause.
        source: Source,
    },
    /// Something did not happen on a chain. Feature `chain`.
    #[cfg(feature = "chain")]
    #[error(transparent)]
    Chain(Box<crate::chain::Error>),
    /// Only a Casemate server can do this, and the one at the base URL is something else. Nothing was sent.
    #[error("{what} needs a Casemate server, and {base_url} is something else")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// The server.
        base_url: String,
    },
}

/// What became of the old configuration when an update failed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PutBack {
    /// Nothing had to be put back: the machine was not touched, or was to be left as it is.
    None,
    /// The old configuration runs again.
    Done(Box<wire::Operation>),
    /// The old configuration could not be started again: somebody has to look at the CVM.
    Failed(Box<wire::Operation>),
    /// It is not known, because the server does not tell.
    Unknown,
}

impl fmt::Display for PutBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None | Self::Unknown => Ok(()),
            Self::Done(_) => f.write_str("; the old configuration was put back"),
            Self::Failed(_) => f.write_str("; putting the old configuration back failed, too"),
        }
    }
}

/// An answer outside 2xx.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Failure {
    /// The HTTP status.
    pub status: u16,
    /// What the server says about it. A body of another form is kept as a sentence.
    pub body: ErrorBody,
    /// The id of the request, to be found in the server's log.
    pub request_id: Option<String>,
    /// When the server wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.body.message())
    }
}

/// A request that has to be corrected.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Invalid {
    /// What is wrong, field by field. Empty if the server only gave a sentence.
    pub fields: Vec<FieldError>,
    /// The server's answer; `None` if the request was not sent.
    pub failure: Option<Failure>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(failure) = &self.failure {
            return failure.fmt(f);
        }
        for (index, field) in self.fields.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            field.fmt(f)?;
        }
        Ok(())
    }
}

impl Error {
    /// The code of a structured error, one of [`codes`](casemate_types::error::codes).
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::UpdateFailed { reason, .. } => Some(&reason.code),
            _ => self.failure()?.body.code(),
        }
    }

    /// The fields that are wrong.
    pub fn fields(&self) -> &[FieldError] {
        match self {
            Self::Invalid(invalid) => &invalid.fields,
            _ => &[],
        }
    }

    /// The id of the request, to be found in the server's log.
    pub fn request_id(&self) -> Option<&str> {
        self.failure()?.request_id.as_deref()
    }

    /// The HTTP status of the answer, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::NeedsApproval(_) => Some(465),
            _ => self.failure().map(|failure| failure.status),
        }
    }

    /// What the server advises.
    pub fn suggestions(&self) -> &[String] {
        match self.failure().map(|failure| &failure.body) {
            Some(ErrorBody::Structured(body)) => &body.suggestions,
            _ => &[],
        }
    }

    /// The answer, if there was one outside 2xx.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Unauthorized(failure)
            | Self::Forbidden(failure)
            | Self::NotFound(failure)
            | Self::Busy(failure)
            | Self::Conflict(failure)
            | Self::Changed(failure)
            | Self::NotProven(failure)
            | Self::Api(failure) => Some(failure),
            Self::Invalid(invalid) => invalid.failure.as_ref(),
            Self::NeedsApproval(_)
            | Self::UpdateFailed { .. }
            | Self::Cancelled(_)
            | Self::WatchEnded { .. }
            | Self::Transport { .. }
            | Self::Decode { .. }
            | Self::Unsupported { .. } => None,
            #[cfg(feature = "chain")]
            Self::Chain(_) => None,
        }
    }

    /// The same request may succeed later without anybody doing something about it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy(_) | Self::Transport { .. } | Self::WatchEnded { .. } => true,
            Self::NotProven(failure) => failure.status == 467,
            Self::Api(failure) => matches!(failure.status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            Self::Unauthorized(_)
            | Self::Forbidden(_)
            | Self::NotFound(_)
            | Self::Conflict(_)
            | Self::Changed(_)
            | Self::Invalid(_)
            | Self::NeedsApproval(_)
            | Self::UpdateFailed { .. }
            | Self::Cancelled(_)
            | Self::Decode { .. }
            | Self::Unsupported { .. } => false,
            #[cfg(feature = "chain")]
            Self::Chain(error) => error.is_transient(),
        }
    }

    /// A request that is not sent because a field is wrong.
    pub(crate) fn invalid(fields: Vec<FieldError>) -> Self {
        Self::Invalid(Box::new(Invalid { fields, failure: None }))
    }

    /// Something that an answer shows to be absent.
    pub(crate) fn missing(what: impl Into<String>) -> Self {
        let status = StatusCode::NOT_FOUND.as_u16();
        let body = ErrorBody::plain(what);
        Self::NotFound(Box::new(Failure { status, body, request_id: None, retry_after: None }))
    }

    /// The kind of an answer outside 2xx.
    pub(crate) fn from_failure(failure: Failure) -> Self {
        let coded = failure.body.code().is_some();
        match failure.status {
            400 | 422 => {
                let fields = fields_of(&failure.body);
                Self::Invalid(Box::new(Invalid { fields, failure: Some(failure) }))
            }
            401 => Self::Unauthorized(Box::new(failure)),
            403 => Self::Forbidden(Box::new(failure)),
            404 => Self::NotFound(Box::new(failure)),
            409 if coded => Self::Conflict(Box::new(failure)),
            409 => Self::Busy(Box::new(failure)),
            412 => Self::Changed(Box::new(failure)),
            466..=468 => Self::NotProven(Box::new(failure)),
            _ => Self::Api(Box::new(failure)),
        }
    }
}

fn fields_of(body: &ErrorBody) -> Vec<FieldError> {
    match body {
        ErrorBody::Validation { detail } => detail.clone(),
        ErrorBody::Structured(body) => body
            .details
            .iter()
            .filter_map(|detail| {
                let message = detail.message.as_deref().unwrap_or(&body.message);
                Some(FieldError::body(detail.field.as_deref()?, "value_error", message))
            })
            .collect(),
        ErrorBody::Plain { .. } => Vec::new(),
    }
}

impl Failure {
    /// Reads an answer outside 2xx.
    pub(crate) fn read(status: StatusCode, headers: &HeaderMap, bytes: &[u8]) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let body =
            serde_json::from_slice(bytes).unwrap_or_else(|_| ErrorBody::plain(sentence(status, bytes)));
        let in_body = match &body {
            ErrorBody::Structured(body) => body.request_id.clone(),
            ErrorBody::Validation { .. } | ErrorBody::Plain { .. } => None,
        };
        Self {
            status: status.as_u16(),
            body,
            request_id: in_body.or_else(|| header("x-request-id").map(str::to_owned)),
            retry_after: header("retry-after")
                .and_then(|text| text.trim().parse().ok())
                .map(Duration::from_secs),
        }
    }
}

/// What to say about a body that is none of the known forms: its beginning if it is text for people, else the status.
fn sentence(status: StatusCode, bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
    let text = text.trim();
    if text.is_empty() || text.starts_with(['<', '{', '[']) { status.to_string() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_types::error::codes;

    fn failure(status: u16, body: &str) -> Error {
        let status = StatusCode::from_u16(status).unwrap();
        Error::from_failure(Failure::read(status, &HeaderMap::new(), body.as_bytes()))
    }

    #[test]
    fn a_conflict_with_a_code_is_final_and_one_without_is_not() {
        let busy = failure(409, r#"{"detail":"an update is running"}"#);
        assert!(matches!(busy, Error::Busy(_)) && busy.is_transient());
        let taken = failure(409, r#"{"error_code":"ERR-03-007","message":"taken","request_id":"req-1"}"#);
        assert!(matches!(taken, Error::Conflict(_)) && !taken.is_transient());
        assert_eq!(taken.code(), Some(codes::CVM_APP_ID_CONFLICT));
        assert_eq!(taken.request_id(), Some("req-1"));
    }

    #[test]
    fn fields_come_from_both_forms_of_an_invalid_request() {
        let list = failure(422, r#"{"detail":[{"loc":["body","vcpu"],"msg":"too few","type":"int"}]}"#);
        assert_eq!(list.fields()[0].field(), "vcpu");
        assert_eq!(list.to_string(), "vcpu: too few");
        let coded = failure(
            422,
            r#"{"error_code":"ERR-01-003","message":"bad","details":[{"field":"docker_compose_file","message":"line 2"}]}"#,
        );
        assert_eq!(coded.fields()[0].field(), "docker_compose_file");
        assert_eq!(coded.fields()[0].msg, "line 2");
    }

    #[test]
    fn a_body_of_an_unknown_form_is_kept_as_a_sentence() {
        assert_eq!(failure(502, "<html>").to_string(), "the server answered 502: 502 Bad Gateway");
        assert_eq!(failure(503, "busy, sorry").to_string(), "the server answered 503: busy, sorry");
    }
}
