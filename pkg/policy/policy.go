// Package policy says who a caller is to creel: an operator, somebody with a
// ceiling, or nobody. It decides on what the kernel says of the process that
// connected (uid, gid, groups) and on nothing else.
//
//	p, err := policy.Compile(cfg)  // names to ids, once
//	rules := policy.NewRules(p)    // what is in force; Replace for a reload
//
// Beware: a user database is asked when a configuration is read, and never
// about a caller. Who joins a group has it from the next login on.
package policy

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/hostload"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// Policy is one configuration's word on callers. It does not change.
type Policy struct {
	operators []who
	tables    []table // in the order of the file
	max       admission.Totals
	// Of every user: sandboxes that have not ended, and that are kept.
	perUser, kept int
	host          hostload.Bounds
}

type table struct {
	who     who
	ceiling *Ceiling
}

// Ceiling is what one caller may have, and the directories its mount roots are.
type Ceiling struct {
	admission.Ceiling
	roots []root // of Mounts, by index; no path for "own" and "*"
}

type root struct {
	path string
	dev  uint64
	ino  uint64
}

// who is whom a table is for.
type who struct {
	kind kind
	id   uint32
}

type kind int

const (
	nobody kind = iota // a socket group that is not there lets nobody in
	byUser
	byGroup
	byDefault
)

func (w who) is(c peer.Cred) bool {
	switch w.kind {
	case byUser:
		return c.UID == w.id
	case byGroup:
		return c.InGroup(w.id)
	case byDefault:
		return true
	case nobody:
	}
	return false
}

