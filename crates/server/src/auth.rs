//! From a token to the one who acts.

use casemate_types::version::ApiVersion;

use crate::app::App;
use crate::cvm::spec::sha256;
use crate::error::{Error, Result};

/// Who acts in a request, and what they may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Actor {
    /// The tenant.
    pub workspace_id: i64,
    /// The user that the key belongs to.
    pub user_id: i64,
    /// The key.
    pub key_id: i64,
    /// What the key may do.
    pub scopes: Scopes,
    /// API date of requests that name none.
    pub default_version: ApiVersion,
}

/// Who is named in an operation and in the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// The user.
    pub user_id: i64,
    /// With which key; none for what is done without one.
    pub key_id: Option<i64>,
    /// In which request.
    pub request_id: Option<String>,
}

/// What a key may do: read, or read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes {
    /// Change CVMs.
    pub write: bool,
    /// Make and revoke keys.
    pub keys: bool,
}

impl Scopes {
    /// Everything.
    pub const ALL: Self = Self { write: true, keys: true };

    /// Reads what the store or a request has: words separated by spaces, `read` being understood.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut scopes = Self { write: false, keys: false };
        for word in text.split_whitespace() {
            match word {
                "read" => {}
                "write" => scopes.write = true,
                "keys" => scopes.keys = true,
                other => return Err(format!("`{other}` is none of read, write, keys")),
            }
        }
        Ok(scopes)
    }

    /// The words for it.
    pub fn text(self) -> String {
        let mut text = String::from("read");
        for (has, word) in [(self.write, " write"), (self.keys, " keys")] {
            if has {
                text.push_str(word);
            }
        }
        text
    }
}

impl Actor {
    /// As an author, in the request with this id.
    pub fn author(&self, request_id: &str) -> Author {
        Author { user_id: self.user_id, key_id: Some(self.key_id), request_id: Some(request_id.to_owned()) }
    }
}

/// The actor behind `token`. A key that was revoked is unknown from the moment its revocation was answered.
pub fn actor(app: &App, token: &str) -> Result<Actor> {
    let check = app.store.key_check(&sha256(token.as_bytes()), app.clock.now())?;
    check
        .ok_or(Error::Unauthenticated("the API key is not valid: it is unknown, was revoked, or has expired"))
}
