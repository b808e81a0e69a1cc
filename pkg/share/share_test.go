package share_test

import (
	"testing"

	"github.com/creel-sandbox/creel/pkg/share"
)

func TestParseAgent(t *testing.T) {
	for text, want := range map[string]share.Agent{
		"uid:0/a":                {UID: 0, Name: "a"},
		"uid:1000/coder-2":       {UID: 1000, Name: "coder-2"},
		"uid:4294967294/default": {UID: 1<<32 - 2, Name: "default"},
		"uid:4294967295/a":       {}, // no uid
		"uid:9999999999/a":       {},
		"uid:-1/a":               {},
		"uid:01/a":               {}, // one text for one agent
		"uid:1000":               {},
		"uid:1000/":              {},
		"uid:1000/A":             {},
		"uid:1000/a/b":           {},
		"1000/a":                 {},
		"uid:1000/a\n":           {},
		"uid:*/a":                {},
	} {
		got, err := share.ParseAgent(text)
		if got != want || (err != nil) != (want == share.Agent{}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		if err == nil && got.String() != text {
			t.Errorf("%q is %q again", text, got)
		}
	}
}
