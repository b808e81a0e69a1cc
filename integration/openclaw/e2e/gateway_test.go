package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// token is what the gateways ask for; they listen on loopback, for minutes.
const token = "0123456789-0123456789-0123456789-0123456789"

// gateway is an OpenClaw of the test's own, with its home, its state, its
// configuration and its port, as an ordinary user.
type gateway struct {
	Dir string // of the user's
	Log string

	tb     testing.TB
	inst   string // where node and openclaw are
	cred   *syscall.Credential
	config obj
	port   int
	model  *model
	cmd    *exec.Cmd
	exited chan struct{}
}

// newGateway makes a gateway's directory, and starts nothing.
func newGateway(tb testing.TB, w *world, name string) *gateway {
	tb.Helper()
	dir := filepath.Join(w.Dir, name)
	config := w.config(dir)
	g := &gateway{
		Dir: dir, tb: tb, inst: w.inst, config: config, model: w.model,
		cred: &syscall.Credential{Uid: gatewayUID, Gid: gatewayUID, Groups: []uint32{socketGID}},
	}
	g.Log = filepath.Join(g.Dir, "gateway.log")
	for _, d := range []string{"", "home", "state", "tmp"} {
		d = filepath.Join(g.Dir, d)
		if err := errors.Join(os.Mkdir(d, 0o700), os.Chown(d, gatewayUID, gatewayUID)); err != nil {
			tb.Fatal(err)
		}
	}
	// npm, by which plugins are installed, asks nobody.
	g.file(filepath.Join(g.Dir, "home", ".npmrc"), "offline=true\naudit=false\nfund=false\nupdate-notifier=false\n")
	g.file(g.Log, "")
	g.port = freePort(tb)
	config["gateway"] = obj{
		"mode": "local", "port": g.port, "bind": "loopback", "auth": obj{"mode": "token", "token": token},
		"http": obj{"endpoints": obj{"chatCompletions": obj{"enabled": true}}},
	}
	config["logging"] = obj{"file": filepath.Join(g.Dir, "tmp", "openclaw.log")}
	config["update"] = obj{"checkOnStart": false}
	g.write(config)
	return g
}

func freePort(tb testing.TB) int {
	tb.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (g *gateway) configPath() string { return filepath.Join(g.Dir, "openclaw.json") }

func (g *gateway) write(config obj) {
	g.tb.Helper()
	text, err := json.MarshalIndent(config, "", "\t")
	if err != nil {
		g.tb.Fatal(err)
	}
	g.file(g.configPath(), string(text))
}

// file is one of the user's.
func (g *gateway) file(path, text string) {
	g.tb.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chown(path, gatewayUID, gatewayUID)); err != nil {
		g.tb.Fatal(err)
	}
}

// command is openclaw's, as the gateway's user has it.
func (g *gateway) command(ctx context.Context, args ...string) *exec.Cmd {
	node := filepath.Join(g.inst, "node", "node_modules", "node", "bin")
	cmd := exec.CommandContext(ctx, filepath.Join(node, "node"), append([]string{filepath.Join(g.inst, "inst", "node_modules", "openclaw", "openclaw.mjs")}, args...)...)
	cmd.Dir = g.Dir
	cmd.Env = []string{
		"PATH=" + node + ":" + os.Getenv("PATH"), "HOME=" + filepath.Join(g.Dir, "home"), "TMPDIR=" + filepath.Join(g.Dir, "tmp"),
		"OPENCLAW_STATE_DIR=" + filepath.Join(g.Dir, "state"), "OPENCLAW_CONFIG_PATH=" + g.configPath(), "OPENCLAW_GATEWAY_TOKEN=" + token,
		"NODE_COMPILE_CACHE=" + filepath.Join(filepath.Dir(g.Dir), "compiled"), // the second start is faster
		"OPENCLAW_NO_AUTO_UPDATE=1", "OPENCLAW_DISABLE_BONJOUR=1", "OPENCLAW_SKIP_CHANNELS=1", "OPENCLAW_SKIP_CRON=1",
		"NO_COLOR=1",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: g.cred, Setsid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// cli runs a command of openclaw's to its end.
func (g *gateway) cli(tb testing.TB, args ...string) (stdout, stderr string, code int) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 2*time.Minute)
	defer cancel()
	cmd := g.command(ctx, args...)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tb.Fatalf("openclaw %q: %v\n%s%s", args, err, &out, &errb)
	}
	return out.String(), errb.String(), cmd.ProcessState.ExitCode()
}

// install has openclaw install the plugin, as its users do, and gives it its
// configuration.
func (g *gateway) install(archive string, plugin obj) {
	g.tb.Helper()
	out, errOut, code := g.cli(g.tb, "plugins", "install", "npm-pack:"+archive, "--force", "--accept-capabilities")
	if code != 0 {
		g.tb.Fatalf("install the plugin: %d\n%s%s", code, out, errOut)
	}
	text, err := os.ReadFile(g.configPath())
	config := obj{}
	if err = errors.Join(err, json.Unmarshal(text, &config)); err != nil {
		g.tb.Fatal(err)
	}
	plugins, _ := config["plugins"].(obj)
	entries, _ := plugins["entries"].(obj)
	entry, _ := entries["creel"].(obj)
	if entry["enabled"] != true {
		g.tb.Fatalf("an installed plugin is not enabled: %v", plugins)
	}
	entry["config"], plugins["allow"] = plugin, []string{"creel"}
	g.config = config
	g.write(config)
}

