// Rehearses a multisig on the chain that `casemate dev --chain anvil` starts: two of the three owners of its wallet allow calls,
// and a third party has the wallet make them, all in one transaction.
//
//   casemate approvals calldata ID --json | node docs/examples/multisig.mjs WALLET
//
// Reads `[{ "to": …, "data": … }]` from standard input, the node's address from ETH_RPC_URL, and prints the transaction. Anvil
// signs for the owners. Needs Node 18 and no package.

import { text } from "node:stream/consumers";

const OWNERS = ["0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266", "0x70997970c51812dc3a010c7d01b50e0d17dc79c8"];
/** The wallet's functions: `idOf` and `execute` of (calls, salt), and `approve` of what `idOf` returns. */
const [ID_OF, APPROVE, EXECUTE] = ["0xd766157a", "0xa53a1adf", "0x3ab37ba0"];

const word = (value) => BigInt(value).toString(16).padStart(64, "0");
const bytes = (hex) => word(hex.length / 2) + hex.padEnd(Math.ceil(hex.length / 64) * 64, "0");

/** The arguments `((address to, uint256 value, bytes data)[] calls, uint256 salt)`. */
function encode(calls, salt) {
  const items = calls.map(({ to, data }) => word(to) + word(0) + word(96) + bytes(data.replace(/^0x/, "")));
  let offset = 32 * items.length;
  const offsets = items.map((item) => {
    const here = offset;
    offset += item.length / 2;
    return word(here);
  });
  return word(64) + word(salt) + word(items.length) + offsets.join("") + items.join("");
}

async function rpc(method, ...params) {
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
  const answer = await fetch(process.env.ETH_RPC_URL, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const { result, error } = await answer.json();
  if (error) throw new Error(`${method}: ${error.message}`);
  return result;
}

async function send(from, to, data) {
  const hash = await rpc("eth_sendTransaction", { from, to, data });
  for (;;) {
    const receipt = await rpc("eth_getTransactionReceipt", hash);
    if (receipt?.status === "0x1") return hash;
    if (receipt) throw new Error(`transaction ${hash} failed`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const [wallet] = process.argv.slice(2);
if (!/^0x[0-9a-f]{40}$/i.test(wallet ?? "") || !process.env.ETH_RPC_URL) {
  console.error("usage: casemate approvals calldata ID --json | ETH_RPC_URL=http://… node multisig.mjs WALLET");
  process.exit(2);
}
const calls = JSON.parse(await text(process.stdin));
if (calls.length === 0) {
  console.error("there is nothing to call");
  process.exit(1);
}
const batch = encode(calls, Date.now());
const id = await rpc("eth_call", { to: wallet, data: ID_OF + batch }, "latest");
for (const owner of OWNERS) {
  await send(owner, wallet, APPROVE + id.slice(2));
  console.error(`${owner} approves ${id}`);
}
console.log(await send(OWNERS[1], wallet, EXECUTE + batch));
