package runtime

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// disabled are containerd's plugins that the private containerd does without.
var disabled = []string{
	// What would act on an image's or a caller's metadata.
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
	"io.containerd.grpc.v1.cri",
	"io.containerd.podsandbox.controller.v1.podsandbox",
	"io.containerd.internal.v1.restart",
	"io.containerd.monitor.container.v1.restart", // CVE-2026-53488: runs a host command that a label names
	"io.containerd.nri.v1.nri",
	"io.containerd.internal.v1.opt", // installs binaries out of images
	"io.containerd.internal.v1.cri",
	"io.containerd.image-verifier.v1.bindir",
	"io.containerd.transfer.v1.local", // pulls
	"io.containerd.grpc.v1.transfer",
	"io.containerd.ttrpc.v1.transfer",
	"io.containerd.streaming.v1.manager",
	"io.containerd.grpc.v1.streaming",
	"io.containerd.ttrpc.v1.streaming",
	"io.containerd.sandbox.controller.v1.shim",
	"io.containerd.grpc.v1.sandboxes",
	"io.containerd.grpc.v1.sandbox-controllers",

	// What nobody reads.
	"io.containerd.tracing.processor.v1.otlp",
	"io.containerd.internal.v1.tracing",
	"io.containerd.monitor.task.v1.cgroups",
	"io.containerd.metrics.v1.grpc-prometheus",
	"io.containerd.server.v1.metrics",
	"io.containerd.server.v1.debug",
	"io.containerd.server.v1.grpc-tcp",

	// Snapshotters and differs other than overlayfs and walking.
	"io.containerd.snapshotter.v1.blockfile",
	"io.containerd.snapshotter.v1.btrfs",
	"io.containerd.snapshotter.v1.devmapper",
	"io.containerd.snapshotter.v1.erofs",
	"io.containerd.snapshotter.v1.native",
	"io.containerd.snapshotter.v1.zfs",
	"io.containerd.differ.v1.erofs",
	"io.containerd.mount-handler.v1.erofs",
}

// required are the plugins without which containerd must not come up.
var required = []string{
	"io.containerd.snapshotter.v1.overlayfs",
	"io.containerd.metadata.v1.bolt",
	"io.containerd.runtime.v2.task",
	"io.containerd.shim.v1.manager",
}

// maxSocketDir is the longest directory in which containerd accepts shim
// sockets: sun_path's 107 bytes less "/" and a SHA-256 in hex
// (core/runtime/v2/socket_linux.go).
const maxSocketDir = 42

// containerdConfig is the private containerd's configuration file.
func containerdConfig(c Config) (string, error) {
	sockets := filepath.Join(c.State, "s")
	if len(sockets) > maxSocketDir {
		return "", fmt.Errorf("state directory %s is too long for shim sockets; at most %d bytes", c.State, maxSocketDir-2)
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by creeld at every start; changes are lost.")
	line("version = 3")
	line("root = %s", strconv.Quote(filepath.Join(c.Root, "containerd")))
	line("state = %s", strconv.Quote(filepath.Join(c.State, "containerd")))
	line("temp = %s", strconv.Quote(filepath.Join(c.State, "tmp")))
	line("disabled_plugins = %s", list(disabled))
	line("required_plugins = %s", list(required))
	line("[grpc]")
	line("address = %s", strconv.Quote(c.Address()))
	line("[debug]")
	line("level = \"warn\"")
	line("[plugins.\"io.containerd.shim.v1.manager\"]")
	// Not the default, /run/containerd/s, which every containerd shares.
	line("socket_dir = %s", strconv.Quote(sockets))
	line("env = %s", list(c.ShimEnv))
	line("[plugins.\"io.containerd.metadata.v1.bolt\"]")
	line("content_sharing_policy = \"shared\"")
	line("no_sync = %t", c.NoSync)
	line("[plugins.\"io.containerd.snapshotter.v1.overlayfs\"]")
	// Never copy and chown an image where it cannot be id-mapped.
	line("slow_chown = false")
	line("sync_remove = false")
	line("[plugins.\"io.containerd.service.v1.diff-service\"]")
	line("default = [\"walking\"]")
	return b.String(), nil
}

// list is a TOML array of strings.
func list(s []string) string {
	q := make([]string, len(s))
	for i, v := range s {
		q[i] = strconv.Quote(v)
	}
	return "[" + strings.Join(q, ", ") + "]"
}
