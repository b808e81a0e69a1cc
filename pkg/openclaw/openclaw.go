// Package openclaw reads an OpenClaw configuration and says what creel makes
// of it: which agents its sandboxes hold, what becomes of each key that was
// meant for the Docker backend, what runs on the host all the same, and what
// is to be changed so that creel's plugin is used.
//
// A file is read with Read, explained with Config.Check, changed with Plan,
// which only returns the new text, and written with Replace.
//
// The keys are those of OpenClaw 2026.9.6. What is said of a key holds for
// what is in the file: sessions can be taken out of their sandbox one by one,
// in OpenClaw's own state, which is not looked at.
package openclaw

import (
	"fmt"
	"slices"
)

// The values of Finding.Level.
const (
	OK      = "ok"      // as it should be
	Note    = "note"    // to be known; nothing is broken
	Missing = "missing" // what was asked for does not work, or is not done by creel
	Danger  = "danger"  // what a sandbox should hold runs outside, or somebody is root by another door
)

// Plugin is the id of creel's plugin and of the sandbox backend it registers.
const Plugin = "creel"

// Finding is one thing that check has to say.
type Finding struct {
	Level string `json:"level"`
	// About is whom or what it is about: "agent main", "creeld".
	About string `json:"about"`
	What  string `json:"what"`
	// Fix is what to do. Empty when there is nothing to do.
	Fix string `json:"fix,omitempty"`

	// Key, Says and Does are a row of the table of keys: where it is set, what
	// OpenClaw's configuration says and what creel does with it. Key is empty
	// for what is no row.
	Key  string `json:"key,omitempty"`
	Says string `json:"openclaw_says,omitempty"`
	Does string `json:"creel_does,omitempty"`
}

// Bad counts the findings that keep check from succeeding.
func Bad(list []Finding) (n int) {
	for _, f := range list {
		if slices.Contains([]string{Missing, Danger}, f.Level) {
			n++
		}
	}
	return n
}

func finding(level, about, fix, format string, args ...any) Finding {
	return Finding{Level: level, About: about, What: fmt.Sprintf(format, args...), Fix: fix}
}

// row is a finding of the table of keys.
func row(level, about, key, says, does, fix string) Finding {
	return Finding{
		Level: level, About: about, What: key + " = " + says + ": " + does, Fix: fix,
		Key: key, Says: says, Does: does,
	}
}
