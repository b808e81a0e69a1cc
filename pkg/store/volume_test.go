package store_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/store"
)

// TestVolumes: a name is a caller's own, and a record is not changed under
// the name of one that is gone.
func TestVolumes(t *testing.T) {
	s, path := temp(t)
	volume := func(id string, uid uint32, name string) store.Volume {
		return store.Volume{ID: id, Volume: api.Volume{Name: name, Agent: "a", Caller: api.Caller{UID: uid}}}
	}
	want := []store.Volume{volume("x", 1, "one"), volume("y", 1, "two"), volume("z", 2, "one")}
	for _, v := range want {
		if err := s.AddVolume(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddVolume(volume("w", 1, "one")); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("a second one = %v", err)
	}
	if err := s.AddVolume(volume("", 1, "new")); err == nil {
		t.Error("one without an id was written")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	got, err := s.Volumes()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	change := func(v *store.Volume) { v.Volume.Agent = "changed" }
	for _, err := range []error{s.ModifyVolume(1, "one", "other", change), s.ModifyVolume(1, "none", "x", change), s.ModifyVolume(2, "one", "z", change)} {
		if err != nil {
			t.Error(err)
		}
	}
	for uid, agent := range map[uint32]string{1: "a", 2: "changed"} {
		if v, err := s.Volume(uid, "one"); err != nil || v.Volume.Agent != agent {
			t.Errorf("volume of %d is %+v, %v", uid, v, err)
		}
	}
	for range 2 {
		if err := s.DeleteVolume(1, "one"); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"one", "", "tw"} {
		if _, err := s.Volume(1, name); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("volume %q = %v", name, err)
		}
	}
}
