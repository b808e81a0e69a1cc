package store_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/store"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

func open(tb testing.TB, path string) *store.Store {
	tb.Helper()
	s, err := store.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func temp(tb testing.TB) (*store.Store, string) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "state.db")
	return open(tb, path), path
}

func record(id, name string, uid uint32) store.Record {
	return store.Record{Sandbox: api.Sandbox{ID: id, Name: name, Caller: api.Caller{UID: uid}}}
}

func TestRoundTrip(t *testing.T) {
	s, path := temp(t)
	code := 3
	want := store.Record{
		Sandbox: api.Sandbox{
			ID: "aaaa", Name: "one", State: api.StateRunning, ExitCode: &code,
			Caller: api.Caller{UID: 1000, GID: 1001}, HostUID: 0x78000000, PID: 77,
			Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
			Labels:  map[string]string{"a": "b"}, Limits: api.Limits{Memory: 512 << 20, TTL: api.Duration(time.Minute)},
		},
		Request:     api.SpawnRequest{Command: []string{"/bin/true"}, Env: map[string]string{"K": "V\n"}},
		CgroupsPath: "/creel/aaaa", InitPID: 77, InitStart: 123456, BootID: "b", NetNS: 4026532000, Namespaces: map[string]uint64{"mnt": 4026532001}, Label: "none", Isolated: true,
		FilterDigest: "d", NextExec: 9, RootfsKind: "tmpfs", Undo: []string{"delete snapshot"},
		Mounts: []store.Mount{{Staged: "/run/x/mnt/0", Target: "/work", Dev: 1, Inode: 2, ReadOnly: true}},
	}
	if err := s.PutSandbox(want); err != nil {
		t.Fatal(err)
	}
	if err := s.AddEvidence(api.Evidence{Sandbox: "aaaa", OK: true, Controls: []api.Control{{Name: "n", OK: true}}}); err != nil {
		t.Fatal(err)
	}
	n, err := s.PutExec("aaaa", 0, api.Exec{ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.PutExec("aaaa", n, api.Exec{ID: "x", Reason: api.ReasonExited}); err != nil || again != n {
		t.Fatalf("PutExec again = %d, %v, want %d", again, err, n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, path)
	got, err := s.Sandbox("aaaa")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record after a restart (-want +got):\n%s", diff)
	}
	if es, err := s.Evidence("aaaa"); err != nil || len(es) != 1 || !es[0].OK || es[0].Controls[0].Name != "n" {
		t.Errorf("Evidence = %+v, %v", es, err)
	}
	if rs, err := s.Execs("aaaa"); err != nil || len(rs) != 1 || rs[0].Reason != api.ReasonExited {
		t.Errorf("Execs = %+v, %v", rs, err)
	}

	if err := s.DeleteSandbox("aaaa"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteSandbox("aaaa"); err != nil {
		t.Errorf("second delete = %v", err)
	}
	if _, err := s.Sandbox("aaaa"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("deleted sandbox = %v, want not found", err)
	}
	if es, err := s.Evidence("aaaa"); err != nil || len(es) != 0 {
		t.Errorf("evidence of a deleted sandbox = %v, %v", es, err)
	}
	for what, err := range map[string]error{
		"evidence": s.AddEvidence(api.Evidence{Sandbox: "aaaa"}),
		"exec":     second(s.PutExec("aaaa", 1, api.Exec{})),
	} {
		if api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("%s for a deleted sandbox = %v, want not found", what, err)
		}
	}
}

// TestNames holds the name index against a plain model over random histories.
func TestNames(t *testing.T) {
	s, _ := temp(t)
	rapid.Check(t, func(t *rapid.T) {
		type name struct {
			uid  uint32
			name string
		}
		model := map[string]name{} // by id
		defer func() {
			for id := range model {
				if err := s.DeleteSandbox(id); err != nil {
					t.Fatal(err)
				}
			}
		}()
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "id")
			if rapid.IntRange(0, 3).Draw(t, "op") == 0 {
				if err := s.DeleteSandbox(id); err != nil {
					t.Fatal(err)
				}
				delete(model, id)
				continue
			}
			n := name{rapid.SampledFrom([]uint32{0, 1}).Draw(t, "uid"), rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "name")}
			taken := false
			for other, m := range model {
				taken = taken || other != id && m == n && n.name != ""
			}
			err := s.PutSandbox(record(id, n.name, n.uid))
			if taken != (api.CodeOf(err) == api.CodeConflict && err != nil) || !taken && err != nil {
				t.Fatalf("put %s as %v = %v; taken: %t", id, n, err, taken)
			}
			if !taken {
				model[id] = n
			}
		}
		for _, uid := range []uint32{0, 1} {
			for _, nm := range []string{"", "x", "y"} {
				want := ""
				for id, m := range model {
					if m == (name{uid, nm}) && nm != "" {
						want = id
					}
				}
				got, err := s.ByName(uid, nm)
				if got != want || (err != nil) != (want == "") {
					t.Fatalf("ByName(%d, %q) = %q, %v; want %q", uid, nm, got, err, want)
				}
			}
		}
		var ids []string
		if err := s.Sandboxes(func(r store.Record) error { ids = append(ids, r.Sandbox.ID); return nil }); err != nil {
			t.Fatal(err)
		}
		if want := slices.Sorted(maps.Keys(model)); !slices.Equal(ids, want) {
			t.Fatalf("Sandboxes = %q, want %q", ids, want)
		}
	})
}

