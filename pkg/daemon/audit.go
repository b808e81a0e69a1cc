package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/auditlog"
	"github.com/creel-sandbox/creel/pkg/config"
)

// audit opens the audit log, and records that the daemon starts and with what
// policy. A log that cannot be written is no reason not to start: what runs can
// then be stopped, and nothing new is begun.
func (d *daemon) audit(ctx context.Context) error {
	c := d.cfg.Audit
	dir := c.Dir
	if dir == "" {
		dir = filepath.Join(d.cfg.StateDir, "audit")
	}
	heads := newHeads(d.log)
	d.onClose(heads.close)
	l, err := audit.Open(audit.Options{
		Dir: dir, Key: d.key, Public: d.key.Public(), MaxFile: int64(c.FileSize), Keep: c.Keep, OnHead: heads.put,
		OnDown: func(err error) {
			if err != nil {
				d.log.ErrorContext(ctx, "the audit log is down: no new work is taken", slog.Any("error", err))
				return
			}
			d.log.InfoContext(ctx, "the audit log is up")
		},
	})
	if err != nil {
		return err
	}
	d.onClose(l.Close)
	d.records = auditlog.New(l, c.Commands, d.callers.Name, d.log)
	d.records.Hide(d.secrets.Hide)
	detail := map[string]string{"creel": api.BuildVersion, "key": d.key.ID(), "containerd": d.versions.Containerd, "crun": d.versions.Crun, "runc": d.versions.Runc, "kernel": d.versions.Kernel}
	d.records.Fact("daemon.start", detail)
	policy, err := d.policyDigests(d.cfg)
	if err != nil {
		return err
	}
	d.records.Fact("policy.load", policy)
	return ctx.Err()
}

// policyDigests names what decides: a configuration, and each profile with its
// filter.
func (d *daemon) policyDigests(cfg *config.Config) (map[string]string, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	out := map[string]string{"config": fmt.Sprintf("sha256:%x", sha256.Sum256(text))}
	for _, name := range d.policy.Profiles.Names() {
		p := d.policy.Profiles[name]
		out["profile "+name] = fmt.Sprintf("sha256:%x, seccomp %s %s, of %s", sha256.Sum256([]byte(p.Text)), p.Seccomp, d.filters[p.Seccomp].Digest(), p.Source)
	}
	return out, nil
}

// follow records what happens by itself, from where the last daemon stopped.
func (d *daemon) follow(ctx context.Context) error {
	last, err := d.store.LastEvent()
	if err != nil {
		return err
	}
	after, err := d.records.LastEvent(ctx, last)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	// It ends with the bus, and not before: what happens while the daemon
	// stops is recorded too.
	wg.Go(func() { d.records.Follow(context.WithoutCancel(ctx), d.bus, after) })
	d.onClose(func() error { wg.Wait(); return nil })
	return nil
}

// heads sends each signed head to the journal, where who can write the log's
// files does not reach by the same way. Without a journal they go to the log.
// A journal that is slow misses some: each head is of all before it.
type heads struct {
	lines chan []byte
	done  chan struct{}
}

func newHeads(log *slog.Logger) *heads {
	h := &heads{lines: make(chan []byte, 64), done: make(chan struct{})}
	go func() {
		defer close(h.done)
		for line := range h.lines {
			if journal.Enabled() {
				err := journal.Send("audit head "+string(line), journal.PriInfo, map[string]string{"SYSLOG_IDENTIFIER": "creeld", "CREEL_AUDIT_HEAD": string(line)})
				if err == nil {
					continue
				}
			}
			log.Info("audit head", slog.String("line", string(line)))
		}
	}()
	return h
}

// put does not wait.
func (h *heads) put(line []byte) {
	select {
	case h.lines <- slices.Clone(line):
	default:
	}
}

func (h *heads) close() error {
	close(h.lines)
	<-h.done
	return nil
}
