package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// use is one use of a tool and what the model has to see of it: that text, or
// if it begins with "^" what matches it.
type use struct {
	tool string
	args obj
	want string
}

// failed is how OpenClaw tells the model that a tool failed.
func failed(tool, text string) string {
	return fmt.Sprintf("{\n  \"status\": \"error\",\n  \"tool\": %q,\n  \"error\": %s\n}", tool, strconv.Quote(text))
}

// uses has an agent use tools one after the other, in one turn.
func (g *gateway) uses(t *testing.T, agent, session string, uses ...use) {
	t.Helper()
	steps := make([]step, len(uses))
	for i, u := range uses {
		steps[i] = do(u.tool, u.args)
	}
	results := g.results(t, agent, session, steps...)
	for i, u := range uses {
		same(t, fmt.Sprint(u.tool, " ", u.args), results[i], u.want)
	}
}

// same compares what there is with a text, or a pattern that begins with "^".
func same(t *testing.T, what, got, want string) {
	t.Helper()
	ok := got == want
	if strings.HasPrefix(want, "^") {
		ok = regexp.MustCompile("(?s)" + want + "$").MatchString(got)
	}
	if !ok {
		t.Errorf("%s:\n got %s\nwant %s", what, short(got), want)
	}
}

func short(s string) string {
	if len(s) > 3000 {
		s = s[:1500] + " ... " + s[len(s)-1500:]
	}
	return strconv.Quote(s)
}

func shell(command string, more ...any) obj {
	args := obj{"command": command}
	for i := 0; i < len(more); i += 2 {
		args[more[i].(string)] = more[i+1]
	}
	return args
}

// sandboxes are those that have not ended, of a session, or all.
func (w *world) sandboxes(t *testing.T, session string) []api.Sandbox {
	t.Helper()
	o := client.ListOptions{}
	if session != "" {
		o.Labels = map[string]string{"openclaw.session": session}
	}
	all, err := w.List(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// sandbox is the one that a session has.
func (w *world) sandbox(t *testing.T, session string) api.Sandbox {
	t.Helper()
	all := w.sandboxes(t, session)
	if len(all) != 1 {
		t.Fatalf("session %s has %d sandboxes", session, len(all))
	}
	return all[0]
}

// process is the pid, on the host, of one that was started with these words; 0
// when there is none.
func process(words ...string) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmd, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && string(cmd) == strings.Join(words, "\x00")+"\x00" {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			return pid
		}
	}
	return 0
}

// relays are the creel commands that the gateways' user runs.
func (w *world) relays() (out []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		fi, err := os.Stat(dir)
		cmd, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && fi.Sys().(*syscall.Stat_t).Uid == gatewayUID && strings.HasPrefix(string(cmd), filepath.Join(w.Lab.Dir, "creel")+"\x00") {
			out = append(out, filepath.Base(dir)+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return out
}

// ends waits until a command runs nowhere any more, and no relay does.
func (w *world) ends(t *testing.T, words ...string) {
	t.Helper()
	w.Eventually(fmt.Sprintf("%q ends", words), 20*time.Second, func() error {
		if pid := process(words...); pid != 0 {
			return fmt.Errorf("it is pid %d", pid)
		}
		if r := w.relays(); len(r) > 0 {
			return fmt.Errorf("relays: %q", r)
		}
		return nil
	})
}

// begins waits until a command runs, and gives its pid.
func (w *world) begins(t *testing.T, words ...string) (pid int) {
	t.Helper()
	w.Eventually(fmt.Sprintf("%q begins", words), 20*time.Second, func() error {
		if pid = process(words...); pid == 0 {
			return fmt.Errorf("it does not run")
		}
		return nil
	})
	return pid
}

// clear removes all sandboxes, as an operator.
func (w *world) clear(t *testing.T) {
	t.Helper()
	all, err := w.List(t.Context(), client.ListOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range all {
		if err := w.Remove(t.Context(), sb.ID, true); err != nil && api.CodeOf(err) != api.CodeNotFound {
			t.Error(err)
		}
	}
}

// owned holds everything below a directory to be the gateways' user's, without
// set-ID bits.
func owned(t *testing.T, dir string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if st := fi.Sys().(*syscall.Stat_t); st.Uid != gatewayUID || st.Gid != gatewayUID && st.Gid != socketGID || fi.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
			t.Errorf("%s: %s, of %d:%d", path, fi.Mode(), st.Uid, st.Gid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
