const result = await client.patchCvm({
id: "my-app",
vcpu: 4,
memory: 8192,
});
console.log(result.correlationId);
