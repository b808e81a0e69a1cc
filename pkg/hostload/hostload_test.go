package hostload_test

import (
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/creel-sandbox/creel/pkg/hostload"
)

// proc is a /proc with a gibibyte available, 100 tasks of 32768 and no stalls,
// but for what is changed; an empty text takes a file away.
func proc(change map[string]string) fs.FS {
	files := map[string]string{
		"meminfo":                "MemTotal:        4045032 kB\nMemFree:          100000 kB\nMemAvailable:    1048576 kB\nSwapTotal: 0 kB\n",
		"loadavg":                "0.51 0.45 0.40 2/100 12345\n",
		"sys/kernel/pid_max":     "4194304\n",
		"sys/kernel/threads-max": "32768\n",
		"pressure/memory":        "some avg10=9.00 avg60=0.00 avg300=0.00 total=10\nfull avg10=1.25 avg60=0.00 avg300=0.00 total=10\n",
		"pressure/io":            "some avg10=0.00 avg60=0.00 avg300=0.00 total=10\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=10\n",
	}
	out := fstest.MapFS{}
	for name, text := range files {
		if c, ok := change[name]; ok {
			text = c
		}
		if text != "" {
			out[name] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	return out
}

func TestRead(t *testing.T) {
	got, err := hostload.Read(proc(nil))
	want := hostload.State{Memory: 1 << 30, Tasks: 100, MaxTasks: 32768, MemoryPressure: 1.25}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	got, err = hostload.Read(proc(map[string]string{"pressure/memory": "", "pressure/io": ""}))
	if err != nil || got.MemoryPressure != -1 || got.IOPressure != -1 {
		t.Errorf("without PSI: %+v, %v", got, err)
	}
	for name, text := range map[string]string{
		"meminfo": "MemFree: 5 kB\n", "loadavg": "1 2\n", "sys/kernel/pid_max": "", "sys/kernel/threads-max": "many\n",
		"pressure/io": "some avg10=0.00\n",
	} {
		if s, err := hostload.Read(proc(map[string]string{name: text})); err == nil {
			t.Errorf("%s of %q is read as %+v", name, text, s)
		}
	}
	if _, err := hostload.Read(os.DirFS("/proc")); err != nil {
		t.Errorf("this host: %v", err)
	}
}

// TestJudge: each bound refuses by itself and by name, and one that is not set
// or cannot be known does not.
func TestJudge(t *testing.T) {
	full := hostload.State{Memory: 100 << 20, Tasks: 32000, MaxTasks: 32768, MemoryPressure: 30, IOPressure: 95}
	for _, tt := range []struct {
		rule   string
		bounds hostload.Bounds
		ok     bool
	}{
		{"host.memory", hostload.Bounds{Memory: 101 << 20}, false},
		{"host.memory", hostload.Bounds{Memory: 100 << 20}, true},
		{"host.pids", hostload.Bounds{Pids: 769}, false},
		{"host.pids", hostload.Bounds{Pids: 768}, true},
		{"host.memory_pressure", hostload.Bounds{MemoryPressure: 29.9}, false},
		{"host.memory_pressure", hostload.Bounds{MemoryPressure: 30}, true},
		{"host.io_pressure", hostload.Bounds{IOPressure: 90}, false},
	} {
		rules := hostload.Judge(full, tt.bounds)
		if len(rules) != 1 || rules[0].Rule != tt.rule || rules[0].OK != tt.ok || (rules[0].Fix == "") != tt.ok || !rules[0].Total {
			t.Errorf("%+v: %+v", tt, rules)
		}
		if !tt.ok && !strings.HasPrefix(rules[0].Message(), tt.rule+" is at ") {
			t.Errorf("the message is %q", rules[0].Message())
		}
	}
	if rules := hostload.Judge(full, hostload.Bounds{}); len(rules) != 0 {
		t.Errorf("no bounds: %+v", rules)
	}
	unknown := hostload.State{MemoryPressure: -1, IOPressure: -1}
	if rules := hostload.Judge(unknown, hostload.Bounds{MemoryPressure: 1, IOPressure: 1}); len(rules) != 0 {
		t.Errorf("PSI that is not there: %+v", rules)
	}
}

func BenchmarkRead(b *testing.B) {
	fsys := os.DirFS("/proc")
	for b.Loop() {
		if _, err := hostload.Read(fsys); err != nil {
			b.Fatal(err)
		}
	}
}
