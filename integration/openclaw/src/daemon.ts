// HTTP over creeld's Unix socket, with what Node has. Every socket and body has an
// error handler: an event nobody listens to would end the gateway.
import http from "node:http";

/** A problem that creeld names, of one field of a request. */
export type Problem = { field: string; value?: string; have?: string; want: string; rule?: string };
export type Control = { name: string; expected: string; observed: string; ok: boolean };
export type Envelope = { payloadType: string; payload: string; signatures: { keyid: string; sig: string }[] };
export type Evidence = { sandbox: string; ok: boolean; controls: Control[] | null; signed?: Envelope };
export type Mount = { source?: string; volume?: string; target: string; readonly?: boolean; own?: boolean; protect?: boolean };
export type Limits = Record<string, string | number>;
export type Spawn = {
  agent: string;
  parent?: string;
  profile?: string;
  image?: string;
  mounts: Mount[];
  workdir: string;
  limits?: Limits;
  rootfs?: string;
  home?: string;
  network?: string;
  egress?: string[];
  secrets?: string[];
  runtime?: string;
  labels: Record<string, string>;
  remove: boolean;
};
export type Sandbox = {
  id: string;
  name: string;
  agent: string;
  parent?: string;
  profile: string;
  image: string;
  state: string;
  execs: number;
  mounts?: Mount[];
  limits: { memory: number; cpus: number; pids: number };
  labels?: Record<string, string>;
  caller: { uid: number };
};
export type FileInfo = { name: string; size: number; mode: number; type: string; mod_time: string; target?: string };
export type Approval = { id: string; agent: string; to: string; rule: string; state: string; approver: string };
export type Exec = { command: string[]; env?: Record<string, string>; workdir?: string; stdin?: boolean; kill_tree?: boolean; labels?: Record<string, string> };

/** An error of creeld's: what it said, on one line, and its class. */
export class DaemonError extends Error {
  readonly code: string;
  readonly problems: Problem[];
  readonly evidence: Evidence | undefined;
  constructor(message: string, code: string, problems: Problem[] = [], evidence?: Evidence) {
    super(message);
    this.name = "DaemonError";
    this.code = code;
    this.problems = problems;
    this.evidence = evidence;
  }
}

/** The class of an error, "" when it has none. */
export const codeOf = (e: unknown): string => (e instanceof DaemonError ? e.code : "");

type Ask = { method: string; path: string; json?: unknown; body?: Buffer; signal?: AbortSignal | undefined; max?: number };
type Answer = { body: Buffer };

/** What an answer may have at most, but for files. */
const maxAnswer = 64 << 20;
/** Longer than any launch takes, and than a client waits for one. */
const patience = 120_000;

export class Daemon {
  readonly socket: string;
  constructor(socket: string) {
    this.socket = socket;
  }

