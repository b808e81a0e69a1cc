package launcher

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/spec"
)

// limitsHit adds to the counts of a command's cgroup what only the file
// systems know: whether one of the sandbox's is full.
func (sb *sandbox) limitsHit(hits map[string]int64) map[string]int64 {
	if n := sb.fullPlaces(); n > 0 {
		hits["disk"] = n
	}
	if len(hits) == 0 {
		return nil
	}
	return hits
}

// countFullPlaces does the same for the main command, which has no session of
// its own: at its end, while its file systems are still there.
func (sb *sandbox) countFullPlaces() {
	if len(sb.fixed.Request.Command) == 0 || sb.pid == 0 {
		return
	}
	if n := sb.fullPlaces(); n > 0 {
		sb.mu.Lock()
		sb.hits["disk"] += n
		sb.mu.Unlock()
	}
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
	for _, t := range spec.TmpfsOf(sb.fixed.Sandbox.Limits.Tmp, ro) {
		places = append(places, t.Target)
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

// nearly is what an overlay may call available when the file system below has
// refused to give more: ext4 keeps some blocks back for its own trees, 0.5% of
// a small one (measured: 60 blocks of 12,092, 166 of 100,786).
const nearly = 1 << 20

func isFull(st unix.Statfs_t) bool {
	left := uint64(0)
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		left = min(nearly/uint64(max(st.Bsize, 1)), st.Blocks/100)
	}
	return st.Blocks > 0 && (st.Bavail <= left || st.Files > 0 && st.Ffree == 0)
}
