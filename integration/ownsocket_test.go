package integration_test

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// askScript asks a sandbox's own socket.
//
//go:embed testdata/ask.py
var askScript string

// granting is a lab in which callers may grant sockets.
func granting(t *testing.T) *lab.Lab {
	t.Helper()
	kerneltest.Require(t, kerneltest.BaseImage)
	return grantingOn(t, kerneltest.BaseImagePath())
}

func grantingOn(t *testing.T, image string) *lab.Lab {
	t.Helper()
	l := lab.New(t, lab.Options{
		Image: image,
		Config: "[[caller]]\nmatch = \"default\"\nprofiles = [\"*\"]\nmounts = [\"*\"]\nsocket = true\n" +
			"[server]\nheader_timeout = \"1s\"\n[mounts]\npaths = true\n",
	})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	return l
}

// answer is what a sandbox's own socket said.
type answer struct {
	status string
	body   string
}

func (a answer) decode(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("%s %s: %v", a.status, a.body, err)
	}
}

// asker asks from inside a sandbox.
func asker(t *testing.T, l *lab.Lab, id string) func(method, path, body string, headers ...string) answer {
	t.Helper()
	put(t, l, id, "/tmp/ask.py", askScript)
	return func(method, path, body string, headers ...string) answer {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, res := l.ShContext(ctx, id, api.ExecRequest{Command: append([]string{"/usr/bin/python3", "-B", "/tmp/ask.py", method, path, body}, headers...)})
		if res.ExitCode != 0 {
			t.Fatalf("%s %s: %s", method, path, out)
		}
		status, rest, _ := strings.Cut(strings.TrimSpace(out), " ")
		return answer{status, rest}
	}
}

// little is so much that a few children have room in their parent.
const little = `"limits":{"memory":"64M","pids":16,"cpus":0.1,"disk":"64M"}`

// child makes one, from inside.
func child(t *testing.T, ask func(string, string, string, ...string) answer, body string) api.Sandbox {
	t.Helper()
	a := ask("POST", "/v1/sandboxes", body)
	if a.status != "201" {
		t.Fatalf("spawn %s: %s %s", body, a.status, a.body)
	}
	var res api.SpawnResult
	a.decode(t, &res)
	return res.Sandbox
}

