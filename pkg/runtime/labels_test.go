package runtime_test

import (
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/runtime"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// TestImageLabelsAreNotCopied: the labels of an image are whoever made it
// speaking, and one of containerd's runs a host command (CVE-2026-53488).
// The image of these tests has that one.
func TestImageLabelsAreNotCopied(t *testing.T) {
	e := start(t)
	importBusybox(t, e)
	sb := runtime.CreateOptions{
		ID: "labels", Image: "busybox", Runtime: "crun", HostUID: hostUID,
		Spec: spec("labels", "/bin/true"), Labels: map[string]string{runtime.LabelPrefix + "test": "own"},
	}
	if _, err := e.Client().Create(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
	c, err := containerd.New(e.cfg.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := namespaces.WithNamespace(t.Context(), runtime.Namespace)
	got, err := c.ContainerService().Get(ctx, "labels")
	if err != nil {
		t.Fatal(err)
	}
	if got.Labels[runtime.LabelPrefix+"test"] != "own" {
		t.Errorf("labels %v lack the one that was asked for", got.Labels)
	}
	for k, v := range got.Labels {
		if !strings.HasPrefix(k, runtime.LabelPrefix) {
			t.Errorf("label %s=%s is not creel's", k, v)
		}
	}
	if len(got.Extensions) > 0 {
		t.Errorf("extensions %v", got.Extensions)
	}
	images, err := c.ImageService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if v, ok := img.Labels["containerd.io/restart.loguri"]; ok {
			t.Errorf("image %s has the label, %q", img.Name, v)
		}
	}
	if err := e.Client().DeleteContainer(t.Context(), "labels"); err != nil {
		t.Error(err)
	}
}
