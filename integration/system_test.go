package integration_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// use is one row of the disk's use.
func use(u *api.DiskUsage, what string, uid uint32) api.DiskUse {
	for _, r := range u.Rows {
		if r.What == what && r.UID == uid {
			return r
		}
	}
	return api.DiskUse{}
}

// TestSystemPrune: df says what a prune then frees; what runs, what is used
// and what is another's stays.
func TestSystemPrune(t *testing.T) {
	l := lab.New(t, lab.Options{})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	l.Import("unused", lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644}, make([]byte, 3<<20))
	}))
	l.Import("used", lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "other", Mode: 0o644}, []byte("other"))
	}))
	l.Import("twin", lab.Tiny(t)) // all its parts are base's
	run := func(name, image string, keep bool) *api.Sandbox {
		req := api.SpawnRequest{Name: name, Image: image, Command: []string{"/bin/sh", "-c", "seq 20000"}}
		if keep {
			req.Command = nil
			req.Rootfs, req.Limits = "ephemeral", api.Limits{Memory: 64 << 20, Disk: 64 << 20}
		}
		sb := l.Spawn(req)
		if !keep {
			if _, err := l.Wait(t.Context(), sb.ID); err != nil {
				t.Fatal(err)
			}
		}
		return sb
	}
	running := run("running", "used", true)
	ended := run("ended", "base", false)
	var strangers api.SpawnResult
	asStranger(t, func() {
		_, body := ask(t, l, "POST", "/v1/sandboxes", `{"name":"theirs","command":["/bin/true"]}`)
		if err := json.Unmarshal([]byte(body), &strangers); err != nil {
			t.Errorf("%v: %s", err, body)
		}
		ask(t, l, "GET", "/v1/sandboxes/theirs/wait", "")
	})
	stranger := strangers.Sandbox.Caller.UID

	if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "kept", Size: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	var before *api.DiskUsage
	l.Eventually("what ended is cleaned up", 10*time.Second, func() (err error) {
		before, err = l.DiskUsage(t.Context())
		if err == nil && (use(before, "records", 0).ReclaimableCount != 1 || use(before, "records", stranger).ReclaimableCount != 1) {
			err = fmt.Errorf("%+v", before)
		}
		return err
	})
	if r := use(before, "volumes", 0); r.Count != 1 || r.Bytes <= 0 || r.Bytes > 17<<20 || r.ReclaimableCount != 0 {
		t.Errorf("volumes: %+v", r)
	}
	if r := use(before, "images", 0); r.Count != 4 || r.ReclaimableCount != 2 || r.ReclaimableBytes < 6<<20 || r.Bytes < r.ReclaimableBytes+2<<20 {
		t.Errorf("images: %+v", r)
	}
	if r := use(before, "layers", 0); r.Count != 1 || r.Bytes < 10<<10 || r.Bytes > 64<<20 || r.ReclaimableCount != 0 {
		t.Errorf("layers: %+v", r)
	}
	if r := use(before, "logs", 0); r.Count != 2 || r.ReclaimableCount != 1 || r.ReclaimableBytes < 100<<10 {
		t.Errorf("logs: %+v", r)
	}
	if r := use(before, "records", stranger); r.Count != 1 || r.Bytes < 1<<10 || stranger == 0 {
		t.Errorf("the stranger's records, as root sees them: %+v", r)
	}
	if before.Disk.Free <= 0 || before.Disk.Free > before.Disk.Total {
		t.Errorf("disk: %+v", before.Disk)
	}

	asStranger(t, func() {
		_, body := ask(t, l, "GET", "/v1/system/df", "")
		var u api.DiskUsage
		if err := json.Unmarshal([]byte(body), &u); err != nil || len(u.Rows) != 2 {
			t.Errorf("a caller sees %s", body)
		}
		for _, r := range u.Rows {
			if r.UID != stranger {
				t.Errorf("a caller sees another's: %+v", r)
			}
		}
		// Of the box's images and of root's sandboxes it can remove none.
		if _, body := ask(t, l, "POST", "/v1/system/prune", `{"images":true,"until":"1h"}`); body != `{"bytes":0,"items":[]}` {
			t.Errorf("nothing is that old, and it removes %s", body)
		}
		_, body = ask(t, l, "POST", "/v1/system/prune", `{"images":true}`)
		if strings.Count(body, `"what"`) != 1 || !strings.Contains(body, strangers.Sandbox.ID) {
			t.Errorf("a caller's prune removes %s", body)
		}
		for _, bad := range []string{`{"all":true}`, `{"until":"soon"}`, `{"until":-1}`, `{"images":null}`, `[]`} {
			if status, _ := ask(t, l, "POST", "/v1/system/prune", bad); status != 400 {
				t.Errorf("%s: %d", bad, status)
			}
		}
	})

	dry, err := l.Prune(t.Context(), api.PruneRequest{Images: true, DryRun: true})
	if err != nil || len(dry.Items) != 3 {
		t.Fatalf("dry run: %+v, %v", dry, err)
	}
	done, err := l.Prune(t.Context(), api.PruneRequest{Images: true})
	if err != nil || len(done.Items) != 3 || done.Bytes != dry.Bytes || done.Bytes < 6<<20 {
		t.Fatalf("prune: %+v, %v; the dry run said %d bytes", done, err, dry.Bytes)
	}
	for _, i := range done.Items {
		if i.Problem != "" || i.ID == running.ID || i.Name == "base" || i.Name == "used" {
			t.Errorf("removed: %+v", i)
		}
	}
	after, err := l.DiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r := use(after, "images", 0); r.Count != 2 || r.ReclaimableCount != 0 {
		t.Errorf("images afterwards: %+v", r)
	}
	if was, is := use(before, "images", 0), use(after, "images", 0); was.Bytes-is.Bytes != was.ReclaimableBytes {
		t.Errorf("images took %d and take %d; %d were reclaimable", was.Bytes, is.Bytes, was.ReclaimableBytes)
	}
	if _, err := os.Stat(filepath.Join(l.Dir, "state/logs", ended.ID)); !os.IsNotExist(err) {
		t.Errorf("the log of a pruned sandbox: %v", err)
	}
	all, err := l.List(t.Context(), client.ListOptions{All: true})
	if err != nil || len(all) != 1 || all[0].State != api.StateRunning {
		t.Errorf("left: %+v, %v", all, err)
	}
	if out, res := l.Sh(running.ID, "echo alive"); out != "alive\n" {
		t.Errorf("what runs: %q, %+v", out, res)
	}
	again := run("again", "base", false)
	if out, errs, code := l.Creel("system", "prune"); code != 0 || !strings.Contains(out, again.ID) {
		t.Errorf("creel system prune: %d, %s%s", code, out, errs)
	}
	if out, errs, code := l.Creel("system", "df"); code != 0 || !strings.Contains(out, "RECLAIMABLE") {
		t.Errorf("creel system df: %d, %s%s", code, out, errs)
	}
}