// installed is where openclaw has put the plugin.
func (g *gateway) installed() string {
	g.tb.Helper()
	found, _ := filepath.Glob(filepath.Join(g.Dir, "state", "npm", "projects", "*", "node_modules", "@creel-sandbox", "openclaw"))
	if len(found) != 1 {
		g.tb.Fatalf("the plugin is in %q", found)
	}
	return found[0]
}

// start starts the gateway and waits until it is ready.
func (g *gateway) start() {
	g.tb.Helper()
	g.begin()
	begun := time.Now()
	for {
		status, _ := g.get("/readyz")
		if status == http.StatusOK {
			g.tb.Logf("the gateway is ready after %s", time.Since(begun).Round(time.Millisecond))
			return
		}
		select {
		case <-g.exited:
			g.tb.Fatalf("the gateway ended at its start:\n%s", g.logTail(40))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(begun) > 2*time.Minute {
			g.tb.Fatalf("the gateway is not ready:\n%s", g.logTail(40))
		}
	}
}

// begin starts the gateway and does not wait.
func (g *gateway) begin() {
	g.tb.Helper()
	log, err := os.OpenFile(g.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		g.tb.Fatal(err)
	}
	defer log.Close()
	cmd := g.command(context.WithoutCancel(g.tb.Context()), "gateway", "run", "--verbose")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		g.tb.Fatal(err)
	}
	g.cmd, g.exited = cmd, make(chan struct{})
	go func() { _ = cmd.Wait(); close(g.exited) }()
}

// stop ends the gateway as a service manager would.
func (g *gateway) stop() { g.end(unix.SIGTERM) }

// kill ends the gateway as a crash would. What it had started is not told.
func (g *gateway) kill() { g.end(unix.SIGKILL) }

func (g *gateway) end(sig unix.Signal) {
	g.tb.Helper()
	if g.cmd == nil {
		return
	}
	pgid := g.cmd.Process.Pid
	if sig == unix.SIGTERM {
		_ = g.cmd.Process.Signal(unix.SIGTERM)
	} else {
		_ = unix.Kill(-pgid, sig)
	}
	select {
	case <-g.exited:
	case <-time.After(30 * time.Second):
		g.tb.Errorf("the gateway does not end:\n%s", g.logTail(20))
		_ = unix.Kill(-pgid, unix.SIGKILL)
		<-g.exited
	}
	// The first process is gone before the others of its group are.
	for range 200 {
		if unix.Kill(-pgid, 0) != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = unix.Kill(-pgid, unix.SIGKILL)
	g.cmd = nil
}

func (g *gateway) logTail(n int) string {
	text, _ := os.ReadFile(g.Log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}

func (g *gateway) get(path string) (int, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return g.ask(ctx, http.MethodGet, path, nil, nil)
}

// ask makes one request of the gateway. A status of 0 is that there was no answer.
func (g *gateway) ask(ctx context.Context, method, path string, header map[string]string, body any) (int, string) {
	var in io.Reader
	if body != nil {
		text, _ := json.Marshal(body)
		in = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+strconv.Itoa(g.port)+path, in)
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	for k, v := range header {
		req.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(text)
}

// reply is what came of a turn.
type reply struct {
	*script
	status int
	answer string // of the gateway's interface
}

// say has an agent run a script, in one of its sessions. It returns when the
// gateway has answered, which it has when the turn is over or yielded.
func (g *gateway) say(t *testing.T, agent, session, text string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return g.ask(ctx, http.MethodPost, "/v1/chat/completions",
		map[string]string{"x-openclaw-session-key": sessionKey(agent, session)},
		obj{"model": "openclaw/" + agent, "messages": []obj{{"role": "user", "content": text}}})
}

// turn has an agent take these steps, and waits until it has.
func (g *gateway) turn(t *testing.T, agent, session string, steps ...step) reply {
	t.Helper()
	text := g.model.add(steps...)
	status, answer := g.say(t, agent, session, text)
	if status != http.StatusOK {
		return reply{g.model.seen(g.model.script(text)), status, answer}
	}
	return reply{g.model.wait(t, text), status, answer}
}

// results is a turn that has to succeed: what came of each of its calls.
func (g *gateway) results(t *testing.T, agent, session string, steps ...step) []string {
	t.Helper()
	r := g.turn(t, agent, session, steps...)
	if r.status != http.StatusOK || !r.ended {
		t.Fatalf("turn of %s: %d %s; results %q\n%s", agent, r.status, r.answer, r.results, g.logTail(15))
	}
	return r.results
}

func sessionKey(agent, session string) string { return fmt.Sprintf("agent:%s:%s", agent, session) }
