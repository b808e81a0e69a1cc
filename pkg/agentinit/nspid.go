package agentinit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// ErrNoMatch means that none of the candidates is the process looked for.
var ErrNoMatch = errors.New("no process of that pid")

// MatchNSPid finds among candidates, pids of the daemon's namespace, the one
// that has the pid nspid in its own, innermost namespace. Candidates that
// have ended are passed over. The caller's candidates must all be of one
// sandbox, for instance a cgroup's: pids of several namespaces repeat.
func MatchNSPid(candidates []int, nspid int) (int, error) {
	for _, pid := range candidates {
		got, err := innermost(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH):
			continue
		case err != nil:
			return 0, err
		case got == nspid:
			return pid, nil
		}
	}
	return 0, fmt.Errorf("pid %d among %d candidates: %w", nspid, len(candidates), ErrNoMatch)
}

// innermost reads the last number of NSpid in proc_pid_status(5).
func innermost(pid int) (int, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		rest, ok := strings.CutPrefix(sc.Text(), "NSpid:")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			break
		}
		return strconv.Atoi(f[len(f)-1])
	}
	return 0, fmt.Errorf("/proc/%d/status has no NSpid", pid)
}
