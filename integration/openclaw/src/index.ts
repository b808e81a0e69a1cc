import os from "node:os";
import path from "node:path";
import { definePluginEntry, type CommandContext, type PluginApi } from "openclaw/plugin-sdk/plugin-entry";
import { registerSandboxBackend } from "openclaw/plugin-sdk/sandbox";
import { getSessionEntry } from "openclaw/plugin-sdk/session-store-runtime";
import { approvals } from "./approvals.ts";
import { audit } from "./audit.ts";
import { Backend, backendId } from "./backend.ts";
import { configOf } from "./config.ts";
import { Daemon, oneLine } from "./daemon.ts";
import { agentOf, instanceOf } from "./identity.ts";
import { endSession, note, sweep, type Sweep } from "./lifecycle.ts";

/** How long after its start a gateway looks for what an earlier one left: its own sessions are loaded by then. */
const sweepAfter = 60_000;

export default definePluginEntry({
  id: backendId,
  name: "creel",
  description: "Sandboxed sessions and subagents run in creel sandboxes",
  register(api: PluginApi) {
    // It is called for discovery too, where nothing may be registered.
    if (api.registrationMode !== "full") return;
    const config = configOf(api.pluginConfig);
    const stateDir = api.runtime?.state?.resolveStateDir?.() ?? process.env["OPENCLAW_STATE_DIR"] ?? path.join(os.homedir(), ".openclaw");
    const instance = config.instance ?? instanceOf(stateDir);
    const daemon = new Daemon(config.socket);
    const entry = (sessionKey: string) => getSessionEntry({ sessionKey, agentId: agentOf(sessionKey) });
    const roots = new Set([path.join(stateDir, "sandboxes")]);
    const backend = new Backend({ config, daemon, instance, note: (dir, session) => note(roots, dir, session), spawnedBy: (sessionKey) => entry(sessionKey)?.spawnedBy, warn: (m) => api.logger.warn(`creel: ${oneLine(m)}`) });
    const unregister = registerSandboxBackend(backendId, {
      factory: backend.factory,
      manager: backend.manager,
      resolveWorkdir: backend.resolveWorkdir,
      reserveRuntimeId: backend.reserveRuntimeId,
      capabilities: { readOnlyResourceMounts: true },
    });
    const sweeping: Sweep = { daemon, instance, roots, logger: api.logger, known: (key) => entry(key) !== undefined };
    /** What fails here is told in the log: nothing of it may end the gateway. */
    const quietly = (what: string, p: Promise<void>) => p.catch((e: unknown) => api.logger.warn(`creel: ${what}: ${oneLine(String(e))}`));

    let timer: NodeJS.Timeout | undefined;
    const stop = () => {
      clearTimeout(timer);
      unregister();
    };
    api.registerService({
      id: "creel-sweep",
      start: () => {
        timer = setTimeout(() => void quietly("sweep", sweep(sweeping)), sweepAfter);
        timer.unref();
      },
      stop: () => clearTimeout(timer),
    });
    api.lifecycle.registerRuntimeLifecycle({
      id: "creel",
      dispose: stop,
      cleanup: async ({ reason, sessionKey, runId }) => {
        if ((reason === "delete" || reason === "reset") && sessionKey) await quietly(`end of session ${oneLine(sessionKey, 200)}`, endSession(sweeping, sessionKey));
        else if ((reason === "disable" || reason === "restart") && !sessionKey && !runId) stop();
      },
    });
    api.registerCommand({
      name: "creel",
      description: "Destinations that sandboxes were refused: list, approve, deny",
      acceptsArgs: true,
      requireAuth: true,
      requiredScopes: ["operator.approvals"],
      handler: (c: CommandContext) => approvals(daemon, instance, c),
    });
    api.registerSecurityAuditCollector(() => audit(daemon));
  },
});
