//! What any store behind [`Store`](super::Store) has to do: whole transactions, and answers only after the commit.

use std::path::Path;

use super::{Durability, Error, Result, Store, WriterMode};

fn grouped(folder: &Path) -> Store {
    Store::open(&folder.join("test.db"), Durability::Full, WriterMode::Grouped).expect("a fresh store")
}

fn count(store: &Store) -> i64 {
    store.read(|tx| Ok(tx.query_row("SELECT count(*) FROM setting", [], |row| row.get(0))?)).expect("reads")
}

async fn put(store: &Store, name: String, fails: bool) -> Result<()> {
    store
        .write(move |tx| {
            tx.execute("INSERT INTO setting (name, value) VALUES (?, 1)", [name])?;
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
