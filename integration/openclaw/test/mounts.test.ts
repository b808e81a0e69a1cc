import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { test, type TestContext } from "node:test";
import { plan } from "../src/mounts.ts";

function dirs(t: TestContext, ...names: string[]): (name: string) => string {
  const top = mkdtempSync(path.join(os.tmpdir(), "creel-oc-"));
  t.after(() => rmSync(top, { recursive: true, force: true }));
  for (const n of names) mkdirSync(path.join(top, n), { recursive: true });
  return (n) => path.join(top, n);
}
const common = { workdir: "/workspace", binds: [], protect: true, child: false };

test("the mounts of each access are OpenClaw's", (t) => {
  const d = dirs(t, "own/skills", "own/.agents/skills", "agent/skills", "made/skills");
  const at = { workspaceDir: d("own"), agentWorkspaceDir: d("agent") };
  assert.deepEqual(plan({ ...common, ...at, access: "none" }), [
    { source: d("own"), target: "/workspace" },
    { source: d("own/skills"), target: "/workspace/skills", readonly: true },
    { source: d("own/.agents/skills"), target: "/workspace/.agents/skills", readonly: true },
  ]);
  assert.deepEqual(plan({ ...common, ...at, access: "ro" }), [
    { source: d("own"), target: "/workspace", readonly: true },
    { source: d("agent"), target: "/agent", readonly: true },
  ]);
  const rw = { ...at, workspaceDir: d("agent"), skillsWorkspaceDir: d("made"), access: "rw" as const };
  assert.deepEqual(plan({ ...common, ...rw }), [
    { source: d("agent"), target: "/workspace", protect: true },
    { source: d("agent/skills"), target: "/workspace/skills", readonly: true },
    { source: d("made/skills"), target: "/workspace/.openclaw/sandbox-skills/skills", readonly: true },
  ]);
  assert.ok(!plan({ ...common, ...rw, protect: false }).some((m) => m.protect));
});

test("a child's own directories are its own, and a shared workspace is not", (t) => {
  const d = dirs(t, "own/skills", "agent", "files");
  const at = { agentWorkspaceDir: d("agent"), readOnlyResourceMounts: [{ hostPath: d("files"), containerPath: "/openclaw/attachments" }], child: true };
  assert.deepEqual(plan({ ...common, ...at, workspaceDir: d("own"), access: "none" }).map((m) => m.own), [true, true, true]);
  assert.deepEqual(plan({ ...common, ...at, workspaceDir: d("agent"), access: "rw" }).map((m) => m.own), [undefined, true]);
});

test("binds take the workspace's place, and neither skills' nor attachments'", (t) => {
  const d = dirs(t, "own/skills", "bound", "files");
  const binds = ["/workspace/", "/workspace/skills", "/openclaw/attachments", "/data"].map((target) => ({ source: d("bound"), target }));
  const got = plan({ ...common, binds, workspaceDir: d("own"), agentWorkspaceDir: d("own"), access: "none", readOnlyResourceMounts: [{ hostPath: d("files"), containerPath: "/openclaw/attachments" }] });
  assert.deepEqual(Object.fromEntries(got.map((m) => [m.target, m.source])), {
    "/workspace": d("bound"), "/workspace/skills": d("own/skills"), "/openclaw/attachments": d("files"), "/data": d("bound"),
  });
});

test("skills that are a link are not mounted, and sources have no links", (t) => {
  const d = dirs(t, "real", "elsewhere");
  symlinkSync(d("elsewhere"), path.join(d("real"), "skills"));
  symlinkSync(d("real"), d("link"));
  assert.deepEqual(plan({ ...common, workspaceDir: d("link"), agentWorkspaceDir: d("link"), access: "none" }), [{ source: d("real"), target: "/workspace" }]);
});

test("the place of materialised skills is made by no link, and left out where there is something else", (t) => {
  const d = dirs(t, "a/.openclaw", "b/.openclaw", "c", "made/skills", "elsewhere");
  symlinkSync(d("elsewhere"), path.join(d("b/.openclaw"), "sandbox-skills"));
  const at = (ws: string) => plan({ ...common, workspaceDir: ws, agentWorkspaceDir: ws, skillsWorkspaceDir: d("made"), access: "rw" }).map((m) => m.target);
  const place = "/workspace/.openclaw/sandbox-skills/skills";
  for (const ws of [d("a"), d("a"), d("c")]) assert.deepEqual(at(ws), ["/workspace", place]);
  assert.deepEqual(at(d("b")), ["/workspace"]);
  assert.deepEqual(readdirSync(d("elsewhere")), []);
});
