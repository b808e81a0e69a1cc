package integration_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/kerneltest"

	"github.com/google/go-cmp/cmp"
)

// TestClients runs the example clients as docs/clients.md prints them.
func TestClients(t *testing.T) {
	clients, err := filepath.Abs("../examples/clients")
	if err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile("../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	l := lab.New(t, lab.Options{})
	const same = "state: running\none shot: 0 HELLO\nstream: 7 200000 oops\n"
	for _, tt := range []struct {
		file string
		need kerneltest.Need
		want string
	}{
		{"creel.sh", kerneltest.Curl, "\"state\":\"running\"\n\"exit_code\":0\n\"stdout\":\"HELLO\"\na report\nDELETE 204\n"},
		{"creel.py", kerneltest.Python, same},
		{"creel.mts", kerneltest.NodeTS, same},
		{"creel.mjs", kerneltest.Node, same},
		{"go/main.go", kerneltest.Go, same},
	} {
		t.Run(tt.file, func(t *testing.T) {
			file := filepath.Join(clients, tt.file)
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(document), "\n"+string(text)+"```\n") {
				t.Errorf("docs/clients.md does not print %s as it is", tt.file)
			}
			kerneltest.Require(t, tt.need)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			run := func(args ...string) (string, string, error) {
				cmd := exec.CommandContext(ctx, args[0], args[1:]...)
				cmd.Env = append(os.Environ(), "CREEL_SOCKET="+l.Socket)
				var out, errOut strings.Builder
				cmd.Stdout, cmd.Stderr = &out, &errOut
				err := cmd.Run()
				return out.String(), errOut.String(), err
			}
			if tt.need.Name == kerneltest.Go.Name {
				built := filepath.Join(t.TempDir(), "client")
				if _, errOut, err := run("go", "build", "-o", built, file); err != nil {
					t.Fatalf("%v: %s", err, errOut)
				}
				file = built
			}
			out, errOut, err := run(file, "job")
			if diff := cmp.Diff(tt.want, out); err != nil || diff != "" || errOut != "" {
				t.Errorf("%v, on stderr %q; output (-want +got):\n%s", err, errOut, diff)
			}
			if all, err := l.List(ctx, client.ListOptions{All: true}); err != nil || len(all) != 0 {
				t.Errorf("%d sandboxes are left, %v", len(all), err)
			}
			// What the daemon refuses is told, and fails the program.
			if out, errOut, err := run(file, "Not-A-Name"); err == nil || !strings.Contains(out+errOut, "starting with a letter or digit") {
				t.Errorf("with a wrong name: %v, %q, %q", err, out, errOut)
			}
		})
	}
}

// TestClientsUnreadInput: a command that ends without reading its input ends
// as any other, and output is not lost to input that cannot be sent.
func TestClientsUnreadInput(t *testing.T) {
	clients, err := filepath.Abs("../examples/clients")
	if err != nil {
		t.Fatal(err)
	}
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	const want = "10 times 7, 10 bytes\n"
	node := func(file, command string) []string {
		return []string{"node", "--input-type=module", "-e", `import { stream } from "./` + file + `";
let sevens = 0, n = 0;
for (let i = 0; i < 10; i++) {
  const end = await stream("` + sb.ID + `", ` + command + `, { stdin: Buffer.alloc(3_000_000, "x"), onStderr: (b) => { n += b.length; } });
  if (end.exit_code === 7) sevens++;
}
console.log(sevens, "times 7,", n, "bytes");`}
	}
	for _, tt := range []struct {
		need kerneltest.Need
		args []string
	}{
		{kerneltest.Python, []string{"python3", "-c", `import creel
n = bytearray()
ends = [creel.stream("` + sb.ID + `", ["sh", "-c", "echo >&2; exit 7"], b"x" * 3_000_000, on_stderr=lambda b: n.extend(b)) for i in range(10)]
print(sum(e["exit_code"] == 7 for e in ends), "times 7,", len(n), "bytes")`}},
		{kerneltest.NodeTS, node("creel.mts", `{ command: ["sh", "-c", "echo >&2; exit 7"] }`)},
		{kerneltest.Node, node("creel.mjs", `["sh", "-c", "echo >&2; exit 7"]`)},
	} {
		t.Run(tt.need.Name, func(t *testing.T) {
			kerneltest.Require(t, tt.need)
			cmd := exec.CommandContext(deadline(t), tt.args[0], tt.args[1:]...)
			cmd.Dir = clients
			cmd.Env = append(os.Environ(), "CREEL_SOCKET="+l.Socket, "PYTHONDONTWRITEBYTECODE=1")
			out, err := cmd.CombinedOutput()
			if string(out) != want || err != nil {
				t.Errorf("%v, %q; want %q", err, out, want)
			}
		})
	}
}

// TestClientsTypes has TypeScript look at the clients that have types, as
// docs/clients.md says, and at a use of them that is wrong.
func TestClientsTypes(t *testing.T) {
	kerneltest.Require(t, kerneltest.TSC)
	types, err := kerneltest.NodeTypes()
	if err != nil {
		t.Fatal(err)
	}
	clients, err := filepath.Abs("../examples/clients")
	if err != nil {
		t.Fatal(err)
	}
	check := func(file string) (string, error) {
		out, err := exec.CommandContext(deadline(t), "tsc", "--noEmit", "--strict", "--erasableSyntaxOnly", "--module", "nodenext", "--target", "es2022",
			"--types", "node", "--allowJs", "--checkJs", "--allowImportingTsExtensions", "--typeRoots", types, file).CombinedOutput()
		return string(out), err
	}
	for _, file := range []string{"creel.mts", "creel.mjs"} {
		if out, err := check(filepath.Join(clients, file)); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
	wrong := filepath.Join(t.TempDir(), "wrong.mts")
	text := `import { exec } from "` + clients + `/creel.mts";
await exec("job", { command: "true" });
console.log((await exec("job", { command: ["true"] })).exitcode);
`
	if err := os.WriteFile(wrong, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := check(wrong)
	if err == nil || !strings.Contains(out, "wrong.mts(2,") || !strings.Contains(out, "wrong.mts(3,") || strings.Count(out, "error TS") != 2 {
		t.Errorf("a wrong use: %v\n%s", err, out)
	}
}
