//! The sealed environment, opened.

use casemate_types::env::{self, EnvVar};
use zeroize::Zeroizing;

use crate::Result;

/// As many variables, as long, as a guest takes.
const MAX_VARS: usize = 1024;
const MAX_VALUE: usize = 128 * 1024;
const MAX_TOTAL: usize = 1024 * 1024;

/// Opens a sealed environment, which has to have exactly the variables that the document allows.
pub(crate) fn open(sealed: &[u8], secret: &[u8; 32], allowed: &[&str]) -> Result<Vec<EnvVar>> {
    let vars = env::open(secret, sealed).map_err(|error| format!("the sealed environment: {error}"))?;
    if vars.len() > MAX_VARS {
        return Err(format!(
            "the sealed environment has {} variables, and at most {MAX_VARS} are allowed",
            vars.len()
        ));
    }
    for (at, var) in vars.iter().enumerate() {
        let name = &var.key;
        if !allowed.contains(&name.as_str()) {
            return Err(format!("the sealed environment has `{name}`, which `allowed_envs` does not name"));
        }
        if vars[..at].iter().any(|other| other.key == *name) {
            return Err(format!("the sealed environment has `{name}` twice"));
        }
        if var.value.len() > MAX_VALUE || var.value.contains('\0') {
            return Err(format!(
                "the sealed environment has a value for `{name}` that is longer than {MAX_VALUE} bytes or has a zero byte"
            ));
        }
    }
    if vars.iter().map(|var| var.key.len() + var.value.len()).sum::<usize>() > MAX_TOTAL {
        return Err(format!("the sealed environment is larger than {MAX_TOTAL} bytes"));
    }
    match allowed.iter().find(|name| vars.iter().all(|var| var.key != **name)) {
        Some(missing) => {
            Err(format!("the sealed environment has no `{missing}`, which `allowed_envs` names"))
        }
        None => Ok(vars),
    }
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
