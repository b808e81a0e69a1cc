package openclaw_test

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/openclaw"
)

type (
	m = map[string]any
	l = []any
)

// What OpenClaw's own reader (json5 2) makes of these was compared once, and of
// 40,000 made-up documents.
func TestDecode(t *testing.T) {
	tests := []struct {
		text string
		want any
	}{
		{`{}`, m{}},
		{" // c\n[ ] /* x */ // end", l{}},
		{`{"a": {"b": [1, true, false, null, "x"]}}`, m{"a": m{"b": l{1.0, true, false, nil, "x"}}}},
		{`{a: 1, $b_2: 2, 'c-d': 3, \u0065: 4, é: 5,}`, m{"a": 1.0, "$b_2": 2.0, "c-d": 3.0, "e": 4.0, "é": 5.0}},
		{`{true: 1, null: 2, Infinity: 3}`, m{"true": 1.0, "null": 2.0, "Infinity": 3.0}},
		{`[1,2,]`, l{1.0, 2.0}},
		{`[+1, -.5, 5., 1e3, 1E-2, 0x1F, -0Xff, 1.e1]`, l{1.0, -.5, 5.0, 1000.0, .01, 31.0, -255.0, 10.0}},
		{`[Infinity, -Infinity, 1e999]`, l{math.Inf(1), math.Inf(-1), math.Inf(1)}},
		{`'it\'s "so"'`, `it's "so"`},
		{`"\b\f\n\r\t\v\0\x41\u00e9\ud83d\ude00\q\\\/"`, "\b\f\n\r\t\v\x00Aé😀q\\/"},
		{`"\ud83d!"`, "\ufffd!"},
		{"'a\\\nb\\\r\nc\\\u2028d'", "abcd"},
		{"\ufeff\u00a0\v\f1\u3000\u2029", 1.0},
		{`{a: 1, "a": 2}`, m{"a": 2.0}},
		{"1 // c\u2028", 1.0},
	}
	for _, tt := range tests {
		got, err := openclaw.Decode(tt.text)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tt.text, err, diff)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                "line 1, column 1: unexpected end",
		"{\n  a: 1\n  b":  "line 3, column 3: unexpected 'b'",
		`{a 1}`:           `unexpected '1'`,
		`{1a: 1}`:         `unexpected '1'`,
		`{a-b: 1}`:        `unexpected '-'`,
		`{\u0031: 1}`:     `unexpected '\\'`,
		`{\x41: 1}`:       `unexpected '\\'`,
		`[1,,2]`:          `unexpected ','`,
		`[,]`:             `unexpected ','`,
		`[1`:              "unexpected end",
		`{a: 1} x`:        `unexpected 'x'`,
		`01`:              `unexpected '1'`,
		`.`:               "unexpected end",
		`1e`:              "unexpected end",
		`0x`:              "unexpected end",
		`- 1`:             `unexpected ' '`,
		`True`:            `unexpected 'T'`,
		`"a`:              "a string without an end",
		"'a\nb'":          "a string without an end",
		`"\1"`:            "an octal escape",
		`"\01"`:           "an octal escape",
		`"\u12"`:          "cut off",
		`"\u12xy"`:        `"12xy" is not 4 hexadecimal digits`,
		`"\x4`:            "cut off",
		`/* a`:            "a comment without an end",
		`/ a`:             `unexpected '/'`,
		"\"\xff\"":        "not UTF-8",
		"\"a\\":           "unexpected end",
		`{a: é}`:          "line 1, column 5: unexpected 'é'",
		"{'é': 'é' é: 1}": "line 1, column 11:",
		strings.Repeat("[", 300) + strings.Repeat("]", 300): "deeper than 200 levels",
	} {
		if got, err := openclaw.Decode(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", text, got, err, want)
		}
	}
}

// Every JSON document is a JSON5 document that says the same.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2.5e3,"\u00e9",null,true]}`, `{a:'b',}`, "// c\n0x10", `"\ud83d\ude00"`, "\u2028[1,]", `"\u2028"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := openclaw.Decode(text)
		var want any
		if json.Unmarshal([]byte(text), &want) != nil || strings.Count(text, "[")+strings.Count(text, "{") > 200 {
			return
		}
		if err != nil && err.Error() != "not UTF-8" || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %#v, %v; encoding/json has %#v", text, got, err, want)
		}
	})
}
