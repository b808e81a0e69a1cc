package integration_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestVolume is a volume's life: made, written by its agent, kept when the
// sandbox goes, read by another agent, full when it is, and removed.
func TestVolume(t *testing.T) {
	l := forUsers(t)
	creel := func(want int, args ...string) (string, string) {
		t.Helper()
		out, errOut, code := l.CreelAs(caller, "", args...)
		if code != want {
			t.Errorf("creel %q: %d, want %d\n%s%s\n%s", args, code, want, out, errOut, l.LogTail(3))
		}
		return out, errOut
	}
	creel(0, "volume", "create", "--size", "32M", "--agent", "coder", "work")
	if _, e := creel(1, "volume", "create", "work"); !strings.Contains(e, `there is a volume "work"`) {
		t.Errorf("made twice: %q", e)
	}
	if _, e := creel(1, "volume", "create", "--size", "1M", "--agent", "A", ".."); strings.Count(e, "\n  ") < 2 || !strings.Contains(e, "size") {
		t.Errorf("mistakes: %q", e)
	}
	out, _ := creel(0, "run", "--rm", "--agent", "coder", "-v", "work:/work", "--", "/bin/sh", "-c",
		`pwd; ls -A | wc -l; echo mine >f; mkdir d; stat -c %u:%g . f d; grep ' /work ' /proc/self/mountinfo`)
	for _, want := range []string{"/work\n0\n1000:1000\n1000:1000\n1000:1000\n", "nosuid,nodev", "ext4"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	// Another range, and after a removal: the files are the agent's still.
	out, _ = creel(0, "run", "--rm", "--agent", "coder", "-v", "work:/work", "--", "/bin/sh", "-c", "cat f; stat -c %u f; echo more >>f; chmod 4755 f; chmod 755 f; ls -l f")
	if !strings.HasPrefix(out, "mine\n1000\n") || !strings.Contains(out, "-rwxr-xr-x") {
		t.Errorf("the second time: %q", out)
	}
	if _, e := creel(125, "run", "--rm", "-v", "work:/work", "--", "/bin/true"); !strings.Contains(e, "agent coder's") {
		t.Errorf("another agent, writing: %q", e)
	}
	if out, _ := creel(1, "run", "--rm", "-v", "work:/work:ro", "--", "/bin/sh", "-c", "cat f; echo x >f"); out != "mine\nmore\n" {
		t.Errorf("another agent, reading: %q", out)
	}
	if _, e := creel(125, "run", "--rm", "-v", "none:/work", "--", "/bin/true"); !strings.Contains(e, "creel volume create none") {
		t.Errorf("no such volume: %q", e)
	}
	if _, e := creel(125, "run", "--rm", "--profile", "strict", "--agent", "coder", "-v", "work:/work", "--", "/bin/true"); !strings.Contains(e, "no writable mounts") {
		t.Errorf("strict: %q", e)
	}
	// The file system is full when it says so, in bytes and in files.
	out, _ = creel(0, "run", "--rm", "--agent", "coder", "-v", "work:/work", "--", "/bin/sh", "-c",
		`dd if=/dev/zero of=big bs=64k count=1000 2>&1; rm big; i=0; while echo >d/$i; do i=$((i+1)); done 2>&1; rm -r d; echo $i files; rm f`)
	if strings.Count(out, "No space left on device") != 2 || !strings.Contains(out, "files") {
		t.Errorf("no limit: %q", out)
	}
	out, _ = creel(0, "volume", "ls")
	if !strings.Contains(out, "work  coder  32M") {
		t.Errorf("ls: %q", out)
	}
	creel(0, "volume", "rm", "work")
	creel(1, "volume", "inspect", "work")
	l.NothingLeft()
	if left, _ := os.ReadDir(filepath.Join(l.Dir, "state", "volumes")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestVolumeInUse: the evidence names the volume, sandboxes share it as it is
// being written, and it cannot be removed under them.
func TestVolumeInUse(t *testing.T) {
	l := lab.New(t, lab.Options{})
	if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "work", Size: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	writer := l.Spawn(api.SpawnRequest{Name: "writer", Mounts: []api.Mount{{Volume: "work", Target: "/work"}}})
	reader := l.Spawn(api.SpawnRequest{Name: "reader", Agent: "other", Mounts: []api.Mount{{Volume: "work", Target: "/other", ReadOnly: true}}})
	if out, res := l.Sh(writer.ID, "echo now >/work/f"); res.ExitCode != 0 {
		t.Errorf("write: %q", out)
	}
	if out, res := l.Sh(reader.ID, "cat /other/f; touch /other/x"); !strings.Contains(out, "now\n") || res.ExitCode == 0 {
		t.Errorf("read: %q, %+v", out, res)
	}
	// Neither the image nor its device can be reached from inside.
	if out, _ := l.Sh(writer.ID, "ls /dev; ls /sys /proc/self/mountinfo; cat /dev/loop* 2>&1"); strings.Contains(out, "loop0\n") {
		t.Errorf("devices: %q", out)
	}
	for sb, want := range map[string]string{writer.ID + " /work": "rw", reader.ID + " /other": "ro"} {
		id, target, _ := strings.Cut(sb, " ")
		ev, err := l.Evidence(t.Context(), id, true)
		if err != nil || !ev[0].OK {
			t.Fatalf("evidence: %v, %+v", err, ev)
		}
		found := ""
		for _, c := range ev[0].Controls {
			if c.Name == "mount."+target {
				found = c.Expected
			}
		}
		if !strings.HasPrefix(found, "ext4 /dev/loop") || !strings.Contains(found, " / "+want) && want == "rw" || !strings.Contains(found, "idmapped") {
			t.Errorf("mount.%s expects %q", target, found)
		}
	}
	v, err := l.Volume(t.Context(), "work")
	if err != nil || len(v.UsedBy) != 2 || v.UsedBy[0].Name != "reader" || !v.UsedBy[0].ReadOnly || v.UsedBy[1].Sandbox != writer.ID || v.LastUsed.IsZero() {
		t.Errorf("volume %+v, %v", v, err)
	}
	refused := func(by string) {
		t.Helper()
		err := l.RemoveVolume(t.Context(), "work")
		if api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), by) {
			t.Errorf("remove: %v, want a conflict with %s", err, by)
		}
	}
	// A full volume is told of as any other limit is.
	out, res := l.Sh(writer.ID, "dd if=/dev/zero of=/work/big bs=64k")
	if res.LimitsHit["disk"] != 1 || !strings.Contains(out, "No space left") {
		t.Errorf("full: %+v, %q", res, out)
	}
	if out, res := l.Sh(writer.ID, "rm /work/big; cat /work/f"); res.LimitsHit != nil || out != "now\n" {
		t.Errorf("after the removal: %+v, %q", res, out)
	}
	refused("reader (" + reader.ID + "), writer (" + writer.ID + ")")
	// A daemon that is killed leaves it mounted for who uses it.
	l.Kill()
	l.Start()
	if out, res := l.Sh(reader.ID, "cat /other/f"); out != "now\n" || res.ExitCode != 0 {
		t.Errorf("after a kill: %q", out)
	}
	if ev, err := l.Evidence(t.Context(), writer.ID, true); err != nil || !ev[0].OK {
		t.Errorf("after a kill: %v, %+v", err, ev)
	}
	if err := l.Remove(t.Context(), reader.ID, true); err != nil {
		t.Error(err)
	}
	l.Eventually("only the writer uses it", 30*time.Second, func() error {
		if v, err := l.Volume(t.Context(), "work"); err != nil || len(v.UsedBy) != 1 {
			return fmt.Errorf("%+v, %w", v, err)
		}
		return nil
	})
	refused("by writer (" + writer.ID + ")")
	if err := l.Remove(t.Context(), writer.ID, true); err != nil {
		t.Error(err)
	}
	l.NothingLeft()
	if err := l.RemoveVolume(t.Context(), "work"); err != nil {
		t.Error(err)
	}
}

// TestVolumeOfOthers: another caller's volume answers as one that is not there.
func TestVolumeOfOthers(t *testing.T) {
	l := forUsers(t)
	if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "roots", Size: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	asStranger(t, func() {
		for _, rt := range []struct{ method, path, body string }{
			{"GET", "/v1/volumes/NAME", ""},
			{"DELETE", "/v1/volumes/NAME", ""},
			{"POST", "/v1/sandboxes", `{"mounts":[{"volume":"NAME","target":"/w","readonly":true}]}`},
		} {
			var answers []string
			for _, name := range []string{"roots", "none"} {
				status, body := ask(t, l, rt.method, strings.ReplaceAll(rt.path, "NAME", name), strings.ReplaceAll(rt.body, "NAME", name))
				answers = append(answers, strings.ReplaceAll(fmt.Sprint(status, " ", body), name, "NAME"))
			}
			if answers[0] != answers[1] || !strings.HasPrefix(answers[0], "404 ") {
				t.Errorf("%s %s: %q", rt.method, rt.path, answers)
			}
		}
		if _, body := ask(t, l, "GET", "/v1/volumes", ""); strings.TrimSpace(body) != "[]" {
			t.Errorf("the list shows another's: %s", body)
		}
		for body, want := range map[string]int{
			`{"name":"../../etc"}`:                     http.StatusBadRequest,
			`{"name":"a/b"}`:                           http.StatusBadRequest,
			`{"name":""}`:                              http.StatusBadRequest,
			`{"name":"a","size":"9T"}`:                 http.StatusBadRequest,
			`{"name":"a","size":-1}`:                   http.StatusBadRequest,
			`{"name":"a","size":0.5}`:                  http.StatusBadRequest,
			`{"name":"a","device":"/dev/sda"}`:         http.StatusBadRequest,
			`{"name":"a","agent":"` + "\\u001b" + `"}`: http.StatusBadRequest,
			`{"name":"a","size":"65G"}`:                http.StatusTooManyRequests, // of all this caller may have
		} {
			if status, got := ask(t, l, "POST", "/v1/volumes", body); status != want {
				t.Errorf("create %s: %d %s", body, status, got)
			}
		}
	})
	if list, err := l.Volumes(t.Context()); err != nil || len(list) != 1 || list[0].Name != "roots" {
		t.Errorf("volumes %+v, %v", list, err)
	}
}

// TestVolumeLimits: the totals hold however many ask at one time.
func TestVolumeLimits(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[limits.max]\nvolumes_per_user = 3\nvolume_bytes_per_user = \"80M\"\n"})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { // each name twice at a time: either of the two may be the first
			_, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: fmt.Sprintf("v%d", i/2), Size: 16 << 20})
			if c := api.CodeOf(err); err != nil && c != api.CodeExhausted && c != api.CodeConflict {
				t.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	list, err := l.Volumes(t.Context())
	if err != nil || len(list) != 3 {
		t.Fatalf("%d volumes, %v; want 3", len(list), err)
	}
	if dirs, err := os.ReadDir(filepath.Join(l.Dir, "state", "volumes")); err != nil || len(dirs) != 3 {
		t.Errorf("on disk: %v, %v", dirs, err)
	}
	if err := l.RemoveVolume(t.Context(), list[0].Name); err != nil {
		t.Error(err)
	}
	if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "large", Size: 64 << 20}); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("more bytes than there are: %v", err)
	}
	// Sparse: what it takes is what it holds.
	if v, err := l.Volume(t.Context(), list[1].Name); err != nil || v.Used > 2<<20 || v.Used == 0 {
		t.Errorf("an empty volume takes %d bytes, %v", v.Used, err)
	}
}

