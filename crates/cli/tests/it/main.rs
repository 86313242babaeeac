//! What people see of the client commands.

mod help;
mod parse;
