//! CVMs that were read lately, as they are now, and what their revisions fix.
//!
//! SQLite tells the writer which rows of `cvm` a transaction touches; these are forgotten between the commit and the answer to
//! it. So whoever has heard of a change never reads what was before it, and no statement has to remember to say what it changed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use casemate_types::ids::CvmRef;
use rusqlite::Connection;

use crate::cache::Cache;
use crate::cvm::spec::Spec;
use crate::cvm::state::Cvm;

/// How many CVMs are known, at least; twice as many at most. One takes about 1 KB, with its outline.
const CVMS: usize = 10 * 1024;

pub(super) struct Recent {
    cvms: Cache<i64, Cvm>,
    /// Which CVM an id belongs to, for ids that never move to another.
    ids: Cache<CvmRef, i64>,
    /// Specs without their long parts, by CVM and revision. They never change.
    outlines: Cache<(i64, u64), Spec>,
    /// Grows with each group of changes.
    changes: AtomicU64,
    /// Numbers of CVMs that the open transaction touches.
    touched: Arc<Mutex<Vec<i64>>>,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self {
            cvms: Cache::new(CVMS),
            ids: Cache::new(CVMS),
            outlines: Cache::new(CVMS),
            changes: AtomicU64::new(0),
            touched: Arc::default(),
        }
    }

    /// Listens to what `writer` changes.
    pub(super) fn follow(&self, writer: &mut Connection) -> rusqlite::Result<()> {
        let touched = Arc::clone(&self.touched);
        writer.update_hook(Some(move |_, _: &str, table: &str, row| {
            if table == "cvm" {
                touched.lock().expect("nothing panics while holding it").push(row);
            }
        }))
    }

    /// Forgets what was touched. Called after a commit and before anybody hears of it.
    pub(super) fn forget_touched(&self) {
        let mut touched = self.touched.lock().expect("nothing panics while holding it");
        // First: a record that is being read now may be one from before the commit, and must not be kept.
        self.changes.fetch_add(1, Ordering::SeqCst);
        for id in touched.drain(..) {
            self.cvms.remove(&id);
        }
    }

    /// The CVM, if it was read lately.
    pub(super) fn get(&self, reference: &CvmRef) -> Option<Arc<Cvm>> {
        let id = match reference {
            CvmRef::Number(number) => *number,
            CvmRef::Uid(_) | CvmRef::Uuid(_) => *self.ids.get(reference)?,
            CvmRef::Name(_) | CvmRef::Instance(_) | CvmRef::App(_) | CvmRef::AppOrInstance(_) => return None,
        };
        self.cvms.get(&id)
    }

    /// What there was before a reading begins; [`Recent::keep`] wants to know.
    pub(super) fn before(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Keeps a CVM that was read, unless something was changed since `before`.
    pub(super) fn keep(&self, reference: &CvmRef, cvm: &Arc<Cvm>, before: u64) {
        let _order = self.touched.lock().expect("nothing panics while holding it");
        if self.changes.load(Ordering::SeqCst) != before {
            return;
        }
        if matches!(reference, CvmRef::Uid(_) | CvmRef::Uuid(_)) {
            self.ids.put(reference.clone(), Arc::new(cvm.id), 1);
        }
        self.cvms.put(cvm.id, Arc::clone(cvm), 1);
    }

    /// The outline of a revision, if it was read lately.
    pub(super) fn outline(&self, cvm_id: i64, revision: u64) -> Option<Arc<Spec>> {
        self.outlines.get(&(cvm_id, revision))
    }

    /// Keeps the outline of a revision.
    pub(super) fn keep_outline(&self, cvm_id: i64, revision: u64, outline: Spec) {
        self.outlines.put((cvm_id, revision), Arc::new(outline), 1);
    }
}
