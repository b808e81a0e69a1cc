// The plugin's own configuration, plugins.entries.creel.config. OpenClaw has held it
// against openclaw.plugin.json; here it becomes one agent's.
import type { Limits } from "./daemon.ts";

export type Volume = { name: string; target: string; size?: string; readonly?: boolean };
export type Agent = {
  profile?: string;
  image?: string;
  egress?: string[];
  secrets?: string[];
  runtime?: string;
  home?: "ephemeral" | "persistent";
  volumes?: Volume[];
  limits?: Limits;
  /** Whether names that run on the host later are read-only in a writable workspace. */
  protect?: boolean;
};
export type Config = Agent & {
  socket: string;
  /** The creel command: what OpenClaw starts in place of each command. */
  creel: string;
  instance?: string;
  agents: Record<string, Agent>;
};

export function configOf(raw: Record<string, unknown> | undefined): Config {
  return { socket: "/run/creel/creel.sock", creel: "creel", agents: {}, ...(raw as Partial<Config>) };
}

/** What holds for an agent: its own keys before those of all. */
export function agentConfig(c: Config, agent: string): Agent {
  const { socket: _s, creel: _c, instance: _i, agents, ...all } = c;
  const own = Object.hasOwn(agents, agent) ? agents[agent] : undefined;
  return { ...all, ...own, limits: { ...all.limits, ...own?.limits } };
}
