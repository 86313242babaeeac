// Phase 1: prepare-only
const result = await client.patchCvm({
id: "my-app",
docker_compose_file: newComposeYaml,
prepareOnly: true,
});
if (result.requiresOnChainHash && result.commitToken) {
// ... multisig approval and on-chain registration happen externally ...
// Phase 2: commit with token
const committed = await client.commitCvmUpdate({
id: "my-app",
token: result.commitToken,
composeHash: result.composeHash,
transactionHash: "0x...",
});
console.log(`Update started: ${committed.correlationId}`);
}
