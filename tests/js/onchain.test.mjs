// CVMs whose code a contract has to allow: the official clients, unmodified, against `casemate dev --chain anvil`.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import * as sdk from "@phala/cloud";
import { COMPOSE, seal, sealedHash } from "./cloud.mjs";
import { nextCompose, startChainCloud } from "./onchain.mjs";

let cloud;
let client;
let chain;
let register;
let create;
before(async () => {
  ({ cloud, client, chain, register, create } = await startChainCloud());
});
after(() => cloud?.stop());

/** Asserts that `action` is refused with this status. */
const refused = (status, action) =>
  assert.rejects(action, (caught) => caught instanceof sdk.PhalaCloudError && caught.status === status);

/** The wallet of which `casemate dev` says the address. */
const walletOfThree = async () => (await readFile(cloud.logFile, "utf8")).match(/Multisig +(0x[0-9a-fA-F]{40})/)[1];

/** Runs an example of the documentation, with this on its standard input; what it prints. */
const example = (name, input, ...args) => {
  const file = fileURLToPath(new URL(`../../docs/examples/${name}`, import.meta.url));
  return cloud.program(process.execPath, [file, ...args], input);
};

describe("one party", () => {
  let mine;
  before(async () => {
    mine = await create("one-party", { env: { TOKEN: "first" } });
  });

  test("creation is refused for a contract that does not stand behind it", async () => {
    const { compose_hash, kms_info, device_id } = await client.provisionCvm({
      name: "stranger",
      kms: "BASE",
      compose_file: { docker_compose_file: nextCompose() },
    });
    const create = (contract) =>
      client.commitCvmProvision({ app_id: contract, contract_address: contract, compose_hash, kms_id: kms_info.slug });
    await refused(400, () => create(`0x${"12".repeat(20)}`));
    // An app of the right key service, whose contract has never heard of this hash.
    const { appId } = await sdk.deployAppAuth({
      ...chain,
      kmsContractAddress: kms_info.kms_contract_address,
      deviceId: device_id,
      composeHash: "ab".repeat(32),
    });
    await refused(468, () => create(appId));
  });

  test("resources need nobody's yes", async () => {
    await cloud.proves(mine.id, { changed: { vcpu: 2 } }, async () => {
      const answer = await sdk.patchCvm(client, { id: mine.id, vcpu: 2 });
      assert.equal(answer.requiresOnChainHash, false);
    });
  });

  test("patchCvm asks, the owner registers, confirmCvmPatch applies: one restart", async () => {
    const compose = nextCompose();
    const before = await cloud.observed(mine.id);
    const ask = await sdk.patchCvm(client, { id: mine.id, docker_compose_file: compose, memory: 4096 });
    assert.equal(ask.requiresOnChainHash, true);
    assert.equal((await cloud.observed(mine.id)).boot_count, before.boot_count, "nothing has stopped");
    const confirm = (transactionHash) =>
      sdk.confirmCvmPatch(client, { id: mine.id, composeHash: ask.composeHash, transactionHash });

    // Not allowed yet, whatever is said.
    await refused(468, () => confirm("already-registered"));
    await refused(466, () =>
      sdk.confirmCvmPatch(client, { id: mine.id, composeHash: "ab".repeat(32), transactionHash: "already-registered" }),
    );
    const registered = await register(ask.appId, ask.composeHash);
    assert.equal(
      await sdk.checkComposeHashAllowed({ ...chain, appAddress: mine.app, composeHash: ask.composeHash }),
      true,
    );
    const answer = await cloud.proves(mine.id, { changed: { memory_mb: 4096 }, recomposed: true }, () =>
      confirm(registered.transactionHash),
    );
    const operation = await cloud.operation(answer.correlationId);
    assert.equal(operation.status, "succeeded");
    assert.equal((await cloud.observed(mine.id)).compose_hash, ask.composeHash);
    assert.equal(await client.getCvmDockerCompose({ id: mine.id }), compose);
  });

  test("a transaction that registers another hash proves nothing", async () => {
    const other = await sdk.patchCvm(client, { id: mine.id, docker_compose_file: nextCompose() });
    const { transactionHash } = await register(other.appId, other.composeHash);
    const ask = await sdk.patchCvm(client, { id: mine.id, docker_compose_file: nextCompose() });
    await refused(467, () => sdk.confirmCvmPatch(client, { id: mine.id, composeHash: ask.composeHash, transactionHash }));
    // The approval is as good as before.
    const registered = await register(ask.appId, ask.composeHash);
    await cloud.proves(mine.id, { recomposed: true }, () =>
      sdk.confirmCvmPatch(client, { id: mine.id, composeHash: ask.composeHash, transactionHash: registered.transactionHash }),
    );
  });

  test("updatePreLaunchScript, updateDockerCompose and updateCvmEnvs, each in two phases", async () => {
    const sealed = await seal({ TOKEN: "second", MORE: "x" }, mine.public_key);
    const phases = [
      [{}, (proof) => client.updatePreLaunchScript({ id: mine.id, pre_launch_script: "#!/bin/sh\necho on chain\n", ...proof })],
      [{}, (proof) => client.updateDockerCompose({ id: mine.id, docker_compose_file: PATCHED, ...proof })],
      [
        { encrypted_env_sha256: sealedHash(sealed), env_keys: ["MORE", "TOKEN"] },
        (proof) => client.updateCvmEnvs({ id: mine.id, encrypted_env: sealed, env_keys: ["TOKEN", "MORE"], ...proof }),
      ],
    ];
    for (const [changed, update] of phases) {
      const ask = await update({});
      assert.equal(ask.status, "precondition_required");
      const { transactionHash } = await register(ask.app_id, ask.compose_hash);
      const sorted = changed.env_keys && { ...changed, env_keys: (keys) => String([...keys].sort()) === String(changed.env_keys) };
      await cloud.proves(mine.id, { changed: sorted ?? changed, recomposed: true }, async () => {
        const done = await update({ compose_hash: ask.compose_hash, transaction_hash: transactionHash });
        assert.equal(done.status, "in_progress");
      });
    }
  });
});

