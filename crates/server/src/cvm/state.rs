//! What is stored of a CVM beside its specs.

use casemate_types::ids::{AppId, CvmUid, InstanceId, OperationId, VmUuid};
use jiff::Timestamp;

use super::spec::Booking;
use crate::error::{Error, Result};

macro_rules! words {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word for it, in the store and on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> std::result::Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    other => Err(format!("`{other}` is none of {}", [$($text),*].join(", "))),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// The status that clients see. Transitional from the accept until an operation, and its put-back, have ended.
    pub enum Status {
        /// Being made.
        Creating = "creating",
        /// Its guest reported "done".
        Running = "running",
        /// Off, as wanted.
        Stopped = "stopped",
        /// A new spec is on its way.
        Updating = "updating",
        /// Being switched on.
        Starting = "starting",
        /// Being switched off, hard.
        Stopping = "stopping",
        /// Being asked to go down.
        ShuttingDown = "shutting_down",
        /// Off and on again.
        Restarting = "restarting",
        /// Being removed.
        Deleting = "deleting",
        /// It needs somebody: `boot_error` says why.
        Error = "error",
    }
}

words! {
    /// Desired power.
    pub enum Power {
        /// It should run.
        On = "on",
        /// It should not.
        Off = "off",
    }
}

impl Power {
    /// The status of a machine that is as wanted.
    pub fn steady(self) -> Status {
        match self {
            Self::On => Status::Running,
            Self::Off => Status::Stopped,
        }
    }
}

/// A CVM as the store has it. Desired and observed are different fields and never mixed.
#[derive(Clone, Debug, PartialEq)]
pub struct Cvm {
    /// Number inside the store; the id that old API dates show.
    pub id: i64,
    /// `cvm_…`.
    pub uid: CvmUid,
    /// Name of the machine on its node.
    pub vm_uuid: VmUuid,
    /// The tenant.
    pub workspace_id: i64,
    /// Who made it.
    pub user_id: i64,
    /// Number of the app inside the store.
    pub app: i64,
    /// Identity of the app.
    pub app_id: AppId,
    /// Slug of the key service that the app belongs to.
    pub kms: String,
    /// The node that it is on.
    pub node_id: i64,
    /// Unique in the workspace.
    pub name: String,
    /// Shown in the public directory.
    pub listed: bool,
    /// The instance id that is valid now; none before the first boot.
    pub instance_id: Option<InstanceId>,
    /// What clients see.
    pub status: Status,
    /// Desired power.
    pub power: Power,
    /// Number of the newest operation.
    pub generation: u64,
    /// Number of the current spec.
    pub revision: u64,
    /// Highest number given to a spec.
    pub latest_revision: u64,
    /// What went wrong last, until an operation succeeds.
    pub boot_error: Option<String>,
    /// The operation at work.
    pub open: Option<OpenOperation>,
    /// What is booked for it on its node.
    pub booked: Booking,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its record last changed.
    pub updated_at: Timestamp,
}

/// The part of an open operation that every view of a CVM shows.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenOperation {
    /// The operation.
    pub id: OperationId,
    /// What it does.
    pub kind: crate::workflow::operation::Kind,
    /// When it was accepted.
    pub started_at: Timestamp,
}

impl Cvm {
    /// `"<revision>.<generation>"`, without the quotes: changes with every accepted change.
    pub fn tag(&self) -> String {
        format!("{}.{}", self.revision, self.generation)
    }
}

/// The states of a CVM with which a caller is content: what its `If-Match` lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfMatch(Vec<String>);

impl IfMatch {
    /// Reads the header: tags in quotes with commas between them. None for `*`, which any state matches.
    ///
    /// A weak tag (`W/"…"`) is kept with its mark and so matches nothing, as the comparison asks that is made for `If-Match`.
    pub fn read(header: &str) -> Option<Self> {
        let tags: Vec<&str> = header.split(',').map(str::trim).collect();
        (!tags.contains(&"*"))
            .then(|| Self(tags.into_iter().map(|tag| tag.trim_matches('"').to_owned()).collect()))
    }

    /// Is the CVM in one of these states?
    pub fn holds(&self, cvm: &Cvm) -> bool {
        let tag = cvm.tag();
        self.0.contains(&tag)
    }

    /// `Changed` if the CVM is in none of these states.
    pub fn check(&self, cvm: &Cvm) -> Result<()> {
        if self.holds(cvm) { Ok(()) } else { Err(self.changed()) }
    }

    /// What is said to somebody whose states have all passed.
    pub fn changed(&self) -> Error {
        Error::Changed { expected: self.0.join(" or ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_tags_is_read_tag_by_tag() {
        let read = |text| IfMatch::read(text).map(|IfMatch(tags)| tags);
        assert_eq!(read("\"1.2\""), Some(vec!["1.2".to_owned()]));
        assert_eq!(read("\"1.2\" ,\"3.4\""), Some(vec!["1.2".to_owned(), "3.4".to_owned()]));
        assert_eq!(read("W/\"1.2\""), Some(vec!["W/\"1.2".to_owned()]));
        assert_eq!(read("*"), None);
        assert_eq!(read("\"1.2\", *"), None);
    }
}
