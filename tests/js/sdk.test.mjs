// The official JavaScript SDK, unmodified, against `casemate dev`. After every update the node itself is asked what runs.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import * as sdk from "@phala/cloud";
import { COMPOSE, seal, sealedHash, sha256, startCloud, until } from "./cloud.mjs";

const VERSIONS = ["2025-10-28", "2026-01-21"];
const PROD = "dstack-0.5.5";
const DEV = "dstack-dev-0.5.5";
const SCRIPT = "#!/bin/sh\necho 'prepare: \"ü\" 🦀'\n\texit 0";

let cloud;
let client;
before(async () => {
  cloud = await startCloud({ nodes: "sim:3" });
  client = cloud.client();
});
after(() => cloud?.stop());

/** Waits with the SDK's own stream of states. */
const watch = (id, target) => sdk.watchCvmState(client, { id, target, interval: 5, timeout: 30, maxRetries: 1 });

/** A compose file that differs from every other one asked for. */
let edition = 0;
const nextCompose = () => COMPOSE.replace("nginx:alpine", `nginx:1.${++edition}-alpine`);

/** Asserts that `action` is refused with this status, and returns the SDK's error. */
async function refused(status, action) {
  let error;
  await assert.rejects(action, (caught) => {
    error = caught;
    return caught instanceof sdk.PhalaCloudError && caught.status === status;
  });
  return error;
}

test("dev.env is private and complete", () => {
  assert.equal(cloud.envMode, 0o600);
  assert.match(cloud.baseURL, /^http:\/\/127\.0\.0\.1:\d+\/api\/v1$/);
  assert.match(cloud.apiKey, /^phak_/);
});

describe("account and inventory", () => {
  test("the key's owner, at both versions", async () => {
    const user = await client.getCurrentUser();
    assert.ok(user.user.username);
    assert.ok(user.workspace.slug);
    const old = await cloud.client("2025-10-28").getCurrentUser();
    assert.equal(old.username, user.user.username);
  });

  test("a wrong key is an AuthError", async () => {
    const stranger = sdk.createClient({ baseURL: cloud.baseURL, apiKey: "phak_wrong" });
    const result = await stranger.safeGetCurrentUser();
    assert.equal(result.success, false);
    assert.ok(result.error instanceof sdk.AuthError);
    assert.equal(result.error.status, 401);
  });

  test("nodes, instance types and OS images", async () => {
    const { nodes, kms_list } = await client.getAvailableNodes();
    assert.equal(nodes.length, 3);
    for (const node of nodes) assert.deepEqual(new Set(node.images.map((image) => image.is_dev)), new Set([true, false]));
    assert.ok(kms_list.length > 0);

    const { result: families } = await client.listAllInstanceTypeFamilies();
    const small = families.flatMap((family) => family.items).find((type) => type.id === "tdx.small");
    assert.deepEqual([small.vcpu, small.memory_mb], [1, 2048]);
    const cpu = await client.listFamilyInstanceTypes({ family: "cpu" });
    assert.equal(cpu.total, cpu.items.length);

    const all = await client.getOsImages();
    const names = all.items.map((image) => image.name);
    for (const name of [PROD, DEV]) assert.ok(names.includes(name), `${name} is missing from ${names}`);
    const dev = await client.getOsImages({ page: 1, page_size: 10, is_dev: true });
    assert.deepEqual(dev.items.map((image) => image.name), [DEV]);
    const first = await client.getOsImages({ page: 1, page_size: 1 });
    assert.deepEqual([first.items.length, first.total, first.pages], [1, names.length, names.length]);
  });

  test("the off-chain KMS signs the key that environments are sealed for", async () => {
    const { items } = await client.getKmsList();
    const kms = items.find((item) => item.chain_id === null);
    assert.deepEqual(await client.getKmsInfo({ kms_id: kms.id }), kms);
    const { app_ids } = await client.nextAppIds({ counts: 2 });
    assert.equal(app_ids.length, 2);
    assert.equal(app_ids[1].nonce, app_ids[0].nonce + 1);
    const { public_key, signature } = await client.getAppEnvEncryptPubKey({ kms: kms.slug, app_id: app_ids[0].app_id });
    const bytes = (hex) => new Uint8Array(Buffer.from(hex, "hex"));
    assert.match(sdk.verifyEnvEncryptPublicKey(bytes(public_key), bytes(signature), app_ids[0].app_id), /^0x0[23][0-9a-f]{64}$/);
  });
});

