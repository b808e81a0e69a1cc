import assert from "node:assert/strict";
import { test } from "node:test";
import { fsBridge } from "../src/files.ts";
import { type Asked, fake } from "./fake.ts";

const mounts = [
  { source: "/home/u/ws", target: "/workspace" },
  { source: "/home/u/ws/skills", target: "/workspace/skills", readonly: true },
  { volume: "cache", target: "/cache" },
];

test("each operation is one request, at the place inside", async (t) => {
  const f = await fake(t, (a) => (a.method === "GET" ? { text: "bytes" } : { status: 204 }));
  const fs = fsBridge(f.daemon, "s1", "/workspace", mounts);
  const asks: [Promise<unknown>, string][] = [
    [fs.writeFile({ filePath: "a/b", data: "x" }), "PUT /v1/sandboxes/s1/files?path=%2Fworkspace%2Fa%2Fb&parents=true"],
    [fs.writeFile({ filePath: "/home/u/ws/a", data: Buffer.from("x"), mkdir: false }), "PUT /v1/sandboxes/s1/files?path=%2Fworkspace%2Fa"],
    [fs.createFileExclusive({ filePath: "n", cwd: "/workspace/sub", data: "x" }), "PUT /v1/sandboxes/s1/files?path=%2Fworkspace%2Fsub%2Fn&parents=true&exclusive=true"],
    [fs.readFile({ filePath: "n", cwd: "/home/u/ws/sub" }), "GET /v1/sandboxes/s1/files?path=%2Fworkspace%2Fsub%2Fn"],
    [fs.mkdirp({ filePath: "/cache/d" }), "POST /v1/sandboxes/s1/files/mkdir?path=%2Fcache%2Fd&parents=true"],
    [fs.remove({ filePath: "d", recursive: true }), "DELETE /v1/sandboxes/s1/files?path=%2Fworkspace%2Fd&recursive=true"],
    [fs.rename({ from: "a", to: "../b" }), "POST /v1/sandboxes/s1/files/rename?from=%2Fworkspace%2Fa&to=%2Fb"],
  ];
  for (const [done] of asks) await done;
  assert.deepEqual(f.asked.map((a) => `${a.method} ${a.url}`), asks.map(([, want]) => want));
  assert.equal(f.asked[0]?.body, "x");
});

test("paths are inside, and have the host's place where they are mounted", async (t) => {
  const f = await fake(t, () => undefined);
  const fs = fsBridge(f.daemon, "s1", "/workspace", mounts);
  assert.deepEqual(fs.resolvePath({ filePath: "a" }), { containerPath: "/workspace/a", relativePath: "a", hostPath: "/home/u/ws/a" });
  assert.deepEqual(fs.resolvePath({ filePath: "/home/u/ws/skills/s" }), { containerPath: "/workspace/skills/s", relativePath: "skills/s", hostPath: "/home/u/ws/skills/s" });
  assert.deepEqual(fs.resolvePath({ filePath: "../../etc/passwd" }), { containerPath: "/etc/passwd", relativePath: "/etc/passwd" });
  assert.deepEqual(fs.resolvePath({ filePath: "/home/u/wsx/a" }), { containerPath: "/home/u/wsx/a", relativePath: "/home/u/wsx/a" });
  assert.throws(() => fs.resolvePath({ filePath: "a\0b" }), /NUL/);
});

test("errors are those that tools know", async (t) => {
  const answers: Record<string, [number, string]> = { gone: [404, "not_found"], mine: [403, "permission_denied"], full: [429, "resource_exhausted"], there: [409, "conflict"] };
  const f = await fake(t, (a) => {
    const [status, code] = Object.entries(answers).find(([k]) => a.url.includes(k))?.[1] ?? [500, "internal"];
    return { status, json: { code, message: `${code} it is` } };
  });
  const fs = fsBridge(f.daemon, "s1", "/workspace", mounts);
  const rejects = (p: Promise<unknown>, code: string | undefined) => assert.rejects(p, (e: NodeJS.ErrnoException) => e.code === code);
  await rejects(fs.readFile({ filePath: "gone" }), "ENOENT");
  await rejects(fs.writeFile({ filePath: "mine", data: "x" }), "EACCES");
  await rejects(fs.writeFile({ filePath: "full", data: "x" }), "ENOSPC");
  await rejects(fs.rename({ from: "there", to: "x" }), "EEXIST");
  assert.equal(await fs.createFileExclusive({ filePath: "there", data: "x" }), "exists");
  assert.equal(await fs.stat({ filePath: "gone" }), null);
  await fs.remove({ filePath: "gone", force: true });
  await rejects(fs.remove({ filePath: "gone" }), "ENOENT");
  await assert.rejects(fs.readDirectory({ filePath: "other" }), /internal it is/);
});

