package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestGrant: the agents that the operator names may write one directory at the
// same time, those in it, and no other; and their evidence says so.
func TestGrant(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	top, err := os.MkdirTemp("/srv", "creel-test-") //nolint:usetesting // anybody can change what is in /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	const other = callerUID + 1
	base, dir := filepath.Join(top, "base"), filepath.Join(top, "base", "x")
	sub, theirs := filepath.Join(dir, "sub"), filepath.Join(dir, "theirs")
	for _, err := range []error{
		os.Chmod(top, 0o755), os.MkdirAll(sub, 0o755), os.Mkdir(theirs, 0o755), os.Mkdir(filepath.Join(base, "y"), 0o755),
		os.Chown(dir, callerUID, callerUID), os.Chown(sub, callerUID, callerUID), os.Chown(theirs, other, other),
		os.Chown(filepath.Join(base, "y"), callerUID, callerUID),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	grant := fmt.Sprintf("[[share]]\npath = %q\nagents = [\"uid:%d/one\", \"uid:%d/two\", \"uid:%d/one\"]\n", dir, callerUID, callerUID, other)
	l := lab.New(t, lab.Options{Config: grant})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	as := func(uid uint32, agent, dir string, args ...string) (string, string, int) {
		t.Helper()
		cred := &syscall.Credential{Uid: uid, Gid: uid}
		return l.CreelAs(cred, "", append([]string{"run", "--agent", agent, "-v", dir + ":/w"}, args...)...)
	}
	hold := func(name, agent, dir string) string {
		t.Helper()
		out, errOut, code := as(callerUID, agent, dir, "-d", "--name", name)
		if code != 0 {
			t.Fatalf("%s: %q", name, errOut)
		}
		return strings.TrimSpace(out)
	}
	try := func(what string, uid uint32, agent, dir string, want int) {
		t.Helper()
		_, errOut, code := as(uid, agent, dir, "--rm", "--", "/bin/sh", "-c", fmt.Sprintf("echo >/w/%d-%s", uid, agent))
		if code != want || want == 125 && !strings.Contains(errOut, "is writable in") {
			t.Errorf("%s: %d, want %d; %q", what, code, want, errOut)
		}
	}
	one := hold("holder", "one", dir)
	try("a second agent", callerUID, "two", dir, 0)
	try("a second agent, in it", callerUID, "two", sub, 0)
	try("another caller's agent", other, "one", theirs, 0)
	try("an agent that is not named", callerUID, "three", dir, 125)
	try("another caller's agent that is not named", other, "two", dir, 125)
	// A directory above holds more than was granted.
	if err := os.Chown(base, callerUID, callerUID); err != nil {
		t.Fatal(err)
	}
	// And from here on the caller says what the path means, so it means nothing.
	try("above it", callerUID, "two", base, 125)
	try("once the caller can move it", callerUID, "two", dir, 125)
	if err := os.Chown(base, 0, 0); err != nil {
		t.Fatal(err)
	}
	// It is the directory that is granted, not what has its name.
	if err := os.Rename(dir, filepath.Join(base, "old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(base, "y"), dir); err != nil {
		t.Fatal(err)
	}
	try("the directory under another name", callerUID, "two", filepath.Join(base, "old"), 125)
	try("another of its name", callerUID, "two", dir, 0)
	if err := os.Rename(dir, filepath.Join(base, "y")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(base, "old"), dir); err != nil {
		t.Fatal(err)
	}
	// Only what is shared is told of, and to whom it is.
	want := api.Share{Target: "/w", Path: dir, With: []string{fmt.Sprintf("uid:%d/two", callerUID), fmt.Sprintf("uid:%d/one", other)}}
	sb, err := l.Inspect(t.Context(), one)
	if err != nil || len(sb.Shares) != 1 || fmt.Sprint(sb.Shares[0]) != fmt.Sprint(want) {
		t.Errorf("inspect: %+v, %v", sb, err)
	}
	told := func(id string) bool {
		t.Helper()
		ev, err := l.Evidence(t.Context(), id, true)
		if err != nil || !ev[0].OK {
			t.Fatalf("evidence: %v", err)
		}
		return strings.Contains(strings.Join(ev[0].Weaker, "\n"), "share: /w can be written by "+strings.Join(want.With, ", ")+" at the same time, because the operator shares "+dir)
	}
	if !told(one) {
		t.Error("the evidence does not tell")
	}
	if id := hold("elsewhere", "one", filepath.Join(base, "y")); told(id) {
		t.Error("the evidence tells of a directory that is not shared")
	}
	// A daemon without the grant leaves what runs, and says what it was told.
	l.Kill()
	l.Start()
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if !told(one) {
		t.Error("the next daemon does not tell")
	}
	try("after a kill", callerUID, "two", dir, 0)
	for _, name := range []string{fmt.Sprintf("%d-two", callerUID), fmt.Sprintf("theirs/%d-one", other)} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
