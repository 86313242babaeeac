//! Root keys and what is derived from them.

use std::fmt;
use std::path::Path;

use casemate_types::env::{self, EnvVar};
use casemate_types::ids::{AppId, InstanceId};
use hkdf::Hkdf;
use k256::ecdsa::SigningKey;
use p256::SecretKey;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::EncodePrivateKey;
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::signature::{env_key_digest, issued_digest, sign};
use crate::{Error, Result, file};

/// HKDF's salt for every derivation.
const SALT: &[u8] = b"RATLS";

/// A P-256 key, from which disk and environment keys and certificates follow, and a secp256k1 key, which signs.
pub struct RootKeys {
    ca: SecretKey,
    k256: SigningKey,
}

/// The keys of an app's machine. All of them are secrets, but for the signature.
pub struct AppKeys {
    /// Encrypts the machine's disk.
    pub disk_key: Zeroizing<[u8; 32]>,
    /// Opens the app's sealed environment: an X25519 secret.
    pub env_key: Zeroizing<[u8; 32]>,
    /// The app's own certificate authority: a P-256 key in PKCS#8 DER.
    pub ca_key: Zeroizing<Vec<u8>>,
    /// The app's secp256k1 key.
    pub k256_key: Zeroizing<[u8; 32]>,
    /// The root key's signature over the public half of `k256_key`: r, s, recovery id.
    pub k256_signature: [u8; 65],
}

impl fmt::Debug for RootKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootKeys")
            .field("k256_public_key", &hex::encode(self.k256_public_key()))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AppKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppKeys").finish_non_exhaustive()
    }
}

impl RootKeys {
    /// New keys out of 64 random bytes.
    pub fn generate(fresh: &[u8; 64]) -> Self {
        let mut fresh = Zeroizing::new(*fresh);
        loop {
            let (ca, k256) = fresh.split_at(32);
            if let (Ok(ca), Ok(k256)) = (SecretKey::from_slice(ca), SigningKey::from_slice(k256)) {
                return Self { ca, k256 };
            }
            // Once in four billion times the bytes are above a curve's order; others as random as they follow.
            let [ca, k256] = [ca, k256].map(Sha256::digest);
            fresh[..32].copy_from_slice(&ca);
            fresh[32..].copy_from_slice(&k256);
        }
    }

    /// Reads the keys of a file, or makes the file with keys out of 64 random bytes, readable by its owner only.
    ///
    /// # Errors
    /// The file cannot be read or written, is not a key file, or may be used by others than its owner.
    pub fn load_or_create(path: &Path, fresh: impl FnOnce() -> [u8; 64]) -> Result<Self> {
        if let Some(keys) = file::load(path)? {
            return Ok(keys);
        }
        let keys = Self::generate(&Zeroizing::new(fresh()));
        file::create(path, &keys)?;
        Ok(keys)
    }

    /// Keys with these secrets.
    ///
    /// # Errors
    /// One of them is no private key of its curve.
    pub fn from_secrets(ca: &[u8; 32], k256: &[u8; 32]) -> Result<Self> {
        Ok(Self {
            ca: SecretKey::from_slice(ca).map_err(|_| Error::NoKey { curve: "P-256" })?,
            k256: SigningKey::from_slice(k256).map_err(|_| Error::NoKey { curve: "secp256k1" })?,
        })
    }

