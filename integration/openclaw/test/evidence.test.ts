import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
import { test } from "node:test";
import { check, keyID } from "../src/evidence.ts";
import { pair, signed, statement, uid } from "./fake.ts";

const want = { sandbox: "s1", agent: "openclaw-i-main", uid };

test("evidence in which every control holds is taken", () => {
  assert.equal(check(signed(statement()), pair.publicKey, want).profile, "default");
});

test("anything less is refused, with what it lacks", () => {
  const other = generateKeyPairSync("ed25519");
  const without = statement();
  without.controls = (without.controls ?? []).filter((c) => c.name !== "seccomp.filter");
  const broken = statement();
  broken.controls?.push({ name: "mount./workspace", expected: "ro", observed: "rw\nsecond line", ok: false });
  const tampered = signed(statement({ ok: false }));
  if (tampered.signed) tampered.signed.payload = Buffer.from(JSON.stringify(statement())).toString("base64");
  const otherType = signed(statement());
  if (otherType.signed) otherType.signed.payloadType = "text/plain";
  for (const [name, evidence, why] of [
    ["none", undefined, /no signed evidence/],
    ["unsigned", { ...signed(statement()), signed: undefined }, /no signed evidence/],
    ["another box's", signed(statement(), other.privateKey, keyID(other.publicKey)), /not signed with this box's key/],
    ["another key under its id", signed(statement(), other.privateKey), /not signed with this box's key/],
    ["changed since", tampered, /not signed with this box's key/],
    ["of another type", otherType, /of type text\/plain/],
    ["of another sandbox", signed(statement({ sandbox: "s2" })), /of sandbox s2, not s1/],
    ["of another agent", signed(statement({ agent: "else" })), /of agent else/],
    ["of another user", signed(statement({ caller: { uid: uid + 1 } })), /of uid/],
    ["without a control", signed(without), /does not tell of seccomp.filter/],
    ["without any", signed(statement({ controls: null })), /does not tell of/],
    ["not ok", signed(statement({ ok: false })), /does not tell of its result/],
    ["with one that does not hold", signed(broken), /not proven: mount\.\/workspace is rw second line, not ro/],
  ] as const) {
    assert.throws(() => check(evidence as never, pair.publicKey, want), (e: Error) => why.test(e.message) && e.message.endsWith("nothing was run"), name);
  }
  assert.throws(() => check(signed(statement()), pair.publicKey, { ...want, profile: "strict" }), /of profile default, not strict/);
});
