// sandbox.docker.*: each key is honoured or refused. A value equal to OpenClaw's own
// default is not distinguishable from none, and counts as none: its network "none"
// would end all egress. docs/openclaw.md has the table.
import type { DockerConfig } from "openclaw/plugin-sdk/sandbox";
import type { Limits, Mount } from "./daemon.ts";

export const defaults = {
  image: "openclaw-sandbox:bookworm-slim",
  containerPrefix: "openclaw-sbx-",
  tmpfs: ["/tmp", "/var/tmp", "/run"],
};

export type Settings = { image?: string; prefix: string; rootfs?: string; limits: Limits; env: Record<string, string>; mounts: Mount[] };

/** What docker's settings are in creel's terms. It throws with every key that has no place there. */
export function settings(d: DockerConfig): Settings {
  const s: Settings = { prefix: "oc-", limits: {}, env: d.env ?? {}, mounts: [] };
  const refused: string[] = [];
  const refuse = (key: string, why: string) => refused.push(`sandbox.docker.${key}: ${why}`);
  const known = new Set(["image", "containerPrefix", "workdir", "readOnlyRoot", "tmpfs", "network", "capDrop", "env", "pidsLimit", "memory", "memorySwap", "cpus", "ulimits", "binds"]);

  if (d.image !== defaults.image) s.image = d.image;
  if (d.containerPrefix !== defaults.containerPrefix) {
    if (/^[a-z0-9][a-z0-9-]{0,11}$/.test(d.containerPrefix)) s.prefix = d.containerPrefix;
    else refuse("containerPrefix", "1 to 12 of a-z, 0-9 and -");
  }
  if (!d.readOnlyRoot) s.rootfs = "ephemeral";
  if (d.tmpfs.some((t) => !defaults.tmpfs.includes(t))) refuse("tmpfs", `${defaults.tmpfs.join(", ")} are there; set their size by limits.tmp of the plugin's configuration`);
  if (!d.capDrop.some((c) => c.toUpperCase() === "ALL")) refuse("capDrop", "all are dropped, always; a profile gives some back");
  if (d.network !== "none") refuse("network", "name what may be reached in plugins.entries.creel.config.egress");
  if (d.pidsLimit !== undefined) s.limits["pids"] = d.pidsLimit;
  if (d.cpus !== undefined) s.limits["cpus"] = d.cpus;
  const memory = bytes(d.memory);
  if (Number.isNaN(memory)) refuse("memory", "a number of bytes, or one with b, k, m, g or t");
  else if (memory !== undefined) s.limits["memory"] = memory;
  if (d.memorySwap !== undefined && bytes(d.memorySwap) !== memory) refuse("memorySwap", "a sandbox never swaps: leave it out, or make it equal to memory");
  for (const [name, v] of Object.entries(d.ulimits ?? {})) {
    const most = typeof v === "object" ? (v.soft ?? v.hard) : Number(v);
    if (name === "nofile" && Number.isInteger(most)) s.limits["files"] = most as number;
    else refuse(`ulimits.${name}`, "only nofile; processes are bounded by pidsLimit");
  }
  for (const b of d.binds ?? []) {
    const m = bind(b);
    if (m) s.mounts.push(m);
    else refuse("binds", `${b}: HOST:TARGET[:ro], both absolute`);
  }
  const why: Record<string, string> = {
    user: "commands run as the sandbox's own user, in a user namespace",
    setupCommand: "put it in the image (creel image build, creel commit)",
    gpus: "sandboxes have no devices",
    seccompProfile: "name a profile of creel's: plugins.entries.creel.config.profile",
    apparmorProfile: "name a profile of creel's: plugins.entries.creel.config.profile",
    dns: "names are resolved outside, by what egress allows",
    extraHosts: "names are resolved outside, by what egress allows",
  };
  for (const [key, v] of Object.entries(d)) {
    const none = v === undefined || v === null || v === false || v === "" || (Array.isArray(v) && v.length === 0);
    if (!known.has(key) && !none) refuse(key, why[key] ?? "creel has no such setting");
  }
  if (refused.length > 0) throw new Error(`creel cannot do what the configuration asks: ${refused.join("; ")}`);
  return s;
}

/** Docker's sizes: bytes, or with b, k, m, g or t. NaN is none of these. */
export function bytes(v: string | number | undefined): number | undefined {
  if (v === undefined || typeof v === "number") return v;
  const m = /^(\d+(?:\.\d+)?)([bkmgt]?)b?$/i.exec(v.trim());
  const unit = { "": 1, b: 1, k: 1 << 10, m: 1 << 20, g: 1 << 30, t: 2 ** 40 }[m?.[2]?.toLowerCase() as "k"];
  return m && unit ? Math.round(Number(m[1]) * unit) : Number.NaN;
}

/** HOST:TARGET[:OPTION,...]; of the options ro counts, and what says how Docker labels or propagates does not. */
function bind(spec: string): Mount | undefined {
  const m = /^(\/[^:]*):(\/[^:]*)(?::([a-z,]+))?$/i.exec(spec);
  if (!m?.[1] || !m[2]) return undefined;
  const options = (m[3] ?? "").toLowerCase().split(",").filter(Boolean);
  if (options.some((o) => !["ro", "rw", "z", "rprivate", "private"].includes(o))) return undefined;
  return { source: m[1], target: m[2], ...(options.includes("ro") && { readonly: true }) };
}
