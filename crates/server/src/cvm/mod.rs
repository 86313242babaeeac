//! Rules about CVMs, without IO.

pub mod plan;
pub mod spec;
pub mod state;
