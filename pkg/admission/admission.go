// Package admission decides what a request becomes: one closed, resolved
// sandbox with every default filled in, or an error that lists every mistake.
//
// It does no I/O. Nothing downstream reads the request again: what is not in
// the result is not granted.
package admission

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/profile"
	"github.com/creel-sandbox/creel/pkg/spec"
)

// Bounds on a request. Together they keep every message to PID 1 below its
// limit of 128 KiB.
const (
	maxArgs     = 4096
	maxEnv      = 512
	maxText     = 96 << 10 // bytes of arguments and environment together
	maxLabels   = 64
	maxLabelLen = 256
	// An exec may have fewer: the newest 256 are kept for each sandbox.
	maxExecLabels = 16
	maxPath       = 1024
	maxSource     = 4096 // PATH_MAX; it is for people to read
)

// maxProtected is how many of a sandbox's mounts may have protect: each is many
// mounts more, and as many controls in the evidence.
const maxProtected = 4

// MaxMounts is how many directories and volumes one sandbox may have.
const MaxMounts = 16

// Minimums below which an agent cannot start at all.
const (
	minMemory = 16 << 20
	minPids   = 4
	minFiles  = 256 // creel-init's own have numbers from 100 on
	minCPUs   = 0.01
	minTmp    = 1 << 20
	minShm    = 64 << 10
)

// Policy is what the daemon offers.
type Policy struct {
	Profiles       profile.Set
	DefaultProfile string
	DefaultImage   string // when neither the request nor its profile names one
	DefaultRuntime string
	Runtimes       []string
}

// Admitted is a request that may be launched.
type Admitted struct {
	Request api.SpawnRequest // with its defaults filled in
	Profile *profile.Profile
	Limits  api.Limits // resolved; no zero means "default" any more
	Tmpfs   []spec.Tmpfs
	// Egress are those who have a say in what is reached: the profile and the
	// request, where it has rules. The caller's ceiling and the parent's come to
	// it at the launch.
	Egress []api.EgressParty
}

