import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { test, type TestContext } from "node:test";
import type { CreateParams } from "openclaw/plugin-sdk/sandbox";
import { Backend } from "../src/backend.ts";
import { configOf } from "../src/config.ts";
import { Daemon } from "../src/daemon.ts";
import { type Asked, fake, pair, signed, statement } from "./fake.ts";

const key = "agent:main:subagent:75f072ba-a6f9-4b02-b9b9-c9a1e1ce99d8";
const params = (change: Partial<CreateParams> = {}): CreateParams => ({
  sessionKey: "agent:main:t1", scopeKey: "agent:main:t1:workspace:00", runtimeId: "oc-i-main-1", workspaceDir: "/nowhere/ws", agentWorkspaceDir: "/nowhere/agent",
  cfg: {
    mode: "all", backend: "creel", scope: "session", workspaceAccess: "none", workspaceRoot: "/nowhere",
    docker: { image: "openclaw-sandbox:bookworm-slim", containerPrefix: "openclaw-sbx-", workdir: "/workspace", readOnlyRoot: true, tmpfs: ["/tmp"], network: "none", capDrop: ["ALL"], env: { LANG: "C.UTF-8" } },
  },
  ...change,
});
const sandbox = (change = {}) => ({
  id: "s1", name: "oc-i-main-1", agent: "openclaw-i-main", profile: "default", image: "base", state: "running", execs: 0,
  limits: { memory: 1 << 30, cpus: 2, pids: 500 }, caller: { uid: 1 }, mounts: [], ...change,
});

/** A box that has what there is, and what of it a test wants otherwise. */
function box(t: TestContext, other: (a: Asked) => { status?: number; json?: unknown; text?: string } | undefined = () => undefined) {
  return fake(t, (a) => {
    const said = other(a);
    if (said) return said;
    const p = a.url.split("?")[0];
    if (p === "/v1/openapi.yaml") return { text: "paths:\n  /v1/prepared/{id}:\n  protect:\n  kill_tree:\n" };
    if (p === "/v1/version") return { json: { creel: "v1", api: "v1" } };
    if (p === "/v1/key") return { json: { id: "k", pem: pair.publicKey.export({ format: "pem", type: "spki" }) } };
    if (a.method === "PUT") return { json: { sandbox: sandbox(), evidence: signed(statement()) } };
    if (p === "/v1/sandboxes/s1/evidence") return { json: [signed(statement())] };
    if (p === "/v1/sandboxes") return { json: [] };
    if (p?.endsWith("/prepare")) return { status: 201, json: { id: "ONCE", expires: "2026-01-01T00:00:00Z" } };
    if (p === "/v1/volumes") return { status: 201, json: { name: "x" } };
    if (a.method === "DELETE") return { status: 204 };
    return undefined;
  });
}
const backend = (daemon: Daemon, config = {}, spawnedBy?: string) => new Backend({ config: { ...configOf(config), creel: "/usr/bin/creel" }, daemon, instance: "i", spawnedBy: () => spawnedBy, note: () => undefined, warn: () => undefined });
const body = (asked: Asked[]) => JSON.parse(asked.find((a) => a.method === "PUT")?.body ?? "null");

test("a handle comes with evidence that is proven again", async (t) => {
  const f = await box(t);
  const h = await backend(f.daemon).factory(params());
  assert.equal(h.runtimeId, "oc-i-main-1");
  assert.equal(h.workdir, "/workspace");
  assert.deepEqual(body(f.asked), {
    agent: "openclaw-i-main", mounts: [{ source: "/nowhere/ws", target: "/workspace" }], workdir: "/workspace", remove: true,
    labels: { "openclaw.instance": "i", "openclaw.scope": "agent:main:t1:workspace:00", "openclaw.session": "agent:main:t1" },
  });
  assert.ok(f.asked.some((a) => a.url.includes("evidence?fresh=true")));
});

test("without it, or with what is not proven, there is none, on one line that says why", async (t) => {
  const broken = statement();
  broken.controls?.push({ name: "seccomp.mode", expected: "filter", observed: "none", ok: false });
  for (const [evidence, why] of [
    [[{ sandbox: "s1", ok: true, controls: [] }], /no signed evidence/], [[], /no signed evidence/], [[signed(statement({ sandbox: "s2" }))], /of sandbox s2/], [[signed(broken)], /not proven: seccomp.mode is none, not filter/],
  ] as const) {
    const f = await box(t, (a) => (a.url.includes("/evidence") ? { json: evidence } : undefined));
    await assert.rejects(backend(f.daemon).factory(params()), (e: Error) => why.test(e.message) && e.message.startsWith("creel: ") && !e.message.includes("\n"));
  }
});

