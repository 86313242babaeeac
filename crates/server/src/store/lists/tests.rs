//! Many CVMs: what a page shows, what a search finds, and that neither of them looks at everything.

use rusqlite::Connection;

use super::search::MOST;
use super::*;
use crate::store::{Durability, WriterMode};

/// 20,000 CVMs, one of ten in the workspace of somebody else. Two of the newest share an app.
const ROWS: &str = "
  INSERT INTO workspace (id, uid, name, slug, created_at) VALUES (1, 'w1', 'w', 'w1', 0), (2, 'w2', 'w', 'w2', 0);
  INSERT INTO user (id, uid, workspace_id, username, email, created_at) VALUES (1, 'u1', 1, 'u', 'u', 0), (2, 'u2', 2, 'u', 'u', 0);
  INSERT INTO node (id, name, facts, address, vcpu, memory_mb, disk_gb, gpus)
    VALUES (1, 'n1', '{}', '', 99999, 99999, 99999, 9), (2, 'n2', '{}', '', 99999, 99999, 99999, 9);
  CREATE TEMP TABLE n AS WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20000)
    SELECT n, CASE WHEN n % 10 = 0 THEN 2 ELSE 1 END AS workspace, printf('%08X', n * 2654435761 & 0xffffffff) AS digits FROM n;
  INSERT INTO app (id, app_id, uid, workspace_id, name, kms, created_at)
    SELECT n, unhex(printf('%s%032d', digits, n)), 'dapp_' || n, workspace, printf('web-%06d', n), 'k', 0 FROM n;
  INSERT INTO cvm (uid, vm_uuid, workspace_id, user_id, app, node_id, name, listed, instance_id, status, power, generation,
      revision, latest_revision, booked_vcpu, booked_memory_mb, booked_disk_gb, booked_gpus, created_at, updated_at)
    SELECT printf('cvm_a%06d', n), unhex(printf('%s%024d', digits, n)), workspace, workspace, iif(n = 19999, 19998, n),
      1 + (n % 100 = 1), printf('web-%06d', n), 0, unhex(printf('%s%032d', digits, n + 1)),
      iif(n % 2, 'running', 'stopped'), 'on', 1, 1, 1, 1, 1, 1, n % 5000 = 1, 0, 0 FROM n;
  INSERT INTO body (cvm_id, sha256, bytes) SELECT n, x'', x'' FROM n;
  INSERT INTO revision (cvm_id, number, compose_hash, document, vcpu, memory_mb, disk_gb, gpus, image, instance_seed, cause, user_id,
      op, created_at)
    SELECT n, 1, x'', x'', 1 + (n % 1000 = 1), 2048, 20, '{}', 'image', x'', 'create', 1, x'', 0 FROM n;
  DROP TABLE n;";

struct Filled {
    _folder: tempfile::TempDir,
    store: Store,
}

async fn filled() -> Filled {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("test.db");
    let store = Store::open(&file, Durability::None, WriterMode::Grouped).expect("a fresh store");
    let filled = Filled { _folder: folder, store };
    filled.run(ROWS).await;
    filled
}

impl Filled {
    async fn run(&self, sql: &str) {
        let sql = sql.to_owned();
        self.store.write(move |tx| Ok(tx.execute_batch(&sql)?)).await.expect("stored");
    }

    fn numbers(&self, sql: &str) -> Vec<i64> {
        self.store.read(|connection| numbers(connection, sql, &[])).expect("reads")
    }

    /// Numbers of the apps that a search of workspace 1 finds, at most 50, and how many there are.
    fn search(&self, text: &str) -> (Vec<i64>, u64) {
        let filter = AppFilter { search: Some(text.into()), limit: 50, ..AppFilter::default() };
        self.apps(&filter)
    }

    fn apps(&self, filter: &AppFilter) -> (Vec<i64>, u64) {
        let (apps, total) = self.store.apps(1, filter).expect("reads");
        (apps.iter().map(|app| app.id).collect(), total)
    }

    fn cvms(&self, filter: &CvmFilter) -> (Vec<i64>, u64) {
        let (cvms, total) = self.store.cvms(1, filter).expect("reads");
        (cvms.iter().map(|cvm| cvm.id).collect(), total)
    }