// TestVolumeKilled kills creeld while a volume is made and while one is
// removed: it is there whole, or not at all, and nothing is left.
func TestVolumeKilled(t *testing.T) {
	l := lab.New(t, lab.Options{})
	for _, tt := range []struct {
		point  string
		remove bool
		exists bool // afterwards
	}{
		{"volume.made", false, false},
		{"volume.recorded", false, true},
		{"volume.retiring", true, true},
		{"volume.retired", true, false},
	} {
		t.Run(tt.point, func(t *testing.T) {
			if tt.remove {
				if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "work", Size: 16 << 20}); err != nil {
					t.Fatal(err)
				}
			}
			l.Fail(tt.point + " kill")
			if tt.remove {
				_ = l.RemoveVolume(t.Context(), "work")
			} else {
				_, _ = l.CreateVolume(t.Context(), api.VolumeRequest{Name: "work", Size: 16 << 20})
			}
			died(t, l)
			dirs, err := os.ReadDir(filepath.Join(l.Dir, "state", "volumes"))
			if err != nil || len(dirs) > 0 != tt.exists || tt.exists && strings.Contains(dirs[0].Name(), "pending") {
				t.Errorf("on disk: %v, %v", dirs, err)
			}
			_, err = l.Volume(t.Context(), "work")
			if tt.exists != (err == nil) {
				t.Errorf("on record: %v", err)
			}
			if tt.exists {
				if err := l.RemoveVolume(t.Context(), "work"); err != nil {
					t.Error(err)
				}
			}
			l.NothingLeft()
		})
	}
}

