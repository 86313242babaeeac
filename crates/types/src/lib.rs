//! What server, SDK and command line agree on: identifiers, documents, request and answer bodies.
//!
//! Nothing here does IO, waits, draws random numbers or reads a clock; whoever needs such a thing passes it in.
//!
//! | module | holds |
//! | --- | --- |
//! | [`ids`] | app, instance and machine ids, the [`CvmRef`](ids::CvmRef) of a path, CVM names |
//! | [`compose`] | the app-compose document, its checks and the text that is hashed |
//! | [`mod@env`] | environment variables, sealed for one app |
//! | [`guest`] | what a driver and the agent inside a machine say to each other |
//! | [`version`] | the dated API versions |
//! | [`patch`] | request bodies, read leniently, refused precisely |
//! | [`wire`] | answer bodies |
//! | [`error`] | error bodies and their codes |

pub mod compose;
pub mod env;
pub mod error;
pub mod guest;
pub mod ids;
mod open_enum;
pub mod patch;
pub mod version;
pub mod wire;
