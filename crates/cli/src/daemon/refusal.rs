//! What the daemon answers in place of doing something.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::ErrorBody;
use crate::failure;

/// A refusal or failure, with the status and the words it is told in.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    error: String,
    mend: Option<String>,
}

impl Refusal {
    /// The request makes no sense, whatever the state of the host.
    pub(super) fn bad_request(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// There is no such thing.
    pub(super) fn not_found(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// The request makes sense at another time.
    pub(super) fn conflict(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    /// The daemon stops.
    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "this daemon is stopping")
            .mend("repeat it once it runs again")
    }

    /// It was tried and did not work.
    pub(super) fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, failure::chain(&error.into()))
    }

    /// With a way to mend it.
    pub(super) fn mend(self, mend: impl Into<String>) -> Self {
        Self {
            mend: Some(mend.into()),
            ..self
        }
    }

    /// Error and mend on one line.
    pub(super) fn line(&self) -> String {
        match &self.mend {
            Some(mend) => format!("{}; {mend}", self.error),
            None => self.error.clone(),
        }
    }

    fn new(status: StatusCode, error: impl std::fmt::Display) -> Self {
        Self {
            status,
            error: error.to_string(),
            mend: None,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (
            self.status,
            Json(ErrorBody {
                error: self.error,
                mend: self.mend,
            }),
        )
            .into_response()
    }
}
