package verify

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestParseMount(t *testing.T) {
	tests := []struct {
		line string
		want mountInfo
	}{
		{
			`36 35 98:0 /mnt1 /a\040b rw,noatime master:1 shared:7 - ext3 /dev/ro\134ot rw,errors=continue`,
			mountInfo{id: 36, root: "/mnt1", target: "/a b", options: []string{"rw", "noatime"}, shared: []string{"master:1", "shared:7"}, fstype: "ext3", source: `/dev/ro\ot`, super: []string{"rw", "errors=continue"}},
		},
		{
			`1 0 0:2 / / ro - tmpfs none ro,size=64k`,
			mountInfo{id: 1, root: "/", target: "/", options: []string{"ro"}, shared: []string{}, fstype: "tmpfs", source: "none", super: []string{"ro", "size=64k"}},
		},
		{ // a source may be empty, as of a mount made with ""
			`1 0 0:2 / /x rw - tmpfs  rw`,
			mountInfo{id: 1, root: "/", target: "/x", options: []string{"rw"}, shared: []string{}, fstype: "tmpfs", super: []string{"rw"}},
		},
	}
	for _, tt := range tests {
		got, err := parseMountInfo(tt.line + "\n")
		if err != nil {
			t.Errorf("%q: %v", tt.line, err)
			continue
		}
		if diff := cmp.Diff([]mountInfo{tt.want}, got, cmp.AllowUnexported(mountInfo{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.line, diff)
		}
	}
	for _, bad := range []string{
		"x", "1 0 0:2 / / ro tmpfs none ro", "1 0 0:2 / / - tmpfs none ro", "1 0 0:2 / / ro - tmpfs none",
		`1 0 0:2 / /\04 ro - tmpfs none ro`, `1 0 0:2 / /\999 ro - tmpfs none ro`, `1 0 0:2 / /x\ ro - tmpfs none ro`,
		"1 0 0:2 / / ro - tmpfs none ro extra", " ",
	} {
		if got, err := parseMountInfo(bad); err == nil {
			t.Errorf("%q parsed as %+v", bad, got)
		}
	}
}

func TestMountSize(t *testing.T) {
	for text, want := range map[string]uint64{
		"rw,size=64k": 64 << 10, "rw,size=3m,nr_inodes=5": 3 << 20, "rw,size=1g": 1 << 30, "rw,size=512": 512,
		"rw": 0, "rw,size=": 0, "rw,size=x": 0, "rw,size=18446744073709551615k": 0, "rw,xsize=5": 0,
	} {
		m := mountInfo{super: strings.Split(text, ",")}
		if got := m.size("size"); got != want {
			t.Errorf("size of %q = %d, want %d", text, got, want)
		}
	}
}

const limitsText = `Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max open files            1024                 4096                 files     
Max future things         1                    2                    things    
Max nice priority         0                    0                    
`

func TestParseLimits(t *testing.T) {
	got, err := parseLimits(limitsText)
	want := map[string]Rlimit{"cpu": {Infinity, Infinity}, "nofile": {1024, 4096}, "nice": {0, 0}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
	if s := want["nofile"].String() + " " + want["cpu"].String(); s != "1024/4096 unlimited/unlimited" {
		t.Errorf("limits print as %q", s)
	}
	row := strings.SplitAfter(limitsText, "\n")[2]
	for _, bad := range []string{limitsText + row, limitsText + "short\n", strings.Replace(limitsText, "4096", "-4", 1), strings.Replace(limitsText, "1024 ", "     ", 1) + "Max data size\n"} {
		if got, err := parseLimits(bad); err == nil {
			t.Errorf("%q parsed as %v", bad, got)
		}
	}
}

func TestParseStat(t *testing.T) {
	text := "7 (a) b) R (c) S 1 2 3 34816 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 21\n"
	got, err := parseStat(text)
	if err != nil || got != (procStat{tty: 34816, start: 4242}) {
		t.Errorf("parseStat = %+v, %v", got, err)
	}
	if s := ttyName(got.tty); s != "terminal 136:0" {
		t.Errorf("terminal is %q", s)
	}
	for _, bad := range []string{"", "1 (x) R 1", "no parenthesis", strings.Replace(text, "4242", "x", 1), strings.Replace(text, "34816", "x", 1)} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("%q parsed as %+v", bad, got)
		}
	}
	self, err := StartTime(os.Getpid())
	if err != nil || self == 0 {
		t.Errorf("StartTime of this process = %d, %v", self, err)
	}
}

