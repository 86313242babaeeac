// The page behind a commit link, as a signer sees it: in Chromium, with the token in the link and nothing else.

import assert from "node:assert/strict";
import fs from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import * as sdk from "@phala/cloud";
import { Browser, fits, isReadable, screenshot } from "./browser.mjs";
import { COMPOSE, seal, sha256 } from "./cloud.mjs";
import { nextCompose, startChainCloud } from "./onchain.mjs";

const NAME = "web-one";
const SECRET = "s3cret-nobody-may-see";
/** Something to read: several lines change, far apart. */
const BEFORE = `${COMPOSE}    environment:
      GREETING: hello
    volumes:
      - data:/var/lib/data
    healthcheck:
      test: ["CMD", "wget", "-q", "-O", "-", "http://localhost/healthz?with=a-rather-long-query&so=the-line-is-long-as-well"]
    restart: always
    labels:
      one: "1"
      two: "2"
volumes:
  data: {}
`;
const AFTER = BEFORE.replace("nginx:alpine", `nginx:1.29-alpine@sha256:${"ab".repeat(32)}`).replace("hello", "good evening").replace("  data: {}", "  data: {}\n  more: {}");

let cloud;
let client;
let register;
let browser;
let mine;
before(async () => {
  let create;
  [{ cloud, client, register, create }, browser] = await Promise.all([startChainCloud(), Browser.start()]);
  mine = await create(NAME, { env: { TOKEN: "first", OLD: "x" }, vcpu: 1, memory: 2048 });
  const ask = await sdk.patchCvm(client, { id: NAME, docker_compose_file: BEFORE });
  const { transactionHash } = await register(ask.appId, ask.composeHash);
  await sdk.confirmCvmPatch(client, { id: NAME, composeHash: ask.composeHash, transactionHash });
  await cloud.idle(NAME);
});
after(async () => {
  await browser?.stop();
  await cloud?.stop();
});

const prepare = (changes) => sdk.patchCvm(client, { id: NAME, prepareOnly: true, ...changes });

/** What changes about everything a signer may have to judge. */
async function prepareMuch(changes) {
  const encrypted_env = await seal({ TOKEN: SECRET, FRESH: SECRET }, mine.public_key);
  const allowed_envs = ["TOKEN", "FRESH"];
  return prepare({ docker_compose_file: AFTER, encrypted_env, allowed_envs, vcpu: 4, memory: 8192, public_logs: false, ...changes });
}

/** Opens a link and waits until the page shows something. */
async function open(link, how, what = "#approval, #problem") {
  const page = await browser.window(how);
  await page.goto(link);
  await page.locator(what).filter({ visible: true }).first().waitFor();
  return page;
}

/** What belongs to every visit: nobody else was asked, the token went nowhere but to the API, and nothing went wrong. */
function wasQuiet(page, token) {
  const { origin } = new URL(cloud.baseURL);
  assert.ok(page.requests.length > 2);
  for (const request of page.requests) {
    const url = request.url();
    if (url.startsWith("blob:")) continue;
    assert.ok(url.startsWith(`${origin}/approve/`) || url.startsWith(`${origin}/api/v1/approvals/`), url);
    assert.ok(!url.split("#")[0].includes(token), "the token is in no request's address");
    assert.ok(!request.headers().referer);
  }
}

