package store

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Volume is all that is remembered of a volume.
type Volume struct {
	// ID names its directory; it is never used again, as a name may be.
	ID string `json:"id"`
	// Volume is what callers see, without what is found out when they ask:
	// Used, UsedBy and Problem.
	Volume api.Volume `json:"volume"`
}

// AddVolume writes the record of a new volume. If the caller has one of that
// name, nothing is written and the error's code is api.CodeConflict.
func (t *Tx) AddVolume(v Volume) error {
	if v.ID == "" || v.Volume.Name == "" {
		return errors.New("store a volume: it has no id or no name")
	}
	b := t.tx.Bucket(bucketVolumes)
	key := nameKey(v.Volume.Caller.UID, v.Volume.Name)
	if b.Get(key) != nil {
		return api.Errorf(api.CodeConflict, "there is a volume %q", v.Volume.Name).
			WithHint("choose another name, or remove that volume")
	}
	return putJSON(b, key, v)
}

// Volume reads a record. The error's code is api.CodeNotFound if there is none.
func (t *Tx) Volume(uid uint32, name string) (Volume, error) {
	var out Volume
	v := t.tx.Bucket(bucketVolumes).Get(nameKey(uid, name))
	if v == nil || name == "" {
		return out, api.Errorf(api.CodeNotFound, "no volume %q", name).WithHint("\"creel volume ls\" lists them")
	}
	if err := json.Unmarshal(v, &out); err != nil {
		return Volume{}, fmt.Errorf("record of volume %q: %w", name, err)
	}
	return out, nil
}

// Volumes calls fn for every record, by uid and name, until fn fails.
func (t *Tx) Volumes(fn func(Volume) error) error {
	return t.tx.Bucket(bucketVolumes).ForEach(func(k, v []byte) error {
		var out Volume
		if err := json.Unmarshal(v, &out); err != nil {
			return fmt.Errorf("record of volume %q: %w", k, err)
		}
		return fn(out)
	})
}

// DeleteVolume removes a record. It succeeds when there is none.
func (t *Tx) DeleteVolume(uid uint32, name string) error {
	return t.tx.Bucket(bucketVolumes).Delete(nameKey(uid, name))
}

// AddVolume is [Tx.AddVolume] in a commit of its own.
func (s *Store) AddVolume(v Volume) error {
	return s.Update(func(t *Tx) error { return t.AddVolume(v) })
}

// ModifyVolume has fn change a record, in one commit, if there is one of that
// name and id. fn leaves caller and name as they are.
func (s *Store) ModifyVolume(uid uint32, name, id string, fn func(*Volume)) error {
	return s.Update(func(t *Tx) error {
		v, err := t.Volume(uid, name)
		if api.CodeOf(err) == api.CodeNotFound || err == nil && v.ID != id {
			return nil
		}
		if err != nil {
			return err
		}
		fn(&v)
		return putJSON(t.tx.Bucket(bucketVolumes), nameKey(uid, name), v)
	})
}

// Volume is [Tx.Volume].
func (s *Store) Volume(uid uint32, name string) (v Volume, err error) {
	err = s.View(func(t *Tx) error { v, err = t.Volume(uid, name); return err })
	return v, err
}

// Volumes are all of them.
func (s *Store) Volumes() (vs []Volume, err error) {
	err = s.View(func(t *Tx) error {
		return t.Volumes(func(v Volume) error { vs = append(vs, v); return nil })
	})
	return vs, err
}

// DeleteVolume is [Tx.DeleteVolume] in a commit of its own.
func (s *Store) DeleteVolume(uid uint32, name string) error {
	return s.Update(func(t *Tx) error { return t.DeleteVolume(uid, name) })
}
