import assert from "node:assert/strict";
import { test } from "node:test";
import { approvals } from "../src/approvals.ts";
import { Daemon } from "../src/daemon.ts";
import { fake } from "./fake.ts";

const waiting = [
  { id: "s1.1", agent: "openclaw-i-main", to: "api.example.com:443\u202e", rule: "api.example.com", state: "pending", approver: "caller" },
  { id: "s2.1", agent: "openclaw-other-main", to: "evil.example", rule: "evil.example", state: "pending", approver: "caller" },
  { id: "s1.2", agent: "openclaw-i-main", to: "ssh.example.com:22", rule: "tcp ssh.example.com:22", state: "pending", approver: "operator" },
];

test("an owner answers for this gateway's sandboxes, and nobody else", async (t) => {
  const f = await fake(t, (a) => (a.method === "GET" ? { json: waiting } : { json: { ...waiting[0], state: "allowed" } }));
  let owner = 0;
  const say = async (args: string, isAuthorizedSender = true) => (await approvals(f.daemon, "i", { isAuthorizedSender, args, assertOwnerCurrent: () => void owner++ })).text;
  assert.equal(await say(""), "s1.1  main wants api.example.com:443\ns1.2  main wants ssh.example.com:22 (an operator of this box answers: creel egress approve)");
  assert.match(await say("", false), /only the owner/);
  assert.match(await say("approve s2.1"), /does not wait for an answer/);
  for (const bad of ["approve", "allow s1.1", "approve s1.1 for-ever", "deny s1.1 once more"]) assert.match(await say(bad), /^\/creel · /);
  assert.equal(owner, 0);
  assert.equal(f.asked.filter((a) => a.method === "POST").length, 0);
  assert.equal(await say("approve s1.1 once"), "creel: api.example.com:443 is let, for one connection or request");
  assert.equal(await say("deny s1.1"), "creel: api.example.com:443 stays refused");
  assert.equal(owner, 2);
  assert.deepEqual(f.asked.filter((a) => a.method === "POST").map((a) => [a.url, a.body]), [["/v1/approvals/s1.1", '{"allow":true,"for":"once"}'], ["/v1/approvals/s1.1", '{"allow":false}']]);
  assert.match((await approvals(new Daemon("/nowhere/s"), "i", { isAuthorizedSender: true })).text, /^creel: creeld at .* cannot be asked/);
});
