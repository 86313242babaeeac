//! Sealed environments: found out to be useless while the old machine still runs, and not by a guest that does not boot.

use crate::app::App;
use crate::driver::{Driver, Error, Result};
use crate::kms::{Keys, keys};
use crate::store::Work;

/// Can the guest open its environment?
///
/// The embedded key service has the app's key and so can try it. What it finds is dropped at once, wiped from memory, and seen
/// by nobody: the answer is yes or no. A `dstack-kms` gives keys to machines in a TEE only, so there the guest is the first to
/// know; on a node without one nobody ever would. One that the machine has already was tried when it came: deriving the app's
/// key again would cost an update more than all the rest of it.
///
/// # Errors
/// `Refused`, saying what would be right.
pub fn opens(app: &App, driver: &dyn Driver, work: &Work) -> Result<()> {
    let (operation, machine) = (&work.operation, &work.machine);
    let Some(sealed) = &machine.spec.sealed_env else { return Ok(()) };
    if operation.kind.can_be_put_back() && operation.diff.iter().all(|change| change.field != "encrypted_env")
    {
        return Ok(());
    }
    let opened = match keys(app, &work.cvm.kms) {
        // Variables wipe their values when they are dropped.
        Keys::Embedded(kms) => kms.unseal_env(&machine.app_id, sealed).map(drop),
        Keys::Dstack(_) if driver.brings_keys() => {
            return Err(Error::Refused(format!(
                "the encrypted environment cannot be opened: key service `{}` gives keys to machines in a TEE only, and this \
                 node has none ({})",
                work.cvm.kms,
                driver.kind()
            )));
        }
        Keys::Dstack(_) => Ok(()),
    };
    opened.map_err(|error| {
        Error::Refused(format!(
            "the encrypted environment cannot be opened ({error}); seal it with the public key of this app"
        ))
    })
}
