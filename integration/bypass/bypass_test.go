package bypass_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// badNames are allowed by name, for port 22, and resolve to what must not be
// dialled.
var badNames = map[string]string{
	"loopback": "127.0.0.1", "loopback-high": "127.8.8.8", "zero": "0.0.0.0", "this-network": "0.1.2.3", "box": boxAddr, "box-public": boxPub, "private-10": "10.9.9.9", "private-172": "172.16.9.9",
	"private-192": lanAddr, "cgnat": "100.64.0.5", "link-local": "169.254.10.10", "metadata": metadata, "metadata-azure": "168.63.129.16", "benchmark": "198.18.7.7", "documentation": "192.0.2.5",
	"multicast": "224.0.0.1", "broadcast": "255.255.255.255", "reserved": "240.0.0.5", "relay-6to4": "192.88.99.5",
	"loopback6": "::1", "unspecified6": "::", "ula": "fc00::5", "ula-box": "fd77::2", "metadata6": "fd00:ec2::254", "link-local6": "fe80::1", "mapped": "::ffff:127.0.0.1", "mapped-metadata": "::ffff:169.254.169.254",
	"compatible": "::7f00:1", "nat64": "64:ff9b::a9fe:a9fe", "nat64-local": "64:ff9b:1::1", "6to4": "2002:a9fe:a9fe::1", "teredo": "2001:0:a9fe:a9fe::1", "documentation6": "2001:db8::5", "documentation6b": "3fff::5",
	"multicast6": "ff02::1", "site-local6": "fec0::5", "isatap": "2a00:1234::5efe:a9fe:a9fe", "discard6": "100::5", "srv6": "5f00::5",
}

func rules() (names map[string][]string, list []string) {
	names = map[string][]string{
		"good.example": {goodAddr, good6}, "a.good.example": {goodAddr}, "raw.example": {goodAddr}, "rebind.example": {goodAddr + "|127.0.0.1|" + metadata + "|" + boxAddr},
		"evil.example": {evilAddr}, "mixed.example": {"127.0.0.1", goodAddr}, "front.example": {goodAddr}, "nowhere.example": {},
		"web.example": {goodAddr}, "opened.example": {goodAddr}, "alike.example": {goodAddr}, "unverified.example": {goodAddr}, "lan-by-file.example": {goodAddr},
	}
	list = []string{
		"tls good.example:443,8443", "https opened.example GET,POST /public/**", "https alike.example GET /public/**", "https unverified.example GET /**", "*.good.example", "http web.example:80,8080 GET,POST /public/**,/exact", "tcp raw.example:22", "tcp rebind.example:22", "tcp mixed.example:22",
		"tcp nowhere.example:22", "tcp host.creel.internal:5432", "192.168.50.0/24:5432", "tcp lan-by-file.example:22", "tcp missing.example:22",
	}
	for n, a := range badNames {
		names[n+".bad.example"] = []string{a}
		list = append(list, "tcp "+n+".bad.example:22")
	}
	return names, list
}

// attempts counts the names of what is tried.
type attempts struct {
	t *testing.T
	w *world
	n int
}

