// The end of subagents' sandboxes and private workspaces: with their session, and
// after a gateway that was killed. creeld ends sandboxes on idle and age by itself and
// forgets them, so whose a workspace is, is noted beside it.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import path from "node:path";
import type { Logger } from "openclaw/plugin-sdk/plugin-entry";
import type { Daemon } from "./daemon.ts";
import { isSubagent, labelInstance, labelSession, sessionLabels } from "./identity.ts";

/** A workspace of one scope's alone, as OpenClaw names them. */
const privateDir = /^workspace-[0-9a-f]{32}$/;
/** Where notes are, in the directory of workspaces: no sandbox has it mounted. */
const notes = ".creel";

export type Sweep = {
  daemon: Daemon;
  instance: string;
  /** Directories of private workspaces: OpenClaw's default, and those that were seen since. */
  roots: Set<string>;
  logger: Logger;
  /** Whether OpenClaw still knows a session. */
  known(sessionKey: string): boolean;
};

/** Notes whose a subagent's private workspace is. Nobody else's is ever noted, and so removed. */
export function note(roots: Set<string>, workspaceDir: string, sessionKey: string): void {
  const [root, name] = [path.dirname(workspaceDir), path.basename(workspaceDir)];
  if (!isSubagent(sessionKey) || !privateDir.test(name)) return;
  roots.add(root);
  try {
    mkdirSync(path.join(root, notes), { recursive: true, mode: 0o700 });
    writeFileSync(path.join(root, notes, name), sessionKey, { flag: "wx", mode: 0o600 });
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code !== "EEXIST") throw e;
  }
}

/** Removes what a subagent had whose session was deleted or reset; others keep theirs. */
export async function endSession(s: Sweep, sessionKey: string): Promise<void> {
  if (!isSubagent(sessionKey)) return;
  for (const sb of await s.daemon.sandboxes(sessionLabels(s.instance, sessionKey))) await s.daemon.remove(sb.id);
  await forget(s, (noted) => noted === sessionKey);
}

/** Removes the same of subagents whose sessions are gone: of a gateway that was killed before it could. */
export async function sweep(s: Sweep): Promise<void> {
  const gone = (session: string) => isSubagent(session) && !s.known(session);
  for (const sb of await s.daemon.sandboxes({ [labelInstance]: s.instance })) {
    const session = sb.labels?.[labelSession];
    if (!session || !gone(session)) continue;
    s.logger.info(`creel: removing sandbox ${sb.name}: session ${session} is gone`);
    await s.daemon.remove(sb.id);
  }
  await forget(s, gone);
}

/** Removes the workspaces of the sessions that are meant, and then their notes. */
async function forget(s: Sweep, meant: (sessionKey: string) => boolean): Promise<void> {
  for (const root of s.roots) {
    for (const name of noted(root)) {
      const file = path.join(root, notes, name);
      if (!meant(readFileSync(file, "utf8"))) continue;
      // Links in it are removed, not followed.
      await rm(path.join(root, name), { recursive: true, force: true, maxRetries: 2 });
      await rm(file, { force: true });
    }
  }
}

function noted(root: string): string[] {
  try {
    return readdirSync(path.join(root, notes)).filter((name) => privateDir.test(name));
  } catch {
    return [];
  }
}
