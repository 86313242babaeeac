//! CVMs and apps in pages, newest first.
//!
//! A page costs the same wherever it is and however many others there are: `tally` leads to the numbers on it, an index lists
//! them, and no other row is read. Totals are counters. A filter costs what it leaves to look at: the CVMs of one app, on some
//! nodes, or found by a search, or else all of the workspace.

mod search;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use casemate_types::ids::CvmRef;
use rusqlite::{Connection, ToSql, params};

use self::search::Search;
use super::cvms::{self, APP, AppRow};
use super::rows::{self, const_format, json};
use super::{Error, Result, Store};
use crate::cvm::state::Cvm;

/// Which CVMs a list shows.
#[derive(Clone, Debug, Default)]
pub struct CvmFilter {
    /// Only on this node.
    pub node_id: Option<i64>,
    /// Only with GPUs, or only without.
    pub gpus: Option<bool>,
    /// Only with one of these numbers of virtual processors, MB of memory, and GPUs.
    pub sizes: Option<Vec<(u32, u32, u32)>>,
    /// Skip so many.
    pub offset: u64,
    /// At most so many.
    pub limit: u64,
}

/// Which apps a list shows: those with a live CVM that is all of this.
#[derive(Clone, Debug, Default)]
pub struct AppFilter {
    /// Part of the name of the CVM or its app, or how its app id, instance id or UUID begins.
    pub search: Option<String>,
    /// One of these statuses; none of them is any.
    pub statuses: Vec<String>,
    /// In the public directory, or not.
    pub listed: Option<bool>,
    /// This OS image.
    pub image: Option<String>,
    /// One of these sizes, as in [`CvmFilter`].
    pub sizes: Option<Vec<(u32, u32, u32)>>,
    /// One of these key services, by slug.
    pub kms: Option<Vec<String>>,
    /// On one of these nodes.
    pub nodes: Option<Vec<i64>>,
    /// Skip so many apps.
    pub offset: u64,
    /// At most so many apps.
    pub limit: u64,
}

impl AppFilter {
    /// Does every app fit?
    fn is_open(&self) -> bool {
        let Self { search, statuses, listed, image, sizes, kms, nodes, offset: _, limit: _ } = self;
        search.is_none()
            && statuses.is_empty()
            && listed.is_none()
            && image.is_none()
            && sizes.is_none()
            && kms.is_none()
            && nodes.is_none()
    }
}

impl CvmFilter {
    /// Does every CVM fit?
    fn is_open(&self) -> bool {
        let Self { node_id, gpus, sizes, offset: _, limit: _ } = self;
        node_id.is_none() && gpus.is_none() && sizes.is_none()
    }
}

impl Store {
    /// Live CVMs of a workspace, newest first, and how many there are in all.
    pub fn cvms(&self, workspace_id: i64, filter: &CvmFilter) -> Result<(Vec<Arc<Cvm>>, u64)> {
        self.read(|connection| {
            let (numbers, total) = if filter.is_open() {
                CVMS.page(connection, workspace_id, filter.offset, filter.limit)?
            } else {
                let values =
                    params![workspace_id, filter.node_id, filter.gpus, filter.sizes.as_ref().map(json)];
                part(numbers(connection, &fitting_cvms(filter), values)?, filter.offset, filter.limit)
            };
            Ok((self.cvms_numbered(connection, &numbers)?, total))
        })
    }

    /// Live CVMs of an app, newest first, at most `limit`.
    pub fn cvms_of_app(&self, app: i64, limit: u64) -> Result<Vec<Arc<Cvm>>> {
        self.read(|connection| {
            let numbers = numbers(connection, CVMS_OF_APP, params![app, limit])?;
            self.cvms_numbered(connection, &numbers)
        })
    }

    /// The CVMs with these numbers, without those that were deleted since these were read. No statement may be open on
    /// `connection`: it would show how things were when it began.
    fn cvms_numbered(&self, connection: &Connection, numbers: &[i64]) -> Result<Vec<Arc<Cvm>>> {
        let recent = &self.0.recent;
        let mut cvms = Vec::with_capacity(numbers.len());
        for &number in numbers {
            let reference = CvmRef::Number(number);
            if let Some(known) = recent.get(&reference) {
                cvms.push(known);
                continue;
            }
            let before = recent.before();
            match rows::cvm_by_id(connection, number) {
                Err(Error::Missing) => {}
                found => {
                    let cvm = Arc::new(found?);
                    recent.keep(&reference, &cvm, before);
                    cvms.push(cvm);
                }
            }
        }
        Ok(cvms)
    }

