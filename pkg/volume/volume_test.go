package volume_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/rootfs"
	"github.com/creel-sandbox/creel/pkg/sametime"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/volume"
)

var needLoop = kerneltest.Need{Name: "loop", Probe: func() error {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return err
	}
	_, err := exec.LookPath("mkfs.ext4")
	return err
}}

// users are the sandboxes that use volumes, as a launcher knows them.
type users struct {
	mu   sync.Mutex
	uses map[string][]volume.User // by volume
}

func (u *users) of(id string) []volume.User {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.uses[id]
}

func (u *users) add(sandbox string, uses []store.VolumeUse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, v := range uses {
		u.uses[v.ID] = append(u.uses[v.ID], volume.User{VolumeUse: api.VolumeUse{Sandbox: sandbox, Name: sandbox}})
	}
}

func newKeeper(t *testing.T, change func(*volume.Options)) (*volume.Keeper, *users) {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root, needLoop)
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := rootfs.NewVolumes(filepath.Join(dir, "volumes"), "")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	bus := events.New(s, log)
	t.Cleanup(func() { bus.Close(); _ = s.Close() })
	u := &users{uses: map[string][]volume.User{}}
	n := 0
	var mu sync.Mutex
	o := volume.Options{Store: s, Files: files, Bus: bus, Log: log, Owner: 1000, Operator: func(c peer.Cred) bool { return c.UID == 0 }, Users: u.of, NewID: func() string {
		mu.Lock()
		defer mu.Unlock()
		n++
		return fmt.Sprint("v", n)
	}}
	if change != nil {
		change(&o)
	}
	return volume.New(o), u
}

var alice = peer.Cred{UID: 1000, GID: 1000}

// TestRemoveWaitsForUse: a volume that a launch has found is not removed
// before its record says that it is used, and not then.
func TestRemoveWaitsForUse(t *testing.T) {
	k, u := newKeeper(t, nil)
	if _, err := k.Create(t.Context(), alice, api.VolumeRequest{Name: "work", Size: api.MinVolume}); err != nil {
		t.Fatal(err)
	}
	removed := make(chan error, 1)
	r := api.SpawnRequest{Agent: "default", Mounts: []api.Mount{{Volume: "work", Target: "/w"}}}
	err := k.Use(alice.UID, r, func(uses []store.VolumeUse) error {
		go func() { removed <- k.Remove(t.Context(), alice, "work") }()
		for range 1000 { // it has every chance to be wrong
			select {
			case err := <-removed:
				return fmt.Errorf("removed meanwhile: %w", err)
			default:
			}
			if _, err := k.Get(alice, "work"); err != nil {
				return err
			}
		}
		u.add("sandbox", uses)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-removed; api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "used by sandbox (sandbox)") {
		t.Errorf("Remove: %v", err)
	}
	// A launch that fails puts nothing on record.
	u.uses = map[string][]volume.User{}
	failed := errors.New("no room")
	if err := k.Use(alice.UID, r, func([]store.VolumeUse) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("Use: %v", err)
	}
	if err := k.Remove(t.Context(), alice, "work"); err != nil {
		t.Error(err)
	}
	if err := k.Use(alice.UID, r, func([]store.VolumeUse) error { return nil }); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("Use of what is gone: %v", err)
	}
}

// TestHomes: one home for each agent of each caller, within its totals.
func TestHomes(t *testing.T) {
	k, _ := newKeeper(t, func(o *volume.Options) { o.PerUser = 2 })
	bob := peer.Cred{UID: 1001, GID: 1001}
	var wg sync.WaitGroup
	for range 4 {
		for _, c := range []peer.Cred{alice, bob} {
			for _, agent := range []string{"a", "b"} {
				wg.Go(func() {
					if err := k.Home(t.Context(), c, agent, api.MinVolume); err != nil {
						t.Errorf("home of uid:%d/%s: %v", c.UID, agent, err)
					}
				})
			}
		}
	}
	wg.Wait()
	ids := map[string]bool{}
	for _, c := range []peer.Cred{alice, bob} {
		if vs, err := k.List(c); err != nil || len(vs) != 2 || vs[0].Name != "a.home" || vs[1].Agent != "b" {
			t.Errorf("%d has %+v, %v", c.UID, vs, err)
		}
		for _, agent := range []string{"a", "b"} {
			r := api.SpawnRequest{Agent: agent, Home: "persistent"}
			err := k.Use(c.UID, r, func(uses []store.VolumeUse) error {
				if len(uses) != 1 || uses[0].ReadOnly || ids[uses[0].ID] {
					t.Errorf("uses of uid:%d/%s: %+v", c.UID, agent, uses)
				}
				ids[uses[0].ID] = true
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	if kept, pending, err := k.Files.List(); err != nil || len(kept) != 4 || len(pending) != 0 {
		t.Errorf("on disk: %q, %q, %v", kept, pending, err)
	}
	if err := k.Home(t.Context(), alice, "c", api.MinVolume); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("one more than there may be: %v", err)
	}
	if err := k.Use(alice.UID, api.SpawnRequest{Agent: "c", Home: "persistent"}, func([]store.VolumeUse) error { return nil }); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("a home that is not there: %v", err)
	}
}

// TestAnothersTakesTheSame: how long it takes to be told that there is no such
// volume does not tell whether it is another caller's. A quarter of what one
// read of the store takes is too much of a difference.
func TestAnothersTakesTheSame(t *testing.T) {
	var st *store.Store
	k, _ := newKeeper(t, func(o *volume.Options) { st = o.Store })
	const n = 400
	err := st.Update(func(tx *store.Tx) error {
		for i := range n {
			v := store.Volume{ID: fmt.Sprintf("theirs%d", i), Volume: api.Volume{Name: fmt.Sprintf("theirs%d", i), Agent: "default", Caller: api.Caller{UID: 1001}}}
			if err := tx.AddVolume(v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	read := sametime.Median(2000, func() {
		if _, err := st.Volume(1001, "theirs7"); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("a read of the store takes %v", read)
	ask := func(prefix string) func() {
		i := 0
		return func() {
			i++
			if _, err := k.Get(alice, fmt.Sprint(prefix, i%n)); api.CodeOf(err) != api.CodeNotFound {
				t.Fatal(err)
			}
		}
	}
	sametime.Check(t, 3000, read/4,
		sametime.Question{Name: "another's volume", Ask: ask("theirs")},
		sametime.Question{Name: "a volume of none", Ask: ask("nobody")})
}
