//! Environment variables, sealed so that only the key service of their app can read them.
//!
//! A sealed environment is `ephemeral public key (32) ‖ nonce (12) ‖ AES-256-GCM ciphertext ‖ tag (16)`. The key is the
//! raw X25519 shared secret, there is no associated data, and the plain text is `{"env":[{"key":…,"value":…},…]}`.

use std::fmt;
use std::str::FromStr;

use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use serde::{Deserialize, Serialize, Serializer};
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

const KEY: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;

/// The shortest sealed environment, in bytes: both keys' parts and nothing inside.
pub const MIN_BLOB_LEN: usize = KEY + NONCE + TAG;

/// One environment variable. Its value is a secret: it is wiped on drop and never in `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// The name.
    pub key: String,
    /// The value.
    pub value: String,
}

impl EnvVar {
    /// A variable from its two parts.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnvVar({}=…)", self.key)
    }
}

impl Drop for EnvVar {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

/// Why an environment could not be sealed or opened. Never says anything about its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// Not an even number of hex digits.
    #[error("encrypted_env must be hexadecimal: an even number of digits, `0x` in front is fine")]
    NotHex,
    /// Fewer than [`MIN_BLOB_LEN`] bytes.
    #[error("encrypted_env is too short: {0} bytes, and the keys around an empty content are 60")]
    TooShort(usize),
    /// A public key that gives the same secret to everybody.
    #[error("the public key is not usable: the secret shared with it would be zero")]
    WeakKey,
    /// Sealed for another key, or changed since.
    #[error("encrypted_env does not open with this app's key")]
    Sealed,
    /// Opened, but the content is not a list of variables.
    #[error("encrypted_env opens, but what is inside is not a list of variables")]
    Content,
}

#[derive(Serialize)]
struct Sealing<'a> {
    env: &'a [EnvVar],
}

#[derive(Deserialize)]
struct Opened {
    env: Vec<EnvVar>,
}

fn shared_secret(secret: &StaticSecret, public: &PublicKey) -> Result<SharedSecret, EnvError> {
    let shared = secret.diffie_hellman(public);
    if shared.was_contributory() { Ok(shared) } else { Err(EnvError::WeakKey) }
}

fn cipher(shared: &SharedSecret) -> Aes256Gcm {
    Aes256Gcm::new(<&Key<Aes256Gcm>>::from(shared.as_bytes()))
}

/// Seals variables for the holder of the secret key behind `pubkey`.
///
/// `ephemeral_secret` and `nonce` must be random and never be used again.
///
/// # Errors
/// [`EnvError::WeakKey`] for a public key that gives the same secret to everybody.
pub fn seal(
    pubkey: &[u8; 32],
    vars: &[EnvVar],
    ephemeral_secret: [u8; 32],
    nonce: [u8; 12],
) -> Result<Vec<u8>, EnvError> {
    let ephemeral = StaticSecret::from(ephemeral_secret);
    let shared = shared_secret(&ephemeral, &PublicKey::from(*pubkey))?;
    let plain =
        Zeroizing::new(serde_json::to_vec(&Sealing { env: vars }).expect("two strings always serialise"));
    let sealed = cipher(&shared)
        .encrypt(&Nonce::from(nonce), plain.as_slice())
        .expect("AES-GCM takes far more than fits into memory");
    let mut blob = Vec::with_capacity(KEY + NONCE + sealed.len());
    blob.extend_from_slice(PublicKey::from(&ephemeral).as_bytes());
    blob.extend_from_slice(&nonce);
    blob.extend_from_slice(&sealed);
    Ok(blob)
}

/// Opens a sealed environment.
///
/// # Errors
/// Says which step failed, and nothing about the content.
pub fn open(secret: &[u8; 32], blob: &[u8]) -> Result<Vec<EnvVar>, EnvError> {
    if blob.len() < MIN_BLOB_LEN {
        return Err(EnvError::TooShort(blob.len()));
    }
    let (public, rest) = blob.split_first_chunk::<KEY>().ok_or(EnvError::TooShort(blob.len()))?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or(EnvError::TooShort(blob.len()))?;
    let shared = shared_secret(&StaticSecret::from(*secret), &PublicKey::from(*public))?;
    let plain = cipher(&shared).decrypt(&Nonce::from(*nonce), sealed).map_err(|_| EnvError::Sealed)?;
    let plain = Zeroizing::new(plain);
    let opened: Opened = serde_json::from_slice(&plain).map_err(|_| EnvError::Content)?;
    Ok(opened.env)
}

