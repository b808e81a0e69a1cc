package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// openclawUser is the gateway's: an ordinary one, whose directories are its own.
const openclawUser = 0x7AFF_0000

// gatewayConfig is what a gateway needs of creeld.
const gatewayConfig = `[mounts]
paths = true
[[caller]]
match = "default"
profiles = ["*"]
mounts = ["own"]
`

// openclawStage has the plugin's own code call as OpenClaw does, in the Node that
// OpenClaw runs on.
func (b *bench) openclawStage(ctx context.Context) (err error) {
	if _, err := os.Stat(b.node); err != nil {
		return fmt.Errorf("no Node to run the plugin: make deps-openclaw installs it: %w", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "creel-bench-oc-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := errors.Join(os.Chown(dir, openclawUser, openclawUser), os.Chown(b.socket, openclawUser, openclawUser)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, b.node, "integration/openclaw/bench/measure.ts", b.socket, filepath.Join(b.bin, "creel"), dir, strconv.Itoa(b.n), strconv.Itoa(b.rounds), imageName)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: openclawUser, Gid: openclawUser}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	var took struct{ Exec, Relay, Write, Trips, Turn, Spawn5, InTurn []float64 }
	if err := json.Unmarshal(out.Bytes(), &took); err != nil {
		return err
	}
	b.report.add("openclaw_exec", "ms", took.Exec, "fork and exec of the same relay, whose id nobody knows", took.Relay, target{more: 15})
	b.report.add("openclaw_write", "ms", took.Write, "20 shell commands, as OpenClaw's own bridge needs", took.Trips, target{ratio: 0.5})
	b.report.add("openclaw_turn", "ms", took.Turn, "", nil, target{})
	b.report.add("openclaw_spawn_5", "ms", took.Spawn5, "the same five one after the other", took.InTurn, target{p95: 500})
	return nil
}
