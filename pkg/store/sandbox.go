package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/approval"
	"github.com/creel-sandbox/creel/pkg/protect"
	"github.com/creel-sandbox/creel/pkg/secrets"

	bolt "go.etcd.io/bbolt"
)

// Record is all that is remembered of a sandbox: what callers see, and what
// the daemon needs to find, check and undo it after a restart.
type Record struct {
	Sandbox api.Sandbox      `json:"sandbox"`
	Request api.SpawnRequest `json:"request"`

	// Key is what the caller called the request that made it, nil if nothing.
	Key *SpawnKey `json:"key,omitempty"`

	// Groups are the caller's supplementary groups, whose files the sandbox may
	// have in what it mounts. Records of older daemons have none.
	Groups []uint32 `json:"groups,omitempty"`

	// CgroupsPath is the OCI spec's.
	CgroupsPath string `json:"cgroups_path,omitempty"`

	// InitPID and InitStart name PID 1 as the host sees it: its pid and its
	// start time in clock ticks since boot (field 22 of /proc/PID/stat), which
	// tell it from a later process of that pid.
	InitPID   int    `json:"init_pid,omitempty"`
	InitStart uint64 `json:"init_start,omitempty"`

	// KeeperPID and KeeperStart name the parent of PID 1 in the same way: the
	// runtime's shim, which reaps it and without which nobody would.
	KeeperPID   int    `json:"keeper_pid,omitempty"`
	KeeperStart uint64 `json:"keeper_start,omitempty"`

	// BootID is /proc/sys/kernel/random/boot_id at the start: after a reboot
	// no pid, inode or mount of the record means anything.
	BootID string `json:"boot_id,omitempty"`

	// NetNS is the inode of the network namespace, and Namespaces are those of
	// all, by the names in /proc/PID/ns, as they were proven before go. Records
	// of older daemons have NetNS alone.
	NetNS      uint64            `json:"netns,omitempty"`
	Namespaces map[string]uint64 `json:"namespaces,omitempty"`

	// Label is PID 1's security label before go, "none" where nothing gives
	// labels; empty in records of older daemons.
	Label string `json:"label,omitempty"`

	// FilterDigest is the SHA-256 of the seccomp filter.
	FilterDigest string `json:"filter_digest,omitempty"`

	// SpecDigest is the SHA-256 of the OCI spec as JSON, as "sha256:...";
	// empty in records of older daemons.
	SpecDigest string `json:"spec_digest,omitempty"`

	// Isolated says that each command has a Landlock domain of its own.
	Isolated bool `json:"isolated,omitempty"`

	// UnixPeers says that the kernel has refused connections of Unix sockets
	// over the sandbox's edge since before it ran.
	UnixPeers bool `json:"unix_peers,omitempty"`

	// Range6 is the sandbox's /64 of synthetic addresses, with network "policy".
	Range6 string `json:"range6,omitempty"`

	// Secrets are those of the request, as who they are found by.
	Secrets []secrets.Ref `json:"secrets,omitempty"`

	// Approvals are what it was refused and somebody may let.
	Approvals approval.State `json:"approvals,omitzero"`

	// NextExec counts the execs that were started.
	NextExec uint64 `json:"next_exec,omitempty"`

	// Go is just before the agent's first instruction, by the clock that file
	// systems stamp with. Records of older daemons have none.
	Go time.Time `json:"go,omitzero"`

	// Mounts are the staged mounts, in the order they were made.
	Mounts []Mount `json:"mounts,omitempty"`

	// Protected are the mounts that protect names in those. Placeholders are what
	// was made on the host for that, on record before it is made and until it is
	// removed.
	Protected    []protect.Mount `json:"protected,omitempty"`
	Placeholders []protect.Made  `json:"placeholders,omitempty"`

	// Volumes are those the sandbox uses, from its intent on and until Clean.
	Volumes []VolumeUse `json:"volumes,omitempty"`

	// RootfsKind is how the writable layer is limited; empty when there is none.
	RootfsKind string `json:"rootfs_kind,omitempty"`

	// MainNSPID is the main command's pid in the sandbox, 0 without one.
	MainNSPID int `json:"main_nspid,omitempty"`
	// MainSignal is what ended the main command, 0 when it exited.
	MainSignal int `json:"main_signal,omitempty"`
	// IdlePaused means that nobody asked for the pause: the next exec ends it.
	IdlePaused bool `json:"idle_paused,omitempty"`
	// Clean means that the sandbox has ended and nothing of it is left but
	// this record and its logs.
	Clean bool `json:"clean,omitempty"`
	// Undo names the steps of a clean-up that did not succeed yet.
	Undo []string `json:"undo,omitempty"`
}

