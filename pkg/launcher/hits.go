package launcher

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/volume"
)

// limitsHit is what limits refused an exec that has just ended: the counts of
// its cgroup, and those that no cgroup keeps.
func (s *session) limitsHit() map[string]int64 {
	hits := s.cg.Hits()
	if n := s.sb.fullPlaces(); n > 0 {
		hits["disk"] = n
	}
	s.sb.mu.Lock()
	defer s.sb.mu.Unlock()
	if n := s.sb.files.take(s.id); n > 0 {
		hits["files"] = n
	}
	if len(hits) == 0 {
		return nil
	}
	return hits
}

// countLast does the same for the main command, which has no session of its
// own, and for what commands left running: at the sandbox's end, while its
// file systems are still there.
func (sb *sandbox) countLast() {
	if sb.pid == 0 {
		return
	}
	full := int64(0)
	if len(sb.fixed.Request.Command) > 0 {
		full = sb.fullPlaces()
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if full > 0 {
		sb.hits["disk"] += full
	}
	if n := sb.files.takeAll(); n > 0 {
		sb.hits["files"] += n
	}
}

// fullFiles are the processes found with as many descriptors as they may have,
// by exec. The kernel keeps no count of EMFILE, so what is counted is each
// process that is found so and was not a second before; one that met its limit
// in between and closed again is missed.
type fullFiles map[string]*struct {
	now map[int]bool
	n   int64
}

// note takes down which processes of an exec are at their limit.
func (f fullFiles) note(exec string, now map[int]bool) {
	e := f[exec]
	if e == nil {
		if len(now) == 0 {
			return
		}
		e = &struct {
			now map[int]bool
			n   int64
		}{}
		f[exec] = e
	}
	for pid := range now {
		if !e.now[pid] {
			e.n++
		}
	}
	e.now = now
}

// take is an exec's count, once.
func (f fullFiles) take(exec string) (n int64) {
	if e := f[exec]; e != nil {
		n, e.n = e.n, 0
	}
	return n
}

func (f fullFiles) takeAll() (n int64) {
	for id := range f {
		n += f.take(id)
		delete(f, id)
	}
	return n
}

func (f fullFiles) count() (n int64) {
	for _, e := range f {
		n += e.n
	}
	return n
}

// watchFiles looks for processes at their limit of descriptors.
func (sb *sandbox) watchFiles() {
	limit := sb.fixed.Sandbox.Limits.Files
	if limit <= 0 {
		return
	}
	found := map[string]map[int]bool{}
	for _, id := range sb.cg.Execs() {
		found[id] = map[int]bool{}
		cg, err := sb.cg.Exec(id)
		if err != nil {
			continue // it has just ended
		}
		pids, _ := cg.Pids()
		for _, pid := range pids {
			if descriptors(pid, limit) >= limit {
				found[id][pid] = true
			}
		}
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	for id, now := range found {
		sb.files.note(id, now)
	}
	for id := range sb.files {
		if found[id] == nil && sb.execs[id] == nil {
			if n := sb.files.take(id); n > 0 {
				sb.hits["files"] += n
			}
			delete(sb.files, id)
		}
	}
}

// descriptors is how many a process has, counted up to most. Since Linux 6.2
// it is the size of /proc/PID/fd (fs/proc/fd.c, proc_fd_getattr).
func descriptors(pid int, most int64) int64 {
	path := fmt.Sprintf("/proc/%d/fd", pid)
	if st, err := os.Stat(path); err != nil || st.Size() > 0 {
		if err != nil {
			return 0
		}
		return st.Size()
	}
	dir, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(int(most))
	return int64(len(names))
}

// fullPlaces counts the writable file systems of the sandbox that refuse one
// more byte or one more file.
func (sb *sandbox) fullPlaces() (n int64) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", sb.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0 // it has just ended
	}
	defer unix.Close(root)
	ro := sb.fixed.Sandbox.Rootfs == "readonly"
	places := []string{}
	if !ro {
		places = append(places, "/")
	}
	for _, t := range spec.TmpfsOf(sb.fixed.Sandbox.Limits, ro, sb.fixed.Request.Home == "persistent") {
		places = append(places, t.Target)
	}
	for _, m := range volume.Mounts(sb.fixed.Request) {
		if m.Volume != "" && !m.ReadOnly {
			places = append(places, m.Target)
		}
	}
	for _, p := range places {
		if full(root, p) {
			n++
		}
	}
	return n
}

// full asks one file system. Nothing is opened for reading and no link is
// followed: the agent cannot lead it elsewhere.
func full(root int, path string) bool {
	rel := strings.TrimPrefix(path, "/")
	if rel == "" {
		rel = "."
	}
	fd, err := unix.Openat2(root, rel, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false
	}
	return isFull(st)
}

// nearly is what a volume, or an overlay on such a file system, may call
// available when it has refused to give more: ext4 keeps some blocks back for its own trees, 0.5% of
// a small one (measured: 60 blocks of 12,092, 166 of 100,786).
const nearly = 1 << 20

func isFull(st unix.Statfs_t) bool {
	left := uint64(0)
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC || st.Type == unix.EXT4_SUPER_MAGIC {
		left = min(nearly/uint64(max(st.Bsize, 1)), st.Blocks/100)
	}
	return st.Blocks > 0 && (st.Bavail <= left || st.Files > 0 && st.Ffree == 0)
}