test("what creeld refuses is what the user sees", async (t) => {
  const f = await box(t, (a) => (a.method === "PUT" ? { status: 429, json: { code: "resource_exhausted", message: "4 sandboxes are the most you may have", hint: "end one" } } : undefined));
  await assert.rejects(backend(f.daemon).factory(params()), /^Error: creel: 4 sandboxes are the most you may have; end one$/);
  const none = new Daemon("/nowhere/creel.sock");
  await assert.rejects(backend(none).factory(params()), /creeld at \/nowhere\/creel.sock cannot be asked .*systemctl start creeld/);
  const old = await box(t, (a) => (a.url === "/v1/openapi.yaml" ? { text: "paths:\n" } : undefined));
  await assert.rejects(backend(old.daemon).factory(params()), /creeld v1 is too old for this plugin/);
  const set = await box(t);
  const p = params();
  await assert.rejects(backend(set.daemon).factory({ ...p, cfg: { ...p.cfg, docker: { ...p.cfg.docker, gpus: "all" } } }), /sandbox.docker.gpus/);
  assert.equal(set.asked.filter((a) => a.method === "PUT").length, 0);
});

test("one that has ended or is another is made again, unless something runs in it", async (t) => {
  for (const first of [
    { json: { sandbox: sandbox({ state: "stopped" }), evidence: signed(statement()) } },
    { status: 409, json: { code: "conflict", message: "is another", problems: [{ field: "profile", have: "strict", want: "default" }] } },
  ]) {
    let puts = 0;
    const f = await box(t, (a) => (a.method === "PUT" && puts++ === 0 ? first : a.method === "GET" && a.url === "/v1/sandboxes/oc-i-main-1" ? { json: sandbox() } : undefined));
    await backend(f.daemon).factory(params());
    assert.deepEqual(f.asked.filter((a) => a.method !== "GET").map((a) => a.method), ["PUT", "DELETE", "PUT"]);
  }
  const busy = await box(t, (a) =>
    a.method === "PUT" ? { status: 409, json: { code: "conflict", message: "is another", problems: [{ field: "profile", have: "strict", want: "default" }] } }
    : a.url === "/v1/sandboxes/oc-i-main-1" ? { json: sandbox({ execs: 2 }) } : undefined);
  await assert.rejects(backend(busy.daemon).factory(params()), /2 commands run in it/);
  assert.ok(!busy.asked.some((a) => a.method === "DELETE"));
  const name = await box(t, (a) => (a.method === "PUT" ? { status: 409, json: { code: "conflict", message: "/ws is writable in another" } } : undefined));
  await assert.rejects(backend(name.daemon).factory(params()), /\/ws is writable in another/);
});

test("a subagent's sandbox is a child of its parent's, and asks for a part", async (t) => {
  const f = await box(t, (a) => (a.method === "GET" && a.url.startsWith("/v1/sandboxes?") ? { json: [sandbox({ id: "p1", state: "stopped" }), sandbox({ id: "p2" })] } : undefined));
  const p = params({ sessionKey: key, scopeKey: `${key}:workspace:0` });
  await backend(f.daemon, { limits: { memory: "4G", ttl: "2h" } }, "agent:main:t1").factory(p);
  const asked = body(f.asked);
  assert.equal(asked.parent, "p2");
  assert.deepEqual(asked.limits, { memory: Math.floor((1 << 30) / 5), cpus: 0.4, pids: 100, ttl: "2h" });
  assert.equal(asked.mounts[0].own, true);
  assert.match(decodeURIComponent(f.asked.find((a) => a.url.startsWith("/v1/sandboxes?"))?.url ?? ""), /openclaw.instance=i.*openclaw.session=agent:main:t1$/);
  for (const by of [undefined, "agent:other:t1"]) {
    const g = await box(t);
    await backend(g.daemon, {}, by).factory(p);
    assert.equal(body(g.asked).parent, undefined);
  }
});

test("an agent's own keys come before those of all", async (t) => {
  const f = await box(t);
  await backend(f.daemon, {
    profile: "default", egress: ["api.example.com"], limits: { memory: "1G", pids: 64 },
    agents: { main: { image: "tools", secrets: ["example"], home: "persistent", limits: { pids: 32 }, volumes: [{ name: "npm", target: "/cache", size: "1G" }] }, __proto__: { profile: "build" } },
  }).factory(params());
  const { agent, profile, image, network, egress, secrets, home, limits, mounts } = body(f.asked);
  assert.deepEqual({ agent, profile, image, network, egress, secrets, home, limits }, {
    agent: "openclaw-i-main", profile: "default", image: "tools", network: "policy", egress: ["api.example.com"], secrets: ["example"], home: "persistent", limits: { memory: "1G", pids: 32 },
  });
  assert.deepEqual(mounts.at(-1), { volume: "oc-i-main-npm", target: "/cache" });
  assert.deepEqual(JSON.parse(f.asked.find((a) => a.url === "/v1/volumes")?.body ?? ""), { name: "oc-i-main-npm", agent: "openclaw-i-main", size: "1G" });
});

