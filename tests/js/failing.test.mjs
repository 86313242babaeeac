// What a user of the official clients sees when the new machine does not boot and the old one is put back.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";
import * as sdk from "@phala/cloud";
import { COMPOSE, startCloud } from "./cloud.mjs";

const NAME = "failing-app";
const BROKEN = COMPOSE.replace("nginx:alpine", "nginx:broken");

let cloud;
let client;
let old;
before(async () => {
  cloud = await startCloud({ nodes: "sim:1" });
  client = cloud.client();
  await cloud.create({ name: NAME });
  old = await cloud.observed(NAME);
});
after(() => cloud?.stop());

/** The next boot of the machine fails. */
async function breakNextBoot() {
  const { nodes } = await client.getAvailableNodes();
  const json = { fault: "boot-fail", once: true };
  const answer = await cloud.rawFetch(`/dev/nodes/${nodes[0].teepod_id}/faults`, { method: "POST", json });
  assert.ok(answer.ok, await answer.text());
}

async function assertPutBack() {
  const now = await cloud.observed(NAME);
  for (const field of ["status", "compose_hash", "vcpu", "memory_mb", "image", "instance_id"]) assert.equal(now[field], old[field], field);
  assert.equal((await client.getCvmInfo({ name: NAME })).compose_hash, old.compose_hash);
  assert.equal(await client.getCvmDockerCompose({ name: NAME }), COMPOSE);
}

test("watchCvmState: running again, and why in boot_error", async () => {
  await breakNextBoot();
  const { correlationId } = await sdk.patchCvm(client, { name: NAME, docker_compose_file: BROKEN, vcpu: 2 });
  const seen = [];
  const state = await sdk.watchCvmState(client, { name: NAME, target: "running", timeout: 60, maxRetries: 1 }, {
    onEvent: ({ type, data }) => type === "state" && seen.push(data.status),
  });
  // Between the answer to the update and the end of the put-back nobody is told that the machine runs.
  assert.equal(seen.indexOf("running"), seen.length - 1, `states: ${seen}`);
  assert.match(state.boot_error, new RegExp(`^update ${correlationId} failed and was put back: `));
  const failed = await cloud.operation(correlationId);
  assert.equal(failed.status, "failed");
  assert.ok(failed.reason.message);
  assert.equal((await cloud.operation(failed.put_back)).status, "succeeded");
  await assertPutBack();
});

test("phala deploy --wait: it knows no failure, ends well with the old machine, and `phala api` tells", async () => {
  await breakNextBoot();
  fs.writeFileSync(path.join(cloud.dir, "broken.yml"), BROKEN);
  await cloud.phalaJson("deploy", "--cvm-id", NAME, "-c", "broken.yml", "--wait");
  await assertPutBack();
  const { stdout } = await cloud.phala("api", `/cvms/${NAME}/state`);
  assert.match(JSON.parse(stdout).boot_error, /^update [0-9a-f-]{36} failed and was put back: /);
});

test("the next update that succeeds clears the error", async () => {
  const { correlationId } = await sdk.patchCvm(client, { name: NAME, vcpu: 2 });
  assert.equal((await cloud.operation(correlationId)).status, "succeeded");
  await cloud.idle(NAME);
  assert.equal((await client.getCvmState({ name: NAME })).boot_error, undefined);
});
