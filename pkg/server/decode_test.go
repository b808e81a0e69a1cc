package server_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzDecode holds that a request that is accepted means one thing only: it
// encodes, the encoding is accepted again, and gives an equal request; and
// that one which is not accepted leaves no trace.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"name":"a","limits":{"memory":"512M","cpus":1.5,"ttl":"10m"},"mounts":[{"source":"/a","target":"/b","fd":0}]}`,
		`{"command":["x"],"env":{"A":"b"},"timeout":"1s","tty":true}`, `{"name":"a","name":"b"}`, `{"Name":"x"}`, `{"labels":null}`,
		`{"limits":{"memory":1e3}}`, `{"limits":{"memory":-1}}`, `{"command":["\u0000"]}`, `{"env":{"\ud800":"x"}}`, `[{}]`, `{"timeout":1}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, v := range []any{&api.SpawnRequest{}, &api.ExecRequest{}, &api.StopRequest{}, &api.KillRequest{}} {
			err := server.Decode(body, v)
			if err != nil {
				if api.CodeOf(err) != api.CodeInvalid {
					t.Errorf("error class %s: %v", api.CodeOf(err), err)
				}
				if !reflect.ValueOf(v).Elem().IsZero() {
					t.Errorf("refused, but left %+v", v)
				}
				continue
			}
			out, err := json.Marshal(v)
			if err != nil {
				t.Fatalf("accepted %q, which does not encode: %v", body, err)
			}
			again := reflect.New(reflect.TypeOf(v).Elem()).Interface()
			if err := server.Decode(out, again); err != nil {
				t.Fatalf("accepted %q, but not its encoding %q: %v", body, out, err)
			}
			if diff := cmp.Diff(v, again, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("changed by encoding (-first +second):\n%s", diff)
			}
		}
	})
}
