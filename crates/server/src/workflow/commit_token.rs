//! Commit tokens: who has one may commit the approval that it was made for, once. Never stored; whoever needs it again makes it
//! again.

use casemate_types::ids::CvmRef;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::app::App;
use crate::cvm::spec::sha256;
use crate::error::{Error, Result};
use crate::mac;
use crate::store::{Approval, ApprovalState, Found};

const TOKEN: &str = "ct_";
const ID_DIGITS: usize = 32;

/// The commit token of an approval.
pub fn token_of(app: &App, approval: Uuid) -> String {
    let code = mac::of(&app.secret, "commit token", approval.as_bytes());
    format!("{TOKEN}{}{}", approval.simple(), hex::encode(code))
}

/// The approval that a token belongs to. Asks nobody but the store.
///
/// # Errors
/// `Rejected`: there is no such token.
pub fn approval_of(app: &App, token: &str) -> Result<Approval> {
    let unknown = || refused("there is no such token");
    let digits =
        token.trim().strip_prefix(TOKEN).and_then(|rest| rest.get(..ID_DIGITS)).ok_or_else(unknown)?;
    let id = Uuid::try_parse(digits).map_err(|_| unknown())?;
    if !bool::from(token_of(app, id).as_bytes().ct_eq(token.trim().as_bytes())) {
        return Err(unknown());
    }
    let approval = app.store.approval(id)?.ok_or_else(unknown)?;
    let known =
        approval.token_hash.is_some_and(|hash| bool::from(hash.ct_eq(&sha256(token.trim().as_bytes()))));
    known.then_some(approval).ok_or_else(unknown)
}

/// A text whose tokens end behind their public part, fit to be stored.
pub fn without_tokens(text: &str) -> String {
    let secret = 64;
    let mut cut = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, id, behind)) = next_token(rest) {
        let (kept, behind) = match behind.get(..secret) {
            Some(code) if code.bytes().all(|byte| byte.is_ascii_hexdigit()) => ("*", &behind[secret..]),
            Some(_) | None => ("", behind),
        };
        cut.extend([before, id, kept]);
        rest = behind;
    }
    cut.push_str(rest);
    cut
}

/// The text that [`without_tokens`] was given.
pub fn with_tokens(app: &App, text: &str) -> String {
    let mut whole = String::with_capacity(text.len() + 160);
    let mut rest = text;
    while let Some((before, id, behind)) = next_token(rest) {
        whole.push_str(before);
        rest = match (Uuid::try_parse(&id[TOKEN.len()..]), behind.strip_prefix('*')) {
            (Ok(approval), Some(behind)) => {
                whole.push_str(&token_of(app, approval));
                behind
            }
            (Ok(_) | Err(_), _) => {
                whole.push_str(id);
                behind
            }
        };
    }
    whole.push_str(rest);
    whole
}

/// What is before the public part of the next token, that part, and what is behind it.
fn next_token(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    while let Some(at) = text[from..].find(TOKEN).map(|at| at + from) {
        let end = at + TOKEN.len() + ID_DIGITS;
        match text.get(at + TOKEN.len()..end) {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                return Some((&text[..at], &text[at..end], &text[end..]));
            }
            Some(_) | None => from = at + TOKEN.len(),
        }
    }
    None
}

/// Is this a token, and not some other credential?
pub fn looks_like(text: &str) -> bool {
    text.trim().starts_with(TOKEN)
}

/// By what an approval is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// By its token.
    Token,
    /// By its id, by somebody who may see it.
    Id,
    /// By its hash, by somebody who may change the CVM and sends the update again.
    Hash,
}

/// Refuses an approval that is no longer open, saying what became of it. Whoever has its token may know that.
///
/// # Errors
/// `Committed` naming the operation; `Rejected`: expired, superseded or cancelled.
pub fn still_good(app: &App, approval: &Approval, named: Named) -> Result<()> {
    let what = match named {
        Named::Token => "invalid commit token: its approval",
        Named::Id | Named::Hash => "the approval",
    };
    let superseded: String;
    let why = match approval.state {
        ApprovalState::Open if approval.expires_at > app.clock.now() => return Ok(()),
        ApprovalState::Committed(by) => return Err(Error::Committed { what, by }),
        ApprovalState::Open | ApprovalState::Expired => "has expired; prepare the update again",
        ApprovalState::Superseded(by) => {
            superseded = format!(
                "was superseded by approval {by}: the same update was asked for again, and that one counts"
            );
            &superseded
        }
        ApprovalState::Cancelled => "was cancelled",
    };
    Err(Error::Rejected { code: None, field: None, message: format!("{what} {why}") })
}

/// Refuses a token that is used on another CVM than the one it was made for.
///
/// # Errors
/// `Rejected`.
pub fn belongs_to(app: &App, approval: &Approval, workspace_id: i64, named: &str) -> Result<()> {
    let means_it = named.parse::<CvmRef>().is_ok_and(|reference| {
        let found = app.store.cvm_find(workspace_id, &reference);
        matches!(found, Ok(Found::One(found)) if found.id == approval.cvm_id)
    });
    means_it.then_some(()).ok_or_else(|| refused("it belongs to another CVM"))
}

/// The refusal of a token.
pub fn refused(why: &str) -> Error {
    Error::Rejected { code: None, field: None, message: format!("invalid commit token: {why}") }
}
