// The configuration updates as their specification writes them: every example of it, its text unchanged, then every
// parameter and every result field. What was used is recorded and compared with the table in both directions.

import assert from "node:assert/strict";
import fs from "node:fs";
import { after, before, describe, test } from "node:test";
import { specClient } from "../../docs/examples/spec-client.mjs";
import { COMPOSE, seal, sealedHash, sha256, startCloud } from "../js/cloud.mjs";
import { nextCompose, startChainCloud } from "../js/onchain.mjs";
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

const AsyncFunction = (async () => {}).constructor;

/** Runs an example with these variables in reach; returns what it logged. */
async function run(file, variables) {
  const lines = [];
  const text = fs
    .readFileSync(new URL(`examples/${file}`, import.meta.url), "utf8")
    // A function has its imports as variables, and no types.
    .replace(/^import \{ \w+ \} from "@phala\/cloud";$/m, "")
    .replace(" as `0x${string}`", "");
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

  describe("with keys that a contract owns", () => {
    let cloud;
    let register;
    before(async () => {
      let create;
      ({ cloud, register, create } = await startChainCloud());
      await create("my-app");
    });
    after(() => cloud?.stop());

    /** Runs an example, and proves that it brought this compose file, with one restart. */
    const updates = async (file, newComposeYaml, variables) => {
      const client = clientOf(cloud);
      const lines = await cloud.proves("my-app", { recomposed: true }, () => run(file, { client, newComposeYaml, ...variables }));
      assert.equal(await client.getCvmDockerCompose({ id: "my-app" }), newComposeYaml);
      ran.push(file);
      return lines;
    };
    const started = async ([[line]]) => {
      const [, correlationId] = line.match(/^Update started: (\S+)$/) ?? assert.fail(line);
      assert.equal((await cloud.operation(correlationId)).status, "succeeded");
    };

    test("patch-cvm-on-chain.ts", async () => {
      // The example leaves it to the chain where its nodes are; this Base is elsewhere.
      const rpcUrl = cloud.env.ETH_RPC_URL;
      const addComposeHash = (parameters) => sdk.addComposeHash({ rpcUrl, ...parameters });
      await updates("patch-cvm-on-chain.ts", nextCompose(), { addComposeHash, privateKey: cloud.env.PRIVATE_KEY });
    });

    test("confirm-cvm-patch.ts", async () => {
      const compose = nextCompose();
      const patchResult = await clientOf(cloud).patchCvm({ id: "my-app", docker_compose_file: compose });
      const txReceipt = await register(patchResult.appId, patchResult.composeHash);
      await started(await updates("confirm-cvm-patch.ts", compose, { patchResult, txReceipt }));
    });

    test("commit-cvm-update.ts", async () => {
      const all = clientOf(cloud);
      let transactionHash;
      // What the example says "happens externally", and the transaction that it leaves out.
      const client = {
        async patchCvm(parameters) {
          const result = await all.patchCvm(parameters);
          ({ transactionHash } = await register(result.appId, result.composeHash));
          return result;
        },
        commitCvmUpdate({ transactionHash: dots, ...parameters }) {
          assert.equal(dots, "0x...");
          return all.commitCvmUpdate({ ...parameters, transactionHash });
        },
      };
      await started(await updates("commit-cvm-update.ts", nextCompose(), { client }));
    });
  });

  test("none is forgotten", () => {
    const files = fs.readdirSync(new URL("examples", import.meta.url));
    assert.deepEqual(new Set(files), new Set(ran));
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

describe("every parameter and result, with keys that a contract owns", () => {
  const id = "on-chain";
  let cloud;
  let client;
  let register;
  let mine;
  before(async () => {
    let create;
    ({ cloud, register, create } = await startChainCloud());
    mine = await create(id, { env: { KEY: "value" }, vcpu: 1, memory: 2048, disk_size: 20, image: PROD });
    client = clientOf(cloud);
  });
  after(() => cloud?.stop());
  const proves = (effect, act) => cloud.proves(id, effect, act);
  const succeeds = async (correlationId) => assert.equal((await cloud.operation(correlationId)).status, "succeeded");
  const refused = (status, action) => assert.rejects(action, (error) => error.status === status);
  /** What has to be registered is about this app, on its device, with its key service. */
  const isMine = (app_id, device_id, kms_info) => {
    assert.equal(app_id.replace(/^0x/, ""), mine.app.replace(/^0x/, "").toLowerCase());
    assert.equal(device_id, mine.device);
    assert.deepEqual([kms_info.chain_id, kms_info.kms_contract_address], [8453, mine.kms.kms_contract_address]);
  };

  test("updatePreLaunchScript in two phases", async () => {
    const script = { id, pre_launch_script: "#!/bin/sh\necho on chain\n" };
    const { boot_count } = await cloud.observed(id);
    const ask = await client.updatePreLaunchScript(script);
    assert.equal(ask.status, "precondition_required");
    assert.ok(ask.message);
    isMine(ask.app_id, ask.device_id, ask.kms_info);
    assert.equal((await cloud.observed(id)).boot_count, boot_count, "nothing has stopped");

    const { compose_hash } = ask;
    const { transactionHash: transaction_hash } = await register(ask.app_id, compose_hash);
    const answer = await proves({ recomposed: true }, () => client.updatePreLaunchScript({ ...script, compose_hash, transaction_hash }));
    assert.equal(answer.status, "in_progress");
    await succeeds(answer.correlation_id);
    assert.equal((await cloud.observed(id)).compose_hash, compose_hash);
    assert.equal(await client.getCvmPreLaunchScript({ id }), script.pre_launch_script);
  });

  test("updateCvmResources, updateCvmVisibility and updateOsImage need nobody's yes", async () => {
    await proves({ changed: { vcpu: 2 } }, () => client.updateCvmResources({ id, vcpu: 2 }));
    await proves({ boots: 0 }, () => client.updateCvmVisibility({ id, listed: true }));
    await proves({ changed: { image: DEV } }, () => client.updateOsImage({ id, image: DEV }));
  });

  test("refreshCvmInstanceId needs nobody's yes", async () => {
    const { instance_id: old } = await cloud.observed(id);
    await proves({ changed: { instance_id: (now) => now !== old } }, () => client.refreshCvmInstanceId({ id }));
  });

  test("a compose file in two steps: registered in between, or refused", async () => {
    const app_compose = { ...(await client.getCvmComposeFile({ id })), docker_compose_file: nextCompose(), allowed_envs: ["OTHER"] };
    const { compose_hash } = await client.provisionCvmComposeFileUpdate({ id, app_compose });
    const encrypted_env = await seal({ OTHER: "value" }, mine.public_key);
    const commit = (proof) =>
      client.commitCvmComposeFileUpdate({ id, compose_hash, encrypted_env, env_keys: ["OTHER"], ...proof });
    await proves({ boots: 0 }, () => refused(465, () => commit()));

    const { transactionHash: transaction_hash } = await register(mine.app, compose_hash);
    const changed = { encrypted_env_sha256: sealedHash(encrypted_env), env_keys: ["OTHER"] };
    const answer = await proves({ recomposed: true, changed }, () => commit({ transaction_hash }));
    assert.equal(answer.status, "in_progress");
    assert.equal(answer.compose_hash, compose_hash);
    await succeeds(answer.correlation_id);
    assert.equal((await cloud.observed(id)).compose_hash, compose_hash);
  });

  test("a compose file that was registered before its commit needs no transaction", async () => {
    const app_compose = { ...(await client.getCvmComposeFile({ id })), docker_compose_file: nextCompose() };
    const { compose_hash } = await client.provisionCvmComposeFileUpdate({ id, app_compose });
    await register(mine.app, compose_hash);
    await proves({ recomposed: true }, () => client.commitCvmComposeFileUpdate({ id, compose_hash }));
  });

  test("patchCvm asks, and confirmCvmPatch goes on", async () => {
    const compose = nextCompose();
    const ask = await client.patchCvm({ id, docker_compose_file: compose, memory: 4096 });
    assert.equal(ask.requiresOnChainHash, true);
    isMine(ask.appId, ask.deviceId, ask.kmsInfo);
    const { composeHash } = ask;
    const confirm = (transactionHash) => client.confirmCvmPatch({ id, composeHash, transactionHash });
    await proves({ boots: 0 }, () => refused(468, () => confirm("already-registered")));

    const { transactionHash } = await register(ask.appId, composeHash);
    const answer = await proves({ recomposed: true, changed: { memory_mb: 4096 } }, () => confirm(transactionHash));
    await succeeds(answer.correlationId);
    assert.equal((await cloud.observed(id)).compose_hash, composeHash);
    assert.equal(await client.getCvmDockerCompose({ id }), compose);
  });

  test("prepareOnly hands out a token, and commitCvmUpdate takes it once", async () => {
    const ask = await client.patchCvm({ id, docker_compose_file: nextCompose(), prepareOnly: true });
    const { composeHash, commitToken: token, commitUrl, onchainStatus } = ask;
    assert.equal(new URL(commitUrl).hash, `#${token}`);
    const { compose_hash_allowed, device_id_allowed, is_allowed } = onchainStatus;
    assert.deepEqual([compose_hash_allowed, device_id_allowed, is_allowed], [false, true, false]);

    const { transactionHash } = await register(ask.appId, composeHash);
    // Whoever commits has a token, and no account.
    const anyone = record(specClient(sdk, { baseURL: cloud.baseURL, apiKey: "phak_nobody" }), METHODS, used);
    const commit = (token) => anyone.commitCvmUpdate({ id, token, composeHash, transactionHash });
    const answer = await proves({ recomposed: true }, async () => {
      await refused(400, () => commit(`ct_${"0".repeat(96)}`));
      return commit(token);
    });
    assert.ok(answer.status);
    await succeeds(answer.correlationId);
    await proves({ boots: 0 }, () => refused(400, () => commit(token)));
  });

  test("prepareOnly waits for a commit even if nothing has to be registered", async () => {
    const ask = await client.patchCvm({ id, vcpu: 1, prepareOnly: true });
    assert.equal(ask.requiresOnChainHash, true);
    assert.equal(ask.onchainStatus.is_allowed, true);
    const answer = await proves({ changed: { vcpu: 1 } }, () =>
      client.commitCvmUpdate({ id, token: ask.commitToken, composeHash: ask.composeHash, transactionHash: "already-registered" }),
    );
    await succeeds(answer.correlationId);
  });
});

describe("the table", () => {
  const listed = fieldsOf(TABLE);
  const without = (set, field) => new Set([...set].filter((each) => each !== field));
  const clean = ({ unused, unlisted }) => unused.length + unlisted.length === 0;

  test("lists what the specification lists", () => {
    const count = (pattern) => [...listed].filter((field) => pattern.test(field)).length;
    assert.deepEqual([count(/^\w+$/), count(/\)$/), count(/->/), listed.size], [12, 46, 32, 102]);
  });
  test("is what the tests above used", () => {
    assert.deepEqual(differences(listed, used), { unused: [], unlisted: [] });
  });
  test("would miss any field taken out of the tests", () => {
    for (const field of used) assert.ok(!clean(differences(listed, without(used, field))), field);
  });
  test("would miss any field taken out of it", () => {
    for (const field of used) assert.ok(!clean(differences(without(listed, field), used)), field);
  });
});
