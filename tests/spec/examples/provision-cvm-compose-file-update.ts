const compose = await client.getCvmComposeFile({ id: "my-app" });
compose.docker_compose_file = newYaml;
const provision = await client.provisionCvmComposeFileUpdate({
uuid: "my-app",
app_compose: compose,
});
console.log(provision.compose_hash);