    /// Apps of a workspace that have a live CVM, newest first, and how many there are in all. Of a search, the newest 10,000 CVMs
    /// count.
    pub fn apps(&self, workspace_id: i64, filter: &AppFilter) -> Result<(Vec<AppRow>, u64)> {
        self.read(|connection| {
            let (numbers, total) = if filter.is_open() {
                APPS.page(connection, workspace_id, filter.offset, filter.limit)?
            } else {
                let all = apps_of_fitting_cvms(connection, workspace_id, filter)?;
                part(all, filter.offset, filter.limit)
            };
            let mut statement = connection.prepare_cached(&const_format(APP, " WHERE id = ?"))?;
            let mut apps = Vec::with_capacity(numbers.len());
            for number in numbers {
                let mut found = statement.query([number])?;
                apps.push(cvms::app(found.next()?.ok_or(Error::Missing)?)?);
            }
            Ok((apps, total))
        })
    }
}

/// A list that is shown without a filter.
struct Whole {
    /// Its name in `tally`.
    name: &'static str,
    /// How much there is of a workspace.
    total: &'static str,
    /// Numbers of a workspace that are below another, so many, and so many left out before.
    numbers: &'static str,
}

const CVMS: Whole = Whole {
    name: "cvm",
    total: "SELECT cvm_count FROM workspace WHERE id = ?",
    numbers: "SELECT id FROM cvm INDEXED BY cvm_live WHERE workspace_id = ? AND deleted_at IS NULL AND id < ?
      ORDER BY id DESC LIMIT ? OFFSET ?",
};

const APPS: Whole = Whole {
    name: "app",
    total: "SELECT app_count FROM workspace WHERE id = ?",
    numbers:
        "SELECT id FROM app INDEXED BY app_of_workspace WHERE workspace_id = ? AND cvm_count > 0 AND id < ?
      ORDER BY id DESC LIMIT ? OFFSET ?",
};

const TALLY: &str = "SELECT block, count FROM tally WHERE list = ? AND workspace_id = ? ORDER BY block DESC";

/// Numbers in a block of `tally`.
const BLOCK: i64 = 1024;

const CVMS_OF_APP: &str =
    "SELECT id FROM cvm INDEXED BY cvm_of_app WHERE app = ? AND deleted_at IS NULL ORDER BY id DESC LIMIT ?";

impl Whole {
    /// The numbers on a page, and how many there are in all.
    fn page(
        &self,
        connection: &Connection,
        workspace_id: i64,
        offset: u64,
        limit: u64,
    ) -> Result<(Vec<i64>, u64)> {
        let total = connection.prepare_cached(self.total)?.query_row([workspace_id], |row| row.get(0))?;
        let Some((below, offset)) = self.skip(connection, workspace_id, offset)? else {
            return Ok((Vec::new(), total));
        };
        Ok((numbers(connection, self.numbers, params![workspace_id, below, limit, offset])?, total))
    }

    /// Whole blocks of what is left out: the page is below this number, and so many further. None: it is past the end.
    fn skip(&self, connection: &Connection, workspace_id: i64, offset: u64) -> Result<Option<(i64, u64)>> {
        if offset == 0 {
            return Ok(Some((i64::MAX, 0)));
        }
        let mut statement = connection.prepare_cached(TALLY)?;
        let mut blocks = statement.query(params![self.name, workspace_id])?;
        let mut left = offset;
        while let Some(row) = blocks.next()? {
            let (block, count): (i64, u64) = (row.get(0)?, row.get(1)?);
            if left < count {
                return Ok(Some(((block + 1) * BLOCK, left)));
            }
            left -= count;
        }
        Ok(None)
    }
}

/// All numbers that a statement gives.
fn numbers(connection: &Connection, sql: &str, values: &[&dyn ToSql]) -> Result<Vec<i64>> {
    let mut statement = connection.prepare_cached(sql)?;
    let numbers = statement.query_map(values, |row| row.get(0))?;
    Ok(numbers.collect::<rusqlite::Result<_>>()?)
}

