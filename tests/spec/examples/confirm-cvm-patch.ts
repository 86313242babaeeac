const confirmed = await client.confirmCvmPatch({
id: "my-app",
composeHash: patchResult.composeHash,
transactionHash: txReceipt.transactionHash,
});
console.log(`Update started: ${confirmed.correlationId}`);
