// The official command line, unmodified, against `casemate dev`: what works without a chain.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";
import { COMPOSE, startCloud, until } from "./cloud.mjs";

const NAME = "cli-app";

let cloud;
before(async () => {
  cloud = await startCloud({ nodes: "sim:1" });
});
after(() => cloud?.stop());

const phala = (...args) => cloud.phala(...args);
const json = (...args) => cloud.phalaJson(...args);
const file = (name, text) => {
  fs.writeFileSync(path.join(cloud.dir, name), text);
  return name;
};

test("who am I", async () => {
  const { username } = await json("whoami");
  assert.ok(username);
  assert.equal((await json("status")).apiUrl, cloud.baseURL);
});

test("inventory", async () => {
  const images = await json("os-images");
  const names = images.items.map((image) => image.name);
  assert.ok(names.includes("dstack-0.5.5") && names.includes("dstack-dev-0.5.5"), names.join());
  const prod = (await json("os-images", "--prod")).items;
  assert.ok(prod.length > 0 && prod.every((image) => !image.is_dev && image.name !== "dstack-dev-0.5.5"));
  assert.equal((await json("cvms", "list-nodes")).nodes.length, 1);
  assert.equal((await json("nodes", "list")).total, 1);
  assert.ok((await json("instance-types")).result.some((family) => family.items.some((type) => type.id === "tdx.small")));
  assert.deepEqual((await json("kms", "list")).items, []);
});

test("deploy --wait: a new CVM", async () => {
  const answer = await json("deploy", "-n", NAME, "-c", file("first.yml", COMPOSE), "-e", "TOKEN=one", "--disk-size", "20G", "--wait");
  assert.equal(answer.name, NAME);
  const cvm = await cloud.idle(answer.vm_uuid);
  assert.equal(cvm.status, "running");
  const node = await cloud.observed(NAME);
  assert.deepEqual([node.boot_count, node.disk_gb, node.env_keys], [1, 20, ["TOKEN"]]);

  const list = await json("cvms", "list");
  const [{ uptime, ...item }] = list.items;
  assert.deepEqual([list.items.length, item], [1, { appId: answer.app_id, cvmName: NAME, status: "running" }]);
  assert.match(uptime, /^\d+s$/);
  const detail = await json("cvms", "get", NAME);
  assert.deepEqual([detail.vm_uuid, detail.status, detail.resource.disk_in_gb], [answer.vm_uuid, "running", 20]);
  assert.deepEqual((await json("runtime-config", NAME)).ssh_authorized_keys, []);
});

test("deploy --wait: an update ends when the new machine runs", async () => {
  const compose = COMPOSE.replace("nginx:alpine", "nginx:1.29-alpine");
  const script = file("pre.sh", "#!/bin/sh\necho ready\n");
  const env_keys = (keys) => [...keys].sort().join() === "REGION,TOKEN";
  await cloud.proves(NAME, { recomposed: true, changed: { env_keys, encrypted_env_sha256: (hash) => hash.length === 64 } }, async () => {
    const args = ["--cvm-id", NAME, "-c", file("second.yml", compose), "--pre-launch-script", script];
    await json("deploy", ...args, "-e", "TOKEN=two", "-e", "REGION=eu", "--wait");
    const node = await cloud.observed(NAME);
    assert.deepEqual([node.status, node.boot_count], ["running", 2], "when --wait returns, the update is over");
  });
  const client = cloud.client();
  assert.equal(await client.getCvmDockerCompose({ name: NAME }), compose);
  assert.equal(await client.getCvmPreLaunchScript({ name: NAME }), "#!/bin/sh\necho ready\n");
});

test("envs encrypt and envs update", async () => {
  const changed = { encrypted_env_sha256: (hash) => hash.length === 64 };
  await cloud.proves(NAME, { changed }, () => phala("envs", "update", NAME, "-e", "TOKEN=three", "-e", "REGION=us"));
  const sealed = (await phala("envs", "encrypt", NAME, "-e", "TOKEN=four", "-e", "REGION=us")).stdout.trim();
  assert.match(sealed, /^[0-9a-f]{120,}$/);
  await cloud.proves(NAME, { changed }, () => phala("envs", "update", NAME, "--encrypted-env", sealed));
});

test("cvms resize", async () => {
  await cloud.proves(NAME, { changed: { vcpu: 2, memory_mb: 4096, disk_gb: 30 } }, () =>
    json("cvms", "resize", NAME, "--vcpu", "2", "--memory", "4096", "--disk-size", "30", "--allow-restart", "1", "--yes"),
  );
});

test("cvms stop, start, restart", async () => {
  const power = async (command, boots, status) => {
    await cloud.proves(NAME, { boots }, () => json("cvms", command, NAME));
    assert.equal((await cloud.observed(NAME)).status, status);
  };
  await power("stop", 0, "stopped");
  assert.equal((await json("cvms", "list")).items[0].status, "stopped");
  await power("start", 1, "running");
  await power("restart", 1, "running");
});

test("ps and logs", async () => {
  const { containers } = await json("ps", NAME);
  assert.deepEqual(containers.map((container) => container.names[0]), ["/web-1"]);
  for (const args of [["web-1"], ["--serial"]]) {
    const { code, stdout, stderr } = await phala("logs", ...args, "--cvm-id", NAME);
    assert.equal(code, 0, stderr);
    assert.ok(stdout.trim().length > 0, `phala logs ${args}`);
  }
});

test("api, with any route", async () => {
  const answer = await phala("api", `/cvms/${NAME}/state`);
  assert.equal(JSON.parse(answer.stdout).status, "running");
  const renamed = await phala("api", "-X", "PATCH", `/cvms/${NAME}/name`, "-F", "name=renamed-app");
  assert.equal(renamed.code, 0, renamed.stderr);
  assert.equal((await json("cvms", "get", "renamed-app")).name, "renamed-app");
});

test("errors reach the user", async () => {
  const unknown = await phala("cvms", "get", "no-such-cvm", "--json");
  assert.equal(unknown.code, 1);
  assert.deepEqual(Object.keys(JSON.parse(unknown.stdout)).slice(0, 2), ["success", "error"]);
  const stranger = await phala("cvms", "list", "--json", "--api-token", "phak_wrong");
  assert.equal(stranger.code, 1);
  const broken = await phala("deploy", "--cvm-id", "renamed-app", "-c", file("broken.yml", "services: ["), "--json");
  assert.equal(broken.code, 1);
  assert.match(broken.stdout + broken.stderr, /docker_compose_file|compose/);
});

test("cvms delete", async () => {
  await json("cvms", "delete", "renamed-app", "--yes");
  await until("an empty list", async () => ((await json("cvms", "list")).total === 0 ? true : undefined));
});
