package openclaw_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/openclaw"
)

func TestPlan(t *testing.T) {
	tests := []struct {
		name, before, want string
	}{
		{name: "an empty object", before: "{}\n", want: `{
  "agents": {
    "defaults": {
      "sandbox": {
        "mode": "all",
        "backend": "creel",
        "scope": "session"
      }
    }
  },
  "plugins": {
    "entries": {
      "creel": {
        "enabled": true
      }
    }
  }
}
`},
		{
			name:   "in one line",
			before: `{"agents":{"list":[]},"plugins":{"allow":["x"]}}`,
			want:   `{"agents":{"list":[], "defaults": { "sandbox": { "mode": "all", "backend": "creel", "scope": "session" } }},"plugins":{"allow":["x", "creel"], "entries": { "creel": { "enabled": true } }}}`,
		},
		{name: "what is there is left alone", before: `// mine
{
  agents: { // agents
    defaults: {
      sandbox: {
        mode: 'off', // no!
        backend: "docker", /* for now */
        scope: 'agent',
      }, // end
    },
  },
  plugins: {
    allow: [
      'x', // one
      'y' // two
    ],
    entries: { 'a-b': { enabled: true }, }, // some
    deny: [],
  },
}
`, want: `// mine
{
  agents: { // agents
    defaults: {
      sandbox: {
        mode: 'all', // no!
        backend: "creel", /* for now */
        scope: 'agent',
      }, // end
    },
  },
  plugins: {
    allow: [
      'x', // one
      'y', // two
      'creel'
    ],
    entries: { 'a-b': { enabled: true }, creel: { enabled: true }, }, // some
    deny: [],
  },
}
`},
		{
			name:   "tabs and CRLF",
			before: "{\r\n\t\"agents\": {\r\n\t\t\"defaults\": {} // none\r\n\t}\r\n}\r\n",
			want: "{\r\n\t\"agents\": {\r\n\t\t\"defaults\": {\r\n\t\t\t\"sandbox\": {\r\n\t\t\t\t\"mode\": \"all\",\r\n\t\t\t\t\"backend\": \"creel\",\r\n\t\t\t\t\"scope\": \"session\"\r\n\t\t\t}\r\n\t\t} // none\r\n\t},\r\n" +
				"\t\"plugins\": {\r\n\t\t\"entries\": {\r\n\t\t\t\"creel\": {\r\n\t\t\t\t\"enabled\": true\r\n\t\t\t}\r\n\t\t}\r\n\t}\r\n}\r\n",
		},
		{
			name:   "brackets in odd places",
			before: "{ a: 1,\n  agents: {\n    defaults: { sandbox: { /* c */ } } }, plugins: { entries: {\n // none yet\n } } }",
			want:   "{ a: 1,\n  agents: {\n    defaults: { sandbox: { /* c */\n      mode: \"all\",\n      backend: \"creel\",\n      scope: \"session\"\n    } } }, plugins: { entries: {\n // none yet\n      creel: {\n        enabled: true\n      }\n    } } }",
		},
		{
			name:   "an empty list, and what perSession was",
			before: `{"agents": {"defaults": {"sandbox": {"perSession": true}}}, "plugins": {"allow": [ ]}}`,
			want:   `{"agents": {"defaults": {"sandbox": {"perSession": true, "mode": "all", "backend": "creel"}}}, "plugins": {"allow": [  "creel" ], "entries": { "creel": { "enabled": true } }}}`,
		},
		{
			name:   "the last of two counts",
			before: "{\n  plugins: {},\n  agents: { defaults: { sandbox: { mode: 'off', mode: 'non-main' } } },\n  plugins: { entries: { creel: { enabled: false } } },\n}",
			want:   "{\n  plugins: {},\n  agents: { defaults: { sandbox: { mode: 'off', mode: 'all', backend: \"creel\", scope: \"session\" } } },\n  plugins: { entries: { creel: { enabled: true } } },\n}",
		},
		{
			name:   "nothing to do",
			before: "{agents: {defaults: {sandbox: {mode: 'all', backend: 'creel', scope: 'shared'}}}, plugins: {allow: ['creel'], entries: {creel: {enabled: true, config: {}}}}}",
			want:   "{agents: {defaults: {sandbox: {mode: 'all', backend: 'creel', scope: 'shared'}}}, plugins: {allow: ['creel'], entries: {creel: {enabled: true, config: {}}}}}",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := openclaw.Plan([]byte(tt.before), "all")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			again, err := openclaw.Plan(got, "all")
			if err != nil || string(again) != string(got) {
				t.Errorf("a second time: %v\n%s", err, again)
			}
			if d := openclaw.Diff("f", []byte(tt.before), got); (d == "") != (tt.before == tt.want) {
				t.Errorf("diff: %q", d)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	for _, tt := range []struct{ text, mode, want string }{
		{`{`, "all", "unexpected end"},
		{`[]`, "all", "not an object at the top"},
		{`{}`, "off", `mode "off"`},
		{`{agents: {$include: './a.json5'}}`, "all", openclaw.ErrInclude.Error()},
		{`{a: [{$include: ['./a.json5']}]}`, "all", openclaw.ErrInclude.Error()},
		{`{agents: []}`, "all", "agents is not an object"},
		{`{agents: {defaults: null}}`, "all", "agents.defaults is not an object"},
		{`{agents: {defaults: {sandbox: {mode: {}}}}}`, "all", "agents.defaults.sandbox.mode is an object or a list"},
		{`{x: NaN}`, "all", "cannot change safely"},
	} {
		if got, err := openclaw.Plan([]byte(tt.text), tt.mode); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %q, %v; want %q", tt.text, got, err, tt.want)
		}
	}
	if _, err := openclaw.Plan([]byte(`{$include: 'a'}`), "all"); !errors.Is(err, openclaw.ErrInclude) {
		t.Errorf("include: %v", err)
	}
}

// Whatever a configuration looks like: what is written says what was wanted,
// and else what it said before.
func FuzzPlan(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"agents":{"defaults":{"sandbox":{"mode":"off"}}}}`, "{ // c\n}", "{a:1,}", "{a:1 // c\n}", "{\n\ta: [1,],\r\n}", "{plugins:{allow:[\n'x'\n]}}",
		"{a: 1 // c\r, b: 2\n}", "{agents:{/*\n*/}}", "{a: 1 /*\n*/ }", "{\n'agents': { 'defaults': {}, } // c\u2028 }\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		after, err := openclaw.Plan([]byte(text), "non-main")
		if err != nil {
			return
		}
		before, err := openclaw.Decode(text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := openclaw.Decode(string(after))
		if err != nil {
			t.Fatalf("%q became %q: %v", text, after, err)
		}
		b, _ := json.Marshal(got)
		for _, want := range []string{`"mode":"non-main"`, `"backend":"creel"`, `"enabled":true`} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%q became %q, without %s", text, after, want)
			}
		}
		// All that is not set is as before.
		for _, v := range []any{before, got} {
			delete(v.(map[string]any), "agents")
			delete(v.(map[string]any), "plugins")
		}
		if !reflect.DeepEqual(before, got) {
			t.Errorf("%q became %q", text, after)
		}
		again, err := openclaw.Plan(after, "non-main")
		if err != nil || string(again) != string(after) {
			t.Errorf("%q became %q, and then %q, %v", text, after, again, err)
		}
	})
}
