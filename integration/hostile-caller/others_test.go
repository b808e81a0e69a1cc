package hostilecaller

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// routes are all that can be asked of one sandbox.
var routes = []struct{ name, method, path, body string }{
	{"inspect", "GET", "", ""},
	{"remove", "DELETE", "?force=true", ""},
	{"stop", "POST", "/stop", "{}"},
	{"kill", "POST", "/kill", "{}"},
	{"pause", "POST", "/pause", "{}"},
	{"resume", "POST", "/resume", "{}"},
	{"wait", "GET", "/wait", ""},
	{"logs", "GET", "/logs", ""},
	{"stats", "GET", "/stats", ""},
	{"top", "GET", "/top", ""},
	{"execs", "GET", "/execs", ""},
	{"diff", "GET", "/diff", ""},
	{"evidence", "GET", "/evidence", ""},
	{"prove", "GET", "/evidence?fresh=true", ""},
	{"exec", "POST", "/exec", `{"command":["/bin/cat","/data/secret"]}`},
	{"commit", "POST", "/commit", `{"image":"mine:1"}`},
	{"prepare", "POST", "/prepare", `{"command":["/bin/cat","/data/secret"]}`},
	{"attach", "POST", "/attach", ""},
	{"allow", "POST", "/egress", `{"allow":["tcp evil.example:22"]}`},
	{"forward", "POST", "/forward?port=80", ""},
	{"read", "GET", "/files?path=/data/secret", ""},
	{"write", "PUT", "/files?path=/tmp/x", "x"},
	{"delete", "DELETE", "/files?path=/data/secret", ""},
	{"list", "GET", "/files/list?path=/data", ""},
	{"stat", "GET", "/files/stat?path=/data/secret", ""},
	{"mkdir", "POST", "/files/mkdir?path=/tmp/d", ""},
	{"rename", "POST", "/files/rename?from=/data/secret&to=/data/gone", ""},
}

