package launcher

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
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
		got := l.Identify(tt.caller, link.SignRequest{ID: tt.id, Key: tt.key})
		said := got.SPIFFEID + got.Error
		if got.Refused {
			said = "refused: " + said
		}
		if !strings.HasPrefix(said, tt.want) || (got.SPIFFEID == "") == (len(got.Certificate) > 0) {
			t.Errorf("uid %d, %q: got %q, want %q", tt.caller, tt.id, said, tt.want)
		}
	}
}
