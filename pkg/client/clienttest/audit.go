package clienttest

import (
	"context"
	"errors"
	"fmt"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/server"
)

// auditing opens the fake box's audit log, with two records of a test's, once.
func (d *Daemon) auditing() (*audit.Log, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.log != nil {
		return d.log, nil
	}
	l, err := audit.Open(audit.Options{Dir: d.Socket + ".audit", Key: testKey, Public: testKey.Public()})
	if err != nil {
		return nil, err
	}
	d.log = l
	exit := 3
	who := &audit.Who{UID: 1000, PID: 7, Exe: "/usr/bin/node", LoginUID: 1000}
	return l, errors.Join(
		l.Commit(context.Background(), audit.Entry{Kind: audit.Intent, Action: "exec.start", Op: "r1", Who: who, Agent: "coder", Sandbox: "box", Command: []string{"printf", "\x1b[2Jx"}}),
		l.Commit(context.Background(), audit.Entry{Kind: audit.Fact, Action: "exec.ended", Sandbox: "box", Result: &audit.Result{Code: "ok", Exit: &exit}}),
	)
}

// AuditLog gives all lines, or those of a kind.
func (d *Daemon) AuditLog(ctx context.Context, _ server.Caller, o server.AuditOptions, emit func(line []byte) error) error {
	l, err := d.auditing()
	if err != nil {
		return err
	}
	return l.Read(ctx, audit.Range{Since: o.Since, Until: o.Until}, func(line []byte) error {
		r, err := audit.Parse(line)
		if err != nil {
			return err
		}
		if !o.All && (r.Kind == audit.Head || o.Kind != "" && o.Kind != string(r.Kind)) {
			return nil
		}
		return emit(line)
	})
}

// AuditHead is the log's.
func (d *Daemon) AuditHead(context.Context, server.Caller) (*api.AuditHead, error) {
	l, err := d.auditing()
	if err != nil {
		return nil, err
	}
	r, err := audit.Parse(l.HeadLine())
	if err != nil {
		return nil, fmt.Errorf("head: %w", err)
	}
	return &api.AuditHead{Seq: r.Seq, Line: string(l.HeadLine())}, nil
}
