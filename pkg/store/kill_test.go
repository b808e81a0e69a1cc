package store_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/store"
)

// TestKill kills a writer with SIGKILL at several moments: what it said it had
// committed is there, and the file is whole.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	committed := 0
	for round := range 6 {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestHelperWriter$")
		cmd.Env = append(os.Environ(), "CREEL_TEST_STORE="+path, "CREEL_TEST_FROM="+strconv.Itoa(committed))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(20+13*round)*time.Millisecond, func() { cmd.Process.Kill() })
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			if n, err := strconv.Atoi(sc.Text()); err == nil {
				committed = n
			}
		}
		timer.Stop()
		cmd.Process.Kill()
		cmd.Wait()

		s, err := store.Open(path)
		if err != nil {
			t.Fatalf("after kill %d: %v", round, err)
		}
		last, err := s.LastEvent()
		if err != nil {
			t.Fatal(err)
		}
		// The one after the last it told may have been committed too.
		if last != uint64(committed) && last != uint64(committed+1) {
			t.Errorf("after kill %d: %d events, the writer told of %d", round, last, committed)
		}
		committed = int(last)
		if committed > 0 {
			id := fmt.Sprintf("id%d", committed)
			if r, err := s.Sandbox(id); err != nil || r.NextExec != last {
				t.Errorf("after kill %d: record of the last commit = %+v, %v", round, r, err)
			}
		}
		s.Close()
	}
	if committed == 0 {
		t.Error("no writer ever committed; the test proved nothing")
	}
}

// TestHelperWriter is the process that TestKill kills.
func TestHelperWriter(t *testing.T) {
	path := os.Getenv("CREEL_TEST_STORE")
	if path == "" {
		t.Skip("only run by TestKill")
	}
	from, err := strconv.Atoi(os.Getenv("CREEL_TEST_FROM"))
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	for n := from + 1; ; n++ {
		err := s.Update(func(tx *store.Tx) error {
			if err := tx.AppendEvents([]api.Event{{Type: "test"}}); err != nil {
				return err
			}
			r := record(fmt.Sprintf("id%d", n), "", 1)
			r.NextExec = uint64(n)
			return tx.PutSandbox(r)
		})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(n)
	}
}