    /// What is kept beside the rows is what counting them gives.
    fn assert_tally(&self) {
        let count = |sql: &str| self.numbers(&format!("SELECT count(*) FROM ({sql})"))[0];
        let counted = "SELECT 'cvm', workspace_id, id / 1024, count(*) FROM cvm WHERE deleted_at IS NULL GROUP BY 2, 3
          UNION ALL SELECT 'app', workspace_id, id / 1024, count(*) FROM app WHERE cvm_count > 0 GROUP BY 2, 3";
        let kept = "SELECT list, workspace_id, block, count FROM tally";
        assert_eq!(count(&format!("{counted} EXCEPT {kept}")), 0);
        assert_eq!(count(&format!("{kept} EXCEPT SELECT * FROM ({counted})")), 0);
    }
}

#[tokio::test]
async fn pages_show_everything_once_from_the_newest_on_also_where_much_was_deleted() {
    let filled = filled().await;
    filled.assert_tally();
    // A whole block, single ones, and the newest and oldest.
    let gone = "id BETWEEN 5000 AND 7500 OR id % 7 = 0 OR id < 3 OR id > 19995";
    filled.run(&format!("UPDATE cvm SET deleted_at = 1 WHERE {gone}")).await;
    filled.assert_tally();
    filled.run("UPDATE cvm SET status = 'running', booked_vcpu = 2, updated_at = 1 WHERE id % 3 = 0").await;
    filled.assert_tally();

    let live = "workspace_id = 1 AND deleted_at IS NULL";
    let cvms = filled.numbers(&format!("SELECT id FROM cvm WHERE {live} ORDER BY id DESC"));
    let apps = filled.numbers(&format!("SELECT DISTINCT app FROM cvm WHERE {live} ORDER BY app DESC"));
    for size in [100, 1023] {
        for page in 0..=20_000 / size {
            let (offset, limit) = (page * size, size);
            let of = |all: &[i64]| part(all.to_vec(), offset, limit);
            assert_eq!(
                filled.cvms(&CvmFilter { offset, limit, ..CvmFilter::default() }),
                of(&cvms),
                "{offset}"
            );
            assert_eq!(
                filled.apps(&AppFilter { offset, limit, ..AppFilter::default() }),
                of(&apps),
                "{offset}"
            );
        }
    }
    let far = CvmFilter { offset: u64::from(u32::MAX) * 100, limit: 100, ..CvmFilter::default() };
    assert_eq!(filled.cvms(&far), (Vec::new(), cvms.len() as u64));
    assert_eq!(filled.store.cvms_of_app(19_997, 10).expect("reads").len(), 0, "it was deleted");
    let shown = filled.store.cvms_of_app(8_002, 10).expect("reads");
    assert_eq!(shown.iter().map(|cvm| cvm.id).collect::<Vec<_>>(), [8_002]);
}