    pub(crate) fn secrets(&self) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
        (Zeroizing::new(self.ca.to_bytes().into()), Zeroizing::new(self.k256.to_bytes().into()))
    }

    /// The public half of the key that signs: a compressed point.
    pub fn k256_public_key(&self) -> [u8; 33] {
        compressed(&self.k256)
    }

    /// The public half of the certificate authority's key: an uncompressed point.
    pub fn ca_public_key(&self) -> [u8; 65] {
        let point = self.ca.public_key().to_sec1_point(false);
        let mut bytes = [0; 65];
        bytes.copy_from_slice(point.as_bytes());
        bytes
    }

    /// The X25519 key that an app's environment is sealed for.
    ///
    /// # Errors
    /// [`Error::NoKey`], for one app id in four billion.
    pub fn env_public_key(&self, app: &AppId) -> Result<[u8; 32]> {
        Ok(PublicKey::from(&StaticSecret::from(*self.env_key(app)?)).to_bytes())
    }

    /// Signs an app's environment key: r, s, recovery id. Without a time, clients accept the signature with a warning.
    pub fn sign_env_public_key(
        &self,
        app: &AppId,
        public_key: &[u8; 32],
        timestamp: Option<u64>,
    ) -> [u8; 65] {
        sign(&self.k256, &env_key_digest(app, public_key, timestamp))
    }

    /// Opens an app's sealed environment.
    ///
    /// # Errors
    /// It was sealed for another key, was changed, or holds something else.
    pub fn unseal_env(&self, app: &AppId, blob: &[u8]) -> Result<Vec<EnvVar>> {
        let secret = self.env_key(app)?;
        Ok(env::open(&secret, blob)?)
    }

    /// All keys of one machine of an app; a machine without an instance id shares its disk key with the app's others.
    ///
    /// # Errors
    /// [`Error::NoKey`], for one app in a billion.
    pub fn app_keys(&self, app: &AppId, instance: Option<&InstanceId>) -> Result<AppKeys> {
        let instance = instance.map_or(&[][..], |instance| instance.as_bytes().as_slice());
        let (_, k256) = self.secrets();
        let k256_key = derive(&k256, &[app.as_bytes(), b"app-key"]);
        let signer =
            SigningKey::from_slice(k256_key.as_slice()).map_err(|_| Error::NoKey { curve: "secp256k1" })?;
        Ok(AppKeys {
            disk_key: dh_secret(&self.child(&[app.as_bytes(), instance, b"app-disk-crypt-key"])?)?,
            env_key: self.env_key(app)?,
            ca_key: der(&self.child(&[app.as_bytes(), b"app-ca"])?)?,
            k256_signature: sign(&self.k256, &issued_digest(app, &compressed(&signer))),
            k256_key,
        })
    }

    fn env_key(&self, app: &AppId) -> Result<Zeroizing<[u8; 32]>> {
        dh_secret(&self.child(&[app.as_bytes(), b"env-encrypt-key"])?)
    }

    /// The P-256 key of a context.
    fn child(&self, context: &[&[u8]]) -> Result<SecretKey> {
        let (ca, _) = self.secrets();
        SecretKey::from_slice(derive(&ca, context).as_slice()).map_err(|_| Error::NoKey { curve: "P-256" })
    }
}

fn compressed(key: &SigningKey) -> [u8; 33] {
    let point = key.verifying_key().to_sec1_point(true);
    let mut bytes = [0; 33];
    bytes.copy_from_slice(point.as_bytes());
    bytes
}

fn derive(root: &[u8; 32], context: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(SALT), root)
        .expand(&context.concat(), key.as_mut_slice())
        .expect("HKDF gives up to 8160 bytes");
    key
}

/// PKCS#8, version 1, with the public key inside the private one: 138 bytes.
fn der(key: &SecretKey) -> Result<Zeroizing<Vec<u8>>> {
    key.to_pkcs8_der().map(|der| der.to_bytes()).map_err(|_| Error::NoKey { curve: "P-256" })
}

