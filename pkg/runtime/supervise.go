package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config describes a private containerd.
type Config struct {
	// Bin holds containerd, containerd-shim-runc-v2, crun and runc.
	// Required, absolute.
	Bin string
	// Root is for what survives a reboot: images and snapshots. Required,
	// absolute, made 0700. Its file system must allow id-mapped mounts.
	Root string
	// State is for what does not: sockets, bundles, mounts. Required,
	// absolute, at most 40 bytes long, made 0711: others must be able to
	// walk through it and its parents (runc does as the sandbox's root).
	State string
	// Log is the file containerd's and the shims' messages are added to.
	// Root/containerd.log when empty.
	Log string
	// NoSync leaves out the fsync of containerd's metadata. A power cut can
	// then lose the images; a kill -9 cannot.
	NoSync bool
	// ShimEnv is added to the shims' environment. Usually nothing: GOGC was
	// tried and changes neither an idle shim's memory nor a launch's time.
	ShimEnv []string
	// Logger gets the supervision's own messages. slog.Default when nil.
	Logger *slog.Logger
}

// Address is containerd's socket.
func (c Config) Address() string { return filepath.Join(c.State, "containerd.sock") }

func (c Config) configFile() string { return filepath.Join(c.State, "containerd.toml") }

const (
	startTimeout   = time.Minute      // until containerd answers
	stopTimeout    = 10 * time.Second // between SIGTERM and SIGKILL
	healthEvery    = 15 * time.Second
	healthTimeout  = 10 * time.Second
	healthFailures = 3 // in a row: containerd hangs
	maxLog         = 16 << 20
	minBackoff     = 100 * time.Millisecond
	maxBackoff     = 10 * time.Second
)

// Supervised is a private containerd that is started again when it dies.
type Supervised struct {
	cfg    Config
	log    *slog.Logger
	client *Client

	cancel context.CancelFunc
	done   chan struct{}
	lock   *os.File

	mu   sync.Mutex
	proc *process
}

// Start makes sure that the private containerd of cfg runs, and keeps it
// running until Close or Stop. A containerd that an earlier daemon left is
// adopted if it answers and has the same binary and configuration; otherwise
// it is replaced. Shims, and with them sandboxes, survive either.
//
// A second Start for the same State fails while the first supervises.
func Start(ctx context.Context, cfg Config) (_ *Supervised, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Log == "" {
		cfg.Log = filepath.Join(cfg.Root, "containerd.log")
	}
	if err := cfg.prepare(); err != nil {
		return nil, fmt.Errorf("private containerd: %w", err)
	}
	lock, err := lockState(cfg.State)
	if err != nil {
		return nil, fmt.Errorf("private containerd: %w", err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	client, err := Connect(Options{Address: cfg.Address(), Bin: cfg.Bin, State: cfg.State})
	if err != nil {
		return nil, err
	}
	s := &Supervised{cfg: cfg, log: cfg.Logger, client: client, done: make(chan struct{}), lock: lock}
	p, err := s.adopt(ctx)
	if err == nil && p == nil {
		p, err = s.spawn(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("private containerd: %w", err), client.Close())
	}
	s.proc = p
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go s.watch(ctx, p)
	return s, nil
}

// Client talks to this containerd, also after it was started again.
func (s *Supervised) Client() *Client { return s.client }

// Pid is the running containerd's pid, 0 while there is none.
func (s *Supervised) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.pid
}

// Close ends the supervision and leaves containerd running, so that the next
// daemon adopts it.
func (s *Supervised) Close() error {
	s.cancel()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		s.proc.close()
		s.proc = nil
	}
	return errors.Join(s.client.Close(), s.lock.Close())
}

// Stop ends the supervision and containerd. Running sandboxes stay, with
// their shims; delete them first when nothing is to be left.
func (s *Supervised) Stop(ctx context.Context) error {
	s.cancel()
	<-s.done
	s.mu.Lock()
	p := s.proc
	s.mu.Unlock()
	if p != nil {
		if err := p.stop(ctx); err != nil {
			return err
		}
	}
	for _, f := range []string{s.cfg.Address(), s.cfg.Address() + ".ttrpc"} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return s.Close()
}

// prepare makes the directories and the configuration file.
func (c Config) prepare() error {
	for _, d := range []string{c.Bin, c.Root, c.State} {
		if !filepath.IsAbs(d) || filepath.Clean(d) != d {
			return fmt.Errorf("%q is not a clean absolute path", d)
		}
	}
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{c.Root, 0o700},
		// runc, already root of the sandbox's user namespace and nobody
		// outside it, walks through State to the root file system.
		{c.State, 0o711},
		{filepath.Join(c.State, "tmp"), 0o700},
		{filepath.Join(c.State, "s"), 0o700},
		{filepath.Join(c.State, "oci"), 0o700},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
	}
	return nil
}

// lockState takes the lock that says who supervises.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "supervisor.lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: another daemon supervises this containerd: %w", f.Name(), err)
	}
	return f, nil
}

// adopt takes over what an earlier daemon left; nil when a new containerd has
// to be started. Any that is not usable has been ended.
func (s *Supervised) adopt(ctx context.Context) (*process, error) {
	want, err := containerdConfig(s.cfg)
	if err != nil {
		return nil, err
	}
	old, err := os.ReadFile(s.cfg.configFile())
	same := err == nil && string(old) == want
	if !same {
		if err := replaceFile(s.cfg.configFile(), want); err != nil {
			return nil, err
		}
	}
	found, err := findContainerd(s.cfg)
	if err != nil {
		return nil, err
	}
	var keep *process
	for _, p := range found {
		if keep == nil && same && p.current && s.healthy(ctx) {
			keep = p
			continue
		}
		if err := p.stop(ctx); err != nil {
			return nil, err
		}
		p.close()
	}
	if keep != nil {
		s.log.LogAttrs(ctx, slog.LevelInfo, "containerd adopted", slog.Int("pid", keep.pid))
	}
	return keep, nil
}

