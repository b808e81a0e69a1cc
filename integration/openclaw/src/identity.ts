// Who a sandbox belongs to: a gateway (instance), an agent of it, a session.
import { createHash, randomBytes } from "node:crypto";
import { realpathSync } from "node:fs";

const hash = (s: string, n: number) => createHash("sha256").update(s).digest("hex").slice(0, n);

/** Names of creel's are of [a-z0-9-]. One that had to be changed has a hash of what it was. */
export function slug(s: string, max: number): string {
  const clean = s.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "");
  return clean === s && clean.length <= max && clean !== "" ? s : `${clean.slice(0, max - 7).replace(/-+$/, "") || "x"}-${hash(s, 6)}`;
}

/** Which gateway this is, among those that run under one uid: by the directory of its state. */
export function instanceOf(stateDir: string): string {
  let real = stateDir;
  try {
    real = realpathSync(stateDir);
  } catch {
    // It is made later, under this name.
  }
  return hash(real, 8);
}

/** The agent of a session or scope key, "shared" for a scope that all agents share. */
export function agentOf(scopeKey: string): string {
  return /^agent:([^:]+):/.exec(scopeKey)?.[1] ?? "shared";
}

/** The name that an agent of a gateway's has with creel. */
export const agentName = (instance: string, agent: string) => `openclaw-${instance}-${slug(agent, 30)}`;

/** A new name for the runtime of a scope: never one that another generation had. */
export const newRuntimeId = (prefix: string, instance: string, agent: string, scopeKey: string) =>
  `${prefix}${instance}-${slug(agent, 16)}-${hash(scopeKey, 10)}-${randomBytes(3).toString("hex")}`;

/**
 * The session that a scope is of, if it is of one alone. A session with attachments, or
 * one that has to be sandboxed, has a scope by its hash (src/agents/sandbox/shared.ts).
 */
export function sessionOf(p: { sessionKey: string; scopeKey: string }): string | undefined {
  const own = [p.sessionKey, `agent:${agentOf(p.sessionKey)}:required-session:${hash(p.sessionKey, 32)}`];
  return own.some((o) => p.scopeKey.startsWith(`${o}:workspace:`)) ? p.sessionKey : undefined;
}

/** Whether a session was spawned by another. */
export const isSubagent = (sessionKey: string) => /^agent:[^:]+:subagent:/.test(sessionKey);

/** What a label may hold: 256 bytes. */
const label = (s: string) => (Buffer.byteLength(s) <= 200 ? s : `sha256:${hash(s, 64)}`);

export const labelInstance = "openclaw.instance";
export const labelScope = "openclaw.scope";
export const labelSession = "openclaw.session";

/** What is kept with a sandbox, to find it again from another process. */
export function labels(instance: string, p: { sessionKey: string; scopeKey: string }): Record<string, string> {
  const session = sessionOf(p);
  return { [labelInstance]: instance, [labelScope]: label(p.scopeKey), ...(session && { [labelSession]: label(session) }) };
}

/** The labels of a session's own sandboxes. */
export const sessionLabels = (instance: string, sessionKey: string) => ({ [labelInstance]: instance, [labelSession]: label(sessionKey) });