test("stat follows links inside, and not for ever", async (t) => {
  const at = (a: Asked) => decodeURIComponent(new URL(a.url, "http://x").searchParams.get("path") ?? "");
  const f = await fake(t, (a) => {
    const p = at(a);
    if (p === "/workspace/loop") return { json: { type: "symlink", target: "loop", size: 4, mod_time: "2026-01-01T00:00:00Z" } };
    if (p === "/workspace/link") return { json: { type: "symlink", target: "../etc/x", size: 4, mod_time: "2026-01-01T00:00:00Z" } };
    return p === "/etc/x" ? { json: { type: "file", size: 7, mod_time: "2026-01-01T00:00:00Z" } } : undefined;
  });
  const fs = fsBridge(f.daemon, "s1", "/workspace", mounts);
  assert.deepEqual(await fs.stat({ filePath: "link" }), { type: "file", size: 7, mtimeMs: Date.parse("2026-01-01T00:00:00Z") });
  await assert.rejects(fs.stat({ filePath: "loop" }), /too many symbolic links/);
});

test("a list that breaks off is none", async (t) => {
  const lines = ['{"name":"a","type":"dir"}', '{"name":"b","type":"file"}'];
  let end = '{"truncated":false}';
  const f = await fake(t, () => ({ text: [...lines, end].join("\n") }));
  const fs = fsBridge(f.daemon, "s1", "/workspace", mounts);
  assert.deepEqual(await fs.readDirectory({ filePath: "." }), [{ name: "a", isDirectory: true }, { name: "b", isDirectory: false }]);
  end = "";
  await assert.rejects(fs.readDirectory({ filePath: "." }), /broke off/);
  end = '{"truncated":true}';
  await assert.rejects(fs.readDirectory({ filePath: "." }), /more than/);
  end = '{"error":{"code":"unavailable","message":"the sandbox ended"}}';
  await assert.rejects(fs.readDirectory({ filePath: "." }), /the sandbox ended/);
});

test("an answer that breaks off, is too long or never comes is an error", async (t) => {
  const f = await fake(t, (a) => (a.url.includes("cut") ? { text: "half", cut: true } : a.url.includes("long") ? { text: "x".repeat(100) } : { hang: true }));
  const fs = fsBridge(f.daemon, "s1", "/workspace", mounts);
  await assert.rejects(fs.readFile({ filePath: "cut" }), /cannot be asked/);
  await assert.rejects(fs.readFile({ filePath: "long", maxBytes: 10 }), /more than 10 bytes/);
  const stop = new AbortController();
  const read = fs.readFile({ filePath: "never", signal: stop.signal });
  stop.abort(new Error("the turn was stopped"));
  await assert.rejects(read, /the turn was stopped/);
});

test("a sandbox that has ended is no file that is not there", async (t) => {
  const f = await fake(t, () => ({ status: 404, json: { code: "not_found", message: 'no sandbox "s1"', hint: "creel ps -a lists yours" } }));
  const fs = fsBridge(f.daemon, "s1", "/workspace", mounts);
  for (const p of [fs.readFile({ filePath: "a" }), fs.writeFile({ filePath: "a", data: "x" }), fs.stat({ filePath: "a" }), fs.readDirectory({ filePath: "." }), fs.mkdirp({ filePath: "a" }), fs.remove({ filePath: "a", force: true }), fs.rename({ from: "a", to: "b" })]) {
    await assert.rejects(p, (e: NodeJS.ErrnoException) => /sandbox s1 has ended/.test(e.message) && e.code === undefined);
  }
});
