package bypass_test

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress/link"
)

// restarts: nothing is let through while what serves is killed, and started again, or
// its daemon is; and what is allowed is again.
func (a *attempts) restarts() {
	w := a.w
	// After both ended, a name may have another address. A datagram that a process
	// took with it is asked again, as resolvers do.
	query := func(name string) (addrs []netip.Addr, rcode string) {
		for range 3 {
			if addrs, rcode = w.query(name+".", dnsmessage.TypeA); rcode != "no answer" {
				break
			}
		}
		return addrs, rcode
	}
	at := func(name string, port uint16) netip.AddrPort {
		addrs, rcode := query(name)
		if len(addrs) != 1 {
			w.t.Errorf("%s: %s", name, rcode)
			return netip.AddrPort{}
		}
		return netip.AddrPortFrom(addrs[0], port)
	}
	// A connection that nobody serves any more ends in one of two ways.
	ended := func(got string) string {
		if got == "closed" {
			return "reset"
		}
		return got
	}
	kill := func() {
		for _, pid := range w.pids() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	daemon := func() {
		if err := w.restart(); err != nil {
			w.t.Error(err)
		}
	}
	for how, stop := range map[string]func(){
		"creel-egress is killed": kill, "creeld is started again": daemon, "both are": func() { kill(); daemon() },
	} {
		for i := range 3 {
			when := fmt.Sprintf(", when %s (%d)", how, i+1)
			stop()
			a.try("metadata"+when, "reset", nil, func() string {
				return ended(w.say(netip.MustParseAddrPort(metadata+":80"), "GET / HTTP/1.1\r\n\r\n"))
			})
			stop()
			a.try("another name in TLS"+when, "reset", nil, func() string {
				return ended(w.handshake(at("good.example", 443), &tls.Config{ServerName: "evil.example", InsecureSkipVerify: true}, ""))
			})
			stop()
			a.try("a query for another name"+when, "NameError", nil, func() string {
				_, rcode := query("evil.example")
				return rcode
			})
			stop()
			a.try("what is allowed"+when, "raw\n", []string{"internet " + goodAddr + ":22 raw"}, func() string { return w.later(at("raw.example", 22)) })
		}
	}
}

// told: each refusal is told, with who refused it.
func told(t *testing.T, w *world) {
	t.Helper()
	w.say(netip.AddrPortFrom(w.addr("web.example"), 80), "GET /private HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n")
	w.handshake(netip.AddrPortFrom(w.addr("good.example"), 443), &tls.Config{ServerName: "evil.example", InsecureSkipVerify: true}, "")
	w.say(netip.MustParseAddrPort(metadata+":80"), "")
	w.query("evil.example.", dnsmessage.TypeA)
	want := map[string]func(link.Record) bool{
		"a request": func(r link.Record) bool {
			return r.Kind == link.KindRequest && r.Path == "/private" && r.Method == "GET" && r.By == "the test's policy"
		},
		"a name": func(r link.Record) bool {
			return r.Kind == link.KindName && r.To == "evil.example" && r.By == "the test's policy"
		},
		"a connection": func(r link.Record) bool {
			return r.Kind == link.KindConnection && r.To == metadata+":80" && r.By == "the test's policy"
		},
		"TLS": func(r link.Record) bool {
			return r.Kind == link.KindConnection && r.To == "good.example:443" && strings.Contains(r.Error, "evil.example")
		},
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		w.mu.Lock()
		records := slices.Clone(w.records)
		w.mu.Unlock()
		missing := ""
		for name, is := range want {
			if !slices.ContainsFunc(records, func(r link.Record) bool { return !r.Allowed && r.ID == "bypass" && is(r) }) {
				missing += name + " "
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not told: %s: %+v", missing, records)
		}
	}
}
