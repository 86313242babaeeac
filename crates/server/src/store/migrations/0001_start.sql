-- Who: workspaces, their users, and the keys they act with.
CREATE TABLE workspace (
  id          INTEGER PRIMARY KEY,
  uid         TEXT NOT NULL UNIQUE,
  name        TEXT NOT NULL,
  slug        TEXT NOT NULL UNIQUE,
  next_nonce  INTEGER NOT NULL DEFAULT 0,     -- counts the app ids handed out
  cvm_count   INTEGER NOT NULL DEFAULT 0,     -- live CVMs, kept by the triggers below
  app_count   INTEGER NOT NULL DEFAULT 0,     -- apps with a live CVM
  created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE user (
  id           INTEGER PRIMARY KEY,
  uid          TEXT NOT NULL UNIQUE,
  workspace_id INTEGER NOT NULL REFERENCES workspace,
  username     TEXT NOT NULL,
  email        TEXT NOT NULL,
  created_at   INTEGER NOT NULL
) STRICT;

CREATE INDEX user_of_workspace ON user (workspace_id);

CREATE TABLE api_key (
  id              INTEGER PRIMARY KEY,
  uid             TEXT NOT NULL UNIQUE,
  hash            BLOB NOT NULL UNIQUE,        -- SHA-256 of the key; the key itself is never stored
  prefix          TEXT NOT NULL,               -- the first characters, to recognise it by
  workspace_id    INTEGER NOT NULL REFERENCES workspace,
  user_id         INTEGER NOT NULL REFERENCES user,
  name            TEXT NOT NULL,
  scopes          TEXT NOT NULL,               -- separated by spaces
  default_version TEXT NOT NULL,
  created_at      INTEGER NOT NULL,
  expires_at      INTEGER,
  revoked_at      INTEGER,
  last_used_at    INTEGER                      -- to within a minute or so
) STRICT;
CREATE INDEX api_key_of_workspace ON api_key (workspace_id);

-- Where: nodes and what is booked on them. `booked_*` always equals the sum over live CVMs: triggers keep it, the CHECK
-- refuses what does not fit.
CREATE TABLE node (
  id               INTEGER PRIMARY KEY,
  name             TEXT NOT NULL UNIQUE,
  facts            TEXT NOT NULL,              -- JSON, as the driver last reported
  address          TEXT NOT NULL,              -- as the configuration names it: tells who is meant while it does not answer
  seen_at          INTEGER,                    -- last contact, to within some minutes; NULL: never, and the name stands in for its own
  vcpu             INTEGER NOT NULL,
  memory_mb        INTEGER NOT NULL,
  disk_gb          INTEGER NOT NULL,
  gpus             INTEGER NOT NULL,
  booked_vcpu      INTEGER NOT NULL DEFAULT 0 CONSTRAINT insufficient_vcpu CHECK (booked_vcpu <= vcpu),
  booked_memory_mb INTEGER NOT NULL DEFAULT 0 CONSTRAINT insufficient_memory CHECK (booked_memory_mb <= memory_mb),
  booked_disk_gb   INTEGER NOT NULL DEFAULT 0 CONSTRAINT insufficient_disk CHECK (booked_disk_gb <= disk_gb),
  booked_gpus      INTEGER NOT NULL DEFAULT 0 CONSTRAINT insufficient_gpus CHECK (booked_gpus <= gpus),
  cvm_count        INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What: apps, their CVMs, and every spec a CVM has had.
CREATE TABLE app (
  id           INTEGER PRIMARY KEY,
  app_id       BLOB NOT NULL UNIQUE,           -- 20 bytes
  uid          TEXT NOT NULL UNIQUE,
  workspace_id INTEGER NOT NULL REFERENCES workspace,
  name         TEXT NOT NULL,
  kms          TEXT NOT NULL,                  -- slug of the key service
  env_key      BLOB,                           -- its public key and the signature, 97 bytes, if a dstack-kms gave it
  deployer     TEXT,                           -- who deployed its contract, as the client said
  cvm_count    INTEGER NOT NULL DEFAULT 0,
  created_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX app_of_workspace ON app (workspace_id, id) WHERE cvm_count > 0;

CREATE TABLE cvm (
  id                INTEGER PRIMARY KEY AUTOINCREMENT,
  uid               TEXT NOT NULL UNIQUE,      -- cvm_…
  vm_uuid           BLOB NOT NULL UNIQUE,
  workspace_id      INTEGER NOT NULL REFERENCES workspace,
  user_id           INTEGER NOT NULL REFERENCES user,
  app               INTEGER NOT NULL REFERENCES app,
  node_id           INTEGER NOT NULL REFERENCES node,
  name              TEXT NOT NULL,
  listed            INTEGER NOT NULL,
  instance_id       BLOB,                      -- the one that is valid now
  status            TEXT NOT NULL,
  power             TEXT NOT NULL,             -- desired: on, off
  generation        INTEGER NOT NULL,
  revision          INTEGER NOT NULL,          -- current
  latest_revision   INTEGER NOT NULL,
  boot_error        TEXT,
  open_op           BLOB,                      -- the operation at work
  booked_vcpu       INTEGER NOT NULL,
  booked_memory_mb  INTEGER NOT NULL,
  booked_disk_gb    INTEGER NOT NULL,
  booked_gpus       INTEGER NOT NULL,
  created_at        INTEGER NOT NULL,
  updated_at        INTEGER NOT NULL,
  deleted_at        INTEGER
) STRICT;
CREATE UNIQUE INDEX cvm_name ON cvm (workspace_id, name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX cvm_instance ON cvm (instance_id) WHERE deleted_at IS NULL AND instance_id IS NOT NULL;
CREATE INDEX cvm_of_app ON cvm (app) WHERE deleted_at IS NULL;
CREATE INDEX cvm_of_node ON cvm (node_id) WHERE deleted_at IS NULL;
CREATE INDEX cvm_deleted ON cvm (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX cvm_live ON cvm (workspace_id, id) WHERE deleted_at IS NULL;

-- How many live CVMs (list 'cvm') and apps with one (list 'app') of a workspace have a number in a block of 1024. It leads to any
-- page of a list without a walk past everything that comes before.
CREATE TABLE tally (
  list         TEXT NOT NULL,
  workspace_id INTEGER NOT NULL,
  block        INTEGER NOT NULL,               -- number / 1024
  count        INTEGER NOT NULL,
  PRIMARY KEY (list, workspace_id, block)
) STRICT, WITHOUT ROWID;

-- What searches look through: the name of each live CVM, and that of its app if it has another, in pieces of three characters.
-- Two characters that no name has stand before a name, so that a term of one or two is found at its beginning. Three such
-- characters stand for the workspace, in digits to the base of 6400.
CREATE VIRTUAL TABLE cvm_search USING fts5 (tenant, name, app, content = '', contentless_delete = 1, tokenize = 'trigram');

CREATE VIEW cvm_words AS SELECT c.id,
  char(57344 + c.workspace_id % 6400, 57344 + c.workspace_id / 6400 % 6400, 57344 + c.workspace_id / 40960000 % 6400) AS tenant,
  char(63743, 63743) || c.name AS name, char(63743, 63743) || nullif(a.name, c.name) AS app
  FROM cvm c JOIN app a ON a.id = c.app;
CREATE TRIGGER cvm_findable AFTER INSERT ON cvm BEGIN
  INSERT INTO cvm_search (rowid, tenant, name, app) SELECT id, tenant, name, app FROM cvm_words WHERE id = NEW.id;
END;
CREATE TRIGGER cvm_renamed AFTER UPDATE OF name ON cvm WHEN OLD.name <> NEW.name AND NEW.deleted_at IS NULL BEGIN
  DELETE FROM cvm_search WHERE rowid = NEW.id;
  INSERT INTO cvm_search (rowid, tenant, name, app) SELECT id, tenant, name, app FROM cvm_words WHERE id = NEW.id;
END;

CREATE TRIGGER cvm_booked AFTER INSERT ON cvm BEGIN
  UPDATE node SET booked_vcpu = booked_vcpu + NEW.booked_vcpu, booked_memory_mb = booked_memory_mb + NEW.booked_memory_mb,
    booked_disk_gb = booked_disk_gb + NEW.booked_disk_gb, booked_gpus = booked_gpus + NEW.booked_gpus, cvm_count = cvm_count + 1
    WHERE id = NEW.node_id;
  UPDATE app SET cvm_count = cvm_count + 1 WHERE id = NEW.app;
  UPDATE workspace SET cvm_count = cvm_count + 1 WHERE id = NEW.workspace_id;
  INSERT INTO tally (list, workspace_id, block, count) VALUES ('cvm', NEW.workspace_id, NEW.id / 1024, 1)
    ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER cvm_rebooked AFTER UPDATE OF booked_vcpu, booked_memory_mb, booked_disk_gb, booked_gpus ON cvm
WHEN (OLD.booked_vcpu, OLD.booked_memory_mb, OLD.booked_disk_gb, OLD.booked_gpus)
  <> (NEW.booked_vcpu, NEW.booked_memory_mb, NEW.booked_disk_gb, NEW.booked_gpus) BEGIN
  UPDATE node SET booked_vcpu = booked_vcpu + NEW.booked_vcpu - OLD.booked_vcpu,
    booked_memory_mb = booked_memory_mb + NEW.booked_memory_mb - OLD.booked_memory_mb,
    booked_disk_gb = booked_disk_gb + NEW.booked_disk_gb - OLD.booked_disk_gb,
    booked_gpus = booked_gpus + NEW.booked_gpus - OLD.booked_gpus WHERE id = NEW.node_id;
END;
CREATE TRIGGER cvm_gone AFTER UPDATE OF deleted_at ON cvm WHEN OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL BEGIN
  UPDATE node SET cvm_count = cvm_count - 1 WHERE id = NEW.node_id;
  UPDATE app SET cvm_count = cvm_count - 1 WHERE id = NEW.app;
  UPDATE workspace SET cvm_count = cvm_count - 1 WHERE id = NEW.workspace_id;
  UPDATE tally SET count = count - 1 WHERE list = 'cvm' AND workspace_id = NEW.workspace_id AND block = NEW.id / 1024;
  DELETE FROM tally WHERE list = 'cvm' AND workspace_id = NEW.workspace_id AND block = NEW.id / 1024 AND count = 0;
  DELETE FROM cvm_search WHERE rowid = NEW.id;
END;
CREATE TRIGGER app_alive AFTER UPDATE OF cvm_count ON app WHEN OLD.cvm_count = 0 AND NEW.cvm_count > 0 BEGIN
  UPDATE workspace SET app_count = app_count + 1 WHERE id = NEW.workspace_id;
  INSERT INTO tally (list, workspace_id, block, count) VALUES ('app', NEW.workspace_id, NEW.id / 1024, 1)
    ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER app_gone AFTER UPDATE OF cvm_count ON app WHEN OLD.cvm_count > 0 AND NEW.cvm_count = 0 BEGIN
  UPDATE workspace SET app_count = app_count - 1 WHERE id = NEW.workspace_id;
  UPDATE tally SET count = count - 1 WHERE list = 'app' AND workspace_id = NEW.workspace_id AND block = NEW.id / 1024;
  DELETE FROM tally WHERE list = 'app' AND workspace_id = NEW.workspace_id AND block = NEW.id / 1024 AND count = 0;
END;

-- What nodes last reported of machines, never what was asked for. Not with the CVM: it is long, and rarely read or written with it.
CREATE TABLE observation (
  cvm_id INTEGER PRIMARY KEY REFERENCES cvm,
  report TEXT NOT NULL                         -- JSON
) STRICT;

-- Long texts of a CVM's specs, each once: a revision that only changes the memory does not write the compose file again.
CREATE TABLE body (
  cvm_id INTEGER NOT NULL REFERENCES cvm,
  sha256 BLOB NOT NULL,
  bytes  BLOB NOT NULL,
  PRIMARY KEY (cvm_id, sha256)
) STRICT;

CREATE TABLE revision (
  cvm_id        INTEGER NOT NULL REFERENCES cvm,
  number        INTEGER NOT NULL,
  compose_hash  BLOB NOT NULL,                 -- also the key of the compose text in `body`
  document      BLOB NOT NULL,                 -- keys in `body`, as are the next two
  sealed_env    BLOB,
  user_config   BLOB,
  vcpu          INTEGER NOT NULL,
  memory_mb     INTEGER NOT NULL,
  disk_gb       INTEGER NOT NULL,
  gpus          TEXT NOT NULL,                 -- JSON
  image         TEXT NOT NULL,
  instance_seed BLOB NOT NULL,
  cause         TEXT NOT NULL,                 -- create, update, put_back …
  content_of    INTEGER,                       -- the revision whose content a put-back or rollback brings back
  user_id       INTEGER,                       -- NULL: the server itself
  op            BLOB NOT NULL,
  created_at    INTEGER NOT NULL,
  images        TEXT,                          -- JSON: what the images of its services mean, settled when it was first staged
  PRIMARY KEY (cvm_id, number),
  -- What is said to be stored is stored, or the revision could never run.
  FOREIGN KEY (cvm_id, compose_hash) REFERENCES body,
  FOREIGN KEY (cvm_id, document) REFERENCES body,
  FOREIGN KEY (cvm_id, sealed_env) REFERENCES body,
  FOREIGN KEY (cvm_id, user_config) REFERENCES body
) STRICT;

-- Work. A row is the whole truth about an operation; steps are part of it.
CREATE TABLE operation (
  id          BLOB PRIMARY KEY,
  cvm_id      INTEGER NOT NULL REFERENCES cvm,
  workspace_id INTEGER NOT NULL,              -- that of the CVM, for lists and shares
  node_id     INTEGER NOT NULL,                -- that of the CVM, for shares
  generation  INTEGER NOT NULL,
  kind        TEXT NOT NULL,
  status      TEXT NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
  step        INTEGER NOT NULL,                -- index into steps
  steps       TEXT NOT NULL,                   -- JSON
  attempt     INTEGER NOT NULL DEFAULT 1,      -- of the present step
  not_before  INTEGER NOT NULL,
  lease_until INTEGER NOT NULL DEFAULT 0,
  claim       INTEGER NOT NULL DEFAULT 0,      -- counts claims; only the holder of the newest may record
  waiting_for TEXT,
  target      INTEGER NOT NULL,                -- revision that it brings about
  previous    INTEGER NOT NULL,                -- revision that was current when it was accepted
  options     TEXT NOT NULL,                   -- JSON
  diff        TEXT NOT NULL,                   -- JSON
  reason      TEXT,                            -- JSON
  put_back    BLOB,
  ended_by    BLOB,
  downtime_ms INTEGER,
  user_id     INTEGER,                         -- NULL: the server itself
  created_at  INTEGER NOT NULL,
  ended_at    INTEGER
) STRICT, WITHOUT ROWID;
-- With everything that is asked for while something is looked for, so that only what is found is read.
CREATE INDEX operation_due ON operation (node_id, workspace_id, not_before, lease_until, kind, status) WHERE status IN ('queued', 'running');
CREATE INDEX operation_urgent ON operation (node_id, workspace_id, not_before, lease_until, kind, status)
  WHERE status IN ('queued', 'running') AND kind IN ('stop', 'delete');
CREATE INDEX operation_of_workspace ON operation (workspace_id, id);
-- Finds the operations of a CVM, and lets only one of them be open: all open ones are equal here.
CREATE UNIQUE INDEX operation_one_at_a_time ON operation (cvm_id, iif(status IN ('queued', 'running'), x'', id));

-- What happened, in commit order.
CREATE TABLE event (
  seq          INTEGER PRIMARY KEY AUTOINCREMENT,
  workspace_id INTEGER NOT NULL,
  cvm_id       INTEGER,
  op           BLOB,
  kind         TEXT NOT NULL,
  user_id      INTEGER,
  key_id       INTEGER,
  request_id   TEXT,
  before_rev   INTEGER,
  after_rev    INTEGER,
  at           INTEGER NOT NULL,
  data         TEXT                            -- JSON
) STRICT;
CREATE INDEX event_of_op ON event (op, seq) WHERE op IS NOT NULL;
CREATE INDEX event_of_cvm ON event (cvm_id) WHERE op IS NULL AND cvm_id IS NOT NULL;
CREATE INDEX event_of_workspace ON event (workspace_id, seq);

-- What was prepared and waits for its second call.
CREATE TABLE provision (
  id           INTEGER PRIMARY KEY,
  workspace_id INTEGER NOT NULL,
  cvm_id       INTEGER,                        -- of a compose update; NULL for a CVM to be created
  app_id       BLOB NOT NULL,
  compose_hash BLOB NOT NULL,
  content      TEXT NOT NULL,                  -- JSON
  expires_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX provision_age ON provision (expires_at);
CREATE UNIQUE INDEX provision_key ON provision (workspace_id, ifnull(cvm_id, 0), app_id, compose_hash);

CREATE TABLE approval (
  id            BLOB PRIMARY KEY,
  cvm_id        INTEGER NOT NULL REFERENCES cvm, -- of a replica: the CVM that it is made after
  purpose       TEXT NOT NULL CHECK (purpose IN ('update', 'replica')),
  compose_hash  BLOB NOT NULL,
  base_revision INTEGER NOT NULL,
  state         TEXT NOT NULL CHECK (state IN ('open', 'committed', 'superseded', 'expired', 'cancelled')),
  token_hash    BLOB,                          -- only of prepare-only ones
  auto_user     INTEGER,                       -- who switched auto-commit on,
  auto_key      INTEGER,                       -- and with which key
  attention     TEXT,                          -- why auto-commit waits for somebody
  op            BLOB,
  evidence      TEXT,                          -- JSON
  superseded_by BLOB CHECK ((superseded_by IS NOT NULL) = (state = 'superseded')), -- the approval that took its place
  user_id       INTEGER NOT NULL,
  created_at    INTEGER NOT NULL,
  expires_at    INTEGER NOT NULL,
  patch         TEXT NOT NULL                  -- JSON, sparse, as accepted. Long, so last: what is before it is read without it
) STRICT, WITHOUT ROWID;
CREATE INDEX approval_age ON approval (expires_at);
CREATE INDEX approval_open ON approval (expires_at) WHERE state = 'open';
CREATE INDEX approval_auto ON approval (id) WHERE state = 'open' AND auto_key IS NOT NULL AND attention IS NULL;
CREATE INDEX approval_of_cvm ON approval (cvm_id, compose_hash);
CREATE UNIQUE INDEX approval_token ON approval (token_hash) WHERE token_hash IS NOT NULL;

-- What apps' contracts reported of compose hashes, as far as it was read.
CREATE TABLE app_log (
  app      INTEGER PRIMARY KEY REFERENCES app,
  next     INTEGER NOT NULL,                   -- the block from which reading goes on
  complete INTEGER NOT NULL                    -- the head was reached
) STRICT;

CREATE TABLE app_hash (
  app          INTEGER NOT NULL REFERENCES app,
  compose_hash BLOB NOT NULL,
  PRIMARY KEY (app, compose_hash)
) STRICT, WITHOUT ROWID;

-- Answers kept for repeated requests.
CREATE TABLE idempotency (
  scope   BLOB PRIMARY KEY,                    -- SHA-256 over workspace, user, method, path and key
  request BLOB NOT NULL,                       -- SHA-256 of the body
  status  INTEGER NOT NULL,
  answer  TEXT NOT NULL,
  at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_age ON idempotency (at);

-- Single values that belong to the store.
CREATE TABLE setting (
  name  TEXT PRIMARY KEY,
  value ANY NOT NULL
) STRICT, WITHOUT ROWID;
