package cgroup

// What the tests of parsers and of the v2 tree need from inside.
var (
	ParseCounters = parseCounters
	ParseNumber   = parseNumber
	ParseIO       = parseIO
	DevicesClosed = devicesClosed
	InotifyKeys   = inotifyKeys
)

// Mount is what parseMounts found.
type Mount struct {
	Root, Point string
	V2          bool
	Options     []string
}

func ParseMounts(data string) (out []Mount) {
	for _, m := range parseMounts(data) {
		out = append(out, Mount{m.root, m.point, m.v2, m.options})
	}
	return out
}

func ParseMembership(data string) map[string]string { return parseMembership(data) }

// NoBPF keeps a Host of a fake tree from asking the kernel about it.
func (h *Host) NoBPF() { h.bpf = false }