// othersSandbox goes through every route with ids of others. The answer must
// be that for an id that does not exist, to the letter.
func othersSandbox() []attempt {
	var list []attempt
	for _, rt := range routes {
		list = append(list, attempt{
			name: "others-" + rt.name, tries: rt.method + " " + strings.SplitN(rt.path+"?", "?", 2)[0] + " of another user's and of root's sandbox, by id, name and prefix",
			fails: "not_found", do: func(a *attacker) string {
				headers := "Content-Type: application/json\r\n"
				if rt.name == "attach" || rt.name == "forward" {
					headers += "Connection: Upgrade\r\nUpgrade: creel-stream\r\n"
				}
				plain := func(ref string) string {
					r := a.askWith(rt.method, "/v1/sandboxes/"+ref+rt.path, headers, rt.body)
					body, id, _ := strings.Cut(r.body, `"request_id":"`)
					_, rest, _ := strings.Cut(id, `"`)
					return strings.ReplaceAll(fmt.Sprint(r.way(), " ", body, rest), ref, "REF")
				}
				none := plain(strings.Repeat("a", 20))
				for _, ref := range []string{a.VictimSandbox, a.VictimName, a.VictimSandbox[:6], a.RootSandbox, a.RootName, a.RootSandbox[:6]} {
					if got := plain(ref); got != none {
						return fmt.Sprintf("told %s from what does not exist: %s", ref, got)
					}
				}
				return none
			},
		})
	}
	return append(list,
		attempt{name: "others-prepared", tries: "run and release commands that others have prepared, by ids that are guessed", fails: "not_found", do: func(a *attacker) string {
			first := ""
			for i := range 100 {
				id := rand.Text()
				got := a.askWith("POST", "/v1/prepared/"+id, "Connection: Upgrade\r\nUpgrade: creel-stream\r\n", "").way()
				if i%2 == 1 {
					got = a.ask("DELETE", "/v1/prepared/"+id, "").way()
				}
				if first == "" {
					first = got
				}
				if got != first {
					return fmt.Sprintf("%s is answered %s, and another %s", id, got, first)
				}
			}
			return first
		}},
		attempt{name: "others-listed", tries: "find others' sandboxes in the list", fails: "not shown", do: func(a *attacker) string {
			return a.hides(a.ask("GET", "/v1/sandboxes?all=true", ""))
		}},
		attempt{name: "others-filtered", tries: "find them by a filter", fails: "not shown", do: func(a *attacker) string {
			return a.hides(a.ask("GET", "/v1/sandboxes?all=true&agent=default", ""))
		}},
		attempt{name: "others-paged", tries: "page past the end of the own list into others'", fails: "not shown", do: func(a *attacker) string {
			return a.hides(a.ask("GET", "/v1/sandboxes?all=true&limit=1000&after="+a.VictimSandbox, ""))
		}},
		attempt{name: "others-events", tries: "hear others' events", fails: "not shown", do: func(a *attacker) string {
			c := a.dial()
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			fmt.Fprint(c, "GET /v1/events HTTP/1.1\r\nHost: creel\r\nLast-Event-ID: 0\r\n\r\n")
			return a.hides(a.read(c, "GET"))
		}},
		attempt{name: "others-name", tries: "take the name of another's sandbox over by ensuring it", fails: "another sandbox", do: func(a *attacker) string {
			r := a.ask("PUT", "/v1/sandboxes/"+a.VictimName, js(obj{"agent": "default"}))
			defer a.ask("DELETE", "/v1/sandboxes/"+a.VictimName+"?force=true", "")
			if a.hides(r) == "not shown" && (r.status == http.StatusCreated || r.status == http.StatusOK) {
				return "it is another sandbox, of the attacker's"
			}
			return r.way()
		}},
		attempt{name: "others-parent-namespace", tries: "share the PID namespace of another's sandbox", fails: "invalid_argument", do: func(a *attacker) string {
			way, _ := a.spawn(obj{"pid": "container:" + a.VictimSandbox}, "ps")
			return way
		}},
		attempt{name: "others-idempotency-key", tries: "get another's answer by its key", fails: "own answer", do: func(a *attacker) string {
			r := a.askWith("POST", "/v1/sandboxes", "Content-Type: application/json\r\nIdempotency-Key: victims\r\n", js(obj{}))
			if r.status != http.StatusCreated || a.hides(r) != "not shown" {
				return r.way()
			}
			a.removeOthers()
			return "own answer"
		}},
	)
}

// othersApprovals are what others' sandboxes may be let, and who may let it.
func othersApprovals() []attempt {
	decide := func(name, tries, fails, body string, id func(a *attacker) string) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			return a.ask("POST", "/v1/approvals/"+id(a), body).way()
		}}
	}
	victims := func(a *attacker) string { return a.VictimSandbox + ".1" }
	roots := func(a *attacker) string { return a.RootSandbox + ".1" }
	const agent = `{"allow":true,"for":"agent"}`
	return []attempt{
		{name: "approval-others-list", tries: "list what another user's sandbox was refused", fails: "not_found", do: func(a *attacker) string {
			return a.ask("GET", "/v1/approvals?all=true&sandbox="+a.VictimSandbox, "").way()
		}},
		{name: "approval-all-listed", tries: "find others' sandboxes among all that wait", fails: "not shown", do: func(a *attacker) string {
			return a.hides(a.ask("GET", "/v1/approvals?all=true", ""))
		}},
		decide("approval-others-allow", "let another user's agent reach more", "not_found", agent, victims),
		decide("approval-others-deny", "deny what another user's sandbox asks for", "not_found", `{"allow":false}`, victims),
		decide("approval-root-allow", "let root's sandbox reach more", "not_found", agent, roots),
		decide("approval-none", "let what was never refused", "not_found", agent, func(*attacker) string { return "aaaaaaaaaaaaaaaa.1" }),
		decide("approval-form", "let for ever", "invalid_argument", `{"allow":true,"for":"ever"}`, victims),
		{name: "approval-forget", tries: "take back what another user's agent was let", fails: "not_found", do: func(a *attacker) string {
			return a.ask("POST", "/v1/agents/victims-agent/forget-egress", `{}`).way()
		}},
	}
}

