// The committed compose-hash vectors are what the official SDK says today.

import assert from "node:assert/strict";
import fs from "node:fs";
import { test } from "node:test";
import { SEED, selection, VECTORS, vectors } from "./compose-hash/generate.mjs";

test("every committed vector is the SDK's", async () => {
  const committed = fs.readFileSync(VECTORS, "utf8").trimEnd().split("\n");
  const fresh = [];
  await vectors(SEED, selection(), (line) => void fresh.push(line.trimEnd()));
  assert.deepEqual(committed, fresh);
});

test("the first is the published one", () => {
  const [first] = fs.readFileSync(VECTORS, "utf8").split("\n");
  assert.equal(JSON.parse(first).hash, "aa8150fb698fa81201284b1e3bf1cc63fa2149ae6bc64f670489a3dfa694e682");
});