/// A symmetric or X25519 secret out of a P-256 key.
fn dh_secret(key: &SecretKey) -> Result<Zeroizing<[u8; 32]>> {
    Ok(Zeroizing::new(Sha256::digest(der(key)?.as_slice()).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify_env_public_key;

    fn bytes<const N: usize>(from: u8) -> [u8; N] {
        std::array::from_fn(|at| from + at as u8)
    }

    fn keys() -> RootKeys {
        RootKeys::from_secrets(&bytes(1), &[0x11; 32]).unwrap()
    }

    const APP: fn() -> AppId = || AppId(bytes(0xa0));

    #[test]
    fn derivation_gives_what_dstack_gives() {
        let child = keys().child(&[APP().as_bytes(), b"env-encrypt-key"]).unwrap();
        assert_eq!(
            hex::encode(child.to_bytes()),
            "f6d0550f6f07c8a74628520a553d677353440ee8eda76c8b3c5c2e0a80096e4e"
        );
        let document = der(&child).unwrap();
        assert_eq!(document.len(), 138);
        assert_eq!(document[..5], [0x30, 0x81, 0x87, 0x02, 0x01], "a sequence that begins with the version");
        assert_eq!(document[5], 0, "version 1 is written as 0");
        assert_eq!(
            hex::encode(*dh_secret(&child).unwrap()),
            "bb78e29dcfb5b5737c3469b328864868a281f524d53cb7575ca1f3fea4e55c38"
        );
        assert_eq!(
            hex::encode(keys().env_public_key(&APP()).unwrap()),
            "63c9bdbdd67d721d5fc87a32db07f3bcc3b890b81320cd73f3a4cd2c920c0254"
        );
        assert_eq!(
            hex::encode(keys().k256_public_key()),
            "034f355bdcb7cc0af728ef3cceb9615d90684bb5b2ca5f859ab0f0b704075871aa"
        );
    }

    #[test]
    fn an_environment_sealed_elsewhere_opens_here() {
        let blob = "13be4feaeaf204c7fd3358fc9c00721881d174278128227ec674f37f7fe97b6d0909090909090909\
                    090909092306e13f0a9b055f442bb0cca55fb66bdf047d662d108b63f1ea81c161150c56efe6371eb940c61f95781307f94166feca";
        let blob = hex::decode(blob).unwrap();
        let vars = vec![EnvVar::new("A", "b")];
        assert_eq!(keys().unseal_env(&APP(), &blob).unwrap(), vars);
        let sealed = env::seal(&keys().env_public_key(&APP()).unwrap(), &vars, [7; 32], [9; 12]).unwrap();
        assert_eq!(sealed, blob);
        let other = keys().unseal_env(&AppId([0; 20]), &blob).unwrap_err();
        assert!(matches!(other, Error::Env(env::EnvError::Sealed)));
    }

    #[test]
    fn signatures_lead_back_to_the_root_key() {
        let (keys, app) = (keys(), APP());
        let public = keys.env_public_key(&app).unwrap();
        let now = 1_700_000_000;
        for timestamp in [None, Some(now)] {
            let signature = keys.sign_env_public_key(&app, &public, timestamp);
            assert!(signature[64] < 2);
            assert_eq!(
                verify_env_public_key(&app, &public, &signature, timestamp, now),
                Ok(keys.k256_public_key())
            );
        }
    }

    #[test]
    fn machines_share_all_keys_but_the_disk_key() {
        let keys = keys();
        let one = keys.app_keys(&APP(), Some(&InstanceId([1; 20]))).unwrap();
        let two = keys.app_keys(&APP(), Some(&InstanceId([2; 20]))).unwrap();
        let none = keys.app_keys(&APP(), None).unwrap();
        assert!(one.disk_key != two.disk_key && one.disk_key != none.disk_key);
        assert!(one.env_key == two.env_key && one.k256_key == two.k256_key && one.ca_key == two.ca_key);
        assert_eq!(one.k256_signature, none.k256_signature);
        let other = keys.app_keys(&AppId([3; 20]), None).unwrap();
        assert!(
            other.env_key != one.env_key && other.k256_key != one.k256_key && other.disk_key != none.disk_key
        );
        assert_eq!(
            PublicKey::from(&StaticSecret::from(*one.env_key)).to_bytes(),
            keys.env_public_key(&APP()).unwrap()
        );
    }

    #[test]
    fn an_app_key_is_signed_by_the_root_key() {
        use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
        let keys = keys();
        let app_keys = keys.app_keys(&APP(), None).unwrap();
        let public = compressed(&SigningKey::from_slice(app_keys.k256_key.as_slice()).unwrap());
        let signature = Signature::from_slice(&app_keys.k256_signature[..64]).unwrap();
        let id = RecoveryId::from_byte(app_keys.k256_signature[64]).unwrap();
        let signer =
            VerifyingKey::recover_from_prehash(&issued_digest(&APP(), &public), &signature, id).unwrap();
        assert_eq!(signer.to_sec1_point(true).as_bytes(), keys.k256_public_key());
    }

    #[test]
    fn any_64_bytes_make_keys() {
        for fresh in [[0; 64], [0xff; 64], [1; 64]] {
            let keys = RootKeys::generate(&fresh);
            assert_eq!(keys.k256_public_key(), RootKeys::generate(&fresh).k256_public_key());
        }
        let taken = RootKeys::generate(&std::array::from_fn(|at| if at < 32 { at as u8 + 1 } else { 0x11 }));
        assert_eq!(taken.ca_public_key(), keys().ca_public_key());
        assert_eq!(taken.k256_public_key(), keys().k256_public_key());
        assert_eq!(keys().ca_public_key()[0], 4);
    }

    #[test]
    fn debug_shows_no_secret() {
        let keys = keys();
        let shown = format!("{keys:?} {:?}", keys.app_keys(&APP(), None).unwrap());
        assert!(shown.contains("034f355b"), "{shown}");
        assert!(!shown.contains("0102030405") && !shown.contains("1111111111"), "{shown}");
    }
}