// othersAgents are whom sandboxes of others belong to, and the record of what
// they did.
func othersAgents() []attempt {
	agent := func(name, tries, method, verb string) attempt {
		return attempt{name: name, tries: tries, fails: "not_found", do: func(a *attacker) string {
			return a.ask(method, "/v1/agents/victims-agent"+verb, "").way()
		}}
	}
	return []attempt{
		agent("agent-show", "look at another user's agent", "GET", ""),
		agent("agent-revoke", "have another user's agent revoked", "POST", "/revoke"),
		agent("agent-restore", "restore another user's agent", "POST", "/restore"),
		{name: "agent-expire", tries: "have another user's agent expire", fails: "not_found", do: func(a *attacker) string {
			return a.ask("POST", "/v1/agents/victims-agent/expire", `{"at":"2026-01-01T00:00:00Z"}`).way()
		}},
		{name: "agent-for-ever", tries: "have the own agent live for ever", fails: "permission_denied", do: func(a *attacker) string {
			return a.ask("POST", "/v1/agents/own/expire", `{"never":true}`).way()
		}},
		{name: "agent-longer", tries: "give the own agent more time than it was given", fails: "permission_denied", do: func(a *attacker) string {
			if r := a.ask("POST", "/v1/agents/own/expire", `{"at":"2099-01-01T00:00:00Z"}`); r.status != http.StatusOK {
				return r.way()
			}
			return a.ask("POST", "/v1/agents/own/expire", `{"at":"2099-01-01T00:00:01Z"}`).way()
		}},
		{name: "agent-list", tries: "find it in the list", fails: "not shown", do: func(a *attacker) string {
			return a.without(a.ask("GET", "/v1/agents", ""), "victims-agent")
		}},
		{name: "audit-others", tries: "read on the audit log what others did", fails: "not shown", do: func(a *attacker) string {
			return a.without(a.ask("GET", "/v1/audit", ""), fmt.Sprintf(`"uid":%d`, victimUID), `"uid":0,`)
		}},
		{name: "audit-as-another", tries: "ask for another's lines by uid", fails: "not shown", do: func(a *attacker) string {
			return a.without(a.ask("GET", fmt.Sprintf("/v1/audit?caller=%d", victimUID), ""), fmt.Sprintf(`"uid":%d`, victimUID))
		}},
		{name: "audit-all", tries: "export the whole audit log", fails: "permission_denied", do: func(a *attacker) string {
			return a.ask("GET", "/v1/audit?all=true", "").way()
		}},
		{name: "audit-head", tries: "learn from the log's head how much others do", fails: "permission_denied", do: func(a *attacker) string {
			return a.ask("GET", "/v1/audit/head", "").way()
		}},
		{name: "audit-forge", tries: "forge a line of the audit log by a name with a newline", fails: "invalid_argument", do: func(a *attacker) string {
			return a.ask("POST", "/v1/volumes", js(obj{"name": "x\n{\"kind\":\"intent\"}", "agent": "own", "size": "16M"})).way()
		}},
		{name: "explain-images", tries: "learn by explain whether another user has an image", fails: "the same", do: func(a *attacker) string {
			told := func(ref string) string {
				r := a.ask("POST", "/v1/explain", js(obj{"image": ref}))
				return strings.ReplaceAll(fmt.Sprint(r.status, r.body[:max(strings.Index(r.body, `"request_id"`), 0)]), ref, "REF")
			}
			if one, two := told(a.VictimDigest), told("sha256:"+strings.Repeat("0", 64)); one != two {
				return one + " and " + two
			}
			return "the same"
		}},
		{name: "explain-volumes", tries: "learn by explain whether another user has a volume", fails: "the same", do: func(a *attacker) string {
			told := func(name string) string {
				r := a.ask("POST", "/v1/explain", js(obj{"mounts": []obj{{"volume": name, "target": "/data"}}}))
				return strings.ReplaceAll(fmt.Sprint(r.status, r.body), name, "NAME")
			}
			if one, two := told("data"), told("none"); one != two {
				return one + " and " + two
			}
			return "the same"
		}},
		{name: "home-of-another", tries: "mount another agent's persistent home as a volume", fails: "invalid_argument", do: func(a *attacker) string {
			way, _ := a.spawn(obj{"mounts": []obj{{"volume": "victims-agent.home", "target": "/data"}}}, "ls /data")
			return way
		}},
		{name: "home-of-a-namesake", tries: "get another user's home by an agent of the same name", fails: "exit 1: cat: can't open '/home/agent/secret'", do: func(a *attacker) string {
			defer a.ask("DELETE", "/v1/volumes/victims-agent.home", "")
			way, _ := a.spawn(obj{"agent": "victims-agent", "home": "persistent"}, "cat /home/agent/secret")
			return way
		}},
	}
}