  ensure(name: string, spawn: Spawn): Promise<{ sandbox: Sandbox; evidence: Evidence }> {
    return this.json("PUT", `/v1/sandboxes/${part(name)}`, spawn);
  }
  /** Proves the controls again, now. */
  prove(ref: string): Promise<Evidence[]> {
    return this.json("GET", `/v1/sandboxes/${part(ref)}/evidence?fresh=true`);
  }
  sandbox(ref: string): Promise<Sandbox> {
    return this.json("GET", `/v1/sandboxes/${part(ref)}`);
  }
  sandboxes(labels: Record<string, string>): Promise<Sandbox[]> {
    const q = Object.entries(labels).map(([k, v]) => `label=${part(`${k}=${v}`)}`);
    return this.json("GET", `/v1/sandboxes?${q.join("&")}`);
  }
  /** Ends and forgets a sandbox; one that is not there is none. */
  async remove(ref: string): Promise<void> {
    await this.json("DELETE", `/v1/sandboxes/${part(ref)}?force=true`).catch(unless("not_found"));
  }
  prepare(ref: string, exec: Exec): Promise<{ id: string; expires: string }> {
    return this.json<{ id: string; expires: string }>("POST", `/v1/sandboxes/${part(ref)}/prepare`, exec).catch(this.gone(ref));
  }
  /** Forgets a prepared command; one that has run or expired is none. */
  async release(id: string): Promise<void> {
    await this.json("DELETE", `/v1/prepared/${part(id)}`).catch(unless("not_found"));
  }
  /** Makes a volume; one that is there is the same. */
  async volume(v: { name: string; agent: string; size?: string }): Promise<void> {
    await this.json("POST", "/v1/volumes", v).catch(unless("conflict"));
  }
  key(): Promise<{ id: string; pem: string }> {
    return this.json("GET", "/v1/key");
  }
  approvals(): Promise<Approval[]> {
    return this.json("GET", "/v1/approvals");
  }
  decide(id: string, decision: { allow: boolean; for?: string }): Promise<Approval> {
    return this.json("POST", `/v1/approvals/${part(id)}`, decision);
  }
  version(): Promise<{ creel: string; api: string }> {
    return this.json("GET", "/v1/version");
  }
  async openapi(): Promise<string> {
    return (await this.ask({ method: "GET", path: "/v1/openapi.yaml" })).body.toString("utf8");
  }

  // Files, each one request.

  async readFile(ref: string, path: string, max: number, signal?: AbortSignal): Promise<Buffer> {
    return (await this.ask({ method: "GET", path: files(ref, "", { path }), signal, max }).catch(this.gone(ref))).body;
  }
  async writeFile(ref: string, path: string, body: Buffer, how: { parents: boolean; exclusive: boolean }, signal?: AbortSignal): Promise<void> {
    const q = { path, ...(how.parents && { parents: "true" }), ...(how.exclusive && { exclusive: "true" }) };
    await this.ask({ method: "PUT", path: files(ref, "", q), body, signal }).catch(this.gone(ref));
  }
  async stat(ref: string, path: string, signal?: AbortSignal): Promise<FileInfo> {
    return parse(await this.ask({ method: "GET", path: files(ref, "/stat", { path }), signal }).catch(this.gone(ref)));
  }
  async list(ref: string, path: string, limit: number, signal?: AbortSignal): Promise<{ entries: FileInfo[]; truncated: boolean }> {
    const { body } = await this.ask({ method: "GET", path: files(ref, "/list", { path, limit: String(limit) }), signal }).catch(this.gone(ref));
    const entries: FileInfo[] = [];
    for (const line of body.toString("utf8").split("\n")) {
      if (line === "") continue;
      const v = JSON.parse(line) as FileInfo & { truncated?: boolean; error?: { code: string; message: string } };
      if (v.error) throw new DaemonError(v.error.message, v.error.code);
      if (v.truncated !== undefined) return { entries, truncated: v.truncated };
      entries.push(v);
    }
    throw new DaemonError(`${path}: the list of the directory broke off`, "unavailable");
  }
  async mkdir(ref: string, path: string, signal?: AbortSignal): Promise<void> {
    await this.ask({ method: "POST", path: files(ref, "/mkdir", { path, parents: "true" }), signal }).catch(this.gone(ref));
  }
  async removeFile(ref: string, path: string, recursive: boolean, signal?: AbortSignal): Promise<void> {
    await this.ask({ method: "DELETE", path: files(ref, "", { path, ...(recursive && { recursive: "true" }) }), signal }).catch(this.gone(ref));
  }
  async rename(ref: string, from: string, to: string, signal?: AbortSignal): Promise<void> {
    await this.ask({ method: "POST", path: files(ref, "/rename", { from, to }), signal }).catch(this.gone(ref));
  }

  /** Says of a sandbox that is gone that it is, in words that a file that is not there does not have. */
  private gone(ref: string): (e: unknown) => never {
    return (e) => {
      if (e instanceof DaemonError && e.code === "not_found" && e.message.startsWith("no sandbox ")) {
        throw new DaemonError(`creel: sandbox ${ref} has ended; creel audit log --sandbox ${ref} says why, and the next turn makes it again if it may`, "ended");
      }
      throw e;
    };
  }

