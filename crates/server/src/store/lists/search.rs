//! What a search looks for, and where.
//!
//! Names are found by any part, through the index `cvm_search` of their pieces. Ids are found by how they begin, through the
//! indexes that lead to them anyway: pieces of random digits would cost more than everything else about a CVM, and three letters
//! like `bed` would find a great many ids that nobody means.

use casemate_types::ids::CvmName;

/// Most CVMs that a search finds by one of the things it looks at. It keeps one that finds everything from reading everything.
pub(super) const MOST: u64 = 10_000;

/// Fewest letters or digits that are looked for inside names and at the beginning of ids. Fewer are looked for at the beginning
/// of names only.
const PIECE: usize = 3;

/// Stands twice before a name in the index. No name has it.
const BEFORE_NAMES: char = '\u{f8ff}';

/// A search, as the parameters of [`found`].
#[derive(Debug, PartialEq)]
pub(super) struct Search {
    /// What to ask the index of names.
    pub(super) names: String,
    /// The first id that begins with what is looked for.
    pub(super) low: Option<Vec<u8>>,
    /// The last one.
    pub(super) high: Option<Vec<u8>>,
}

impl Search {
    /// For CVMs of a workspace with `text` in their name or their app's, large or small, or with an app id, an instance id or a
    /// machine's UUID that begins with it. Ids may be in any form in which they are shown.
    pub(super) fn new(text: &str, workspace_id: i64) -> Self {
        let (low, high) = range(text).unzip();
        Self { names: names(text, workspace_id), low, high }
    }
}

fn names(text: &str, workspace_id: i64) -> String {
    const NONE: &str = "\"\"";
    let length = text.chars().count();
    // The index reads what it is asked up to a NUL.
    if length > CvmName::MAX || text.contains('\0') {
        return NONE.to_owned();
    }
    let mut piece = text.replace('"', "\"\"");
    if length < PIECE {
        piece.insert_str(0, &String::from_iter([BEFORE_NAMES, BEFORE_NAMES]));
    }
    format!("tenant : \"{}\" AND {{name app}} : \"{piece}\"", tenant(workspace_id))
}

/// What stands for a workspace in the index: one piece, so that it is found at once.
fn tenant(workspace_id: i64) -> String {
    const BASE: i64 = 6400;
    let digit = |number: i64| {
        let private = 0xe000 + u32::try_from(number % BASE).unwrap_or_default();
        char::from_u32(private).expect("there are 6400 characters for private use")
    };
    [workspace_id, workspace_id / BASE, workspace_id / BASE / BASE].map(digit).iter().collect()
}

/// Between which two an id lies that begins with these digits.
fn range(text: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    /// Of an app id or instance id; a UUID has fewer.
    const MOST_DIGITS: usize = 40;
    let digits = ["app_", "instance_", "0x"]
        .iter()
        .fold(text, |rest, before| rest.strip_prefix(before).unwrap_or(rest))
        .replace('-', "");
    if !(PIECE..=MOST_DIGITS).contains(&digits.len()) {
        return None;
    }
    let low = format!("{digits:0<width$}", width = digits.len().next_multiple_of(2));
    let high = format!("{digits:f<MOST_DIGITS$}");
    Some((hex::decode(low).ok()?, hex::decode(high).ok()?))
}

/// A statement for the numbers of the CVMs that a [`Search`] finds in a workspace. Takes the names of parameters: that of the
/// workspace, and those of the search.
pub(super) fn found(workspace_id: &str, [names, low, high]: [&str; 3]) -> String {
    // The plus keeps SQLite from walking through the whole workspace instead.
    let live = format!("+c.workspace_id = {workspace_id} AND c.deleted_at IS NULL LIMIT {MOST}");
    format!(
        "SELECT * FROM (SELECT rowid FROM cvm_search WHERE cvm_search MATCH {names} ORDER BY rowid DESC LIMIT {MOST})
         UNION ALL SELECT * FROM (SELECT c.id FROM cvm c WHERE c.vm_uuid BETWEEN {low} AND {high} AND {live})
         UNION ALL SELECT * FROM (SELECT c.id FROM cvm c INDEXED BY cvm_instance
           WHERE c.instance_id BETWEEN {low} AND {high} AND {live})
         UNION ALL SELECT * FROM (SELECT c.id FROM app a CROSS JOIN cvm c INDEXED BY cvm_of_app ON c.app = a.id
           WHERE a.app_id BETWEEN {low} AND {high} AND {live})"
    )
}