#[tokio::test]
async fn a_page_never_shows_what_a_cvm_was_before_an_answered_change() {
    let filled = filled().await;
    let names = || {
        let filter = CvmFilter { limit: 2, ..CvmFilter::default() };
        let (cvms, _) = filled.store.cvms(1, &filter).expect("reads");
        cvms.iter().map(|cvm| cvm.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["web-019999", "web-019998"]);
    filled.run("UPDATE cvm SET name = 'newer' WHERE id = 19999").await;
    assert_eq!(names(), ["newer", "web-019998"]);
    filled.run("UPDATE cvm SET deleted_at = 1 WHERE id = 19999").await;
    assert_eq!(names(), ["web-019998", "web-019997"]);
}

#[tokio::test]
async fn filters_leave_what_fits() {
    let filled = filled().await;
    let cvms = |filter: CvmFilter| filled.cvms(&CvmFilter { limit: 3, offset: 1, ..filter });
    let node_id = Some(2);
    assert_eq!(cvms(CvmFilter { node_id, ..CvmFilter::default() }), (vec![19_801, 19_701, 19_601], 200));
    assert_eq!(cvms(CvmFilter { gpus: Some(true), ..CvmFilter::default() }), (vec![10_001, 5_001, 1], 4));
    assert_eq!(cvms(CvmFilter { gpus: Some(false), ..CvmFilter::default() }).1, 18_000 - 4);
    let sizes = Some(vec![(2, 2048, 0)]);
    assert_eq!(
        cvms(CvmFilter { sizes, node_id, ..CvmFilter::default() }),
        (vec![18_001, 17_001, 16_001], 20)
    );

    let apps = |filter: AppFilter| filled.apps(&AppFilter { limit: 2, ..filter });
    let nodes = Some(vec![2, 7]);
    assert_eq!(apps(AppFilter { nodes, ..AppFilter::default() }), (vec![19_901, 19_801], 200));
    let statuses = vec!["stopped".to_owned(), "failed".to_owned()];
    assert_eq!(apps(AppFilter { statuses, ..AppFilter::default() }), (vec![19_998, 19_996], 8_000));
    let (kms, image) = (Some(vec!["k".to_owned()]), Some("image".to_owned()));
    assert_eq!(apps(AppFilter { kms, image, ..AppFilter::default() }), (vec![19_998, 19_997], 17_999));
    let sizes = Some(vec![(2, 2048, 0)]);
    let search = Some("web-01".to_owned());
    assert_eq!(apps(AppFilter { sizes, search, ..AppFilter::default() }), (vec![19_001, 18_001], 10));
}

#[tokio::test]
async fn a_search_finds_names_by_any_part_and_ids_by_their_beginning() {
    let filled = filled().await;
    for (id, name) in
        [(11, "Straße-ÄÖÜ"), (12, "100%_real"), (13, "a\"quoted\"b"), (14, "x* AND (y)"), (15, "日本語の名")]
    {
        filled.run(&format!("UPDATE cvm SET name = '{name}' WHERE id = {id}")).await;
    }
    let none = (Vec::new(), 0);
    for (text, apps) in [
        ("web-000123", &[123][..]),
        ("WEB-000123", &[123]),
        // 120 is somebody else's.
        ("B-00012", &[129, 128, 127, 126, 125, 124, 123, 122, 121]),
        ("b-000120", &[]),
        ("straße", &[11]),
        ("e-äöü", &[11]),
        ("strasse", &[]),
        ("%_r", &[12]),
        ("0%_REAL", &[12]),
        ("___", &[]),
        ("%%%", &[]),
        ("a\"q", &[13]),
        ("\"quoted\"", &[13]),
        ("* AND (", &[14]),
        ("web-000011 OR web-000012", &[]),
        ("本語の", &[15]),
        // Less than a piece: at the beginning only.
        ("日本", &[15]),
        ("本", &[]),
        ("s", &[11]),
        ("X*", &[14]),
        ("%", &[]),
        ("\"", &[]),
        ("eb", &[]),
        ("zzz", &[]),
        ("name : web", &[]),
        ("we\0b", &[]),
        ("\u{1f980}\u{1f980}\u{1f980}", &[]),
        (&"web-".repeat(100), &[]),
    ] {
        assert_eq!(filled.search(text), (apps.to_vec(), apps.len() as u64), "{text}");
    }

    // 4711 * 2654435761 begins with these digits.
    let digits = format!("{:08x}", 4711_u64 * 2_654_435_761 % (1 << 32));
    let whole = format!("{digits}{:032}", 4711);
    for text in [
        digits.clone(),
        digits.to_uppercase(),
        digits[..7].to_owned(),
        whole.clone(),
        format!("app_{whole}"),
        format!("0x{whole}"),
        format!("instance_{digits}{:032}", 4712),
        format!("{digits}-0000-0000-0000-{:012}", 4711),
        format!("{digits}-0000-0"),
    ] {
        assert_eq!(filled.search(&text), (vec![4711], 1), "{text}");
    }
    assert_eq!(filled.search(&whole[1..]), none, "it is no beginning");
    assert_eq!(filled.search(&format!("{whole}0")), none, "it is too long");
    let foreign = format!("{:08x}", 4710_u64 * 2_654_435_761 % (1 << 32));
    assert_eq!(filled.search(&foreign), none, "it is somebody else's");
    let found = filled.store.apps(2, &AppFilter { search: Some(foreign), limit: 9, ..AppFilter::default() });
    assert_eq!(found.expect("reads").1, 1);
}

#[tokio::test]
async fn a_search_knows_of_new_names_and_forgets_what_was_deleted() {
    let filled = filled().await;
    let found = |text: &str| filled.search(text).0;
    // Two CVMs of one app: it is shown once, by the name of either.
    assert_eq!(found("web-019999"), [19_998]);
    assert_eq!(found("web-01999"), [19_998, 19_997, 19_996, 19_995, 19_994, 19_993, 19_992, 19_991]);
    filled.run("UPDATE cvm SET name = 'other-name' WHERE id = 19999").await;
    assert_eq!(found("web-019999"), [] as [i64; 0]);
    assert_eq!(found("other-name"), [19_998]);
    // A name of its own, and that of its app.
    filled.run("UPDATE cvm SET name = 'third-name' WHERE id = 101").await;
    assert_eq!((found("third-name"), found("web-000101")), (vec![101], vec![101]));
    filled.run("UPDATE cvm SET deleted_at = 1 WHERE id IN (101, 19999)").await;
    for text in ["third-name", "web-000101", "other-name"] {
        assert_eq!(found(text), [] as [i64; 0], "{text}");
    }
    let left = "SELECT rowid FROM cvm_search ('tenant : \"' || char(57344 + 1, 57344, 57344) || '\"') ORDER BY rowid";
    assert_eq!(
        filled.numbers(left),
        filled.numbers(
            "SELECT id FROM cvm INDEXED BY cvm_live WHERE workspace_id = 1 AND deleted_at IS NULL ORDER BY id"
        )
    );
}

#[tokio::test]
async fn a_search_that_finds_everything_shows_the_newest() {
    let filled = filled().await;
    for text in ["w", "we", "web"] {
        let (apps, total) = filled.search(text);
        // Two of the CVMs are of one app.
        assert_eq!((apps.first(), total), (Some(&19_998), MOST - 1), "{text}");
    }
}

/// What SQLite says about how it would run a statement.
fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("it reads");
    let mut rows = statement.raw_query();
    let mut lines = Vec::new();
    while let Some(row) = rows.next().expect("a plan") {
        lines.push(row.get(3).expect("text"));
    }
    lines
}

