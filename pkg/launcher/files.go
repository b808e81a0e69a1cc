package launcher

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/layerdiff"
	"github.com/creel-sandbox/creel/pkg/layertar"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/recent"
	"github.com/creel-sandbox/creel/pkg/server"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/store"
)

// fileTime bounds a file operation that moves no bulk data.
const fileTime = 30 * time.Second

// fileOp starts a file operation in the sandbox, with the agent's rights and
// in a cgroup of its own like any command, so that no path of the agent's is
// ever followed by root. The session is the caller's to Close.
func (l *Launcher) fileOp(ctx context.Context, c peer.Cred, ref string, argv []string, input bool, within time.Duration) (*session, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	return sb.open(ctx, command{argv: argv, internal: true, workdir: "/"}, api.ExecRequest{
		Stdin: input, Timeout: api.Duration(within),
	})
}

// simple runs an operation that gives nothing but success.
func (l *Launcher) simple(ctx context.Context, c peer.Cred, ref, path string, argv []string) error {
	s, err := l.fileOp(ctx, c, ref, argv, false, fileTime)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.fileError(path, agentinit.DecodeEnd(s.io.stdout))
}

// fileError turns what the sandbox said of a path into an answer.
func (s *session) fileError(path string, err error) error {
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		select {
		case <-s.done:
			if s.result.Reason == api.ReasonTimeout {
				return api.Errorf(api.CodeUnavailable, "%s: the sandbox took longer than %s", path, fileTime)
			}
			if s.result.Error != "" {
				return api.Errorf(api.CodeUnavailable, "%s: %s", path, s.result.Error)
			}
		default:
		}
		return api.Errorf(api.CodeUnavailable, "%s: the sandbox gave no usable answer: %w", path, err)
	}
	code := api.CodeInvalid
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		code = api.CodeNotFound
	case unix.EACCES, unix.EPERM, unix.EROFS:
		code = api.CodeDenied
	case unix.EEXIST, unix.ENOTEMPTY, unix.EBUSY, unix.ETXTBSY:
		code = api.CodeConflict
	case unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM:
		code = api.CodeExhausted
	}
	return api.Errorf(code, "%s: %w", path, errno)
}

// fileBody is a file being read out of a sandbox.
type fileBody struct {
	s    *session
	path string
	r    io.Reader
	once sync.Once
}

// Read gives the file's bytes; an error of the sandbox's is an *api.Error.
func (b *fileBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.s.fileError(b.path, err)
	}
	return n, err
}

// Close ends the operation if it has not ended.
func (b *fileBody) Close() (err error) {
	b.once.Do(func() { err = b.s.Close() })
	return err
}

// ReadFile gives a regular file's bytes.
func (l *Launcher) ReadFile(ctx context.Context, c peer.Cred, ref, path string) (api.FileInfo, io.ReadCloser, error) {
	info, err := l.StatFile(ctx, c, ref, path)
	if err != nil {
		return api.FileInfo{}, nil, err
	}
	s, err := l.fileOp(ctx, c, ref, agentinit.ReadFile(path), false, 0)
	if err != nil {
		return api.FileInfo{}, nil, err
	}
	return *info, &fileBody{s: s, path: path, r: agentinit.DecodeFile(s.io.stdout)}, nil
}

// WriteFile makes or replaces a file; it appears whole or not at all.
func (l *Launcher) WriteFile(ctx context.Context, c peer.Cred, ref, path string, opts server.WriteOptions, r io.Reader) error {
	var how []agentinit.WriteFlag
	for flag, on := range map[agentinit.WriteFlag]bool{
		agentinit.WriteParents: opts.Parents, agentinit.WriteExclusive: opts.Exclusive, agentinit.WriteKeepMode: opts.KeepMode,
	} {
		if on {
			how = append(how, flag)
		}
	}
	s, err := l.fileOp(ctx, c, ref, agentinit.WriteFile(path, os.FileMode(opts.Mode), how...), true, 0)
	if err != nil {
		return err
	}
	defer s.Close()
	// The answer is read beside the writing: a sandbox that refuses early
	// answers and reads no more.
	answer := make(chan error, 1)
	go func() { answer <- agentinit.DecodeEnd(s.io.stdout) }()
	w := agentinit.NewFileWriter(s.io.stdin)
	_, werr := io.Copy(w, r)
	if werr == nil {
		werr = w.Close()
	}
	_ = s.io.stdin.Close()
	if err := <-answer; err != nil {
		return s.fileError(path, err)
	}
	return werr
}