// TestOwnSocket: an agent makes and uses children of its sandbox through the
// socket that it was granted, by HTTP and with the creel command.
func TestOwnSocket(t *testing.T) {
	l := granting(t)
	for _, as := range []string{"an ordinary user's", "root's", "root inside"} {
		t.Run(as, func(t *testing.T) {
			var top string
			switch as {
			case "root's":
				top = l.Spawn(api.SpawnRequest{Name: "roots", Socket: true}).ID
			case "root inside":
				top = started(t, l, "--grant-socket", "--profile", "build")
			default:
				top = started(t, l, "--name", "top", "--grant-socket", "--memory", "512M", "--ttl", "1h")
			}
			ask := asker(t, l, top)
			if failed := provenNow(t, l, top); len(failed) > 0 {
				t.Errorf("proven: %q", failed)
			}
			ev, err := l.Evidence(t.Context(), top, false)
			if err != nil || !slices.ContainsFunc(ev[0].Weaker, func(s string) bool { return strings.HasPrefix(s, "socket: ") }) ||
				!slices.ContainsFunc(ev[0].Controls, func(c api.Control) bool {
					return c.Name == "mount./run/creel" && strings.HasPrefix(c.Expected, "ro,nosuid,nodev,noexec ")
				}) {
				t.Errorf("the evidence does not tell: %v, %v", ev, err)
			}
			if out, _ := l.Sh(top, "exec 2>&1; rm /run/creel/creel.sock; touch /run/creel/x; chmod 777 /run/creel /run/creel/creel.sock; ls /run/creel 2>&1"); strings.Count(out, "Read-only file system")+strings.Count(out, "not permitted") != 4 || !strings.HasSuffix(out, "\ncreel.sock\n") {
				t.Errorf("changes there: %s", out)
			}
			v := child(t, ask, `{`+little+`,"labels":{"inside.n":"1"},"command":["/bin/sh","-c","echo worked; sleep 600"]}`)
			seen, err := l.Inspect(t.Context(), v.ID)
			if err != nil || seen.Parent != top || v.Parent != top || v.Socket || v.PID != 0 || seen.PID == 0 {
				t.Errorf("the child is %+v, %v; inside %+v", seen, err, v)
			}
			if out, _ := l.Sh(v.ID, "ls /run/creel"); !strings.Contains(out, "No such file") {
				t.Errorf("the child has %s", out)
			}
			var list []api.Sandbox
			ask("GET", "/v1/sandboxes", "").decode(t, &list)
			if len(list) != 1 || list[0].ID != v.ID || list[0].PID != 0 {
				t.Errorf("the list is %+v", list)
			}
			var out api.ExecOutput
			ask("POST", "/v1/sandboxes/"+v.ID+"/exec", `{"command":["/bin/cat"],"input":"words","labels":{"inside.n":"1"}}`).decode(t, &out)
			if out.Stdout != "words" {
				t.Errorf("exec: %+v", out)
			}
			if a := ask("POST", "/v1/sandboxes/"+v.ID+"/exec", `{"command":["/bin/cat"],"labels":{"turn":"1"}}`); a.status != "400" || !strings.Contains(a.body, "begin with inside.") {
				t.Errorf("exec with a label of the caller's: %+v", a)
			}
			if a := ask("GET", "/v1/sandboxes/"+v.ID+"/logs", ""); a.status != "200" || !strings.Contains(a.body, "worked") {
				t.Errorf("logs: %+v", a)
			}
			if a := ask("GET", "/v1/version", ""); a.status != "200" {
				t.Errorf("version: %+v", a)
			}
			// The command finds the socket by itself.
			put(t, l, top, "/tmp/creel", read(t, l.Bin+"/creel"))
			said, res := l.Sh(top, "cd /tmp; set -e; id=$(./creel run -d --label inside.n=2 --memory 64M --pids 16 --cpus 0.1 --disk 64M -- sleep 600); ./creel exec $id -- echo streamed; ./creel ps -a; ./creel stop -t 1s $id; ./creel rm $id")
			if res.ExitCode != 0 || !strings.Contains(said, "streamed") || !strings.Contains(said, v.ID) {
				t.Errorf("creel inside: %+v\n%s", res, said)
			}
			// A grandchild through the same socket, and one that ends.
			g := child(t, ask, fmt.Sprintf(`{"parent":%q,"limits":{"memory":"16M","pids":8,"cpus":0.05,"disk":"16M"},"command":["/bin/sh","-c","exit 3"]}`, v.ID))
			var ended api.WaitResult
			ask("GET", "/v1/sandboxes/"+g.ID+"/wait", "").decode(t, &ended)
			if g.Parent != v.ID || ended.ExitCode != 3 {
				t.Errorf("the grandchild %+v ended as %+v", g, ended)
			}
			if a := ask("DELETE", "/v1/sandboxes/"+g.ID, ""); a.status != "204" {
				t.Errorf("remove: %+v", a)
			}
			if a := ask("POST", "/v1/sandboxes/"+v.ID+"/kill", `{"signal":"KILL"}`); a.status != "204" {
				t.Errorf("kill: %+v", a)
			}
			last := child(t, ask, `{`+little+`}`)
			if _, err := l.Client.Stop(t.Context(), top, nil); err != nil {
				t.Fatal(err)
			}
			if got, err := l.Inspect(t.Context(), last.ID); err != nil || got.State != api.StateStopped || got.Reason != api.ReasonParent {
				t.Errorf("after its parent it is %+v, %v", got, err)
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestOwnSocketHolds attacks from inside what is outside: nothing that is not a
// descendant's exists there.
func TestOwnSocketHolds(t *testing.T) {
	l := granting(t)
	dir := workspace(t)
	for _, name := range []string{"mine", "notmine"} {
		if out, errOut, code := l.CreelAs(caller, "", "volume", "create", "--size", "16M", name); code != 0 {
			t.Fatalf("volume: %s%s", out, errOut)
		}
	}
	top := started(t, l, "--name", "top", "--grant-socket", "--memory", "512M", "-v", "mine:/mine", "-v", dir+":/w")
	sibling := started(t, l, "--name", "sibling", "--grant-socket", "-v", "notmine:/v")
	nephew := started(t, l, "--name", "nephew", "--parent", "sibling")
	roots := l.Spawn(api.SpawnRequest{Name: "roots"}).ID
	above := started(t, l, "--name", "above", "--grant-socket", "--memory", "512M")
	below := started(t, l, "--name", "below", "--parent", "above", "--grant-socket", "--memory", "64M", "--pids", "32", "--cpus", "0.2")
	ask, askBelow := asker(t, l, top), asker(t, l, below)
	mine := child(t, ask, `{`+little+`}`)
	others := []string{sibling, nephew, roots, above, below}

	// same says whether two answers differ in nothing but the reference and the
	// request's id.
	same := func(a, b answer, refA, refB string) bool {
		var x, y map[string]any
		_ = json.Unmarshal([]byte(strings.ReplaceAll(a.body, refA, "REF")), &x)
		_ = json.Unmarshal([]byte(strings.ReplaceAll(b.body, refB, "REF")), &y)
		delete(x, "request_id")
		delete(y, "request_id")
		return a.status == b.status && len(x) > 0 && fmt.Sprint(x) == fmt.Sprint(y)
	}
	const nobody = "aaaaaaaaaaaaaaaaaaaa"
	t.Run("nothing else exists", func(t *testing.T) {
		refs := []string{top, top[:8], "top", "sibling", "roots", sibling[:5]}
		for _, r := range []struct{ method, path, body string }{
			{"GET", "", ""},
			{"DELETE", "?force=true", ""},
			{"POST", "/stop", "{}"},
			{"POST", "/kill", "{}"},
			{"GET", "/wait", ""},
			{"GET", "/logs", ""},
			{"POST", "/exec", `{"command":["/bin/true"]}`},
		} {
			none := ask(r.method, "/v1/sandboxes/"+nobody+r.path, r.body)
			for _, ref := range append(refs, others...) {
				if a := ask(r.method, "/v1/sandboxes/"+ref+r.path, r.body); a.status != "404" || !same(a, none, ref, nobody) {
					t.Errorf("%s %s%s: %+v", r.method, ref, r.path, a)
				}
			}
		}
		none := ask("POST", "/v1/sandboxes", `{"parent":"`+nobody+`"}`)
		for _, ref := range append([]string{"sibling", "roots", sibling[:5]}, others...) {
			if a := ask("POST", "/v1/sandboxes", `{"parent":"`+ref+`"}`); a.status != "404" || !same(a, none, ref, nobody) {
				t.Errorf("parent %s: %+v", ref, a)
			}
		}
		// What is above it, and the other way through its parent's.
		for _, r := range []string{above, "above", below} {
			if a := askBelow("GET", "/v1/sandboxes/"+r, ""); a.status != "404" {
				t.Errorf("from below, %s: %+v", r, a)
			}
		}
		if a := askBelow("POST", "/v1/sandboxes", `{"parent":"above"}`); a.status != "404" {
			t.Errorf("a sister: %+v", a)
		}
		if a := askBelow("GET", "/v1/sandboxes?all=true", ""); a.body != "[]" {
			t.Errorf("the list from below: %+v", a)
		}
		var list []api.Sandbox
		ask("GET", "/v1/sandboxes?all=true", "").decode(t, &list)
		if len(list) != 1 || list[0].ID != mine.ID {
			t.Errorf("the list: %+v", list)
		}
	})
	t.Run("spawns", func(t *testing.T) {
		for _, tt := range []struct{ body, status, want string }{
			{`{"limits":{"memory":"1G"}}`, "429", "parent.memory"},
			{`{"limits":{"pids":100000}}`, "400", "pids"},
			{`{` + little + `,"profile":"build"}`, "403", "parent.profile"},
			{`{` + little + `,"rootfs":"ephemeral"}`, "403", "rootfs"},
			{`{` + little + `,"home":"persistent"}`, "403", "home"},
			{`{` + little + `,"agent":"other"}`, "403", "agent"},
			{`{` + little + `,"name":"prod"}`, "400", "labels tell children apart"},
			{`{` + little + `,"labels":{"inside.a":"b","job":"7"}}`, "400", "begin with inside."},
			{`{` + little + `,"image":"base"}`, "400", "left out"},
			{`{` + little + `,"mounts":[{"source":"/","target":"/host"}]}`, "400", "a volume that the parent has"},
			{`{` + little + `,"mounts":[{"source":"` + dir + `","target":"/w"}]}`, "400", "a volume that the parent has"},
			{`{` + little + `,"mounts":[{"fd":0,"source":"/w","target":"/w"}]}`, "400", "a volume that the parent has"},
			{`{` + little + `,"mounts":[{"fd":0,"volume":"mine","target":"/w"}]}`, "400", "a volume that the parent has"},
			{`{` + little + `,"mounts":[{"volume":"mine","target":"/run/creel"}],"socket":true}`, "400", "where the sandbox's own socket is"},
			{`{` + little + `,"mounts":[{"volume":"mine","target":"/run"}],"socket":true}`, "400", "where the sandbox's own socket is"},
			{`{` + little + `,"parent":"` + mine.ID + `","socket":true}`, "403", "socket"},
			{`{` + little + `,"via":"` + sibling + `"}`, "400", "via"},
			{`{` + little + `,"caller":{"uid":0}}`, "400", "caller"},
		} {
			if a := ask("POST", "/v1/sandboxes", tt.body); a.status != tt.status || !strings.Contains(a.body, tt.want) || strings.Contains(a.body, "sibling") {
				t.Errorf("%s: %+v", tt.body, a)
			}
		}
		theirs := ask("POST", "/v1/sandboxes", `{`+little+`,"mounts":[{"volume":"notmine","target":"/v"}]}`)
		none := ask("POST", "/v1/sandboxes", `{`+little+`,"mounts":[{"volume":"nothere","target":"/v"}]}`)
		if theirs.status != "403" || !same(theirs, none, "notmine", "nothere") {
			t.Errorf("a volume of the caller's: %+v, and one that is not there: %+v", theirs, none)
		}
		v := child(t, ask, `{`+little+`,"mounts":[{"volume":"mine","target":"/v"}],"socket":true}`)
		askChild := asker(t, l, v.ID)
		if a := askChild("GET", "/v1/sandboxes?all=true", ""); a.body != "[]" {
			t.Errorf("a child with a socket sees %+v", a)
		}
		for _, id := range []string{mine.ID, v.ID, top} {
			if a := askChild("POST", "/v1/sandboxes/"+id+"/exec", `{"command":["/bin/true"]}`); a.status != "404" {
				t.Errorf("a child with a socket uses %s: %+v", id, a)
			}
		}
		if a := ask("DELETE", "/v1/sandboxes/"+v.ID+"?force=true", ""); a.status != "204" {
			t.Errorf("remove: %+v", a)
		}
	})
	t.Run("routes", func(t *testing.T) {
		for _, r := range []string{
			"GET /v1/system/df", "POST /v1/system/prune", "GET /v1/audit", "GET /v1/audit/head", "GET /v1/key", "GET /v1/trust-bundle", "GET /v1/agents", "GET /v1/agents/default",
			"POST /v1/agents/default/revoke", "GET /v1/images", "GET /v1/images/base", "POST /v1/images", "DELETE /v1/images/base", "GET /v1/archives/base", "GET /v1/volumes",
			"POST /v1/volumes", "DELETE /v1/volumes/mine", "GET /v1/events", "GET /v1/profiles", "GET /v1/doctor", "POST /v1/explain", "GET /v1/openapi.yaml",
			"GET /v1/sandboxes/CHILD/files?path=/etc/passwd", "POST /v1/sandboxes/CHILD/attach", "POST /v1/sandboxes/CHILD/commit", "GET /v1/sandboxes/CHILD/evidence",
			"GET //v1/sandboxes", "GET /v1//sandboxes", "GET /v1/sandboxes/", "GET /v1/sandboxes/../agents", "GET /v1/sandboxes/%2e%2e/agents", "GET /v1/sandboxes/CHILD%2F..%2F..%2Fagents",
			"GET http://x/v1/agents", "GET /v1/sandboxes/CHILD/../" + sibling, "GET /v1/sandboxes/CHILD%2f..%2f" + sibling, "CONNECT /v1/agents", "GET /V1/agents",
		} {
			method, path, _ := strings.Cut(strings.ReplaceAll(r, "CHILD", mine.ID), " ")
			if a := ask(method, path, ""); a.status != "404" && a.status != "400" && a.status != "405" {
				t.Errorf("%s: %+v", r, a)
			}
		}
		for _, method := range []string{"PUT", "PATCH", "get", "TRACE"} {
			if a := ask(method, "/v1/sandboxes/"+mine.ID, "{}"); a.status != "405" {
				t.Errorf("%s: %+v", method, a)
			}
		}
		// Headers that somebody might trust, and a key that the caller used.
		for _, h := range []string{"Via: " + sibling, "X-Forwarded-For: 0", "Creel-Via: " + sibling, "Creel-Caller: 0", "Authorization: Basic cm9vdDo="} {
			if a := ask("GET", "/v1/sandboxes/"+sibling, "", h); a.status != "404" {
				t.Errorf("%s: %+v", h, a)
			}
		}
		for _, path := range []string{"/v1/sandboxes", "/v1/sandboxes/" + mine.ID + "/exec", "/v1/sandboxes/" + mine.ID + "/kill"} {
			if a := ask("POST", path, `{"command":["/bin/true"]}`, "Idempotency-Key: k"); a.status != "400" || !strings.Contains(a.body, "Idempotency-Key") {
				t.Errorf("a key for %s: %+v", path, a)
			}
		}
		for _, text := range []string{
			// Two lengths, two ways to say where the body ends, and what comes after it.
			`POST /v1/sandboxes/CHILD/stop HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: 2\nContent-Length: 60\n\n{}GET /v1/agents HTTP/1.1\nHost: x\n\n`,
			`POST /v1/sandboxes/CHILD/nothing HTTP/1.1\nHost: x\nContent-Length: 5\nTransfer-Encoding: chunked\n\n0\n\nGET /v1/agents HTTP/1.1\nHost: x\nConnection: close\n\n`,
			`GET /v1/version HTTP/1.1\nHost: x\n\nGET /v1/agents HTTP/1.1\nHost: x\nConnection: close\n\n`,
			`PRI * HTTP/2.0\n\nSM\n\n`,
			`GET /v1/agents HTTP/1.1\nHost: x\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__\n\n`,
			`GET /v1/agents\n`,
		} {
			a := ask("", "raw:"+strings.ReplaceAll(text, "CHILD", mine.ID), "")
			if strings.Contains(a.body, `"agent_id"`) || strings.Contains(a.body, `"ceiling"`) || !strings.Contains("400 404 505 200", a.status) || a.status == "200" && !strings.Contains(a.body, "\n404 ") {
				t.Errorf("%s: %+v", text, a)
			}
		}
	})
	t.Run("what has ended is bounded", func(t *testing.T) {
		for i := 0; ; i++ {
			a := ask("POST", "/v1/sandboxes", `{`+little+`,"command":["/bin/true"]}`)
			if a.status == "429" && strings.Contains(a.body, "socket.kept") {
				if i != 32 {
					t.Errorf("refused after %d", i)
				}
				break
			}
			if a.status != "201" || i > 40 {
				t.Fatalf("%d: %+v", i, a)
			}
			var res api.SpawnResult
			a.decode(t, &res)
			ask("GET", "/v1/sandboxes/"+res.Sandbox.ID+"/wait", "")
		}
		started(t, l, "--rm", "--", "/bin/true") // the caller has its own
	})
	if out, errOut, code := l.CreelAs(caller, "", "exec", "sibling", "--", "echo", "untouched"); code != 0 || out != "untouched\n" {
		t.Errorf("the sibling: %s%s", out, errOut)
	}
	spawn := awaitAudit(t, l, "a spawn from inside", func(r map[string]any) bool {
		who, _ := r["who"].(map[string]any)
		return is("intent", "sandbox.spawn")(r) && who["via"] == top
	})
	if who, _ := spawn["who"].(map[string]any); who["uid"] != float64(callerUID) || who["pid"] != 0.0 {
		t.Errorf("it is by %v", who)
	}
	awaitAudit(t, l, "a refusal from inside", func(r map[string]any) bool {
		who, _ := r["who"].(map[string]any)
		return is("outcome", "sandbox.stop")(r) && who["via"] == top && r["sandbox"] == "sibling"
	})
	awaitAudit(t, l, "the grant", func(r map[string]any) bool {
		decided, _ := r["decided"].(map[string]any)
		return r["sandbox"] == top && decided["socket"] == "granted"
	})
	verifyAudit(t, l)
}

// floodScript holds and floods a sandbox's own socket.
//
//go:embed testdata/flood.py
var floodScript string

// TestOwnSocketFlood: an agent that takes all its own socket has takes nothing
// of anybody else's, and has it again afterwards.
func TestOwnSocketFlood(t *testing.T) {
	l := granting(t)
	top := started(t, l, "--name", "top", "--grant-socket", "--memory", "512M")
	other := started(t, l, "--name", "other", "--grant-socket", "--memory", "512M")
	ask, askOther := asker(t, l, top), asker(t, l, other)
	put(t, l, top, "/tmp/flood.py", floodScript)
	before := descriptors(t, l)
	for _, kind := range []string{"open", "fast"} {
		said := make(chan string, 1)
		go func() {
			out, _ := l.ShContext(context.WithoutCancel(t.Context()), top, api.ExecRequest{Command: []string{"/usr/bin/python3", "-B", "/tmp/flood.py", kind, "6"}})
			said <- out
		}()
		most, slowest := 0, time.Duration(0)
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			began := time.Now()
			if out, errOut, code := l.CreelAs(caller, "", "exec", "top", "--", "echo", "served"); code != 0 || out != "served\n" {
				t.Errorf("%s: the caller's socket: %s%s", kind, out, errOut)
			}
			slowest = max(slowest, time.Since(began))
			most = max(most, descriptors(t, l))
		}
		if a := askOther("GET", "/v1/version", ""); a.status != "200" {
			t.Errorf("%s: another's own socket: %+v", kind, a)
		}
		out := <-said
		t.Logf("%s: %s; most descriptors %d, before %d; slowest exec %v", kind, strings.TrimSpace(out), most, before, slowest)
		// The daemon holds 16 connections, and what an exec of the caller's takes.
		if most > before+40 {
			t.Errorf("%s: creeld has %d descriptors, and had %d", kind, most, before)
		}
		var through, refused int
		switch kind {
		case "open":
			// Those that are served, those that wait, and one generation more
			// for each second after which a header is too late.
			if _, err := fmt.Sscanf(out, "held %d", &through); err != nil || through < 16 || through > 500 {
				t.Errorf("%s", out)
			}
		case "fast":
			if _, err := fmt.Sscanf(out, "through %d refused %d", &through, &refused); err != nil || through < 100 || through > 100+50*8 || refused != 0 {
				t.Errorf("%s", out)
			}
		}
		l.Eventually("it answers again", 20*time.Second, func() error {
			if a := ask("GET", "/v1/version", ""); a.status != "200" {
				return fmt.Errorf("%+v", a)
			}
			return nil
		})
	}
}

// descriptors is how many the daemon has open.
func descriptors(t *testing.T, l *lab.Lab) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.DaemonPID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestOwnSocketLife: it is there when it was granted, and only then; a daemon
// that takes the sandbox over answers on it; nobody from outside is; and it
// ends with the sandbox.
func TestOwnSocketLife(t *testing.T) {
	l := granting(t)
	plain := started(t, l)
	if out, _ := l.Sh(plain, "ls /run/creel 2>&1"); !strings.Contains(out, "No such file") {
		t.Errorf("not granted: %s", out)
	}
	if out, errOut, code := l.CreelAs(caller, "", "run", "-d", "--parent", plain, "--grant-socket", "--memory", "64M"); code != 125 || !strings.Contains(errOut, "parent.socket") {
		t.Errorf("a child of one without: %s%s", out, errOut)
	}
	top := started(t, l, "--name", "top", "--grant-socket", "--memory", "512M")
	ask := asker(t, l, top)
	mine := child(t, ask, `{`+little+`}`)
	path := filepath.Join(l.Dir, "run", "sandboxes", top, "socket", "creel.sock")
	outside := func() string {
		// The run directory's mounts are in the daemon's namespace; the socket is not one.
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write([]byte("GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n"))
		b := make([]byte, 100)
		n, err := conn.Read(b)
		if n > 0 {
			return string(b[:n])
		}
		return err.Error()
	}
	if out := outside(); !strings.Contains(out, "EOF") && !strings.Contains(out, "reset") && !strings.Contains(out, "permission denied") {
		t.Errorf("root of the host is answered %q", out)
	}
	for _, again := range []func(){l.Kill, l.Stop} {
		again()
		l.Start()
		if err := os.Chmod(l.Socket, 0o666); err != nil {
			t.Fatal(err)
		}
		var list []api.Sandbox
		ask("GET", "/v1/sandboxes", "").decode(t, &list)
		if len(list) != 1 || list[0].ID != mine.ID {
			t.Errorf("after a restart: %+v", list)
		}
		v := child(t, ask, `{`+little+`}`)
		if a := ask("DELETE", "/v1/sandboxes/"+v.ID+"?force=true", ""); a.status != "204" {
			t.Errorf("after a restart: %+v", a)
		}
		if a := ask("GET", "/v1/sandboxes/"+plain, ""); a.status != "404" {
			t.Errorf("after a restart: %+v", a)
		}
		if failed := provenNow(t, l, top); len(failed) > 0 {
			t.Errorf("proven after a restart: %q", failed)
		}
	}
	// Whoever waits there when it ends does not hold it up.
	began := time.Now()
	waiting := make(chan struct{})
	go func() {
		_, _ = l.Exec(context.WithoutCancel(t.Context()), top, api.ExecRequest{Command: []string{"/usr/bin/python3", "-B", "/tmp/ask.py", "GET", "/v1/sandboxes/" + mine.ID + "/wait"}}, client.Stdio{})
		close(waiting)
	}()
	time.Sleep(500 * time.Millisecond)
	if _, err := l.Client.Stop(t.Context(), top, nil); err != nil {
		t.Fatal(err)
	}
	<-waiting
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the end took %v", took)
	}
	if out := outside(); !strings.Contains(out, "no such file") && !strings.Contains(out, "refused") {
		t.Errorf("after its end: %q", out)
	}
	l.Eventually("the socket is gone", 10*time.Second, func() error {
		if _, err := os.Lstat(filepath.Dir(path)); !os.IsNotExist(err) {
			return fmt.Errorf("%w", err)
		}
		return nil
	})
}

// TestOwnSocketIsGranted: a ceiling that says nothing of it refuses it, and
// explain shows the rule. Operators grant it.
func TestOwnSocketIsGranted(t *testing.T) {
	l := forUsers(t)
	if out, errOut, code := l.CreelAs(caller, "", "run", "-d", "--grant-socket"); code != 125 || !strings.Contains(errOut, "have the operator set socket of [[caller]] default") {
		t.Errorf("%d %s%s", code, out, errOut)
	}
	if out, _, code := l.CreelAs(caller, "", "explain", "--grant-socket"); code != 1 || !strings.Contains(out, "ceiling.socket") {
		t.Errorf("%d %s", code, out)
	}
	if v := l.Spawn(api.SpawnRequest{Socket: true}); !v.Socket {
		t.Errorf("%+v", v)
	}
	// The agent remembers what it was given of it, and what it used; and it works
	// with an image of one file, as in the virtual machine.
	l = grantingOn(t, "")
	for _, tt := range []struct {
		arg  string
		used bool
	}{{"--rm=false", false}, {"--grant-socket", true}, {"--rm=false", true}} {
		top := started(t, l, tt.arg)
		list, err := l.Agents(t.Context())
		if err != nil || len(list) != 1 || list[0].Given == nil || !list[0].Given.Socket || list[0].Used.Socket != tt.used {
			t.Errorf("with %s the agents are %+v, %v", tt.arg, list, err)
		}
		if tt.arg != "--grant-socket" {
			continue
		}
		put(t, l, top, "/tmp/creel", read(t, l.Bin+"/creel"))
		said, res := l.Sh(top, "cd /tmp; set -e; id=$(./creel run -d --memory 64M --pids 16 --cpus 0.1 --disk 64M); ./creel exec $id echo streamed; ./creel rm -f $id")
		if res.ExitCode != 0 || !strings.Contains(said, "streamed") {
			t.Errorf("creel inside: %+v\n%s", res, said)
		}
	}
}
