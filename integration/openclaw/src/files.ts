// File tools: each operation is one request, done in the sandbox with the rights of
// its user, so what a path leads to is what it leads to there. No path of the
// sandbox's is ever opened on the host.
import path from "node:path";
import type { At, FsBridge, Write } from "openclaw/plugin-sdk/sandbox";
import { codeOf, type Daemon, DaemonError, type Mount } from "./daemon.ts";

/** What a file tool reads at most, when it says no bound: as OpenClaw's helpers have it. */
const maxRead = 100 << 20;
/** How many entries a directory may have for a tool to list them. */
const maxEntries = 100_000;

export function fsBridge(daemon: Daemon, ref: string, workdir: string, mounts: Mount[]): FsBridge {
  // Longest first: a mount that lies in another's is asked before it.
  const mappings = mounts
    .filter((m) => m.source)
    .map((m) => ({ hostRoot: m.source as string, containerRoot: m.target }))
    .sort((a, b) => b.containerRoot.length - a.containerRoot.length);
  const byHost = [...mappings].sort((a, b) => b.hostRoot.length - a.hostRoot.length);

  /** The path inside of what a tool names: a path inside, one of the host's that is mounted, or one relative to either. */
  function inside(filePath: string, cwd?: string): string {
    if (filePath.includes("\0")) throw new Error("a path has no NUL");
    const mapped = (p: string) => {
      const clean = path.posix.normalize(p);
      if (mappings.some((m) => within(m.containerRoot, clean))) return clean;
      const m = byHost.find((b) => within(b.hostRoot, clean));
      return m ? path.posix.join(m.containerRoot, path.posix.relative(m.hostRoot, clean)) : clean;
    };
    if (path.posix.isAbsolute(filePath)) return mapped(filePath);
    const from = cwd && path.posix.isAbsolute(cwd) ? mapped(cwd) : path.posix.join(workdir, cwd ?? "");
    return path.posix.resolve(from, filePath);
  }
  const at = (p: At) => inside(p.filePath, p.cwd);
  const target = (p: Write) => p.pinnedPath ?? at(p);
  const data = (p: Write) => (Buffer.isBuffer(p.data) ? p.data : Buffer.from(p.data, p.encoding ?? "utf8"));

  return {
    pathMappings: mappings,
    resolvePath(p) {
      const containerPath = inside(p.filePath, p.cwd);
      const m = mappings.find((x) => within(x.containerRoot, containerPath));
      const relative = path.posix.relative(workdir, containerPath);
      return {
        containerPath,
        relativePath: within(workdir, containerPath) ? relative : containerPath,
        ...(m && { hostPath: path.join(m.hostRoot, path.posix.relative(m.containerRoot, containerPath)) }),
      };
    },
    async readDirectory(p) {
      const { entries, truncated } = await daemon.list(ref, at(p), maxEntries, p.signal).catch(asErrno(at(p)));
      if (truncated) throw new Error(`${at(p)} has more than ${maxEntries} entries`);
      return entries.map((e) => ({ name: e.name, isDirectory: e.type === "dir" }));
    },
    readFile: (p) => daemon.readFile(ref, at(p), p.maxBytes ?? maxRead, p.signal).catch(asErrno(at(p))),
    async writeFile(p) {
      const to = target(p); // one that is replaced keeps its mode
      await daemon.writeFile(ref, to, data(p), { parents: p.mkdir !== false, exclusive: false }, p.signal).catch(asErrno(to));
    },
    async createFileExclusive(p) {
      try {
        await daemon.writeFile(ref, target(p), data(p), { parents: p.mkdir !== false, exclusive: true }, p.signal);
        return "created";
      } catch (e) {
        if (codeOf(e) === "conflict") return "exists";
        return asErrno(target(p))(e);
      }
    },
    async mkdirp(p) {
      const dir = p.pinnedPath ?? at(p);
      await daemon.mkdir(ref, dir, p.signal).catch(asErrno(dir));
    },
    async remove(p) {
      const what = p.pinnedPath ?? at(p);
      await daemon.removeFile(ref, what, p.recursive === true, p.signal).catch((e: unknown) => {
        if (!(p.force && codeOf(e) === "not_found")) asErrno(what)(e);
      });
    },
    async rename(p) {
      const [from, to] = [inside(p.from, p.cwd), inside(p.to, p.cwd)];
      await daemon.rename(ref, from, to, p.signal).catch(asErrno(from));
    },
    async stat(p) {
      // creeld tells of a link itself; tools want what it leads to.
      let name = at(p);
      for (let links = 0; links < 40; links++) {
        const st = await daemon.stat(ref, name, p.signal).catch((e: unknown) => (codeOf(e) === "not_found" ? undefined : asErrno(name)(e)));
        if (!st) return null;
        if (st.type !== "symlink" || st.target === undefined) {
          const type = st.type === "file" ? "file" : st.type === "dir" ? "directory" : "other";
          return { type, size: st.size, mtimeMs: Date.parse(st.mod_time) };
        }
        name = path.posix.resolve(path.posix.dirname(name), st.target);
      }
      throw Object.assign(new Error(`${at(p)}: too many symbolic links`), { code: "ELOOP" });
    },
  };
}

const within = (root: string, p: string) => p === root || p.startsWith(root === "/" ? "/" : `${root}/`);

/** creeld's classes as the codes that tools know: ENOENT above all. */
function asErrno(name: string): (e: unknown) => never {
  return (e) => {
    if (e instanceof DaemonError) {
      const code = { not_found: "ENOENT", permission_denied: "EACCES", resource_exhausted: "ENOSPC", conflict: "EEXIST" }[e.code];
      throw Object.assign(new Error(code === "ENOENT" ? `ENOENT: no such file or directory, ${name}` : e.message), code ? { code } : {});
    }
    throw e;
  };
}
