#!/usr/bin/env node
// @ts-check
// A client of creeld with nothing but Node.
import http from "node:http";

const socketPath = process.env.CREEL_SOCKET ?? "/run/creel/creel.sock";
const STDIN = 0, STDOUT = 1, STDERR = 2, EXIT = 5, ERROR = 6; // the types of frames

/**
 * One request with JSON; what the daemon refuses is an Error.
 * @param {string} method @param {string} path @param {object} [body] @returns {Promise<any>}
 */
export function call(method, path, body) {
  return new Promise((resolve, reject) => {
    const data = body === undefined ? "" : JSON.stringify(body);
    const headers = { "Content-Length": Buffer.byteLength(data), ...(data && { "Content-Type": "application/json" }) };
    const req = http.request({ socketPath, method, path: "/v1" + path, headers, agent: false }, async (res) => {
      try {
        const text = await read(res);
        if ((res.statusCode ?? 500) >= 300) throw new Error(text);
        resolve(text ? JSON.parse(text) : undefined);
      } catch (err) { reject(err); }
    });
    req.on("error", reject).end(data);
  });
}

/** @param {AsyncIterable<Buffer>} from */
async function read(from) {
  const parts = [];
  for await (const part of from) parts.push(part);
  return Buffer.concat(parts).toString();
}

/** @param {number} type @param {Buffer} payload */
function frame(type, payload) {
  const head = Buffer.alloc(8);
  head.writeUInt8(type, 0);
  head.writeUInt32BE(payload.length, 4);
  return Buffer.concat([head, payload]);
}

/**
 * Runs a command with its streams as frames; resolves to how it ended.
 * @param {string} ref @param {string[]} command
 * @param {{stdin?: Buffer, onStdout?: (b: Buffer) => void, onStderr?: (b: Buffer) => void}} io
 * @returns {Promise<any>}
 */
export function stream(ref, command, { stdin = Buffer.alloc(0), onStdout = () => {}, onStderr = () => {} }) {
  return new Promise((resolve, reject) => {
    const body = JSON.stringify({ command, stdin: true });
    const req = http.request({
      socketPath, method: "POST", path: `/v1/sandboxes/${ref}/exec`, agent: false,
      headers: { Connection: "Upgrade", Upgrade: "creel-stream", "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) },
    });
    req.on("error", reject);
    req.on("response", (res) => read(res).then((text) => reject(new Error(text)), reject)); // no upgrade: an error
    req.on("upgrade", (_res, socket, head) => {
      let pending = Buffer.alloc(0);
      const take = (/** @type {Buffer} */ chunk) => {
        pending = Buffer.concat([pending, chunk]);
        while (pending.length >= 8 && pending.length >= 8 + pending.readUInt32BE(4)) {
          const size = pending.readUInt32BE(4), type = pending[0], payload = pending.subarray(8, 8 + size);
          pending = pending.subarray(8 + size);
          if (type === STDOUT) onStdout(payload);
          else if (type === STDERR) onStderr(payload);
          else if (type === EXIT) { resolve(JSON.parse(payload.toString())); socket.destroy(); }
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
  const name = process.argv[2];
  const { sandbox } = await call("PUT", `/sandboxes/${name}`, { limits: { memory: "128M", ttl: "10m" } });
  console.log("state:", sandbox.state);
  const once = await call("POST", `/sandboxes/${name}/exec`, { command: ["tr", "a-z", "A-Z"], input: "hello", timeout: "30s" });
  console.log("one shot:", once.exit_code, once.stdout);
  let out = "", err = "";
  const end = await stream(name, ["sh", "-c", "wc -c; echo oops >&2; exit 7"], {
    stdin: Buffer.alloc(200_000, "x"), onStdout: (b) => { out += b; }, onStderr: (b) => { err += b; },
  });
  console.log("stream:", end.exit_code, out.trim(), err.trim());
  await call("DELETE", `/sandboxes/${name}?force=true`);
}
