//! Answers that can be sent now and again.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::store::Answer;

/// A JSON answer.
pub fn json<T: serde::Serialize + ?Sized>(status: StatusCode, body: &T) -> Answer {
    let body = serde_json::to_string(body).expect("wire types have string keys");
    Answer { status: status.as_u16(), body }
}

/// 204.
pub fn nothing() -> Answer {
    Answer { status: StatusCode::NO_CONTENT.as_u16(), body: String::new() }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        match self.body.is_empty() {
            true => status.into_response(),
            false => (status, [(header::CONTENT_TYPE, "application/json")], self.body).into_response(),
        }
    }
}
