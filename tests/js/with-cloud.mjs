// Runs a command beside a fresh cloud: node tests/js/with-cloud.mjs COMMAND [ARGUMENT...]
//
// The command finds the cloud in its environment: PHALA_CLOUD_API_PREFIX, PHALA_CLOUD_API_KEY, and CASEMATE_URL, the
// same without the path. Ends with the command's exit code, or with 1 if the cloud did not end cleanly.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { startCloud } from "./cloud.mjs";

const [command, ...args] = process.argv.slice(2);
const cloud = await startCloud({ nodes: "sim:2" });
const env = { ...process.env, ...cloud.env, CASEMATE_URL: new URL(cloud.baseURL).origin };
const [code] = await once(spawn(command, args, { stdio: "inherit", env }), "exit");
await cloud.stop();
process.exitCode = code ?? 1;
