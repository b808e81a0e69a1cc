package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/boxkey"
)

// auditRecords is how long the log is that is verified.
const auditRecords = 20_000

// auditEntry is a spawn's intent as creeld records it.
func auditEntry() audit.Entry {
	return audit.Entry{
		Kind: audit.Intent, Action: "sandbox.spawn", Op: "abcdefghijklmnop", Agent: "bench", Sandbox: "abcdefghijklmnopqrstuvwxyz", Object: imageName,
		Who:     &audit.Who{UID: 1000, GID: 1000, Groups: []uint32{4, 24, 27, 30, 46, 100}, PID: 4242, Exe: "/usr/bin/node", LoginUID: 1000},
		Command: []string{"/bin/sleep", "86400"},
		Asked:   map[string]string{"image": imageName, "agent": "bench", "runtime": "crun"},
		Decided: map[string]string{"profile": "default", "rule": "profile default of embedded", "runtime": "crun", "network": "none", "rootfs": "readonly", "limits": `{"memory":536870912,"cpus":2,"pids":256}`},
	}
}

// auditStage measures the log alone, on the disk that creeld's state is on.
func (b *bench) auditStage(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.state, "bench-audit-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	key := boxkey.New([32]byte{1})
	l, err := audit.Open(audit.Options{Dir: filepath.Join(dir, "log"), Key: key, Public: key.Public(), MaxFile: 1 << 30})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := b.auditCommit(ctx, l, dir); err != nil {
		return err
	}
	return b.auditVerify(ctx, l, filepath.Join(dir, "log"), key)
}

// auditCommit is one record and its head, committed; the baseline appends the
// same number of bytes to a file and calls fdatasync(2).
func (b *bench) auditCommit(ctx context.Context, l *audit.Log, dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "bare"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	path := filepath.Join(dir, "log", "audit-00000000000000000001.jsonl")
	before, err := os.Stat(path)
	if err != nil {
		return err
	}
	size := before.Size()
	var samples, bare []float64
	for range b.n + warm {
		start := time.Now()
		if err := l.Commit(ctx, auditEntry()); err != nil {
			return err
		}
		samples = append(samples, ms(time.Since(start)))
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		buf := make([]byte, st.Size()-size)
		size = st.Size()
		start = time.Now()
		if _, err := f.Write(buf); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
		bare = append(bare, ms(time.Since(start)))
	}
	b.report.add("audit_commit", "ms", samples[warm:], "write + fdatasync", bare[warm:], target{})
	return nil
}

// auditVerify is a log of auditRecords records, verified; the baseline is
// SHA-256 of the same bytes.
func (b *bench) auditVerify(ctx context.Context, l *audit.Log, dir string, key *boxkey.Key) error {
	for i := range auditRecords {
		if i%400 != 0 { // as with many writers at a time
			l.Later(auditEntry())
			continue
		}
		if err := l.Commit(ctx, auditEntry()); err != nil {
			return err
		}
	}
	if err := l.Ready(ctx); err != nil {
		return err
	}
	var samples, bare []float64
	for range b.n + warm {
		sources, done, err := audit.OpenSources(dir)
		if err != nil {
			return err
		}
		start := time.Now()
		r, err := audit.Verify(sources, []audit.Public{key.Public()}, l.HeadLine())
		samples = append(samples, ms(time.Since(start)))
		if err == nil && !r.OK {
			err = fmt.Errorf("the log does not verify: %v", r.Findings)
		}
		if err != nil {
			done()
			return err
		}
		text := make([]byte, sources[0].Size)
		_, err = sources[0].ReadAt(text, 0)
		done()
		if err != nil {
			return err
		}
		start = time.Now()
		sum := sha256.Sum256(text)
		bare = append(bare, ms(time.Since(start)))
		if sum == [32]byte{} {
			return errors.New("no sum")
		}
	}
	b.report.add("audit_verify", "ms", samples[warm:], "SHA-256 of the same bytes", bare[warm:], target{})
	return nil
}
