// A handle is given out only with evidence: what creeld read back from the kernel of
// that very sandbox, signed with the box's key. Without it, or if one control does not
// hold, nothing runs.
import { createHash, createPublicKey, type KeyObject, verify } from "node:crypto";
import { type Control, type Daemon, type Envelope, type Evidence, oneLine } from "./daemon.ts";

const payloadType = "application/vnd.creel.evidence.v1+json";

/** Controls that every sandbox of creel's has. Evidence without one of them is of something else. */
export const always = ["namespace.user", "namespace.pid", "namespace.mnt", "namespace.net", "idmap.uid", "caps.bounding", "no_new_privs", "seccomp.filter", "mount./", "mounts.private", "rootfs.own"];

export type Statement = {
  sandbox: string;
  ok: boolean;
  controls: Control[] | null;
  agent: string;
  profile: string;
  caller: { uid: number };
};
export type Expected = { sandbox: string; agent: string; uid: number; profile?: string };

/** A key as creeld names it: the first 8 bytes of the SHA-256 of its 32 bytes. */
export function keyID(key: KeyObject): string {
  const raw = key.export({ format: "der", type: "spki" }).subarray(-32);
  return createHash("sha256").update(raw).digest("hex").slice(0, 16);
}

/** What a signature of the envelope is of: DSSE v1's pre-authentication encoding. */
export function encoding(e: Envelope, payload: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`DSSEv1 ${Buffer.byteLength(e.payloadType)} ${e.payloadType} ${payload.length} `), payload]);
}

/** The statement of evidence that is signed with key and is of what is expected. It throws, with the control that does not hold. */
export function check(evidence: Evidence | undefined, key: KeyObject, want: Expected): Statement {
  const e = evidence?.signed;
  if (!e) throw new Error("creeld gave no signed evidence of the sandbox; nothing was run");
  if (e.payloadType !== payloadType) throw new Error(`the evidence of the sandbox is of type ${oneLine(e.payloadType, 80)}; nothing was run`);
  const payload = Buffer.from(e.payload, "base64");
  const id = keyID(key);
  const good = e.signatures.some((s) => s.keyid === id && verify(null, encoding(e, payload), key, Buffer.from(s.sig, "base64")));
  if (!good) throw new Error("the evidence of the sandbox is not signed with this box's key; nothing was run");
  // What stands beside the payload is believed by nobody.
  const s = JSON.parse(payload.toString("utf8")) as Statement;
  const differs = ([["sandbox", s.sandbox, want.sandbox], ["agent", s.agent, want.agent], ["uid", s.caller?.uid, want.uid], ["profile", s.profile, want.profile ?? s.profile]] as const).find(([, have, wanted]) => have !== wanted);
  if (differs) throw new Error(`the evidence is of ${differs[0]} ${oneLine(String(differs[1]), 80)}, not ${differs[2]}; nothing was run`);
  const controls = s.controls ?? [];
  const failed = controls.filter((c) => !c.ok);
  if (failed.length > 0) {
    const each = failed.slice(0, 3).map((c) => `${c.name} is ${oneLine(c.observed, 120)}, not ${oneLine(c.expected, 120)}`);
    throw new Error(`not proven: ${each.join("; ")}; nothing was run`);
  }
  const missing = always.filter((name) => !controls.some((c) => c.name === name));
  if (!s.ok || missing.length > 0) throw new Error(`not proven: the evidence does not tell of ${missing.join(", ") || "its result"}; nothing was run`);
  return s;
}

/** The box's key, asked for once, and again when a signature does not fit it. */
export class Keys {
  readonly daemon: Daemon;
  private key: KeyObject | undefined;
  constructor(daemon: Daemon) {
    this.daemon = daemon;
  }

  async check(evidence: Evidence | undefined, want: Expected): Promise<Statement> {
    const known = evidence?.signed?.signatures.some((s) => this.key && s.keyid === keyID(this.key));
    if (!known) this.key = createPublicKey((await this.daemon.key()).pem);
    return check(evidence, this.key as KeyObject, want);
  }
}
