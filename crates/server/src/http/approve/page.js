"use strict";
// The page behind a commit link. The token is read from the fragment, which browsers do not send, and goes out as a bearer.
const POLL_MS = 5000;
const CHAINS = { 1: "Ethereum", 8453: "Base", 31337: "a local chain" };
const NAMES = {
  docker_compose_file: "Docker compose file", pre_launch_script: "Pre-launch script", allowed_envs: "Variables let in",
  encrypted_env: "Sealed variables", compose_hash: "Compose hash", vcpu: "vCPUs", memory: "Memory (MB)",
  disk_size: "Disk (GB)", image: "OS image", user_config: "User config", public_logs: "Public logs",
  public_sysinfo: "Public system info", public_tcbinfo: "Public TCB info", gpus: "GPUs",
};
const id = location.pathname.split("/").filter(Boolean).pop();
const at = (name) => document.getElementById(name);
let token = decodeURIComponent(location.hash.slice(1));
let shown = null;
let timer = 0;

const isOpen = (approval) => ["open", "needs_attention"].includes(approval.state);

function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

async function call(method, path, body) {
  const headers = { Authorization: "Bearer " + token };
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch("/api/v1/approvals/" + encodeURIComponent(id) + path, {
    method, headers, body: body && JSON.stringify(body), cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer",
  }).catch(() => { throw new Error("The server does not answer. Try again: nothing is committed twice."); });
  const value = await answer.json().catch(() => ({}));
  if (answer.ok) return value;
  const detail = typeof value.detail === "string" ? value.detail
    : Array.isArray(value.detail) ? value.detail.map((issue) => issue.msg).join("; ") : null;
  throw new Error(value.message || detail || "The server answered " + answer.status);
}

async function load() {
  clearTimeout(timer);
  if (!token) { at("ask").hidden = false; return; }
  try {
    show(await call("GET", ""));
    at("problem").hidden = true;
    at("ask").hidden = true;
  } catch (error) {
    at("problem").textContent = error.message;
    at("problem").hidden = false;
    if (!shown) { at("ask").hidden = false; return; }
  }
  if (isOpen(shown)) timer = setTimeout(load, POLL_MS);
}

function show(approval) {
  const first = !shown;
  shown = approval;
  at("approval").hidden = false;
  if (first) {
    const what = approval.purpose === "replica" ? "Another machine like " : "An update of ";
    document.title = what + approval.cvm_name + " · Casemate";
    at("title").textContent = what + approval.cvm_name;
    at("hash").textContent = approval.compose_hash;
    at("contract").textContent = approval.contract;
    at("chain").textContent = (CHAINS[approval.chain_id] || "Chain") + " (id " + approval.chain_id + ")";
    at("kms").textContent = approval.kms.slug || approval.kms.id;
    at("kms-contract").textContent = approval.kms.kms_contract_address;
    at("custody").hidden = approval.kms.custody !== "operator";
    at("download").disabled = approval.app_compose === null;
    showDiff(approval.diff);
    at("warnings").replaceChildren(...(approval.warnings || []).map((text) => make("li", text)));
    at("warnings").hidden = !approval.warnings;
  }
  at("byline").textContent = "Asked for by " + approval.author + " on " + when(approval.created_at) + "."
    + (isOpen(approval) ? " Can be committed until " + when(approval.expires_at) + "." : "");
  showBanner(approval);
  // Nobody is to sign for what cannot be committed any more.
  const open = isOpen(approval) && !approval.problem;
  showStatus(approval.onchain_status);
  showCalls(open ? approval.calls : []);
  at("status").hidden = !open;
  at("safe").parentElement.hidden = !open || approval.safe_batch.transactions.length === 0;
  showDecision(approval);
}

const when = (text) => new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

