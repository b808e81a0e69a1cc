package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/protect"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/undo"
	"github.com/creel-sandbox/creel/pkg/unixpeers"
	"github.com/creel-sandbox/creel/pkg/weaken"
)

// effect is something a launch leaves in the kernel or on disk, named by the
// sandbox's id, and how it is taken back. Undoing what is not there succeeds.
type effect struct {
	name string
	undo func(l *Launcher, ctx context.Context, id string) error
	// above are effects that use this one: while one of them is there, this
	// one stays, or what is needed to find and to end them would be lost.
	above []string
}

// effects in the order a launch makes them; they are undone last first. The
// record and the id range are not here: they go last, and only when all of
// these are gone, so that nothing is forgotten and no id is shared.
var effects = []effect{
	{name: "rundir", undo: func(l *Launcher, _ context.Context, id string) error { return removeDir(l.dir(id)) }, above: []string{"socket", "mounts", "task"}},
	{name: "steer", undo: func(l *Launcher, _ context.Context, id string) error { return steer.Delete(l.steerDir(), id) }},
	{name: "egress", undo: func(l *Launcher, ctx context.Context, id string) error { return l.removeEgress(ctx, id) }},
	{name: "unix_peers", undo: func(l *Launcher, _ context.Context, id string) error { return l.unguardPeers(id) }, above: []string{"task"}},
	{name: "socket", undo: func(l *Launcher, _ context.Context, id string) error { return l.removeSocket(id) }},
	{name: "volumes", undo: func(l *Launcher, _ context.Context, id string) error { return l.releaseVolumes(id) }, above: []string{"mounts", "task"}},
	{name: "mounts", undo: func(l *Launcher, _ context.Context, id string) error { return l.unstage(id) }, above: []string{"task"}},
	{name: "rootfs", undo: func(l *Launcher, _ context.Context, id string) error { return l.layers.Remove(id) }, above: []string{"container", "task"}},
	{name: "container", undo: func(l *Launcher, ctx context.Context, id string) error { return l.Runtime.DeleteContainer(ctx, id) }, above: []string{"task"}},
	{name: "task", undo: func(l *Launcher, ctx context.Context, id string) error { return l.Runtime.DeleteTask(ctx, id) }},
	{name: "cgroup", undo: func(l *Launcher, ctx context.Context, id string) error { return l.Cgroups.RemoveAll(ctx, id) }},
}

// undoing is the undo of a named effect. stuck collects the effects that
// could not be undone in the same go.
func (l *Launcher) undoing(name, id string, stuck map[string]bool) func(context.Context) error {
	i := slices.IndexFunc(effects, func(e effect) bool { return e.name == name })
	if i < 0 {
		panic("launcher: no effect " + name) // a misspelling in this package
	}
	e := effects[i]
	return func(ctx context.Context) (err error) {
		defer func() { stuck[name] = err != nil }()
		for _, a := range e.above {
			if stuck[a] {
				return fmt.Errorf("left, because %s is", a)
			}
		}
		if err := failpoint.Hit("undo." + name); err != nil {
			return err
		}
		return e.undo(l, ctx, id)
	}
}

// undoAll takes back every effect that a sandbox may have. It reports the
// names of those that could not be.
func (l *Launcher) undoAll(ctx context.Context, id string) error {
	var u undo.Stack
	stuck := map[string]bool{}
	for _, e := range effects {
		u.Add(e.name, l.undoing(e.name, id, stuck))
	}
	return u.Run(ctx)
}

// removeDir removes a sandbox's directory and the files in it. It never goes
// deeper: while a mount is left there, that would be the caller's files.
func removeDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// spareInits is how many private copies of creel-init are kept ready.
const spareInits = 4

// initMode is of every copy of creel-init: executable, readable by nobody.
const initMode = 0o111

// placeInit puts a private copy of creel-init into a sandbox's directory.
// Private, because pages of a file that sandboxes share could be changed in
// one by a kernel bug and run in another (CVE-2026-31431). Not readable, so
// that the kernel makes every process that runs it non-dumpable, with the
// initial user namespace as its owner (execve(2), kernel fs/exec.c would_dump).
func (l *Launcher) placeInit(id string) (err error) {
	dir := l.dir(id)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	dst := filepath.Join(dir, "init")
	defer func() {
		if err == nil {
			err = weaken.Init(dst, copyInit)
		}
	}()
	select {
	case spare := <-l.spares:
		if err := os.Rename(spare, dst); err == nil {
			return nil
		}
	default:
	}
	return copyInit(l.InitPath, dst)
}