// TestRetention: the daemon removes what has ended beyond its bounds by
// itself, also after a crash, and a caller with many does not push out
// another's.
func TestRetention(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[retention]\nper_user = 3\nall = 4\n"})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	running := l.Spawn(api.SpawnRequest{Name: "running"})
	var theirs string
	asStranger(t, func() {
		var res api.SpawnResult
		_, body := ask(t, l, "POST", "/v1/sandboxes", `{"command":["/bin/true"]}`)
		if err := json.Unmarshal([]byte(body), &res); err != nil {
			t.Errorf("%v: %s", err, body)
		}
		theirs = res.Sandbox.ID
	})
	last := ""
	for range 5 {
		last = l.Spawn(api.SpawnRequest{Command: []string{"/bin/true"}}).ID
		if _, err := l.Wait(t.Context(), last); err != nil {
			t.Fatal(err)
		}
	}
	kept := func(want int) {
		t.Helper()
		l.Eventually("the bounds hold", 20*time.Second, func() error {
			all, err := l.List(t.Context(), client.ListOptions{All: true})
			if err != nil || len(all) != want {
				return fmt.Errorf("%d sandboxes, %w", len(all), err)
			}
			return nil
		})
		for _, id := range []string{running.ID, theirs, last} {
			if _, err := l.Inspect(t.Context(), id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	}
	kept(1 + 1 + 3)
	l.Kill()
	text, err := os.ReadFile(filepath.Join(l.Dir, "creeld.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Dir, "creeld.toml"), []byte(strings.Replace(string(text), "per_user = 3", "per_user = 1", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Start()
	kept(1 + 1 + 1)
	dirs, err := os.ReadDir(filepath.Join(l.Dir, "state/logs"))
	if err != nil || len(dirs) != 3 {
		t.Errorf("%d logs are left, %v", len(dirs), err)
	}
	if out, res := l.Sh(running.ID, "echo alive"); out != "alive\n" {
		t.Errorf("what runs: %q, %+v", out, res)
	}
}

// TestPruneSparesWhatIsBeingUsed: a launch that has found its image keeps it,
// although a prune that is under way has found it unused before.
func TestPruneSparesWhatIsBeingUsed(t *testing.T) {
	l := lab.New(t, lab.Options{})
	l.Import("wanted", lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644}, []byte("wanted"))
	}))
	var wg sync.WaitGroup
	defer wg.Wait()
	l.Fail("prune.images hold")
	pruned := make(chan *api.PruneResult, 1)
	wg.Go(func() {
		res, err := l.Prune(t.Context(), api.PruneRequest{Images: true})
		if err != nil {
			t.Errorf("prune: %v", err)
		}
		pruned <- res
	})
	l.Held("prune.images")
	l.Fail("prune.images hold", "launch.image hold")
	wg.Go(func() {
		_, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Name: "wants", Image: "wanted"})
		if err != nil {
			t.Errorf("spawn: %v", err)
		}
	})
	l.Held("launch.image")
	l.Fail("launch.image hold")
	select {
	case res := <-pruned:
		t.Errorf("pruned while a launch looked at its image: %+v", res)
		pruned <- res
	case <-time.After(500 * time.Millisecond): // enough to do wrong in; it waits for the launch
	}
	l.Fail()
	wg.Wait()
	if res := <-pruned; res == nil || len(res.Items) > 0 || res.Bytes != 0 {
		t.Errorf("pruned: %+v", res)
	}
	if out, _ := l.Sh("wants", "cat /f"); out != "wanted" {
		t.Errorf("its root: %q", out)
	}
}

