//go:build !failpoint

// Package failpoint lets tests make any step of creeld fail, or kill creeld
// there. It does nothing in a normal build: the functions are constants and
// the compiler removes the calls.
//
// A build with the tag "failpoint" reads the file named by
// CREEL_FAILPOINT_FILE at each step: lines of "NAME ACTION", where ACTION is
// "error", "kill" (SIGKILL to creeld itself), "hold" (wait there until the line
// is gone; the file's name with ".held" says that it does), or "on" (for On).
package failpoint

// Enabled says whether this is a test build.
const Enabled = false

// Hit is an error if a test asked for the step to fail.
func Hit(string) error { return nil }

// On says whether a test switched the named behaviour on.
func On(string) bool { return false }