// TestVolumeKilledInLaunch kills creeld, or fails, when a launch has mounted a
// volume and nothing else knows: it is unmounted, and whole.
func TestVolumeKilledInLaunch(t *testing.T) {
	l := lab.New(t, lab.Options{})
	if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "work", Size: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	req := api.SpawnRequest{Mounts: []api.Mount{{Volume: "work", Target: "/work"}, {Volume: "work", Target: "/again", ReadOnly: true}}}
	for _, how := range []string{"error", "kill"} {
		l.Fail("volume.opened " + how)
		if _, err := l.Client.Spawn(t.Context(), req); err == nil {
			t.Fatal("spawn succeeded")
		}
		if how == "kill" {
			died(t, l)
		}
		if left := l.Snapshot(); len(left) > 0 {
			t.Errorf("%s: left behind:\n%s", how, strings.Join(left, "\n"))
		}
		l.Fail()
		sb := l.Spawn(req)
		if out, _ := l.Sh(sb.ID, "echo "+how+" >/work/f; cat /again/f; echo no 2>&1 >/again/f"); !strings.HasPrefix(out, how+"\n") || !strings.Contains(out, "Read-only") {
			t.Errorf("after %s: %q", how, out)
		}
		if err := l.Remove(t.Context(), sb.ID, true); err != nil {
			t.Error(err)
		}
		l.NothingLeft()
	}
	v, err := l.Volume(t.Context(), "work")
	if err != nil || len(v.UsedBy) > 0 {
		t.Errorf("volume %+v, %v", v, err)
	}
}

