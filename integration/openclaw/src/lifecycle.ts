// The end of sandboxes: with their session, and after a gateway that was killed.
// creeld ends them on idle and age by itself, and forgets them.
import { rm } from "node:fs/promises";
import path from "node:path";
import type { Logger } from "openclaw/plugin-sdk/plugin-entry";
import type { Daemon, Sandbox } from "./daemon.ts";
import { agentOf, isSubagent, labelInstance, labelSession, sessionLabels } from "./identity.ts";

/** A workspace of one scope's alone, as OpenClaw names them. */
const privateDir = /^workspace-[0-9a-f]{32}$/;

export type Sweep = {
  daemon: Daemon;
  instance: string;
  workspaceRoot: string;
  logger: Logger;
  /** Whether OpenClaw still knows a session. */
  known(sessionKey: string): boolean;
};

/** Removes what a session that was deleted or reset had. */
export async function endSession(s: Sweep, sessionKey: string): Promise<void> {
  for (const sb of await s.daemon.sandboxes(sessionLabels(s.instance, sessionKey))) await end(s, sb);
}

/** Removes the sandboxes of subagents whose sessions are gone: of a gateway that was killed before it could. */
export async function sweep(s: Sweep): Promise<void> {
  for (const sb of await s.daemon.sandboxes({ [labelInstance]: s.instance })) {
    const session = sb.labels?.[labelSession];
    if (session && isSubagent(session) && !s.known(session)) {
      s.logger.info(`creel: removing sandbox ${sb.name}: session ${session} is gone`);
      await end(s, sb);
    }
  }
}

async function end(s: Sweep, sb: Sandbox): Promise<void> {
  await s.daemon.remove(sb.id);
  const dir = workspaceOf(s.workspaceRoot, sb);
  // Links in it are removed, not followed.
  if (dir) await rm(dir, { recursive: true, force: true, maxRetries: 2 });
}

/** The workspace that is the sandbox's session's alone: nobody else's is ever removed. */
function workspaceOf(root: string, sb: Sandbox): string | undefined {
  const first = sb.mounts?.[0];
  const session = sb.labels?.[labelSession];
  if (!first?.source || first.readonly || !session || agentOf(session) === "shared") return undefined;
  return path.dirname(first.source) === root && privateDir.test(path.basename(first.source)) ? first.source : undefined;
}
