// The configuration updates as their specification writes them: every example of it, its text unchanged, then every
// parameter and every result field. What was used is recorded and compared with the table in both directions.

import assert from "node:assert/strict";
import fs from "node:fs";
import { after, before, describe, test } from "node:test";
import { specClient } from "../../docs/examples/spec-client.mjs";
import { COMPOSE, seal, sealedHash, sha256, startCloud } from "../js/cloud.mjs";
import * as sdk from "../js/sdk.mjs";
import { record } from "./recorder.mjs";
import { differences, fieldsOf, TABLE } from "./table.mjs";

const METHODS = Object.keys(TABLE);
const PROD = "dstack-0.5.5";
const DEV = "dstack-dev-0.5.5";
const NEW_YAML = COMPOSE.replace("nginx:alpine", "nginx:1.29-alpine");

/** Everything that the tests below used. */
const used = new Set();
const clientOf = (cloud) => record(specClient(sdk, { baseURL: cloud.baseURL, apiKey: cloud.apiKey }), METHODS, used);

/** Needs a CVM whose keys a contract owns. */
const ON_CHAIN = ["patch-cvm-on-chain.ts", "confirm-cvm-patch.ts", "commit-cvm-update.ts"];

const AsyncFunction = (async () => {}).constructor;

/** Runs an example with these variables in reach; returns what it logged. */
async function run(file, variables) {
  const lines = [];
  const text = fs.readFileSync(new URL(`examples/${file}`, import.meta.url), "utf8");
  const console = { log: (...words) => lines.push(words) };
  const scope = { console, ...variables };
  await new AsyncFunction(...Object.keys(scope), text)(...Object.values(scope));
  return lines;
}

describe("the examples", () => {
  const ran = [];
  /** Runs an example on a fresh `my-app`, and proves its effect. */
  const example = (file, effect, check = () => {}) =>
    test(file, async () => {
      const cloud = await startCloud();
      try {
        await cloud.create({ name: "my-app", vcpu: 1, memory: 2048, disk_size: 20 });
        const before = await cloud.observed("my-app");
        const lines = await cloud.proves("my-app", effect, () => run(file, { client: clientOf(cloud), newYaml: NEW_YAML }));
        await check(lines, cloud, before);
        ran.push(file);
      } finally {
        await cloud.stop();
      }
    });

  example("update-cvm-resources.ts", { changed: { vcpu: 4, memory_mb: 8192, disk_gb: 100 } });
  example("get-available-os-images.ts", { boots: 0 }, (lines) => {
    const versions = new Map(lines);
    assert.deepEqual([versions.get(PROD), versions.get(DEV)], ["0.5.5", "0.5.5"]);
    for (const [name, version] of versions) assert.ok(name.endsWith(`-${version}`), `${name} is of ${version}`);
  });
  example("provision-cvm-compose-file-update.ts", { boots: 0 }, ([[compose_hash]], cloud, before) => {
    assert.match(compose_hash, /^[0-9a-f]{64}$/);
    assert.notEqual(compose_hash, before.compose_hash);
  });
  example("patch-cvm.ts", { changed: { vcpu: 4, memory_mb: 8192 } }, async ([[correlationId]], cloud) => {
    assert.equal((await cloud.operation(correlationId)).status, "succeeded");
  });

  test("none is forgotten", () => {
    const files = fs.readdirSync(new URL("examples", import.meta.url));
    assert.deepEqual(new Set(files), new Set([...ran, ...ON_CHAIN]));
  });
});