// fillSpares keeps ready-made copies until the daemon ends.
func (l *Launcher) fillSpares(ctx context.Context) {
	for {
		path := filepath.Join(l.RunDir, "spare", newID())
		if err := copyInit(l.InitPath, path); err != nil {
			l.log.WarnContext(ctx, "no spare copy of creel-init; launches make their own", slog.Any("error", err))
			return
		}
		select {
		case l.spares <- path:
		case <-ctx.Done():
			_ = os.Remove(path)
			return
		}
	}
}

// dropSpares removes the copies an earlier daemon left.
func (l *Launcher) dropSpares() error {
	dir := filepath.Join(l.RunDir, "spare")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

func copyInit(src, dst string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("creel-init: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o100)
	if err != nil {
		return fmt.Errorf("creel-init: %w", err)
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = os.Remove(dst)
		}
	}()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("creel-init: %w", err)
	}
	if err := out.Chmod(initMode); err != nil {
		return fmt.Errorf("creel-init: %w", err)
	}
	return nil
}

// protect makes names read-only in the trees of mounts that ask for it, before
// others are attached there. through are the mounts that it makes, by the number
// of the tree.
func (s *launch) protect(all []store.Mount) (through map[int][]uint64, err error) {
	if !slices.ContainsFunc(all, func(m store.Mount) bool { return m.Protect }) {
		return nil, nil
	}
	var targets []string
	for _, m := range all {
		targets = append(targets, m.Target)
	}
	var trees []int
	tree := func(i int) protect.Tree {
		return protect.Tree{Field: fmt.Sprintf("mounts[%d]", i), Staged: all[i].Staged, Target: all[i].Target, Others: targets}
	}
	for i, m := range all {
		if m.Protect {
			trees = append(trees, i)
			if err := alone(all, i); err != nil {
				return nil, err
			}
		}
	}
	made, err := s.place(all, trees, tree)
	if err := errors.Join(err, failpoint.Hit("launch.placed")); err != nil {
		return nil, err
	}
	var ps []protect.Placeholder
	for _, m := range made {
		ps = append(ps, m.Placeholders...)
	}
	empty := filepath.Join(s.l.dir(s.id), "empty")
	if err := os.WriteFile(empty, nil, 0o444); err != nil {
		return nil, err
	}
	through = map[int][]uint64{}
	var protected []protect.Mount
	for _, i := range trees {
		ms, ids, err := tree(i).Apply(s.l.Protect, ps, empty)
		if err != nil {
			return nil, err
		}
		protected, through[i] = append(protected, ms...), ids
		if err := weaken.Protected(all[i].Staged); err != nil {
			return nil, err
		}
	}
	s.sb.amend(func(r *store.Record) { r.Protected = protected })
	return through, nil
}

// alone is nil if no other mount of the same request shows the i-th, or what it is
// in, without what makes names read-only there.
func alone(all []store.Mount, i int) error {
	for j, o := range all {
		same := o.Dev == all[i].Dev && o.Inode == all[i].Inode
		if !claims(o) || same && o.Protect {
			continue
		}
		dir, err := os.Open(o.Staged)
		if err != nil {
			return err
		}
		in, err := mount.Holds(dir, all[i].Staged)
		_ = dir.Close()
		if err != nil {
			return err
		}
		if in {
			return invalid([]api.Problem{{
				Field: fmt.Sprintf("mounts[%d].readonly", j), Value: "false",
				Want: fmt.Sprintf("true, or left out: it shows what mounts[%d] protects, without protecting it", i),
			}})
		}
	}
	return nil
}

