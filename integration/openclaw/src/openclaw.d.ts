/// <reference types="node" />
// What of OpenClaw's interface for plugins is used here, in our own words. The
// path for sandboxes has no declarations of its own since 2026.7 ("private-local"),
// and the package itself is no dependency: the gateway brings it.

declare module "openclaw/plugin-sdk/plugin-entry" {
  export type Logger = { info(m: string): void; warn(m: string): void; error(m: string): void };
  export type CleanupReason = "disable" | "reset" | "delete" | "restart";
  export type CommandContext = {
    isAuthorizedSender: boolean;
    args?: string;
    agentId?: string;
    /** Checks again that who asks may, after something was waited for. */
    assertOwnerCurrent?: () => void;
  };
  export type AuditFinding = { checkId: string; severity: "info" | "warn" | "critical"; title: string; detail: string; remediation?: string };
  export type PluginApi = {
    registrationMode: string;
    pluginConfig?: Record<string, unknown>;
    logger: Logger;
    runtime?: { state?: { resolveStateDir?: () => string } };
    lifecycle: {
      registerRuntimeLifecycle(r: {
        id: string;
        dispose?: () => void | Promise<void>;
        cleanup?: (c: { reason: CleanupReason; sessionKey?: string; runId?: string }) => void | Promise<void>;
      }): void;
    };
    registerService(s: { id: string; start(): void | Promise<void>; stop?(): void | Promise<void> }): void;
    registerCommand(c: {
      name: string;
      description: string;
      acceptsArgs?: boolean;
      requireAuth?: boolean;
      requiredScopes?: string[];
      handler: (c: CommandContext) => Promise<{ text: string }>;
    }): void;
    registerSecurityAuditCollector(c: () => Promise<AuditFinding[]>): void;
  };
  export function definePluginEntry<T extends { id: string; name: string; description: string; register(api: PluginApi): void }>(entry: T): T;
}

declare module "openclaw/plugin-sdk/session-store-runtime" {
  export function getSessionEntry(p: { sessionKey: string; agentId?: string }): { spawnedBy?: string } | undefined;
}

declare module "openclaw/plugin-sdk/sandbox" {
  export type Access = "none" | "ro" | "rw";
  /** agents.*.sandbox.docker, with OpenClaw's defaults filled in. */
  export type DockerConfig = {
    image: string;
    containerPrefix: string;
    workdir: string;
    readOnlyRoot: boolean;
    tmpfs: string[];
    network: string;
    capDrop: string[];
    env?: Record<string, string>;
    user?: string;
    setupCommand?: string;
    pidsLimit?: number;
    memory?: string | number;
    memorySwap?: string | number;
    cpus?: number;
    gpus?: string;
    ulimits?: Record<string, string | number | { soft?: number; hard?: number }>;
    seccompProfile?: string;
    apparmorProfile?: string;
    dns?: string[];
    extraHosts?: string[];
    binds?: string[];
    [key: string]: unknown;
  };
  export type SandboxConfig = {
    mode: string;
    backend: string;
    scope: "session" | "agent" | "shared";
    workspaceAccess: Access;
    workspaceRoot: string;
    docker: DockerConfig;
    browser?: { enabled?: boolean };
    prune?: { idleHours?: number; maxAgeDays?: number };
  };
  export type ResourceMount = { hostPath: string; containerPath: string };
  export type CreateParams = {
    sessionKey: string;
    scopeKey: string;
    runtimeId?: string;
    assertRuntimeCurrent?: () => void;
    workspaceDir: string;
    agentWorkspaceDir: string;
    skillsWorkspaceDir?: string;
    readOnlyResourceMounts?: ResourceMount[];
    cfg: SandboxConfig;
  };
  export type ExecSpec = {
    argv: string[];
    env: Record<string, string>;
    cwd?: string;
    stdinMode: "pipe-open" | "pipe-closed";
    finalizeToken?: unknown;
    assertCurrent?: () => void;
  };
  export type CommandParams = { script: string; args?: string[]; stdin?: Buffer | string; allowFailure?: boolean; signal?: AbortSignal };
  export type CommandResult = { stdout: Buffer; stderr: Buffer; code: number };
  export type At = { filePath: string; cwd?: string; signal?: AbortSignal };
  export type Write = At & { data: Buffer | string; encoding?: BufferEncoding; mkdir?: boolean; pinnedPath?: string };
  export type FsBridge = {
    readonly pathMappings: readonly { readonly hostRoot: string; readonly containerRoot: string }[];
    resolvePath(p: { filePath: string; cwd?: string }): { hostPath?: string; relativePath: string; containerPath: string };
    readDirectory(p: At): Promise<{ name: string; isDirectory: boolean }[]>;
    readFile(p: At & { maxBytes?: number }): Promise<Buffer>;
    writeFile(p: Write): Promise<void>;
    createFileExclusive(p: Write): Promise<"created" | "exists">;
    mkdirp(p: At & { pinnedPath?: string }): Promise<void>;
    remove(p: At & { recursive?: boolean; force?: boolean; pinnedPath?: string }): Promise<void>;
    rename(p: { from: string; to: string; cwd?: string; signal?: AbortSignal }): Promise<void>;
    stat(p: At): Promise<{ type: "file" | "directory" | "other"; size: number; mtimeMs: number } | null>;
  };
  export type Handle = {
    id: string;
    runtimeId: string;
    runtimeLabel: string;
    workdir: string;
    env?: Record<string, string>;
    configLabel?: string;
    configLabelKind?: string;
    workdirValidation: "backend";
    validateWorkdir(workdir: string): Promise<string | null>;
    workdirRoots?: readonly string[];
    capabilities?: { readOnlyResourceMounts?: boolean };
    buildExecSpec(p: { command: string; workdir?: string; env: Record<string, string>; usePty: boolean }): Promise<ExecSpec>;
    finalizeExec(p: { status: "completed" | "failed"; exitCode: number | null; token?: unknown }): Promise<void>;
    runShellCommand(p: CommandParams): Promise<CommandResult>;
    createFsBridge(p: unknown): FsBridge;
  };
  export type RegistryEntry = { containerName: string; sessionKey: string };
  export type Manager = {
    describeRuntime(p: { entry: RegistryEntry; config: unknown; agentId?: string }): Promise<{ running: boolean; actualConfigLabel?: string; configLabelMatch: boolean }>;
    removeRuntime(p: { entry: RegistryEntry }): Promise<void>;
  };
  export function registerSandboxBackend(
    id: string,
    r: {
      factory: (p: CreateParams) => Promise<Handle>;
      manager: Manager;
      resolveWorkdir: (p: CreateParams) => string;
      capabilities: { readOnlyResourceMounts: boolean };
      reserveRuntimeId: (p: CreateParams) => string;
    },
  ): () => void;
}