// SpawnKey names a request that may come again.
type SpawnKey struct {
	Key    string `json:"key"`
	Digest string `json:"digest"` // of the request
}

// Mount is one staged mount.
type Mount struct {
	Staged   string `json:"staged"`        // path under the run directory, also of one that is in another
	Target   string `json:"target"`        // path in the sandbox
	Dev      uint64 `json:"dev,omitempty"` // of the source, with Inode
	Inode    uint64 `json:"inode,omitempty"`
	ReadOnly bool   `json:"readonly,omitempty"`
	Own      bool   `json:"own,omitempty"` // as api.Mount has it
	Protect  bool   `json:"protect,omitempty"`

	// Volume is the id of a volume, which has no Dev and Inode, and Device
	// the loop device that it is mounted from.
	Volume string `json:"volume,omitempty"`
	Device string `json:"device,omitempty"`
}

// VolumeUse is a sandbox's use of a volume.
type VolumeUse struct {
	ID       string `json:"id"`
	Name     string `json:"name"` // the caller's for it
	ReadOnly bool   `json:"readonly,omitempty"`
}

// PutSandbox writes a record and reserves its name for its caller. If another
// sandbox of the caller has the name, nothing is written and the error's code
// is api.CodeConflict.
func (t *Tx) PutSandbox(r Record) error {
	id := r.Sandbox.ID
	if id == "" {
		return errors.New("store a sandbox: it has no id")
	}
	if err := t.rename(r); err != nil {
		return err
	}
	return putJSON(t.tx.Bucket(bucketSandboxes), []byte(id), r)
}

func (t *Tx) rename(r Record) error {
	names := t.tx.Bucket(bucketNames)
	key := nameKey(r.Sandbox.Caller.UID, r.Sandbox.Name)
	if owner := names.Get(key); owner != nil && string(owner) != r.Sandbox.ID && r.Sandbox.Name != "" {
		return api.Errorf(api.CodeConflict, "name %q is taken by sandbox %s", r.Sandbox.Name, owner).
			WithHint("choose another, or remove that sandbox")
	}
	old, err := t.Sandbox(r.Sandbox.ID)
	if err == nil {
		if k := nameKey(old.Sandbox.Caller.UID, old.Sandbox.Name); string(k) != string(key) {
			if err := names.Delete(k); err != nil {
				return err
			}
		}
	} else if api.CodeOf(err) != api.CodeNotFound {
		return err
	}
	if r.Sandbox.Name == "" {
		return nil
	}
	return names.Put(key, []byte(r.Sandbox.ID))
}

// Sandbox reads a record. The error's code is api.CodeNotFound if there is none.
func (t *Tx) Sandbox(id string) (Record, error) {
	var r Record
	v := t.tx.Bucket(bucketSandboxes).Get([]byte(id))
	if v == nil {
		return r, notFound(id)
	}
	if err := json.Unmarshal(v, &r); err != nil {
		return Record{}, fmt.Errorf("record of sandbox %s: %w", id, err)
	}
	return r, nil
}

// Sandboxes calls fn for every record in the order of ids, until fn fails.
func (t *Tx) Sandboxes(fn func(Record) error) error {
	return t.tx.Bucket(bucketSandboxes).ForEach(func(k, v []byte) error {
		var r Record
		if err := json.Unmarshal(v, &r); err != nil {
			return fmt.Errorf("record of sandbox %s: %w", k, err)
		}
		return fn(r)
	})
}

// ByName is the id of the sandbox that a caller calls name. The error's code
// is api.CodeNotFound if there is none.
func (t *Tx) ByName(uid uint32, name string) (string, error) {
	v := t.tx.Bucket(bucketNames).Get(nameKey(uid, name))
	if v == nil || name == "" {
		return "", notFound(name)
	}
	return string(v), nil
}

// DeleteSandbox removes a record, its name, its evidence and its execs.
// It succeeds when there is none. Events about it stay.
func (t *Tx) DeleteSandbox(id string) error {
	r, err := t.Sandbox(id)
	if api.CodeOf(err) == api.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if r.Sandbox.Name != "" {
		if err := t.tx.Bucket(bucketNames).Delete(nameKey(r.Sandbox.Caller.UID, r.Sandbox.Name)); err != nil {
			return err
		}
	}
	for _, name := range [][]byte{bucketEvidence, bucketExecs} {
		b := t.tx.Bucket(name)
		if b.Bucket([]byte(id)) == nil {
			continue
		}
		if err := b.DeleteBucket([]byte(id)); err != nil {
			return err
		}
	}
	return t.tx.Bucket(bucketSandboxes).Delete([]byte(id))
}

