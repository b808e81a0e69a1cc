package admission

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Spec is a request with nothing left open: its defaults are filled in, its
// image is a digest, and its directories are what the kernel knows them by.
type Spec struct {
	Request api.SpawnRequest
	Limits  api.Limits
	Digest  string
	Dirs    map[string]Dir // by the target of the mount
}

// Dir is a directory's device and inode.
type Dir struct{ Dev, Inode uint64 }

// Differences lists what two specs do not have in common, a Problem with Have
// for each. Which names and paths were used to say the same is no difference:
// the sandbox's name, a reference to the image, the source of a mount. Neither
// is whether the launch was to be traced.
func Differences(have, want Spec) []api.Problem {
	var d differences
	d.fields("", have.Request, want.Request, map[string]bool{
		"name": true, "trace": true, "image": true, "env": true, "labels": true, "limits": true, "mounts": true, // apart, below
	})
	if have.Digest != want.Digest {
		d.add("image", have.Request.Image+" "+have.Digest, want.Request.Image+" "+want.Digest)
	}
	for _, k := range keys(have.Request.Env, want.Request.Env) {
		h, inHave := have.Request.Env[k]
		w, inWant := want.Request.Env[k]
		switch { // values may be secrets
		case inHave && !inWant:
			d.add("env."+k, "set", "not set")
		case !inHave && inWant:
			d.add("env."+k, "not set", "set")
		case h != w:
			d.add("env."+k, "another value", "the value given")
		}
	}
	for _, k := range keys(have.Request.Labels, want.Request.Labels) {
		d.compare("labels."+k, lookUp(have.Request.Labels, k), lookUp(want.Request.Labels, k))
	}
	d.fields("limits.", have.Limits, want.Limits, nil)
	d.mounts(have, want)
	return d
}

type differences []api.Problem

// maxDifferences is where listing stops: nobody reads more.
const maxDifferences = 64

func (d *differences) add(field, have, want string) {
	if len(*d) < maxDifferences {
		*d = append(*d, api.Problem{Field: clip(field), Have: clip(have), Want: clip(want)})
	}
}

// fields compares all fields of two structs but some, so that one that is
// added later is not forgotten.
func (d *differences) fields(prefix string, have, want any, but map[string]bool) {
	h, w := reflect.ValueOf(have), reflect.ValueOf(want)
	for f := range h.Type().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !but[name] {
			d.compare(prefix+name, h.FieldByIndex(f.Index).Interface(), w.FieldByIndex(f.Index).Interface())
		}
	}
}

func (d *differences) compare(field string, have, want any) {
	if h, w := text(have), text(want); h != w {
		d.add(field, h, w)
	}
}

// text is a value as JSON has it, and "none" for one that JSON leaves out.
func text(v any) string {
	rv := reflect.ValueOf(v)
	switch kind := rv.Kind(); {
	case !rv.IsValid(), (kind == reflect.Slice || kind == reflect.Map || kind == reflect.String) && rv.Len() == 0:
		return "none"
	case kind == reflect.String:
		return rv.String()
	}
	b, err := json.Marshal(v)
	if err != nil { // a value of package api always encodes, but for a NaN, which differs from all
		return err.Error()
	}
	return strings.Trim(string(b), `"`)
}

// mounts compares by target: mounts are not in one another, so their order
// means nothing.
func (d *differences) mounts(have, want Spec) {
	h, w := byTarget(have.Request.Mounts), byTarget(want.Request.Mounts)
	for _, target := range keys(h, w) {
		field := "mounts." + target
		hm, inHave := h[target]
		wm, inWant := w[target]
		switch {
		case !inWant:
			d.add(field, "mounted", "not mounted")
			continue
		case !inHave:
			d.add(field, "not mounted", "mounted")
			continue
		}
		if have.Dirs[target] != want.Dirs[target] {
			d.add(field+".source", fmt.Sprintf("%s (%s)", hm.Source, have.Dirs[target]), fmt.Sprintf("%s (%s)", wm.Source, want.Dirs[target]))
		}
		hm.FD, hm.Source, wm.FD, wm.Source = nil, "", nil, ""
		d.fields(field+".", hm, wm, nil)
	}
}

// String is how the kernel names a directory.
func (d Dir) String() string { return fmt.Sprintf("device %#x, inode %d", d.Dev, d.Inode) }

func byTarget(mounts []api.Mount) map[string]api.Mount {
	m := map[string]api.Mount{}
	for _, mount := range mounts {
		m[mount.Target] = mount
	}
	return m
}

// lookUp is a label in quotes, and nothing for none: an empty one is there.
func lookUp(labels map[string]string, k string) string {
	if v, ok := labels[k]; ok {
		return fmt.Sprintf("%q", v)
	}
	return ""
}

// keys are those of either map, in order.
func keys[V any](a, b map[string]V) []string {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]V{}
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}
