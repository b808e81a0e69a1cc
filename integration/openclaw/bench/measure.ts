// What creel adds to OpenClaw's calls, measured where OpenClaw makes them: with the
// plugin's own code, against the creeld that "make bench" has started. It prints one
// JSON object of samples in milliseconds.
//
//   node measure.ts SOCKET CREEL DIRECTORY SAMPLES ROUNDS [IMAGE]
import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import path from "node:path";
import type { CreateParams, Handle } from "openclaw/plugin-sdk/sandbox";
import { Backend } from "../src/backend.ts";
import { configOf } from "../src/config.ts";
import { Daemon } from "../src/daemon.ts";

const [socket = "", creel = "", dir = "", n = "", rounds = "", image = ""] = process.argv.slice(2);
const daemon = new Daemon(socket);
const backend = new Backend({ config: { ...configOf({ limits: { memory: "256M" }, ...(image !== "" && { image }) }), creel }, daemon, instance: "bench", spawnedBy: () => undefined, note: () => undefined, warn: () => undefined });

const params = (scope: string): CreateParams => {
  const workspaceDir = path.join(dir, scope);
  mkdirSync(workspaceDir, { recursive: true });
  return {
    sessionKey: `agent:main:${scope}`, scopeKey: `agent:main:${scope}:workspace:0`, runtimeId: `bench-${scope}`, workspaceDir, agentWorkspaceDir: workspaceDir,
    cfg: {
      mode: "all", backend: "creel", scope: "session", workspaceAccess: "none", workspaceRoot: dir,
      docker: { image: "openclaw-sandbox:bookworm-slim", containerPrefix: "openclaw-sbx-", workdir: "/workspace", readOnlyRoot: true, tmpfs: [], network: "none", capDrop: ["ALL"] },
    },
  };
};

/** Starts what OpenClaw's broker would, and waits for its end. */
const run = (argv: string[], env: Record<string, string>, want: number) =>
  new Promise<void>((resolve, reject) => {
    const [file = "", ...args] = argv;
    const child = spawn(file, args, { env, cwd: "/", stdio: ["pipe", "ignore", "ignore"] });
    child.on("error", reject);
    child.on("close", (code) => (code === want ? resolve() : reject(new Error(`${argv.join(" ")} ended with ${code}, not ${want}`))));
    child.stdin.on("error", () => undefined);
    child.stdin.end();
  });

async function timed(f: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await f();
  return performance.now() - start;
}

async function exec(h: Handle) {
  const spec = await h.buildExecSpec({ command: "true", env: {}, usePty: false });
  await run(spec.argv, spec.env, 0);
  await h.finalizeExec({ status: "completed", exitCode: 0, token: spec.finalizeToken });
}

const h = await backend.factory(params("one"));
const fs = h.createFsBridge({});
const none = [...(await h.buildExecSpec({ command: "true", env: {}, usePty: false })).argv.slice(0, -1), "NOBODY"];
const out = { exec: [] as number[], relay: [] as number[], write: [] as number[], trips: [] as number[], turn: [] as number[], spawn5: [] as number[], inTurn: [] as number[] };
for (let i = 0; i < Number(n) + 5; i++) {
  const one = {
    exec: await timed(() => exec(h)),
    relay: await timed(() => run(none, { PATH: "/usr/bin:/bin" }, 125)),
    write: await timed(() => fs.writeFile({ filePath: `nested/a${i}/b/file`, data: "x" })),
    turn: await timed(() => backend.factory(params("one"))),
  };
  if (i >= 5) for (const [k, v] of Object.entries(one)) out[k as keyof typeof one].push(v);
}
for (let i = 0; i < Math.max(5, Number(n) / 10); i++) {
  out.trips.push(await timed(async () => {
    for (let k = 0; k < 20; k++) await h.runShellCommand({ script: "true" });
  }));
}
const five = [1, 2, 3, 4, 5];
for (let i = 0; i < Number(rounds) + 1; i++) {
  const ps = five.map((k) => params(`r${i}-${k}`));
  const at = await timed(() => Promise.all(ps.map((p) => backend.factory(p))));
  await Promise.all(ps.map((p) => daemon.remove(p.runtimeId ?? "")));
  const each = await timed(async () => {
    for (const p of ps) await backend.factory(p);
  });
  await Promise.all(ps.map((p) => daemon.remove(p.runtimeId ?? "")));
  if (i > 0) {
    out.spawn5.push(at);
    out.inTurn.push(each);
  }
}
await daemon.remove("bench-one");
console.log(JSON.stringify(out));
