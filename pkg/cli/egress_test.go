package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
)

func TestEgressExplain(t *testing.T) {
	sb := &api.Sandbox{Name: "web", Network: "policy", Egress: []api.EgressParty{
		{By: "the request", Rules: []string{"https api.example.com GET /v1/**", "tcp git.example.com:22", "10.0.0.0/8:5432"}},
		{By: "the ceiling of user:a", Rules: []string{"https api.example.com", "tcp git.example.com:22", "10.0.0.0/8:5432"}},
	}}
	for _, tt := range []struct {
		ask  string
		code int
		out  string
	}{
		{"api.example.com", 0, "ok  the request"},
		{"api.example.com GET /v1/models", 0, "ok  the ceiling of user:a  https api.example.com:443"},
		{"api.example.com POST /v1/models", 1, "NO  the request            https api.example.com:443 GET /v1/**"},
		{"api.example.com GET /v2", 1, "NO  the request "},
		{"API.example.com:8443", 1, "NO  the ceiling of user:a  https api.example.com:443"},
		{"git.example.com:22", 0, "ok  the request            tcp git.example.com:22"},
		{"evil.example:443", 1, "none is about that host"},
		{"10.1.2.3:5432", 0, "ok  the request"},
		{"10.1.2.3:22", 1, "NO  the request"},
		{"169.254.169.254:80", 1, "NO  the ceiling"},
	} {
		q, err := parseQuestion(strings.Fields(tt.ask))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		a := &app{Stdio: Stdio{Out: &out}}
		err = a.explainEgress(sb, q)
		code := 0
		if err != nil {
			code = err.(*exitError).code //nolint:errorlint // it is made there
		}
		if code != tt.code || !strings.Contains(out.String(), tt.out) {
			t.Errorf("%s: %d, want %d:\n%s", tt.ask, code, tt.code, out.String())
		}
	}
	var out bytes.Buffer
	a := &app{Stdio: Stdio{Out: &out}}
	if err := a.explainEgress(&api.Sandbox{Name: "none", Network: "none"}, question{host: "a.example", port: 443}); err == nil || !strings.Contains(out.String(), "has no network") {
		t.Errorf("%v: %s", err, out.String())
	}
	for _, bad := range []string{"localhost", "a.example:0", "a.example:1,2", "10.0.0.0/8:22", "10.0.0.1:22 GET", "a.example GET /../x%", "a..b"} {
		if _, err := parseQuestion(strings.Fields(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestEgressLog(t *testing.T) {
	lines := []string{
		`{"time":"2026-11-30T12:00:00Z","kind":"fact","action":"egress.denied","sandbox":"abc","detail":{"to":"evil.example:443","what":"connection","by":"the request","why":"not \u001b[31mallowed"}}`,
		`{"time":"2026-11-30T12:00:00Z","kind":"fact","action":"sandbox.stopped","sandbox":"abc"}`,
		`{"time":"2026-11-30T12:00:01Z","kind":"fact","action":"secret.used","sandbox":"abc","detail":{"to":"api.example.com:443","secret":"key"}}`,
	}
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		a := &app{Stdio: Stdio{Out: &out}, json: asJSON}
		for _, l := range lines {
			if err := a.egressLine([]byte(l)); err != nil {
				t.Fatal(err)
			}
		}
		if asJSON {
			if want := lines[0] + "\n" + lines[2] + "\n"; out.String() != want {
				t.Errorf("%s", out.String())
			}
			continue
		}
		got := strings.Split(out.String(), "\n")
		if len(got) != 3 || !strings.HasSuffix(got[1], "abc used    api.example.com:443 secret=key") || !strings.Contains(got[0], "denied  evil.example:443 what=connection not ") || strings.Contains(got[0], "\x1b") {
			t.Errorf("%q", got)
		}
	}
	if err := (&app{}).egressLine([]byte("x")); err == nil {
		t.Error("what is no record is taken")
	}
}
