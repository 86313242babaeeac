// Documents and the hash that the official SDK gives each of them: `getHash()` of the object that `getCvmComposeFile`
// of @phala/cloud returns. The exported `getComposeHash` is another function. There is only one honest way to that
// method: this program serves each document over HTTP on the loopback, as GET /cvms/{id}/compose_file, and asks the SDK.
//
//   node tests/js/compose-hash/generate.mjs --all [N]    10,000 documents (or N) to stdout
//   node tests/js/compose-hash/generate.mjs --write      the committed selection, crates/types/tests/compose-hash-vectors.jsonl
//
// One line each: {"seed":1,"index":17,"doc":{...},"hash":"..."}. `doc` is the text that was served, byte for byte: how
// a number or a character is spelled, the order of keys and the spaces between tokens matter to a reader. A document
// follows from seed and index alone.
//
// Left out, because no program but a JavaScript one can give them a meaning: the keys `__proto__` and `constructor`,
// lone surrogates, and numbers beyond the range of a double.

import { once } from "node:events";
import fs from "node:fs";
import http from "node:http";
import { fileURLToPath } from "node:url";
import { createClient, getCvmComposeFile, MAX_COMPOSE_PAYLOAD_BYTES } from "@phala/cloud";

export const SEED = 1;
export const COUNT = 10_000;
export const VECTORS = new URL("../../../crates/types/tests/compose-hash-vectors.jsonl", import.meta.url);

/** Documents that somebody thought of; they come before the random ones. */
const BY_HAND = [
  // The hash of this one is aa8150fb698fa81201284b1e3bf1cc63fa2149ae6bc64f670489a3dfa694e682.
  String.raw`{"runner":"docker-compose","name":"demo-app","manifest_version":2,"docker_compose_file":"services:\n  web:\n    image: nginx:alpine\n","pre_launch_script":"","allowed_envs":["B","A"],"kms_enabled":true,"gateway_enabled":true,"features":[],"public_logs":true,"docker_config":{"username":"u","password":""}}`,
  // A quote, a colon and a space inside of a string lose the space.
  String.raw`{"name":"x","docker_compose_file":"a: {\"k\": 1}\n"}`,
  String.raw`{"docker_compose_file":"\": \":  \" : \\\": ","a\": b":"c\": d","\": ":{"\": ":"\": "}}`,
  // The runner decides which of the two texts counts.
  String.raw`{"runner":"bash","docker_compose_file":"services: {}","bash_script":"true"}`,
  String.raw`{"runner":"docker-compose","docker_compose_file":"services: {}","bash_script":"true"}`,
  String.raw`{"runner":"other","docker_compose_file":"services: {}","bash_script":"true"}`,
  String.raw`{"docker_compose_file":"","bash_script":"","pre_launch_script":" "}`,
  // Only the outermost level is cleaned.
  String.raw`{"docker_compose_file":"","inner":{"runner":"bash","docker_compose_file":"x","pre_launch_script":""}}`,
  // Keys that look like array indices come first and in numeric order, at every level.
  String.raw`{"docker_compose_file":"","10":1,"9":2,"01":3,"-1":4,"1.5":5,"4294967294\ue000":6,"4294967295":7,"0":8,"x":{"b":1,"2":2,"10":3,"a":4}}`,
  // UTF-16 order puts U+1F980 before U+FB01; byte order does not.
  String.raw`{"docker_compose_file":"","ﬁ":1,"🦀":2,"é":3,"e\u0301":4,"z":5,"\ue000":6,"\uffff":7}`,
  String.raw`{"docker_compose_file":"\u0000\u001f\u007f\u0080\u2028\u2029\ufeff\/\b\f\n\r\t\\\"","n":[0,-0,0.0,1.0,1.50,1e2,1E+2,1e-7,0.000001,1e21,1e20,123456789012345678901234567890,9007199254740993,18446744073709551615,-9223372036854775808,5e-324,1.7976931348623157e308,0.1,0.30000000000000004,2.2250738585072011e-308]}`,
  // Between two shortest spellings that are equally near the even one is right; and doubles that are easily read wrong.
  String.raw`{"docker_compose_file":"","tie":[1516820117831230.25,0.184650421142578125,-240417644381523.125,20159706939011.8125],"read":[5.269e178,0.45452666538767517,2.2250738585072011e-308,0.69041432859897474,8.5e-323]}`,
  // The last of two equal keys wins.
  String.raw`{"docker_compose_file":"a","k":1,"docker_compose_file":"b","k":{"k":1,"k":2}}`,
  String.raw`{ "docker_compose_file" : "" , "e" : { } , "f" : [ ] , "g" : [ [ ] , { } , [ { } ] ] , "salt" : null , "n" : null , "toString" : 1 , "length" : 2 }`,
];