// Compile looks up every name and mount root of a configuration. The error
// lists all that are not there.
func Compile(cfg *config.Config) (*Policy, error) {
	m := cfg.Limits.Max
	p := &Policy{
		max:     admission.Totals{Sandboxes: m.Sandboxes, Memory: m.Memory, CPUs: m.CPUs, Pids: m.Pids, Disk: m.Disk},
		perUser: m.SandboxesPerUser, kept: m.KeptPerUser,
		host: hostload.Bounds{
			Memory: cfg.Host.Memory, Pids: cfg.Host.Pids, MemoryPressure: cfg.Host.MemoryPressure, IOPressure: cfg.Host.IOPressure,
		},
	}
	var errs []error
	for _, o := range cfg.Operators {
		w, err := lookUp(o, "")
		if err != nil {
			errs = append(errs, fmt.Errorf("operators: %w", err))
		}
		p.operators = append(p.operators, w)
	}
	for _, c := range cfg.Callers {
		w, err := lookUp(c.Match, cfg.SocketGroup)
		if err != nil {
			errs = append(errs, fmt.Errorf("caller.match: %w", err))
			continue
		}
		for _, t := range p.tables {
			if t.who == w && w.kind != nobody {
				errs = append(errs, fmt.Errorf("caller.match: %s and %s are the same", t.ceiling.Name, c.Match))
			}
		}
		ceiling, err := compile(c)
		if err != nil {
			errs = append(errs, fmt.Errorf("[[caller]] %s: %w", c.Match, err))
		}
		p.tables = append(p.tables, table{w, ceiling})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

// lookUp turns a name into an id. config has checked its form.
func lookUp(match, socketGroup string) (who, error) {
	kindOf, name, _ := strings.Cut(match, ":")
	switch kindOf {
	case "default":
		return who{kind: byDefault}, nil
	case "socket_group":
		g, err := user.LookupGroup(socketGroup)
		if err != nil {
			return who{}, nil //nolint:nilerr // creeld does not start with a group that is not there, and needs none
		}
		return number(byGroup, g.Gid)
	case "user":
		u, err := user.Lookup(name)
		if err != nil {
			return who{}, fmt.Errorf("no user %q on this host; write its number as uid:N if another directory has it", name)
		}
		return number(byUser, u.Uid)
	case "group":
		g, err := user.LookupGroup(name)
		if err != nil {
			return who{}, fmt.Errorf("no group %q on this host; write its number as gid:N if another directory has it", name)
		}
		return number(byGroup, g.Gid)
	case "uid":
		return number(byUser, name)
	default:
		return number(byGroup, name)
	}
}

// number refuses 2^32-1, which the kernel uses for no id at all.
func number(k kind, text string) (who, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil || id == 1<<32-1 {
		return who{}, fmt.Errorf("%q is not an id", text)
	}
	return who{k, uint32(id)}, nil
}

func compile(c config.Caller) (*Ceiling, error) {
	out := &Ceiling{Ceiling: admission.Ceiling{
		Name: c.Match, Profiles: c.Profiles, Runtimes: c.Runtimes, Images: c.Images,
		Totals:    admission.Totals{Sandboxes: c.Sandboxes, Memory: c.Memory, CPUs: c.CPUs, Pids: c.Pids, Disk: c.Disk},
		SpawnRate: c.SpawnRate, ExecRate: c.ExecRate, ImageBytes: c.ImageBytes, Connections: c.Connections, AgentTTL: c.AgentTTL.D(), Socket: c.Socket, Egress: c.Egress,
		Budgets: api.Limits{EgressBytes: c.EgressBytes, EgressConnections: c.EgressConnections, EgressRequests: c.EgressRequests}, Ask: c.Ask, Approve: c.Approve, Secrets: c.Secrets,
	}}
	var errs []error
	for _, m := range c.Mounts {
		p, readonly := strings.CutSuffix(m, ":ro")
		out.Mounts = append(out.Mounts, admission.Root{Path: p, ReadOnly: readonly})
		var r root
		if p != "own" && p != "*" {
			f, err := openRoot(p)
			if err == nil {
				r = root{path: p}
				r.dev, r.ino, err = mount.Identify(f)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("mounts: %w", err))
			}
		}
		out.roots = append(out.roots, r)
	}
	return out, errors.Join(errs...)
}

// openRoot opens a directory that the configuration names. It is not kept
// open: that would hold its file system against an unmount.
func openRoot(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
}

// Holds says of each of the ceiling's mounts whether it has the directory. host
// pins the host's mount namespace, nil is the daemon's own.
//
// A root that is another directory than when the configuration was read holds
// nothing.
func (c *Ceiling) Holds(caller peer.Cred, dir, host *os.File) ([]bool, error) {
	out := make([]bool, len(c.Mounts))
	for i, m := range c.Mounts {
		switch m.Path {
		case "*":
			out[i] = true
		case "own":
			uid, err := mount.Owner(dir)
			if err != nil {
				return nil, err
			}
			out[i] = uid == caller.UID
		default:
			in, err := c.roots[i].holds(dir, host)
			if err != nil {
				return nil, err
			}
			out[i] = in
		}
	}
	return out, nil
}

func (r root) holds(dir, host *os.File) (bool, error) {
	top, err := openRoot(r.path)
	if err != nil {
		return false, nil //nolint:nilerr // it has gone: nothing is in it
	}
	defer top.Close()
	dev, ino, err := mount.Identify(top)
	if err != nil || dev != r.dev || ino != r.ino {
		return false, err
	}
	return mount.Beneath(dir, top, host)
}

// Operator says whether a caller sees and does all. Nobody does through a
// sandbox's own socket.
func (p *Policy) Operator(c peer.Cred) bool { return c.Via == "" && p.unbounded(c) }

// unbounded says whether a caller has no ceiling because it is an operator, or
// is in a sandbox of one's, which its parent bounds.
func (p *Policy) unbounded(c peer.Cred) bool {
	if c.UID == 0 {
		return true
	}
	for _, o := range p.operators {
		if o.is(c) {
			return true
		}
	}
	return false
}

// Ceiling is what a caller may have: of the table for its uid, else of the
// first for a group it is in, else of the one for everybody. It is nil for
// whoever has none.
func (p *Policy) Ceiling(c peer.Cred) *Ceiling {
	for _, k := range []kind{byUser, byGroup, byDefault} {
		for _, t := range p.tables {
			if t.who.kind == k && t.who.is(c) {
				return t.ceiling
			}
		}
	}
	return nil
}
