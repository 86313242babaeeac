//! Signatures of the root key, and how clients check them.

use casemate_types::ids::AppId;
use k256::ecdsa::{RecoveryId, Signature, SigningKey, VerifyingKey};
use sha3::{Digest, Keccak256};

const ENV_KEY: &[u8] = b"dstack-env-encrypt-pubkey";
const ISSUED: &[u8] = b"dstack-kms-issued";

/// How old a dated signature may be, in seconds.
pub const MAX_AGE_S: u64 = 300;
/// How far ahead of the reader's clock a dated signature may be, in seconds.
pub const MAX_AHEAD_S: u64 = 60;

/// Why a signature over an environment key is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not 65 bytes of r, s and a recovery id of 0 or 1, or of no key at all.
    #[error("not a recoverable secp256k1 signature of 65 bytes")]
    Malformed,
    /// Signed more than [`MAX_AGE_S`] ago.
    #[error("the signature is older than 300 seconds")]
    TooOld,
    /// Signed more than [`MAX_AHEAD_S`] in the future.
    #[error("the signature is dated more than 60 seconds ahead")]
    Ahead,
}

/// What is signed over an app's environment key.
pub(crate) fn env_key_digest(app: &AppId, public_key: &[u8; 32], timestamp: Option<u64>) -> [u8; 32] {
    let mut hash = Keccak256::new().chain_update(ENV_KEY).chain_update(b":").chain_update(app.as_bytes());
    if let Some(timestamp) = timestamp {
        hash.update(timestamp.to_be_bytes());
    }
    hash.chain_update(public_key).finalize().into()
}

/// What is signed over an app's secp256k1 key.
pub(crate) fn issued_digest(app: &AppId, public_key: &[u8; 33]) -> [u8; 32] {
    let hash = Keccak256::new().chain_update(ISSUED).chain_update(b":").chain_update(app.as_bytes());
    hash.chain_update(public_key).finalize().into()
}

/// r, s and the recovery id, which is 0 or 1.
pub(crate) fn sign(key: &SigningKey, digest: &[u8; 32]) -> [u8; 65] {
    let (signature, id) = key.sign_prehash_recoverable(digest);
    let mut bytes = [0; 65];
    bytes[..64].copy_from_slice(&signature.to_bytes());
    bytes[64] = id.to_byte();
    bytes
}

/// Finds out who signed an app's environment key: a compressed secp256k1 point, to be compared with a trusted one.
///
/// `now` is in Unix seconds; it matters only if the signature has a `timestamp`.
///
/// # Errors
/// Not a signature, or one that is not of this moment.
pub fn verify_env_public_key(
    app: &AppId,
    public_key: &[u8; 32],
    signature: &[u8],
    timestamp: Option<u64>,
    now: u64,
) -> Result<[u8; 33], SignatureError> {
    if let Some(timestamp) = timestamp {
        if timestamp.saturating_add(MAX_AGE_S) < now {
            return Err(SignatureError::TooOld);
        }
        if timestamp > now.saturating_add(MAX_AHEAD_S) {
            return Err(SignatureError::Ahead);
        }
    }
    let malformed = |_| SignatureError::Malformed;
    let (rs, id) = match signature {
        [rs @ .., id @ (0 | 1)] if rs.len() == 64 => (rs, *id),
        _ => return Err(SignatureError::Malformed),
    };
    let signature = Signature::from_slice(rs).map_err(malformed)?;
    let id = RecoveryId::from_byte(id).ok_or(SignatureError::Malformed)?;
    let digest = env_key_digest(app, public_key, timestamp);
    let signer = VerifyingKey::recover_from_prehash(&digest, &signature, id).map_err(malformed)?;
    signer.to_sec1_point(true).as_bytes().try_into().map_err(|_| SignatureError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> AppId {
        AppId(std::array::from_fn(|at| 0xa0 + at as u8))
    }

    fn public_key() -> [u8; 32] {
        hex::decode("63c9bdbdd67d721d5fc87a32db07f3bcc3b890b81320cd73f3a4cd2c920c0254")
            .unwrap()
            .try_into()
            .unwrap()
    }

    const AT: u64 = 1_700_000_000;

    #[test]
    fn digests_are_those_that_clients_compute() {
        assert_eq!(
            hex::encode(env_key_digest(&app(), &public_key(), None)),
            "171cc54ec23b5e02d6e2c25f404695f81ac3179d72f02c145c1a90acdda5150e"
        );
        assert_eq!(
            hex::encode(env_key_digest(&app(), &public_key(), Some(AT))),
            "52f5ac286ecc68dd89e3497901a1d1d3087e1bc6778403a375d4322973d82244"
        );
    }

    fn signed(timestamp: Option<u64>) -> [u8; 65] {
        let key = SigningKey::from_slice(&[0x11; 32]).unwrap();
        sign(&key, &env_key_digest(&app(), &public_key(), timestamp))
    }

    #[test]
    fn a_dated_signature_is_good_for_a_while() {
        let signature = signed(Some(AT));
        let check = |now| verify_env_public_key(&app(), &public_key(), &signature, Some(AT), now).map(|_| ());
        assert_eq!(check(AT + 300), Ok(()));
        assert_eq!(check(AT + 301), Err(SignatureError::TooOld));
        assert_eq!(check(AT - 60), Ok(()));
        assert_eq!(check(AT - 61), Err(SignatureError::Ahead));
        let undated = verify_env_public_key(&app(), &public_key(), &signed(None), None, u64::MAX);
        assert!(undated.is_ok());
    }

    #[test]
    fn another_app_key_or_time_has_another_signer() {
        let signature = signed(Some(AT));
        let signer =
            |app: &AppId, key: &[u8; 32], at| verify_env_public_key(app, key, &signature, Some(at), AT);
        let good = signer(&app(), &public_key(), AT).unwrap();
        assert_eq!(hex::encode(good), "034f355bdcb7cc0af728ef3cceb9615d90684bb5b2ca5f859ab0f0b704075871aa");
        for other in [
            signer(&AppId([0; 20]), &public_key(), AT),
            signer(&app(), &[1; 32], AT),
            signer(&app(), &public_key(), AT + 1),
        ] {
            assert_ne!(other, Ok(good));
        }
    }

    #[test]
    fn only_65_bytes_with_a_small_recovery_id_are_a_signature() {
        let signature = signed(None);
        let check = |signature: &[u8]| verify_env_public_key(&app(), &public_key(), signature, None, AT);
        for id in [2, 3, 27, 28] {
            let mut other = signature;
            other[64] = id;
            assert_eq!(check(&other), Err(SignatureError::Malformed));
        }
        assert_eq!(check(&signature[..64]), Err(SignatureError::Malformed));
        assert_eq!(check(&[]), Err(SignatureError::Malformed));
        assert_eq!(check(&[0; 65]), Err(SignatureError::Malformed));
    }
}
