package hostilecaller

import (
	"fmt"
	"maps"
	"strings"
)

// othersSecrets are attempts to have what goes out with others' requests.
func othersSecrets() []attempt {
	with := func(name string, more obj) obj {
		req := obj{"network": "policy", "egress": []string{"api.example.com"}, "secrets": []string{name}}
		maps.Copy(req, more)
		return req
	}
	use := func(name, tries, fails, secret string, more obj) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			way, _ := a.spawn(with(secret, more), "env")
			return way
		}}
	}
	set := func(name, tries string, req obj) attempt {
		return attempt{name: name, tries: tries, fails: "invalid_argument", do: func(a *attacker) string {
			all := obj{"value": "a-value-of-mine", "rule": "api.example.com"}
			maps.Copy(all, req)
			return a.ask("PUT", "/v1/secrets/mine", js(all)).way()
		}}
	}
	return []attempt{
		use("secret-victims", "have requests go out with another user's secret", "not_found", "victims-key", nil),
		use("secret-boxs", "have them go out with a secret of the box's that the ceiling does not have", "permission_denied", "boxs-key", nil),
		use("secret-without-network", "name a secret without a network", "invalid_argument", "mine", obj{"network": "none", "egress": nil}),
		use("secret-of-a-parent", "have by a child what its parent does not have", "permission_denied", "boxs-key", obj{"parent": "own"}),
		{name: "egress-allow-beyond", tries: "widen an own sandbox's network beyond the ceiling", fails: "permission_denied", do: func(a *attacker) string {
			r := a.ask("POST", "/v1/sandboxes", js(obj{"network": "policy", "egress": []string{"api.example.com"}, "name": "narrow"}))
			defer a.ask("DELETE", "/v1/sandboxes/narrow?force=true", "")
			if r.status >= 300 {
				return r.way()
			}
			return a.ask("POST", "/v1/sandboxes/narrow/egress", `{"allow":["tcp evil.example:22"]}`).way()
		}},
		{name: "secret-read", tries: "read another user's secret back", fails: "405", do: func(a *attacker) string {
			return fmt.Sprint(a.ask("GET", "/v1/secrets/victims-key", "").status)
		}},
		{name: "secret-read-own", tries: "read an own secret back, by any route", fails: "not shown", do: func(a *attacker) string {
			const value = "a-value-of-mine"
			r := a.ask("PUT", "/v1/secrets/readable", js(obj{"value": value, "rule": "api.example.com", "env": "KEY"}))
			defer a.ask("DELETE", "/v1/secrets/readable", "")
			all := r.body + a.ask("GET", "/v1/secrets", "").body + a.ask("GET", "/v1/audit", "").body
			all += a.ask("POST", "/v1/explain", js(with("readable", nil))).body
			if strings.Contains(all, value) || r.status != 200 {
				return "shown"
			}
			return "not shown"
		}},
		{name: "secret-list", tries: "find others' secrets in the list", fails: "not shown", do: func(a *attacker) string {
			return a.without(a.ask("GET", "/v1/secrets", ""), "victims-key", "boxs-key")
		}},
		{name: "secret-explain", tries: "learn by explain whether another user has a secret", fails: "the same", do: func(a *attacker) string {
			told := func(name string) string {
				r := a.ask("POST", "/v1/explain", js(with(name, nil)))
				return strings.ReplaceAll(fmt.Sprint(r.status, r.body[:max(strings.Index(r.body, `"request_id"`), 0)]), name, "NAME")
			}
			if one, two := told("victims-key"), told("none"); one != two {
				return one + " and " + two
			}
			return "the same"
		}},
		{name: "secret-remove-victims", tries: "remove another user's secret", fails: "not_found", do: func(a *attacker) string {
			return a.ask("DELETE", "/v1/secrets/victims-key", "").way()
		}},
		{name: "secret-remove-boxs", tries: "remove the box's", fails: "not_found", do: func(a *attacker) string {
			return a.ask("DELETE", "/v1/secrets/boxs-key", "").way()
		}},
		{name: "secret-overwrite", tries: "put an own value in the place of others'", fails: "own alone", do: func(a *attacker) string {
			for _, name := range []string{"victims-key", "boxs-key"} {
				r := a.ask("PUT", "/v1/secrets/"+name, js(obj{"value": "a-value-of-mine", "rule": "evil.example.com"}))
				defer a.ask("DELETE", "/v1/secrets/"+name, "")
				if !strings.Contains(r.body, `"uid":61100`) || strings.Contains(r.body, `"box":true`) {
					return r.way() + " " + r.body
				}
			}
			return "own alone" // that others' are as they were is seen at the end
		}},
		{name: "secret-name", tries: "have a file be written elsewhere by a secret's name", fails: "not_found", do: func(a *attacker) string {
			return a.ask("PUT", "/v1/secrets/..%2F..%2Fetc%2Fx", js(obj{"value": "a-value-of-mine", "rule": "api.example.com"})).way()
		}},
		set("secret-any-host", "bind a secret to every host", obj{"rule": "*.example.com"}),
		set("secret-without-tls", "have it go out without TLS", obj{"rule": "http api.example.com"}),
		set("secret-line", "put a second header into its value", obj{"value": "a-value\r\nHost: evil.example.com"}),
		set("secret-host-header", "have it say which host is meant", obj{"place": obj{"kind": "header", "name": "Host"}}),
		set("secret-framing", "have it say how long a request is", obj{"place": obj{"kind": "header", "name": "transfer-encoding"}}),
		set("secret-short", "have every e of an answer be masked", obj{"value": "e"}),
		set("secret-variable", "set a variable that no variable is called", obj{"env": "A=B"}),
		{name: "secret-many", tries: "fill the disk with secrets", fails: "resource_exhausted", do: func(a *attacker) string {
			way := "never"
			for i := range 300 {
				name := fmt.Sprint("many-", i)
				r := a.ask("PUT", "/v1/secrets/"+name, js(obj{"value": "a-value-of-mine", "rule": "api.example.com"}))
				defer a.ask("DELETE", "/v1/secrets/"+name, "")
				if way = r.way(); r.status != 200 {
					break
				}
			}
			return way
		}},
	}
}
