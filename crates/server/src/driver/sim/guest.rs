//! What a guest makes of the configuration that it finds.

use casemate_types::ids::{ComposeHash, VmUuid};
use serde::{Deserialize, Serialize};

use super::faults::Faults;
use super::node::Site;
use crate::cvm::spec::{Long, sha256};
use crate::driver::fault::Fault;
use crate::driver::inside::{self, Inside};
use crate::driver::{GuestKeys, Machine};

/// What a guest does on its way up, each taking as long as the others.
pub(super) const STEPS: [&str; 6] = [
    "starting the OS image",
    "checking the compose file",
    "getting keys",
    "mounting the disk",
    "pulling container images",
    "starting containers",
];

const OS_IMAGE: usize = 0;
const COMPOSE_FILE: usize = 1;
const KEYS: usize = 2;
const CONTAINERS: usize = 5;

/// Why a guest does not come up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// Index of the step that fails.
    pub(super) step: usize,
    /// The guest's words.
    pub(super) error: String,
}

/// Names of the variables that the guest can open and that its compose file allows, sorted. None of them without a
/// way to the keys.
pub(super) fn env_keys(
    machine: &Machine,
    inside: &Inside,
    keys: Option<&dyn GuestKeys>,
) -> Result<Vec<String>, String> {
    let (Some(keys), Some(sealed)) = (keys, &machine.spec.sealed_env) else { return Ok(Vec::new()) };
    let mut names: Vec<String> =
        keys.unseal(&machine.app_id, sealed)?.iter().map(|var| var.key.clone()).collect();
    names.retain(|name| inside.allowed_envs.contains(name));
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// How a boot of this machine goes, if it is turned on now.
pub(super) fn boot(vm: VmUuid, machine: &Machine, site: &Site<'_>, faults: &mut Faults) -> Option<Failure> {
    let fails = |step, error| Some(Failure { step, error });
    let spec = &machine.spec;
    if inside::image(spec, site.facts).is_none() {
        return fails(OS_IMAGE, format!("OS image `{}` is not on the node", spec.image));
    }
    let (found, asked) = (ComposeHash::from(sha256(spec.compose.text.as_bytes())), spec.compose.hash);
    if found != asked {
        return fails(COMPOSE_FILE, format!("the compose file hashes to {found}, not to {asked}"));
    }
    let names = match env_keys(machine, &inside::read(&spec.compose.text), site.keys) {
        Ok(names) => names,
        Err(error) => return fails(KEYS, format!("the encrypted environment cannot be opened: {error}")),
    };
    let planned = faults.strike(&[vm], |fault| {
        let Fault::BootFail { image, env } = fault else { return None };
        let meant = image.as_ref().is_none_or(|image| *image == spec.image)
            && env.as_ref().is_none_or(|env| names.contains(env));
        meant.then(|| match (image, env) {
            (None, None) => "it was told not to boot".to_owned(),
            (Some(image), None) => format!("it was told not to boot with image `{image}`"),
            (None, Some(env)) => format!("it was told not to boot with variable `{env}`"),
            (Some(image), Some(env)) => {
                format!("it was told not to boot with image `{image}` and variable `{env}`")
            }
        })
    });
    planned.and_then(|error| fails(CONTAINERS, error))
}

/// Flips the lowest bit of a letter or digit in the middle of `text`. None if it has none.
pub(super) fn flip_bit(text: &mut Long<str>) -> Option<()> {
    let suits = |(_, c): &(usize, char)| c.is_ascii_alphanumeric();
    let (middle, mut letters) = (text.len() / 2, text.char_indices().filter(suits).peekable());
    let first = *letters.peek()?;
    let (index, letter) = letters.find(|(index, _)| *index >= middle).unwrap_or(first);
    let (before, after) = (text.get(..index)?, text.get(index + 1..)?);
    let flipped = char::from(u8::try_from(letter).ok()? ^ 1);
    *text = Long::new(format!("{before}{flipped}{after}"));
    Some(())
}
