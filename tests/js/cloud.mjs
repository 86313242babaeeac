// A fresh cloud for a test file: `casemate dev` in a folder and on a port of its own.
//
//   const cloud = await startCloud();
//   after(() => cloud.stop());
//
// The folder (store, log, dev.env) stays behind under .tools/clouds for a look after a failure; `make test` empties it.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { createClient, encryptEnvVars } from "@phala/cloud";

export const root = fileURLToPath(new URL("../..", import.meta.url));

/** The program, where cargo puts it; CASEMATE_BIN names another. */
export const casemate =
  process.env.CASEMATE_BIN ?? path.resolve(root, process.env.CARGO_TARGET_DIR ?? "target", "debug", "casemate");

const PHALA = fileURLToPath(new URL("node_modules/.bin/phala", import.meta.url));
/** For clouds with a chain of their own; ANVIL_BIN names another. */
const ANVIL = process.env.ANVIL_BIN ?? fileURLToPath(new URL("node_modules/.bin/anvil", import.meta.url));

export const COMPOSE = `services:
  web:
    image: nginx:alpine
    ports:
      - "80:80"
`;

export const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** Waits until `probe` returns something other than `undefined`, and returns that. */
export async function until(what, probe, seconds = 30) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const found = await probe();
    if (found !== undefined) return found;
    if (Date.now() > deadline) throw new Error(`waited ${seconds} s for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Starts `casemate dev`; resolves when it is ready, rejects with its log when it is not after a minute. */
export async function startCloud({ nodes = "sim:1", args = [] } = {}) {
  const clouds = path.join(root, ".tools", "clouds");
  fs.mkdirSync(clouds, { recursive: true });
  const dir = fs.mkdtempSync(path.join(clouds, `${path.basename(process.argv[1] ?? "cloud", ".mjs")}-`));
  const logFile = path.join(dir, "casemate.log");
  const log = fs.openSync(logFile, "w");
  const ready = watchFor(dir, "dev.env");
  const child = spawn(casemate, ["dev", "--listen", "127.0.0.1:0", "--data", dir, "--nodes", nodes, ...args], {
    stdio: ["ignore", log, log],
    env: { ...process.env, ANVIL_BIN: ANVIL },
  });
  fs.closeSync(log);
  const exit = once(child, "exit").catch((error) => {
    throw new Error(`${casemate} cannot be started (${error.code}); cargo build -p casemate makes it`);
  });
  // Whatever ends this process ends its cloud.
  const kill = () => child.kill("SIGKILL");
  process.once("exit", kill);
  const fail = (why) => new Error(`${why}\n${fs.readFileSync(logFile, "utf8")}`);
  const started = await Promise.race([
    ready.found,
    exit.then(([code, signal]) => fail(`casemate dev ended (${code ?? signal}) before it was ready`)),
    new Promise((resolve) => setTimeout(resolve, 60_000, "late").unref()).then(() => fail("not ready after 60 s")),
  ]).finally(ready.close);
  if (started instanceof Error) {
    kill();
    throw started;
  }
  return new Cloud(dir, logFile, child, exit);
}

function watchFor(dir, name) {
  const file = path.join(dir, name);
  let watcher;
  const found = new Promise((resolve) => {
    watcher = fs.watch(dir, () => fs.existsSync(file) && resolve());
    if (fs.existsSync(file)) resolve();
  });
  return { found, close: () => watcher.close() };
}

class Cloud {
  constructor(dir, logFile, child, exit) {
    Object.assign(this, { dir, logFile, child, exit });
    const file = path.join(dir, "dev.env");
    const lines = fs.readFileSync(file, "utf8").matchAll(/^export (\w+)=(.*)$/gm);
    this.env = Object.fromEntries([...lines].map(([, name, value]) => [name, value]));
    this.envMode = fs.statSync(file).mode & 0o777;
    this.baseURL = this.env.PHALA_CLOUD_API_PREFIX;
    this.apiKey = this.env.PHALA_CLOUD_API_KEY;
  }

  /** The official client, as its users make it. */
  client(version) {
    return createClient({ baseURL: this.baseURL, apiKey: this.apiKey, version });
  }

  /** A plain request below the API prefix, with the key and nothing else; `json` is sent as JSON. */
  rawFetch(route, { json, headers = {}, ...init } = {}) {
    const body = json === undefined ? {} : { body: JSON.stringify(json) };
    const type = json === undefined ? {} : { "Content-Type": "application/json" };
    return fetch(this.baseURL + route, { ...body, ...init, headers: { "X-API-Key": this.apiKey, ...type, ...headers } });
  }

  /** The JSON of a plain GET; anything but a 200 fails. */
  async get(route, headers) {
    const answer = await this.rawFetch(route, { headers });
    const text = await answer.text();
    assert.equal(answer.status, 200, `GET ${route}: ${text}`);
    return JSON.parse(text);
  }

  /** What the node itself says about a CVM. */
  observed(id) {
    return this.get(`/cvms/${id}/observed`);
  }

  /** The CVM once nothing is at work on it any more. */
  idle(id) {
    return until(`${id} to be idle`, async () => {
      const cvm = await this.get(`/cvms/${id}`, { "X-Phala-Version": "2026-01-21" });
      return cvm.in_progress === false && cvm.progress === null ? cvm : undefined;
    });
  }

  /** The operation behind a `correlation_id`, once it has ended. */
  operation(correlationId) {
    return until(`operation ${correlationId} to end`, async () => {
      const operation = await this.get(`/operations/${correlationId}`);
      return ["succeeded", "failed", "cancelled"].includes(operation.status) ? operation : undefined;
    });
  }

  /**
   * Creates a CVM with the official client and waits until it runs.
   *
   * `compose` are fields of the app-compose document, `env` is sealed, everything else goes to the provision request.
   */
  async create({ name, compose = {}, env, version, ...provision }) {
    const client = this.client(version);
    const keys = env && Object.keys(env);
    const { app_id, compose_hash, app_env_encrypt_pubkey } = await client.provisionCvm({
      name,
      ...provision,
      compose_file: { docker_compose_file: COMPOSE, ...(keys && { allowed_envs: keys }), ...compose },
    });
    const sealed = env && (await seal(env, app_env_encrypt_pubkey));
    const vm = await client.commitCvmProvision({ app_id, compose_hash, ...(sealed && { encrypted_env: sealed, env_keys: keys }) });
    const cvm = await this.idle(vm.vm_uuid);
    assert.equal(cvm.status, "running");
    return { vm, cvm, id: vm.vm_uuid, name, app_id, compose_hash, pubkey: app_env_encrypt_pubkey, sealed };
  }

  /**
   * Runs `act` and proves on the node what it did: `boots` starts of the machine, the fields in `changed` with exactly
   * these values (or passing these functions), every other field as it was, and the compose hash changed if and only
   * if `recomposed`. Returns what `act` returned.
   */
  async proves(id, { boots = 1, changed = {}, recomposed = false }, act) {
    const before = await this.observed(id);
    const answer = await act();
    const cvm = await this.idle(id);
    const after = await this.observed(id);
    assert.equal(after.boot_count - before.boot_count, boots, "boots");
    assert.equal(after.status, cvm.status);
    for (const field of FIELDS) {
      const expected = field in changed ? changed[field] : before[field];
      if (typeof expected === "function") assert.ok(expected(after[field]), `${field} on the node: ${after[field]}`);
      else assert.deepEqual(after[field], expected, `${field} on the node`);
    }
    const compose = await this.client().getCvmComposeFile({ id });
    assert.equal(after.compose_hash, compose.getHash(), "the node runs the document that the API shows");
    assert.equal(after.compose_hash, cvm.compose_hash, "the API shows the hash that the node runs");
    assert.equal(after.compose_hash !== before.compose_hash, recomposed, "compose hash changed");
    return answer;
  }

  /** Runs the `phala` command in a home of its own, with nothing but the two variables of dev.env. */
  phala(...args) {
    const env = {
      ...this.env,
      PATH: process.env.PATH,
      HOME: this.dir,
      PHALA_CLOUD_DIR: path.join(this.dir, "phala"),
      PHALA_DISABLE_UPDATE_CHECK: "1",
    };
    return new Promise((resolve) => {
      const child = execFile(PHALA, args, { cwd: this.dir, timeout: 60_000, env }, (error, stdout, stderr) =>
        resolve({ code: error?.code ?? 0, stdout, stderr }),
      );
      child.stdin.end();
    });
  }

  /** Runs our own command, with the two variables of dev.env and where the chain is; what it says on stdout. */
  casemate(...args) {
    return this.program(casemate, args);
  }

  /** Runs a program to its success, in the cloud's folder. */
  program(file, args, input = "") {
    const { PRIVATE_KEY, ...env } = this.env;
    return new Promise((resolve, reject) => {
      const options = { cwd: this.dir, timeout: 60_000, env: { ...env, PATH: process.env.PATH, HOME: this.dir } };
      const child = execFile(file, args, options, (error, stdout, stderr) =>
        error ? reject(new Error(`${file} ${args.join(" ")}: ${stdout}${stderr}`)) : resolve(stdout),
      );
      child.stdin.end(input);
    });
  }

  /** `phala` with `--json`; what it says on stdout, once it has succeeded. */
  async phalaJson(...args) {
    const { code, stdout, stderr } = await this.phala(...args, "--json");
    assert.equal(code, 0, `phala ${args.join(" ")}: ${stdout}${stderr}`);
    // Before it there may be logs of a transaction, indented.
    const answer = JSON.parse(stdout.slice(stdout.search(/^\{/m)));
    assert.equal(answer.success, true);
    return answer;
  }

  /** Ends the cloud the way a user does, and fails unless it ends cleanly within 5 s. */
  async stop() {
    const began = Date.now();
    this.child.kill("SIGTERM");
    const late = setTimeout(() => this.child.kill("SIGKILL"), 5_000);
    const [code, signal] = await this.exit;
    clearTimeout(late);
    assert.equal(signal, null, `casemate dev still ran ${Date.now() - began} ms after SIGTERM; its log is ${this.logFile}`);
    assert.equal(code, 0, `exit code of casemate dev; its log is ${this.logFile}`);
  }
}

/** What a CVM is made of, as its node reports it; counters, times and the compose hash are compared elsewhere. */
const FIELDS = [
  "instance_id",
  "vcpu",
  "memory_mb",
  "disk_gb",
  "gpus",
  "image",
  "user_config_sha256",
  "encrypted_env_sha256",
  "env_keys",
  "public_logs",
  "public_sysinfo",
  "public_tcbinfo",
];

/** Seals an environment for an app with the SDK's own function. */
export function seal(env, pubkey) {
  return encryptEnvVars(Object.entries(env).map(([key, value]) => ({ key, value })), pubkey);
}

/** The hash of a sealed environment as the node reports it. */
export const sealedHash = (sealed) => sha256(Buffer.from(sealed, "hex"));
