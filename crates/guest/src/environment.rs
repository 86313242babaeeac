//! The sealed environment, opened.

use casemate_types::env::{self, EnvVar};
use casemate_types::guest;
use zeroize::Zeroizing;

use crate::Result;

/// Opens a sealed environment, which has to be [as it must be](guest::check_env).
pub(crate) fn open(sealed: &[u8], secret: &[u8; 32], allowed: &[&str]) -> Result<Vec<EnvVar>> {
    let vars = env::open(secret, sealed).map_err(|error| format!("the sealed environment: {error}"))?;
    guest::check_env(&vars, allowed)?;
    Ok(vars)
}

/// The secret that opens it, as it comes.
pub(crate) fn secret(text: &str) -> Result<Zeroizing<[u8; 32]>> {
    let mut secret = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text, secret.as_mut())
        .map_err(|_| "the secret must be 32 bytes in hex".to_owned())?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn public_key() -> [u8; 32] {
        x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(SECRET)).to_bytes()
    }

    fn opened(vars: &[(&str, &str)], allowed: &[&str]) -> Result<Vec<String>> {
        let vars: Vec<EnvVar> = vars.iter().map(|(key, value)| EnvVar::new(*key, *value)).collect();
        let sealed = env::seal(&public_key(), &vars, [9; 32], [1; 12]).unwrap();
        open(&sealed, &SECRET, allowed).map(|vars| vars.iter().map(|var| var.key.clone()).collect())
    }

    #[test]
    fn exactly_the_allowed_variables() {
        assert_eq!(opened(&[("A", "1"), ("B", "")], &["B", "A"]).unwrap(), ["A", "B"]);
        for (vars, allowed, wanted) in [
            (
                &[("A", "1"), ("B", "2")][..],
                &["A"][..],
                "the sealed environment has `B`, which `allowed_envs` does not name",
            ),
            (&[("A", "1")], &["A", "C"], "the sealed environment has no `C`, which `allowed_envs` names"),
            (&[("A", "1"), ("A", "2")], &["A"], "the sealed environment has `A` twice"),
        ] {
            assert_eq!(opened(vars, allowed).unwrap_err(), wanted);
        }
        let sealed = env::seal(&public_key(), &[], [9; 32], [1; 12]).unwrap();
        let error = open(&sealed, &[8; 32], &[]).unwrap_err();
        assert_eq!(error, "the sealed environment: encrypted_env does not open with this app's key");
    }

    #[test]
    fn a_secret_is_32_bytes() {
        assert_eq!(*secret(&"07".repeat(32)).unwrap(), SECRET);
        assert!(secret("07").is_err());
    }
}
