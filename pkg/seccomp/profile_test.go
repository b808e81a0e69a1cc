package seccomp_test

import (
	"errors"
	"io/fs"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/seccomp"
	"github.com/creel-sandbox/creel/profiles"
)

const minimal = `{"default":{"action":"errno","errno":"ENOSYS"},"groups":[{"name":"g","reason":"r","rules":[{"syscalls":["read"]}]}]}`

func files(kv ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i < len(kv); i += 2 {
		m["seccomp/"+kv[i]+".json"] = &fstest.MapFile{Data: []byte(kv[i+1])}
	}
	return m
}

// rules puts rules into an otherwise right profile.
func rules(s string) string {
	return strings.Replace(minimal, `{"syscalls":["read"]}`, s, 1)
}

func TestLoadErrors(t *testing.T) {
	cond := func(s string) string { return rules(`{"syscalls":["read"],"when":[` + s + `]}`) }
	tests := []struct {
		name, text, want string
	}{
		{"unknown field", strings.Replace(minimal, `"groups"`, `"gruops"`, 1), "gruops"},
		{"text after", minimal + "x", "after the profile"},
		{"two values", minimal + minimal, "text after"},
		{"no default", `{"groups":[]}`, "default: required"},
		{"default allow", `{"default":{"action":"allow"}}`, "cannot be allow"},
		{"no reason", strings.Replace(minimal, `"reason":"r",`, "", 1), "a reason is required"},
		{"unknown call", rules(`{"syscalls":["raed"]}`), `no system call "raed"`},
		{"call of one architecture", rules(`{"syscalls":["open"]}`), `arm64 has no system call "open"`},
		{"no call", rules(`{}`), "names no system call"},
		{"unknown architecture", rules(`{"syscalls":["read"],"arch":["mips"]}`), `architecture "mips"`},
		{"never reached", rules(`{"syscalls":["read"]},{"syscalls":["read"],"action":"errno","errno":"EPERM"}`), "never reached"},
		{"unknown action", rules(`{"syscalls":["read"],"action":"log"}`), `action "log"`},
		{"unknown errno", rules(`{"syscalls":["read"],"action":"errno","errno":"EFOO"}`), `errno "EFOO"`},
		{"errno missing", rules(`{"syscalls":["read"],"action":"errno"}`), `errno ""`},
		{"errno with allow", rules(`{"syscalls":["read"],"action":"allow","errno":"EPERM"}`), "only for action errno"},
		{"errno alone", rules(`{"syscalls":["read"],"errno":"EPERM"}`), `action ""`},
		{"bad index", cond(`{"arg":6,"bits":32,"op":"in","values":["0"]}`), "arg 6"},
		{"no width", cond(`{"arg":0,"op":"in","values":["0"]}`), "bits 0"},
		{"bad op", cond(`{"arg":0,"bits":32,"op":"eq","values":["0"]}`), `op "eq"`},
		{"no values", cond(`{"arg":0,"bits":32,"op":"in"}`), "1 to 40 values"},
		{"value outside mask", cond(`{"arg":0,"bits":32,"mask":"1","op":"in","values":["2"]}`), "outside the mask"},
		{"value twice", cond(`{"arg":0,"bits":32,"op":"in","values":["1","0x1"]}`), "twice"},
		{"too wide", cond(`{"arg":0,"bits":32,"op":"in","values":["0x100000000"]}`), "does not fit"},
		{"unknown name", cond(`{"arg":0,"bits":32,"op":"in","values":["AF_FOO"]}`), `"AF_FOO"`},
		{"empty mask", cond(`{"arg":0,"bits":32,"mask":"0","op":"in","values":["0"]}`), "mask"},
		{"open parenthesis", cond(`{"arg":0,"bits":32,"op":"in","values":["~(1"]}`), "parenthesis"},
		{"group twice", strings.Replace(minimal, `"groups":[`, `"groups":[{"name":"g","reason":"r","rules":[]},`, 1), `group "g" is there twice`},
		{"drops unknown group", `{"extends":"base","without":[{"group":"x","reason":"r"}]}`, `no group "x"`},
		{"drops without reason", `{"extends":"base","without":[{"group":"g"}]}`, "a reason is required"},
		{"own default", `{"extends":"base","default":{"action":"kill_process"}}`, "default: comes from"},
		{"extends twice", `{"extends":"second"}`, "cannot extend"},
		{"extends itself", `{"extends":"t"}`, "cannot extend"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := seccomp.Load(files("t", tt.text, "base", minimal, "second", `{"extends":"base"}`), "t")
			if !errors.Is(err, seccomp.ErrInvalid) || p != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Load = %v, %v; want ErrInvalid with %q", p, err, tt.want)
			}
		})
	}
	for _, name := range []string{"", "../x", "a/b", "A", "x.json"} {
		if _, err := seccomp.Load(profiles.FS, name); !errors.Is(err, seccomp.ErrInvalid) {
			t.Errorf("Load(%q) = %v, want ErrInvalid", name, err)
		}
	}
	if _, err := seccomp.Load(profiles.FS, "nosuch"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a missing profile = %v, want ErrNotExist", err)
	}
	if _, err := load(t, "default").Compile("riscv64"); err == nil {
		t.Error("Compile made a filter for an architecture it does not know")
	}
}

