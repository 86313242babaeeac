//! Real machines, booted from what `make guest` made, and asked over their channel.

mod machine;
mod vm;
