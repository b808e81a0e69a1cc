// A creeld of a few lines, on a Unix socket: tests say what it answers.
import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import type { TestContext } from "node:test";
import { Daemon, type Envelope, type Evidence } from "../src/daemon.ts";
import { always, encoding, keyID, type Statement } from "../src/evidence.ts";

export const uid = process.getuid?.() ?? -1;
export const pair = generateKeyPairSync("ed25519");

export function statement(change: Partial<Statement> = {}): Statement {
  return {
    sandbox: "s1", ok: true, agent: "openclaw-i-main", profile: "default", caller: { uid },
    controls: always.map((name) => ({ name, expected: "x", observed: "x", ok: true })), ...change,
  };
}

export function signed(s: unknown, key: KeyObject = pair.privateKey, id = keyID(pair.publicKey)): Evidence {
  const payload = Buffer.from(JSON.stringify(s));
  const e: Envelope = { payloadType: "application/vnd.creel.evidence.v1+json", payload: payload.toString("base64"), signatures: [] };
  e.signatures.push({ keyid: id, sig: sign(null, encoding(e, payload), key).toString("base64") });
  return { sandbox: "s1", ok: true, controls: [], signed: e };
}

export type Asked = { method: string; url: string; body: string };
type Answer = { status?: number; json?: unknown; text?: string; cut?: boolean; hang?: boolean };
export type Fake = { daemon: Daemon; asked: Asked[]; socket: string };

/** Answers each request with what route says of it, in order; without a word, 404. */
export async function fake(t: TestContext, route: (a: Asked) => Answer | undefined): Promise<Fake> {
  const dir = mkdtempSync(path.join(os.tmpdir(), "creel-oc-"));
  const socket = path.join(dir, "s");
  const asked: Asked[] = [];
  const server = http.createServer((req, res) => {
    const chunks: Buffer[] = [];
    req.on("data", (c: Buffer) => chunks.push(c));
    req.on("end", () => {
      const a = { method: req.method ?? "", url: req.url ?? "", body: Buffer.concat(chunks).toString("utf8") };
      asked.push(a);
      const r = route(a) ?? { status: 404, json: { code: "not_found", message: "no such thing" } };
      if (r.hang) return;
      const body = r.text ?? (r.json === undefined ? "" : JSON.stringify(r.json));
      if (r.cut) {
        res.writeHead(200, { "content-length": body.length + 10 });
        res.write(body, () => req.socket.destroy());
        return;
      }
      res.writeHead(r.status ?? 200).end(body);
    });
  });
  await new Promise<void>((done) => server.listen(socket, done));
  t.after(() => {
    server.closeAllConnections();
    server.close();
    rmSync(dir, { recursive: true, force: true });
  });
  return { daemon: new Daemon(socket), asked, socket };
}