func TestParseFields(t *testing.T) {
	got := parseFields("Name:\tx: y\nGroups:\t1 2 \nCapEff:\t0\nName:\tz\nnothing\n")
	if diff := cmp.Diff(map[string]string{"Name": "x: y", "Groups": "1 2", "CapEff": "0"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := common([]thread{{1, map[string]string{"A": "0"}}, {2, map[string]string{"A": "1"}}, {3, nil}}, "A"); got != "differs: 0 in thread 1; 1 in thread 2; no A in status in thread 3" {
		t.Errorf("differing threads read %q", got)
	}
	if got := parseIDMap("         0 2013265920      65536\n     70000 1 1\n"); got != "0 2013265920 65536; 70000 1 1" {
		t.Errorf("id map reads %q", got)
	}
}

func TestFDs(t *testing.T) {
	null := FD{0, "/dev/null"}
	tests := []struct {
		name      string
		got, want []FD
		ok        bool
	}{
		{"equal", []FD{null, {100, "socket:[5]"}}, []FD{null, {100, "socket:"}}, true},
		{"optional missing", []FD{null}, []FD{null, {-1, "pipe:"}}, true},
		{"optional twice", []FD{null, {7, "pipe:[1]"}, {8, "pipe:[2]"}}, []FD{null, {-1, "pipe:"}}, true},
		{"missing", []FD{null}, []FD{null, {1, "/dev/null"}}, false},
		{"other number", []FD{{1, "/dev/null"}}, []FD{null}, false},
		{"extra directory", []FD{null, {3, "/"}}, []FD{null, {-1, "pipe:"}}, false},
		{"file with a kind's name", []FD{{3, "/pipe:[1]"}}, []FD{{3, "pipe:"}}, false},
		{"not the device", []FD{{0, "not the null device: /dev/null"}}, []FD{null}, false},
	}
	for _, tt := range tests {
		r := &report{}
		checkFDs(r, tt.got, tt.want)
		if r.controls[0].OK != tt.ok {
			t.Errorf("%s: ok = %t", tt.name, !tt.ok)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü": "plain ü", "a\nb\x1b[1m": `"a\nb\x1b[1m"`, "\xff": `"\xff"`,
		strings.Repeat("x", 600): strings.Repeat("x", 512) + "...",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q", in, got)
		}
	}
}

func FuzzMountInfo(f *testing.F) {
	f.Add(`36 35 98:0 /mnt1 /a\040b rw,noatime master:1 - ext3 /dev/root rw,size=5k` + "\n")
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parseMountInfo(text)
		if err != nil {
			return
		}
		// No line is lost: a mount that is not seen is a mount not checked.
		lines := strings.Count(text, "\n")
		if text != "" && !strings.HasSuffix(text, "\n") {
			lines++
		}
		if len(table) != lines {
			t.Errorf("%d mounts from %d lines", len(table), lines)
		}
		for _, m := range table {
			if len(m.options) == 0 || m.size("size") != 0 && !strings.Contains(text, "size=") {
				t.Errorf("mount %+v says what the text does not", m)
			}
		}
	})
}

func FuzzStatus(f *testing.F) {
	f.Add("Name:\tx\nSeccomp:\t2\n")
	f.Fuzz(func(t *testing.T, text string) {
		for name, value := range parseFields(text) {
			if strings.Contains(name, "\n") || strings.ContainsFunc(value, func(c rune) bool { return c == '\n' || c == '\t' }) || !strings.Contains(text, name+":") {
				t.Errorf("field %q = %q", name, value)
			}
		}
	})
}

func FuzzLimits(f *testing.F) {
	f.Add(limitsText)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseLimits(text)
		if err != nil {
			return
		}
		for name, l := range got {
			if !strings.Contains(text, limitText(l.Soft)) && !strings.Contains(text, fmt.Sprintf("0%d", l.Soft)) {
				t.Errorf("limit %s = %v is not in the text", name, l)
			}
		}
	})
}

func FuzzClean(f *testing.F) {
	f.Add("a\nb")
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if len(got) > maxText+3 || !utf8.ValidString(got) || strings.ContainsFunc(got, func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Errorf("clean(%q) = %q", s, got)
		}
	})
}
