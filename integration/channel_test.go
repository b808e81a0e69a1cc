package integration_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// serveScript serves one word at a port of the loopback.
const serveScript = `
import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen()
while True:
    c, _ = s.accept(); c.sendall(sys.argv[2].encode()); c.close()
`

// TestChannel: an agent reaches the server of another agent of its caller's where its
// request and its ceiling name it, and no other agent, port or caller.
func TestChannel(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock, kerneltest.BaseImage)
	table := "[[caller]]\nmatch = \"uid:%d\"\negress = [\"tcp db.agent.creel.internal:5432,3128,3129\", \"tcp many.agent.creel.internal:5432\"]\negress_connections = 100\n"
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath(), Config: fmt.Sprintf(table, stranger) + fmt.Sprintf(table, stranger+1)})
	open(t, l)
	guest := &syscall.Credential{Uid: stranger, Gid: stranger}
	other := &syscall.Credential{Uid: stranger + 1, Gid: stranger + 1}
	start := func(as *syscall.Credential, args ...string) string {
		t.Helper()
		out, errOut, code := l.CreelAs(as, "", append([]string{"run", "-d"}, args...)...)
		if code != 0 {
			t.Fatal(errOut)
		}
		return strings.TrimSpace(out)
	}
	serve := func(as *syscall.Credential, agent, word string, args ...string) string {
		return start(as, append(append([]string{"--agent", agent}, args...), "--", "python3", "-c", serveScript, "5432", word)...)
	}
	// A server has no need of a network of its own.
	db := serve(guest, "db", "the guest's")
	serve(other, "db", "another caller's")
	serve(guest, "many", "one")
	serve(guest, "many", "two")
	client := start(guest, "--agent", "web", "--allow", "tcp db.agent.creel.internal:5432,3128,3129", "--allow", "tcp many.agent.creel.internal:5432")
	theirs := start(other, "--agent", "web", "--allow", "tcp db.agent.creel.internal:5432")
	none := start(guest, "--agent", "web", "--allow", "tcp many.agent.creel.internal:5432")
	reach := func(when string, as *syscall.Credential, id, host string, port int, want string) {
		t.Helper()
		var got string
		l.Eventually(fmt.Sprintf("%s: %s:%d: %s", when, host, port, want), 20*time.Second, func() error {
			out, errOut, _ := l.CreelAs(as, "", "exec", id, "--", "python3", "-c", connectScript, host, fmt.Sprint(port))
			if got = out + errOut; !strings.HasPrefix(got, want) {
				return fmt.Errorf("got %q", got)
			}
			return nil
		})
	}
	const at, reset, unknown = "db.agent.creel.internal", "ConnectionResetError ", "gaierror "
	reach("at first", guest, client, at, 5432, "heard the guest's")
	reach("at first", other, theirs, at, 5432, "heard another caller's")
	reach("another port", guest, client, at, 22, reset)
	reach("its proxy", guest, client, at, 3128, reset)
	reach("its identity", guest, client, at, 3129, reset)
	reach("not by its request", guest, none, at, 5432, unknown)
	reach("an agent with several", guest, client, "many.agent.creel.internal", 5432, reset)
	reach("no rule", guest, client, "web.agent.creel.internal", 5432, unknown)
	reach("of another's name", guest, client, "db.agent.creel.internal.example.com", 5432, unknown)
	if out, _, _ := l.CreelAs(guest, "", "inspect", client); !strings.Contains(out, `"egress_connections": 100`) {
		t.Errorf("the ceiling's budget is not its: %s", out)
	}
	if _, errOut, code := l.CreelAs(guest, "", "run", "--rm", "--allow", "tcp "+at+":5432", "--egress-connections", "101", "--", "true"); code == 0 || !strings.Contains(errOut, "ceiling.egress_connections") {
		t.Errorf("beyond its ceiling's budget: %d %s", code, errOut)
	}
	if _, errOut, code := l.CreelAs(guest, "", "run", "--rm", "--allow", "tcp web.agent.creel.internal:5432", "--", "true"); code == 0 || !strings.Contains(errOut, "ceiling") {
		t.Errorf("beyond its ceiling: %d %s", code, errOut)
	}
	l.KillProcess(lab.Egress, client)
	reach("after its creel-egress was killed", guest, client, at, 5432, "heard the guest's")
	l.Kill()
	l.Start()
	open(t, l)
	reach("after creeld was killed", guest, client, at, 5432, "heard the guest's")
	if _, errOut, code := l.CreelAs(guest, "", "rm", "-f", db); code != 0 {
		t.Error(errOut)
	}
	reach("after it ended", guest, client, at, 5432, reset)
	serve(guest, "db", "the next one's")
	reach("when there is another", guest, client, at, 5432, "heard the next one's")
}