// AddEvidence keeps evidence about a sandbox that has a record: the first,
// which was taken before the agent ran, and the newest.
func (t *Tx) AddEvidence(e api.Evidence) error {
	b, err := t.perSandbox(bucketEvidence, e.Sandbox)
	if err != nil {
		return err
	}
	return appendBounded(b, e, MaxEvidence, 1)
}

// Evidence is what is kept about a sandbox, oldest first.
func (t *Tx) Evidence(id string) ([]api.Evidence, error) {
	return list[api.Evidence](t.tx.Bucket(bucketEvidence).Bucket([]byte(id)))
}

// PutExec keeps an exec of a sandbox that has a record. n is 0 for a new one,
// which gets the number that is returned, and that number to write it again.
// One that was pushed out by newer ones meanwhile is the newest then.
func (t *Tx) PutExec(id string, n uint64, e api.Exec) (uint64, error) {
	b, err := t.perSandbox(bucketExecs, id)
	if err != nil {
		return 0, err
	}
	if n != 0 && b.Get(number(n)) != nil {
		return n, putJSON(b, number(n), e)
	}
	if err := appendBounded(b, e, MaxExecs, 0); err != nil {
		return 0, err
	}
	return b.Sequence(), nil
}

// Execs are those kept of a sandbox, in the order in which they were first put.
func (t *Tx) Execs(id string) ([]api.Exec, error) {
	return list[api.Exec](t.tx.Bucket(bucketExecs).Bucket([]byte(id)))
}

// LoseExecs ends, with reason lost, the execs that are kept as running: the
// daemon that would have seen their end was killed.
func (t *Tx) LoseExecs(id string, at time.Time) error {
	b := t.tx.Bucket(bucketExecs).Bucket([]byte(id))
	if b == nil {
		return nil
	}
	// A bucket must not be written while it is walked.
	type open struct {
		key  []byte
		exec api.Exec
	}
	var lost []open
	err := b.ForEach(func(k, v []byte) error {
		var e api.Exec
		if err := json.Unmarshal(v, &e); err != nil {
			return fmt.Errorf("read %T: %w", e, err)
		}
		if e.Ended.IsZero() && e.Reason == "" {
			e.Ended, e.Reason = at, api.ReasonLost
			lost = append(lost, open{bytes.Clone(k), e})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, o := range lost {
		if err := putJSON(b, o.key, o.exec); err != nil {
			return err
		}
	}
	return nil
}

// Kept is how much is remembered of a sandbox.
type Kept struct {
	Bytes    int64 // of the record, the evidence and the exec results
	Evidence int   // pieces
}

// Kept measures what is remembered of a sandbox: nothing, if it has no record.
func (t *Tx) Kept(id string) (Kept, error) {
	k := Kept{Bytes: int64(len(t.tx.Bucket(bucketSandboxes).Get([]byte(id))))}
	for _, name := range [][]byte{bucketEvidence, bucketExecs} {
		b := t.tx.Bucket(name).Bucket([]byte(id))
		if b == nil {
			continue
		}
		if err := b.ForEach(func(key, v []byte) error {
			k.Bytes += int64(len(key) + len(v))
			if string(name) == string(bucketEvidence) {
				k.Evidence++
			}
			return nil
		}); err != nil {
			return Kept{}, err
		}
	}
	return k, nil
}

// perSandbox is the bucket of a sandbox in another. It makes none for a
// sandbox without a record, which nobody would delete.
func (t *Tx) perSandbox(bucket []byte, id string) (*bolt.Bucket, error) {
	if t.tx.Bucket(bucketSandboxes).Get([]byte(id)) == nil {
		return nil, notFound(id)
	}
	return t.tx.Bucket(bucket).CreateBucketIfNotExists([]byte(id))
}

// appendBounded adds v under the next number and deletes the oldest beyond
// limit, but never the first keep ones.
func appendBounded(b *bolt.Bucket, v any, limit, keep uint64) error {
	n, err := b.NextSequence()
	if err != nil {
		return err
	}
	if err := putJSON(b, number(n), v); err != nil {
		return err
	}
	if n <= limit {
		return nil
	}
	return b.Delete(number(n - limit + keep))
}

func list[T any](b *bolt.Bucket) ([]T, error) {
	if b == nil {
		return nil, nil
	}
	var out []T
	err := b.ForEach(func(_, v []byte) error {
		var t T
		if err := json.Unmarshal(v, &t); err != nil {
			return fmt.Errorf("read %T: %w", t, err)
		}
		out = append(out, t)
		return nil
	})
	return out, err
}

func putJSON(b *bolt.Bucket, key []byte, v any) error {
	j, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %T: %w", v, err)
	}
	return b.Put(key, j)
}

func nameKey(uid uint32, name string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uid), name...)
}
