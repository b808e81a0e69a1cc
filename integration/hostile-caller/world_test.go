// Package hostilecaller is the proof that the socket is not root: an ordinary
// user of the host, who may connect to it and knows every id, name and path
// there is, tries to become more. Each attempt has a name and fails in a named
// way; docs/hostile-caller.md is the list, made from the attempts themselves
// ("make test-caller UPDATE=1").
//
// The attacker is a process of that user, which root's half of the test starts
// and then only looks at what it did.
package hostilecaller

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// The users of the test; nobody of the host's has these ids.
const (
	attackerUID = 61_100
	victimUID   = 61_200
)

// worldVar tells a copy of this program that it is the attacker.
const worldVar = "CREEL_HOSTILE_WORLD"

func TestMain(m *testing.M) {
	if text := os.Getenv(worldVar); text != "" {
		attack(text)
		return
	}
	if text := os.Getenv(askVar); text == flooded {
		floodInside()
		return
	} else if text != "" {
		askInside(text)
		return
	}
	os.Exit(m.Run())
}

// result is what the attacker says of one attempt, and all that it heard.
type result struct{ Name, Way, Heard string }

// attack makes the attempts, as the attacker.
func attack(text string) {
	a := &attacker{}
	if err := json.Unmarshal([]byte(text), &a.world); err != nil {
		panic(err)
	}
	out := json.NewEncoder(os.Stdout)
	a.begin()
	for _, t := range attempts() {
		a.heard.Reset()
		way := t.do(a)
		if err := out.Encode(result{t.name, way, a.heard.String()}); err != nil {
			panic(err)
		}
	}
}

// begin makes the attacker's own sandbox, for what it tries from there.
func (a *attacker) begin() {
	f, err := open(a.Own, syscall.O_DIRECTORY)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	req := mount("/workspace", false)
	req["name"], req["agent"] = "own", "own"
	r := a.ask("POST", "/v1/sandboxes", js(req), f)
	var got struct{ Sandbox struct{ ID string } }
	if err := json.Unmarshal([]byte(r.body), &got); err != nil || got.Sandbox.ID == "" {
		panic(fmt.Sprintf("the attacker has no sandbox of its own: %+v", r))
	}
	a.sandbox = got.Sandbox.ID
}

// secret is something that the attacker must never hear.
func secret(name string) string { return "SECRET-" + name + "-" + rand.Text() }

// TestHostileCaller makes every attempt and sees it fail in its way, that no
// secret was heard, and that nothing of anybody else's has changed.
func TestHostileCaller(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.IDMap, kerneltest.Bin)
	l := lab.New(t, lab.Options{Config: config})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	w, secrets := build(t, l)
	secrets = append(secrets, "no sandbox may see it") // in the daemon's environment
	before := others(t, l, w)

	program := filepath.Join(l.Dir, "attacker")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", worldVar + "=" + js(w)}
	cmd.Dir = w.Own
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: attackerUID, Gid: attackerUID}}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	served := serveOthers(t, l, w)
	results := map[string]result{}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 4*maxHeard*2)
	for lines.Scan() {
		var r result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("%v in %.100q", err, lines.Text())
		}
		results[r.Name] = r
	}
	if err := cmd.Wait(); err != nil {
		served()
		t.Fatalf("the attacker ended: %v\n%s\ncreeld:\n%s", err, said.String(), l.LogTail(20))
	}

	served()
	for _, a := range attempts() {
		t.Run(a.name, func(t *testing.T) {
			r, made := results[a.name]
			if !made {
				t.Fatal("was not made")
			}
			if !strings.Contains(r.Way, a.fails) {
				t.Errorf("ended with %q, must fail with %q\n%.2000s", r.Way, a.fails, r.Heard)
			}
			for _, s := range secrets {
				if strings.Contains(r.Heard, s) {
					t.Errorf("the attacker heard %s", s)
				}
			}
		})
	}
	if diff := cmp.Diff(before, others(t, l, w)); diff != "" {
		t.Errorf("something of others has changed (-before +after):\n%s", diff)
	}
	noPrivilege(t, w.Own)
	if strings.Contains(l.LogTail(100_000), "panicked") {
		t.Errorf("a handler panicked:\n%s", l.LogTail(50))
	}
}

// config bounds what one user may have, so that the attempts to have more end
// soon.
const config = `[limits.max]
sandboxes_per_user = 12
kept_per_user = 64
volumes_per_user = 4
volume_bytes_per_user = "5G"
[[caller]]
match = "uid:61100"
profiles = ["default"]
runtimes = ["crun"]
mounts = ["*"]
memory = "64G"
socket = true
image_bytes = "64M"
exec_rate = 0
spawn_rate = 0
egress = ["api.example.com"]
[[caller]]
match = "uid:61200"
mounts = ["*"]
`

