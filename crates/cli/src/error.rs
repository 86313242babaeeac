//! How a command fails: what is wrong, what it was about, and the exit code. `explain` makes sentences of it.

use casemate_sdk::Error;

use crate::context::Context;
use crate::explain;
use crate::output::{Colour, complain};

/// What commands return.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    about: Option<About>,
    hints: Vec<String>,
}

#[derive(Debug)]
enum Kind {
    /// Whoever read the output has gone, and has seen enough.
    Closed,
    /// The command line was wrong.
    Usage(String),
    /// It could not be done.
    Failed(String),
    /// The SDK says why.
    Sdk(Box<Error>),
}

/// What a request was about, for hints.
#[derive(Clone, Debug)]
pub(crate) enum About {
    /// The CVM that the user named so.
    Cvm(String),
    /// An operation.
    Operation,
    /// A node.
    Node,
    /// An API key.
    Key,
    /// A key service.
    Kms,
    /// An approval.
    Approval,
}

impl Failure {
    fn of(kind: Kind) -> Self {
        Self { kind, about: None, hints: Vec::new() }
    }

    /// The command line was wrong.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::of(Kind::Usage(text.into()))
    }

    /// It could not be done.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::of(Kind::Failed(text.into()))
    }

    /// Standard output did not take what was written. A closed pipe is no error.
    pub(crate) fn output(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::of(Kind::Closed),
            _ => Self::failed(format!("cannot write the result: {error}")),
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        self.hints.push(text.into());
        self
    }

    /// The exit code: 1 if the request failed, 2 if the command line was wrong.
    pub(crate) fn code(&self) -> u8 {
        match &self.kind {
            Kind::Closed => 0,
            Kind::Usage(_) => 2,
            // Found before anything was sent: what was typed is wrong.
            Kind::Sdk(error) => match &**error {
                Error::Invalid(invalid) if invalid.failure.is_none() => 2,
                _ => 1,
            },
            Kind::Failed(_) => 1,
        }
    }

    /// Tells the user.
    pub(crate) async fn report(self, cx: &Context) {
        let (text, hints) = match &self.kind {
            Kind::Closed => return,
            Kind::Usage(text) | Kind::Failed(text) => (text.clone(), Vec::new()),
            Kind::Sdk(error) => explain::explain(cx, error, self.about.as_ref()).await,
        };
        let mut lines = format!("{} {text}", cx.out.paint(Colour::Red, "error:"));
        for (index, hint) in self.hints.iter().chain(&hints).enumerate() {
            let gap = if index == 0 { "\n\n" } else { "\n" };
            lines.push_str(&format!("{gap}{} {hint}", cx.out.paint(Colour::Cyan, "hint:")));
        }
        complain(&lines);
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of(Kind::Sdk(Box::new(error)))
    }
}

/// Says what a failed request was about.
pub(crate) trait AboutExt<T> {
    /// It was about this CVM.
    fn about_cvm(self, name: &str) -> Result<T>;
    /// It was about that.
    fn about(self, about: About) -> Result<T>;
}

impl<T, E: Into<Failure>> AboutExt<T> for std::result::Result<T, E> {
    fn about_cvm(self, name: &str) -> Result<T> {
        self.about(About::Cvm(name.to_owned()))
    }

    fn about(self, about: About) -> Result<T> {
        self.map_err(|error| {
            let mut failure: Failure = error.into();
            failure.about.get_or_insert(about);
            failure
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error as IoError, ErrorKind};

    #[test]
    fn the_exit_code_tells_a_wrong_command_from_a_failed_one() {
        assert_eq!(Failure::output(IoError::from(ErrorKind::BrokenPipe)).code(), 0);
        assert_eq!(Failure::output(IoError::from(ErrorKind::StorageFull)).code(), 1);
        assert_eq!(Failure::failed("no").code(), 1);
        assert_eq!(Failure::from(Error::WatchEnded { attempts: 1 }).code(), 1);
        assert_eq!(Failure::usage("no").code(), 2);
        let typed = casemate_sdk::Client::builder().base_url("nowhere").build().unwrap_err();
        assert_eq!(Failure::from(typed).code(), 2);
    }
}