/// Reads a sealed environment as it comes in a request: hex digits, with or without `0x`.
///
/// # Errors
/// Not hexadecimal, or shorter than [`MIN_BLOB_LEN`].
pub fn decode_blob(text: &str) -> Result<Vec<u8>, EnvError> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let blob = hex::decode(digits).map_err(|_| EnvError::NotHex)?;
    if blob.len() < MIN_BLOB_LEN { Err(EnvError::TooShort(blob.len())) } else { Ok(blob) }
}

/// A sealed environment, long enough to be one. Written as lower-case hex.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SealedEnv(Vec<u8>);

impl SealedEnv {
    /// The bytes to store, or to open.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes to store, or to open.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl TryFrom<Vec<u8>> for SealedEnv {
    type Error = EnvError;

    fn try_from(blob: Vec<u8>) -> Result<Self, EnvError> {
        if blob.len() < MIN_BLOB_LEN { Err(EnvError::TooShort(blob.len())) } else { Ok(Self(blob)) }
    }
}

impl FromStr for SealedEnv {
    type Err = EnvError;

    fn from_str(text: &str) -> Result<Self, EnvError> {
        decode_blob(text).map(Self)
    }
}

impl fmt::Display for SealedEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(&self.0))
    }
}

impl fmt::Debug for SealedEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedEnv({} bytes)", self.0.len())
    }
}

impl Serialize for SealedEnv {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SealedEnv {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads an env file.
///
/// The grammar is that of the `dotenv` library: `KEY=value` or `KEY: value`, `export` in front allowed; values bare,
/// or in `'`, `"` or back-ticks and then over several lines; `\n` and `\r` mean line ends in double quotes only; `#`
/// begins a comment. Lines that are none of this are skipped. A later value of a key replaces an earlier one in place.
pub fn parse_env_file(text: &str) -> Vec<EnvVar> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut vars: Vec<EnvVar> = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let after = match env_line(rest) {
            Some((key, value, after)) => {
                match vars.iter_mut().find(|var| var.key == key) {
                    Some(var) => var.value = value,
                    None => vars.push(EnvVar { key: key.to_owned(), value }),
                }
                after
            }
            None => rest,
        };
        rest = after.split_once('\n').map_or("", |(_, next)| next);
    }
    vars
}

/// One assignment at the beginning of `text`: its key, its value and what follows it.
fn env_line(text: &str) -> Option<(&str, String, &str)> {
    let text = text.trim_start();
    let exported = text.strip_prefix("export").filter(|rest| rest.starts_with(char::is_whitespace));
    // `export =x` sets a variable of that name.
    exported.and_then(|rest| assignment(rest.trim_start())).or_else(|| assignment(text))
}

fn assignment(text: &str) -> Option<(&str, String, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')))?;
    let (key, rest) = text.split_at(end);
    if key.is_empty() {
        return None;
    }
    let rest = match rest.trim_start().strip_prefix('=') {
        Some(rest) => rest,
        // After a colon there has to be white space, or `a:b` would be an assignment.
        None => rest.strip_prefix(':')?.strip_prefix(char::is_whitespace)?,
    };
    let (value, after) = quoted(rest).unwrap_or_else(|| {
        let line_end = rest.find('\n').unwrap_or(rest.len());
        let value_end = rest[..line_end].find('#').unwrap_or(line_end);
        (rest[..value_end].trim(), &rest[line_end..])
    });
    Some((key, unquote(value), after))
}

/// A quoted value that nothing but a comment follows on its last line, its quotes included.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"' | '`'))?;
    let mut escaped = false;
    let mut end = None;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            end = Some(at + 1);
            break;
        }
        escaped = c == '\\' && !escaped;
    }
    let (value, after) = text.split_at(end?);
    let line_end = after.find('\n').unwrap_or(after.len());
    let tail = after[..line_end].trim();
    (tail.is_empty() || tail.starts_with('#')).then(|| (value, &after[line_end..]))
}

