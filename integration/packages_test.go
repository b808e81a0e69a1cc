package integration_test

import (
	_ "embed"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// packagesScript makes a package of each kind, and what serves them.
//
//go:embed testdata/packages.sh
var packagesScript string

// TestPackageManagers installs by each package manager as root of the profile
// build, from a server on the sandbox's own loopback, and runs what was
// installed: there, and as an agent from an image that is made of it.
func TestPackageManagers(t *testing.T) {
	kerneltest.Require(t, kerneltest.PackagesImage)
	l := lab.New(t, lab.Options{Image: kerneltest.PackagesImagePath()})
	sb := l.Spawn(api.SpawnRequest{
		Profile: "build", Command: []string{"/bin/sh", "-c", "mkdir -p /srv && exec python3 -m http.server 8000 --bind 127.0.0.1 --directory /srv"},
	})
	put(t, l, sb.ID, "/root/packages.sh", packagesScript)
	sh := func(script string) string {
		t.Helper()
		began := time.Now()
		out, res := l.Sh(sb.ID, "export DEBIAN_FRONTEND=noninteractive; { "+script+"\n} 2>&1")
		if res.ExitCode != 0 {
			t.Fatalf("%s: %+v\n%s", script, res, out)
		}
		t.Logf("%s in %v", strings.SplitN(script, "\n", 2)[0], time.Since(began).Round(10*time.Millisecond))
		return out
	}
	sh("/bin/sh /root/packages.sh")
	l.Eventually("the server answers", 30*time.Second, func() error {
		if out, res := l.Sh(sb.ID, "curl -sf http://127.0.0.1:8000/deb/Packages"); res.ExitCode != 0 {
			return fmt.Errorf("%q, %+v", out, res)
		}
		return nil
	})
	tests := []struct {
		name, install, run, want string
	}{
		{
			"apt", "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] http://127.0.0.1:8000/deb ./' >/etc/apt/sources.list && apt-get update && apt-get install -y hello-deb",
			"hello-deb", "a deb says hello\n",
		},
		{"pip", "pip install --break-system-packages --root-user-action=ignore --index-url http://127.0.0.1:8000/simple/ hello-pip", "hello-pip", "a wheel says hello\n"},
		{"npm", "cd /opt/app && npm ci --registry http://127.0.0.1:8000/npm/ --no-audit --no-fund --no-update-notifier", "/opt/app/node_modules/.bin/hello-npm", "a tarball says hello, built by 0\n"},
		{"cargo", "cd /opt/tool && cargo build --release", "/opt/tool/target/release/tool", "a crate says hello\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, res := l.Sh(sb.ID, "export DEBIAN_FRONTEND=noninteractive; { "+tt.install+"; } 2>&1")
			t.Logf("%s: %v\n%s", tt.name, res.Took, out)
			if res.ExitCode != 0 {
				t.Fatalf("%+v", res)
			}
			if out, res := l.Sh(sb.ID, tt.run); out != tt.want {
				t.Errorf("%s: %q, %+v", tt.run, out, res)
			}
		})
	}
	// What only a root can unpack is as dpkg was told, but for a set-group-ID
	// bit of a group that it is not in: that wants CAP_FSETID (chmod(2)).
	const files = "stat -c '%U:%G %a %n' /usr/lib/hello/su /usr/lib/hello/mail /var/lib/hello /usr/bin/hello-deb"
	want := "root:root 4755 /usr/lib/hello/su\nroot:mail 755 /usr/lib/hello/mail\nhello:games 1770 /var/lib/hello\nroot:root 755 /usr/bin/hello-deb\n"
	if out := sh(files); out != want {
		t.Errorf("unpacked:\n%s", out)
	}
	if out := sh("dpkg --audit; dpkg-query -W -f '${Status} ${Package}\n' hello-deb hello-lib"); out != "install ok installed hello-deb\ninstall ok installed hello-lib\n" {
		t.Errorf("dpkg: %q", out)
	}
	sh("rm -r /srv /tmp/*")
	if ev, err := l.Evidence(t.Context(), sb.ID, true); err != nil || !ev[0].OK {
		t.Errorf("evidence: %+v, %v", ev, err)
	}
	began := time.Now()
	if _, err := l.Commit(t.Context(), sb.ID, "installed"); err != nil {
		t.Fatal(err)
	}
	t.Logf("commit in %v", time.Since(began).Round(10*time.Millisecond))
	agent := l.Spawn(api.SpawnRequest{Image: "installed"})
	for _, tt := range tests {
		if out, res := l.Sh(agent.ID, tt.run); out != tt.want {
			t.Errorf("as an agent, %s: %q, %+v", tt.run, out, res)
		}
	}
	want = "1000\n" + strings.NewReplacer(" 4755 ", " 755 ").Replace(want)
	if out, _ := l.Sh(agent.ID, "id -u; "+files); out != want {
		t.Errorf("as an agent:\n%s", out)
	}
}
