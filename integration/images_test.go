package integration_test

import (
	"archive/tar"
	"os"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestImageIsNotTrusted has an image ask for all that an image may ask for;
// nothing of it is done.
func TestImageIsNotTrusted(t *testing.T) {
	kerneltest.Require(t, kerneltest.Busybox)
	box, err := os.ReadFile(kerneltest.BusyboxPath())
	if err != nil {
		t.Fatal(err)
	}
	image := lab.TinyWith(t, map[string]any{
		"User":       "0:0",
		"Entrypoint": []string{"/bin/sh", "-c", "echo entrypoint >/tmp/ran; sleep 1000"},
		"Cmd":        []string{"/bin/sh"},
		"Env":        []string{"PATH=/evil", "LD_PRELOAD=/evil.so", "HOME=/evil", "EVIL=1"},
		"WorkingDir": "/evil",
		"Volumes":    map[string]any{"/evil": map[string]any{}},
		"Labels":     map[string]string{"evil": "1", "creel.profile": "none", "containerd.io/restart.status": "running"},
		"StopSignal": "SIGWINCH",
	}, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeDir, Name: "evil/", Mode: 0o777}, nil)
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox-suid", Mode: 0o6755}, box)
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "dev/evil", Mode: 0o666}, []byte("of the image"))
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "proc/evil", Mode: 0o666}, []byte("of the image"))
	})
	l := lab.New(t, lab.Options{Image: image})
	for _, tt := range []struct {
		name string
		req  api.SpawnRequest
	}{
		{"crun", api.SpawnRequest{Runtime: "crun"}},
		{"runc", api.SpawnRequest{Runtime: "runc"}},
		{"ephemeral", api.SpawnRequest{Rootfs: "ephemeral", Limits: api.Limits{Memory: 128 << 20, Disk: 16 << 20}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sb := l.Spawn(tt.req)
			if len(sb.Labels) != 0 || len(sb.Command) != 0 || sb.Workdir != "/home/agent" {
				t.Errorf("it has labels %v, command %q, working directory %s", sb.Labels, sb.Command, sb.Workdir)
			}
			for _, c := range []struct{ script, want string }{
				{"id -u; id -g; pwd; echo $PATH $HOME $EVIL $LD_PRELOAD", "1000\n1000\n/home/agent\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /home/agent\n"},
				{"ls /tmp; grep -c evil /proc/self/mountinfo", "0\n"},
				{"ls /dev/evil /proc/evil 2>&1 | grep -c 'No such file'", "2\n"},
				// It is set-user-ID, and has the rights of who runs it.
				{"stat -c %a:%u /bin/busybox-suid; /bin/busybox-suid su -c id 2>&1 | grep -c 'must be suid'", "6755:0\n1\n"},
				{"/bin/busybox-suid cat /proc/self/status | grep -E '^(Uid|Gid|CapEff):' | tr -s '\\t ' ' '", "Uid: 1000 1000 1000 1000\nGid: 1000 1000 1000 1000\nCapEff: 0000000000000000\n"},
			} {
				if out, _ := l.Sh(sb.ID, c.script); out != c.want {
					t.Errorf("%s\nis %q\nwant %q", c.script, out, c.want)
				}
			}
			out, _ := l.Sh(sb.ID, "grep ' / / ' /proc/self/mountinfo")
			for _, flag := range []string{"nosuid", "nodev"} {
				if !strings.Contains(out, flag) {
					t.Errorf("the root is not %s: %s", flag, out)
				}
			}
		})
	}
}
