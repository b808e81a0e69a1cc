package audit_test

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/creel-sandbox/creel/pkg/audit"
)

// disk makes files that fail as a disk does.
type disk struct {
	gate           chan struct{} // where not nil, each sync takes one
	syncs, waiting atomic.Int64

	mu sync.Mutex
	// Each where not nil is what the next calls answer.
	writeErr, syncErr, allocErr error
	// lossy has a failed sync lose what was written since the last good
	// one, as a page cache does that marks pages clean after an error.
	lossy bool
	// memory has no sync reach the disk: for tests of what is in the files.
	memory bool
	// shortWrite has a write take that many bytes and then fail.
	shortWrite int
}

func (d *disk) set(fn func(*disk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn(d)
}

func (d *disk) open(path string, fresh bool) (audit.File, error) {
	f, err := audit.OpenFile(path, fresh)
	if err != nil {
		return nil, err
	}
	return &badFile{File: f, d: d}, nil
}

type badFile struct {
	audit.File
	d *disk

	unsynced []struct {
		off int64
		n   int
	}
}

func (f *badFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.writeErr != nil {
		n, _ := f.File.WriteAt(p[:min(f.d.shortWrite, len(p))], off)
		return n, f.d.writeErr
	}
	f.unsynced = append(f.unsynced, struct {
		off int64
		n   int
	}{off, len(p)})
	return f.File.WriteAt(p, off)
}

func (f *badFile) Sync() error {
	if f.d.gate != nil {
		f.d.waiting.Add(1)
		<-f.d.gate
		f.d.waiting.Add(-1)
	}
	f.d.syncs.Add(1)
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.memory {
		return nil
	}
	if f.d.syncErr == nil {
		f.unsynced = nil
		return f.File.Sync()
	}
	if f.d.lossy {
		// The whole page goes, with acknowledged bytes in it.
		for _, w := range f.unsynced {
			start := w.off &^ 4095
			_, err := f.File.WriteAt(make([]byte, w.off+int64(w.n)-start), start)
			if err != nil {
				return errors.Join(f.d.syncErr, err)
			}
		}
	}
	f.unsynced = nil // the kernel tells of it once
	return f.d.syncErr
}

func (f *badFile) Allocate(off, n int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.allocErr != nil {
		return f.d.allocErr
	}
	return f.File.Allocate(off, n)
}
