//go:build failpoint

// Package failpoint lets tests make any step of creeld fail, or kill creeld
// there; see off.go.
package failpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Enabled says whether this is a test build.
const Enabled = true

// Hit is an error if a test asked for the step to fail.
func Hit(name string) error {
	switch action(name) {
	case "error":
		return fmt.Errorf("failpoint %s", name)
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal is on its way
	case "hold":
		held := os.Getenv("CREEL_FAILPOINT_FILE") + ".held"
		if err := os.WriteFile(held, []byte(name), 0o600); err != nil { //nolint:gosec // tests say where
			return err
		}
		for action(name) == "hold" {
			time.Sleep(5 * time.Millisecond)
		}
		if err := os.Remove(held); err != nil && !errors.Is(err, fs.ErrNotExist) { // another that was held has
			return err
		}
	}
	return nil
}

// On says whether a test switched the named behaviour on.
func On(name string) bool { return action(name) == "on" }

func action(name string) string {
	text, err := os.ReadFile(os.Getenv("CREEL_FAILPOINT_FILE")) //nolint:gosec // tests say where
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if n, a, ok := strings.Cut(strings.TrimSpace(line), " "); ok && n == name {
			return a
		}
	}
	return ""
}
