//! The client commands of the real program against a real `casemate dev`. These do not need the machine for themselves.

#![expect(clippy::unwrap_used, reason = "in a test, what goes wrong is a failure")]

mod chain;
mod demo;
mod errors;
mod images;
mod journeys;
mod json;
mod make_dev;
mod serving;
mod signing_in;
pub(crate) mod world;
