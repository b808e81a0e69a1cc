package admission_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"

	"github.com/google/go-cmp/cmp"
)

func TestDifferences(t *testing.T) {
	base := func() admission.Spec {
		return admission.Spec{
			Request: api.SpawnRequest{
				Name: "n", Agent: "a", Image: "base", Command: []string{"sh"}, Env: map[string]string{"TOKEN": "secret", "A": "1"},
				Labels: map[string]string{"k": "v"}, Mounts: []api.Mount{{Source: "/x", FD: new(0), Target: "/w"}, {Source: "/y", FD: new(1), Target: "/v"}},
			},
			Limits: api.Limits{Memory: 1 << 30, CPUs: 1}, Digest: "sha256:1",
			Dirs: map[string]admission.Dir{"/w": {1, 2}, "/v": {1, 3}},
		}
	}
	tests := []struct {
		name   string
		change func(s *admission.Spec)
		want   []api.Problem
	}{
		{"nothing", func(*admission.Spec) {}, nil},
		{"other words for the same", func(s *admission.Spec) {
			r := &s.Request
			r.Name, r.Trace, r.Image = "other", true, "base:latest"
			r.Mounts = []api.Mount{{Source: "/../y", FD: new(0), Target: "/v"}, {Source: "/link-to-x", FD: new(1), Target: "/w"}}
			r.Limits.Memory = 1 << 30 // resolved to what it is anyway
		}, nil},
		{"empty is none", func(s *admission.Spec) { s.Request.Workdir = "" }, nil},
		{"command", func(s *admission.Spec) { s.Request.Command = []string{"sh", "-x"} }, []api.Problem{{Field: "command", Have: `["sh"]`, Want: `["sh","-x"]`}}},
		{"no command", func(s *admission.Spec) { s.Request.Command = nil }, []api.Problem{{Field: "command", Have: `["sh"]`, Want: "none"}}},
		{"flag", func(s *admission.Spec) { s.Request.TTY = true }, []api.Problem{{Field: "tty", Have: "false", Want: "true"}}},
		{"timeout", func(s *admission.Spec) { s.Request.Timeout = api.Duration(time.Minute) }, []api.Problem{{Field: "timeout", Have: "0s", Want: "1m0s"}}},
		{"limit", func(s *admission.Spec) { s.Limits.Memory, s.Limits.CPUs = 2<<30, 1.5 }, []api.Problem{
			{Field: "limits.memory", Have: "1073741824", Want: "2147483648"}, {Field: "limits.cpus", Have: "1", Want: "1.5"},
		}},
		{"image moved", func(s *admission.Spec) { s.Digest = "sha256:2" }, []api.Problem{{Field: "image", Have: "base sha256:1", Want: "base sha256:2"}}},
		{"secrets stay out", func(s *admission.Spec) { s.Request.Env = map[string]string{"TOKEN": "other", "B": "2"} }, []api.Problem{
			{Field: "env.A", Have: "set", Want: "not set"}, {Field: "env.B", Have: "not set", Want: "set"}, {Field: "env.TOKEN", Have: "another value", Want: "the value given"},
		}},
		{"labels", func(s *admission.Spec) { s.Request.Labels = map[string]string{"l": ""} }, []api.Problem{
			{Field: "labels.k", Have: `"v"`, Want: "none"}, {Field: "labels.l", Have: "none", Want: `""`},
		}},
		{"directory", func(s *admission.Spec) { s.Dirs = map[string]admission.Dir{"/w": {1, 2}, "/v": {1, 4}} }, []api.Problem{
			{Field: "mounts./v.source", Have: "/y (device 0x1, inode 3)", Want: "/y (device 0x1, inode 4)"},
		}},
		{"mounts", func(s *admission.Spec) {
			s.Request.Mounts = []api.Mount{{Source: "/x", FD: new(0), Target: "/w", ReadOnly: true}, {Source: "/y", FD: new(1), Target: "/u"}}
		}, []api.Problem{
			{Field: "mounts./u", Have: "not mounted", Want: "mounted"},
			{Field: "mounts./v", Have: "mounted", Want: "not mounted"},
			{Field: "mounts./w.readonly", Have: "false", Want: "true"},
		}},
		{"long values are clipped", func(s *admission.Spec) { s.Request.Workdir = strings.Repeat("/x", 500) }, []api.Problem{
			{Field: "workdir", Have: "none", Want: strings.Repeat("/x", 60) + "..."},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := base()
			tt.change(&want)
			if diff := cmp.Diff(tt.want, admission.Differences(base(), want)); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEveryFieldCounts: a field that is added to the request or the limits is
// compared, unless somebody decides otherwise here.
func TestEveryFieldCounts(t *testing.T) {
	apart := map[string]bool{"Name": true, "Trace": true, "Image": true, "Limits": true, "Mounts": true} // by their own rules
	for _, v := range []any{api.SpawnRequest{}, api.Limits{}} {
		for f := range reflect.TypeOf(v).Fields() {
			var have, want admission.Spec
			s := reflect.ValueOf(&want.Request).Elem()
			if s.Type() != reflect.TypeOf(v) {
				s = reflect.ValueOf(&want.Limits).Elem()
			} else if apart[f.Name] {
				continue
			}
			set(s.FieldByIndex(f.Index))
			if len(admission.Differences(have, want)) != 1 || len(admission.Differences(want, have)) != 1 {
				t.Errorf("%s is not compared", f.Name)
			}
		}
	}
}

// set gives v a value that is not its zero.
func set(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Float64:
		v.SetFloat(7)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		set(v.Index(0))
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"k": "v"}))
	case reflect.Struct:
		set(v.Field(0))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		set(v.Elem())
	default:
		panic(v.Kind())
	}
}
