package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/doctor"
	"github.com/creel-sandbox/creel/pkg/openclaw"
	"github.com/creel-sandbox/creel/pkg/profile"
	"github.com/creel-sandbox/creel/profiles"
)

// explainer is a daemon that answers nothing but POST /v1/explain.
func explainer(t *testing.T, answer func(api.SpawnRequest) (int, any)) *app {
	t.Helper()
	dir, err := os.MkdirTemp("", "creel") //nolint:usetesting // a socket's path has 108 bytes, and TempDir's can be longer
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req api.SpawnRequest
		if r.Method != http.MethodPost || r.URL.Path != "/v1/explain" || json.NewDecoder(r.Body).Decode(&req) != nil {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		status, v := answer(req)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() { _, _ = srv.Close(), <-served })
	return &app{socket: filepath.Join(dir, "s")}
}

// refusesPaths answers as creeld without mounts.paths: admission has the say.
func refusesPaths(t *testing.T) func(api.SpawnRequest) (int, any) {
	t.Helper()
	set, err := profile.Load(profiles.FS)
	if err != nil {
		t.Fatal(err)
	}
	return func(req api.SpawnRequest) (int, any) {
		_, err := admission.Resolve(req, admission.Policy{Profiles: set, DefaultProfile: "default", DefaultRuntime: "crun", Runtimes: []string{"crun"}})
		rules, err := admission.Explained(err)
		if err != nil {
			t.Error(err)
		}
		return http.StatusOK, api.Decision{Rules: rules}
	}
}

func TestMountsByPath(t *testing.T) {
	state := t.TempDir()
	workspace := filepath.Join(state, "workspace")
	if err := errors.Join(os.Mkdir(filepath.Join(state, "real"), 0o755), os.Symlink("real", workspace)); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(workspace) //nolint:revive // as the file system has it
	if err != nil {
		t.Fatal(err)
	}
	none := t.TempDir()
	no := api.Rule{Rule: "ceiling.mounts", Field: "mounts[0]", Asked: real, Allowed: "/srv", Fix: "mount it read-only"}
	for _, tt := range []struct {
		name, state string
		answer      func(api.SpawnRequest) (int, any)
		want        []string // level and what
	}{
		{"let in", state, func(req api.SpawnRequest) (int, any) {
			if len(req.Mounts) != 1 || req.Mounts[0].FD != nil || req.Mounts[0].Source != real {
				t.Errorf("asked for %+v, not for %s", req.Mounts, real)
			}
			return http.StatusOK, api.Decision{Allowed: true, Rules: []api.Rule{{Rule: "x", OK: true}}}
		}, []string{"ok it opens directories by their paths, as you"}},
		{"no paths", state, refusesPaths(t), []string{"missing it opens no directory by its path"}},
		{"no paths, no workspace", none, refusesPaths(t), []string{"missing it opens no directory by its path"}},
		{"a ceiling", state, func(api.SpawnRequest) (int, any) { return http.StatusOK, api.Decision{Rules: []api.Rule{no}} }, []string{"ok it opens", "missing a sandbox with " + real + " would be refused: ceiling.mounts is /srv"}},
		{"a ceiling, no workspace", none, func(api.SpawnRequest) (int, any) { return http.StatusOK, api.Decision{Rules: []api.Rule{no}} }, []string{"ok it opens"}},
		{"no image", state, func(api.SpawnRequest) (int, any) {
			return http.StatusOK, api.Decision{Rules: []api.Rule{{Rule: "request", Allowed: "no image \"base\"", Fix: "import one"}}}
		}, []string{"ok it opens", "missing a sandbox with " + real + " would be refused: no image \"base\""}},
		{"refused", state, func(api.SpawnRequest) (int, any) {
			return http.StatusForbidden, api.Errorf(api.CodeDenied, "mounts[0].source: not there").WithHint("look")
		}, []string{"missing mounting " + real + " by its path: mounts[0].source: not there"}},
		{"no answer of creeld's", state, func(api.SpawnRequest) (int, any) { return http.StatusTeapot, "x" }, []string{"missing mounting " + real + " by its path: the daemon answered 418"}},
		{"nothing to ask about", "/none/at/all", nil, []string{"note whether it mounts directories by path is not known"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := explainer(t, tt.answer)
			got := a.mountsByPath(t.Context(), &openclaw.Config{Place: openclaw.Place{State: tt.state}})
			if len(got) != len(tt.want) {
				t.Fatalf("%+v, want %q", got, tt.want)
			}
			for i, f := range got {
				if !strings.HasPrefix(f.Level+" "+f.What, tt.want[i]) || f.Level == openclaw.Missing && f.Fix == "" && tt.name != "no answer of creeld's" {
					t.Errorf("%+v, want %q", f, tt.want[i])
				}
			}
		})
	}
}

func TestRefusal(t *testing.T) {
	for _, tt := range []struct {
		err       error
		what, fix string
	}{
		{api.Errorf(api.CodeDenied, "socket: permission denied").WithHint("join group creel"), "x: socket: permission denied", "join group creel"},
		{context.DeadlineExceeded, "x: nothing answers within 15s", "creel doctor"},
		{errors.New("odd"), "x: odd", ""},
	} {
		want := openclaw.Finding{Level: openclaw.Missing, About: "creeld", What: tt.what, Fix: tt.fix}
		if diff := cmp.Diff(want, refusal("x: ", tt.err)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.err, diff)
		}
	}
}

func TestOfDoctor(t *testing.T) {
	d := &api.Doctor{Checks: []api.Check{
		{Name: "a", Status: doctor.OK},
		{Name: "b", Status: doctor.Weaker},
		{Name: "c", Status: doctor.Missing, Detail: "gone", Fix: "mend"},
		{Name: "d", Status: doctor.Danger, Detail: "root"},
		{Name: "e", Status: "new", Detail: "?"},
	}}
	want := []openclaw.Finding{
		{Level: openclaw.Missing, About: "creeld", What: "c: gone", Fix: "mend"},
		{Level: openclaw.Danger, About: "creeld", What: "d: root"},
		{Level: openclaw.Missing, About: "creeld", What: "e: ?"},
	}
	if diff := cmp.Diff(want, ofDoctor(d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := ofDoctor(&api.Doctor{Checks: d.Checks[:2]}); len(got) != 1 || got[0].Level != openclaw.OK {
		t.Errorf("nothing to say: %+v", got)
	}
}

// Root needs no other door; whoever else runs this has none, or is told.
func TestOtherDoors(t *testing.T) {
	a := &app{socket: "/none"}
	got := a.otherDoors(gateway{uid: 0, name: "root"})
	last := got[len(got)-1]
	if last.Level != openclaw.Danger || !strings.HasPrefix(last.What, "already root by another door: root is root") {
		t.Errorf("%+v", got)
	}
	for _, f := range a.otherDoors(gatewayOf(uint32(os.Geteuid()))) {
		if f.About != "user" || f.Level == "" || f.What == "" {
			t.Errorf("%+v", f)
		}
	}
}

func TestWriteFindings(t *testing.T) {
	var out bytes.Buffer
	a := &app{Stdio: Stdio{Out: &out}}
	if err := a.writeFindings([]openclaw.Finding{{Level: openclaw.OK, About: "x", What: "fine\x1b[2J"}}); err != nil {
		t.Fatal(err)
	}
	if want := "    ABOUT  FINDING\nok  x      fine\\x1b[2J\n\nnothing is missing or dangerous\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
