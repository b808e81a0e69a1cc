package auditlog

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// secret are the keys of a request whose values are not recorded: of env the
// names are, of the others that they were there.
var secret = map[string]bool{"input": true, "input_base64": true}

// asked is a request, key by key, without what may be secret and without its
// command, which has a place of its own.
func asked(req any) map[string]string {
	text, err := json.Marshal(req)
	if err != nil {
		return map[string]string{"unreadable": err.Error()}
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return map[string]string{"unreadable": err.Error()}
	}
	out := map[string]string{}
	for k, v := range all {
		var s string
		var env map[string]string
		switch {
		case k == "command":
		case k == "env" && json.Unmarshal(v, &env) == nil:
			if len(env) > 0 {
				out[k] = strings.Join(slices.Sorted(maps.Keys(env)), " ")
			}
		case secret[k] || k == "env":
			out[k] = fmt.Sprintf("(%d bytes)", len(v))
		case json.Unmarshal(v, &s) == nil:
			out[k] = s
		default:
			out[k] = string(v)
		}
	}
	return out
}

// command records a command as configured.
func (r *Recorder) command(e *audit.Entry, argv []string) {
	if len(argv) == 0 {
		return
	}
	if r.commands == Full {
		if r.hide == nil || e.Who == nil {
			e.Command = argv
			return
		}
		for _, a := range argv {
			e.Command = append(e.Command, r.hide(e.Who.UID, a))
		}
		return
	}
	h := sha256.New()
	for _, a := range argv {
		_, _ = h.Write(append([]byte(a), 0))
	}
	digest(e, "command", fmt.Sprintf("sha256:%x", h.Sum(nil)))
}

func digest(e *audit.Entry, what, v string) {
	if v == "" {
		return
	}
	e.Digests = with(e.Digests, what, v)
}

// with is m and one more, never in m itself.
func with(m map[string]string, k, v string) map[string]string {
	out := maps.Clone(m)
	if out == nil {
		out = map[string]string{}
	}
	out[k] = v
	return out
}

// who is the caller and, of the process that connected, what /proc says now.
// That it is still the same process the pidfd tells, asked last.
func who(c peer.Cred) *audit.Who {
	w := &audit.Who{UID: c.UID, GID: c.GID, Groups: c.Groups, PID: c.PID, LoginUID: -1, Via: c.Via}
	if c.PID <= 0 || c.PIDFD == nil {
		return w
	}
	dir := "/proc/" + strconv.Itoa(int(c.PID))
	exe, _ := os.Readlink(dir + "/exe")
	login := int64(-1)
	if b, err := os.ReadFile(dir + "/loginuid"); err == nil {
		n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
		if err == nil && n != 1<<32-1 { // that is "not set", see proc(5)
			login = int64(n)
		}
	}
	raw, err := c.PIDFD.SyscallConn()
	if err != nil {
		return w
	}
	alive := false
	if err := raw.Control(func(fd uintptr) { alive = unix.PidfdSendSignal(int(fd), 0, nil, 0) == nil }); err == nil && alive {
		w.Exe, w.LoginUID = exe, login
	}
	return w
}
