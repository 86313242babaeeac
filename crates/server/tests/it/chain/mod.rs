//! Approvals by real contracts on a real node, with a node in between that misbehaves on demand. Time is real here: the node is
//! another process.

mod auto_commit;
mod faults;
mod refusals;
mod site;
mod tokens;
mod wallet;
