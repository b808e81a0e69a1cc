package launcher

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/svid"
)

// TestIdentify: a process that was taken over can ask for its own caller's
// sandboxes, and for no more than those that run and whose agents may.
func TestIdentify(t *testing.T) {
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	identities, err := svid.Open(t.TempDir(), "box.example.com", "", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer identities.Close()
	bus := events.New(st, slog.New(slog.DiscardHandler))
	defer bus.Close()
	revoked := api.Agent{ID: "r", Name: "revoked", Caller: api.Caller{UID: 50}, Revoked: &api.Revocation{}}
	l := &Launcher{Options: Options{Bus: bus, Identities: identities, Agents: agents.New([]api.Agent{revoked})}, sandboxes: map[string]*sandbox{}}
	for _, s := range []api.Sandbox{
		{ID: "mine", Agent: "coder", State: api.StateRunning},
		{ID: "ended", Agent: "coder", State: api.StateStopped},
		{ID: "revoked", Agent: "revoked", State: api.StateRunning},
		{ID: "moved", Agent: "coder", State: api.StateRunning, Identity: "spiffe://old.example.com/caller/50/agent/coder/moved"},
		{ID: "older", Agent: "coder", State: api.StateRunning, Identity: "-"},
	} {
		s.Caller.UID = 50
		switch s.Identity {
		case "":
			if s.Identity, err = l.identityOf(&s); err != nil {
				t.Fatal(err)
			}
		case "-":
			s.Identity = ""
		}
		rec := store.Record{Sandbox: s}
		l.sandboxes[s.ID] = &sandbox{l: l, id: s.ID, rec: rec, fixed: rec}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		caller uint32
		id     string
		key    []byte
		want   string
	}{
		{50, "mine", public, "spiffe://box.example.com/caller/"},
		{51, "mine", public, "refused: no such sandbox"},
		{0, "mine", public, "refused: no such sandbox"},
		{50, "other", public, "refused: no such sandbox"},
		{50, "", public, "refused: no such sandbox"},
		{50, "ended", public, "refused: the sandbox has ended"},
		{50, "revoked", public, "refused: "},
		{50, "moved", public, "refused: the sandbox is of another trust domain"},
		{50, "older", public, "refused: the sandbox is of another trust domain"},
		{50, "mine", nil, "an SVID is for a P-256 key"},
	} {
		got := l.Identify(tt.caller, link.Question{ID: tt.id, Key: tt.key})
		said := got.SPIFFEID + got.Error
		if got.Refused {
			said = "refused: " + said
		}
		if !strings.HasPrefix(said, tt.want) || (got.SPIFFEID == "") == (len(got.Certificate) > 0) {
			t.Errorf("uid %d, %q: got %q, want %q", tt.caller, tt.id, said, tt.want)
		}
	}
}

// TestChannelAllowed: what a process asks for is judged by all who have a say.
func TestChannelAllowed(t *testing.T) {
	rec := store.Record{Sandbox: api.Sandbox{ID: "abc", State: api.StateRunning, Network: "policy", Egress: []api.EgressParty{
		{By: "a ceiling", Rules: []string{"tcp db.agent.creel.internal:22,5432", "tcp db.agent.creel.internal:3128,3129"}},
		{By: "the request", Rules: []string{"tcp db.agent.creel.internal:5432", "tcp db.agent.creel.internal:3128,3129", "tcp web.agent.creel.internal:80"}},
	}}}
	for _, tt := range []struct {
		agent string
		port  uint16
		want  string
	}{
		{"db", 5432, ""},
		{"db", 22, "not allowed by the request"},
		{"web", 80, "not allowed by a ceiling"},
		{"db", 3128, "is no agent's"},
		{"db", 3129, "is no agent's"},
		{"db", 0, "is no agent's"},
		{"DB", 5432, "is no agent"},
		{"", 5432, "is no agent"},
		{"x.db", 5432, "is no agent"},
		{"host.creel.internal", 5432, "is no agent"},
	} {
		err := channelAllowed(&rec, link.Question{Agent: tt.agent, Port: tt.port})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:%d: %v, want %q", tt.agent, tt.port, err, tt.want)
		}
	}
	rec.Sandbox.State = api.StateStopped
	if err := channelAllowed(&rec, link.Question{Agent: "db", Port: 5432}); err == nil {
		t.Error("a sandbox that has ended")
	}
}

// TestAskedOnce: an agent that is refused very often has what cannot be asked for
// judged once for each destination, and is bounded in those.
func TestAskedOnce(t *testing.T) {
	rec := store.Record{Sandbox: api.Sandbox{ID: "abc", State: api.StateRunning, Network: "policy", Egress: []api.EgressParty{{By: "a profile", Rules: []string{"a.example"}}}}}
	sb := &sandbox{l: &Launcher{}, id: "abc", rec: rec, fixed: rec}
	for i := range 3 * mostDestinations {
		for range 2 {
			sb.ask(link.Record{Kind: link.KindName, To: fmt.Sprintf("n%d.example", i)})
		}
	}
	if len(sb.unasked) != mostDestinations || len(sb.rec.Approvals.All) > 0 {
		t.Errorf("%d destinations, %d approvals", len(sb.unasked), len(sb.rec.Approvals.All))
	}
}
