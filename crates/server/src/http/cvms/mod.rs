//! One endpoint a file, small siblings together.

pub mod attestation;
pub mod commit_update;
pub mod compose;
pub mod compose_file;
pub mod composition;
pub mod create;
pub mod envs;
pub mod get;
pub mod instance_id;
pub mod list;
pub mod observed;
pub mod os_images;
pub mod patch;
pub mod power;
pub mod records;
pub mod replicas;
pub mod revisions;
pub mod rollback;
pub mod size;
pub mod state;
pub mod telemetry;
pub mod text;
pub mod update;
pub mod user_config;
pub mod watch;
