//! Sealing environment variables and naming requests: what needs random numbers.

use casemate_types::env::{self, EnvVar, SealedEnv};
use casemate_types::error::FieldError;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Seals variables for the holder of the secret key behind `pubkey`: 64 hex digits, `0x` in front is fine.
///
/// ```
/// use casemate_sdk::env::EnvVar;
///
/// let key = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c";
/// let sealed = casemate_sdk::seal(key, &[EnvVar::new("TOKEN", "s3cret")])?;
/// assert!(!sealed.to_string().contains("s3cret"));
/// # Ok::<(), casemate_sdk::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] if the key is none.
pub fn seal(pubkey: &str, vars: &[EnvVar]) -> Result<SealedEnv> {
    let wrong =
        |text: String| Error::invalid(vec![FieldError::body("encrypted_env_pubkey", "value_error", text)]);
    let digits = pubkey.trim();
    let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).unwrap_or(digits);
    let mut key = [0; 32];
    hex::decode_to_slice(digits, &mut key).map_err(|_| wrong("must be 64 hex digits".to_owned()))?;
    let mut secret = Zeroizing::new([0; 32]);
    let mut nonce = [0; 12];
    random(secret.as_mut())?;
    random(&mut nonce)?;
    let sealed = env::seal(&key, vars, *secret, nonce).map_err(|error| wrong(error.to_string()))?;
    SealedEnv::try_from(sealed).map_err(|error| wrong(error.to_string()))
}

/// A key for one request that must be carried out once: 32 random hex digits.
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// let key = casemate_sdk::idempotency_key()?;
/// client.cvm("web-1").restart().idempotency_key(key).send().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Transport`] if the operating system has no random numbers.
pub fn idempotency_key() -> Result<String> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    Ok(hex::encode(bytes))
}

fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| Error::Transport {
        url: "the operating system's random numbers".to_owned(),
        source: error.to_string().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_secret_key_and_is_never_the_same_twice() {
        let mut secret = [0; 32];
        for (index, byte) in secret.iter_mut().enumerate() {
            *byte = index as u8 + 1;
        }
        let public = "0x07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c";
        let vars = [EnvVar::new("A", "1"), EnvVar::new("B", "")];
        let sealed = seal(public, &vars).unwrap();
        assert_eq!(env::open(&secret, sealed.as_bytes()).unwrap(), vars);
        assert_ne!(seal(public, &vars).unwrap(), sealed);
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        for key in ["", "07a3", "zz", &"0".repeat(64)] {
            assert_eq!(seal(key, &[]).unwrap_err().fields()[0].field(), "encrypted_env_pubkey");
        }
    }
}