function showBanner(approval) {
  const texts = {
    committed: ["Committed. Operation " + approval.correlation_id + " carries it out.", "good"],
    superseded: ["A newer request, approval " + approval.superseded_by + ", has taken its place. Nothing can be committed here any more.", "bad"],
    expired: ["Its time is over. Ask for the update again.", "bad"],
    cancelled: ["It was called off.", "bad"],
  };
  let [text, kind] = texts[approval.state] || ["", ""];
  if (approval.state === "needs_attention") [text, kind] = ["It needs attention and does not go on by itself: " + approval.needs_attention, ""];
  if (isOpen(approval) && approval.problem) [text, kind] = ["It can no longer run as it was asked for: " + approval.problem, "bad"];
  at("banner").className = "note " + kind;
  if (at("banner").textContent !== text) at("banner").textContent = text;
  at("banner").hidden = !text;
}

function showStatus(status) {
  const pills = status
    ? [[status.compose_hash_allowed, "Compose hash allowed", "Compose hash not allowed yet"],
       [status.device_id_allowed, "Device allowed", "Device not allowed yet"]]
        .map(([yes, good, wait]) => make("li", (yes ? "✓ " : "○ ") + (yes ? good : wait), yes ? "good" : ""))
    : [make("li", "The chain does not answer; asked again soon", "bad")];
  const before = [...at("status").children].map((pill) => pill.textContent).join();
  if (before !== pills.map((pill) => pill.textContent).join()) at("status").replaceChildren(...pills);
}

function showCalls(calls) {
  const key = JSON.stringify(calls);
  if (at("calls").dataset.key === key) return;
  at("calls").dataset.key = key;
  at("calls").replaceChildren(...calls.map((call) => {
    const box = make("div", undefined, call.needed === false ? "call done" : "call");
    if (call.needed === false) {
      box.append(make("h3", "✓ " + call.function + ": nothing to do, the contract allows it"));
      return box;
    }
    box.append(make("h3", call.function));
    for (const [name, value] of [["To", call.to], ["Argument", call.argument], ["Calldata", call.data]]) {
      const field = make("div", undefined, "field");
      const button = make("button", "Copy", "copy");
      button.setAttribute("aria-label", "Copy " + name.toLowerCase() + " of " + call.function);
      button.addEventListener("click", () => copy(value, button));
      field.append(make("span", name, "name"), make("code", value), button);
      box.append(field);
    }
    return box;
  }));
}

function showDecision(approval) {
  const open = isOpen(approval);
  const allowed = approval.onchain_status !== null && approval.onchain_status.is_allowed;
  at("decide").hidden = !open || Boolean(approval.problem);
  at("commit").disabled = !open || !allowed || busy;
  at("why").textContent = allowed
    ? "The contract allows it. Committing restarts the machine with the new configuration."
    : approval.auto_commit ? "The server commits it as soon as the contract allows both the hash and the device. This page keeps looking."
    : "As soon as the contract allows both the hash and the device, it can be committed here. This page keeps looking.";
  at("auto").hidden = token.startsWith("ct_");
  at("auto").textContent = approval.auto_commit ? "Do not commit by itself" : "Commit by itself once allowed";
}

function showDiff(diff) {
  const rows = diff.filter((change) => change.field !== "compose_hash");
  if (rows.length === 0) { at("diff").replaceChildren(make("p", "Nothing but a restart.")); return; }
  at("diff").replaceChildren(...rows.map((change) => {
    const box = make("div", undefined, "change");
    box.append(make("h3", NAMES[change.field] || change.field));
    const { from, to } = change;
    if (isText(from) || isText(to)) { box.append(lines(from || "", to || "")); return box; }
    box.classList.add("short");
    if (Array.isArray(from) || Array.isArray(to)) box.append(names(from || [], to || []));
    else {
      const line = make("p");
      line.append(make("span", word(from), "from"), " → ", make("span", word(to), "to"));
      box.append(line);
    }
    return box;
  }));
}

const isText = (value) => typeof value === "string" && value.includes("\n");
const word = (value) => value === null || value === "" ? "none" : value === true ? "yes" : value === false ? "no"
  : typeof value === "string" ? value : JSON.stringify(value);

