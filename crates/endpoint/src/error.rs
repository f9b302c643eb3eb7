//! What the endpoint can fail with: towards the operator ([`EndpointError`]) and towards clients (`Refusal`).

use millrace_contract::QueryError;

/// The listener failed.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("cannot accept connections")]
    Accept(#[source] std::io::Error),
    #[error("the password of {user} is no SCRAM-SHA-256 verifier")]
    Verifier { user: String },
}

/// An ErrorResponse (PostgreSQL manual, "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) severity: &'static str,
    pub(crate) sqlstate: &'static str,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Refusal {
    /// Ends the statement.
    pub(crate) fn error(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { severity: "ERROR", sqlstate, message: message.into(), hint: None }
    }

    /// Ends the session.
    pub(crate) fn fatal(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { severity: "FATAL", sqlstate, message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn is_fatal(&self) -> bool {
        self.severity == "FATAL"
    }
}

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        Self { severity: "ERROR", sqlstate: error.sqlstate, message: error.message, hint: error.hint }
    }
}

/// Why a session ends.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The connection is gone or was closed by the client.
    Gone,
    /// The client is told why.
    Refused(Refusal),
}

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