for (const version of VERSIONS) {
  describe(`a CVM's life at ${version}`, () => {
    const name = `life-${version}`;
    let mine;
    let vm;
    before(() => {
      mine = cloud.client(version);
    });

    test("provision and create", async () => {
      const provision = await mine.provisionCvm({ name, compose_file: { docker_compose_file: COMPOSE }, disk_size: 20 });
      assert.match(provision.app_id, /^[0-9a-f]{40}$/);
      assert.match(provision.compose_hash, /^[0-9a-f]{64}$/);
      assert.match(provision.app_env_encrypt_pubkey, /^[0-9a-f]{64}$/);
      const { app_id, compose_hash } = provision;
      vm = await mine.commitCvmProvision({ app_id, compose_hash });
      assert.deepEqual([vm.name, vm.app_id, vm.vcpu, vm.memory, vm.disk_size], [name, app_id, 1, 2048, 20]);
      assert.equal(typeof vm.id, "number");

      const again = await mine.commitCvmProvision({ app_id, compose_hash });
      assert.equal(again.vm_uuid, vm.vm_uuid, "the same request again is the same CVM");

      const state = await sdk.watchCvmState(mine, { id: vm.vm_uuid, target: "running", timeout: 30, maxRetries: 1 });
      assert.equal(state.status, "running");
      const node = await cloud.observed(vm.vm_uuid);
      assert.deepEqual(
        [node.status, node.boot_count, node.compose_hash, node.vcpu, node.memory_mb, node.disk_gb, node.image],
        ["running", 1, compose_hash, 1, 2048, 20, vm.base_image],
      );
    });

    test("list and get, by every kind of id", async () => {
      const page = await mine.getCvmList({ page: 1, page_size: 100 });
      assert.equal(page.total, page.items.length);
      const item = page.items.find((each) => each.name === name);
      const { instance_id } = await cloud.observed(vm.vm_uuid);
      if (version === "2025-10-28") assert.equal(item.hosted.id, vm.vm_uuid);
      else assert.equal(item.vm_uuid, vm.vm_uuid);

      const reference = await mine.getCvmInfo({ id: vm.vm_uuid });
      if (version === "2025-10-28") assert.equal(reference.id, vm.id);
      else assert.match(reference.id, /^cvm_/);
      const ids = [
        { uuid: vm.vm_uuid },
        { app_id: vm.app_id },
        { instance_id },
        { name },
        { id: vm.vm_uuid.replaceAll("-", "") },
        { id: vm.vm_uuid.toUpperCase() },
        { id: `0x${vm.app_id}` },
        { id: `app_${vm.app_id}` },
        { id: `instance_${instance_id}` },
        { id: String(vm.id) },
        { id: name },
      ];
      for (const id of ids) assert.deepEqual(await mine.getCvmInfo(id), reference, JSON.stringify(id));
      const cvms = await sdk.getAppCvms(mine, { appId: vm.app_id });
      assert.equal(cvms.length, 1);
    });

    test("one PATCH, one restart", async () => {
      const docker_compose_file = nextCompose();
      const result = await cloud.proves(vm.vm_uuid, { recomposed: true, changed: { vcpu: 2, memory_mb: 4096 } }, () =>
        sdk.patchCvm(mine, { id: vm.vm_uuid, docker_compose_file, vcpu: 2, memory: 4096 }),
      );
      assert.equal(result.requiresOnChainHash, false);
      const operation = await cloud.operation(result.correlationId);
      assert.deepEqual([operation.status, operation.cvm_id !== undefined], ["succeeded", true]);
      assert.equal(await mine.getCvmDockerCompose({ id: vm.vm_uuid }), docker_compose_file);
      const info = await mine.getCvmInfo({ name });
      if (version === "2025-10-28") assert.deepEqual([info.vcpu, info.memory, info.disk_size], [2, 4096, 20]);
      else assert.deepEqual([info.resource.vcpu, info.resource.memory_in_gb, info.resource.disk_in_gb], [2, 4, 20]);
    });

    test("visibility", async () => {
      const answer = await cloud.proves(vm.vm_uuid, { recomposed: true, changed: { public_logs: false } }, () =>
        mine.updateCvmVisibility({ id: vm.vm_uuid, public_sysinfo: true, public_logs: false, public_tcbinfo: true }),
      );
      assert.deepEqual([answer.id, answer.public_sysinfo, answer.public_logs], [vm.id, true, false]);
    });

    test("off, on, again, forced, gone", async () => {
      const id = vm.vm_uuid;
      const power = async (action, transitional, target, boots, last_stop) => {
        const { boot_count } = await cloud.observed(id);
        const answer = await action();
        assert.deepEqual([answer.status, answer.id], [transitional, vm.id]);
        assert.equal((await watch(id, target)).status, target);
        await cloud.idle(id);
        const node = await cloud.observed(id);
        assert.deepEqual([node.status, node.boot_count - boot_count], [target, boots], transitional);
        if (last_stop) assert.equal(node.last_stop, last_stop, transitional);
      };
      await power(() => mine.shutdownCvm({ id }), "shutting_down", "stopped", 0, "graceful");
      await power(() => mine.startCvm({ id }), "starting", "running", 1);
      await power(() => mine.restartCvm({ id }), "restarting", "running", 1, "graceful");
      await power(() => mine.restartCvm({ id, force: true }), "restarting", "running", 1, "forced");
      await power(() => mine.stopCvm({ id }), "stopping", "stopped", 0, "forced");
      assert.equal((await mine.getCvmStats({ id })).is_online, false);

      assert.equal(await mine.deleteCvm({ id }), undefined);
      await until(`${name} to be gone`, async () => {
        const result = await mine.safeGetCvmInfo({ id });
        if (result.success) return undefined;
        assert.equal(result.error.status, 404);
        return true;
      });
      const page = await mine.getCvmList({ page_size: 100 });
      assert.ok(!page.items.some((item) => item.name === name));
    });
  });
}