test("a command and its environment are not in the argument vector", async (t) => {
  const f = await box(t);
  const h = await backend(f.daemon).factory(params());
  const spec = await h.buildExecSpec({ command: "echo secret-word", env: { PATH: "/gateway/bin", HOME: "/workspace", TOKEN: "secret-word" }, workdir: "/workspace/a", usePty: false });
  assert.deepEqual(spec.argv, ["/usr/bin/creel", "--socket", f.socket, "exec", "-i", "--prepared", "ONCE"]);
  assert.ok(!JSON.stringify([spec.argv, spec.env]).includes("secret-word"));
  assert.deepEqual(JSON.parse(f.asked.find((a) => a.url.endsWith("/prepare"))?.body ?? ""), {
    command: ["/bin/sh", "-lc", "echo secret-word"], env: { TOKEN: "secret-word" }, workdir: "/workspace/a", stdin: true, kill_tree: true,
  });
  const released = () => f.asked.filter((a) => a.method === "DELETE").map((a) => a.url);
  await h.finalizeExec({ status: "completed", exitCode: 3, token: spec.finalizeToken });
  assert.deepEqual(released(), []);
  for (const end of [{ status: "completed", exitCode: 125 }, { status: "failed", exitCode: null }] as const) await h.finalizeExec({ ...end, token: spec.finalizeToken });
  assert.deepEqual(released(), ["/v1/prepared/ONCE", "/v1/prepared/ONCE"]);
  await h.finalizeExec({ status: "failed", exitCode: null });
});

test("a shell command's relay may fail, write too much or be stopped, and nothing is thrown past it", async (t) => {
  const dir = mkdtempSync(path.join(os.tmpdir(), "creel-oc-"));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const relay = path.join(dir, "creel");
  const f = await box(t);
  const h = await new Backend({ config: { ...configOf({}), creel: relay }, daemon: f.daemon, instance: "i", spawnedBy: () => undefined, note: () => undefined, warn: () => undefined }).factory(params());
  const as = (script: string) => {
    writeFileSync(relay, `#!/bin/sh\n${script}\n`);
    chmodSync(relay, 0o755);
  };
  await assert.rejects(h.runShellCommand({ script: "x" }), /ENOENT/);
  as("cat; echo bad >&2; exit 3");
  assert.deepEqual(await h.runShellCommand({ script: "x", stdin: "in", allowFailure: true }), { stdout: Buffer.from("in"), stderr: Buffer.from("bad\n"), code: 3 });
  await assert.rejects(h.runShellCommand({ script: "x" }), /^Error: bad$/);
  as("exit 0"); // without reading: EPIPE on its input ends nobody
  await h.runShellCommand({ script: "x", stdin: Buffer.alloc(4 << 20) });
  as("exec sleep 60");
  const stop = new AbortController();
  const long = h.runShellCommand({ script: "x", signal: stop.signal });
  stop.abort();
  await assert.rejects(long, /abort/i);
});

test("the manager knows only what creeld does", async (t) => {
  const f = await box(t, (a) => (a.method === "GET" && a.url === "/v1/sandboxes/here" ? { json: sandbox({ state: "paused" }) } : undefined));
  const m = backend(f.daemon, { agents: { main: { profile: "strict" } } }).manager;
  const entry = (containerName: string) => ({ entry: { containerName, sessionKey: "agent:main:t1:workspace:00" }, config: {} });
  assert.deepEqual(await m.describeRuntime(entry("here")), { running: true, actualConfigLabel: "default (base)", configLabelMatch: false });
  assert.deepEqual(await m.describeRuntime(entry("gone")), { running: false, configLabelMatch: true });
  await m.removeRuntime(entry("here"));
  assert.equal(f.asked.at(-1)?.url, "/v1/sandboxes/here?force=true");
  await assert.rejects(backend(new Daemon("/nowhere/s")).manager.describeRuntime(entry("here")), /cannot be asked/);
});

test("a directory that is not there is told from a creeld that is not", async (t) => {
  let up = true;
  const f = await box(t, (a) => (!a.url.includes("/files/list") ? undefined : !up ? { status: 503, json: { code: "unavailable", message: "creeld is stopping" } } : a.url.includes("there") ? { text: '{"truncated":true}' } : { status: 404, json: { code: "not_found", message: "/gone: no such file or directory" } }));
  const h = await backend(f.daemon).factory(params());
  assert.equal(await h.validateWorkdir("/there"), "/there");
  assert.equal(await h.validateWorkdir("/gone"), null);
  up = false;
  await assert.rejects(h.validateWorkdir("/there"), /creeld is stopping/);
});

test("one that is not proven any more is made again, unless something runs in it", async (t) => {
  const broken = statement();
  broken.controls?.push({ name: "mount./workspace/.git/config", expected: "inode 1", observed: "inode 2", ok: false });
  for (const [execs, want] of [[0, ["PUT", "DELETE", "PUT"]], [1, ["PUT"]]] as const) {
    let proofs = 0;
    const f = await box(t, (a) => (a.url.includes("/evidence") && proofs++ === 0 ? { json: [signed(broken)] } : a.method === "PUT" ? { json: { sandbox: sandbox({ execs }), evidence: signed(statement()) } } : undefined));
    const h = backend(f.daemon).factory(params());
    if (execs === 0) await h;
    else await assert.rejects(h, /not proven: mount.\/workspace\/.git\/config/);
    assert.deepEqual(f.asked.filter((a) => a.method !== "GET").map((a) => a.method), want);
  }
});
