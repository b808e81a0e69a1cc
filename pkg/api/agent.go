package api

import "time"

// Agent is whom sandboxes belong to: a caller and a name that it gave.
type Agent struct {
	// ID is 16 of [a-z2-7], and never another agent's.
	ID     string `json:"id"`
	Name   string `json:"name"`
	Caller Caller `json:"caller"`
	State  string `json:"state"` // active, revoked or expired
	// Created and LastUsed are when its first and its last sandbox were made.
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"last_used"`
	// Revoked says who revoked it and when.
	Revoked *Revocation `json:"revoked,omitempty"`
	// Expires says from when on it may run no more; nil is never.
	Expires *Expiry `json:"expires,omitempty"`
	// Given is the ceiling that its last sandbox was held against; of an
	// operator's none.
	Given *Grant `json:"given,omitempty"`
	// Used is what it used of it: names that it asked for, the newest 32 of
	// each kind, and the most that its caller's sandboxes had together when it
	// made one.
	Used Grant `json:"used"`
	// Egress are rules that were let for it (creel egress approve --agent): its
	// sandboxes with a network have them, as far as their ceiling has them asked for.
	Egress []AgentRule `json:"egress,omitempty"`
	// Spawns is how many sandboxes were begun for it.
	Spawns int64 `json:"spawns"`
	// Sandboxes is how many of them have not ended.
	Sandboxes int `json:"sandboxes"`
}

// AgentRule is a rule of egress that was let for an agent.
type AgentRule struct {
	Rule string `json:"rule"`
	// Operator says that an operator did, and not its caller.
	Operator bool `json:"operator,omitempty"`
}

// Revocation is who took an agent's right to run away, and when.
type Revocation struct {
	Time time.Time `json:"time"`
	UID  uint32    `json:"uid"`
	// Operator says that an operator did, and that only one can restore it.
	Operator bool `json:"operator,omitempty"`
}

// Expiry is when an agent's right to run ends, and who set that.
type Expiry struct {
	// Time is zero for never, which an operator can set.
	Time time.Time `json:"time,omitzero"`
	// Ceiling says that the agent_ttl of its ceiling did, nobody by name.
	Ceiling  bool   `json:"ceiling,omitempty"`
	UID      uint32 `json:"uid,omitempty"`
	Operator bool   `json:"operator,omitempty"`
}

// ExpireRequest sets it: one of the two.
type ExpireRequest struct {
	// At is the moment; one that is over is now.
	At    time.Time `json:"at,omitzero"`
	Never bool      `json:"never,omitempty"`
}

// Grant is what an agent was given, or used. A total of 0 is no bound.
type Grant struct {
	// Ceiling names the [[caller]].
	Ceiling   string   `json:"ceiling,omitempty"`
	Profiles  []string `json:"profiles"`
	Runtimes  []string `json:"runtimes"`
	Images    []string `json:"images"`
	Mounts    []string `json:"mounts"`
	Socket    bool     `json:"socket,omitempty"`  // one of a sandbox's own
	Egress    []string `json:"egress,omitempty"`  // rules, see SpawnRequest
	Secrets   []string `json:"secrets,omitempty"` // "own" and patterns of the box's
	Sandboxes int      `json:"sandboxes"`
	Memory    Size     `json:"memory"`
	CPUs      float64  `json:"cpus"`
	Pids      int64    `json:"pids"`
	Disk      Size     `json:"disk"`
}

// Finding is one thing that a report on agents lists.
type Finding struct {
	Agent string `json:"agent"`
	ID    string `json:"id"`
	UID   uint32 `json:"uid"`
	// Kind is unused, revoked, expired or expiring (an agent), grant (one that was
	// never used) or wide (a total that is more than four times what was ever
	// used).
	Kind string `json:"kind"`
	What string `json:"what"`
	Fix  string `json:"fix"`
}
