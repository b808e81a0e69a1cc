package peer

import (
	"os"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestThreadOfAPeer: where the file system looks the thread is the peer, it
// has no capability, and the peer cannot send it a signal.
func TestThreadOfAPeer(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	var status string
	c := Cred{UID: 424242, GID: 434343, Groups: []uint32{454545, 464646}}
	err := c.as(func() error {
		b, err := os.ReadFile("/proc/thread-self/status")
		status = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Uid:\t0\t0\t0\t424242\n", "Gid:\t0\t0\t0\t434343\n", "Groups:\t454545 464646 \n",
		"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapAmb:\t0000000000000000\n",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(own), "Uid:\t0\t0\t0\t0\n") {
		t.Errorf("the process has changed: %v\n%s", err, own)
	}
}

func TestLabels(t *testing.T) {
	for label, want := range map[string]bool{
		"":           true,
		"unconfined": true,
		"unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023": true,
		"system_u:system_r:init_t:s0":                           false,
		"system_u:system_r:container_t:s0:c1,c2":                false,
		"docker-default (enforce)":                              false,
		"unconfined (enforce)":                                  false,
		"a:b:unconfined_t":                                      false,
		"_":                                                     false,
	} {
		if free(label) != want {
			t.Errorf("free(%q) = %t", label, !want)
		}
	}
}

// TestOpeningIsBounded: look-ups of one uid that are stuck leave room for
// others' only.
func TestOpeningIsBounded(t *testing.T) {
	for range maxOpening {
		leave, err := enterOpening(1)
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
	}
	if _, err := enterOpening(1); err == nil {
		t.Error("one more")
	}
	leave, err := enterOpening(2)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if _, there := opening.uid[2]; there {
		t.Error("a place is kept")
	}
}