// place makes the placeholders that trees need. They are on record before they are
// there: where they are no id tells.
func (s *launch) place(all []store.Mount, trees []int, tree func(int) protect.Tree) (made []protect.Made, err error) {
	s.l.placeMu.Lock()
	defer s.l.placeMu.Unlock()
	held := s.l.placeholders(s.sb)
	for _, i := range trees {
		ps, err := tree(i).Plan(s.l.Protect, held)
		if err != nil {
			return nil, err
		}
		dir, err := dirOf(i, s.Request.Mounts[i], s.dirs)
		if err != nil {
			return nil, err
		}
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
		if err != nil {
			return nil, err
		}
		made = append(made, protect.Made{Staged: all[i].Staged, Path: path, Dev: all[i].Dev, Inode: all[i].Inode, Placeholders: ps})
	}
	s.sb.mu.Lock()
	next := s.sb.rec
	next.Placeholders = slices.Clone(made)
	err = s.sb.putLocked(next)
	s.sb.mu.Unlock()
	if err := errors.Join(err, failpoint.Hit("launch.planned")); err != nil {
		return nil, err
	}
	for k, i := range trees {
		made[k].Placeholders, err = tree(i).Make(s.agentUser(), made[k].Placeholders)
		s.sb.amend(func(r *store.Record) { r.Placeholders = slices.Clone(made) })
		if err != nil {
			return nil, err
		}
	}
	return made, nil
}

func (s *launch) agentUser() protect.User { return agentUser(&s.sb.fixed) }

func agentUser(r *store.Record) protect.User {
	agent := r.Sandbox.HostUID + spec.AgentUID
	return protect.User{UID: agent, GID: agent}
}

// placeholders are those that all sandboxes but one have on record.
func (l *Launcher) placeholders(but *sandbox) protect.Held {
	held := protect.Held{}
	for _, sb := range l.all() {
		if sb == but {
			continue
		}
		sb.mu.Lock()
		held.Add(sb.rec.Placeholders)
		sb.mu.Unlock()
	}
	return held
}

// unstage unmounts what is staged for a sandbox, and then removes the placeholders
// that no other one has: before, they are busy.
func (l *Launcher) unstage(id string) error {
	dir := filepath.Join(l.dir(id), "mnt")
	l.mu.Lock()
	sb := l.sandboxes[id]
	l.mu.Unlock()
	if sb == nil {
		return mount.Cleanup(dir)
	}
	sb.mu.Lock()
	made := slices.Clone(sb.rec.Placeholders)
	sb.mu.Unlock()
	dirs := make([]*os.File, len(made))
	for i, m := range made {
		if dirs[i] = m.Open(); dirs[i] != nil {
			defer dirs[i].Close()
		}
	}
	if err := errors.Join(mount.Cleanup(dir), failpoint.Hit("undo.placeholders")); err != nil || len(made) == 0 {
		return err
	}
	l.placeMu.Lock()
	defer l.placeMu.Unlock()
	held := l.placeholders(sb)
	var left []protect.Made
	var errs []error
	caller := protect.User{UID: sb.fixed.Sandbox.Caller.UID, GID: sb.fixed.Sandbox.Caller.GID, Groups: sb.fixed.Groups}
	for i, m := range made {
		ps, err := m.Remove(dirs[i], l.HostMounts, agentUser(&sb.fixed), caller, held)
		if errs = append(errs, err); len(ps) > 0 {
			m.Placeholders = ps
			left = append(left, m)
		}
	}
	sb.amend(func(r *store.Record) { r.Placeholders, r.Protected = left, nil }) // others do not wait for it
	return errors.Join(errs...)
}

// guardPeers has the kernel refuse connections of Unix sockets between the
// sandbox's network namespace and any other, before there is a process in it.
func (s *launch) guardPeers() error {
	if s.l.Peers == nil {
		return nil
	}
	s.sb.amend(func(r *store.Record) { r.UnixPeers = true })
	if failpoint.On("layer.unix_peers") {
		return nil
	}
	return s.l.Peers.Add(s.ns.Cookie(), s.id)
}

func (l *Launcher) unguardPeers(id string) error {
	if l.Peers == nil {
		return nil
	}
	return l.Peers.Delete(id)
}

// peersControl reads back that the kernel guards the sandbox. On a host that
// cannot there is no such control, unless the sandbox was promised it.
func (sb *sandbox) peersControl(cookie uint64) []api.Control {
	sb.mu.Lock()
	guarded := sb.rec.UnixPeers
	sb.mu.Unlock()
	switch {
	case sb.l.Peers != nil:
		return []api.Control{sb.l.Peers.Check(cookie, sb.id)}
	case guarded:
		return []api.Control{{Name: unixpeers.Control, Expected: "can be read back", Observed: sb.l.NoPeers.Error()}}
	}
	return nil
}
