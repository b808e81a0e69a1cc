// The backend: what OpenClaw asks for a sandbox, a command in it, and its end. It
// decides nothing. creeld holds every request against its own configuration.
import { execFile, spawn } from "node:child_process";
import { promisify } from "node:util";
import type { CommandParams, CommandResult, CreateParams, Handle, Manager } from "openclaw/plugin-sdk/sandbox";
import { type Agent, agentConfig, type Config } from "./config.ts";
import { codeOf, type Daemon, DaemonError, type Limits, oneLine, type Sandbox, type Spawn } from "./daemon.ts";
import { settings } from "./docker.ts";
import { Keys } from "./evidence.ts";
import { fsBridge } from "./files.ts";
import { agentName, agentOf, isSubagent, labels, newRuntimeId, sessionLabels, sessionOf, slug } from "./identity.ts";
import { plan } from "./mounts.ts";

export const backendId = "creel";

/** What a shell helper's output may be: OpenClaw's own bound. */
const maxOutput = 100 << 20;
/** What creel exec exits with when it did not come to run the command. */
const relayFailed = 125;
/** The part of its parent's memory, processors and tasks that a child asks for: OpenClaw lets an agent have five at once. */
const share = 5;

export type Options = {
  config: Config;
  daemon: Daemon;
  instance: string;
  /** The session that spawned a session, if OpenClaw knows one. */
  spawnedBy(sessionKey: string, agent: string): string | undefined;
  /** Notes whose a private workspace is, before a sandbox has it. */
  note(workspaceDir: string, sessionKey: string): void;
  warn(message: string): void;
};

export class Backend {
  private readonly o: Options;
  private readonly keys: Keys;
  private readonly presets = new Map<string, string[]>();
  private readonly volumes = new Set<string>();
  private checked = false;

  constructor(o: Options) {
    this.o = o;
    this.keys = new Keys(o.daemon);
  }

  /** The name of a new runtime. OpenClaw keeps it before anything is made. */
  reserveRuntimeId = (p: CreateParams): string => newRuntimeId(settings(p.cfg.docker).prefix, this.o.instance, agentOf(p.scopeKey), p.scopeKey);

  resolveWorkdir = (p: CreateParams): string => p.cfg.docker.workdir;

  /** Makes sure of the sandbox of a scope. It is called for every turn. */
  factory = async (p: CreateParams): Promise<Handle> => {
    try {
      return await this.handle(p);
    } catch (e) {
      // OpenClaw shows it to the user and the model, and runs nothing.
      throw new Error(`creel: ${oneLine(e instanceof Error ? e.message : String(e), 2000)}`);
    }
  };

  private async handle(p: CreateParams): Promise<Handle> {
    await this.compatible();
    const { daemon } = this.o;
    const name = p.runtimeId;
    if (!name) throw new Error("OpenClaw reserved no name for the sandbox: it is older than 2026.9.6");
    const docker = settings(p.cfg.docker);
    const request = await this.request(p, docker);
    if (sessionOf(p) && p.cfg.workspaceAccess !== "rw") this.o.note(p.workspaceDir, p.sessionKey);
    let sandbox = await this.ensure(name, request);
    try {
      await this.prove(sandbox, request);
    } catch (e) {
      // Something has changed since it was made: a protected file was replaced on the
      // host, say. One in which nothing runs is made again; if that is not proven
      // either, there is none.
      if (sandbox.execs > 0 || codeOf(e) !== "") throw e;
      this.o.warn(`sandbox ${name} is made again: ${e instanceof Error ? e.message : String(e)}`);
      await daemon.remove(sandbox.id);
      sandbox = await this.ensure(name, request);
      await this.prove(sandbox, request);
    }
    p.assertRuntimeCurrent?.();
    return this.handleOf(sandbox, p, docker.env);
  }

  /** Has the controls read back now: a handle is good for a turn, whenever the sandbox was made. */
  private async prove(sandbox: Sandbox, request: Spawn): Promise<void> {
    const [now] = await this.o.daemon.prove(sandbox.id);
    await this.keys.check(now, { sandbox: sandbox.id, agent: request.agent, uid: process.getuid?.() ?? -1, ...(request.profile && { profile: request.profile }) });
  }

  /** The sandbox of a name as it is asked for: it is made, found, or made again. */
  private async ensure(name: string, request: Spawn): Promise<Sandbox> {
    const { daemon } = this.o;
    for (let again = false; ; again = true) {
      let differs: DaemonError | undefined;
      const res = await daemon.ensure(name, request).catch((e: unknown) => {
        if (again || !(e instanceof DaemonError) || e.code !== "conflict" || e.problems.length === 0) throw e;
        differs = e;
        return undefined;
      });
      if (res && ["running", "paused"].includes(res.sandbox.state)) return res.sandbox;
      if (res && again) throw new Error(`sandbox ${name} is ${res.sandbox.state}`);
      const old = res?.sandbox ?? (await daemon.sandbox(name));
      if (differs && old.execs > 0) {
        throw new Error(`sandbox ${name} has to be made again (${differs.message}), and ${old.execs} commands run in it: end them, or run: openclaw sandbox recreate`);
      }
      await daemon.remove(old.id);
    }
  }