describe("every parameter and result", () => {
  let cloud;
  let client;
  let pubkey;
  const id = "every-field";
  before(async () => {
    cloud = await startCloud();
    client = clientOf(cloud);
    ({ pubkey } = await cloud.create({ name: id, env: { KEY: "value" }, vcpu: 1, memory: 2048, disk_size: 20, image: PROD }));
  });
  after(() => cloud?.stop());
  const proves = (effect, act) => cloud.proves(id, effect, act);
  const succeeds = async (correlationId) => assert.equal((await cloud.operation(correlationId)).status, "succeeded");
  const refused = (status, message, action) =>
    assert.rejects(action, (error) => error.status === status && message.test(error.message));

  test("updateCvmResources returns the updated details", async () => {
    const one = await proves({ changed: { vcpu: 2 } }, () => client.updateCvmResources({ id, vcpu: 2 }));
    assert.deepEqual([one.vcpu, one.memory, one.disk_size], [2, 2048, 20]);
    const two = await proves({ changed: { memory_mb: 4096 } }, () => client.updateCvmResources({ id, memory: 4096 }));
    assert.deepEqual([two.vcpu, two.memory, two.disk_size], [2, 4096, 20]);
    const three = await proves({ changed: { disk_gb: 21 } }, () => client.updateCvmResources({ id, disk_size: 21 }));
    assert.deepEqual([three.vcpu, three.memory, three.disk_size], [2, 4096, 21]);
  });

  test("updateCvmVisibility lists without a restart", async () => {
    for (const listed of [true, false]) {
      const answer = await proves({ boots: 0 }, () => client.updateCvmVisibility({ id, listed }));
      assert.equal(answer.listed, listed);
      assert.equal((await client.getCvmInfo({ id })).listed, listed);
    }
  });

  test("updatePreLaunchScript keeps the bytes, and clears", async () => {
    for (const pre_launch_script of ["#!/bin/sh\n\techo 'ü 🦀'  \r\n", "null", ""]) {
      const answer = await proves({ recomposed: true }, () => client.updatePreLaunchScript({ id, pre_launch_script }));
      assert.equal(answer.status, "in_progress");
      assert.ok(answer.message);
      await succeeds(answer.correlation_id);
      assert.equal(await client.getCvmPreLaunchScript({ id }), pre_launch_script);
    }
  });

  test("updateOsImage returns the updated details", async () => {
    for (const image of [DEV, PROD]) {
      const answer = await proves({ changed: { image } }, () => client.updateOsImage({ id, image }));
      assert.equal(answer.base_image, image);
    }
  });

  test("refreshCvmInstanceId invalidates the old id", async () => {
    const { instance_id: old } = await cloud.observed(id);
    let fresh;
    const is = (instance_id) => instance_id === fresh;
    await proves({ changed: { instance_id: is } }, async () => {
      fresh = (await client.refreshCvmInstanceId({ id })).instance_id;
    });
    assert.match(fresh, /^[0-9a-f]{40}$/);
    assert.notEqual(fresh, old);
    assert.equal((await client.getCvmInfo({ instance_id: fresh })).name, id);
    await refused(404, /./, () => client.getCvmInfo({ instance_id: old }));
  });

  test("refreshCvmInstanceIds says for each what became of it", async () => {
    await cloud.create({ name: "second-one" });
    const second = (await cloud.observed("second-one")).instance_id;
    let items;
    await proves({ changed: { instance_id: (now) => now === items[0].instance_id } }, async () => {
      items = (await client.refreshCvmInstanceIds({ ids: [id, "second-one", "no-such-cvm"] })).items;
      await cloud.idle("second-one");
    });
    assert.deepEqual(items.map((item) => item.status), ["updated", "updated", "error"]);
    const { instance_id, boot_count } = await cloud.observed("second-one");
    assert.deepEqual([instance_id, boot_count], [items[1].instance_id, 2]);
    assert.notEqual(instance_id, second);
  });

  test("a compose file in two steps", async () => {
    const app_compose = { ...(await client.getCvmComposeFile({ id })), docker_compose_file: NEW_YAML };
    const { compose_hash } = await client.provisionCvmComposeFileUpdate({ id, app_compose });
    const answer = await proves({ recomposed: true }, () => client.commitCvmComposeFileUpdate({ id, compose_hash }));
    assert.equal(answer.status, "in_progress");
    assert.equal(answer.compose_hash, compose_hash);
    await succeeds(answer.correlation_id);
    assert.equal((await cloud.observed(id)).compose_hash, compose_hash);
  });

  test("a compose file in two steps, with a new environment", async () => {
    const app_compose = { ...(await client.getCvmComposeFile({ id })), docker_compose_file: COMPOSE, allowed_envs: ["OTHER"] };
    const { compose_hash } = await client.provisionCvmComposeFileUpdate({ uuid: id, app_compose });
    const encrypted_env = await seal({ OTHER: "value" }, pubkey);
    // Off chain nothing has to be proved.
    const transaction_hash = "already-registered";
    await proves({ recomposed: true, changed: { encrypted_env_sha256: sealedHash(encrypted_env), env_keys: ["OTHER"] } }, () =>
      client.commitCvmComposeFileUpdate({ id, compose_hash, encrypted_env, env_keys: ["OTHER"], transaction_hash }),
    );
  });

  test("patchCvm, all its fields in one restart", async () => {
    const encrypted_env = await seal({ LAST: "value" }, pubkey);
    const user_config = '{"hostname":"spec"}';
    const changed = {
      public_logs: false,
      public_sysinfo: false,
      public_tcbinfo: false,
      encrypted_env_sha256: sealedHash(encrypted_env),
      env_keys: ["LAST"],
      user_config_sha256: sha256(user_config),
      vcpu: 4,
      memory_mb: 8192,
      disk_gb: 30,
      image: DEV,
    };
    const result = await proves({ recomposed: true, changed }, () =>
      client.patchCvm({
        id,
        docker_compose_file: NEW_YAML,
        pre_launch_script: "#!/bin/sh\n",
        allowed_envs: ["LAST"],
        public_logs: false,
        public_sysinfo: false,
        public_tcbinfo: false,
        encrypted_env,
        user_config,
        gpus: { count: 0 },
        vcpu: 4,
        memory: 8192,
        disk_size: 30,
        image: DEV,
        shutdown_timeout: 30,
        allow_force_stop: true,
        prepareOnly: false,
      }),
    );
    assert.equal(result.requiresOnChainHash, false);
    await succeeds(result.correlationId);
    assert.equal(await client.getCvmDockerCompose({ id }), NEW_YAML);
    assert.equal(await client.getCvmPreLaunchScript({ id }), "#!/bin/sh\n");
  });

  test("confirmCvmPatch and commitCvmUpdate refuse what was never prepared", async () => {
    const composeHash = "00".repeat(32);
    const transactionHash = `0x${"11".repeat(32)}`;
    await proves({ boots: 0 }, async () => {
      await refused(466, /./, () => client.confirmCvmPatch({ id, composeHash, transactionHash }));
      await refused(400, /^Invalid commit token/, () => client.commitCvmUpdate({ id, token: "ct_none", composeHash, transactionHash }));
    });
  });
});

describe("the table", () => {
  const listed = fieldsOf(TABLE);
  const without = (set, field) => new Set([...set].filter((each) => each !== field));
  const clean = ({ unused, unlisted }) => unused.length + unlisted.length === 0;

  test("lists what the specification lists", () => {
    const count = (pattern) => [...listed.all].filter((field) => pattern.test(field)).length;
    assert.deepEqual([count(/^\w+$/), count(/\)$/), count(/->/), listed.all.size], [12, 46, 32, 102]);
  });
  test("is what the tests above used", () => {
    assert.deepEqual(differences(listed, used), { unused: [], unlisted: [] });
  });
  test("would miss any field taken out of the tests", () => {
    for (const field of used) assert.ok(!clean(differences(listed, without(used, field))), field);
  });
  test("would miss any field taken out of it", () => {
    for (const field of used) {
      const less = { ...listed, all: without(listed.all, field) };
      assert.ok(!clean(differences(less, used)), field);
    }
  });
});