// ListDir gives a directory's entries.
func (l *Launcher) ListDir(ctx context.Context, c peer.Cred, ref, path string, limit int, emit func(api.FileInfo) error) (truncated bool, err error) {
	s, err := l.fileOp(ctx, c, ref, agentinit.ListDir(path, limit), false, 0)
	if err != nil {
		return false, err
	}
	defer s.Close()
	for e, err := range agentinit.DecodeDir(s.io.stdout, limit) {
		switch {
		case errors.Is(err, agentinit.ErrTruncated):
			return true, nil
		case err != nil:
			return false, s.fileError(path, err)
		}
		if err := emit(fileInfo(e)); err != nil {
			return false, err
		}
	}
	return false, nil
}

// StatFile describes a file; a symbolic link is described itself.
func (l *Launcher) StatFile(ctx context.Context, c peer.Cred, ref, path string) (*api.FileInfo, error) {
	s, err := l.fileOp(ctx, c, ref, agentinit.StatFile(path), false, fileTime)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	e, err := agentinit.DecodeStat(s.io.stdout)
	if err != nil {
		return nil, s.fileError(path, err)
	}
	info := fileInfo(e)
	return &info, nil
}

// Mkdir makes a directory.
func (l *Launcher) Mkdir(ctx context.Context, c peer.Cred, ref, path string, parents bool) error {
	return l.simple(ctx, c, ref, path, agentinit.MakeDir(path, 0o755, parents))
}

// RemoveFile removes a file or directory.
func (l *Launcher) RemoveFile(ctx context.Context, c peer.Cred, ref, path string, recursive bool) error {
	return l.simple(ctx, c, ref, path, agentinit.Remove(path, recursive))
}

// RenameFile renames a file or directory.
func (l *Launcher) RenameFile(ctx context.Context, c peer.Cred, ref, from, to string) error {
	return l.simple(ctx, c, ref, from, agentinit.Rename(from, to))
}

func fileInfo(e agentinit.Entry) api.FileInfo {
	kind := "other"
	switch e.Mode.Type() {
	case 0:
		kind = "file"
	case fs.ModeDir:
		kind = "dir"
	case fs.ModeSymlink:
		kind = "symlink"
	}
	return api.FileInfo{
		Name: e.Name, Size: e.Size, Mode: uint32(e.Mode.Perm()), Type: kind,
		UID: e.UID, GID: e.GID, ModTime: e.ModTime, Target: e.Target,
	}
}

// Bounds on comparisons: each reads the disk, and holds descriptors and an
// answer in memory.
const (
	maxDiffs   = 4 // at one time; more wait
	maxChanges = 10_000
	diffTime   = 10 * time.Second
)

// Diff is what a sandbox changed in its root and what was changed in its
// writable mounts, at most limit paths.
func (l *Launcher) Diff(ctx context.Context, c peer.Cred, ref string, limit int) (*api.Diff, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	over := api.Errorf(api.CodeConflict, "sandbox %s has ended, and what it wrote to its root is gone", sb.id).
		WithHint("ask while it runs")
	if state := sb.state(); state != api.StateRunning && state != api.StatePaused {
		return nil, over
	}
	sb.mu.Lock()
	rec := sb.rec
	sb.mu.Unlock()
	if limit <= 0 {
		limit = maxChanges
	}
	out := &api.Diff{Rootfs: rec.Sandbox.Rootfs, Changes: []api.Change{}}
	select {
	case l.diffs <- struct{}{}:
		defer func() { <-l.diffs }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	err = l.diffRoot(ctx, &rec, out, limit)
	if err == nil {
		err = l.diffMounts(ctx, &rec, out, limit)
	}
	if err != nil && ended(sb.state()) {
		return nil, over
	}
	return out, err
}

// diffRoot compares a writable root with its image.
func (l *Launcher) diffRoot(ctx context.Context, rec *store.Record, out *api.Diff, limit int) error {
	if rec.RootfsKind == "" {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, diffTime, api.Errorf(api.CodeUnavailable, "the comparison took more than %v", diffTime).
		WithHint("the disk is slow or the sandbox is writing much; try again"))
	defer cancel()
	lower, err := l.Runtime.Lower(ctx, rec.Sandbox.ID)
	if err != nil {
		return err
	}
	changes, complete, err := layerdiff.List(ctx, layerdiff.Options{
		Upper: l.layers.Upper(rec.Sandbox.ID), Lower: lower, HostID: rec.Sandbox.HostUID, Limit: limit,
	})
	if err != nil {
		return err
	}
	out.Truncated = !complete
	for _, c := range changes {
		out.Changes = append(out.Changes, changeOf(c))
	}
	return nil
}

// diffMounts lists what is new since go in the mounts that the sandbox can
// write, and names the places of which nothing is listed. What can be mounted is
// a file system of the host's own kernel, so looking waits for nobody.
func (l *Launcher) diffMounts(ctx context.Context, rec *store.Record, out *api.Diff, limit int) error {
	out.NotCompared = []string{}
	for _, m := range l.specOf(rec).Tmpfs {
		out.NotCompared = append(out.NotCompared, m.Target)
	}
	var trees []string
	for _, m := range rec.Mounts {
		switch {
		case m.ReadOnly:
		case rec.Go.IsZero(): // an older daemon launched it
			out.NotCompared = append(out.NotCompared, m.Target)
		default:
			trees, out.ByTime = append(trees, m.Staged), append(out.ByTime, m.Target)
		}
	}
	slices.Sort(out.NotCompared)
	// Half a list of a large tree is better than none.
	ctx, cancel := context.WithTimeout(ctx, diffTime)
	defer cancel()
	left := limit - len(out.Changes)
	changes, complete, err := recent.List(ctx, recent.Options{Trees: trees, Since: rec.Go, Limit: max(left, 1)})
	if err != nil {
		return err
	}
	if len(changes) > left {
		changes, complete = changes[:left], false
	}
	out.Truncated = out.Truncated || !complete
	for _, c := range changes {
		target := out.ByTime[c.Tree]
		ch := changeOf(layerdiff.Change{Kind: c.Kind, Path: target + c.Path, Mode: c.Mode, Size: c.Size})
		ch.Mount = target
		out.Changes = append(out.Changes, ch)
	}
	return nil
}

func changeOf(c layerdiff.Change) api.Change {
	out := api.Change{Kind: c.Kind, Path: c.Path}
	if c.Kind == layerdiff.Deleted {
		return out
	}
	out.Mode, out.Size = c.Mode&0o777, c.Size
	switch c.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		out.Type = "file"
	case unix.S_IFDIR:
		out.Type = "dir"
	case unix.S_IFLNK:
		out.Type = "symlink"
	default:
		out.Type = "other"
	}
	return out
}

