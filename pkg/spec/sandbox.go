// Package spec turns a resolved sandbox into an OCI runtime spec.
//
// It is pure: no I/O, no clock, no environment. The same sandbox always gives
// the same spec, which is what the golden files under testdata compare; a
// changed golden file is a security change and is reviewed as one.
package spec

import "github.com/creel-sandbox/creel/pkg/api"

// Inside a sandbox.
const (
	// AgentUID and AgentGID are who the agent is, inside.
	AgentUID = 1000
	AgentGID = 1000
	// RangeSize is the number of ids of each sandbox.
	RangeSize = 65536
	// InitPath is where creel-init is seen.
	InitPath = "/dev/creel-init"
	// ResolvConf is where the sandbox's resolver is named, if it has a network.
	ResolvConf = "/etc/resolv.conf"
	// TrustDir is where the certificates are that servers are verified by, if TLS
	// is opened up for the sandbox.
	TrustDir = "/run/creel-trust"
	// SocketDir is where the sandbox's own socket is, if it has one.
	SocketDir = "/run/creel"
	// Home is the agent's home directory, RootHome root's.
	Home     = "/home/agent"
	RootHome = "/root"

	// MemoryReserve and PidsReserve are what the sandbox's cgroup may use
	// beyond the agent's limits, so that PID 1 and a process that is being
	// started are not in the way of an agent that uses all it may.
	MemoryReserve = 8 << 20
	PidsReserve   = 32
)

// UID is the uid and gid, inside, of a sandbox's processes: of api.Sandbox.User.
func UID(user string) uint32 {
	if user == api.UserRoot {
		return 0
	}
	return AgentUID
}

// HomeOf is a user's home directory.
func HomeOf(user string) string {
	if user == api.UserRoot {
		return RootHome
	}
	return Home
}

// Sandbox is a resolved, closed description of a sandbox: every default is
// filled in, every limit checked. pkg/admission makes it.
type Sandbox struct {
	ID      string
	HostUID uint32 // first host uid and gid of the range
	Profile string
	Runtime string // crun or runc

	// CgroupsPath is the OCI cgroupsPath (cgroupfs driver).
	CgroupsPath string
	// ResolvConf is the file that is /etc/resolv.conf; the image's when empty.
	ResolvConf string
	// TrustSource is the host's directory of the certificates; empty when TLS is
	// not opened up.
	TrustSource string
	// NetNS is the path of the network namespace's file.
	NetNS string
	// InitSource is the host path of this sandbox's private copy of creel-init.
	InitSource string

	Hostname string
	Limits   api.Limits
	// User is api.UserRoot, or empty for the agent. Capabilities are a root's,
	// of api.Capabilities; the agent has none.
	User         string
	Capabilities []string
	// ReadonlyRoot is false for rootfs "ephemeral".
	ReadonlyRoot bool
	// CgroupMount shows the sandbox's own cgroup, read-only, at
	// /sys/fs/cgroup: runtimes such as Go's size themselves by it. Only where
	// that is one mount (cgroup v2).
	CgroupMount bool
	// SwapLimit and IOWeight say that the host's cgroups can limit swap and
	// weigh block I/O; a limit that a host cannot hold fails the runtime.
	SwapLimit, IOWeight bool
	// Mounts are staged directories: host path to bind, target inside. One
	// whose target is in another's is attached in that one's staged tree
	// already, with the restrictions that it needs, and comes with it.
	Mounts []Mount
	// SocketSource is the host's directory of the sandbox's own socket; empty
	// when it has none.
	SocketSource string
	// Tmpfs are the sized tmpfs mounts.
	Tmpfs []Tmpfs
}

// Mount binds a staged tree.
type Mount struct {
	Source   string // under the daemon's run directory; already id-mapped
	Target   string
	ReadOnly bool
	Tree     bool // there are mounts in it already, which come with it
}

// Tmpfs is a sized tmpfs, nosuid and nodev.
type Tmpfs struct {
	Target string
	Size   api.Size
	Mode   uint32 // permission bits, sticky as 01777
	Agent  bool   // owned by the sandbox's user rather than root inside
	NoExec bool
}
