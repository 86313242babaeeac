//! An approval, as a user names it.

use casemate_sdk::Approval;
use clap::Args;

use crate::context::{self, Context};
use crate::error::{Failure, Result};
use crate::settings::complete;

/// Which approval.
#[derive(Args)]
pub(crate) struct Which {
    /// Its id, or the link to its page, which takes no account; - reads that from a line of standard input
    #[arg(value_name = "APPROVAL")]
    pub(crate) approval: String,
}

/// An approval that was named.
pub(crate) struct Named {
    pub(crate) approval: Approval,
    /// By a link with a token: nobody's key is needed, and none is sent.
    pub(crate) by_link: bool,
}

impl Which {
    pub(crate) fn find(&self, cx: &Context) -> Result<Named> {
        find(cx, &self.approval)
    }
}

pub(crate) fn find(cx: &Context, named: &str) -> Result<Named> {
    let line = match named {
        "-" => first_line()?,
        named => named.trim().to_owned(),
    };
    match parse(&line)? {
        Parsed::Id(id) => Ok(Named { approval: cx.client()?.approval(id), by_link: false }),
        Parsed::Link { server, id, token } => {
            let anyone = context::client(&complete(server), None)?;
            Ok(Named { approval: anyone.approval(id).token(token), by_link: true })
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed<'a> {
    Id(&'a str),
    Link { server: &'a str, id: &'a str, token: &'a str },
}

fn parse(line: &str) -> Result<Parsed<'_>> {
    if !line.contains("://") {
        return Ok(Parsed::Id(line));
    }
    let (server, rest) = line.split_once("/approve/").ok_or_else(|| {
        Failure::usage("APPROVAL: this is no link to an approval")
            .hint("such a link has the form https://SERVER/approve/ID#TOKEN")
    })?;
    match rest.split_once('#') {
        Some((id, token)) if !token.is_empty() => {
            Ok(Parsed::Link { server, id: id.trim_end_matches('/'), token })
        }
        _ => Ok(Parsed::Id(rest.trim_end_matches(['#', '/']))),
    }
}

fn first_line() -> Result<String> {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_is_named_by_id_or_link() {
        assert_eq!(parse("0198c1d2").unwrap(), Parsed::Id("0198c1d2"));
        assert_eq!(
            parse("https://cloud.example:8443/approve/0198c1d2#ct_abc").unwrap(),
            Parsed::Link { server: "https://cloud.example:8443", id: "0198c1d2", token: "ct_abc" }
        );
        // Without its token, the link says only which one it is.
        assert_eq!(parse("https://cloud.example/approve/0198c1d2").unwrap(), Parsed::Id("0198c1d2"));
        assert_eq!(parse("https://cloud.example/approve/0198c1d2#").unwrap(), Parsed::Id("0198c1d2"));
        let refused = parse("https://cloud.example/other#ct_secret").unwrap_err();
        assert!(!format!("{refused:?}").contains("ct_secret"));
    }
}
