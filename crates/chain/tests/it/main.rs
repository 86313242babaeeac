//! The client against a real node, anvil, with our contracts on it, and against one that misbehaves.

mod changes;
mod contracts;
mod faults;
mod lies;
mod transactions;
mod world;
