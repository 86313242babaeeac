//! The commands.

pub(crate) mod apps;
pub(crate) mod audit;
pub(crate) mod changes;
pub(crate) mod completion;
pub(crate) mod cvms;
pub(crate) mod deploy;
pub(crate) mod doctor;
pub(crate) mod images;
pub(crate) mod keys;
pub(crate) mod kms;
pub(crate) mod login;
pub(crate) mod nodes;
pub(crate) mod ops;
pub(crate) mod outcome;
pub(crate) mod whoami;