// try runs one attempt, at the end of which nothing has arrived anywhere, or
// exactly that.
func (a *attempts) try(name, want string, arrived []string, fn func() string) {
	a.t.Helper()
	a.n++
	a.t.Run(name, func(t *testing.T) {
		if late := a.w.forget(); len(late) > 0 {
			t.Errorf("arrived after the attempt before this one: %q", late)
		}
		prefix, begins := strings.CutSuffix(want, "*")
		if got := fn(); got != want && (!begins || !strings.HasPrefix(got, prefix)) {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := a.w.forget(); !slices.Equal(got, arrived) {
			t.Errorf("arrived: %q, want %q", got, arrived)
		}
	})
}

// TestBypass is all attempts.
func TestBypass(t *testing.T) {
	names, list := rules()
	w := newWorld(t, names, list...)
	a := &attempts{t: t, w: w}
	t.Run("reached", func(t *testing.T) { reached(t, w) })
	a.names()
	a.addresses()
	a.resolved()
	a.rebound()
	a.overTLS()
	a.overHTTP()
	a.webSockets()
	a.openedUp()
	a.byProxy()
	a.byIdentity()
	a.datagrams()
	a.many()
	a.restarts()
	t.Run("told", func(t *testing.T) { told(t, w) })
	if late := w.forget(); len(late) > 0 {
		t.Errorf("arrived after the last attempt: %q", late)
	}
	t.Logf("%d attempts", a.n)
	if a.n < 150 {
		t.Errorf("only %d attempts", a.n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	allowed := []string{"good.example", "a.good.example", "raw.example", "rebind.example", "mixed.example", "nowhere.example", "web.example", "lan-by-file.example", "missing.example", "opened.example", "alike.example", "unverified.example"}
	for _, n := range w.asked {
		if !slices.Contains(allowed, n) && !strings.HasSuffix(n, ".bad.example") {
			t.Errorf("the resolver outside was asked for %q", n)
		}
	}
}

// reached is what the policy is for: without it the rest would prove nothing.
func reached(t *testing.T, w *world) {
	t.Helper()
	for _, tt := range []struct {
		got, want string
	}{
		{w.handshake(netip.AddrPortFrom(w.addr("good.example"), 443), &tls.Config{ServerName: "good.example", RootCAs: w.roots}, "GET /x HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n"), "HTTP/1.1 200 OK"},
		{w.handshake(netip.AddrPortFrom(w.addr("good.example"), 8443), &tls.Config{ServerName: "GOOD.example", InsecureSkipVerify: true}, "GET /x HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\n\r\n"), "HTTP/1.1 200 OK"},
		{w.handshake(netip.AddrPortFrom(w.addr("a.good.example"), 443), &tls.Config{ServerName: "a.good.example", RootCAs: w.roots}, "GET /x HTTP/1.1\r\nHost: a.good.example\r\nConnection: close\r\n\r\n"), "HTTP/1.1 200 OK"},
		{w.say(netip.AddrPortFrom(w.addr("web.example"), 80), "GET /public/a HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n"), "HTTP/1.1 200 OK"},
		{w.say(netip.AddrPortFrom(w.addr("raw.example"), 22), ""), "raw"},
		{w.say(netip.AddrPortFrom(w.addr("host.creel.internal"), 5432), ""), "raw"},
		{w.say(netip.MustParseAddrPort(lanAddr+":5432"), ""), "raw"},
		{w.say(netip.AddrPortFrom(w.addr("mixed.example"), 22), ""), "raw"}, // by the address that may be dialled
	} {
		if !strings.HasPrefix(tt.got, tt.want) {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
	var wants []string
	for _, s := range w.forget() {
		wants = append(wants, s[:min(len(s), 24)])
	}
	if len(wants) != 8 {
		t.Errorf("arrived: %q", wants)
	}
}

// names: none but those of the policy has an address, and nobody outside is
// asked for one.
func (a *attempts) names() {
	w := a.w
	for _, n := range []string{
		"evil.example.", "example.", "good.example.evil.example.", "xgood.example.", "good.example.local.", "a.b.good.example.", "ood.example.", "localhost.", "localhost.localdomain.", "metadata.google.internal.",
		"creel.internal.", "x.creel.internal.", "x.host.creel.internal.", "db.agent.creel.internal.", "agent.creel.internal.", "host.agent.creel.internal.", "host.creel.internal.good.example.", "127.0.0.1.", "2130706433.", "0x7f000001.", "0177.0.0.1.", "1.0.0.127.in-addr.arpa.", "10.0.0.45.in-addr.arpa.",
		"*.good.example.", "*.example.", ".", "com.", "xn--god-hna.example.", "g\u043eod.example.", "good\x00.example.", "good.example\x00.evil.example.", "good.example\r\n.", "good example.", "good%2eexample.", "good..example.",
		"-good.example.", "_dns.resolver.arpa.", "use-application-dns.net.", "resolver.arpa.", "wpad.", "isatap.", "id.server.", "good.example:22.", "good.example@evil.example.", "[::1].", "::1.",
		strings.Repeat("a", 63) + ".evil.example.", strings.Repeat("data.", 40) + "evil.example.",
	} {
		a.try(fmt.Sprintf("name %.40q", n), "NameError", nil, func() string {
			got, rcode := w.query(n, dnsmessage.TypeA)
			if len(got) > 0 {
				return fmt.Sprint(got)
			}
			if rcode == "unwritable" || rcode == "FormatError" {
				return "NameError" // no query at all
			}
			return rcode
		})
	}
	for _, typ := range []dnsmessage.Type{dnsmessage.TypeTXT, dnsmessage.TypeMX, dnsmessage.TypeSRV, dnsmessage.TypeNS, dnsmessage.TypeSOA, dnsmessage.TypePTR, dnsmessage.TypeCNAME, dnsmessage.TypeALL, dnsmessage.TypeAXFR, 64, 65, 257, 10} {
		a.try(fmt.Sprintf("type %d of a name", typ), "Success []", nil, func() string {
			got, rcode := w.query("good.example.", typ)
			return fmt.Sprint(rcode, " ", got)
		})
	}
	query := func(change func(*dnsmessage.Message)) []byte {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("evil.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
		change(&m)
		b, err := m.Pack()
		if err != nil {
			a.t.Fatal(err)
		}
		return b
	}
	for name, tt := range map[string]struct {
		q    []byte
		want string
	}{
		"two questions": {query(func(m *dnsmessage.Message) {
			m.Questions = append([]dnsmessage.Question{{Name: dnsmessage.MustNewName("good.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}, m.Questions...)
		}), "FormatError"},
		"no question":      {query(func(m *dnsmessage.Message) { m.Questions = nil }), "FormatError"},
		"an update":        {query(func(m *dnsmessage.Message) { m.OpCode = 5 }), "NotImplemented"},
		"a notify":         {query(func(m *dnsmessage.Message) { m.OpCode = 4 }), "NotImplemented"},
		"a response":       {query(func(m *dnsmessage.Message) { m.Response = true }), "no answer"},
		"chaos":            {query(func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }), "Refused"},
		"half":             {query(func(*dnsmessage.Message) {})[:20], "FormatError"},
		"nothing":          {[]byte{}, "no answer"},
		"too long":         {append(query(func(*dnsmessage.Message) {}), make([]byte, 1400)...), "no answer"},
		"a name in a loop": {append(query(func(*dnsmessage.Message) {})[:12], 0xc0, 12, 0, 1, 0, 1), "FormatError"},
	} {
		a.try("query "+name, tt.want, nil, func() string {
			got, rcode := w.ask(tt.q)
			if len(got) > 0 {
				return fmt.Sprint(got)
			}
			return rcode
		})
	}
}

// addresses: none is reached as such, but those of a range in the policy.
func (a *attempts) addresses() {
	w := a.w
	for _, to := range []string{
		goodAddr + ":443", goodAddr + ":22", evilAddr + ":443", resolver + ":443", metadata + ":80", "100.64.0.5:80", "10.77.0.1:22", boxAddr + ":22", boxPub + ":22", "10.9.9.9:22", lanAddr + ":22", lanAddr + ":80", "192.168.51.1:5432",
		"198.18.0.1:1", "198.18.0.1:80", "198.18.0.255:22", "198.19.255.255:22", "198.18.250.1:443", "169.254.0.1:80", "172.16.9.9:443", "240.0.0.5:22", "1.1.1.1:853", "8.8.8.8:443",
		"[" + good6 + "]:443", "[2a00:1234::66]:443", "[fd77::2]:22", "[fd00:ec2::254]:80", "[64:ff9b::a9fe:a9fe]:80", "[2002:a9fe:a9fe::1]:80", "[2001:2::1]:1", "[2001:2::1]:22", "[fe80::1]:22", "[fd00::1]:22",
	} {
		want := "reset"
		if strings.HasPrefix(to, "[fe80") {
			want = "unreachable" // without an interface's name
		}
		a.try("address "+to, want, nil, func() string { return w.say(netip.MustParseAddrPort(to), "") })
	}
	for _, to := range []string{"127.0.0.1:22", "127.0.0.1:5432", "0.0.0.0:5432", "[::1]:5432", "[::]:5432", "[::ffff:127.0.0.1]:5432"} {
		a.try("its own "+to, "refused", nil, func() string { return w.say(netip.MustParseAddrPort(to), "") })
	}
	for _, to := range []string{"[::ffff:45.0.0.10]:443", "[::ffff:169.254.169.254]:80", "[::ffff:192.168.50.1]:22"} {
		a.try("mapped "+to, "reset", nil, func() string { return w.say(netip.MustParseAddrPort(to), "") })
	}
	a.try("mapped of the range", "raw\n", []string{"internet " + lanAddr + ":5432 raw"}, func() string { return w.say(netip.MustParseAddrPort("[::ffff:192.168.50.1]:5432"), "") })
	for _, to := range []string{"224.0.0.1:80", "255.255.255.255:80", "[ff02::1]:80"} {
		a.try("group "+to, "not connected", nil, func() string {
			got := w.say(netip.MustParseAddrPort(to), "")
			if got == "reset" || got == "refused" || got == "unreachable" {
				return "not connected"
			}
			return got
		})
	}
	for _, n := range []string{"good.example", "raw.example", "web.example", "a.good.example", "host.creel.internal"} {
		for _, port := range []uint16{21, 5353, 8444} {
			a.try(fmt.Sprintf("port %d of %s", port, n), "reset", nil, func() string { return w.say(netip.AddrPortFrom(w.addr(n), port), "") })
		}
	}
}

// resolved: a name is allowed, and what it resolves to is not.
func (a *attempts) resolved() {
	w := a.w
	for _, n := range slices.Sorted(maps.Keys(badNames)) {
		a.try("resolves to "+n, "reset", nil, func() string {
			got, rcode := w.query(n+".bad.example.", dnsmessage.TypeA)
			if len(got) != 1 {
				return rcode
			}
			return w.say(netip.AddrPortFrom(got[0], 22), "")
		})
	}
}

// rebound: what a name resolves to is another at each connection; each is judged.
func (a *attempts) rebound() {
	w := a.w
	at := netip.AddrPortFrom(w.addr("rebind.example"), 22)
	for i, want := range []string{"raw\n", "reset", "reset", "reset", "raw\n"} {
		var arrived []string
		if want != "reset" {
			arrived = []string{"internet " + goodAddr + ":22 raw"}
		}
		a.try(fmt.Sprintf("rebinding, time %d", i+1), want, arrived, func() string { return w.say(at, "") })
	}
	for _, n := range []string{"nowhere.example", "missing.example", "lan-by-file.example"} {
		a.try("resolves to nothing allowed: "+n, "reset", nil, func() string { return w.say(netip.AddrPortFrom(w.addr(n), 22), "") })
	}
}

// overTLS: TLS that passes through is for the name of the connection.
func (a *attempts) overTLS() {
	w := a.w
	good, wild := netip.AddrPortFrom(w.addr("good.example"), 443), netip.AddrPortFrom(w.addr("a.good.example"), 443)
	for name, cfg := range map[string]*tls.Config{
		"another name":            {ServerName: "evil.example"},
		"another allowed name":    {ServerName: "a.good.example"},
		"a name below":            {ServerName: "x.a.good.example"},
		"no name":                 {},
		"an address for a name":   {ServerName: goodAddr},
		"a dot at the end":        {ServerName: "good.example..evil.example"},
		"an older name":           {ServerName: "other.example", MaxVersion: tls.VersionTLS12},
		"hidden (ECH)":            {ServerName: "good.example", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfig()},
		"hidden, and good inside": {ServerName: "good.example", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfig()},
	} {
		cfg.InsecureSkipVerify = true
		a.try("TLS with "+name, "reset", nil, func() string { return w.handshake(good, cfg, "") })
	}
	a.try("TLS with the name of another connection", "reset", nil, func() string {
		return w.handshake(wild, &tls.Config{ServerName: "good.example", InsecureSkipVerify: true}, "")
	})
	for name, text := range map[string]string{
		"plain HTTP": "GET / HTTP/1.1\r\nHost: good.example\r\n\r\n", "SSH": "SSH-2.0-x\r\n", "a proxy's CONNECT": "CONNECT evil.example:443 HTTP/1.1\r\n\r\n",
		"SOCKS": "\x05\x01\x00", "HTTP/2 without TLS": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "a TLS alert": "\x15\x03\x03\x00\x02\x02\x28", "SSLv2": "\x80\x2e\x01\x03\x01",
		"a ClientHello of nothing": "\x16\x03\x01\x00\x00", "a record too long": "\x16\x03\x01\xff\xff" + strings.Repeat("\x01", 70000), "a hello too long": "\x16\x03\x01\x00\x04\x01\xff\xff\xff" + strings.Repeat("\x16\x03\x01\x00\x01x", 20000),
		"application data": "\x17\x03\x03\x00\x05hello",
	} {
		a.try("instead of TLS "+name, "reset", nil, func() string { return w.sayAll(good, text) })
	}
}

// echConfig is of a server that is not there (RFC 9849, section 4).
func echConfig() []byte {
	key := make([]byte, 32)
	key[0] = 9 // X25519's base point
	contents := append([]byte{1, 0, 32, 0, 32}, key...)
	contents = append(contents, 0, 4, 0, 1, 0, 1, 0)
	contents = append(contents, 12)
	contents = append(contents, "good.example"...)
	contents = append(contents, 0, 0)
	config := append([]byte{0xfe, 0x0d, byte(len(contents) >> 8), byte(len(contents))}, contents...)
	return append([]byte{byte(len(config) >> 8), byte(len(config))}, config...)
}

// overHTTP: a request goes where it was judged to go, as what was judged.
func (a *attempts) overHTTP() {
	w := a.w
	at := netip.AddrPortFrom(w.addr("web.example"), 80)
	say := func(text string) string {
		text = strings.ReplaceAll(text, "\n", "\r\n")
		got := w.say(at, text)
		line, _, _ := strings.Cut(got, "\r\n")
		return line
	}
	const forbidden, bad = "HTTP/1.1 403*", "HTTP/1.1 400*"
	for name, tt := range map[string]struct{ text, want string }{
		"another host":              {"GET /public/a HTTP/1.1\nHost: evil.example\nConnection: close\n\n", forbidden},
		"another host's port":       {"GET /public/a HTTP/1.1\nHost: web.example:8080\nConnection: close\n\n", forbidden},
		"two hosts":                 {"GET /public/a HTTP/1.1\nHost: web.example\nHost: evil.example\nConnection: close\n\n", bad},
		"no host":                   {"GET /public/a HTTP/1.1\nConnection: close\n\n", bad},
		"no host, HTTP/1.0":         {"GET /public/a HTTP/1.0\n\n", "HTTP/1.0 403*"},
		"an absolute form":          {"GET http://evil.example/public/a HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"an absolute form, same":    {"GET http://web.example/public/a HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"a user in the host":        {"GET /public/a HTTP/1.1\nHost: web.example@evil.example\nConnection: close\n\n", "HTTP/1.1 40*"},
		"a host with a blank":       {"GET /public/a HTTP/1.1\nHost: web.example evil.example\nConnection: close\n\n", bad},
		"CONNECT":                   {"CONNECT evil.example:443 HTTP/1.1\nHost: evil.example:443\nConnection: close\n\n", forbidden},
		"CONNECT to itself":         {"CONNECT web.example:80 HTTP/1.1\nHost: web.example:80\nConnection: close\n\n", forbidden},
		"another method":            {"DELETE /public/a HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"a method in small letters": {"get /public/a HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"TRACE":                     {"TRACE /public/a HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"a method in a header":      {"GET /private HTTP/1.1\nHost: web.example\nX-HTTP-Method-Override: GET\nX-Original-URL: /public/a\nConnection: close\n\n", forbidden},
		"another path":              {"GET /private HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"a path that climbs":        {"GET /public/../private HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"a path that climbs, coded": {"GET /public/%2e%2e/private HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"a coded slash":             {"GET /public%2f..%2fprivate HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"coded twice":               {"GET /public/%252e%252e/private HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"a backslash":               {"GET /public\\..\\private HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"two slashes":               {"GET //public/a HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"parameters of a segment":   {"GET /public;/../private HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"a NUL in the path":         {"GET /public/%00 HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"below an exact path":       {"GET /exact/more HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"a prefix of a path":        {"GET /publicity HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"an asterisk":               {"OPTIONS * HTTP/1.1\nHost: web.example\nConnection: close\n\n", forbidden},
		"two lengths":               {"POST /public/a HTTP/1.1\nHost: web.example\nContent-Length: 2\nContent-Length: 60\n\n{}GET /private HTTP/1.1\nHost: web.example\n\n", bad},
		"a length of two":           {"POST /public/a HTTP/1.1\nHost: web.example\nContent-Length: 2, 2\n\n{}", bad},
		"a length with a sign":      {"POST /public/a HTTP/1.1\nHost: web.example\nContent-Length: +2\n\n{}", bad},
		"another coding":            {"POST /public/a HTTP/1.1\nHost: web.example\nTransfer-Encoding: gzip, chunked\n\n0\n\n", "HTTP/1.1 501*"},
		"a coding with a blank":     {"POST /public/a HTTP/1.1\nHost: web.example\nTransfer-Encoding : chunked\n\n0\n\n", bad},
		"a folded header":           {"GET /public/a HTTP/1.1\nHost: web.example\nX: a\n b: c\nConnection: close\n\n", "HTTP/1.1 200*"},
		"a header without a name":   {"GET /public/a HTTP/1.1\nHost: web.example\n: a\nConnection: close\n\n", bad},
		"headers too long":          {"GET /public/a HTTP/1.1\nHost: web.example\nX: " + strings.Repeat("a", 200_000) + "\nConnection: close\n\n", "HTTP/1.1 431*"},
		"HTTP/2 without TLS":        {"PRI * HTTP/2.0\n\nSM\n\n", "HTTP/1.1 4*"},
		"an upgrade to h2c":         {"GET /public/a HTTP/1.1\nHost: web.example\nConnection: Upgrade, HTTP2-Settings, close\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__\n\n", forbidden},
		"an upgrade to another":     {"GET /public/a HTTP/1.1\nHost: web.example\nConnection: Upgrade, close\nUpgrade: tcp\n\n", forbidden},
		"HTTP/0.9":                  {"GET /public/a\n", bad},
		"TLS":                       {"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03", ""},
		"nothing that is HTTP":      {"SSH-2.0-x\n\n", bad},
	} {
		var arrived []string
		if strings.HasPrefix(tt.want, "HTTP/1.1 200") {
			arrived = []string{"internet " + goodAddr + ":80 GET web.example/public/a"}
		}
		if tt.want == "" {
			tt.want = "reset"
		}
		a.try("HTTP with "+name, tt.want, arrived, func() string { return say(tt.text) })
	}
	for name, tt := range map[string]struct {
		text, want string
		arrived    []string
	}{
		// Two ways to say where a body ends: the one that is judged is the one that is sent.
		"a length and chunks": {
			"POST /public/a HTTP/1.1\nHost: web.example\nContent-Length: 5\nTransfer-Encoding: chunked\n\n0\n\nGET /private HTTP/1.1\nHost: web.example\nConnection: close\n\n", "*",
			[]string{"internet " + goodAddr + ":80 POST web.example/public/a"},
		},
		"a second request in the body": {
			"POST /public/a HTTP/1.1\nHost: web.example\nContent-Length: 44\nConnection: close\n\nGET /private HTTP/1.1\nHost: web.example\n\n", "HTTP/1.1 200*",
			[]string{"internet " + goodAddr + ":80 POST web.example/public/a"},
		},
		"a second request after it": {
			"GET /public/a HTTP/1.1\nHost: web.example\n\nGET /private HTTP/1.1\nHost: web.example\nConnection: close\n\n", "HTTP/1.1 200*",
			[]string{"internet " + goodAddr + ":80 GET web.example/public/a"},
		},
		"a header that is dropped on the way": {
			"GET /public/a HTTP/1.1\nHost: web.example\nConnection: close, Host\n\n", "HTTP/1.1 200*", []string{"internet " + goodAddr + ":80 GET web.example/public/a"},
		},
		"a query that has a path": {
			"GET /public/a?x=/../../private HTTP/1.1\nHost: web.example\nConnection: close\n\n", "HTTP/1.1 200*", []string{"internet " + goodAddr + ":80 GET web.example/public/a?x=/../../private"},
		},
	} {
		a.try("HTTP and "+name, tt.want, tt.arrived, func() string { return say(tt.text) })
	}
}

// datagrams: nothing leaves but queries to the resolver, which go no further.
func (a *attempts) datagrams() {
	w := a.w
	for _, to := range []string{goodAddr + ":443", goodAddr + ":123", resolver + ":5353", metadata + ":80", "10.77.0.1:161", boxAddr + ":5353", "[" + good6 + "]:443", "239.255.255.250:1900", "198.18.0.1:443"} {
		a.try("datagram to "+to, "refused", nil, func() string {
			c, err := w.dial("udp", netip.MustParseAddrPort(to))
			if err != nil && why(err) == "unreachable" {
				return "refused" // a group, for which there is no interface
			}
			if err != nil {
				return why(err)
			}
			defer c.Close()
			_, _ = c.Write([]byte("x"))
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err = c.Read(make([]byte, 10)); err == nil {
				return "answered"
			}
			return why(err)
		})
	}
	for name, s := range map[string][3]int{"ICMP": {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, "raw ICMP": {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, "SCTP": {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}} {
		a.try(name+" to a server", "nothing", nil, func() string {
			err := in(w.ns.File(), func() error {
				fd, err := unix.Socket(s[0], s[1]|unix.SOCK_CLOEXEC, s[2])
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				to := &unix.SockaddrInet4{Port: 443, Addr: netip.MustParseAddr(goodAddr).As4()}
				if s[1] == unix.SOCK_STREAM {
					return unix.Connect(fd, to)
				}
				_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
				// An echo request; what answers it is the namespace itself.
				return unix.Sendto(fd, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, 0, to)
			})
			if err == nil || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) || errors.Is(err, unix.ECONNREFUSED) {
				return "nothing"
			}
			return err.Error()
		})
	}
}

// many: more connections than there may be are reset, and the ones there are go
// on; names beyond the most have no address.
func (a *attempts) many() {
	w := a.w
	at := netip.AddrPortFrom(w.addr("raw.example"), 22)
	a.try("thousands of connections", "raw\n", []string{"internet " + goodAddr + ":22 raw"}, func() string {
		hello := netip.AddrPortFrom(w.addr("good.example"), 443)
		for range 2000 {
			c, err := w.dial("tcp", hello) // and says nothing
			if errors.Is(err, unix.ECONNRESET) {
				continue // one too many, refused before connect(2) came to return
			}
			if err != nil {
				return err.Error()
			}
			defer c.Close()
		}
		if got := w.say(at, ""); got != "reset" {
			return "with all places taken: " + got
		}
		return w.later(at)
	})
}

// later is what a target says once there is a place again: connections that say
// nothing are given up.
func (w *world) later(at netip.AddrPort) string {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if got := w.say(at, ""); got != "reset" || time.Now().After(end) {
			return got
		}
	}
}