// TestVolumeOutlives: a restart of the machine and a lost state file lose
// nothing of a volume's data.
func TestVolumeOutlives(t *testing.T) {
	l := lab.New(t, lab.Options{})
	if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "work", Size: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	mounts := []api.Mount{{Volume: "work", Target: "/work"}}
	sb := l.Spawn(api.SpawnRequest{Mounts: mounts})
	if out, res := l.Sh(sb.ID, "echo kept >/work/f && sync"); res.ExitCode != 0 {
		t.Fatalf("write: %q", out)
	}
	l.Kill()
	l.Reboot()
	l.Start()
	if err := l.Remove(t.Context(), sb.ID, false); err != nil {
		t.Error(err)
	}
	sb = l.Spawn(api.SpawnRequest{Mounts: mounts, Command: []string{"/bin/sleep", "600"}})
	if out, _ := l.Sh(sb.ID, "cat /work/f"); out != "kept\n" {
		t.Errorf("after a restart of the machine: %q", out)
	}
	if err := l.Remove(t.Context(), sb.ID, true); err != nil {
		t.Error(err)
	}
	l.NothingLeft()
	l.Kill()
	if err := os.Remove(l.StatePath()); err != nil {
		t.Fatal(err)
	}
	l.Start()
	images, err := filepath.Glob(filepath.Join(l.Dir, "state", "volumes", "*", "image"))
	if err != nil || len(images) != 1 {
		t.Fatalf("without a state file there is %v, %v", images, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(images[0], &st); err != nil || st.Mode&0o077 != 0 {
		t.Errorf("its image has mode %o, %v", st.Mode, err)
	}
	d, err := l.Doctor(t.Context(), "", "")
	if err != nil || len(d.Leftovers) != 1 || !strings.HasPrefix(d.Leftovers[0], "volume ") {
		t.Errorf("doctor: %+v, %v", d, err)
	}
}
