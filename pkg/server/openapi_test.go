package server_test

import (
	"encoding"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// document is what the tests read of the OpenAPI document.
type document struct {
	OpenAPI    string                          `yaml:"openapi"`
	Paths      map[string]map[string]operation `yaml:"paths"`
	Components struct {
		Schemas   map[string]schema `yaml:"schemas"`
		Responses map[string]any    `yaml:"responses"`
	} `yaml:"components"`
}

type operation struct {
	OperationID string `yaml:"operationId"`
	Summary     string `yaml:"summary"`
	Parameters  []struct {
		Name     string `yaml:"name"`
		In       string `yaml:"in"`
		Required bool   `yaml:"required"`
	} `yaml:"parameters"`
	Responses map[string]any `yaml:"responses"`
}

type schema struct {
	Ref                  string            `yaml:"$ref"`
	Type                 string            `yaml:"type"`
	Format               string            `yaml:"format"`
	Required             []string          `yaml:"required"`
	Properties           map[string]schema `yaml:"properties"`
	Items                *schema           `yaml:"items"`
	AdditionalProperties any               `yaml:"additionalProperties"`
	Enum                 []string          `yaml:"enum"`
}

func readDocument(t *testing.T) document {
	t.Helper()
	var d document
	if err := yaml.Unmarshal([]byte(api.OpenAPI()), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOpenAPIRoutes(t *testing.T) {
	d := readDocument(t)
	if d.OpenAPI != "3.1.0" {
		t.Errorf("openapi %q", d.OpenAPI)
	}
	var documented, routed, keyed, once []string
	ids := map[string]string{}
	for path, ops := range d.Paths {
		for method, op := range ops {
			name := strings.ToUpper(method) + " " + path
			documented = append(documented, name)
			if op.Summary == "" || op.OperationID == "" || ids[op.OperationID] != "" {
				t.Errorf("%s: summary %q, operationId %q (also of %q)", name, op.Summary, op.OperationID, ids[op.OperationID])
			}
			ids[op.OperationID] = name
			if _, ok := op.Responses["default"]; !ok {
				t.Errorf("%s does not describe errors", name)
			}
			var inPath []string
			for _, p := range op.Parameters {
				if p.Name == "Idempotency-Key" {
					keyed = append(keyed, name)
				}
				if p.In == "path" {
					inPath = append(inPath, "{"+p.Name+"}")
					if !p.Required {
						t.Errorf("%s: path parameter %s is not required", name, p.Name)
					}
				}
			}
			for part := range strings.SplitSeq(path, "/") {
				if strings.HasPrefix(part, "{") && !slices.Contains(inPath, part) {
					t.Errorf("%s: parameter %s is not described", name, part)
				}
			}
		}
	}
	for _, r := range server.Routes() {
		name := r.Method + " " + strings.ReplaceAll(r.Pattern, "...}", "}")
		routed = append(routed, name)
		if r.Once {
			once = append(once, name)
		}
	}
	slices.Sort(keyed)
	slices.Sort(once)
	if diff := cmp.Diff(once, keyed); diff != "" {
		t.Errorf("routes that take a key (-served +documented):\n%s", diff)
	}
	slices.Sort(documented)
	slices.Sort(routed)
	if diff := cmp.Diff(routed, documented); diff != "" {
		t.Errorf("routes (-served +documented):\n%s", diff)
	}
}

// wire are the types of package api that travel.
var wire = []reflect.Type{
	reflect.TypeFor[api.SpawnRequest](), reflect.TypeFor[api.SpawnResult](), reflect.TypeFor[api.Mount](), reflect.TypeFor[api.Limits](),
	reflect.TypeFor[api.Sandbox](), reflect.TypeFor[api.Caller](), reflect.TypeFor[api.Step](), reflect.TypeFor[api.Evidence](), reflect.TypeFor[api.Envelope](), reflect.TypeFor[api.Signature](), reflect.TypeFor[api.PublicKey](), reflect.TypeFor[api.TrustBundle](), reflect.TypeFor[api.Approval](), reflect.TypeFor[api.ApprovalDecision](), reflect.TypeFor[api.ForgetRequest](), reflect.TypeFor[api.AgentRule](), reflect.TypeFor[api.AuditHead](),
	reflect.TypeFor[api.Control](), reflect.TypeFor[api.ExecRequest](), reflect.TypeFor[api.ExecResult](), reflect.TypeFor[api.ExecOutput](), reflect.TypeFor[api.PreparedExec](), reflect.TypeFor[api.WaitResult](),
	reflect.TypeFor[api.StopRequest](), reflect.TypeFor[api.KillRequest](), reflect.TypeFor[api.Stats](), reflect.TypeFor[api.FileInfo](),
	reflect.TypeFor[api.Image](), reflect.TypeFor[api.ImageLayer](), reflect.TypeFor[api.TagRequest](), reflect.TypeFor[api.CommitRequest](), reflect.TypeFor[api.Event](), reflect.TypeFor[api.Version](), reflect.TypeFor[api.Profile](),
	reflect.TypeFor[api.VolumeRequest](), reflect.TypeFor[api.Volume](), reflect.TypeFor[api.VolumeUse](), reflect.TypeFor[api.Share](), reflect.TypeFor[api.EgressParty](),
	reflect.TypeFor[api.EgressRequest](), reflect.TypeFor[api.SecretPlace](), reflect.TypeFor[api.SecretRequest](), reflect.TypeFor[api.Secret](),
	reflect.TypeFor[api.Exec](), reflect.TypeFor[api.Top](), reflect.TypeFor[api.Process](), reflect.TypeFor[api.Check](), reflect.TypeFor[api.Doctor](), reflect.TypeFor[api.Error](), reflect.TypeFor[api.Problem](), reflect.TypeFor[api.Rule](), reflect.TypeFor[api.Decision](), reflect.TypeFor[api.Agent](), reflect.TypeFor[api.Grant](), reflect.TypeFor[api.Revocation](), reflect.TypeFor[api.Expiry](), reflect.TypeFor[api.ExpireRequest](),
	reflect.TypeFor[api.Diff](), reflect.TypeFor[api.Change](), reflect.TypeFor[api.DiskUsage](), reflect.TypeFor[api.DiskUse](), reflect.TypeFor[api.Disk](),
	reflect.TypeFor[api.PruneRequest](), reflect.TypeFor[api.PruneResult](), reflect.TypeFor[api.Pruned](),
}

// requests are closed schemas, with what a client must send.
var requests = map[string][]string{
	"SpawnRequest": nil, "ExecRequest": {"command"}, "StopRequest": nil, "KillRequest": nil, "TagRequest": {"source"}, "CommitRequest": {"image"},
	"Mount": {"target"}, "Limits": nil, "PruneRequest": nil, "VolumeRequest": {"name"}, "EgressRequest": {"allow"}, "SecretPlace": {"kind"}, "SecretRequest": {"value", "rule"},
}

func TestOpenAPISchemas(t *testing.T) {
	d := readDocument(t)
	seen := map[string]bool{"Size": true, "Duration": true, "State": true, "Reason": true, "Code": true}
	for _, typ := range wire {
		seen[typ.Name()] = true
		s, ok := d.Components.Schemas[typ.Name()]
		if !ok {
			t.Errorf("%s is not documented", typ.Name())
			continue
		}
		checkObject(t, d, typ, s)
	}
	for name := range d.Components.Schemas {
		if !seen[name] {
			t.Errorf("schema %s is of no type", name)
		}
	}
	states := []string{"creating", "running", "paused", "stopping", "stopped", "removing", "unknown"}
	if diff := cmp.Diff(states, d.Components.Schemas["State"].Enum); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	for _, code := range d.Components.Schemas["Code"].Enum {
		if server.Status(api.Code(code)) == 500 && code != "internal" {
			t.Errorf("code %s has no status", code)
		}
	}
	if n := len(d.Components.Schemas["Code"].Enum); n != 10 {
		t.Errorf("%d codes documented, want 10", n)
	}
}

func checkObject(t *testing.T, d document, typ reflect.Type, s schema) {
	t.Helper()
	var fields, always []string
	for _, f := range reflect.VisibleFields(typ) { // those of embedded structs too
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		fields = append(fields, name)
		if !strings.Contains(opts, "omit") {
			always = append(always, name)
		}
		p, ok := s.Properties[name]
		if !ok {
			t.Errorf("%s.%s is not documented", typ.Name(), name)
			continue
		}
		if got, want := shape(p), goShape(f.Type); got != want {
			t.Errorf("%s.%s is documented as %s, is %s", typ.Name(), name, got, want)
		}
		if ref := strings.TrimPrefix(p.Ref, "#/components/schemas/"); p.Ref != "" {
			if _, ok := d.Components.Schemas[ref]; !ok {
				t.Errorf("%s.%s refers to %s, which is not there", typ.Name(), name, p.Ref)
			}
		}
	}
	for name := range s.Properties {
		if !slices.Contains(fields, name) {
			t.Errorf("%s has no field %s", typ.Name(), name)
		}
	}
	if want, ok := requests[typ.Name()]; ok {
		always = want
		if s.AdditionalProperties != false {
			t.Errorf("%s is not closed", typ.Name())
		}
	}
	slices.Sort(always)
	got := slices.Sorted(slices.Values(s.Required))
	if !slices.Equal(always, got) {
		t.Errorf("%s requires %v, want %v", typ.Name(), got, always)
	}
}

// shape is a schema in one word, to compare with goShape.
func shape(s schema) string {
	switch {
	case s.Ref != "":
		return s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]
	case s.Type == "array" && s.Items != nil:
		return "[]" + shape(*s.Items)
	case s.Type == "object":
		m, _ := s.AdditionalProperties.(map[string]any)
		typ, _ := m["type"].(string)
		return "map of " + typ
	case s.Format == "date-time":
		return "time"
	}
	return s.Type
}

func goShape(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[time.Time]() {
		return "time"
	}
	_, isText := reflect.TypeAssert[encoding.TextUnmarshaler](reflect.New(t))
	if isText || t.Name() == "State" || t.Name() == "Reason" || t.Name() == "Code" || t.Kind() == reflect.Struct {
		return t.Name()
	}
	switch t.Kind() {
	case reflect.Slice:
		return "[]" + goShape(t.Elem())
	case reflect.Map:
		return "map of " + goShape(t.Elem())
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Float64:
		return "number"
	default:
		return "integer"
	}
}
