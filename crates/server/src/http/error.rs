//! From a kind of failure to what the wire says about it.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use casemate_types::error::{ErrorBody, codes};

use crate::error::{Error, NoRoom, ProofCheck, Resource, Room};

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = status(&self);
        let failure = status.is_server_error().then(|| Failure(self.with_causes()));
        let retry = self.is_transient() && status != StatusCode::INTERNAL_SERVER_ERROR;
        let mut response = answer(status, &body(self));
        if retry {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        if let Some(failure) = failure {
            response.extensions_mut().insert(failure);
        }
        response
    }
}

/// Goes with an answer for which we are to blame, to be logged with the request: the error and all its causes.
#[derive(Clone, Debug)]
pub struct Failure(pub String);

/// A JSON answer.
pub fn answer<T: serde::Serialize + ?Sized>(status: StatusCode, body: &T) -> Response {
    let bytes = serde_json::to_vec(body).expect("wire types have string keys");
    (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}

fn status(error: &Error) -> StatusCode {
    let special = |code| StatusCode::from_u16(code).expect("three digits");
    match error {
        Error::NotFound { .. } => StatusCode::NOT_FOUND,
        Error::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Error::Rejected { code: Some(codes::INVALID_COMPOSE_FILE), .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Error::Rejected { .. } | Error::Committed { .. } => StatusCode::BAD_REQUEST,
        Error::Conflict { .. } | Error::NoRoom(_) => StatusCode::CONFLICT,
        Error::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
        Error::Forbidden { .. } => StatusCode::FORBIDDEN,
        Error::Changed { .. } => StatusCode::PRECONDITION_FAILED,
        Error::Proof { check: ProofCheck::Hash, .. } => special(466),
        Error::Proof { check: ProofCheck::Transaction, .. } => special(467),
        Error::Proof { check: ProofCheck::Contract, .. } => special(468),
        Error::Gone { .. } => StatusCode::GONE,
        Error::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
        Error::Unavailable { .. } | Error::NotConfigured(_) => StatusCode::SERVICE_UNAVAILABLE,
        Error::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn body(error: Error) -> ErrorBody {
    let message = sentence(&error.to_string());
    match error {
        Error::Invalid(issues) => ErrorBody::validation(issues),
        Error::NotFound { what: Resource::Cvm } => ErrorBody::structured(codes::CVM_NOT_FOUND, message),
        Error::NotFound { what: Resource::Node } => ErrorBody::structured(codes::NODE_NOT_FOUND, message),
        Error::NotFound { what: Resource::Kms } => ErrorBody::structured(codes::KMS_NOT_FOUND, message),
        Error::Rejected { code: Some(code), field: Some(field), message: detail } => {
            ErrorBody::structured(code, message).with_message(&field, detail)
        }
        Error::Rejected { code: Some(code), .. } | Error::Conflict { code: Some(code), .. } => {
            ErrorBody::structured(code, message)
        }
        Error::NoRoom(NoRoom { room, asked, left, node }) => {
            let (code, field) = match room {
                Room::Vcpu => (codes::INSUFFICIENT_VCPU, "vcpu"),
                Room::Memory => (codes::INSUFFICIENT_MEMORY, "memory"),
                Room::Disk => (codes::RESOURCE_NOT_AVAILABLE, "disk_size"),
                Room::Gpus => (codes::INSUFFICIENT_GPU, "gpus"),
            };
            let body = ErrorBody::structured(code, message);
            let body = body.with("resource", field).with("asked", asked).with("left", left);
            match node {
                Some(node) => body.with("node", node),
                None => body,
            }
        }
        Error::Committed { by, .. } => {
            ErrorBody::structured(codes::INVALID_REQUEST, message).with("correlation_id", by.to_string())
        }
        Error::Proof { check, .. } => ErrorBody::structured(
            match check {
                ProofCheck::Hash => codes::HASH_INVALID_OR_EXPIRED,
                ProofCheck::Transaction => codes::TX_VERIFICATION_FAILED,
                ProofCheck::Contract => codes::HASH_NOT_ALLOWED,
            },
            message,
        ),
        // The inside stays inside.
        Error::Internal { .. } => ErrorBody::plain("Internal error"),
        Error::NotFound { .. }
        | Error::Rejected { .. }
        | Error::Conflict { .. }
        | Error::Unauthenticated(_)
        | Error::Forbidden { .. }
        | Error::Changed { .. }
        | Error::Gone { .. }
        | Error::Busy(_)
        | Error::Unavailable { .. }
        | Error::NotConfigured(_) => ErrorBody::plain(message),
    }
}

/// Error texts are fragments; what people read begins with a capital letter.
pub(super) fn sentence(fragment: &str) -> String {
    let mut letters = fragment.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + letters.as_str())
}
