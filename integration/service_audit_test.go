package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// journalHeads is the command that docs/audit.md has for the heads in the journal.
const journalHeads = "journalctl -u creeld.service -o cat --output-fields=CREEL_AUDIT_HEAD"

// TestJournalHeads: the command that TestServiceAuditHeads uses is the documents'.
func TestJournalHeads(t *testing.T) {
	if !strings.Contains(read(t, "../docs/audit.md"), "`"+journalHeads+"`") {
		t.Errorf("docs/audit.md has another command than %s", journalHeads)
	}
}

// TestServiceAuditHeads: the journal has the audit log's heads, as the documents
// say, and these find a log that was cut just behind an earlier one, which
// nothing else does.
func TestServiceAuditHeads(t *testing.T) {
	s := newService(t)
	s.work()
	earlier := s.head()
	s.work()
	later := s.head()
	if earlier == later {
		t.Fatalf("no head since %s", earlier)
	}
	dir := t.TempDir()
	heads := filepath.Join(dir, "heads")
	s.eventually("the journal has the last head", func() error {
		text := s.journal()
		if err := os.WriteFile(heads, []byte(text), 0o600); err != nil {
			return err
		}
		for _, head := range []string{earlier, later} {
			if !strings.Contains("\n"+text, "\n"+head+"\n") {
				return fmt.Errorf("%s is not in it", head)
			}
		}
		return nil
	})
	for line := range strings.Lines(s.journal()) {
		var head struct{ Kind string }
		if err := json.Unmarshal([]byte(line), &head); err != nil || head.Kind != "head" {
			t.Errorf("the journal's heads have %q: %v", line, err)
		}
	}
	key, whole, cut := filepath.Join(dir, "key"), filepath.Join(dir, "whole"), filepath.Join(dir, "cut")
	records := s.said("audit", "export")
	before, _, found := strings.Cut(records, earlier+"\n")
	if !found {
		t.Fatal("the log has not the head that it said")
	}
	for path, text := range map[string]string{key: s.said("audit", "key"), whole: records, cut: before + earlier + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		log     string
		anchors bool
		code    int
		want    string
	}{
		{whole, false, 0, "0 of 0 anchors found"},
		{whole, true, 0, "\nwhole: "},
		{cut, false, 0, "\nwhole: "},
		{cut, true, 1, "WRONG: "},
	} {
		args := []string{"audit", "verify", "--key", key, tt.log}
		if tt.anchors {
			args = append(args, "--anchor", heads)
		}
		out, errOut, code := s.creel(nil, args...)
		if code != tt.code || !strings.Contains(out, tt.want) {
			t.Errorf("%s with anchors %t: exit code %d, want %d and %q: %s%s", filepath.Base(tt.log), tt.anchors, code, tt.code, tt.want, out, errOut)
		}
	}
}

// work makes records.
func (s *service) work() {
	s.t.Helper()
	if err := s.Remove(s.t.Context(), s.spawn(api.SpawnRequest{}).Sandbox.ID, true); err != nil {
		s.t.Fatal(err)
	}
}

// head is the audit log's last, of which all before it is a part.
func (s *service) head() string {
	s.t.Helper()
	return strings.TrimSuffix(s.said("audit", "anchor"), "\n")
}

// said is what the installed command says to root.
func (s *service) said(args ...string) string {
	s.t.Helper()
	out, errOut, code := s.creel(nil, args...)
	if code != 0 {
		s.t.Fatalf("creel %q: exit code %d: %s", args, code, errOut)
	}
	return out
}

func (s *service) journal() string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	args := strings.Fields(journalHeads)
	out, err := exec.CommandContext(ctx, "/usr/bin/"+args[0], args[1:]...).Output()
	if err != nil {
		s.t.Fatalf("%s: %v", journalHeads, err)
	}
	return string(out)
}
