#!/usr/bin/env node
// A client of creeld with nothing but Node, 22.18 or later, which runs TypeScript as it is.
import http from "node:http";

const socketPath = process.env.CREEL_SOCKET ?? "/run/creel/creel.sock";
const STDIN = 0, STDOUT = 1, STDERR = 2, EXIT = 5, ERROR = 6; // the types of frames

export interface Spawn { image?: string; limits?: { memory?: string; cpus?: number; pids?: number; ttl?: string } }
export interface Spawned { sandbox: { id: string; name: string; state: string }; evidence: unknown }
export interface Exec { command: string[]; env?: Record<string, string>; workdir?: string; timeout?: string }
export interface Ended { id: string; exit_code: number; reason: string; limits_hit?: Record<string, number>; error?: string }
export interface Output extends Ended { stdout: string; stderr: string; truncated: boolean; timed_out: boolean }
export interface Io { stdin?: Buffer; onStdout?: (b: Buffer) => void; onStderr?: (b: Buffer) => void }

/** Gives the sandbox of that name, which is made if it is not there. */
export const ensure = (name: string, spawn: Spawn) => call<Spawned>("PUT", `/sandboxes/${name}`, spawn);
/** Runs a command and returns what it wrote, up to 256 KiB. */
export const exec = (ref: string, request: Exec & { input?: string }) => call<Output>("POST", `/sandboxes/${ref}/exec`, request);
/** Removes a sandbox, running or not. */
export const remove = (ref: string) => call<void>("DELETE", `/sandboxes/${ref}?force=true`);

/** One request with JSON; what the daemon refuses is an Error. T is what docs/api.md says of the answer. */
export function call<T>(method: string, path: string, body?: object): Promise<T> {
  return new Promise((resolve, reject) => {
    const data = body === undefined ? "" : JSON.stringify(body);
    const headers = { "Content-Length": Buffer.byteLength(data), ...(data && { "Content-Type": "application/json" }) };
    const req = http.request({ socketPath, method, path: "/v1" + path, headers, agent: false }, async (res) => {
      try {
        const text = await read(res);
        if ((res.statusCode ?? 500) >= 300) throw new Error(text);
        resolve((text ? JSON.parse(text) : undefined) as T);
      } catch (err) { reject(err); }
    });
    req.on("error", reject).end(data);
  });
}

async function read(from: AsyncIterable<Buffer>): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of from) parts.push(part);
  return Buffer.concat(parts).toString();
}

function frame(type: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt8(type, 0);
  head.writeUInt32BE(payload.length, 4);
  return Buffer.concat([head, payload]);
}

/** Runs a command with its streams as frames; resolves to how it ended. */
export function stream(ref: string, request: Exec, { stdin = Buffer.alloc(0), onStdout = () => {}, onStderr = () => {} }: Io = {}): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const body = JSON.stringify({ ...request, stdin: true });
    const req = http.request({
      socketPath, method: "POST", path: `/v1/sandboxes/${ref}/exec`, agent: false,
      headers: { Connection: "Upgrade", Upgrade: "creel-stream", "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) },
    });
    req.on("error", reject);
    req.on("response", (res) => read(res).then((text) => reject(new Error(text)), reject)); // no upgrade: an error
    req.on("upgrade", (_res, socket, head) => {
      let pending: Buffer = Buffer.alloc(0);
      const take = (chunk: Buffer) => {
        pending = Buffer.concat([pending, chunk]);
        while (pending.length >= 8 && pending.length >= 8 + pending.readUInt32BE(4)) {
          const size = pending.readUInt32BE(4), type = pending[0], payload = pending.subarray(8, 8 + size);
          pending = pending.subarray(8 + size);
          if (type === STDOUT) onStdout(payload);
          else if (type === STDERR) onStderr(payload);
          else if (type === EXIT) { resolve(JSON.parse(payload.toString()) as Ended); socket.destroy(); }
          else if (type === ERROR) { reject(new Error(payload.toString())); socket.destroy(); }
        }
      };
      socket.on("data", take);
      socket.on("error", reject).on("close", () => reject(new Error("the stream broke off"))); // after the last frame it is settled
      take(head);
      for (let i = 0; i < stdin.length; i += 65536) socket.write(frame(STDIN, stdin.subarray(i, i + 65536)));
      socket.write(frame(STDIN, Buffer.alloc(0))); // the end of input
    });
    req.end(body);
  });
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const name = process.argv[2] ?? "job";
  const { sandbox } = await ensure(name, { limits: { memory: "128M", ttl: "10m" } });
  console.log("state:", sandbox.state);
  const once = await exec(name, { command: ["tr", "a-z", "A-Z"], input: "hello", timeout: "30s" });
  console.log("one shot:", once.exit_code, once.stdout);
  let out = "", err = "";
  const end = await stream(name, { command: ["sh", "-c", "wc -c; echo oops >&2; exit 7"] }, {
    stdin: Buffer.alloc(200_000, "x"), onStdout: (b) => { out += b; }, onStderr: (b) => { err += b; },
  });
  console.log("stream:", end.exit_code, out.trim(), err.trim());
  await remove(name);
}
