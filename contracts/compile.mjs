// Compiles every contract here and writes its creation bytecode beside it: App.sol gives App.hex.
//
//   npm ci && node compile.mjs            writes
//   npm ci && node compile.mjs --check    only compares, and fails if a file would change
//
// `cancun` runs on every chain that we know of. Without the metadata behind the code, comments and file names do not
// change it.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import solc from "solc";

const folder = import.meta.dirname ?? new URL(".", import.meta.url).pathname;
const files = readdirSync(folder).filter((name) => name.endsWith(".sol")).sort();
const input = {
  language: "Solidity",
  sources: Object.fromEntries(files.map((file) => [file, { content: readFileSync(join(folder, file), "utf8") }])),
  settings: {
    evmVersion: "cancun",
    optimizer: { enabled: true, runs: 200 },
    metadata: { appendCBOR: false, bytecodeHash: "none" },
    outputSelection: { "*": { "*": ["evm.bytecode.object"] } },
  },
};
const output = JSON.parse(solc.compile(JSON.stringify(input)));
for (const { formattedMessage } of output.errors ?? []) console.error(formattedMessage);
if (output.errors?.length) process.exit(1);

const check = process.argv.includes("--check");
const read = (path) => {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
};
let stale = 0;
for (const [file, contracts] of Object.entries(output.contracts)) {
  for (const [name, { evm }] of Object.entries(contracts)) {
    const code = evm.bytecode.object;
    if (code === "") continue; // An interface, or a part of other contracts.
    if (`${name}.sol` !== file) throw new Error(`${file} holds ${name}; a contract has the name of its file`);
    const path = join(folder, `${name}.hex`);
    if (read(path) === `${code}\n`) continue;
    stale += 1;
    if (check) console.error(`contracts/${name}.hex is not what contracts/${file} compiles to; run: node contracts/compile.mjs`);
    else writeFileSync(path, `${code}\n`);
  }
}
console.log(check ? `${stale} of the contracts' bytecode files differ from the sources` : `${stale} bytecode files written`);
process.exit(check && stale > 0 ? 1 : 0);
