import { addComposeHash } from "@phala/cloud";
const result = await client.patchCvm({
id: "my-app",
docker_compose_file: newComposeYaml,
});
if (result.requiresOnChainHash) {
const tx = await addComposeHash({
chain: result.kmsInfo.chain,
kmsContractAddress: result.kmsInfo.kms_contract_address,
appId: result.appId as `0x${string}`,
composeHash: result.composeHash,
privateKey: privateKey,
});
await client.confirmCvmPatch({
id: "my-app",
composeHash: result.composeHash,
transactionHash: tx.transactionHash,
});
}
