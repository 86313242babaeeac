//! The client commands of the real program against a real `casemate dev`.

#![expect(clippy::unwrap_used, reason = "in a test, what goes wrong is a failure")]

mod demo;
mod errors;
mod journeys;
mod json;
mod signing_in;
mod world;