func TestUpdateIsAtomic(t *testing.T) {
	s, _ := temp(t)
	failure := errors.New("later step failed")
	err := s.Update(func(tx *store.Tx) error {
		if err := tx.PutSandbox(record("a", "n", 1)); err != nil {
			return err
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Fatal(err)
	}
	if _, err := s.Sandbox("a"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("record of a failed update = %v", err)
	}
	if _, err := s.ByName(1, "n"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("name of a failed update = %v", err)
	}
	if err := s.PutSandbox(record("a", "n", 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ModifySandbox("a", func(r *store.Record) error { r.InitPID = 5; return failure }); !errors.Is(err, failure) {
		t.Errorf("ModifySandbox = %v", err)
	}
	if r, err := s.ModifySandbox("a", func(r *store.Record) error { r.NextExec++; return nil }); err != nil || r.InitPID != 0 || r.NextExec != 1 {
		t.Errorf("after a failed and a good change: %+v, %v", r, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestLoseExecs(t *testing.T) {
	s, _ := temp(t)
	if err := s.PutSandbox(record("a", "n", 1)); err != nil {
		t.Fatal(err)
	}
	then := time.Unix(1000, 0).UTC()
	five := 5
	ended := api.Exec{ID: "ended", Ended: then, Reason: api.ReasonExited, ExitCode: &five}
	for _, e := range []api.Exec{{ID: "running", Started: then}, ended, {ID: "older", Reason: api.ReasonExited}} {
		if _, err := s.PutExec("a", 0, e); err != nil {
			t.Fatal(err)
		}
	}
	for _, now := range []time.Time{then.Add(time.Hour), then.Add(2 * time.Hour)} { // another start changes nothing
		if err := s.LoseExecs(now); err != nil {
			t.Fatal(err)
		}
		got, err := s.Execs("a")
		if err != nil {
			t.Fatal(err)
		}
		want := []api.Exec{{ID: "running", Started: then, Ended: then.Add(time.Hour), Reason: api.ReasonLost}, ended, {ID: "older", Reason: api.ReasonExited}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("after a restart (-want +got):\n%s", diff)
		}
	}
}

func TestBounds(t *testing.T) {
	s, _ := temp(t)
	if err := s.PutSandbox(record("a", "n", 1)); err != nil {
		t.Fatal(err)
	}
	err := s.Update(func(tx *store.Tx) error {
		for i := range 400 {
			if _, err := tx.PutExec("a", 0, api.Exec{Signal: i}); err != nil {
				return err
			}
			if err := tx.AddEvidence(api.Evidence{Sandbox: "a", Why: fmt.Sprint(i)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rs, err := s.Execs("a")
	if err != nil || len(rs) != store.MaxExecs || rs[0].Signal != 400-store.MaxExecs || rs[len(rs)-1].Signal != 399 {
		t.Errorf("%d execs, %v; want the newest %d", len(rs), err, store.MaxExecs)
	}
	// One that was pushed out and is put again does not stay for ever.
	if n, err := s.PutExec("a", 1, api.Exec{Signal: 1000}); err != nil || n != 401 {
		t.Errorf("PutExec of one that was pushed out = %d, %v, want 401", n, err)
	}
	if rs, err := s.Execs("a"); err != nil || len(rs) != store.MaxExecs || rs[len(rs)-1].Signal != 1000 {
		t.Errorf("then %d execs, %v", len(rs), err)
	}
	es, err := s.Evidence("a")
	if err != nil || len(es) != store.MaxEvidence || es[0].Why != "0" || es[1].Why != fmt.Sprint(400-store.MaxEvidence+1) || es[len(es)-1].Why != "399" {
		t.Errorf("%d pieces of evidence, %v; want the first and the newest", len(es), err)
	}
}

func TestKept(t *testing.T) {
	s, _ := temp(t)
	for _, id := range []string{"a", "b"} {
		if err := s.PutSandbox(record(id, id, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := s.AddEvidence(api.Evidence{Sandbox: "a", Why: strings.Repeat("x", 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.PutExec("a", 0, api.Exec{Error: strings.Repeat("x", 1000)}); err != nil {
		t.Fatal(err)
	}
	k, err := s.Kept([]string{"a", "b", "none"})
	if err != nil {
		t.Fatal(err)
	}
	if a := k["a"]; a.Evidence != 3 || a.Bytes < 4000 || a.Bytes > 8000 {
		t.Errorf("a: %+v", a)
	}
	if b := k["b"]; b.Evidence != 0 || b.Bytes == 0 || k["none"] != (store.Kept{}) {
		t.Errorf("b: %+v, none: %+v", b, k["none"])
	}
}

func TestEventRing(t *testing.T) {
	s, path := temp(t)
	const n = store.MaxEvents + 2500
	for i := 0; i < n; i += 500 {
		batch := make([]api.Event, 500)
		for j := range batch {
			batch[j].Type = fmt.Sprint(i + j + 1)
		}
		if err := s.AppendEvents(batch); err != nil {
			t.Fatal(err)
		}
		if batch[0].Seq != uint64(i+1) || batch[499].Seq != uint64(i+500) {
			t.Fatalf("batch got Seq %d..%d", batch[0].Seq, batch[499].Seq)
		}
	}
	s.Close()
	s = open(t, path)
	all, err := s.Events(0, n)
	if err != nil || len(all) != store.MaxEvents {
		t.Fatalf("%d events kept, %v; want %d", len(all), err, store.MaxEvents)
	}
	for i, e := range all {
		if want := uint64(n - store.MaxEvents + i + 1); e.Seq != want || e.Type != fmt.Sprint(want) {
			t.Fatalf("event %d is %+v, want Seq %d", i, e, want)
		}
	}
	some, err := s.Events(n-3, 2)
	if err != nil || len(some) != 2 || some[0].Seq != n-2 {
		t.Errorf("Events(after, 2) = %+v, %v", some, err)
	}
	for _, after := range []uint64{n, n + 1, ^uint64(0)} {
		if es, err := s.Events(after, 10); err != nil || len(es) != 0 {
			t.Errorf("Events(%d) = %v, %v", after, es, err)
		}
	}
	next := []api.Event{{}}
	if err := s.AppendEvents(next); err != nil || next[0].Seq != n+1 {
		t.Errorf("Seq after a restart = %d, %v; want %d", next[0].Seq, err, n+1)
	}
	if last, err := s.LastEvent(); err != nil || last != n+1 {
		t.Errorf("LastEvent = %d, %v", last, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	// A file of some size, with each kind of page.
	s, path := temp(t)
	for i := range 200 {
		if err := s.PutSandbox(record(fmt.Sprintf("id%04d", i), fmt.Sprintf("n%d", i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	tests := []struct {
		name string
		make func(t *testing.T, path string)
		want error
		text string
	}{
		{"newer schema", func(t *testing.T, path string) {
			write(t, path, good)
			db, err := bolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if err := db.Update(func(tx *bolt.Tx) error {
				return tx.Bucket([]byte("meta")).Put([]byte("schema"), binary.BigEndian.AppendUint64(nil, store.Schema+1))
			}); err != nil {
				t.Fatal(err)
			}
		}, store.ErrNewer, "upgrade creel"},
		{"not a database", func(t *testing.T, path string) { write(t, path, []byte(strings.Repeat("hello\n", 2000))) }, store.ErrCorrupt, "backup"},
		{"short", func(t *testing.T, path string) { write(t, path, good[:100]) }, store.ErrCorrupt, "backup"},
		{"cut", func(t *testing.T, path string) { write(t, path, good[:4*page]) }, store.ErrCorrupt, "bytes"},
		{"both metas zeroed", func(t *testing.T, path string) {
			write(t, path, append(make([]byte, 2*page), good[2*page:]...))
		}, store.ErrCorrupt, "backup"},
		{"data pages zeroed", func(t *testing.T, path string) {
			b := slices.Clone(good)
			clear(b[2*page:])
			write(t, path, b)
		}, store.ErrCorrupt, "backup"},
		{"in use", func(t *testing.T, path string) {
			write(t, path, good)
			open(t, path)
		}, store.ErrInUse, "stop it"},
		{"a symlink", func(t *testing.T, path string) {
			write(t, path+".real", good)
			if err := os.Symlink(path+".real", path); err != nil {
				t.Fatal(err)
			}
		}, nil, "regular file"},
		{"a directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, nil, "regular file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			tt.make(t, path)
			s, err := store.Open(path)
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Open = %v; want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// FuzzRecord holds that what a sandbox's strings contain does not matter to
// the store: any record that can be written is read back the same.
func FuzzRecord(f *testing.F) {
	s, _ := temp(f)
	f.Add("id", "name", uint32(0), "k", "v")
	f.Add("\x00", "n\xff", uint32(1<<31), "", "\n\u2028")
	f.Fuzz(func(t *testing.T, id, name string, uid uint32, k, v string) {
		// JSON keeps only valid UTF-8; ids, names and labels are validated to be.
		id, name, k, v = strings.ToValidUTF8(id, "?"), strings.ToValidUTF8(name, "?"), strings.ToValidUTF8(k, "?"), strings.ToValidUTF8(v, "?")
		r := record(id, name, uid)
		r.Sandbox.Labels = map[string]string{k: v}
		if err := s.PutSandbox(r); err != nil {
			if id != "" && len(id) < bolt.MaxKeySize && len(name) < bolt.MaxKeySize-4 {
				t.Fatalf("put: %v", err)
			}
			return
		}
		got, err := s.Sandbox(id)
		if err != nil || cmp.Diff(r, got) != "" {
			t.Fatalf("read back: %v\n%s", err, cmp.Diff(r, got))
		}
		if name != "" {
			if by, err := s.ByName(uid, name); by != id || err != nil {
				t.Fatalf("ByName = %q, %v", by, err)
			}
		}
		if err := s.DeleteSandbox(id); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ByName(uid, name); err == nil {
			t.Fatal("the name of a deleted sandbox is still taken")
		}
	})
}

func BenchmarkPutSandbox(b *testing.B) {
	s, _ := temp(b)
	for i := 0; b.Loop(); i++ {
		r := record(fmt.Sprintf("id%04d", i%100), "", 1)
		r.Sandbox.Problem = strings.Repeat("x", 3000)
		if err := s.PutSandbox(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	s, path := temp(b)
	for range 20 {
		if err := s.AppendEvents(make([]api.Event, 500)); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
	for b.Loop() {
		s, err := store.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