// without says whether an answer is one, and has none of the texts in it.
func (a *attacker) without(r answer, texts ...string) string {
	for _, s := range texts {
		if strings.Contains(r.body, s) {
			return "shows " + s
		}
	}
	if r.status != http.StatusOK {
		return r.way()
	}
	return "not shown"
}

// hides says whether an answer is one, without anything of others' in it.
func (a *attacker) hides(r answer) string {
	for _, s := range []string{a.VictimSandbox, a.RootSandbox, a.VictimExec, `"` + a.VictimName + `"`, `"` + a.RootName + `"`} {
		if strings.Contains(r.body, s) && s != `"`+a.VictimName+`"` {
			return "shows " + s
		}
	}
	if r.status >= http.StatusBadRequest || r.status == 0 {
		return r.way()
	}
	return "not shown"
}

// imagesAndVolumes are other people's bytes, and names that others trust.
func imagesAndVolumes() []attempt {
	importOf := func(ref string, archive func(*attacker) string) func(*attacker) string {
		return func(a *attacker) string {
			b, err := os.ReadFile(archive(a))
			if err != nil {
				return err.Error()
			}
			path := "/v1/images"
			if ref != "" {
				path += "?ref=" + ref
			}
			return a.askWith("POST", path, "Content-Type: application/x-tar\r\n", string(b)).way()
		}
	}
	img := func(name string) func(*attacker) string { return func(a *attacker) string { return a.Images[name] } }
	ask := func(method, path, body string) func(*attacker) string {
		return func(a *attacker) string {
			r := strings.NewReplacer("DIGEST", a.VictimDigest)
			return a.ask(method, r.Replace(path), r.Replace(body)).way()
		}
	}
	spawn := func(req func(*attacker) obj, script string) func(*attacker) string {
		return func(a *attacker) string { way, _ := a.spawn(req(a), script); return way }
	}
	return []attempt{
		{name: "image-victims", tries: "look at another's image", fails: "not_found", do: ask("GET", "/v1/images/tool:1", "")},
		{name: "image-victims-digest", tries: "look at it by its digest", fails: "not_found", do: ask("GET", "/v1/images/DIGEST", "")},
		{name: "image-victims-save", tries: "copy it out", fails: "not_found", do: ask("GET", "/v1/archives/DIGEST", "")},
		{name: "image-victims-tag", tries: "give it an own name", fails: "not_found", do: ask("PUT", "/v1/images/mine:1", `{"source":"DIGEST"}`)},
		{name: "image-victims-remove", tries: "remove it", fails: "not_found", do: ask("DELETE", "/v1/images/tool:1", "")},
		{name: "image-victims-run", tries: "run it by its digest", fails: "not_found", do: spawn(func(a *attacker) obj { return obj{"image": a.VictimDigest} }, "cat /etc/secret")},
		{name: "image-list", tries: "find it in the list", fails: "not shown", do: func(a *attacker) string {
			r := a.ask("GET", "/v1/images", "")
			if strings.Contains(r.body, "tool:1") || strings.Contains(r.body, a.VictimDigest) {
				return "shown"
			}
			return "not shown"
		}},
		{name: "image-box-remove", tries: "remove the box's image", fails: "permission_denied", do: ask("DELETE", "/v1/images/base", "")},
		{name: "image-squat-import", tries: "import under the box's name", fails: "conflict", do: importOf("base", img("plain"))},
		{name: "image-squat-latest", tries: "import under the box's name with its default tag", fails: "conflict", do: importOf("base:latest", img("plain"))},
		{name: "image-squat-tag", tries: "tag an own image with the box's name", fails: "conflict", do: func(a *attacker) string {
			if way := importOf("own:1", img("plain"))(a); way != "201" {
				return "no image of its own: " + way
			}
			return a.ask("PUT", "/v1/images/base", `{"source":"own:1"}`).way()
		}},
		{name: "image-name-path", tries: "name an image like a file", fails: "invalid_argument", do: importOf("../../etc/passwd", img("plain"))},
		{name: "image-climbs", tries: "unpack a file above the root", fails: "invalid_argument", do: importOf("x:1", img("climbs"))},
		{name: "image-dev-link", tries: "have /dev be a link to the host's /etc", fails: "invalid_argument", do: importOf("x:1", img("absolute"))},
		{name: "image-hard-link", tries: "link to the host's password file", fails: "invalid_argument", do: importOf("x:1", img("hard-link"))},
		{name: "image-device", tries: "bring a disk's device", fails: "invalid_argument", do: importOf("x:1", img("device"))},
		{name: "image-below-link", tries: "unpack a file below a link that leads out", fails: "invalid_argument", do: importOf("x:1", img("below-link"))},
		{name: "image-no-archive", tries: "import noise", fails: "invalid_argument", do: func(a *attacker) string {
			return a.askWith("POST", "/v1/images?ref=x:1", "Content-Type: application/x-tar\r\n", strings.Repeat("noise", 100_000)).way()
		}},
		{name: "volume-victims", tries: "look at another's volume", fails: "not_found", do: ask("GET", "/v1/volumes/data", "")},
		{name: "volume-roots", tries: "look at root's volume", fails: "not_found", do: ask("GET", "/v1/volumes/roots-data", "")},
		{name: "volume-remove", tries: "remove it", fails: "not_found", do: ask("DELETE", "/v1/volumes/roots-data", "")},
		{name: "volume-mount", tries: "mount it, to read", fails: "not_found", do: spawn(func(*attacker) obj {
			return obj{"mounts": []obj{{"volume": "roots-data", "target": "/data", "readonly": true}}}
		}, "ls /data")},
		{name: "volume-mount-victims", tries: "mount another's volume by the agent's name", fails: "not_found", do: spawn(func(*attacker) obj {
			return obj{"agent": "default", "mounts": []obj{{"volume": "data", "target": "/data"}}}
		}, "cat /data/secret")},
		{name: "volume-name-path", tries: "name a volume like a file", fails: "invalid_argument", do: ask("POST", "/v1/volumes", `{"name":"../../state.db","agent":"own","size":"16M"}`)},
		{name: "volume-and-directory", tries: "give a mount two sources", fails: "invalid_argument", do: func(a *attacker) string {
			f, err := open(a.Own, unix.O_DIRECTORY)
			if err != nil {
				return errnoName(err)
			}
			defer f.Close()
			way, _ := a.spawn(obj{"mounts": []obj{{"volume": "roots-data", "fd": 0, "target": "/data"}}}, "ls /data", f)
			return way
		}},
	}
}

// removeOthers removes the attacker's sandboxes but its own one.
func (a *attacker) removeOthers() {
	r := a.ask("GET", "/v1/sandboxes?all=true", "")
	for _, part := range strings.Split(r.body, `"id":"`)[1:] {
		id, _, _ := strings.Cut(part, `"`)
		if id != a.sandbox {
			a.ask("DELETE", "/v1/sandboxes/"+id+"?force=true", "")
		}
	}
}