// commitTime is how long a sandbox may be held still for an image of it.
const commitTime = 10 * time.Minute

// WriteLayer writes what a sandbox's root has more than its image as an image
// layer, while the sandbox is held still, and says what the image is. Only who
// made the sandbox may: root's images are everybody's, and what is in a layer
// is its caller's.
func (l *Launcher) WriteLayer(ctx context.Context, c peer.Cred, ref string, w io.Writer, lim layertar.Options) (base string, err error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return "", err
	}
	r := sb.identity().Sandbox
	if c.UID != r.Caller.UID {
		return "", api.Errorf(api.CodeDenied, "sandbox %s is another user's, and an image of it would be yours", sb.id).
			WithHint("run creel commit as that user")
	}
	if r.Rootfs != "ephemeral" {
		return "", api.Errorf(api.CodeConflict, "the root of sandbox %s is read-only: it has nothing that its image has not", sb.id).
			WithHint("start it with --rootfs ephemeral, or --profile build")
	}
	sb.client(1) // not idle meanwhile
	defer sb.client(-1)
	ctx, cancel := context.WithTimeoutCause(ctx, commitTime, api.Errorf(api.CodeTooLarge, "reading the layer took more than %v", commitTime))
	defer cancel()
	thaw, err := sb.hush(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, thaw()) }()
	if err := failpoint.Hit("commit.still"); err != nil {
		return "", err
	}
	lim.Upper, lim.HostID, lim.IDs = l.layers.Upper(sb.id), r.HostUID, spec.RangeSize
	// A file of holes has any size: what the layer may hold is all that an
	// image of it may.
	lim.Bytes = min(lim.Bytes, int64(r.Limits.Disk))
	_, err = layertar.Write(ctx, w, lim)
	if err == nil && sb.over() {
		err = errors.New("it has ended meanwhile") // and may have been let run for that
	}
	switch {
	case errors.Is(err, layertar.ErrTooLarge):
		err = api.Errorf(api.CodeTooLarge, "%w", err)
	case errors.Is(err, layertar.ErrRefused):
		err = api.Errorf(api.CodeInvalid, "%w", err)
	case err != nil && sb.over(), errors.Is(err, layertar.ErrChanged):
		err = api.Errorf(api.CodeConflict, "sandbox %s: %w", sb.id, err)
	}
	return r.ImageDigest, err
}

// hush keeps a sandbox's agent from running, and everybody from changing that,
// until thaw. Killed in between, the next daemon has it as its record says.
func (sb *sandbox) hush(ctx context.Context) (thaw func() error, err error) {
	for !sb.still.TryLock() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	defer func() {
		if err != nil {
			sb.still.Unlock()
		}
	}()
	switch state := sb.state(); {
	case state == api.StatePaused:
		return func() error { sb.still.Unlock(); return nil }, nil
	case state != api.StateRunning:
		return nil, api.Errorf(api.CodeConflict, "sandbox %s is %s, and what it wrote to its root is gone", sb.id, state).
			WithHint("commit it while it runs or is paused")
	}
	if err := sb.cg.Freeze(ctx); err != nil {
		return nil, err
	}
	return func() error {
		defer sb.still.Unlock()
		if sb.over() {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		return sb.cg.Thaw(ctx)
	}, nil
}