fn unquote(value: &str) -> String {
    let quote = value.chars().next().filter(|c| matches!(c, '\'' | '"' | '`'));
    let inner = match quote {
        Some(quote) if value.len() > 1 && value.ends_with(quote) => &value[1..value.len() - 1],
        _ => value,
    };
    if quote == Some('"') { inner.replace("\\n", "\n").replace("\\r", "\r") } else { inner.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex_text: &str) -> [u8; N] {
        hex::decode(hex_text).unwrap().try_into().unwrap()
    }

    /// The vector that clients and servers agree on.
    const SECRET: &str = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";
    const PUBLIC: &str = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c";
    const EPHEMERAL: &str = "4142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f60";
    const NONCE: &str = "000102030405060708090a0b";
    const BLOB: &str = "64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d48466000102030405060708090a0bbff9d64fa9782d0b2c38e5c91589e4d9c045a198b892ff3f77dca61c2f9578bcceaba6e6b961ca8cd3ef2e2cace9ffc9c5bb419c05904373a365db88";

    fn vars() -> Vec<EnvVar> {
        vec![EnvVar::new("API_KEY", "s3cret")]
    }

    #[test]
    fn sealing_gives_the_bytes_that_other_clients_give() {
        let blob = seal(&bytes(PUBLIC), &vars(), bytes(EPHEMERAL), bytes(NONCE)).unwrap();
        assert_eq!(hex::encode(&blob), BLOB);
        assert_eq!(open(&bytes(SECRET), &blob), Ok(vars()));
    }

    #[test]
    fn a_blob_for_someone_else_or_changed_does_not_open() {
        let blob = decode_blob(BLOB).unwrap();
        assert_eq!(open(&[7; 32], &blob), Err(EnvError::Sealed));
        for at in [0, 33, 50, blob.len() - 1] {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            assert_eq!(open(&bytes(SECRET), &changed), Err(EnvError::Sealed), "byte {at}");
        }
    }

    #[test]
    fn content_that_is_no_list_of_variables_is_said_to_be_so() {
        let public = PublicKey::from(bytes::<32>(PUBLIC));
        let shared = StaticSecret::from([9; 32]).diffie_hellman(&public);
        let sealed = cipher(&shared).encrypt(&Nonce::from([1; 12]), b"{\"env\":{}}".as_slice()).unwrap();
        let ephemeral = PublicKey::from(&StaticSecret::from([9; 32]));
        let blob = [ephemeral.as_bytes().as_slice(), &[1; 12], &sealed].concat();
        assert_eq!(open(&bytes(SECRET), &blob), Err(EnvError::Content));
    }

    #[test]
    fn keys_that_share_a_secret_with_everybody_are_refused() {
        let one = {
            let mut one = [0; 32];
            one[0] = 1;
            one
        };
        for weak in [[0; 32], one] {
            assert_eq!(seal(&weak, &vars(), [3; 32], [0; 12]), Err(EnvError::WeakKey));
            let blob = [weak.as_slice(), &[0; 28]].concat();
            assert_eq!(open(&bytes(SECRET), &blob), Err(EnvError::WeakKey));
        }
    }

    #[test]
    fn a_blob_is_hex_and_long_enough() {
        assert_eq!(decode_blob(&format!("0x{}", BLOB.to_uppercase())).unwrap(), decode_blob(BLOB).unwrap());
        assert_eq!(decode_blob(&format!(" {BLOB}\n")).unwrap(), decode_blob(BLOB).unwrap());
        assert_eq!(decode_blob("abc"), Err(EnvError::NotHex));
        assert_eq!(decode_blob(&"00".repeat(59)), Err(EnvError::TooShort(59)));
        assert_eq!(decode_blob(&"00".repeat(60)).map(|blob| blob.len()), Ok(60));
        assert_eq!(open(&[1; 32], &[0; 59]), Err(EnvError::TooShort(59)));
    }

    #[test]
    fn values_never_show() {
        assert_eq!(format!("{:?}", vars()), "[EnvVar(API_KEY=…)]");
        assert_eq!(format!("{:?}", BLOB.parse::<SealedEnv>().unwrap()), "SealedEnv(104 bytes)");
    }

    #[test]
    fn env_files_are_read_as_dotenv_reads_them() {
        for (text, expected) in [
            (
                "A=1\nB = two words \r\n# note\n\nexport C='x # y'",
                &[("A", "1"), ("B", "two words"), ("C", "x # y")][..],
            ),
            ("A=1 # note\nB=\nC", &[("A", "1"), ("B", "")]),
            ("A=\"x\\ny\\r\"\nB='x\\ny'\nC=`q\"`", &[("A", "x\ny\r"), ("B", "x\\ny"), ("C", "q\"")]),
            ("A=\"one\ntwo\"\nB=3", &[("A", "one\ntwo"), ("B", "3")]),
            ("A: 1\nB:2", &[("A", "1")]),
            ("A=1\nB=2\nA=3", &[("A", "3"), ("B", "2")]),
            ("a.b-c=1", &[("a.b-c", "1")]),
            ("A=\"open\nB=2", &[("A", "\"open"), ("B", "2")]),
            ("A='x' y\n", &[("A", "'x' y")]),
            ("A=\"say \\\"hi\\\"\" # note", &[("A", "say \\\"hi\\\"")]),
            ("export =x", &[("export", "x")]),
            ("=x\n!\n", &[]),
        ] {
            let vars = parse_env_file(text);
            let vars: Vec<_> = vars.iter().map(|var| (var.key.as_str(), var.value.as_str())).collect();
            assert_eq!(vars, expected, "{text:?}");
        }
    }
}