  private async json<T>(method: string, path: string, json?: unknown): Promise<T> {
    return parse(await this.ask({ method, path, ...(json !== undefined && { json }) }));
  }

  /** One request on a connection of its own, which creeld knows its caller by. */
  private ask(a: Ask): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const body = a.json === undefined ? a.body : Buffer.from(JSON.stringify(a.json));
      const max = a.max ?? maxAnswer;
      const req = http.request({
        socketPath: this.socket, method: a.method, path: a.path, agent: false, timeout: patience,
        ...(a.signal && { signal: a.signal }),
        headers: {
          host: "creel",
          ...(body && { "content-length": body.length, "content-type": a.json === undefined ? "application/octet-stream" : "application/json" }),
        },
      });
      const fail = (e: Error) => reject(a.signal?.aborted ? (a.signal.reason ?? e) : this.unreachable(e));
      req.on("error", fail);
      req.on("timeout", () => req.destroy(new Error(`no answer within ${patience / 1000} s`)));
      req.on("response", (res) => {
        const chunks: Buffer[] = [];
        let n = 0;
        res.on("error", fail);
        res.on("data", (c: Buffer) => {
          n += c.length;
          if (n > max) {
            reject(new DaemonError(`the answer has more than ${max} bytes`, "too_large"));
            req.destroy();
            return;
          }
          chunks.push(c);
        });
        res.on("end", () => {
          const status = res.statusCode ?? 0;
          const got = Buffer.concat(chunks);
          if (!res.complete) fail(new Error("the answer broke off"));
          else if (status >= 200 && status < 300) resolve({ body: got });
          else reject(said(status, got));
        });
      });
      req.end(body);
    });
  }

  private unreachable(e: Error): DaemonError {
    const why = (e as NodeJS.ErrnoException).code;
    const fix =
      why === "ENOENT" || why === "ECONNREFUSED" ? "start it with: systemctl start creeld"
      : why === "EACCES" ? "this user is not in the group of the socket: sudo usermod -aG creel USER, then log in again"
      : "look at: journalctl -u creeld";
    return new DaemonError(`creeld at ${this.socket} cannot be asked (${e.message}); ${fix}`, "unavailable");
  }
}

const part = encodeURIComponent;
const files = (ref: string, verb: string, q: Record<string, string>) =>
  `/v1/sandboxes/${part(ref)}/files${verb}?${Object.entries(q).map(([k, v]) => `${k}=${part(v)}`).join("&")}`;
const unless = (code: string) => (e: unknown) => {
  if (codeOf(e) !== code) throw e;
};

function parse<T>(a: Answer): T {
  return (a.body.length === 0 ? undefined : JSON.parse(a.body.toString("utf8"))) as T;
}

/** An answer that is not 2xx, on one line: OpenClaw shows it to people and models. */
function said(status: number, body: Buffer): DaemonError {
  try {
    const e = JSON.parse(body.toString("utf8")) as { code?: string; message?: string; hint?: string; problems?: Problem[]; evidence?: Evidence };
    const problems = e.problems ?? [];
    const each = problems.map((p) => (p.have ? `${p.field}: ${p.have}, not ${p.want}` : `${p.field}${p.value ? ` = ${p.value}` : ""}: ${p.want}`));
    const text = [[e.message, ...each].join("; "), e.hint].filter(Boolean).join("; ");
    return new DaemonError(oneLine(text || `creeld answered ${status}`), e.code ?? "internal", problems, e.evidence);
  } catch {
    return new DaemonError(`creeld answered ${status} without a reason`, "internal");
  }
}

/** What may be a model's or an attacker's text is on one line and bounded. */
export function oneLine(s: string, max = 1000): string {
  const flat = s.replace(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, " ").trim();
  return flat.length > max ? `${flat.slice(0, max)}…` : flat;
}
