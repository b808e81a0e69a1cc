package imagebuild

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AgentID is the uid and gid of the agent in every sandbox.
const AgentID = 1000

// accountEdits are the changes to the account files, by path: the agent is
// added, and the day of the last password change is the epoch's instead of
// the build's.
func accountEdits(epoch time.Time) map[string]func([]byte) ([]byte, error) {
	day := strconv.FormatInt(epoch.Unix()/86400, 10)
	id := strconv.Itoa(AgentID)
	add := func(line string) func([]byte) ([]byte, error) {
		return func(b []byte) ([]byte, error) { return addAccount(b, line) }
	}
	return map[string]func([]byte) ([]byte, error){
		"etc/passwd":  add("agent:x:" + id + ":" + id + ":agent:/home/agent:/bin/bash"),
		"etc/group":   add("agent:x:" + id + ":"),
		"etc/gshadow": add("agent:!::"),
		"etc/shadow": func(b []byte) ([]byte, error) {
			return addAccount(setDay(b, day), "agent:!:"+day+":0:99999:7:::")
		},
	}
}

func addAccount(b []byte, line string) ([]byte, error) {
	for l := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(l), ":")
		idTaken := len(f) > 2 && f[2] == strconv.Itoa(AgentID) && strings.HasPrefix(line, "agent:x:")
		if f[0] == "agent" || idTaken {
			return nil, fmt.Errorf("account %q has the agent's name or id %d", f[0], AgentID)
		}
	}
	if len(b) > 0 && !bytes.HasSuffix(b, []byte("\n")) {
		b = append(b, '\n')
	}
	return append(b, line+"\n"...), nil
}

// setDay sets the third field of each line of shadow(5).
func setDay(b []byte, day string) []byte {
	var out []byte
	for l := range strings.Lines(string(b)) {
		f := strings.Split(l, ":")
		if len(f) > 3 {
			f[2] = day
		}
		out = append(out, strings.Join(f, ":")...)
	}
	return out
}

// packageList is "name version" for each installed package in dpkg's database
// (deb-control(5) stanzas), sorted.
func packageList(status []byte) []string {
	var list []string
	for stanza := range strings.SplitSeq(string(status), "\n\n") {
		var name, version, state string
		for line := range strings.Lines(stanza) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch k {
			case "Package":
				name = v
			case "Version":
				version = v
			case "Status":
				state = v
			}
		}
		if name != "" && strings.HasSuffix(state, " installed") {
			list = append(list, name+" "+version)
		}
	}
	slices.Sort(list)
	return list
}
