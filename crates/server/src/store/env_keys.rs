//! Apps' public keys that a key service elsewhere gave. They never change, so nobody has to be asked twice.

use casemate_types::ids::AppId;
use rusqlite::{OptionalExtension, params};

use super::{Result, Store};
use crate::kms::EnvKey;

const LENGTH: usize = 32 + 65;

/// As it is kept: the key, and behind it the signature.
pub(super) fn bytes(key: EnvKey) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..32].copy_from_slice(&key.public_key);
    bytes[32..].copy_from_slice(&key.signature);
    bytes
}

impl Store {
    /// The public key of an app that is kept with it.
    pub fn env_key(&self, app_id: &AppId) -> Result<Option<EnvKey>> {
        self.read(|connection| {
            let sql = "SELECT env_key FROM app WHERE app_id = ? AND env_key IS NOT NULL";
            let found: Option<[u8; LENGTH]> =
                connection.prepare_cached(sql)?.query_row([app_id.0], |row| row.get(0)).optional()?;
            Ok(found.map(|bytes| EnvKey {
                public_key: std::array::from_fn(|index| bytes[index]),
                signature: std::array::from_fn(|index| bytes[32 + index]),
            }))
        })
    }

    /// Is there an app of this key service with this id, and another key with it, or none?
    pub fn env_key_is_wanted(&self, kms: &str, app_id: &AppId, key: &EnvKey) -> Result<bool> {
        self.read(|connection| {
            let sql = "SELECT 1 FROM app WHERE app_id = ? AND kms = ? AND env_key IS NOT ?";
            Ok(connection.prepare_cached(sql)?.exists(params![app_id.0, kms, bytes(*key)])?)
        })
    }

    /// Keeps the public key of an app with it, if there is an app of this key service with this id.
    pub async fn env_key_put(&self, kms: &str, app_id: AppId, key: EnvKey) -> Result<()> {
        let kms = kms.to_owned();
        self.write(move |tx| {
            tx.prepare_cached("UPDATE app SET env_key = ? WHERE app_id = ? AND kms = ?")?
                .execute(params![bytes(key), app_id.0, kms])?;
            Ok(())
        })
        .await
    }
}
