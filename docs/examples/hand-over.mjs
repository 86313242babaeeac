// Hands an app's contract over to another owner, on the chain that `casemate dev --chain anvil` starts: the first half, which is
// the present owner's. Ownership moves in two steps, so that a mistyped address cannot take it: until the new owner has
// accepted, nothing has changed.
//
//   node docs/examples/hand-over.mjs APP WALLET | node docs/examples/multisig.mjs WALLET
//
// Has the owner of the contract at APP name WALLET as the next one, and prints the call that WALLET has to make, as
// `multisig.mjs` reads it. The node's address comes from ETH_RPC_URL. Anvil signs for the owner, if it is one of its accounts.
// Needs Node 18 and no package.

/** `owner()`, `transferOwnership(address)` and `acceptOwnership()`, of dstack's contracts and of ours. */
const [OWNER, TRANSFER, ACCEPT] = ["0x8da5cb5b", "0xf2fde38b", "0x79ba5097"];

async function rpc(method, ...params) {
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
  const answer = await fetch(process.env.ETH_RPC_URL, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const { result, error } = await answer.json();
  if (error) throw new Error(`${method}: ${error.message}`);
  return result;
}

const [app, wallet] = process.argv.slice(2);
const isAddress = (text) => /^0x[0-9a-f]{40}$/i.test(text ?? "");
if (!isAddress(app) || !isAddress(wallet) || !process.env.ETH_RPC_URL) {
  console.error("usage: ETH_RPC_URL=http://… node hand-over.mjs APP WALLET");
  process.exit(2);
}
const owner = `0x${(await rpc("eth_call", { to: app, data: OWNER }, "latest")).slice(26)}`;
const data = TRANSFER + wallet.slice(2).toLowerCase().padStart(64, "0");
const hash = await rpc("eth_sendTransaction", { from: owner, to: app, data });
for (;;) {
  const receipt = await rpc("eth_getTransactionReceipt", hash);
  if (receipt?.status === "0x1") break;
  if (receipt) throw new Error(`transaction ${hash} failed`);
  await new Promise((resolve) => setTimeout(resolve, 50));
}
console.error(`${owner} names ${wallet} as the next owner of ${app}`);
console.log(JSON.stringify([{ to: app, data: ACCEPT }]));
