// The official JavaScript SDK with every configuration update as a method, the way the API description writes them.
//
//   import * as sdk from "@phala/cloud";
//   import { specClient } from "./spec-client.mjs";
//
//   const client = specClient(sdk, { baseURL, apiKey });
//   const images = await client.getAvailableOsImages();
//   await client.patchCvm({ id: "my-app", vcpu: 4, memory: 8192 });
//
// @phala/cloud 0.2.9 has patchCvm, confirmCvmPatch, commitCvmUpdate and others as free functions only: they become
// methods here. What its own validation refuses, or whose answer it drops, is sent as a plain request: Casemate takes
// both forms. A CVM may be named by `id`, `uuid`, `app_id`, `instance_id` or `name`, in any of the forms of the API.

/** Splits parameters into the path of the CVM and the body of the request. */
function split({ id, uuid, app_id, instance_id, name, ...body }) {
  const cvm = id ?? uuid ?? app_id ?? instance_id ?? name;
  if (!cvm) throw new TypeError("one of id, uuid, app_id, instance_id or name must say which CVM");
  return { path: `/cvms/${encodeURIComponent(cvm)}`, body };
}

/** Sends a PATCH; an update that waits for its compose hash to be registered on chain is an answer, not an error. */
async function patchOrPrecondition(client, path, body) {
  try {
    return await client.patch(path, body);
  } catch (error) {
    if (error.status !== 465) throw error;
    const detail = Object.fromEntries(error.structuredDetails.map(({ field, value }) => [field, value]));
    const { compose_hash, app_id, device_id, kms_info } = detail;
    return { status: "precondition_required", message: error.message, compose_hash, app_id, device_id, kms_info };
  }
}

/** A client with all methods of the SDK and the spec; `config` is that of the SDK's `createClient`. */
export function specClient(sdk, config) {
  return sdk.createClient(config).extend({
    patchCvm: sdk.patchCvm,
    confirmCvmPatch: sdk.confirmCvmPatch,
    commitCvmUpdate: sdk.commitCvmUpdate,
    replicateCvm: sdk.replicateCvm,
    getCvmStatusBatch: sdk.getCvmStatusBatch,
    getCvmUserConfig: sdk.getCvmUserConfig,
    checkCvmIsAllowed: sdk.checkCvmIsAllowed,
    watchCvmState: sdk.watchCvmState,

    /** `vcpu`, `memory` in MB, `disk_size` in GB; returns the CVM as it will be. */
    async updateCvmResources(client, parameters) {
      const { path, body } = split(parameters);
      return client.patch(`${path}/resources`, body);
    },
    /** `listed`, and the `public_…` flags; those left out stay as they are. Returns the CVM. */
    async updateCvmVisibility(client, parameters) {
      const { path, body } = split(parameters);
      return client.patch(`${path}/visibility`, body);
    },
    /** `pre_launch_script`, and with a contract-owned KMS later `compose_hash` and `transaction_hash`. */
    async updatePreLaunchScript(client, parameters) {
      const { path, body } = split(parameters);
      return patchOrPrecondition(client, `${path}/pre-launch-script`, body);
    },
    /** `image` is a name or a slug; returns the CVM as it will be. */
    async updateOsImage(client, parameters) {
      const { path, body } = split(parameters);
      return client.patch(`${path}/os-image`, body);
    },
    /** All OS images, or with an id those that this CVM may switch to. The plain list has no version header. */
    async getAvailableOsImages(client, parameters) {
      if (parameters) return sdk.getAvailableOsImages(client, parameters);
      const { baseURL, apiKey } = client.config;
      const answer = await fetch(`${baseURL}/os-images`, { headers: { "X-API-Key": apiKey } });
      if (!answer.ok) throw new Error(`GET /os-images: ${answer.status} ${await answer.text()}`);
      return answer.json();
    },
    /** Issues a new instance id, with a restart; the old one is void once that has succeeded. */
    async refreshCvmInstanceId(client, parameters) {
      return client.post(`${split(parameters).path}/refresh-instance-id`);
    },
    /** The same for up to 500 `ids`; an unknown or busy CVM is an item of the answer that says so. */
    async refreshCvmInstanceIds(client, { ids }) {
      return client.post("/cvms/refresh-instance-ids", { ids });
    },
    /** `app_compose` is what `getCvmComposeFile` returns, changed. */
    async provisionCvmComposeFileUpdate(client, parameters) {
      const { path, body } = split(parameters);
      return client.post(`${path}/compose_file/provision`, body);
    },
    /** `compose_hash` of the provision; `encrypted_env` and `env_keys` replace the environment. */
    async commitCvmComposeFileUpdate(client, parameters) {
      const { path, body } = split(parameters);
      return client.post(`${path}/compose_file/commit`, body);
    },
  });
}