describe("updates, each proved on the node", () => {
  let id;
  let pubkey;
  before(async () => {
    const made = await cloud.create({ name: "updated-app", env: { TOKEN: "first" }, disk_size: 20, image: PROD });
    ({ id, pubkey } = made);
    const node = await cloud.observed(id);
    assert.equal(node.encrypted_env_sha256, sealedHash(made.sealed));
    assert.deepEqual(node.env_keys, ["TOKEN"]);
  });

  /** Sends one `patchCvm` and proves its effect. */
  const patch = async (fields, effect) => {
    const result = await cloud.proves(id, effect, () => sdk.patchCvm(client, { id, ...fields }));
    assert.deepEqual(Object.keys(result), ["requiresOnChainHash", "correlationId"]);
    assert.equal(result.requiresOnChainHash, false);
    assert.equal((await cloud.operation(result.correlationId)).status, "succeeded");
  };

  describe("patchCvm, each field alone", () => {
    test("docker_compose_file", async () => {
      const docker_compose_file = nextCompose();
      await patch({ docker_compose_file }, { recomposed: true });
      assert.equal(await client.getCvmDockerCompose({ id }), docker_compose_file);
    });
    test("pre_launch_script, set and cleared", async () => {
      await patch({ pre_launch_script: SCRIPT }, { recomposed: true });
      assert.equal(await client.getCvmPreLaunchScript({ id }), SCRIPT);
      await patch({ pre_launch_script: "" }, { recomposed: true });
      assert.equal(await client.getCvmPreLaunchScript({ id }), "");
    });
    test("allowed_envs", async () => {
      // The machine still holds one variable; which ones it may hold is in the document.
      const one = (keys) => keys.includes("TOKEN");
      await patch({ allowed_envs: ["TOKEN", "REGION"] }, { recomposed: true, changed: { env_keys: one } });
      assert.deepEqual((await client.getCvmComposeFile({ id })).allowed_envs, ["TOKEN", "REGION"]);
    });
    for (const field of ["public_logs", "public_sysinfo", "public_tcbinfo"]) {
      test(field, async () => {
        await patch({ [field]: false }, { recomposed: true, changed: { [field]: false } });
        assert.equal((await client.getCvmInfo({ id }))[field], false);
      });
    }
    test("encrypted_env", async () => {
      const sealed = await seal({ TOKEN: "second", REGION: "eu" }, pubkey);
      const env_keys = (keys) => [...keys].sort().join() === "REGION,TOKEN";
      await patch({ encrypted_env: sealed }, { changed: { encrypted_env_sha256: sealedHash(sealed), env_keys } });
    });
    test("user_config", async () => {
      const config = { hostname: "renamed", ssh_authorized_keys: ["ssh-ed25519 AAAAC3Nz ada@example"], default_gateway_domain: null };
      const user_config = JSON.stringify(config);
      await patch({ user_config }, { changed: { user_config_sha256: sha256(user_config) } });
      assert.deepEqual(await sdk.getCvmUserConfig(client, { id }), config);
    });
    test("vcpu", () => patch({ vcpu: 2 }, { changed: { vcpu: 2 } }));
    test("memory", () => patch({ memory: 4096 }, { changed: { memory_mb: 4096 } }));
    test("disk_size", () => patch({ disk_size: 30 }, { changed: { disk_gb: 30 } }));
    test("image, by name and by slug", async () => {
      await patch({ image: DEV }, { changed: { image: DEV } });
      const slug = (await client.getOsImages({ is_dev: false })).items.find((image) => image.name === PROD).slug;
      await patch({ image: slug }, { changed: { image: PROD } });
    });
    test("shutdown_timeout and allow_force_stop belong to a request: alone they change nothing", async () => {
      await patch({ shutdown_timeout: 30 }, { boots: 0 });
      await patch({ allow_force_stop: true }, { boots: 0 });
      await patch({ vcpu: 1, shutdown_timeout: 30, allow_force_stop: true }, { changed: { vcpu: 1 } });
      assert.equal((await cloud.observed(id)).last_stop, "graceful");
    });
    test("prepareOnly holds nothing back off chain", () => patch({ vcpu: 2, prepareOnly: true }, { changed: { vcpu: 2 } }));
  });

  test("gpus, on the node that has some", async () => {
    const count = (gpus) => (Array.isArray(gpus) ? gpus.length : typeof gpus === "object" ? (gpus?.count ?? 0) : gpus);
    const { nodes } = await client.getAvailableNodes();
    const accepted = [];
    for (const [index, node] of nodes.entries()) {
      const made = await cloud.create({ name: `gpu-app-${index}`, node_id: node.teepod_id });
      const result = await sdk.safePatchCvm(client, { id: made.id, gpus: { count: 1 } });
      if (!result.success) {
        assert.equal(result.error.status, 409);
        assert.ok(result.error instanceof sdk.ResourceError, "a conflict that repeating cannot solve has a code");
        continue;
      }
      accepted.push(node.name);
      await cloud.idle(made.id);
      const one = await cloud.observed(made.id);
      assert.deepEqual([count(one.gpus), one.boot_count], [1, 2]);
      await cloud.proves(made.id, { changed: { gpus: (gpus) => count(gpus) === 0 } }, () =>
        sdk.patchCvm(client, { id: made.id, gpus: { count: 0 } }),
      );
      const many = await refused(409, () => sdk.patchCvm(client, { id: made.id, gpus: { count: 1000 } }));
      assert.ok(many instanceof sdk.ResourceError);
    }
    assert.equal(accepted.length, 1, `nodes with GPUs: ${accepted}`);
  });

  test("patchCvm, everything in one request is one restart", async () => {
    const docker_compose_file = nextCompose();
    const user_config = '{"hostname":"all-at-once"}';
    const sealed = await seal({ ONE: "1", TWO: "2" }, pubkey);
    await patch(
      {
        docker_compose_file,
        pre_launch_script: SCRIPT,
        allowed_envs: ["ONE", "TWO"],
        public_logs: true,
        public_sysinfo: true,
        public_tcbinfo: true,
        encrypted_env: sealed,
        user_config,
        gpus: { count: 0 },
        vcpu: 4,
        memory: 8192,
        disk_size: 40,
        image: DEV,
        shutdown_timeout: 20,
        allow_force_stop: false,
        prepareOnly: true,
      },
      {
        recomposed: true,
        changed: {
          public_logs: true,
          public_sysinfo: true,
          public_tcbinfo: true,
          encrypted_env_sha256: sealedHash(sealed),
          env_keys: (keys) => [...keys].sort().join() === "ONE,TWO",
          user_config_sha256: sha256(user_config),
          vcpu: 4,
          memory_mb: 8192,
          disk_gb: 40,
          image: DEV,
        },
      },
    );
    assert.equal(await client.getCvmDockerCompose({ id }), docker_compose_file);
    assert.equal(await client.getCvmPreLaunchScript({ id }), SCRIPT);
  });

  test("a request that asks for what is already so restarts nothing", async () => {
    const { vcpu } = await cloud.observed(id);
    await patch({ vcpu }, { boots: 0 });
  });

  test("updateCvmResources, each and all", async () => {
    const resources = (fields, changed) => cloud.proves(id, { changed }, () => client.updateCvmResources({ id, ...fields }));
    await resources({ vcpu: 2 }, { vcpu: 2 });
    await resources({ memory: 4096 }, { memory_mb: 4096 });
    await resources({ disk_size: 41 }, { disk_gb: 41 });
    assert.equal(await resources({ vcpu: 1, memory: 2048, disk_size: 42 }, { vcpu: 1, memory_mb: 2048, disk_gb: 42 }), undefined);
  });

  test("updateCvmVisibility", async () => {
    const visibility = (public_sysinfo, public_logs, public_tcbinfo) =>
      cloud.proves(id, { recomposed: true, changed: { public_sysinfo, public_logs, public_tcbinfo } }, () =>
        client.updateCvmVisibility({ id, public_sysinfo, public_logs, public_tcbinfo }),
      );
    await visibility(false, true, false);
    await visibility(true, true, true);
  });

  test("updatePreLaunchScript: the bytes come back, an empty script clears", async () => {
    const script = (pre_launch_script) =>
      cloud.proves(id, { recomposed: true }, () => client.updatePreLaunchScript({ id, pre_launch_script }));
    const answer = await script("true");
    assert.equal(answer.status, "in_progress");
    assert.equal((await cloud.operation(answer.correlation_id)).status, "succeeded");
    assert.equal(await client.getCvmPreLaunchScript({ id }), "true");
    await script("");
    assert.equal(await client.getCvmPreLaunchScript({ id }), "");
  });

  test("updateDockerCompose", async () => {
    const docker_compose_file = `${nextCompose()}# ü 🦀 "quoted": yes\n`;
    const answer = await cloud.proves(id, { recomposed: true }, () => client.updateDockerCompose({ id, docker_compose_file }));
    assert.equal(answer.status, "in_progress");
    assert.equal(await client.getCvmDockerCompose({ id }), docker_compose_file);
  });

  test("updateOsImage and what a CVM may switch to", async () => {
    const current = (images) => images.flatMap(({ prod, dev }) => [prod, dev]).filter((image) => image?.is_current).map(({ name }) => name);
    assert.deepEqual(current(await client.getAvailableOsImages({ id })), [DEV]);
    assert.equal(
      await cloud.proves(id, { changed: { image: PROD } }, () => client.updateOsImage({ id, os_image_name: PROD })),
      undefined,
    );
    assert.deepEqual(current(await client.getAvailableOsImages({ id })), [PROD]);
    assert.equal((await client.getCvmInfo({ id })).os.name, PROD);
  });

  test("updateCvmEnvs: new values keep the compose hash, new names change it", async () => {
    const values = await seal({ ONE: "uno", TWO: "due" }, pubkey);
    const same = await cloud.proves(id, { changed: { encrypted_env_sha256: sealedHash(values) } }, () =>
      client.updateCvmEnvs({ id, encrypted_env: values, env_keys: ["ONE", "TWO"] }),
    );
    assert.deepEqual([same.status, same.allowed_envs_changed], ["in_progress", false]);
    const names = await seal({ THREE: "tre" }, pubkey);
    const other = await cloud.proves(
      id,
      { recomposed: true, changed: { encrypted_env_sha256: sealedHash(names), env_keys: ["THREE"] } },
      () => client.updateCvmEnvs({ id, encrypted_env: names, env_keys: ["THREE"] }),
    );
    assert.deepEqual([other.status, other.allowed_envs_changed], ["in_progress", true]);
  });

  test("a compose file in two steps", async () => {
    const compose = await client.getCvmComposeFile({ id });
    assert.equal(compose.getHash(), (await client.getCvmInfo({ id })).compose_hash);
    compose.docker_compose_file = nextCompose();
    let provision;
    await cloud.proves(id, { boots: 0 }, async () => {
      provision = await client.provisionCvmComposeFileUpdate({ id, app_compose: compose });
    });
    assert.match(provision.compose_hash, /^[0-9a-f]{64}$/);
    assert.equal(
      await cloud.proves(id, { recomposed: true }, () =>
        client.commitCvmComposeFileUpdate({ id, compose_hash: provision.compose_hash }),
      ),
      undefined,
    );
    assert.equal((await cloud.observed(id)).compose_hash, provision.compose_hash);
    assert.equal(await client.getCvmDockerCompose({ id }), compose.docker_compose_file);
  });

  test("a compose file in two steps with a new environment", async () => {
    const compose = await client.getCvmComposeFile({ id });
    compose.docker_compose_file = nextCompose();
    compose.allowed_envs = ["FOUR"];
    const { compose_hash } = await client.provisionCvmComposeFileUpdate({ uuid: id, app_compose: compose, update_env_vars: true });
    const sealed = await seal({ FOUR: "4" }, pubkey);
    await cloud.proves(id, { recomposed: true, changed: { encrypted_env_sha256: sealedHash(sealed), env_keys: ["FOUR"] } }, () =>
      client.commitCvmComposeFileUpdate({ id, compose_hash, encrypted_env: sealed, env_keys: ["FOUR"], update_env_vars: true }),
    );
    assert.deepEqual((await client.getCvmComposeFile({ id })).allowed_envs, ["FOUR"]);
    await refused(400, () => client.commitCvmComposeFileUpdate({ id, compose_hash: "00".repeat(32) }));
  });

  test("instance ids are looked up, without a restart", async () => {
    const { instance_id } = await cloud.observed(id);
    const one = await cloud.proves(id, { boots: 0 }, () => sdk.refreshCvmInstanceId(client, { id, overwrite: true }));
    assert.equal(one.status, "unchanged");
    assert.equal(one.new_instance_id ?? one.old_instance_id, instance_id);
    const many = await cloud.proves(id, { boots: 0 }, () =>
      sdk.refreshCvmInstanceIds(client, { cvm_ids: [id], missing_only: false, dry_run: true }),
    );
    assert.deepEqual([many.total, many.scanned, many.errors, many.items.length], [1, 1, 0, 1]);
  });

  test("state, statistics, network and containers", async () => {
    const state = await client.getCvmState({ id });
    assert.deepEqual([state.name, state.status], ["updated-app", "running"]);
    assert.equal(state.boot_error, undefined);
    const stats = await client.getCvmStats({ id });
    assert.equal(stats.is_online, true);
    const { vcpu, memory_mb, disk_gb } = await cloud.observed(id);
    const { num_cpus, total_memory, disks } = stats.sysinfo;
    assert.deepEqual([num_cpus, total_memory / 2 ** 20, disks[0].total_size / 2 ** 30], [vcpu, memory_mb, disk_gb]);
    assert.equal((await client.getCvmNetwork({ id })).is_online, true);
    const composition = await client.getCvmContainersStats({ id });
    assert.equal(composition.docker_compose_file, await client.getCvmDockerCompose({ id }));
    assert.deepEqual(composition.containers.map((container) => [container.names, container.state]), [[["/web-1"], "running"]]);
    const batch = await sdk.getCvmStatusBatch(client, { vmUuids: [id, "00000000-0000-4000-8000-000000000000"] });
    assert.deepEqual(Object.keys(batch), [id]);
    assert.deepEqual([batch[id].status, batch[id].in_progress], ["running", false]);
    const apps = await sdk.getAppList(client, { search: "updated-app" });
    assert.equal(apps.total, 1);
  });

  test("what a bad request hears, and the machine does not notice", async () => {
    await cloud.proves(id, { boots: 0 }, async () => {
      const { vcpu, disk_gb } = await cloud.observed(id);
      const bad = {
        disk_size: disk_gb - 1,
        image: "no-such-image",
        vcpu: 0,
        memory: 1024.5,
        docker_compose_file: "services: [",
        encrypted_env: "not hexadecimal",
      };
      for (const [field, value] of Object.entries(bad)) {
        const { success, error } = await sdk.safePatchCvm(client, { id, [field]: value });
        assert.equal(success, false, field);
        assert.ok([400, 422].includes(error.status), `${field}: ${error.status} ${error.message}`);
        const said = JSON.stringify([error.message, error.detail]);
        assert.ok(said.includes(field), `${field} is not named in ${said}`);
      }
      await refused(404, () => sdk.patchCvm(client, { id: "no-such-cvm", vcpu: vcpu + 1 }));
      await refused(466, () =>
        sdk.confirmCvmPatch(client, { id, composeHash: "00".repeat(32), transactionHash: "already-registered" }),
      );
      const token = await refused(400, () =>
        sdk.commitCvmUpdate(client, { id, token: "ct_wrong", composeHash: "00".repeat(32), transactionHash: "already-registered" }),
      );
      assert.match(token.message, /^Invalid commit token/);
    });
  });
});
