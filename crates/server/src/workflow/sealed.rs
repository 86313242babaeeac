//! Sealed environments: found out to be useless while the old machine still runs, and not by a guest that does not boot.

use casemate_kms::RootKeys;

use crate::driver::{Error, Machine, Result};

/// Can the guest open the environment of `machine`?
///
/// The embedded key service has the app's key and so can try it. What it finds is dropped at once, wiped from memory, and seen
/// by nobody: the answer is yes or no.
///
/// # Errors
/// `Refused`, saying what would be right.
pub fn opens(kms: &RootKeys, machine: &Machine) -> Result<()> {
    let Some(sealed) = &machine.spec.sealed_env else { return Ok(()) };
    // Variables wipe their values when they are dropped.
    kms.unseal_env(&machine.app_id, sealed).map(drop).map_err(|error| {
        Error::Refused(format!(
            "the encrypted environment cannot be opened ({error}); seal it with the public key of this app"
        ))
    })
}
