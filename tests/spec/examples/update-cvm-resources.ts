await client.updateCvmResources({
id: "my-app",
vcpu: 4,
memory: 8192,
disk_size: 100,
});