// TestPruneRaces: prunes by several callers, while sandboxes start, end and
// are removed, disturb nothing that runs; also when the daemon is killed among
// them. A sandbox that two find at one time may be in both answers.
func TestPruneRaces(t *testing.T) {
	l := lab.New(t, lab.Options{})
	running := l.Spawn(api.SpawnRequest{Name: "running", Rootfs: "ephemeral", Limits: api.Limits{Memory: 64 << 20, Disk: 64 << 20}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	round := func(during func()) {
		done := make(chan struct{})
		var wg sync.WaitGroup
		loop := func(what string, fn func() error) {
			wg.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					// A daemon that is killed and one that starts are no answer.
					if err := fn(); err != nil && during == nil && api.CodeOf(err) == api.CodeInternal {
						t.Errorf("%s: %v", what, err)
						return
					}
				}
			})
		}
		for range 3 {
			loop("prune", func() error {
				res, err := l.Prune(ctx, api.PruneRequest{Images: true})
				if err != nil {
					return err
				}
				for _, i := range res.Items {
					if i.ID == running.ID || i.What != "sandbox" || i.Problem != "" {
						t.Errorf("pruned: %+v", i)
					}
				}
				return nil
			})
		}
		loop("df", func() error { _, err := l.DiskUsage(ctx); return err })
		loop("diff", func() error { _, err := l.Diff(ctx, "running", 0); return err })
		loop("write", func() error {
			_, err := l.Exec(ctx, running.ID, api.ExecRequest{Command: []string{"/bin/sh", "-c", "mkdir -p $HOME/d/e; touch $HOME/d/e/f; rm -r $HOME/d"}}, client.Stdio{})
			return err
		})
		if during != nil {
			during()
		} else {
			for range 6 {
				res, err := l.Client.Spawn(ctx, api.SpawnRequest{Command: []string{"/bin/true"}})
				if err != nil {
					t.Errorf("spawn: %v", err)
					break
				}
				if _, err := l.Wait(ctx, res.Sandbox.ID); err != nil && api.CodeOf(err) != api.CodeNotFound {
					t.Errorf("wait: %v", err)
				}
			}
		}
		close(done)
		wg.Wait()
	}
	round(nil)
	for range 8 {
		l.Spawn(api.SpawnRequest{Command: []string{"/bin/true"}})
	}
	round(func() { l.Kill(); l.Start() })
	if _, err := l.Prune(ctx, api.PruneRequest{Images: true}); err != nil {
		t.Error(err)
	}
	all, err := l.List(ctx, client.ListOptions{All: true})
	if err != nil || len(all) != 1 || all[0].State != api.StateRunning {
		t.Errorf("left: %+v, %v", all, err)
	}
	if out, _ := l.Sh(running.ID, "echo alive"); out != "alive\n" {
		t.Errorf("what runs says %q", out)
	}
}