describe("a signer with the link", () => {
  test("sees what would change and where to allow it, allows it elsewhere, and commits", async () => {
    const ask = await prepareMuch();
    const { origin } = new URL(cloud.baseURL);
    const page = await open(ask.commitUrl, { permissions: ["clipboard-read", "clipboard-write"], acceptDownloads: true });
    const says = (selector) => page.locator(selector).innerText();
    await screenshot(page, "approve-1-asked");

    assert.equal(await says("h1"), `An update of ${NAME}`);
    assert.match(await says("#byline"), /^Asked for by .* Can be committed until /);
    const diff = await says("#diff");
    for (const shown of ["    image: nginx:alpine", `    image: nginx:1.29-alpine@sha256:${"ab".repeat(32)}`, "GREETING: good evening", "1 → 4", "2048 → 8192", "yes → no"])
      assert.ok(diff.includes(shown), `${shown} in ${diff}`);
    assert.ok(await page.locator("#warnings").isHidden(), "its image is settled by a digest");
    // The environment is there by its names, and nothing of it elsewhere.
    for (const name of ["+FRESH", "−OLD", "TOKEN"]) assert.ok(diff.includes(name), `${name} in ${diff}`);
    assert.ok(!(await page.content()).includes(SECRET));
    const hash = ask.composeHash.replace(/^0x/, "");
    assert.equal((await says("#hash")).replace(/^0x/, ""), hash);
    assert.equal(await says("#chain"), "Base (id 8453)");
    assert.equal((await says("#contract")).toLowerCase(), `0x${ask.appId.replace(/^0x/, "")}`);
    assert.equal(await says("#kms"), "base");
    assert.match(await says("#kms-contract"), /^0x[0-9a-fA-F]{40}$/);
    assert.match(await says("#custody"), /operator/);

    // The text is what is hashed.
    const download = page.waitForEvent("download");
    await page.getByRole("button", { name: "Download app-compose.json" }).click();
    const text = await fs.readFile(await (await download).path());
    assert.equal(sha256(text), hash);
    assert.equal(JSON.parse(text).docker_compose_file, AFTER);

    // The calldata is that of the call, for any wallet.
    await page.getByRole("button", { name: "Copy calldata of addComposeHash" }).click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), `0xdfc77223${hash}`);
    const batchDownload = page.waitForEvent("download");
    await page.getByRole("button", { name: "Download Safe batch" }).click();
    const batch = JSON.parse(await fs.readFile(await (await batchDownload).path(), "utf8"));
    assert.deepEqual([batch.version, batch.chainId, batch.transactions.length], ["1.0", "8453", 1]);

    // It cannot be committed before the contract allows it, and then it can, by itself.
    const commit = page.getByRole("button", { name: "Commit", exact: true });
    assert.match(await says("#status"), /Compose hash not allowed yet[^]*Device allowed/);
    assert.ok(await commit.isDisabled());
    await register(ask.appId, ask.composeHash);
    await page.getByText("Compose hash allowed", { exact: false }).and(page.locator(".good")).waitFor({ timeout: 15_000 });
    assert.ok(await commit.isEnabled());
    await screenshot(page, "approve-2-allowed");

    await cloud.proves(NAME, {
      recomposed: true,
      changed: { vcpu: 4, memory_mb: 8192, public_logs: false, env_keys: (keys) => String([...keys].sort()) === "FRESH,TOKEN", encrypted_env_sha256: (hash) => hash },
    }, async () => {
      await commit.click();
      await page.locator("#banner").getByText("Committed", { exact: false }).waitFor();
    });
    const [correlationId] = (await says("#banner")).match(/[0-9a-f]{8}-[0-9a-f-]{27}/) ?? assert.fail(await says("#banner"));
    assert.equal((await cloud.operation(correlationId)).status, "succeeded");
    assert.ok(await commit.isHidden());
    await screenshot(page, "approve-3-committed");
    assert.deepEqual(page.complaints, []);
    wasQuiet(page, ask.commitToken);

    // Whoever comes later learns that it is done.
    const late = await open(ask.commitUrl);
    assert.match(await late.locator("#banner").innerText(), /^Committed/);
    assert.equal(await late.getByRole("button", { name: "Commit", exact: true }).filter({ visible: true }).count(), 0);
    await screenshot(late, "approve-4-used");
    for (const window of [page, late]) await window.context().close();
  });

  test("reads it on a phone, by day and by night", async () => {
    const ask = await prepareMuch({ docker_compose_file: BEFORE.replace("hello", "a new day"), pre_launch_script: "#!/bin/sh\necho ready\n", vcpu: 2 });
    for (const colorScheme of ["light", "dark"]) {
      for (const [device, viewport] of Object.entries({ phone: { width: 390, height: 844 }, desk: { width: 1100, height: 900 } })) {
        const page = await open(ask.commitUrl, { viewport, colorScheme, ...(device === "phone" && { hasTouch: true, isMobile: true, deviceScaleFactor: 2 }) });
        await page.locator("summary").click();
        await screenshot(page, `approve-5-${device}-${colorScheme}`);
        await fits(page);
        await isReadable(page);
        await page.context().close();
      }
    }
  });

  test("is told which images the hash does not settle", async () => {
    const { commitUrl } = await prepare({ docker_compose_file: BEFORE.replace("nginx:alpine", "nginx:1.29") });
    const page = await open(commitUrl);
    assert.match(await page.locator("#warnings").innerText(), /`web`: the compose hash covers only the name `nginx:1\.29`.* pin a digest/);
    await isReadable(page);
  });

  test("is told what is wrong with a token", async () => {
    const docker_compose_file = nextCompose();
    const ask = await prepare({ docker_compose_file });
    const [address] = ask.commitUrl.split("#");
    const wrong = await open(`${address}#ct_${"0".repeat(96)}`);
    assert.match(await wrong.locator("#problem").innerText(), /^Invalid commit token/);
    assert.ok(await wrong.locator("#approval").isHidden());
    await screenshot(wrong, "approve-6-wrong-token");
    // The right one can be typed in.
    await wrong.locator("#token").fill(ask.commitToken);
    await wrong.getByRole("button", { name: "Open" }).click();
    await wrong.locator("#approval").waitFor();
    assert.ok(await wrong.locator("#problem").isHidden());

    const without = await browser.window();
    await without.goto(address);
    await without.locator("#ask").waitFor();
    await screenshot(without, "approve-7-no-token");
    assert.ok(!without.requests.some((request) => request.url().includes("/api/")), "nothing is asked without a token");

    // A newer request for the same hash takes the place of an older one.
    await prepare({ docker_compose_file, vcpu: 2 });
    const replaced = await open(ask.commitUrl);
    assert.match(await replaced.locator("#banner").innerText(), /newer/);
    const offered = replaced.getByRole("button", { name: /calldata|Safe|Commit/ }).filter({ visible: true });
    assert.equal(await offered.count(), 0, "there is nothing to sign any more");
    await screenshot(replaced, "approve-8-superseded");
    for (const page of [wrong, without, replaced]) await page.context().close();
  });

  test("may try again after the server was away", async () => {
    const ask = await prepare({ docker_compose_file: nextCompose() });
    await register(ask.appId, ask.composeHash);
    const page = await open(ask.commitUrl);
    const commit = page.getByRole("button", { name: "Commit", exact: true });
    await page.route("**/commit", (route) => route.abort());
    await commit.click();
    await page.locator("#said.bad").waitFor();
    assert.match(await page.locator("#said").innerText(), /^The server does not answer/);
    await screenshot(page, "approve-9-away");
    await page.unroute("**/commit");
    await cloud.proves(NAME, { recomposed: true }, async () => {
      await commit.click();
      await page.locator("#banner").getByText("Committed", { exact: false }).waitFor();
    });
    await page.context().close();
  });
});

