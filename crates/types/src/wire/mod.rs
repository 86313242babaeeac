//! Answer bodies.
//!
//! Which fields may be `null` and which must be left out is part of the wire: strict clients refuse the wrong one. A plain
//! `Option` is always written, as `null` if need be; one with `skip_serializing_if` is never `null`. Reading is tolerant:
//! unknown fields are skipped, and whatever a server may leave out may be missing.

mod app;
mod approval;
mod cvm;
mod operation;
mod platform;
mod telemetry;
pub mod time;
mod update;

pub use app::*;
pub use approval::*;
pub use cvm::*;
pub use operation::*;
pub use platform::*;
pub use telemetry::*;
pub use update::*;

use serde::{Deserialize, Serialize};

/// An id that is a number for older API versions and a string for newer ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum NumberOrString {
    /// Before 2026-05-22.
    Number(i64),
    /// From 2026-05-22 on.
    String(String),
}

impl std::fmt::Display for NumberOrString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::String(text) => f.pad(text),
        }
    }
}

impl From<i64> for NumberOrString {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<String> for NumberOrString {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

/// One page of a list. Pages count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// What is on this page.
    pub items: Vec<T>,
    /// How many there are on all pages.
    pub total: u64,
    /// This page.
    pub page: u64,
    /// At most so many on a page.
    pub page_size: u64,
    /// How many pages there are.
    pub pages: u64,
}

impl<T> Page<T> {
    /// A page out of `total` items.
    pub fn new(items: Vec<T>, total: u64, page: u64, page_size: u64) -> Self {
        Self { items, total, page, page_size, pages: total.div_ceil(page_size.max(1)) }
    }

    /// The same page of something else.
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> Page<U> {
        let Self { items, total, page, page_size, pages } = self;
        Page { items: items.into_iter().map(change).collect(), total, page, page_size, pages }
    }
}

#[cfg(test)]
mod tests;