/** A stream of numbers in [0, 1) that seed and index decide: mulberry32. */
function randomOf(seed, index) {
  let state = (Math.imul(seed, 0x9e3779b1) ^ Math.imul(index + 1, 0x85ebca6b)) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The text of one document. */
export function documentOf(seed, index) {
  if (index < BY_HAND.length) return BY_HAND[index];
  const random = randomOf(seed, index);
  const below = (n) => Math.floor(random() * n);
  const pick = (list) => list[below(list.length)];
  const chance = (share) => random() < share;
  const many = (n, make) => Array.from({ length: n }, make);
  const space = () => (chance(0.1) ? pick([" ", "  ", "\t"]) : "");

  const character = () =>
    pick([
      () => 0x20 + below(0x5f),
      () => 0x20 + below(0x5f),
      () => 0x20 + below(0x5f),
      () => below(0x20),
      () => 0x7f + below(0x80),
      () => 0x100 + below(0x700),
      () => 0x4e00 + below(0x5000),
      () => 0xe000 + below(0x2000),
      () => pick([0x2028, 0x2029, 0xfeff, 0xfffd, 0xffff, 0x200d, 0x301, 0x22, 0x5c, 0x2f]),
      () => 0x10000 + below(0x100000),
      () => 0x1f300 + below(0x400),
    ])();
  const pieces = ['": ', '":', '" : ', "': ", "\n", "  ", "{{", "${A}", "image: nginx:alpine\n", '{"k": 1}', "\\\": "];
  const text = (length) =>
    many(length, () => (chance(0.2) ? pick(pieces) : String.fromCodePoint(character()))).join("");

  const short = { 8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 47: "\\/", 92: "\\\\" };
  const escaped = (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const spell = (char) => {
    const code = char.codePointAt(0);
    const must = code < 0x20 || code === 0x22 || code === 0x5c;
    if (short[code] && (code === 47 ? chance(0.5) : chance(0.9))) return short[code];
    return must || chance(0.05) ? char.split("").map(escaped).join("") : char;
  };
  const string = (value) => `"${[...value].map(spell).join("")}"`;

  const digits = (n) => many(n, () => below(10)).join("");
  const number = () =>
    pick([
      () => String(below(100)),
      () => String(-below(1e9)),
      () => pick(["0", "-0", "0.0", "1.0", "10.00", "1e2", "1E+2", "2e-3", "1e-7", "1e21", "1e20", "-1.5E-10"]),
      () => String(random()),
      () => String((random() - 0.5) * 10 ** (below(60) - 30)),
      () => `${1 + below(9)}${digits(15 + below(10))}`,
      () => `${below(10)}.${digits(1 + below(20))}e${below(600) - 300}`,
      () => pick(["9007199254740991", "9007199254740993", "9223372036854775807", "18446744073709551615", "-9223372036854775808"]),
    ])();

  const key = () =>
    pick([
      () => pick(["a", "b", "B", "aa", "env", "toString", "length", "name", "runner", "pre_launch_script", "bash_script"]),
      () => String(below(12)),
      () => pick(["00", "-1", "1.0", "1e3", "4294967294", "4294967295", "4294967296", ""]),
      () => text(1 + below(4)),
      () => text(1 + below(12)),
    ])();
  const object = (fields) =>
    `{${space()}${fields.map(([name, value]) => `${string(name)}${space()}:${space()}${value}`).join(`${space()},${space()}`)}${space()}}`;
  const array = (items) => `[${space()}${items.join(`${space()},${space()}`)}${space()}]`;
  const any = (depth) =>
    pick([
      () => string(text(below(20))),
      () => string(text(below(20))),
      number,
      number,
      () => pick(["true", "false", "null"]),
      () => (depth > 0 ? array(many(below(5), () => any(depth - 1))) : "[]"),
      () => (depth > 0 ? object(many(below(6), () => [key(), any(depth - 1)])) : "{}"),
    ])();

  const bool = () => pick(["true", "false"]);
  const names = () => array(many(below(5), () => string(pick(["TOKEN", "B", "A", text(3)]))));
  const bytes = (value) => Buffer.byteLength(value);
  /** As long a text as is left over, to the byte. */
  const filled = (room) => {
    let value = "";
    while (bytes(value) < room - 2000) value += text(400);
    return value + "x".repeat(room - bytes(value));
  };
  const script = text(below(40));
  const full = index % 1000 === 999;
  const compose = full ? filled(MAX_COMPOSE_PAYLOAD_BYTES - bytes(script)) : text(below(120));
  const fields = [["docker_compose_file", string(compose)]];
  const maybe = (share, name, make) => chance(share) && fields.push([name, make()]);
  maybe(0.9, "name", () => string(text(below(12))));
  maybe(0.9, "manifest_version", () => pick(["2", "1", "3", "2.0", "2e0"]));
  maybe(0.8, "runner", () => pick(['"docker-compose"', '"docker-compose"', '"bash"', '"none"', '""']));
  maybe(0.3, "bash_script", () => pick(['""', "null", string(text(10))]));
  maybe(0.2, "init_script", () => pick(['""', "null", string(text(10))]));
  maybe(0.7, "pre_launch_script", () => (chance(0.3) ? '""' : string(script)));
  maybe(0.7, "allowed_envs", names);
  maybe(0.7, "features", names);
  for (const flag of ["kms_enabled", "public_logs", "public_sysinfo", "tproxy_enabled"]) maybe(0.5, flag, bool);
  for (const flag of ["gateway_enabled", "public_tcbinfo", "secure_time", "no_instance_id"]) maybe(0.4, flag, bool);
  maybe(0.4, "storage_fs", () => pick(['"ext4"', '"zfs"']));
  maybe(0.3, "salt", () => pick(["null", string(text(6))]));
  maybe(0.3, "docker_config", () => object([["username", string(text(4))], ["password", pick(['""', "null"])]]));
  maybe(0.3, "key_provider", () => any(2));
  const known = new Set([...fields.map(([name]) => name), "pre_launch_script", "name", "runner"]);
  for (const name of many(below(8), key)) if (!known.has(name)) fields.push([name, any(4)]);
  // In any order, and now and then with a key that comes twice.
  if (chance(0.05)) fields.push(pick(fields));
  for (let last = fields.length - 1; last > 0; last--) {
    const other = below(last + 1);
    [fields[last], fields[other]] = [fields[other], fields[last]];
  }
  return object(fields);
}

/** Calls `use(line)` with the vector of each index, in order. */
export async function vectors(seed, indices, use) {
  let served;
  const server = http.createServer((request, response) => {
    response.setHeader("Content-Type", "application/json");
    response.end(served);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const client = createClient({ baseURL: `http://127.0.0.1:${server.address().port}`, apiKey: "none" });
  try {
    for (const index of indices) {
      served = documentOf(seed, index);
      const hash = (await getCvmComposeFile(client, { id: `document-${index}` })).getHash();
      await use(`{"seed":${seed},"index":${index},"doc":${served},"hash":"${hash}"}\n`);
    }
  } finally {
    server.close();
    server.closeAllConnections();
  }
}

/** The indices of the committed selection: all made by hand, and random ones that are not long. */
export function selection() {
  const short = (index) => index < BY_HAND.length || documentOf(SEED, index).length < 2500;
  return Array.from({ length: 360 }, (_, index) => index).filter(short);
}

async function main([mode, count]) {
  if (mode === "--all") {
    const indices = Array.from({ length: Number(count ?? COUNT) }, (_, index) => index);
    await vectors(SEED, indices, (line) => process.stdout.write(line) || once(process.stdout, "drain"));
  } else if (mode === "--write") {
    let lines = "";
    await vectors(SEED, selection(), (line) => void (lines += line));
    fs.writeFileSync(VECTORS, lines);
  } else {
    process.stderr.write("usage: generate.mjs --all [N] | --write\n");
    process.exitCode = 2;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2));
