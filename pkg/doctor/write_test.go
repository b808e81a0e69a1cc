package doctor_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/doctor"
)

func TestWrite(t *testing.T) {
	d := &api.Doctor{Checks: []api.Check{
		{Name: "kernel", Status: doctor.OK, Detail: "6.12"},
		{Name: "cgroup", Status: doctor.Weaker, Detail: "v1", Cost: "less", Fix: "boot v2"},
		{Name: "group", Status: "dangerous", Detail: "one\nmember \x1b[31m\tof disk"},
	}, Leftovers: []string{"cgroup a\x07"}}
	var b strings.Builder
	if err := doctor.Write(&b, d); err != nil {
		t.Fatal(err)
	}
	want := `           CHECK   DETAIL
ok         kernel  6.12
weaker     cgroup  v1
                   cost: less
                   fix:  boot v2
dangerous  group   one
                   member \x1b[31m\tof disk

leftovers:
  cgroup a\a

missing or dangerous: group
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