const PATCHED = COMPOSE.replace("nginx:alpine", "nginx:patched");

describe("several parties", () => {
  test("prepareOnly hands out a token; commitCvmUpdate needs it and no API key, once", async () => {
    const mine = await create("several");
    const ask = await sdk.patchCvm(client, { id: mine.id, docker_compose_file: nextCompose(), prepareOnly: true });
    assert.equal(ask.requiresOnChainHash, true);
    assert.match(ask.commitToken, /^ct_/);
    assert.match(ask.commitUrl, /\/approve\/.*#ct_/);
    assert.deepEqual([ask.onchainStatus.compose_hash_allowed, ask.onchainStatus.device_id_allowed], [false, true]);
    const { transactionHash } = await register(ask.appId, ask.composeHash);

    const stranger = sdk.createClient({ baseURL: cloud.baseURL, apiKey: "phak_wrong" });
    const commit = (token) => sdk.commitCvmUpdate(stranger, { id: mine.id, token, composeHash: ask.composeHash, transactionHash });
    await refused(400, () => commit(`ct_${"0".repeat(96)}`));
    await cloud.proves(mine.id, { recomposed: true }, () => commit(ask.commitToken));
    await refused(400, () => commit(ask.commitToken));
  });

  test("a wallet of three people owns the contract, and two of them allow an update", async () => {
    const wallet = await walletOfThree();
    await writeFile(`${cloud.dir}/deployer.key`, cloud.env.PRIVATE_KEY);
    await writeFile(`${cloud.dir}/shared.yml`, COMPOSE);
    const deploy = (...args) => cloud.casemate("deploy", "-n", "shared", "-c", "shared.yml", ...args);
    await deploy("--kms", "base", "--owner", wallet, "--private-key-file", "deployer.key");
    await writeFile(`${cloud.dir}/shared.yml`, nextCompose());
    await deploy("--prepare-only");
    const [{ id, app_id, compose_hash }] = JSON.parse(await cloud.casemate("approvals", "list", "--cvm", "shared", "--json")).items;

    // Nobody can allow it alone, the one who had the contract made included.
    await assert.rejects(() => register(app_id, compose_hash), /is not the owner/);
    const calls = await cloud.casemate("approvals", "calldata", id, "--json");
    const transaction = (await example("multisig.mjs", calls, wallet)).trim();
    await cloud.proves("shared", { recomposed: true }, () => cloud.casemate("approvals", "commit", id, transaction));
    assert.equal((await cloud.observed("shared")).compose_hash, compose_hash);
  });

  test("a contract that one person owns is handed over to them later", async () => {
    const wallet = await walletOfThree();
    const mine = await create("handed-over");
    const ask = await sdk.patchCvm(client, { id: mine.id, prepareOnly: true, docker_compose_file: nextCompose() });
    const owner = async () => (await sdk.getAllowedDevices({ ...chain, appAddress: mine.app, deviceIds: [mine.device] })).owner.toLowerCase();
    const accept = await example("hand-over.mjs", "", `0x${mine.app.replace(/^0x/, "")}`, wallet);
    assert.notEqual(await owner(), wallet.toLowerCase(), "until it is accepted, nothing has changed");
    await example("multisig.mjs", accept, wallet);
    assert.equal(await owner(), wallet.toLowerCase());
    await assert.rejects(() => register(ask.appId, ask.composeHash), /is not the owner/);
    const [{ id }] = JSON.parse(await cloud.casemate("approvals", "list", "--cvm", "handed-over", "--json")).items;
    const calls = await cloud.casemate("approvals", "calldata", id, "--json");
    const transactionHash = (await example("multisig.mjs", calls, wallet)).trim();
    await cloud.proves(mine.id, { recomposed: true }, () =>
      sdk.commitCvmUpdate(client, { id: mine.id, token: ask.commitToken, composeHash: ask.composeHash, transactionHash }));
  });

  test("what was revoked meanwhile does not run", async () => {
    const mine = await create("revoked");
    const boots = (await cloud.observed(mine.id)).boot_count;
    await sdk.removeDevice({ ...chain, appAddress: mine.app, deviceId: mine.device });
    const ask = await sdk.patchCvm(client, { id: mine.id, docker_compose_file: nextCompose() });
    const { transactionHash } = await register(ask.appId, ask.composeHash);
    const confirm = () => sdk.confirmCvmPatch(client, { id: mine.id, composeHash: ask.composeHash, transactionHash });
    await refused(468, confirm);
    assert.equal((await cloud.observed(mine.id)).boot_count, boots);
    await sdk.addDevice({ ...chain, appAddress: mine.app, deviceId: mine.device });
    await cloud.proves(mine.id, { recomposed: true }, confirm);
  });
});

describe("the phala command", () => {
  const NAME = "by-command";
  const signing = () => ["--rpc-url", cloud.env.ETH_RPC_URL, "--private-key", cloud.env.PRIVATE_KEY];
  const update = (...args) => cloud.phalaJson("deploy", "--cvm-id", NAME, "-c", file, ...args);
  /** Runs a command that is to fail, and returns what it says. */
  const fails = async (...args) => {
    const { code, stdout, stderr } = await cloud.phala(...args);
    assert.equal(code, 1, stdout + stderr);
    return stdout + stderr;
  };
  let file;
  let vm;
  before(async () => {
    file = `${cloud.dir}/docker-compose.yml`;
    await writeFile(file, COMPOSE);
    vm = await cloud.phalaJson("deploy", "-n", NAME, "-c", file, "--kms", "base", ...signing());
    await cloud.idle(NAME);
  });

  test("updates with one party, in one restart", async () => {
    const compose = nextCompose();
    await writeFile(file, compose);
    await cloud.proves(NAME, { recomposed: true }, () => update(...signing()));
    assert.equal(await client.getCvmDockerCompose({ id: NAME }), compose);
  });

  test("registers a device that is not allowed yet, too", async () => {
    const { device_id } = (await cloud.get(`/apps/${vm.app_id}/device-allowlist`)).devices[0];
    await sdk.removeDevice({ ...chain, appAddress: `0x${vm.app_id.replace(/^0x/, "")}`, deviceId: `0x${device_id}` });
    await writeFile(file, nextCompose());
    await cloud.proves(NAME, { recomposed: true }, () => update(...signing()));
  });

  test("without a key it stops before anything is signed, and the machine runs on", async () => {
    await writeFile(file, nextCompose());
    await cloud.proves(NAME, { boots: 0 }, async () => {
      assert.match(await fails("deploy", "--cvm-id", NAME, "-c", file, "--json"), /private[- ]key/i);
    });
  });

  test("prepares for several; whoever has the token commits", async () => {
    for (const withHash of [true, false]) {
      await writeFile(file, nextCompose());
      const asked = await cloud.proves(NAME, { boots: 0 }, () => update("--prepare-only"));
      assert.equal(asked.prepare_only, true);
      assert.equal(new URL(asked.commit_url).hash, `#${asked.commit_token}`);
      assert.deepEqual([asked.onchain_status.compose_hash_allowed, asked.onchain_status.is_allowed], [false, false]);
      const commit = (token, ...proof) => ["deploy", "--cvm-id", NAME, "--commit", "--token", token, ...proof];

      await cloud.proves(NAME, { boots: 0 }, async () => {
        assert.match(await fails(...commit(asked.commit_token)), /not allowed|does not allow/i);
        assert.match(await fails(...commit(`ct_${"0".repeat(96)}`)), /Invalid commit token/);
      });
      const { transactionHash } = await register(asked.app_id, asked.compose_hash);
      const proof = withHash ? ["--compose-hash", asked.compose_hash, "--transaction-hash", transactionHash] : [];
      await cloud.proves(NAME, { recomposed: true }, () => cloud.phalaJson(...commit(asked.commit_token, ...proof)));
      assert.equal(`0x${(await cloud.observed(NAME)).compose_hash}`, asked.compose_hash);
      assert.match(await fails(...commit(asked.commit_token)), /Invalid commit token/);
    }
  });

  test("seals an environment for an app that a contract governs", async () => {
    const env = `${cloud.dir}/owner.env`;
    await writeFile(env, "TOKEN=secret\n");
    await writeFile(file, nextCompose());
    const changed = { encrypted_env_sha256: (hash) => /^[0-9a-f]{64}$/.test(hash), env_keys: ["TOKEN"] };
    await cloud.proves(NAME, { recomposed: true, changed }, () => update("-e", env, ...signing()));
  });

  test("makes a replica in two steps", async () => {
    const asked = await cloud.phalaJson("cvms", "replicate", NAME, "--prepare-only");
    const token = ["--token", asked.commitToken, "--compose-hash", asked.composeHash];
    const { vm_uuid: id } = await cloud.phalaJson("cvms", "replicate", NAME, "--commit", ...token);
    const replica = await cloud.idle(id);
    assert.equal(replica.status, "running");
    assert.equal((await cloud.observed(id)).compose_hash, (await cloud.observed(NAME)).compose_hash);
  });
});
