package integration_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestApproval: what a ceiling has asked for waits for who may let it, holds once,
// for the sandbox or for its agent, whatever is killed meanwhile, and is denied in
// the end.
func TestApproval(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock, kerneltest.BaseImage)
	var ports [6]uint16
	for i := range ports {
		ports[i] = greeter(t, fmt.Sprint("of ", i))
	}
	to := func(i int) string { return fmt.Sprintf("host.creel.internal:%d", ports[i]) }
	var ask []string
	for i := 1; i < 5; i++ {
		ask = append(ask, fmt.Sprintf("%q", "tcp "+to(i)))
	}
	table := `
[[caller]]
match = "uid:%d"
egress = ["tcp %s"]
ask = [` + strings.Join(ask, ", ") + `]
approve = %q
`
	l := lab.New(t, lab.Options{
		Image: kerneltest.BaseImagePath(), Top: fmt.Sprintf("operators = [\"uid:%d\"]", stranger+2),
		Config: "[egress]\nask_ttl = \"4s\"\n" + fmt.Sprintf(table, stranger, to(0), "operator") + fmt.Sprintf(table, stranger+1, to(0), "caller"),
	})
	open(t, l)
	guest := &syscall.Credential{Uid: stranger, Gid: stranger}
	owner := &syscall.Credential{Uid: stranger + 1, Gid: stranger + 1}
	operator := &syscall.Credential{Uid: stranger + 2, Gid: stranger + 2}
	creel := func(as *syscall.Credential, args ...string) (string, int) {
		t.Helper()
		out, errOut, code := l.CreelAs(as, "", args...)
		return out + errOut, code
	}
	run := func(as *syscall.Credential, agent string) string {
		t.Helper()
		out, code := creel(as, "run", "-d", "--agent", agent, "--network", "policy")
		if code != 0 {
			t.Fatal(out)
		}
		return strings.TrimSpace(out)
	}
	const refused = "ConnectionResetError "
	reaches := func(as *syscall.Credential, id string, i int, want string) {
		t.Helper()
		got, _ := creel(as, "exec", id, "--", "python3", "-c", connectScript, "host.creel.internal", fmt.Sprint(ports[i]))
		if !strings.HasPrefix(got, want) {
			t.Errorf("server %d: %q, want %q", i, got, want)
		}
	}
	heard := func(i int) string { return fmt.Sprint("heard of ", i) }
	// asks has the sandbox be refused, and gives the approval's id.
	asks := func(as *syscall.Credential, id string, i int) (approval string) {
		t.Helper()
		reaches(as, id, i, refused)
		awaitAudit(t, l, "that it is asked for", func(r map[string]any) bool {
			detail, _ := r["detail"].(map[string]any)
			if r["action"] == "approval.requested" && r["sandbox"] == id && detail["to"] == to(i) {
				approval, _ = detail["id"].(string)
			}
			return approval != ""
		})
		return approval
	}
	says := func(as *syscall.Credential, want string, args ...string) {
		t.Helper()
		out, code := creel(as, append([]string{"egress"}, args...)...)
		if !strings.Contains(out, want) || (code == 0) == strings.Contains(out, "creel: ") {
			t.Errorf("egress %v: %d %q, want %q", args, code, out, want)
		}
	}

	mine := run(owner, "coder") // another caller's, of the same name
	id := run(guest, "coder")
	reaches(guest, id, 0, heard(0))
	one := asks(guest, id, 1)
	reaches(guest, id, 1, refused)
	says(guest, "operator", "pending")
	says(guest, one, "pending", id)
	says(guest, "is for an operator to decide on", "approve", one)
	says(owner, "no sandbox", "approve", one)
	says(owner, "no sandbox", "deny", one)
	if out, _ := creel(owner, "egress", "pending"); strings.Contains(out, one) {
		t.Errorf("another caller sees it: %s", out)
	}

	// Once is once, also with the process killed before it is used.
	says(operator, "(once)", "approve", "--once", one)
	l.KillProcess(lab.Egress, id)
	reaches(guest, id, 1, heard(1))
	reaches(guest, id, 1, refused)
	l.KillProcess(lab.Egress, id)
	reaches(guest, id, 1, refused)
	says(guest, "used (once)", "pending", "--all", id)
	says(operator, "(once)", "approve", "--once", one)
	reaches(guest, id, 1, heard(1))
	reaches(guest, id, 1, refused)

	// For the sandbox.
	says(operator, "(sandbox)", "approve", one)
	two := asks(guest, id, 2)
	says(operator, "", "deny", two)
	l.Kill()
	l.KillProcess(lab.Egress, id)
	l.Start()
	open(t, l)
	reaches(guest, id, 1, heard(1))
	reaches(guest, id, 1, heard(1))
	reaches(guest, id, 2, refused)
	says(guest, "denied", "pending", "--all", id)

	// For the agent, and no other's.
	says(operator, "agent coder\n+ tcp "+to(3)+"\n", "approve", "--agent", asks(guest, id, 3))
	reaches(guest, id, 3, heard(3))
	next, other := run(guest, "coder"), run(guest, "writer")
	reaches(guest, next, 3, heard(3))
	reaches(guest, next, 1, refused)
	reaches(guest, other, 3, refused)
	says(guest, "agent coder\n", "forget", "coder", "tcp "+to(3))
	reaches(guest, next, 3, heard(3))
	reaches(guest, run(guest, "coder"), 3, refused)

	// A child has none that its parent does not have, and cannot be let one.
	out, code := creel(guest, "run", "-d", "--agent", "coder", "--network", "policy", "--parent", id)
	if child := strings.TrimSpace(out); code == 0 {
		reaches(guest, child, 0, heard(0))
		reaches(guest, child, 4, refused)
		if out, _ := creel(guest, "egress", "pending", "--all", child); strings.Contains(out, to(4)) {
			t.Errorf("a child asks: %s", out)
		}
	} else {
		t.Error(out)
	}

	// What no ceiling has asked for nobody is asked for, and what nobody answers is
	// denied.
	reaches(guest, id, 5, refused)
	four := asks(guest, id, 4)
	awaitAudit(t, l, "that it has expired", func(r map[string]any) bool {
		detail, _ := r["detail"].(map[string]any)
		return r["action"] == "approval.expired" && detail["id"] == four
	})
	reaches(guest, id, 4, refused)
	if out, _ := creel(guest, "egress", "pending", "--all", id); !strings.Contains(out, "expired") || strings.Contains(out, to(5)) {
		t.Errorf("at the end: %s", out)
	}

	// Where the ceiling says so, its caller lets it.
	says(owner, "(sandbox)", "approve", asks(owner, mine, 1))
	reaches(owner, mine, 1, heard(1))
	awaitAudit(t, l, "who let it", func(r map[string]any) bool {
		asked, _ := r["asked"].(map[string]any)
		return r["action"] == "approval.decide" && r["sandbox"] == mine && asked["for"] == "sandbox"
	})
	verifyAudit(t, l)
}
