// The configuration updates as their specification lists them: route, parameters and result fields of each method.
//
// A result that is an array stands for its items.

export const TABLE = {
  updateCvmResources: {
    route: "PATCH /cvms/{cvmId}/resources",
    parameters: ["id", "vcpu", "memory", "disk_size"],
    results: ["vcpu", "memory", "disk_size"],
  },
  updateCvmVisibility: {
    route: "PATCH /cvms/{cvmId}/visibility",
    parameters: ["id", "listed"],
    results: ["listed"],
  },
  updatePreLaunchScript: {
    route: "PATCH /cvms/{cvmId}/pre-launch-script",
    parameters: ["id", "pre_launch_script", "compose_hash", "transaction_hash"],
    results: ["status", "message", "correlation_id", "compose_hash", "app_id", "device_id", "kms_info"],
  },
  updateOsImage: {
    route: "PATCH /cvms/{cvmId}/os-image",
    parameters: ["id", "image"],
    results: ["base_image"],
  },
  getAvailableOsImages: {
    route: "GET /os-images",
    parameters: [],
    results: ["name", "version"],
  },
  refreshCvmInstanceId: {
    route: "POST /cvms/{cvmId}/refresh-instance-id",
    parameters: ["id"],
    results: ["instance_id"],
  },
  refreshCvmInstanceIds: {
    route: "POST /cvms/refresh-instance-ids",
    parameters: ["ids"],
    results: ["items"],
  },
  provisionCvmComposeFileUpdate: {
    route: "POST /cvms/{cvmId}/compose_file/provision",
    parameters: ["id", "uuid", "app_compose"],
    results: ["compose_hash"],
  },
  commitCvmComposeFileUpdate: {
    route: "POST /cvms/{cvmId}/compose_file/commit",
    parameters: ["id", "compose_hash", "encrypted_env", "env_keys", "transaction_hash"],
    results: ["status", "correlation_id", "compose_hash"],
  },
  patchCvm: {
    route: "PATCH /cvms/{cvmId}",
    parameters: [
      "id",
      "docker_compose_file",
      "pre_launch_script",
      "allowed_envs",
      "public_logs",
      "public_sysinfo",
      "public_tcbinfo",
      "encrypted_env",
      "user_config",
      "gpus",
      "vcpu",
      "memory",
      "disk_size",
      "image",
      "shutdown_timeout",
      "allow_force_stop",
      "prepareOnly",
    ],
    results: [
      "requiresOnChainHash",
      "correlationId",
      "composeHash",
      "appId",
      "deviceId",
      "kmsInfo",
      "commitToken",
      "commitUrl",
      "onchainStatus",
    ],
  },
  confirmCvmPatch: {
    route: "PATCH /cvms/{cvmId}",
    parameters: ["id", "composeHash", "transactionHash"],
    results: ["correlationId"],
  },
  commitCvmUpdate: {
    route: "POST /cvms/{cvmId}/commit-update",
    parameters: ["id", "token", "composeHash", "transactionHash"],
    results: ["correlationId", "status"],
  },
};

/** Everything a table lists, one a line: `method`, `method: route`, `method(parameter)` and `method -> result`. */
export function fieldsOf(table) {
  const lines = ([method, { route, parameters, results }]) => [
    method,
    `${method}: ${route}`,
    ...parameters.map((field) => `${method}(${field})`),
    ...results.map((field) => `${method} -> ${field}`),
  ];
  return new Set(Object.entries(table).flatMap(lines));
}

/** What is listed but was not used, and what was used but is not listed. Both are empty when all is well. */
export function differences(listed, used) {
  return {
    unused: [...listed].filter((field) => !used.has(field)),
    unlisted: [...used].filter((field) => !listed.has(field)),
  };
}
