//! What any store behind [`Store`](super::Store) has to do: whole transactions, and answers only after the commit.

use std::path::Path;
use std::sync::Arc;

use casemate_types::ids::CvmRef;

use super::{Durability, Error, Found, Result, Store, WriterMode};

fn grouped(folder: &Path) -> Store {
    Store::open(&folder.join("test.db"), Durability::Full, WriterMode::Grouped).expect("a fresh store")
}

fn count(store: &Store) -> i64 {
    store.read(|tx| Ok(tx.query_row("SELECT count(*) FROM setting", [], |row| row.get(0))?)).expect("reads")
}

async fn put(store: &Store, name: String, fails: bool) -> Result<()> {
    store
        .write(move |tx| {
            tx.execute("INSERT INTO setting (name, value) VALUES (?, 1)", [name.clone()])?;
            if fails { Err(Error::Missing) } else { Ok(()) }
        })
        .await
}

#[tokio::test]
async fn a_transaction_that_fails_undoes_itself_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = grouped(folder.path());
    let writes = (0..200).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { put(&store, format!("n{n}"), n % 3 == 0).await })
    });
    let mut stored = 0;
    for (n, write) in writes.collect::<Vec<_>>().into_iter().enumerate() {
        let outcome = write.await.expect("no panic");
        assert_eq!(outcome.is_err(), n % 3 == 0, "{n}: {outcome:?}");
        stored += i64::from(outcome.is_ok());
    }
    assert_eq!(count(&store), stored);
}

#[tokio::test]
async fn what_was_answered_is_there_after_opening_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = grouped(folder.path());
    put(&store, "kept".into(), false).await.expect("stored");
    // A second connection sees what was answered, without the first one's help.
    assert_eq!(count(&grouped(folder.path())), 1);
    drop(store);
    assert_eq!(count(&grouped(folder.path())), 1);
}

#[tokio::test]
async fn a_commit_that_fails_fails_everybody_in_it_and_the_next_one_works() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = grouped(folder.path());
    // As a full disk does: the file may not grow.
    let pages: i64 =
        store.read(|tx| Ok(tx.query_row("PRAGMA page_count", [], |row| row.get(0))?)).expect("reads");
    let limit = |pages: i64| {
        store.write(move |tx| {
            tx.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))?;
            Ok(())
        })
    };
    limit(pages).await.expect("set");
    let big = |name: &'static str| {
        store.write(move |tx| {
            tx.execute("INSERT INTO setting (name, value) VALUES (?, zeroblob(1000000))", [name])?;
            Ok(())
        })
    };
    let full = big("big").await.expect_err("there is no room");
    assert!(matches!(full, Error::Unavailable(_)), "{full:?}");
    assert_eq!(count(&store), 0);
    limit(1_000_000).await.expect("set");
    big("big").await.expect("there is room again, and nobody restarted anything");
    assert_eq!(count(&store), 1);
}

#[tokio::test]
async fn opening_a_store_twice_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let schema = |store: &Store| -> Vec<String> {
        store
            .read(|tx| {
                let mut statement =
                    tx.prepare("SELECT ifnull(sql, name) FROM sqlite_schema ORDER BY name")?;
                let rows = statement.query_map([], |row| row.get(0))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .expect("reads")
    };
    let first = schema(&grouped(folder.path()));
    assert_eq!(first, schema(&grouped(folder.path())));
}

/// A store with one CVM, `cvm_a` in workspace 1.
async fn with_a_cvm(folder: &Path) -> Store {
    let store = grouped(folder);
    let rows = "INSERT INTO workspace (id, uid, name, slug, created_at) VALUES (1, 'w', 'w', 'w', 0);
      INSERT INTO user (id, uid, workspace_id, username, email, created_at) VALUES (1, 'u', 1, 'u', 'u', 0);
      INSERT INTO node (id, name, facts, address, vcpu, memory_mb, disk_gb, gpus) VALUES (1, 'n', '{}', '', 9, 9, 9, 9);
      INSERT INTO app (id, app_id, uid, workspace_id, name, kms, created_at) VALUES (1, zeroblob(20), 'a', 1, 'a', 'k', 0);
      INSERT INTO cvm (id, uid, vm_uuid, workspace_id, user_id, app, node_id, name, listed, status, power, generation, revision,
          latest_revision, booked_vcpu, booked_memory_mb, booked_disk_gb, booked_gpus, created_at, updated_at)
        VALUES (1, 'cvm_a', zeroblob(16), 1, 1, 1, 1, 'old', 0, 'running', 'on', 1, 1, 1, 1, 1, 1, 0, 0, 0)";
    store.write(move |tx| Ok(tx.execute_batch(rows)?)).await.expect("stored");
    store
}

/// The name of `cvm_a`, as whoever asks for it hears.
fn name_of_the_cvm(store: &Store) -> Option<String> {
    let reference = CvmRef::Uid("cvm_a".parse().expect("an id"));
    match store.cvm_find(1, &reference).expect("reads") {
        Found::One(cvm) => Some(cvm.name),
        Found::None | Found::SeveralOfApp => None,
    }
}

#[tokio::test]
async fn what_is_remembered_of_a_cvm_is_never_older_than_what_was_answered() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = with_a_cvm(folder.path()).await;
    let run = |sql: &'static str| store.write(move |tx| Ok(tx.execute(sql, [])?));
    assert_eq!(name_of_the_cvm(&store).as_deref(), Some("old"));
    assert!(store.0.recent.get(&CvmRef::Number(1)).is_some(), "it is remembered");
    run("UPDATE cvm SET name = 'new'").await.expect("stored");
    assert_eq!(name_of_the_cvm(&store).as_deref(), Some("new"));

    // Read before a change, and kept after it: that would stay for ever.
    let before = store.0.recent.before();
    let read = Arc::new(store.cvm(1).expect("reads"));
    run("UPDATE cvm SET name = 'newer'").await.expect("stored");
    store.0.recent.keep(&CvmRef::Number(1), &read, before);
    assert_eq!(name_of_the_cvm(&store).as_deref(), Some("newer"));

    run("UPDATE cvm SET deleted_at = 1").await.expect("stored");
    assert_eq!(name_of_the_cvm(&store), None);
}

#[tokio::test]
async fn what_is_remembered_is_told_to_its_workspace_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = with_a_cvm(folder.path()).await;
    assert!(name_of_the_cvm(&store).is_some());
    assert!(matches!(store.cvm_find(2, &CvmRef::Number(1)), Ok(Found::None)));
}

#[tokio::test]
async fn a_bug_in_one_transaction_does_not_reach_the_others() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = grouped(folder.path());
    let broken = store.write(|tx| -> Result<()> {
        tx.execute("INSERT INTO setting (name, value) VALUES ('half', 1)", [])?;
        panic!("a bug");
    });
    let (broken, fine) = tokio::join!(broken, put(&store, "fine".into(), false));
    assert!(matches!(broken, Err(Error::Unavailable(_))), "{broken:?}");
    fine.expect("stored");
    assert_eq!(count(&store), 1);
}
