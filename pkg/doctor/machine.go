package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// machine are the checks of resources.
func machine(in Inputs) []api.Check {
	out := []api.Check{pressure(), swap(read("/proc/swaps"), in.CgroupVersion), clock(time.Now()), entropy()}
	if in.StateDir != "" {
		out = append(out, disk(in.StateDir))
	}
	if in.IDRange != "" {
		out = append(out, ids(in))
	}
	return out
}

func pressure() api.Check {
	if _, err := os.ReadFile("/proc/pressure/memory"); err != nil {
		return bad(Weaker, "pressure", err.Error(), "it cannot be seen how much sandboxes wait for memory, CPU and disk", "boot with psi=1")
	}
	return ok("pressure", "the kernel measures it")
}

// swap judges /proc/swaps, whose first line is a header.
func swap(swaps, cgroup string) api.Check {
	const name = "swap"
	_, rest, _ := strings.Cut(swaps, "\n")
	if strings.TrimSpace(rest) == "" {
		return ok(name, "none")
	}
	if cgroup != "v2" {
		return bad(Weaker, name, "the host swaps", "under cgroup v1 agents' memory may reach the disk unless swapaccount=1", "swapoff -a, or cgroup v2")
	}
	return ok(name, "the host swaps; sandboxes do not (memory.swap.max 0)")
}

func clock(now time.Time) api.Check {
	const name = "clock"
	cost := "times in the evidence and in certificates are wrong"
	if now.Year() < 2025 {
		return bad(Missing, name, now.Format(time.RFC3339)+" cannot be", cost, "set the clock")
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil || state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0 {
		return bad(Weaker, name, "not synchronised", cost, "systemctl enable --now systemd-timesyncd")
	}
	return ok(name, "synchronised")
}

func entropy() api.Check {
	var b [1]byte
	if _, err := unix.Getrandom(b[:], unix.GRND_NONBLOCK); err != nil {
		return bad(Missing, "entropy", err.Error(), "keys and ids cannot be made yet", "wait, or add a virtio-rng device to the machine")
	}
	return ok("entropy", "the random generator is seeded")
}

const (
	lowDisk   = 2 << 30 // bytes
	lowInodes = 100_000
)

// fsNames are the file systems people meet, by statfs(2)'s f_type.
var fsNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", unix.FUSE_SUPER_MAGIC: "fuse", unix.F2FS_SUPER_MAGIC: "f2fs",
	unix.ECRYPTFS_SUPER_MAGIC: "ecryptfs", unix.V9FS_MAGIC: "9p", unix.MSDOS_SUPER_MAGIC: "vfat", unix.PROC_SUPER_MAGIC: "proc",
	unix.SYSFS_MAGIC: "sysfs", unix.SMB2_SUPER_MAGIC: "smb", 0x2fc12fc1: "zfs", 0x65735543: "fusectl", 0x7461636f: "ocfs2",
}

func fsName(t int64) string {
	if n := fsNames[t]; n != "" {
		return n
	}
	return fmt.Sprintf("file system %#x", t)
}

// nearest is the directory, or what it will be made in: creeld makes its state
// directory when it starts.
func nearest(dir string) string {
	for dir != "/" {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

func disk(dir string) api.Check {
	const name = "state directory"
	dir = nearest(dir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return bad(Missing, name, dir+": "+err.Error(), "creeld does not start", "set another state_dir")
	}
	fsType := fsName(st.Type)
	free := int64(st.Bavail) * st.Bsize
	detail := fmt.Sprintf("%s: %s, %s free", dir, fsType, api.Size(free>>20<<20))
	switch fsType {
	case "overlay", "nfs", "fuse", "ecryptfs", "9p", "vfat", "smb", "proc", "sysfs":
		return bad(Missing, name, detail, "images cannot be unpacked there", "put it on ext4, xfs or btrfs")
	case "tmpfs":
		return bad(Weaker, name, detail, "records and images are lost at shutdown", "put it on ext4, xfs or btrfs")
	}
	if free < lowDisk || (st.Files > 0 && st.Ffree < lowInodes) {
		return bad(Weaker, name, fmt.Sprintf("%s, %d inodes free", detail, st.Ffree), "images and logs may not fit", "creel rm what has ended (creel ps -a), creel image rm what nobody uses, or a bigger disk")
	}
	return ok(name, "%s", detail)
}

func ids(in Inputs) api.Check {
	const name = "id range"
	if in.IDOverlap != nil {
		return bad(Danger, name, fmt.Sprintf("%s: %v", in.IDRange, in.IDOverlap), "a sandbox could own a user's files",
			"set another range in creeld's configuration")
	}
	return ok(name, "%s, used by nobody else in /etc", in.IDRange)
}
