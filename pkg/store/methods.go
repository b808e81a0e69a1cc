package store

import (
	"time"

	"github.com/creel-sandbox/creel/pkg/api"

	bolt "go.etcd.io/bbolt"
)

// PutSandbox is [Tx.PutSandbox] in a commit of its own.
func (s *Store) PutSandbox(r Record) error {
	return s.Update(func(t *Tx) error { return t.PutSandbox(r) })
}

// ModifySandbox reads a record, has fn change it and writes it back, in one
// commit. Nothing is written if fn fails.
func (s *Store) ModifySandbox(id string, fn func(*Record) error) (r Record, err error) {
	err = s.Update(func(t *Tx) error {
		if r, err = t.Sandbox(id); err != nil {
			return err
		}
		if err := fn(&r); err != nil {
			return err
		}
		return t.PutSandbox(r)
	})
	return r, err
}

// Sandbox is [Tx.Sandbox].
func (s *Store) Sandbox(id string) (r Record, err error) {
	err = s.View(func(t *Tx) error { r, err = t.Sandbox(id); return err })
	return r, err
}

// Sandboxes is [Tx.Sandboxes]. fn must not call the store.
func (s *Store) Sandboxes(fn func(Record) error) error {
	return s.View(func(t *Tx) error { return t.Sandboxes(fn) })
}

// ByName is [Tx.ByName].
func (s *Store) ByName(uid uint32, name string) (id string, err error) {
	err = s.View(func(t *Tx) error { id, err = t.ByName(uid, name); return err })
	return id, err
}

// DeleteSandbox is [Tx.DeleteSandbox] in a commit of its own.
func (s *Store) DeleteSandbox(id string) error {
	return s.Update(func(t *Tx) error { return t.DeleteSandbox(id) })
}

// AddEvidence is [Tx.AddEvidence] in a commit of its own.
func (s *Store) AddEvidence(e api.Evidence) error {
	return s.Update(func(t *Tx) error { return t.AddEvidence(e) })
}

// Evidence is [Tx.Evidence].
func (s *Store) Evidence(id string) (es []api.Evidence, err error) {
	err = s.View(func(t *Tx) error { es, err = t.Evidence(id); return err })
	return es, err
}

// PutExec is [Tx.PutExec] in a commit that it shares with others of the next
// 10 ms: no client waits for it, and many execs must not wait for the disk in
// turn.
func (s *Store) PutExec(id string, n uint64, e api.Exec) (key uint64, err error) {
	err = s.db.Batch(func(tx *bolt.Tx) (err error) {
		key, err = (&Tx{tx}).PutExec(id, n, e) // the last of its tries counts
		return err
	})
	return key, err
}

// Execs is [Tx.Execs].
func (s *Store) Execs(id string) (es []api.Exec, err error) {
	err = s.View(func(t *Tx) error { es, err = t.Execs(id); return err })
	return es, err
}

// LoseExecs is [Tx.LoseExecs] for every sandbox with a record, in one commit.
func (s *Store) LoseExecs(at time.Time) error {
	return s.Update(func(t *Tx) error {
		return t.Sandboxes(func(r Record) error { return t.LoseExecs(r.Sandbox.ID, at) })
	})
}

// Kept is [Tx.Kept] of several sandboxes, at one moment.
func (s *Store) Kept(ids []string) (map[string]Kept, error) {
	out := make(map[string]Kept, len(ids))
	err := s.View(func(t *Tx) error {
		for _, id := range ids {
			k, err := t.Kept(id)
			if err != nil {
				return err
			}
			out[id] = k
		}
		return nil
	})
	return out, err
}

// AppendEvents is [Tx.AppendEvents] in a commit of its own.
func (s *Store) AppendEvents(events []api.Event) error {
	return s.Update(func(t *Tx) error { return t.AppendEvents(events) })
}

// Events is [Tx.Events].
func (s *Store) Events(after uint64, limit int) (es []api.Event, err error) {
	err = s.View(func(t *Tx) error { es, err = t.Events(after, limit); return err })
	return es, err
}

// LastEvent is [Tx.LastEvent].
func (s *Store) LastEvent() (seq uint64, err error) {
	err = s.View(func(t *Tx) error { seq = t.LastEvent(); return nil })
	return seq, err
}