describe("somebody who may update", () => {
  test("leaves it to the server, which commits as soon as the contract allows it", async () => {
    const ask = await prepareMuch({ docker_compose_file: BEFORE.replace("hello", "by itself") });
    const [address] = ask.commitUrl.split("#");
    const page = await open(address, {}, "#ask");
    // An API key opens the page as the token does, and may do more.
    await page.locator("#token").fill(cloud.apiKey);
    await page.getByRole("button", { name: "Open" }).click();
    await page.locator("#approval").waitFor();
    const on = page.getByRole("button", { name: "Commit by itself once allowed" });
    const off = page.getByRole("button", { name: "Do not commit by itself" });
    const why = () => page.locator("#why").innerText();
    await on.click();
    await page.getByText("It will be committed by itself once it is allowed.").waitFor();
    await off.waitFor();
    assert.match(await why(), /^The server commits it as soon as the contract allows/);
    const { auto_commit } = await cloud.get(`/approvals/${address.split("/").pop()}`);
    assert.equal(auto_commit, true);
    await screenshot(page, "approve-10-auto");
    // And back, and once more: it counts what was said last.
    await off.click();
    await page.getByText("It waits for somebody to commit it.").waitFor();
    await on.waitFor();
    assert.match(await why(), /^As soon as the contract allows/);
    await on.click();
    await off.waitFor();

    const posted = () => page.requests.filter((request) => request.url().endsWith("/commit"));
    await cloud.proves(NAME, {
      recomposed: true,
      changed: { vcpu: 4, memory_mb: 8192, public_logs: false, env_keys: (keys) => String([...keys].sort()) === "FRESH,TOKEN", encrypted_env_sha256: (hash) => hash },
    }, async () => {
      await register(ask.appId, ask.composeHash);
      await page.locator("#banner").getByText("Committed", { exact: false }).waitFor({ timeout: 60_000 });
    });
    assert.equal(posted().length, 0, "nobody pressed Commit");
    assert.ok(await page.locator("#auto").isHidden());
    await screenshot(page, "approve-11-auto-committed");
    assert.deepEqual(page.complaints, []);
    wasQuiet(page, cloud.apiKey);
    await page.context().close();
  });

  test("is not offered that with the token alone", async () => {
    const ask = await prepare({ docker_compose_file: nextCompose() });
    const page = await open(ask.commitUrl);
    assert.ok(await page.locator("#auto").isHidden());
    assert.ok(await page.getByRole("button", { name: "Commit", exact: true }).isVisible());
    await page.context().close();
  });
});

describe("the page", () => {
  test("is kept by nobody, tells nobody where its reader comes from, and takes nothing from elsewhere", async () => {
    const { origin } = new URL(cloud.baseURL);
    for (const path of ["/approve/0198c1d2-0000-7000-8000-000000000000", "/approve/page.js", "/approve/page.css", "/approve/icon.svg"]) {
      const { status, headers } = await fetch(origin + path);
      assert.equal(status, 200);
      assert.equal(headers.get("referrer-policy"), "no-referrer");
      assert.equal(headers.get("cache-control"), "no-store");
      assert.equal(headers.get("x-content-type-options"), "nosniff");
      const policy = headers.get("content-security-policy");
      assert.match(policy, /default-src 'self'/);
      assert.match(policy, /frame-ancestors 'none'/);
      assert.doesNotMatch(policy, /unsafe|https?:|\*/);
    }
  });
});
