package launcher

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
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
func (l *Launcher) WriteFile(ctx context.Context, c peer.Cred, ref, path string, mode uint32, r io.Reader) error {
	s, err := l.fileOp(ctx, c, ref, agentinit.WriteFile(path, os.FileMode(mode)), true, 0)
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