#[tokio::test]
async fn no_page_and_no_search_looks_at_everything_or_sorts() {
    let filled = filled().await;
    let search = || Some("web".to_owned());
    let nodes = || Some(vec![1]);
    let statements = [
        TALLY.to_owned(),
        CVMS.total.to_owned(),
        CVMS.numbers.to_owned(),
        APPS.total.to_owned(),
        APPS.numbers.to_owned(),
        CVMS_OF_APP.to_owned(),
        const_format(rows::CVM, "WHERE c.id = ? AND c.deleted_at IS NULL"),
        const_format(APP, " WHERE id = ?"),
        fitting_cvms(&CvmFilter::default()),
        fitting_cvms(&CvmFilter { node_id: Some(1), ..CvmFilter::default() }),
        fitting_cvms_apps(&AppFilter::default()),
        fitting_cvms_apps(&AppFilter { nodes: nodes(), ..AppFilter::default() }),
        fitting_cvms_apps(&AppFilter { search: search(), ..AppFilter::default() }),
        fitting_cvms_apps(&AppFilter { search: search(), nodes: nodes(), ..AppFilter::default() }),
    ];
    let plans = filled
        .store
        .read(|connection| Ok(statements.iter().map(|sql| plan(connection, sql)).collect::<Vec<_>>()));
    for (sql, plan) in statements.iter().zip(plans.expect("reads")) {
        assert!(!plan.is_empty());
        for line in plan {
            let walks = line.starts_with("SCAN ")
                && !line.contains(" VIRTUAL TABLE ")
                && !line.starts_with("SCAN (subquery");
            assert!(!walks && !line.contains("TEMP B-TREE"), "{line}\n{sql}");
            let narrow = sql.contains("cvm_search") || sql.contains("cvm_of_node");
            assert!(!narrow || !line.contains("workspace_id=?"), "it looks at everything: {line}\n{sql}");
        }
    }
}

#[tokio::test]
async fn only_a_new_name_and_a_deletion_write_to_the_index_of_names() {
    let filled = filled().await;
    let columns = "SELECT name FROM pragma_table_info('cvm') WHERE name <> 'id'";
    let writing = filled.store.read(|connection| {
        let mut statement = connection.prepare(columns)?;
        let columns = statement.query_map([], |row| row.get::<_, String>(0))?;
        let mut writing = Vec::new();
        for column in columns {
            let column = column?;
            let mut program = connection.prepare(&format!("EXPLAIN UPDATE cvm SET {column} = {column}"))?;
            let mut steps = program.query_map([], |row| row.get::<_, String>(1))?;
            if steps.any(|step| step.is_ok_and(|step| step == "VUpdate")) {
                writing.push(column);
            }
        }
        Ok(writing)
    });
    assert_eq!(writing.expect("reads"), ["name", "deleted_at"]);
}