// build makes what there is to be had: things of root's and of another user's,
// each with a secret in it.
func build(t *testing.T, l *lab.Lab) (world, []string) {
	t.Helper()
	w := world{Socket: l.Socket, Lab: l.Dir, PID: l.DaemonPID(), Images: map[string]string{}}
	var secrets []string
	hide := func(name string) string {
		s := secret(name)
		secrets = append(secrets, s)
		return s
	}
	top, err := os.MkdirTemp("/tmp", "creel-hostile-") //nolint:usetesting // users must reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	dir := func(name string, uid int, mode fs.FileMode) string {
		p := filepath.Join(top, name)
		if err := os.Mkdir(p, 0o700); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(p, "secret")
		for _, err := range []error{
			os.WriteFile(file, []byte(hide(name)+"\n"), 0o600), os.Chown(file, uid, uid), os.Chown(p, uid, uid), os.Chmod(p, mode),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	w.RootOnly, w.RootsOpen = dir("root-only", 0, 0o700), dir("roots-open", 0, 0o755)
	w.Victims, w.VictimsIdle = dir("victims", victimUID, 0o755), dir("victims-idle", victimUID, 0o755)
	w.Own = filepath.Join(top, "own")
	if err := os.Mkdir(w.Own, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(w.Own, attackerUID, attackerUID); err != nil {
		t.Fatal(err)
	}

	root := l.Spawn(api.SpawnRequest{
		Name: "roots", Socket: true, Env: map[string]string{"TOKEN": hide("root-env")}, Labels: map[string]string{"note": hide("root-label")},
		Command: []string{"/bin/sh", "-c", "echo " + hide("root-output") + "; exec sleep 1000"},
	})
	w.RootSandbox, w.RootName = root.ID, root.Name
	w.RootSocket = filepath.Join(l.Dir, "run", "sandboxes", root.ID, "socket", "creel.sock")
	if _, err := os.Stat(w.RootSocket); err != nil {
		t.Fatal(err) // to fail for another reason would prove nothing
	}
	if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "roots-data", Agent: "default", Size: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	w.ShimPID = l.ShimPID(root.ID)

	victim := &syscall.Credential{Uid: victimUID, Gid: victimUID}
	creel := func(args ...string) string {
		t.Helper()
		out, errOut, code := l.CreelAs(victim, "", args...)
		if code != 0 {
			t.Fatalf("the victim's creel %q: %d %s", args, code, errOut)
		}
		return out
	}
	tool := lab.TinyWith(t, nil, func(tw *tar.Writer) {
		lab.Add(t, tw, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/secret", Mode: 0o644}, []byte(hide("victim-image")))
	})
	for name, as := range map[string]*syscall.Credential{"victims-key": victim, "boxs-key": {}} {
		if _, errOut, code := l.CreelAs(as, hide(name), "secret", "set", "--host", "api.example.com", name); code != 0 {
			t.Fatalf("%s: %s", name, errOut)
		}
	}
	archive, err := os.ReadFile(tool)
	if err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := l.CreelAs(victim, string(archive), "image", "import", "--ref", "tool:1", "-"); code != 0 {
		t.Fatalf("the victim's image: %s", errOut)
	}
	var img api.Image
	if err := json.Unmarshal([]byte(creel("image", "inspect", "tool:1")), &img); err != nil {
		t.Fatal(err)
	}
	w.VictimDigest = img.Digest
	creel("volume", "create", "--agent", "default", "--size", "16M", "data")
	creel("run", "--rm", "--agent", "victims-agent", "--home", "persistent", "--", "/bin/sh", "-c", "echo "+hide("victim-home")+" >/home/agent/secret")
	creel("run", "-d", "--name", "victims", "-v", w.Victims+":/workspace", "-v", "data:/data", "-e", "TOKEN="+hide("victim-env"),
		"--", "/bin/sh", "-c", "echo "+hide("victim-output")+" | tee /data/secret; exec sleep 1000")
	sb, err := l.Inspect(t.Context(), "victims")
	if err != nil {
		t.Fatal(err)
	}
	w.VictimSandbox, w.VictimName, w.VictimHostUID = sb.ID, sb.Name, sb.HostUID
	p, err := l.StartExec(context.WithoutCancel(t.Context()), sb.ID, api.ExecRequest{Command: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	w.VictimExec = p.ID()
	for name, path := range hostileImages(t) {
		to := filepath.Join(top, name+".tar")
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(to, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.Images[name] = to
	}
	return w, secrets
}

// serveOthers goes on asking for what others ask for, until the function it
// returns is called, and fails the test if it is refused once.
func serveOthers(t *testing.T, l *lab.Lab, w world) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	victim := &syscall.Credential{Uid: victimUID, Gid: victimUID}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				t.Logf("others were served %d times meanwhile", n)
				return
			case <-time.After(50 * time.Millisecond):
			}
			if out, errOut, code := l.CreelAs(victim, "", "exec", w.VictimSandbox, "--", "/bin/echo", "served"); code != 0 || out != "served\n" {
				t.Errorf("another user is not served: %d %q %s", code, out, errOut)
				return
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// hostileImages are archives that want more than files.
func hostileImages(t *testing.T) map[string]string {
	t.Helper()
	entry := func(hs ...tar.Header) string {
		return lab.Archive(t, func(w *tar.Writer) {
			for _, h := range hs {
				lab.Add(t, w, &h, nil)
			}
		})
	}
	out := map[string]string{
		"climbs":    entry(tar.Header{Typeflag: tar.TypeReg, Name: "../../../../etc/cron.d/creel", Mode: 0o644}),
		"absolute":  entry(tar.Header{Typeflag: tar.TypeSymlink, Name: "dev", Linkname: "/etc"}),
		"hard-link": entry(tar.Header{Typeflag: tar.TypeLink, Name: "shadow", Linkname: "../../../../etc/shadow"}),
		"device":    entry(tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o666, Devmajor: 8}),
		"below-link": entry(tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "/"},
			tar.Header{Typeflag: tar.TypeReg, Name: "out/etc/cron.d/creel", Mode: 0o644}),
		"plain": lab.Tiny(t),
	}
	for i := range 3 {
		noise := make([]byte, 24<<20)
		_, _ = rand.Read(noise)
		out[fmt.Sprint("large-", i)] = lab.TinyWith(t, nil, func(w *tar.Writer) {
			lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/noise", Mode: 0o644}, noise)
		})
	}
	return out
}

// others is all that the attacker must not have changed.
func others(t *testing.T, l *lab.Lab, w world) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, ref := range []string{w.RootSandbox, w.VictimSandbox} {
		sb, err := l.Inspect(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		execs, err := l.Execs(t.Context(), ref, nil)
		if err != nil {
			t.Fatal(err)
		}
		running := 0
		for _, e := range execs {
			if e.Ended.IsZero() {
				running++
			}
		}
		out["sandbox "+ref] = fmt.Sprint(sb.State, sb.Reason, sb.PID, sb.Labels, running)
		// Its own files: sizes, modes, owners and names.
		files, _ := l.Sh(ref, "ls -lan /tmp /home/agent /workspace /data 2>&1 | awk '{ print $1, $3, $5, $9 }'")
		out["files "+ref] = files
	}
	for _, as := range []uint32{0, victimUID} {
		list, errOut, code := l.CreelAs(&syscall.Credential{Uid: as, Gid: as}, "", "secret", "ls", "--json")
		if code != 0 {
			t.Fatal(errOut)
		}
		out[fmt.Sprint("secrets ", as)] = list
	}
	images, err := l.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if img.Owner != attackerUID {
			out[fmt.Sprint("image ", img.Owner, " ", img.Ref)] = img.Digest
		}
	}
	volumes, err := l.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range volumes {
		if v.Caller.UID != attackerUID {
			out[fmt.Sprint("volume ", v.Caller.UID, " ", v.Name)] = v.Size.String()
		}
	}
	for _, dir := range []string{w.RootOnly, w.RootsOpen, w.Victims, w.VictimsIdle, "/etc"} {
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				t.Errorf("%s: %v", p, err)
				return nil
			}
			if fi, err := d.Info(); err == nil {
				out[p] = fmt.Sprint(fi.Mode(), fi.Size(), fi.Sys().(*syscall.Stat_t).Uid)
			}
			return nil
		})
	}
	return out
}

