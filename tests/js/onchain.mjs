// A fresh cloud with a chain whose contracts govern keys. Clients take the chain for Base. What they sign goes to the chain
// and nowhere else; what the server believes it reads there.

import assert from "node:assert/strict";
import * as sdk from "@phala/cloud";
import { COMPOSE, seal, startCloud } from "./cloud.mjs";

/** Starts one: the cloud, with what its users do on chain. */
export async function startChainCloud() {
  const cloud = await startCloud({ args: ["--chain", "anvil", "--chain-id", "8453"] });
  const client = cloud.client();
  /** Where the SDK finds the chain, and the key of the contracts' owner. */
  const chain = { chain: sdk.SUPPORTED_CHAINS[8453], rpcUrl: cloud.env.ETH_RPC_URL, privateKey: cloud.env.PRIVATE_KEY };

  /** Registers a hash as its app's owner does. */
  const register = (appId, composeHash) => sdk.addComposeHash({ ...chain, appId, composeHash });

  /** A new app with its contract, and its first CVM, running; what is not about it goes to the provision request. */
  async function create(name, { env, ...provisioned } = {}) {
    const keys = env && Object.keys(env);
    const provision = await client.provisionCvm({
      name,
      kms: "BASE",
      ...provisioned,
      compose_file: { docker_compose_file: COMPOSE, ...(keys && { allowed_envs: keys }) },
    });
    assert.equal(provision.app_id, null, "the contract's address is not known yet");
    const { compose_hash, device_id, kms_info } = provision;
    assert.equal(kms_info.chain_id, 8453);
    const contract = await sdk.deployAppAuth({
      ...chain,
      kmsContractAddress: kms_info.kms_contract_address,
      deviceId: device_id,
      composeHash: compose_hash,
    });
    const { public_key } = await client.getAppEnvEncryptPubKey({ kms: kms_info.slug, app_id: contract.appId });
    const sealed = env && (await seal(env, public_key));
    const vm = await client.commitCvmProvision({
      app_id: contract.appId,
      compose_hash,
      kms_id: kms_info.slug,
      contract_address: contract.appAuthAddress,
      deployer_address: contract.deployer,
      ...(sealed && { encrypted_env: sealed, env_keys: keys }),
    });
    const cvm = await cloud.idle(vm.vm_uuid);
    assert.deepEqual([cvm.status, cvm.compose_hash], ["running", compose_hash]);
    return { id: vm.vm_uuid, app: contract.appId, device: device_id, kms: kms_info, compose_hash, public_key };
  }

  return { cloud, client, chain, register, create };
}

let edition = 0;
/** A compose file like no other. */
export const nextCompose = () => COMPOSE.replace("nginx:alpine", `nginx:1.${++edition}-alpine`);
