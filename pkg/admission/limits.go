package admission

import (
	"cmp"
	"fmt"
	"math"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/profile"
)

// defaultShm is the size of /dev/shm where neither request nor profile names
// one and an eighth of the memory is not less. It is what browsers and
// databases are known to work with.
const defaultShm = 256 << 20

// resolveLimits fills req's zero fields from the profile and checks each
// against the profile's maximum.
func resolveLimits(ps *problems, req api.Limits, p *profile.Profile) api.Limits {
	def, top := p.Limits.Limits, p.Limits.Max
	out := req
	if math.IsNaN(req.CPUs) || math.IsInf(req.CPUs, 0) {
		ps.add("limits.cpus", fmt.Sprint(req.CPUs), "a number of processors, such as 1.5")
		out.CPUs = 0
	}
	limit(ps, "memory", &out.Memory, def.Memory, top.Memory, minMemory)
	limit(ps, "cpus", &out.CPUs, def.CPUs, top.CPUs, minCPUs)
	limit(ps, "pids", &out.Pids, def.Pids, top.Pids, minPids)
	limit(ps, "files", &out.Files, def.Files, top.Files, minFiles)
	limit(ps, "disk", &out.Disk, def.Disk, top.Disk, 1<<20)
	limit(ps, "io_weight", &out.IOWeight, def.IOWeight, top.IOWeight, 10)
	limit(ps, "output_rate", &out.OutputRate, def.OutputRate, top.OutputRate, 1<<10)
	limit(ps, "egress_bytes", &out.EgressBytes, def.EgressBytes, top.EgressBytes, 1<<10)
	limit(ps, "egress_connections", &out.EgressConnections, def.EgressConnections, top.EgressConnections, 1)
	limit(ps, "egress_requests", &out.EgressRequests, def.EgressRequests, top.EgressRequests, 1)
	limit(ps, "ttl", &out.TTL, def.TTL, top.TTL, 0)
	limit(ps, "idle", &out.Idle, def.Idle, top.Idle, 0)

	tmp := def.Tmp
	if tmp == 0 || req.Memory != 0 {
		tmp = out.Memory / 4
	}
	limit(ps, "tmp", &out.Tmp, tmp, top.Tmp, minTmp)
	if req.Tmp != 0 && out.Tmp > out.Memory/2 {
		// tmpfs pages are charged to the sandbox and stay charged after an
		// OOM kill, so a full one must leave room to work (host-notes 2).
		ps.add("limits.tmp", out.Tmp.String(), "at most half of the memory limit (%s)", out.Memory/2)
	}
	shm := def.ShmSize
	if shm == 0 || req.Memory != 0 {
		shm = min(cmp.Or(shm, defaultShm), out.Memory/8)
	}
	limit(ps, "shm_size", &out.ShmSize, shm, top.ShmSize, minShm)
	switch {
	case req.ShmSize != 0 && out.ShmSize > out.Memory/2:
		ps.add("limits.shm_size", out.ShmSize.String(), "at most half of the memory limit (%s)", out.Memory/2)
	case (req.ShmSize != 0 || req.Tmp != 0) && out.Tmp+out.ShmSize > out.Memory/4*3:
		ps.add("limits.shm_size", out.ShmSize.String(), "with limits.tmp (%s) at most three quarters of the memory limit (%s)", out.Tmp, out.Memory/4*3)
	}
	switch out.OnIdle {
	case "":
		out.OnIdle = def.OnIdle
	case "pause", "stop":
	default:
		ps.add("limits.on_idle", out.OnIdle, `"pause" or "stop"`)
	}
	return out
}

// limit sets *v to def when it is zero and otherwise checks it. A top of zero
// is no maximum.
func limit[T api.Size | api.Duration | int64 | float64](ps *problems, name string, v *T, def, top, least T) {
	if *v == 0 {
		*v = def
		if top != 0 {
			*v = min(*v, top)
		}
		return
	}
	if *v < least || *v < 0 {
		ps.add("limits."+name, fmt.Sprint(*v), "at least %v", least)
	}
	if top != 0 && *v > top {
		ps.add("limits."+name, fmt.Sprint(*v), "at most %v in this profile", top)
	}
}