/// A page of `all`, and how many these are.
fn part(all: Vec<i64>, offset: u64, limit: u64) -> (Vec<i64>, u64) {
    let total = all.len() as u64;
    let count = |wanted: u64| usize::try_from(wanted).unwrap_or(usize::MAX);
    (all.into_iter().skip(count(offset)).take(count(limit)).collect(), total)
}

/// Numbers of the CVMs of workspace ?1 that are on node ?2, have GPUs (or none) as ?3 says, and one of the sizes ?4.
fn fitting_cvms(filter: &CvmFilter) -> String {
    let source = match filter.node_id {
        Some(_) => "INDEXED BY cvm_of_node WHERE c.node_id = ?2",
        None => "INDEXED BY cvm_live WHERE ?2 IS NULL",
    };
    format!(
        "SELECT c.id FROM cvm c {source} AND c.workspace_id = ?1 AND c.deleted_at IS NULL
           AND (?3 IS NULL OR (c.booked_gpus > 0) = ?3) AND (?4 IS NULL OR {}) ORDER BY c.id DESC",
        has_size("?4")
    )
}

/// Numbers of the apps that have a CVM that fits, newest first.
fn apps_of_fitting_cvms(connection: &Connection, workspace_id: i64, filter: &AppFilter) -> Result<Vec<i64>> {
    let (nodes, kms) = (filter.nodes.as_ref().map(json), filter.kms.as_ref().map(json));
    let statuses = (!filter.statuses.is_empty()).then(|| json(&filter.statuses));
    let sizes = filter.sizes.as_ref().map(json);
    let search = filter.search.as_deref().map(|text| Search::new(text, workspace_id));
    let mut values: Vec<&dyn ToSql> =
        vec![&workspace_id, &nodes, &kms, &statuses, &filter.listed, &sizes, &filter.image];
    if let Some(Search { names, low, high }) = &search {
        values.extend([names as &dyn ToSql, low, high]);
    }
    let mut apps = numbers(connection, &fitting_cvms_apps(filter), &values)?;
    apps.sort_unstable_by(|one, other| other.cmp(one));
    apps.dedup();
    Ok(apps)
}

/// The app of each CVM of workspace ?1 that is on one of the nodes ?2, of one of the key services ?3, in one of the statuses ?4,
/// listed or not (?5), of one of the sizes ?6, of image ?7, and found by the search ?8 to ?10.
fn fitting_cvms_apps(filter: &AppFilter) -> String {
    let source = match (&filter.search, &filter.nodes) {
        (Some(_), _) => &format!("NOT INDEXED WHERE c.id IN ({})", search::found("?1", ["?8", "?9", "?10"])),
        (None, Some(_)) => "INDEXED BY cvm_of_node WHERE c.node_id IN (SELECT value FROM json_each(?2))",
        (None, None) => "INDEXED BY cvm_live WHERE ?2 IS NULL",
    };
    format!(
        "SELECT c.app FROM cvm c {source} AND c.workspace_id = ?1 AND c.deleted_at IS NULL
           AND (?2 IS NULL OR c.node_id IN (SELECT value FROM json_each(?2)))
           AND (?3 IS NULL OR (SELECT kms FROM app WHERE id = c.app) IN (SELECT value FROM json_each(?3)))
           AND (?4 IS NULL OR c.status IN (SELECT value FROM json_each(?4)))
           AND (?5 IS NULL OR c.listed = ?5)
           AND (?6 IS NULL OR {})
           AND (?7 IS NULL OR (SELECT r.image FROM revision r WHERE r.cvm_id = c.id AND r.number = c.revision) = ?7)",
        has_size("?6")
    )
}

/// A condition on `cvm c`: its current spec has one of the sizes in a JSON list of triples.
fn has_size(parameter: &str) -> String {
    format!(
        "EXISTS (SELECT 1 FROM revision r JOIN json_each({parameter}) size WHERE r.cvm_id = c.id AND r.number = c.revision
           AND r.vcpu = size.value ->> 0 AND r.memory_mb = size.value ->> 1 AND ifnull(r.gpus ->> 'count', 0) = size.value ->> 2)"
    )
}