  /** The request for a scope's sandbox: the same for the same configuration, so that it is found again. */
  private async request(p: CreateParams, docker: ReturnType<typeof settings>): Promise<Spawn> {
    const { instance, config } = this.o;
    const agent = agentOf(p.scopeKey);
    const c = agentConfig(config, agent);
    const parent = await this.parent(p, agent);
    const image = c.image ?? docker.image;
    const rootfs = docker.rootfs;
    const egress = await this.expand(c.egress ?? []);
    const secrets = c.secrets ?? [];
    // What is configured is for a sandbox without a parent: its children share it.
    const limits: Limits = { ...c.limits, ...docker.limits, ...(parent && part(parent)) };
    const owner = agentName(instance, agent);
    const mounts = plan({
      ...p, access: p.cfg.workspaceAccess, workdir: p.cfg.docker.workdir, binds: docker.mounts, protect: c.protect !== false, child: parent !== undefined,
    });
    return {
      agent: owner,
      ...(parent && { parent: parent.id }),
      ...(c.profile && { profile: c.profile }),
      ...(image && { image }),
      ...(rootfs && { rootfs }),
      ...(c.home && { home: c.home }),
      ...(c.runtime && { runtime: c.runtime }),
      ...((egress.length > 0 || secrets.length > 0) && { network: "policy" }),
      ...(egress.length > 0 && { egress }),
      ...(secrets.length > 0 && { secrets }),
      ...(Object.keys(limits).length > 0 && { limits }),
      mounts: [...mounts, ...(await this.mountedVolumes(c, owner, agent))],
      workdir: p.cfg.docker.workdir,
      labels: labels(instance, p),
      remove: true,
    };
  }

  /** The sandbox of the session that spawned this one, if it is one of the same agent's. */
  private async parent(p: CreateParams, agent: string): Promise<Sandbox | undefined> {
    if (!sessionOf(p) || !isSubagent(p.sessionKey)) return undefined;
    const by = this.o.spawnedBy(p.sessionKey, agent);
    if (!by || agentOf(by) !== agent) return undefined;
    const live = await this.o.daemon.sandboxes(sessionLabels(this.o.instance, by));
    return live.find((s) => s.state === "running" || s.state === "paused");
  }

  private async mountedVolumes(c: Agent, owner: string, agent: string) {
    const out = [];
    for (const v of c.volumes ?? []) {
      const name = slug(`oc-${this.o.instance}-${agent}-${v.name}`, 60);
      if (!this.volumes.has(name)) {
        await this.o.daemon.volume({ name, agent: owner, ...(v.size && { size: v.size }) });
        this.volumes.add(name);
      }
      out.push({ volume: name, target: v.target, ...(v.readonly && { readonly: true }) });
    }
    return out;
  }

  /** Rules with the presets' in place of @NAME, as "creel run --allow" has them. */
  private async expand(rules: string[]): Promise<string[]> {
    const out: string[] = [];
    for (const rule of rules) {
      if (!rule.startsWith("@")) {
        out.push(rule);
        continue;
      }
      let known = this.presets.get(rule);
      if (!known) {
        const { stdout } = await promisify(execFile)(this.o.config.creel, ["--json", "egress", "preset", "show", rule.slice(1)], { timeout: 10_000 }).catch((e: Error & { stderr?: string }) => {
          throw new Error(`egress preset ${rule}: ${oneLine(e.stderr || e.message)}`);
        });
        known = (JSON.parse(stdout) as { rules: string[] }).rules;
        this.presets.set(rule, known);
      }
      out.push(...known);
    }
    return [...new Set(out)];
  }

  /** A creeld without what is used here is refused by name, not by a route that is not there. */
  private async compatible(): Promise<void> {
    if (this.checked) return;
    const { daemon } = this.o;
    const doc = await daemon.openapi();
    if (!["/v1/prepared/{id}:", "protect:", "kill_tree:"].every((word) => doc.includes(word))) throw new Error(`creeld ${(await daemon.version()).creel} is too old for this plugin: install the creel that it came with`);
    this.checked = true;
  }

