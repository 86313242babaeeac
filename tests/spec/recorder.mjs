// Notes which methods, routes, parameters and result fields a test really uses, so that nothing is declared twice.

import { AsyncLocalStorage } from "node:async_hooks";

const current = new AsyncLocalStorage();

/**
 * A client that behaves like `client` and adds what is used of `methods` to the set `used`: `method`,
 * `method(parameter)`, `method: VERB /route`, and `method -> field` once a field is read and there. The fields of an
 * array are those of its items.
 */
export function record(client, methods, used) {
  return new Proxy(client, {
    get(target, method) {
      const own = Reflect.get(target, method);
      if (typeof own !== "function" || !methods.includes(method)) return own;
      return async (...args) => {
        used.add(method);
        for (const parameter of Object.keys(args[0] ?? {})) used.add(`${method}(${parameter})`);
        const note = (route) => used.add(`${method}: ${route}`);
        const result = await current.run({ note, prefix: client.config.baseURL }, () => own.apply(target, args));
        return reading(result, (field) => used.add(`${method} -> ${field}`));
      };
    },
  });
}

function reading(result, note) {
  if (Array.isArray(result)) return result.map((item) => reading(item, note));
  if (typeof result !== "object" || result === null) return result;
  return new Proxy(result, {
    get(target, field) {
      const value = Reflect.get(target, field);
      if (Object.hasOwn(target, field) && value !== undefined) note(field);
      return value;
    },
  });
}

// Both the SDK and plain requests end here.
const send = globalThis.fetch;
globalThis.fetch = (input, init = {}) => {
  const call = current.getStore();
  if (call) {
    const { pathname } = new URL(input);
    const route = pathname.slice(new URL(call.prefix).pathname.length).replace(/^\/cvms\/(?!refresh-instance-ids)[^/]+/, "/cvms/{cvmId}");
    call.note(`${init.method ?? "GET"} ${route}`);
  }
  return send(input, init);
};
