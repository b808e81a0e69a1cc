import assert from "node:assert/strict";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { test } from "node:test";
import { endSession, note, sweep, type Sweep } from "../src/lifecycle.ts";
import { fake } from "./fake.ts";

const key = (n: number) => `agent:main:subagent:75f072ba-a6f9-4b02-b9b9-c9a1e1ce99d${n}`;

test("a subagent's sandbox and private workspace go with its session, and nobody else's", async (t) => {
  const root = mkdtempSync(path.join(os.tmpdir(), "creel-oc-"));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  const outside = path.join(root, "kept");
  writeFileSync(outside, "");
  const dir = (c: string) => path.join(root, `workspace-${c.repeat(32)}`);
  for (const c of ["a", "b", "c", "d"]) {
    mkdirSync(dir(c));
    symlinkSync(root, path.join(dir(c), "up"));
  }
  const boxes = [1, 2, 3].map((n) => ({ id: `s${n}`, name: `n${n}`, labels: { "openclaw.instance": "i", "openclaw.session": n === 3 ? "agent:main:chat" : key(n) } }));
  const f = await fake(t, (a) => {
    const want = new URL(a.url, "http://x").searchParams.getAll("label").map((l) => l.split("=", 2));
    return a.method === "DELETE" ? { status: 204 } : { json: boxes.filter((b) => want.every(([k, v]) => b.labels[k as keyof typeof b.labels] === v)) };
  });
  const removed = () => f.asked.filter((a) => a.method === "DELETE").map((a) => a.url);
  const roots = new Set<string>();
  const s: Sweep = { daemon: f.daemon, instance: "i", roots, logger: { info: () => undefined, warn: () => undefined, error: () => undefined }, known: (k) => k === key(2) };
  note(roots, dir("a"), key(1));
  note(roots, dir("a"), key(1)); // each turn
  note(roots, dir("b"), key(2));
  note(roots, dir("c"), "agent:main:chat");
  note(roots, path.join(root, "elsewhere"), key(1));
  assert.deepEqual([...roots], [root]);

  await endSession(s, "agent:main:chat");
  assert.deepEqual(removed(), []);
  await endSession(s, key(1));
  assert.deepEqual(removed(), ["/v1/sandboxes/s1?force=true"]);
  assert.deepEqual(["a", "b", "c", "d"].map((c) => existsSync(dir(c))), [false, true, true, true]);
  assert.ok(existsSync(outside));
  assert.deepEqual(readdirSync(path.join(root, ".creel")), [path.basename(dir("b"))]);

  // A gateway that comes back: session 2 is known, 1 is not, and another's workspace
  // was left without a sandbox.
  note(roots, dir("d"), key(4));
  f.asked.length = 0;
  await sweep(s);
  assert.deepEqual(removed(), ["/v1/sandboxes/s1?force=true"]);
  assert.deepEqual(["b", "c", "d"].map((c) => existsSync(dir(c))), [true, true, false]);
  await sweep({ ...s, known: () => true });
  assert.ok(existsSync(dir("b")));
});