  private handleOf(sandbox: Sandbox, p: CreateParams, env: Record<string, string>): Handle {
    const { daemon, config } = this.o;
    const workdir = p.cfg.docker.workdir;
    const relay = (id: string) => [config.creel, "--socket", daemon.socket, "exec", "-i", "--prepared", id];
    const current = () => p.assertRuntimeCurrent?.();
    return {
      id: backendId,
      runtimeId: sandbox.name,
      runtimeLabel: sandbox.name,
      workdir,
      env,
      configLabel: label(sandbox),
      configLabelKind: "Profile",
      capabilities: { readOnlyResourceMounts: true },
      workdirValidation: "backend",
      // Any directory of the sandbox: what is there is the sandbox's to say.
      workdirRoots: ["/"],
      validateWorkdir: async (dir) => {
        try {
          await daemon.list(sandbox.id, dir, 1);
          return dir;
        } catch (e) {
          // Of a path creeld says the path first; all else is not about the directory.
          if (e instanceof DaemonError && e.code !== "unavailable" && e.message.startsWith(`${dir}: `)) return null;
          throw e;
        }
      },
      buildExecSpec: async ({ command, workdir: dir, env: given }) => {
        // OpenClaw's PATH is the gateway's; the sandbox has its own.
        const { PATH: _path, HOME: _home, ...rest } = given;
        const { id } = await daemon.prepare(sandbox.id, { command: ["/bin/sh", "-lc", command], env: rest, workdir: dir ?? workdir, stdin: true, kill_tree: true });
        return { argv: relay(id), env: { PATH: "/usr/local/bin:/usr/bin:/bin" }, cwd: "/", stdinMode: "pipe-open", finalizeToken: id, assertCurrent: current };
      },
      finalizeExec: async ({ status, exitCode, token }) => {
        // A command that ran has used its id up. What cannot be released expires.
        const used = status === "completed" && exitCode !== relayFailed;
        if (typeof token === "string" && !used) await daemon.release(token).catch(() => undefined);
      },
      runShellCommand: async (c) => {
        current();
        const { id } = await daemon.prepare(sandbox.id, { command: ["/bin/sh", "-c", c.script, "openclaw-sandbox-fs", ...(c.args ?? [])], workdir, stdin: true, kill_tree: true });
        return run(relay(id), c);
      },
      createFsBridge: () => fsBridge(daemon, sandbox.id, workdir, sandbox.mounts ?? []),
    };
  }

  /** What the CLI asks, in a process of its own: nothing is remembered. */
  manager: Manager = {
    describeRuntime: async ({ entry, agentId }) => {
      const sb = await this.o.daemon.sandbox(entry.containerName).catch((e: unknown) => {
        if (codeOf(e) === "not_found") return undefined;
        throw e;
      });
      if (!sb) return { running: false, configLabelMatch: true }; // nothing is there that could differ
      const want = agentConfig(this.o.config, agentId ?? agentOf(entry.sessionKey)).profile;
      return { running: sb.state === "running" || sb.state === "paused", actualConfigLabel: label(sb), configLabelMatch: !want || want === sb.profile };
    },
    removeRuntime: ({ entry }) => this.o.daemon.remove(entry.containerName),
  };
}

/** What `openclaw sandbox list` shows. */
const label = (s: Sandbox) => `${s.profile} (${s.image})`;

/** What a child asks for, so that its siblings can be beside it. */
const part = (s: Sandbox): Limits => ({
  memory: Math.max(Math.floor(s.limits.memory / share), Math.min(s.limits.memory, 128 << 20)),
  cpus: Math.max(Math.floor((s.limits.cpus * 100) / share) / 100, 0.1),
  pids: Math.max(Math.floor(s.limits.pids / share), Math.min(s.limits.pids, 32)),
});

/** Runs a relay to its end with what it wrote in memory. */
function run(argv: string[], c: CommandParams): Promise<CommandResult> {
  return new Promise((resolve, reject) => {
    const [file = "", ...args] = argv;
    const child = spawn(file, args, { env: { PATH: "/usr/local/bin:/usr/bin:/bin" }, cwd: "/", stdio: "pipe", ...(c.signal && { signal: c.signal }) });
    const out: Buffer[] = [];
    const errs: Buffer[] = [];
    let n = 0;
    const take = (to: Buffer[]) => (b: Buffer) => {
      n += b.length;
      if (n > maxOutput) {
        child.kill("SIGKILL");
        reject(new Error(`a command of the sandbox wrote more than ${maxOutput} bytes`));
      } else to.push(b);
    };
    child.on("error", reject);
    child.stdin.on("error", () => undefined); // it ended without reading all
    child.stdout.on("error", reject).on("data", take(out));
    child.stderr.on("error", reject).on("data", take(errs));
    child.on("close", (code) => {
      const res = { stdout: Buffer.concat(out), stderr: Buffer.concat(errs), code: code ?? 137 };
      if (res.code === 0 || c.allowFailure) resolve(res);
      else reject(new Error(oneLine(res.stderr.toString("utf8")) || `a command of the sandbox ended with ${res.code}`));
    });
    child.stdin.end(c.stdin);
  });
}
