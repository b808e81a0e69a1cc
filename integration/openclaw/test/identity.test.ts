import assert from "node:assert/strict";
import { test } from "node:test";
import { agentName, agentOf, instanceOf, isSubagent, labels, newRuntimeId, sessionOf, slug } from "../src/identity.ts";

const name = /^[a-z0-9][a-z0-9-]{0,62}$/;

test("names are creel's, and two agents never have one", () => {
  const agents = ["main", "Main", "ma_in", "ma-in", "a".repeat(64), `${"a".repeat(63)}b`, "ä", "-", "__", "a--b"];
  const names = agents.map((a) => agentName("0123456789abcdef", a));
  for (const n of names) assert.match(n, name);
  assert.equal(new Set(names).size, agents.length);
  assert.equal(agentName("i", "main"), "openclaw-i-main");
  for (const a of agents) {
    const id = newRuntimeId("twelve-chars", "0123456789abcdef", a, `agent:${a}:x:workspace:1`);
    assert.match(id, name);
    assert.notEqual(id, newRuntimeId("twelve-chars", "0123456789abcdef", a, `agent:${a}:x:workspace:1`));
  }
  assert.equal(slug("a-b", 10), "a-b");
});

test("the agent and the session are read from OpenClaw's keys", () => {
  const key = "agent:main:subagent:75f072ba-a6f9-4b02-b9b9-c9a1e1ce99d8";
  assert.equal(agentOf(`${key}:workspace:0`), "main");
  assert.equal(agentOf("shared"), "shared");
  assert.ok(isSubagent(key) && !isSubagent("agent:main:main") && !isSubagent("agent:main:x:subagent:y"));
  assert.equal(sessionOf({ sessionKey: key, scopeKey: `${key}:workspace:0` }), key);
  // As OpenClaw 2026.9.6 has it for a session with attachments.
  assert.equal(sessionOf({ sessionKey: key, scopeKey: "agent:main:required-session:0c8efbb2fa132f7f029437a06f3b0065:workspace:67" }), key);
  assert.equal(sessionOf({ sessionKey: key, scopeKey: "agent:main:workspace:0" }), undefined);
  assert.equal(sessionOf({ sessionKey: "agent:main:x", scopeKey: "agent:main:xy:workspace:0" }), undefined);
});

test("labels of a scope that sessions share do not change with the session", () => {
  const scopeKey = "agent:main:workspace:0";
  assert.deepEqual(labels("i", { sessionKey: "agent:main:a", scopeKey }), labels("i", { sessionKey: "agent:main:b", scopeKey }));
  const long = `agent:main:${"k".repeat(300)}`;
  for (const v of Object.values(labels("i", { sessionKey: long, scopeKey: `${long}:workspace:0` }))) assert.ok(v.length <= 256);
});

test("each state directory is an instance of its own", () => {
  assert.match(instanceOf("/nowhere/a"), /^[0-9a-f]{8}$/);
  assert.notEqual(instanceOf("/nowhere/a"), instanceOf("/nowhere/b"));
});
