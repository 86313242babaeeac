//! The key that signs.

use std::fmt;
use std::io::Read;
use std::path::Path;

use alloy_primitives::keccak256;
use casemate_chain::checksummed;
use casemate_types::error::FieldError;
use casemate_types::ids::Address;
use k256::ecdsa::SigningKey;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// More than a private key and some spaces take.
const LONGEST_FILE: u64 = 1024;

/// A private key and the account that it signs for. The key is wiped from memory with the last copy of this, and never shown.
///
/// ```
/// use casemate_sdk::chain::Wallet;
///
/// // The first account of every anvil: worth nothing anywhere else.
/// let key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
/// let wallet = Wallet::from_private_key(key)?;
/// assert_eq!(wallet.address().to_string(), "f39fd6e51aad88f6f4ce6ab8827279cfffb92266");
/// assert_eq!(format!("{wallet:?}"), "Wallet(0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266)");
/// # Ok::<(), casemate_sdk::Error>(())
/// ```
#[derive(Clone)]
pub struct Wallet {
    key: SigningKey,
    address: Address,
}

/// What a signature consists of.
pub(super) struct Signature {
    pub(super) y_is_odd: bool,
    pub(super) r: [u8; 32],
    pub(super) s: [u8; 32],
}

impl Wallet {
    /// From a private key: 64 hex digits, with or without `0x`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else. It does not repeat the text.
    pub fn from_private_key(text: &str) -> Result<Self> {
        let digits = text.trim();
        let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).unwrap_or(digits);
        let mut bytes = Zeroizing::new([0; 32]);
        let wrong = |what: &str| Error::invalid(vec![FieldError::body("private_key", "value_error", what)]);
        hex::decode_to_slice(digits, &mut *bytes)
            .map_err(|_| wrong("must be 64 hex digits, with or without 0x"))?;
        let key = SigningKey::from_slice(&*bytes)
            .map_err(|_| wrong("is no key of the curve secp256k1: it is zero or too large"))?;
        let point = key.verifying_key().to_sec1_point(false);
        let hash = keccak256(&point.as_bytes()[1..]);
        let mut address = [0; 20];
        address.copy_from_slice(&hash[12..]);
        Ok(Self { key, address: Address(address) })
    }

    /// From a file that holds a private key in the same form, and nothing else.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it cannot be read, or holds something else. It does not repeat what the file holds.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let wrong =
            |what: String| Error::invalid(vec![FieldError::body("private_key_file", "value_error", what)]);
        let mut text = Zeroizing::new(String::with_capacity(LONGEST_FILE as usize));
        std::fs::File::open(path)
            .and_then(|file| file.take(LONGEST_FILE).read_to_string(&mut text))
            .map_err(|error| wrong(format!("cannot read {}: {error}", path.display())))?;
        Self::from_private_key(&text).map_err(|_| {
            wrong(format!("{} must hold a private key, 64 hex digits, and nothing else", path.display()))
        })
    }

    /// The account.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Signs a hash.
    pub(super) fn sign(&self, hash: &[u8; 32]) -> Signature {
        let (signature, recovery) = self.key.sign_prehash_recoverable(hash);
        let (r, s) = signature.split_bytes();
        Signature { y_is_odd: recovery.is_y_odd(), r: r.into(), s: s.into() }
    }
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wallet({})", checksummed(self.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        let secret = "5ecre7";
        for text in
            ["", "0x", secret, &"0".repeat(64), &"f".repeat(64), &format!("{secret}{}", "a".repeat(60))]
        {
            let error = Wallet::from_private_key(text).unwrap_err();
            assert_eq!(error.fields()[0].field(), "private_key");
            assert!(!format!("{error} {error:?}").contains(secret), "{error:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, format!("{secret} and more")).unwrap();
        let error = Wallet::from_file(&file).unwrap_err();
        assert_eq!(error.fields()[0].field(), "private_key_file");
        assert!(!format!("{error} {error:?}").contains(secret), "{error:?}");
        std::fs::write(&file, format!("0x{}\n", "1".repeat(64))).unwrap();
        assert_eq!(
            Wallet::from_file(&file).unwrap().address(),
            Wallet::from_private_key(&"1".repeat(64)).unwrap().address()
        );
        assert!(Wallet::from_file(folder.path().join("none")).is_err());
    }
}