// spawn starts containerd and waits until it answers.
func (s *Supervised) spawn(ctx context.Context) (*process, error) {
	logf, err := openLog(s.cfg.Log)
	if err != nil {
		return nil, err
	}
	defer logf.Close()
	pidfd := -1
	// Not CommandContext: it must outlive every context of this daemon.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(s.cfg.Bin, "containerd"), "--config", s.cfg.configFile())
	cmd.Dir = "/"
	cmd.Env = s.cfg.env()
	cmd.Stdout, cmd.Stderr = logf, logf
	// A session of its own: the terminal's signals are for the daemon.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, pidfd: pidfd, current: true, child: cmd}
	if pidfd < 0 {
		return nil, errors.Join(errors.New("no pidfd; Linux 5.4 or later is needed"), cmd.Process.Kill(), cmd.Wait())
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for !s.healthy(ctx) {
		if p.ended(20 * time.Millisecond) {
			p.close()
			return nil, fmt.Errorf("containerd ended while starting; its last words in %s: %s", s.cfg.Log, lastLine(s.cfg.Log))
		}
		if ctx.Err() != nil {
			err := fmt.Errorf("containerd does not answer after %s; see %s: %w", startTimeout, s.cfg.Log, ctx.Err())
			return nil, errors.Join(err, p.stop(context.WithoutCancel(ctx)))
		}
	}
	// containerd makes them 0660 root:root.
	for _, f := range []string{s.cfg.Address(), s.cfg.Address() + ".ttrpc"} {
		if err := os.Chmod(f, 0o600); err != nil {
			return nil, errors.Join(err, p.stop(context.WithoutCancel(ctx)))
		}
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "containerd started", slog.Int("pid", p.pid))
	return p, nil
}

// env is all of containerd's environment, and most of the shims'.
func (c Config) env() []string {
	return []string{
		"PATH=" + c.Bin, // the shim; crun and runc are named by full path
		"TMPDIR=" + filepath.Join(c.State, "tmp"), // where shims id-map lower layers for a moment
		"LC_ALL=C",
		"CONTAINERD_DISABLE_PIGZ=1", // unpack in process, not by a program found on the path
		"CONTAINERD_DISABLE_IGZIP=1",
		"GOGC=50",
	}
}

// healthy asks for the version once, for at most healthTimeout.
func (s *Supervised) healthy(ctx context.Context) bool {
	// A cheap look first: gRPC would wait out its back-off.
	if _, err := os.Stat(s.cfg.Address()); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	_, err := s.client.Version(ctx)
	return err == nil
}

// watch starts containerd again whenever it ends or hangs.
func (s *Supervised) watch(ctx context.Context, p *process) {
	defer close(s.done)
	for {
		why := s.untilBad(ctx, p)
		if ctx.Err() != nil {
			return
		}
		s.log.LogAttrs(ctx, slog.LevelError, "containerd lost", slog.Int("pid", p.pid), slog.String("why", why))
		s.set(nil)
		if err := p.stop(ctx); err != nil {
			s.log.LogAttrs(ctx, slog.LevelError, "containerd cannot be ended", slog.Int("pid", p.pid), slog.Any("error", err))
		}
		p.close()
		if p = s.again(ctx); p == nil {
			return
		}
		s.set(p)
	}
}

// again starts containerd, with pauses between attempts, until ctx ends.
func (s *Supervised) again(ctx context.Context) *process {
	for wait := minBackoff; ; wait = min(wait*2, maxBackoff) {
		p, err := s.spawn(ctx)
		if err == nil {
			return p
		}
		s.log.LogAttrs(ctx, slog.LevelError, "containerd does not start", slog.Any("error", err), slog.Duration("retry_in", wait))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (s *Supervised) set(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc = p
}

// untilBad waits for the end of p, or of its answers, and says which.
func (s *Supervised) untilBad(ctx context.Context, p *process) string {
	failures := 0
	next := time.Now().Add(healthEvery)
	for {
		ended, err := p.wait(ctx, time.Until(next))
		switch {
		case ctx.Err() != nil:
			return ""
		case err != nil:
			return err.Error()
		case ended:
			return "ended"
		}
		next = time.Now().Add(healthEvery)
		if s.healthy(ctx) {
			failures = 0
			continue
		}
		if failures++; failures == healthFailures {
			return "does not answer"
		}
	}
}

// findContainerd lists the running containerds of this configuration. The
// process table is asked, not a pid file: after a kill -9 a file may be
// missing or name a stranger.
func findContainerd(c Config) ([]*process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []*process
	for _, d := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil || !isOurs(cmdline, c) {
			continue
		}
		p, err := openProcess(d)
		if err != nil || p == nil {
			continue // ended meanwhile
		}
		// The pidfd holds the process; what it is is asked again.
		if cmdline, err = os.ReadFile(filepath.Join(d, "cmdline")); err != nil || !isOurs(cmdline, c) {
			p.close()
			continue
		}
		p.current = sameFile(filepath.Join(d, "exe"), filepath.Join(c.Bin, "containerd"))
		out = append(out, p)
	}
	return out, nil
}

// isOurs reports whether a command line is that of our containerd.
func isOurs(cmdline []byte, c Config) bool {
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	return len(args) == 3 && filepath.Base(args[0]) == "containerd" && slices.Equal(args[1:], []string{"--config", c.configFile()})
}
