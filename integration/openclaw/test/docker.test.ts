import assert from "node:assert/strict";
import { test } from "node:test";
import type { DockerConfig } from "openclaw/plugin-sdk/sandbox";
import { bytes, settings } from "../src/docker.ts";

/** What OpenClaw gives when nothing is configured. */
const none: DockerConfig = {
  image: "openclaw-sandbox:bookworm-slim", containerPrefix: "openclaw-sbx-", workdir: "/workspace", readOnlyRoot: true,
  tmpfs: ["/tmp", "/var/tmp", "/run"], network: "none", capDrop: ["ALL"], env: { LANG: "C.UTF-8" },
};

test("OpenClaw's defaults ask for nothing", () => {
  assert.deepEqual(settings(none), { prefix: "oc-", limits: {}, env: { LANG: "C.UTF-8" }, mounts: [] });
});

test("what creel has is honoured", () => {
  assert.deepEqual(
    settings({
      ...none, image: "tools:1", containerPrefix: "box-", readOnlyRoot: false, pidsLimit: 64, memory: "512m", memorySwap: "512m", cpus: 1.5,
      ulimits: { nofile: { soft: 1024, hard: 2048 } }, binds: ["/srv/data:/data:ro", "/srv/out:/out"],
    }),
    {
      prefix: "box-", image: "tools:1", rootfs: "ephemeral", limits: { pids: 64, cpus: 1.5, memory: 512 << 20, files: 1024 }, env: { LANG: "C.UTF-8" },
      mounts: [{ source: "/srv/data", target: "/data", readonly: true }, { source: "/srv/out", target: "/out" }],
    },
  );
});

test("what creel has not is refused by its name, all at once", () => {
  const each: [Partial<DockerConfig>, string][] = [
    [{ network: "bridge" }, "network"], [{ network: "host" }, "network"], [{ capDrop: ["NET_RAW"] }, "capDrop"], [{ capDrop: [] }, "capDrop"], [{ tmpfs: ["/tmp:size=1g"] }, "tmpfs"], [{ memory: "lots" }, "memory"],
    [{ memory: "1g", memorySwap: "2g" }, "memorySwap"], [{ memorySwap: -1 }, "memorySwap"], [{ ulimits: { nproc: 5 } }, "ulimits.nproc"], [{ binds: ["data:/data"] }, "binds"],
    [{ binds: ["/a:/b:shared"] }, "binds"], [{ user: "0:0" }, "user"], [{ setupCommand: "apt-get install x" }, "setupCommand"], [{ gpus: "all" }, "gpus"],
    [{ seccompProfile: "/x.json" }, "seccompProfile"], [{ apparmorProfile: "x" }, "apparmorProfile"], [{ dns: ["9.9.9.9"] }, "dns"], [{ extraHosts: ["a:1.2.3.4"] }, "extraHosts"],
    [{ dangerouslyAllowExternalBindSources: true }, "dangerouslyAllowExternalBindSources"], [{ containerPrefix: "A_" }, "containerPrefix"], [{ newKeyOfALaterOpenClaw: 1 }, "newKeyOfALaterOpenClaw"],
  ];
  for (const [change, key] of each) assert.throws(() => settings({ ...none, ...change } as DockerConfig), new RegExp(`sandbox\\.docker\\.${key.replace(".", "\\.")}: `), key);
  assert.throws(() => settings({ ...none, gpus: "all", user: "1" }), /gpus: .*; .*user: |user: .*; .*gpus: /);
  assert.doesNotThrow(() => settings({ ...none, dns: [], dangerouslyAllowExternalBindSources: false } as DockerConfig));
});

test("sizes are Docker's", () => {
  for (const [v, want] of [["1g", 1 << 30], ["1.5k", 1536], ["10", 10], [7, 7], ["2MB", 2 << 20], [undefined, undefined]] as const) assert.equal(bytes(v), want);
  for (const v of ["", "g", "1x", "-1", "1 2"]) assert.ok(Number.isNaN(bytes(v)), v);
});