func TestExtends(t *testing.T) {
	base := `{"default":{"action":"errno","errno":"ENOSYS"},"groups":[
		{"name":"io","reason":"r","rules":[{"syscalls":["read","write"]}]},
		{"name":"gone","reason":"r","rules":[{"syscalls":["bind"]}]}]}`
	text := `{"extends":"base","without":[{"group":"gone","reason":"r"}],"groups":[
		{"name":"own","reason":"r","rules":[{"syscalls":["write"],"action":"errno","errno":"EPERM"},{"syscalls":["getpid"]}]}]}`
	p, err := seccomp.Load(files("base", base, "p", text), "p")
	if err != nil {
		t.Fatal(err)
	}
	for call, want := range map[string]string{"read": "allow", "write": "EPERM", "getpid": "allow", "bind": "ENOSYS"} {
		nr, _ := seccomp.Number("amd64", call)
		if got := p.Evaluate("amd64", seccomp.Data{Nr: nr, Arch: audit["amd64"]}).String(); got != want {
			t.Errorf("%s = %s, want %s", call, got, want)
		}
	}
}

func TestFilterBytes(t *testing.T) {
	f := compile(t, "default", "amd64")
	back, err := seccomp.ParseFilter(f.Bytes())
	if err != nil || back.Digest() != f.Digest() || len(back) != len(f) {
		t.Errorf("ParseFilter(Bytes()) = %d instructions, %v", len(back), err)
	}
	if _, err := seccomp.ParseFilter(make([]byte, 7)); err == nil {
		t.Error("ParseFilter took 7 bytes")
	}
	f[len(f)-1].K = uint32(seccomp.Allow)
	if back.Digest() == f.Digest() {
		t.Error("one changed instruction left the digest as it was")
	}
	if got := seccomp.Simulate(seccomp.Filter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 64}}, seccomp.Data{}); got != seccomp.KillProcess {
		t.Errorf("a load outside the data gives %v", got)
	}
	if got := seccomp.Simulate(nil, seccomp.Data{}); got != seccomp.KillProcess {
		t.Errorf("an empty program gives %v", got)
	}
}

func TestCheckHost(t *testing.T) {
	for _, name := range shipped {
		notes, err := seccomp.CheckHost(load(t, name))
		if err != nil {
			t.Errorf("CheckHost(%s) by %s: %v", name, seccomp.HostChecker, err)
		}
		t.Logf("%s on %s: notes %q", seccomp.HostChecker, runtime.GOARCH, notes)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(minimal))
	for _, name := range shipped {
		b, err := fs.ReadFile(profiles.FS, "seccomp/"+name+".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := seccomp.Load(files("t", string(b), "default", minimal), "t")
		if err != nil {
			return
		}
		for _, arch := range seccomp.Architectures {
			filter, err := p.Compile(arch)
			if err != nil {
				continue
			}
			// A valid profile is an allow-list, whatever it says.
			if got := seccomp.Simulate(filter, seccomp.Data{Nr: 5000, Arch: audit[arch]}); got == seccomp.Allow {
				t.Errorf("a call without a rule is allowed on %s", arch)
			}
			if got := seccomp.Simulate(filter, seccomp.Data{Nr: 0, Arch: 1}); got != seccomp.KillProcess {
				t.Errorf("a foreign call is %v on %s", got, arch)
			}
		}
	})
}
