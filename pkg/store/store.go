// Package store keeps what creeld knows in one bbolt file, so that a daemon
// that was killed finds every sandbox again.
//
// The layout, schema version 1:
//
//	meta
//	└── "schema"                → uint64, big endian
//	sandboxes
//	└── <id>                    → JSON Record
//	names
//	└── <uid, 4 bytes><name>    → id; a name is unique among a caller's sandboxes
//	evidence
//	└── <id>
//	    └── <n, 8 bytes>        → JSON api.Evidence; the first and the newest 15
//	execs
//	└── <id>
//	    └── <n, 8 bytes>        → JSON api.Exec; the newest 256
//	volumes
//	└── <uid, 4 bytes><name>    → JSON Volume; a name is unique among a caller's volumes
//	agents
//	└── <uid, 4 bytes><name>    → JSON api.Agent; at most 1,024 of a caller (package agents)
//	events
//	└── <seq, 8 bytes>          → JSON api.Event; the newest 10,000
//
// Every method is one transaction and, if it writes, one commit that has
// reached the disk when it returns. [Store.Update] makes one commit of several
// steps. Readers never wait for writers.
package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Schema is the version of the layout that this package reads and writes.
const Schema uint64 = 1

// The bounds that keep the file from growing without end.
const (
	MaxEvents   = 10_000
	MaxExecs    = 256 // per sandbox
	MaxEvidence = 16  // per sandbox
)

var (
	bucketMeta      = []byte("meta")
	bucketSandboxes = []byte("sandboxes")
	bucketNames     = []byte("names")
	bucketEvidence  = []byte("evidence")
	bucketExecs     = []byte("execs")
	bucketVolumes   = []byte("volumes")
	bucketAgents    = []byte("agents")
	bucketEvents    = []byte("events")
	keySchema       = []byte("schema")
)

// The classes of a file that cannot be opened.
var (
	ErrCorrupt = errors.New("the state file is damaged")
	ErrNewer   = errors.New("the state file was written by a newer creel")
	ErrInUse   = errors.New("another creeld has the state file open")
)

// Store is an open state file. It is safe for concurrent use.
type Store struct {
	db *bolt.DB
}

// Open opens or makes the file. It refuses one that another process has open
// ([ErrInUse]), that a newer creel wrote ([ErrNewer]) or that is damaged
// ([ErrCorrupt]): going on without the state would lose running sandboxes.
func Open(path string) (*Store, error) {
	if err := examine(path); err != nil {
		return nil, err
	}
	db, err := openBolt(path, options())
	if err != nil {
		return nil, err
	}
	s := &Store{db: db}
	if err := db.Update(initialize); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("state file %s: %w", path, err)
	}
	return s, nil
}

// options are chosen so:
//   - the free list is written with each commit (it is one page here), not
//     rebuilt at open: rebuilding scans the file in a goroutine of bbolt's
//     that panics, beyond recovery, if the file is damaged;
//   - it is kept as a map, which stays fast when the ring of events leaves
//     many gaps;
//   - the file is mapped larger than it will get, since growing the map makes
//     readers wait.
func options() *bolt.Options {
	return &bolt.Options{
		Timeout:         time.Second,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: 64 << 20,
		NoStatistics:    true,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			return os.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		},
	}
}

func openBolt(path string, o *bolt.Options) (*bolt.DB, error) {
	db, err := bolt.Open(path, 0o600, o)
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("state file %s: %w; stop it first", path, ErrInUse)
	case errors.Is(err, os.ErrNotExist):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("state file %s: %w", path, damaged(err))
	}
	return db, nil
}

func damaged(err error) error {
	if _, ok := errors.AsType[*os.PathError](err); ok {
		return err // permissions and the like: the file itself may be whole
	}
	return fmt.Errorf("%w: %w; restore it from a backup; moved away, creeld starts without records and removes every sandbox that still runs", ErrCorrupt, err)
}

// examine checks every page of an existing file before anything trusts one.
func examine(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && fi.Size() == 0 {
		return nil // bbolt makes it
	}
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("state file %s: not a regular file; move it away", path)
	}
	o := options()
	o.ReadOnly = true
	o.InitialMmapSize = 0
	db, err := openBolt(path, o)
	if err != nil {
		return err
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		// A page beyond the end of a cut file would be a fault, not an error.
		if fi.Size() < tx.Size() {
			return damaged(fmt.Errorf("it has %d of %d bytes", fi.Size(), tx.Size()))
		}
		var errs []error
		for err := range tx.Check() {
			if len(errs) < 5 {
				errs = append(errs, err)
			}
		}
		if len(errs) > 0 {
			return damaged(errors.Join(errs...))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("state file %s: %w", path, err)
	}
	return nil
}

func initialize(tx *bolt.Tx) error {
	meta, err := tx.CreateBucketIfNotExists(bucketMeta)
	if err != nil {
		return err
	}
	if v := meta.Get(keySchema); v == nil {
		if err := meta.Put(keySchema, number(Schema)); err != nil {
			return err
		}
	} else if len(v) != 8 {
		return damaged(errors.New("its schema version is unreadable"))
	} else if got := binary.BigEndian.Uint64(v); got > Schema {
		return fmt.Errorf("%w (schema %d, this creel knows %d); upgrade creel", ErrNewer, got, Schema)
	}
	for _, b := range [][]byte{bucketSandboxes, bucketNames, bucketEvidence, bucketExecs, bucketVolumes, bucketAgents, bucketEvents} {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	return nil
}

// Close waits for running transactions and closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Tx is a transaction. It is valid only within the function it was given to.
type Tx struct {
	tx *bolt.Tx
}

// Update runs fn in a transaction that writes. All of it is on disk when
// Update returns nil, none of it otherwise. One runs at a time.
func (s *Store) Update(fn func(*Tx) error) error {
	return s.db.Update(func(tx *bolt.Tx) error { return fn(&Tx{tx}) })
}

// View runs fn in a transaction that only reads, on the state as it is now.
func (s *Store) View(fn func(*Tx) error) error {
	return s.db.View(func(tx *bolt.Tx) error { return fn(&Tx{tx}) })
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func notFound(id string) error {
	return api.Errorf(api.CodeNotFound, "no sandbox %q", id).WithHint("\"creel ps -a\" lists them")
}
