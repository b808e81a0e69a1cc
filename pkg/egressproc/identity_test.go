package egressproc_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
	"github.com/creel-sandbox/creel/pkg/netns"
)

// whoami asks who a sandbox is, as a program in it does.
func whoami(t *testing.T, ns *netns.NS) (int, string) {
	t.Helper()
	c, err := dial(ns, "tcp", "127.0.0.1:3129")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/svid HTTP/1.1\r\nHost: x\r\nworkload.spiffe.io: true\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestIdentity: each sandbox is told who it is and never who another is; also by
// the next process, and by one that has the next daemon. Without a daemon it keeps
// what it has, and a sandbox that had none gets none.
func TestIdentity(t *testing.T) {
	b := newBox(t)
	port := service(t, "hello")
	second := b.namespace()
	b.add(b.ns, "one", policy(synthetic.NewRange6(), toBox(port)))
	b.add(second, "two", policy(synthetic.NewRange6(), toBox(port)))
	is := func(when string, ns *netns.NS, id string) {
		t.Helper()
		want := fmt.Sprintf(`"spiffe_id":"spiffe://box.example.com/%s"`, id)
		if code, body := whoami(t, ns); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s, want %s", when, code, body, want)
		}
	}
	is("at first", b.ns, "one")
	is("at first", second, "two")
	if err := unix.Kill(b.pids()[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	is("after its process was killed", b.ns, "one")

	b.k.Close()
	is("without a daemon", b.ns, "one")
	if code, body := whoami(t, second); code != http.StatusServiceUnavailable || !strings.Contains(body, "creeld does not answer") {
		t.Errorf("without a daemon, for the first time: %d %s", code, body)
	}
	b.start()
	is("with the next daemon", second, "two")
}

// TestChannel: a sandbox is connected to an agent of its caller's by the daemon, also
// by the next process, and not while there is no daemon.
func TestChannel(t *testing.T) {
	b := newBox(t)
	port := service(t, "the database")
	b.add(b.ns, "one", policy(synthetic.NewRange6(), fmt.Sprintf("tcp db.agent.creel.internal:%d", port), fmt.Sprintf("tcp other.agent.creel.internal:%d", port)))
	at := func(name string) string {
		found, err := look(t, b.ns, "udp", name)
		if err != nil {
			t.Fatal(err)
		}
		return netip.AddrPortFrom(found[0], port).String()
	}
	db, other := at("db.agent.creel.internal"), at("other.agent.creel.internal")
	reach := func(when, to, want string) {
		t.Helper()
		if got, err := hear(b.ns, to); got != want || (want == "") == (err == nil) {
			t.Errorf("%s: %q, %v", when, got, err)
		}
	}
	reach("at first", db, "the database")
	reach("another agent", other, "")
	if err := unix.Kill(b.pids()[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	reach("after its process was killed", db, "the database")
	b.k.Close()
	reach("without a daemon", db, "")
	b.start()
	reach("with the next daemon", db, "the database")
}
