//! Pages of lists, counted from 1.

use super::extract::Params;
use crate::error::Result;

/// Entries on a page whose size the request does not name.
pub const SIZE: u64 = 30;

/// Most entries on a page.
pub const MOST: u64 = 100;

/// Which page is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// From 1.
    pub page: u64,
    /// At most so many entries.
    pub size: u64,
}

impl Wanted {
    /// From `page` and `page_size` of the query.
    ///
    /// # Errors
    /// Not a number, zero, or a page of more than `most`.
    pub fn read(params: &Params, most: u64) -> Result<Self> {
        // Far beyond any last page, and small enough to be multiplied.
        const LAST: u64 = u32::MAX as u64;
        Ok(Self {
            page: params.number("page", 1, LAST)?.unwrap_or(1),
            size: params.number("page_size", 1, most)?.unwrap_or(SIZE),
        })
    }

    /// How many entries come before it.
    pub fn offset(self) -> u64 {
        (self.page - 1) * self.size
    }

    /// The part of `all` that is on it.
    pub fn of<T>(self, all: Vec<T>) -> Vec<T> {
        let skip = usize::try_from(self.offset()).unwrap_or(usize::MAX);
        let take = usize::try_from(self.size).unwrap_or(usize::MAX);
        all.into_iter().skip(skip).take(take).collect()
    }
}
