// What `openclaw security audit` says of creel. `creel openclaw check` says more.
import type { AuditFinding } from "openclaw/plugin-sdk/plugin-entry";
import { type Daemon, oneLine } from "./daemon.ts";

export async function audit(daemon: Daemon): Promise<AuditFinding[]> {
  try {
    await daemon.version();
    return [];
  } catch (e) {
    return [{
      checkId: "creel.unreachable", severity: "critical", title: "creeld cannot be asked: no sandboxed session can run",
      detail: oneLine(e instanceof Error ? e.message : String(e)), remediation: "creel openclaw check",
    }];
  }
}
