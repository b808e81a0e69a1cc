// /creel: whoever owns the gateway answers for what its sandboxes were refused.
import type { CommandContext } from "openclaw/plugin-sdk/plugin-entry";
import { type Daemon, oneLine } from "./daemon.ts";

const usage = "/creel · /creel approve ID [once|sandbox|agent] · /creel deny ID";

/** Answers a /creel command. Nothing a sandbox says is believed: destinations are shown as creeld has them. */
export async function approvals(daemon: Daemon, instance: string, c: CommandContext): Promise<{ text: string }> {
  if (!c.isAuthorizedSender) return { text: "creel: only the owner of this gateway may answer" };
  try {
    return { text: await answer(daemon, instance, c) };
  } catch (e) {
    return { text: `creel: ${oneLine(e instanceof Error ? e.message : String(e))}` };
  }
}

async function answer(daemon: Daemon, instance: string, c: CommandContext): Promise<string> {
  const [verb = "", id = "", scope = "sandbox", more] = (c.args ?? "").trim().split(/\s+/);
  // Those of another gateway under this uid are not this owner's to see.
  const mine = (await daemon.approvals()).filter((a) => a.agent.startsWith(`openclaw-${instance}-`));
  if (verb === "" || verb === "pending") {
    if (mine.length === 0) return "creel: nothing waits for an answer";
    return mine.map((a) => `${a.id}  ${a.agent.slice(`openclaw-${instance}-`.length)} wants ${oneLine(a.to, 200)}${a.approver === "operator" ? " (an operator of this box answers: creel egress approve)" : ""}`).join("\n");
  }
  if (!["approve", "deny"].includes(verb) || id === "" || more !== undefined || !["once", "sandbox", "agent"].includes(scope)) return usage;
  if (!mine.some((a) => a.id === id)) return `creel: ${oneLine(id, 80)} does not wait for an answer; /creel lists what does`;
  c.assertOwnerCurrent?.();
  const a = await daemon.decide(id, verb === "approve" ? { allow: true, for: scope } : { allow: false });
  return verb === "approve" ? `creel: ${oneLine(a.to, 200)} is let, for ${scope === "once" ? "one connection or request" : `the ${scope}`}` : `creel: ${oneLine(a.to, 200)} stays refused`;
}