// noPrivilege finds files in the attacker's directory that would give it
// somebody else's rights.
func noPrivilege(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // on Linux it is
		if fi.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeDevice) != 0 || st.Uid != attackerUID {
			t.Errorf("the attacker has made %s: %v of uid %d", p, fi.Mode(), st.Uid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

var update = flag.Bool("update", false, "write docs/hostile-caller.md")

// TestListIsDocumented holds the list in the documents to the attempts.
func TestListIsDocumented(t *testing.T) {
	all := attempts()
	seen := map[string]bool{}
	var b strings.Builder
	fmt.Fprintf(&b, "# What a hostile caller tries\n\n"+
		"%d attempts of an ordinary user who may connect to the socket and knows every id, name and path, to become more. "+
		"`make test-caller` makes them all against a real daemon, as a process of such a user, beside things of root's and of another user's with a secret in each. "+
		"An attempt counts as failed only if it ends in the way that is named here, none of the secrets is in any byte the attacker got, and nothing of anybody else's has changed. "+
		"This page is made from the attempts (`make test-caller UPDATE=1`).\n", len(all))
	group := ""
	for _, a := range all {
		if seen[a.name] {
			t.Errorf("two attempts are called %s", a.name)
		}
		seen[a.name] = true
		if a.fails == "" {
			t.Errorf("%s fails in no named way", a.name)
		}
		if a.group != group {
			group = a.group
			fmt.Fprintf(&b, "\n## %s\n| attempt | tries to | fails with |\n|---|---|---|\n", group)
		}
		fmt.Fprintf(&b, "| %s | %s | `%s` |\n", a.name, a.tries, strings.ReplaceAll(a.fails, "|", `\|`))
	}
	if len(all) < 100 {
		t.Errorf("%d attempts, want 100 at least", len(all))
	}
	const page = "../../docs/hostile-caller.md"
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), b.String()); diff != "" {
		t.Errorf("the page is not the list; run make test-caller UPDATE=1 (-page +attempts):\n%s", diff)
	}
}
