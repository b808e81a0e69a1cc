package runtime_test

import (
	"bytes"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"
)

func importBusybox(t testing.TB, e *env) {
	t.Helper()
	cd, err := containerd.New(e.cfg.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer cd.Close()
	ctx := namespaces.WithNamespace(t.Context(), "creel")
	imgs, err := cd.Import(ctx, bytes.NewReader(archive(t, "docker.io/library/busybox:latest", busyboxLayer(t))))
	if err != nil {
		t.Fatal(err)
	}
	i := containerd.NewImage(cd, imgs[0])
	if err := i.Unpack(ctx, "overlayfs"); err != nil {
		t.Fatal(err)
	}
	diff, err := i.RootFS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	im := imgs[0]
	im.Labels = map[string]string{"creel/chain": identity.ChainID(diff).String()}
	if _, err := cd.ImageService().Update(ctx, im, "labels"); err != nil {
		t.Fatal(err)
	}
}
