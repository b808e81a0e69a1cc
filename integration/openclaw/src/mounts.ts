// The mount plan: what OpenClaw's own backends mount for each workspaceAccess.
import { lstatSync, mkdirSync, realpathSync } from "node:fs";
import path from "node:path";
import type { CreateParams } from "openclaw/plugin-sdk/sandbox";
import type { Mount } from "./daemon.ts";

/** Where the materialised skills of a writable workspace are. */
const skillsParts = [".openclaw", "sandbox-skills", "skills"];

type Plan = Pick<CreateParams, "workspaceDir" | "agentWorkspaceDir" | "skillsWorkspaceDir" | "readOnlyResourceMounts"> & {
  access: "none" | "ro" | "rw";
  workdir: string;
  /** sandbox.docker.binds. */
  binds: Mount[];
  protect: boolean;
  /** It is a child of another sandbox, which does not have the workspace of its own. */
  child: boolean;
};

/**
 * The mounts of a sandbox, the workspace first. A later one at a target takes the
 * place of an earlier: binds that of the workspace, skills and resources that of
 * all. Paths are without symbolic links, which creeld does not follow.
 */
export function plan(p: Plan): Mount[] {
  const ro = p.access === "ro";
  const shared = p.access === "rw";
  const own = p.child && !shared ? { own: true } : {};
  const base: Mount[] = [{
    source: p.workspaceDir, target: p.workdir, ...own,
    ...(ro ? { readonly: true } : {}), ...(shared && p.protect && { protect: true }),
  }];
  // creeld mounts nothing twice at a time that is somebody's own, in another place as well.
  if (p.access !== "none" && p.workspaceDir !== p.agentWorkspaceDir) base.push({ source: p.agentWorkspaceDir, target: "/agent", ...(ro && { readonly: true }) });

  const last: Mount[] = [];
  if (!ro) {
    const root = shared ? p.agentWorkspaceDir : p.workspaceDir;
    for (const parts of [["skills"], [".agents", "skills"]]) {
      const source = path.join(root, ...parts);
      if (isDirIn(source, root)) last.push({ source, target: path.posix.join(p.workdir, ...parts), readonly: true, ...own });
    }
    if (shared && p.skillsWorkspaceDir) {
      const source = path.join(p.skillsWorkspaceDir, "skills");
      // creeld makes nothing in a workspace, so the place is made here, as Docker makes it.
      if (isDirIn(source, p.skillsWorkspaceDir) && makeDirs(root, skillsParts)) {
        last.push({ source, target: path.posix.join(p.workdir, ...skillsParts), readonly: true, ...(p.child && { own: true }) });
      }
    }
  }
  for (const r of p.readOnlyResourceMounts ?? []) last.push({ source: r.hostPath, target: r.containerPath, readonly: true, ...(p.child && { own: true }) });

  const byTarget = new Map<string, Mount>();
  for (const m of [...base, ...p.binds, ...last]) byTarget.set(path.posix.normalize(m.target).replace(/(.)\/$/, "$1"), m);
  return [...byTarget].map(([target, m]) => ({ ...m, target, source: real(m.source as string) }));
}

/**
 * Makes directories beneath root, by no link; false when there is something else.
 * The sandbox may change them meanwhile: creeld looks the place up anew, without links.
 */
function makeDirs(root: string, parts: string[]): boolean {
  let dir = root;
  try {
    for (const part of parts) {
      dir = path.join(dir, part);
      mkdirSync(dir, { recursive: false, mode: 0o755 });
    }
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code !== "EEXIST") return false;
    if (!lstatSync(dir).isDirectory()) return false;
    const rest = parts.slice(path.relative(root, dir).split(path.sep).length);
    return rest.length === 0 || makeDirs(dir, rest);
  }
  return true;
}

function real(dir: string): string {
  try {
    return realpathSync(dir);
  } catch {
    return path.resolve(dir); // creeld says what is wrong with it
  }
}

/** Whether dir is a directory, no link, that lies in root with all links followed. */
function isDirIn(dir: string, root: string): boolean {
  try {
    return lstatSync(dir).isDirectory() && `${realpathSync(dir)}/`.startsWith(`${realpathSync(root)}/`);
  } catch {
    return false;
  }
}