var (
	nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	envRE  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,255}$`)
	// imageRE is a reference as people type it: name[:tag][@digest].
	imageRE = regexp.MustCompile(`^[a-z0-9][a-zA-Z0-9._/:@-]{0,255}$`)
)

const wantName = "1 to 63 of a-z, 0-9 and -, starting with a letter or digit"

// reserved are the paths no mount may cover or sit in: they are the kernel's,
// creel's, or would change what the proof reads.
var reserved = []string{"/dev", "/proc", "/sys", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/boot"}

// problems collects the mistakes of one request.
type problems []api.Problem

func (p *problems) add(field, value, format string, args ...any) {
	*p = append(*p, api.Problem{Field: field, Value: clip(value), Want: fmt.Sprintf(format, args...)})
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	e := api.Errorf(api.CodeInvalid, "the request has %d problem(s)", len(p))
	e.Problems = p
	return e
}

// clip keeps a wrong value from filling the answer.
func clip(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	for i := most; i > 0; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i] + "..."
		}
	}
	return ""
}

// Resolve checks req against the profile it names. The error is an
// *api.Error of class invalid_argument that lists every problem at once.
func Resolve(req api.SpawnRequest, pol Policy) (*Admitted, error) {
	var ps problems
	a := &Admitted{Request: req}
	r := &a.Request
	r.Profile = or(r.Profile, pol.DefaultProfile)
	r.Agent = or(r.Agent, "default")
	r.Runtime = or(r.Runtime, pol.DefaultRuntime)

	p, err := pol.Profiles.Get(r.Profile)
	if err != nil {
		ps.add("profile", r.Profile, "one of %s", strings.Join(pol.Profiles.Names(), ", "))
		return nil, ps.err() // without a profile nothing else can be judged
	}
	a.Profile = p
	if req.Profile == "" && p.Root() {
		ps.add("profile", "", "a profile by name: %s is root in its sandbox, and never a default", p.Name)
	}
	r.Image = or(or(r.Image, p.Image), pol.DefaultImage)
	r.Rootfs = or(r.Rootfs, p.Rootfs[0])
	r.Home = or(r.Home, p.Home[0])
	r.Network = or(r.Network, p.Network[0])

	if r.Name != "" && !nameRE.MatchString(r.Name) {
		ps.add("name", r.Name, wantName)
	}
	if !nameRE.MatchString(r.Agent) {
		ps.add("agent", r.Agent, wantName)
	}
	if !imageRE.MatchString(r.Image) {
		ps.add("image", r.Image, "a reference such as base, base:latest or sha256:…")
	}
	if !slices.Contains(pol.Runtimes, r.Runtime) {
		ps.add("runtime", r.Runtime, "one of %s", strings.Join(pol.Runtimes, ", "))
	}
	a.Egress = resolveNetwork(&ps, r, p)
	checkLogs(&ps, r.Logs)
	if !slices.Contains(p.Rootfs, r.Rootfs) {
		ps.add("rootfs", r.Rootfs, "one of %s in profile %s", strings.Join(p.Rootfs, ", "), p.Name)
	}
	if !slices.Contains(p.Home, r.Home) {
		ps.add("home", r.Home, "one of %s in profile %s", strings.Join(p.Home, ", "), p.Name)
	}
	checkLabels(&ps, r.Labels, maxLabels)
	checkMounts(&ps, r.Mounts, p)
	if r.Home == "persistent" {
		checkHome(&ps, r.Mounts)
	}
	if r.Socket {
		checkSocket(&ps, r.Mounts)
	}
	a.Limits = resolveLimits(&ps, r.Limits, p)
	checkProcess(&ps, r.Command, r.Env, r.Workdir, len(r.Command) == 0)
	if len(r.Command) == 0 {
		for field, set := range map[string]bool{"tty": r.TTY, "stdin": r.Stdin, "attach": r.Attach, "timeout": r.Timeout != 0} {
			if set {
				ps.add(field, "", "only with a command")
			}
		}
	}
	if err := ps.err(); err != nil {
		return nil, err
	}
	if r.Workdir == "" {
		r.Workdir = spec.HomeOf(p.User)
		if len(r.Mounts) > 0 {
			r.Workdir = r.Mounts[0].Target
		}
	}
	a.Tmpfs = tmpfs(a)
	return a, nil
}

func tmpfs(a *Admitted) []spec.Tmpfs {
	return spec.TmpfsOf(a.Limits, a.Request.Rootfs == "readonly", a.Request.Home == "persistent")
}

// Exec checks an exec request; the error lists every problem.
func Exec(req api.ExecRequest) error {
	var ps problems
	checkProcess(&ps, req.Command, req.Env, req.Workdir, false)
	checkLabels(&ps, req.Labels, maxExecLabels)
	if req.IO != "" && req.IO != "fds" && req.IO != "framed" {
		ps.add("io", req.IO, `"fds" or "framed"`)
	}
	checkLogs(&ps, req.Logs)
	return ps.err()
}

func checkLogs(ps *problems, logs string) {
	if logs != "" && logs != "none" {
		ps.add("logs", logs, `"none", or left out`)
	}
}

// defaultVolume is the size of a volume whose request names none.
const defaultVolume = 1 << 30

// Volume checks a request for a volume and fills in its defaults; the error
// lists every problem.
func Volume(req *api.VolumeRequest) error {
	var ps problems
	req.Agent = or(req.Agent, "default")
	if req.Size == 0 {
		req.Size = defaultVolume
	}
	if !nameRE.MatchString(req.Name) {
		ps.add("name", req.Name, wantName)
	}
	if !nameRE.MatchString(req.Agent) {
		ps.add("agent", req.Agent, wantName)
	}
	if req.Size < api.MinVolume || req.Size > api.MaxVolume {
		ps.add("size", req.Size.String(), "from %s to %s", api.MinVolume, api.MaxVolume)
	}
	req.Size = req.Size >> 20 << 20
	return ps.err()
}

// Env is the whole environment of a process of a sandbox's user: a fixed
// minimum and what the request adds. The image's environment and the daemon's are
// never part of it.
func Env(user string, add map[string]string, tty bool) map[string]string {
	env := map[string]string{
		"PATH":    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":    spec.Home,
		"USER":    "agent",
		"LOGNAME": "agent",
		"SHELL":   "/bin/bash",
		"LANG":    "C.UTF-8",
	}
	if user == api.UserRoot {
		env["HOME"], env["USER"], env["LOGNAME"] = spec.RootHome, user, user
	}
	if tty {
		env["TERM"] = "xterm-256color"
	}
	maps.Copy(env, add)
	return env
}

func checkLabels(ps *problems, labels map[string]string, most int) {
	if len(labels) > most {
		ps.add("labels", fmt.Sprint(len(labels)), "at most %d", most)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if v := labels[k]; k == "" || len(k) > maxLabelLen || len(v) > maxLabelLen || !printable(k) || !printable(v) {
			ps.add("labels", k+"="+v, "printable, at most %d bytes each", maxLabelLen)
		}
	}
}

func checkMounts(ps *problems, mounts []api.Mount, p *profile.Profile) {
	if len(mounts) > MaxMounts {
		ps.add("mounts", fmt.Sprint(len(mounts)), "at most %d", MaxMounts)
		return
	}
	if p.NoMounts && len(mounts) > 0 {
		ps.add("mounts", fmt.Sprint(len(mounts)), "none: profile %s has neither host directories nor volumes; creel cp copies files in and out", p.Name)
		return
	}
	protected := 0
	for i, m := range mounts {
		field := fmt.Sprintf("mounts[%d].", i)
		if m.Protect {
			protected++
		}
		switch {
		case m.Volume != "" && (m.FD != nil || m.Source != ""):
			ps.add(field+"volume", m.Volume, "a volume or a directory, not both")
		case m.Volume != "" && m.Own:
			ps.add(field+"own", "true", "left out for a volume")
		case m.Protect && (m.Volume != "" || m.ReadOnly):
			ps.add(field+"protect", "true", "left out: it is for a directory that can be written")
		case m.Protect && protected > maxProtected:
			ps.add(field+"protect", "true", "left out: at most %d mounts of a sandbox have it", maxProtected)
		case m.Volume != "" && !nameRE.MatchString(m.Volume):
			ps.add(field+"volume", m.Volume, wantName)
		case m.Volume == "" && m.FD == nil:
			ps.add(field+"fd", "", "a descriptor of %s sent with the request (the creel command sends it for you), or mounts.paths = true in creeld's configuration", clip(m.Source))
		}
		if len(m.Source) > maxSource || !printable(m.Source) {
			ps.add(field+"source", clip(m.Source), "a path of at most %d bytes, without control characters", maxSource)
		}
		if !m.ReadOnly && !p.WritableMounts {
			ps.add(field+"readonly", "false", "true: profile %s has no writable mounts", p.Name)
		}
		if want := badTarget(m.Target); want != "" {
			ps.add(field+"target", m.Target, "%s", want)
			continue
		}
		for j, o := range mounts[:i] {
			if m.Target == o.Target { // one in the other is what pkg/mount attaches there
				ps.add(field+"target", m.Target, "not equal to mounts[%d].target", j)
			}
		}
	}
}

// checkHome keeps mounts out of a persistent home. What is there is the agent's
// work, and it could have left a link where the runtime, as root, will look for
// the mount point.
func checkHome(ps *problems, mounts []api.Mount) {
	for i, m := range mounts {
		if within(m.Target, spec.Home) {
			ps.add(fmt.Sprintf("mounts[%d].target", i), m.Target, "not in a persistent home; /workspace, for instance")
		}
	}
}

// checkSocket keeps mounts from the place of the sandbox's own socket.
func checkSocket(ps *problems, mounts []api.Mount) {
	for i, m := range mounts {
		if within(m.Target, spec.SocketDir) || within(spec.SocketDir, m.Target) {
			ps.add(fmt.Sprintf("mounts[%d].target", i), m.Target, "not in or over %s, where the sandbox's own socket is", spec.SocketDir)
		}
	}
}

// badTarget says what a mount target should be, or nothing if it is right.
func badTarget(t string) string {
	switch {
	case !path.IsAbs(t) || path.Clean(t) != t || t == "/" || len(t) > maxPath || !printable(t):
		return "an absolute, clean path other than /"
	case within(spec.Home, t):
		// A mount over /home would hide the home; one in it is fine.
		return "not the agent's home or a directory that holds it"
	}
	for _, r := range reserved {
		if within(t, r) || within(r, t) {
			return "not in or over " + r
		}
	}
	return ""
}

// within says whether p is dir or lies below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func checkProcess(ps *problems, command []string, env map[string]string, workdir string, mayBeEmpty bool) {
	if len(command) == 0 && !mayBeEmpty {
		ps.add("command", "", "the command to run and its arguments")
	}
	if len(command) > maxArgs {
		ps.add("command", fmt.Sprint(len(command)), "at most %d arguments", maxArgs)
	}
	if len(command) > 0 && command[0] == "" {
		ps.add("command[0]", "", "a program's name or path")
	}
	text := 0
	for i, arg := range command {
		text += len(arg) + 1
		if strings.ContainsRune(arg, 0) {
			ps.add(fmt.Sprintf("command[%d]", i), arg, "no NUL byte")
		}
	}
	if len(env) > maxEnv {
		ps.add("env", fmt.Sprint(len(env)), "at most %d variables", maxEnv)
	}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		text += len(k) + len(env[k]) + 2
		if !envRE.MatchString(k) {
			ps.add("env", k, "a name of letters, digits and _ that does not start with a digit")
		}
		if strings.ContainsRune(env[k], 0) {
			ps.add("env."+k, "", "no NUL byte")
		}
	}
	if text > maxText {
		ps.add("command", fmt.Sprintf("%d bytes", text), "command and env together at most %d bytes; put the rest in a file", maxText)
	}
	if workdir != "" && (!path.IsAbs(workdir) || len(workdir) > maxPath || strings.ContainsRune(workdir, 0)) {
		ps.add("workdir", workdir, "an absolute path")
	}
}

func printable(s string) bool {
	for _, r := range s {
		if r < 0x20 || r == 0x7f || r == utf8.RuneError || 0x80 <= r && r < 0xa0 {
			return false
		}
	}
	return true
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