function names(from, to) {
  const line = make("p");
  for (const name of new Set([...from, ...to])) {
    const kind = !from.includes(name) ? "to" : !to.includes(name) ? "from" : "";
    line.append(make("code", (kind === "to" ? "+" : kind === "from" ? "−" : "") + name, kind), " ");
  }
  if (!line.childNodes.length) line.append("none");
  if (String(from) === String(to)) line.append(make("span", "(new values)", "muted"));
  return line;
}

function lines(from, to) {
  const box = make("pre", undefined, "lines");
  box.setAttribute("aria-label", "Changed lines");
  const row = (sign, text, kind) => {
    const made = make("div", undefined, kind);
    made.append(make("b", sign), make("span", text));
    box.append(made);
  };
  const CONTEXT = 3;
  const split = (text) => text === "" ? [] : text.replace(/\n$/, "").split("\n");
  const all = compare(split(from), split(to));
  const near = all.map((_, index) => all.slice(Math.max(0, index - CONTEXT), index + CONTEXT + 1).some(([sign]) => sign !== " "));
  let hidden = false;
  all.forEach(([sign, text], index) => {
    if (!near[index]) { hidden = true; return; }
    if (hidden) row("⋯", "", "gap");
    hidden = false;
    row(sign, text, sign === "+" ? "add" : sign === "-" ? "del" : "");
  });
  if (hidden) row("⋯", "", "gap");
  return box;
}

// Longest common subsequence of lines; texts that are too long for it are shown one after the other.
function compare(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const [x, y] = [a.slice(start, a.length - end), b.slice(start, b.length - end)];
  const out = a.slice(0, start).map((line) => [" ", line]);
  if (x.length * y.length > 4e6) {
    out.push(...x.map((line) => ["-", line]), ...y.map((line) => ["+", line]));
  } else {
    const best = Array.from({ length: x.length + 1 }, () => new Uint32Array(y.length + 1));
    for (let i = x.length - 1; i >= 0; i--)
      for (let j = y.length - 1; j >= 0; j--)
        best[i][j] = x[i] === y[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    let [i, j] = [0, 0];
    while (i < x.length || j < y.length) {
      if (i < x.length && j < y.length && x[i] === y[j]) { out.push([" ", x[i]]); i++; j++; }
      else if (i < x.length && (j === y.length || best[i + 1][j] >= best[i][j + 1])) out.push(["-", x[i++]]);
      else out.push(["+", y[j++]]);
    }
  }
  out.push(...a.slice(a.length - end).map((line) => [" ", line]));
  return out;
}

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    const field = make("textarea", text);
    document.body.append(field);
    field.select();
    button.textContent = document.execCommand("copy") ? "Copied" : "Select it by hand";
    field.remove();
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

function save(name, text) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

let busy = false;
async function act(what, work) {
  busy = true;
  at("commit").disabled = true;
  at("said").textContent = what;
  at("said").className = "";
  try {
    at("said").textContent = await work();
    at("said").className = "note good";
  } catch (error) {
    at("said").textContent = error.message;
    at("said").className = "note bad";
  }
  busy = false;
  await load();
}

document.querySelectorAll("button[data-copy]").forEach((button) =>
  button.addEventListener("click", () => copy(at(button.dataset.copy).textContent, button)));
at("download").addEventListener("click", () => save("app-compose.json", shown.app_compose));
at("safe").addEventListener("click", () =>
  save("safe-batch-" + shown.compose_hash.slice(0, 8) + ".json", JSON.stringify(shown.safe_batch, null, 2)));
at("commit").addEventListener("click", () => act("Committing …", async () => {
  const done = await call("POST", "/commit", {});
  return "Accepted as operation " + done.correlation_id + ".";
}).then(() => at("banner").scrollIntoView({ block: "center" })));
at("auto").addEventListener("click", () => act("…", async () => {
  const changed = await call("POST", "/auto-commit", { enabled: !shown.auto_commit });
  return changed.auto_commit ? "It will be committed by itself once it is allowed." : "It waits for somebody to commit it.";
}));
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  load();
});
addEventListener("hashchange", () => location.reload());
load();
