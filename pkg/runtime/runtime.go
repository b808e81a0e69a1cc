// Package runtime launches sandboxes through containerd. It is the only
// importer of containerd's client.
//
// [Start] supervises a private containerd (own root, state and socket, no
// CRI, no restart monitor, nothing that acts on an image's metadata);
// [Connect] uses one that is there. Both give a [Client], whose calls each
// make one object or remove it. Removing what is not there is success, so
// that an undo and a clean-up after a crash are the same calls.
//
// A sandbox's snapshot, container and task all have the sandbox's id as their
// name. An OCI runtime, crun or runc, is run by containerd's runc shim.
//
// The calls go to containerd's services directly rather than by way of the
// client's Container and Task types: those read the container back several
// times per launch.
package runtime

import (
	"context"
	"errors"
	"fmt"

	"github.com/creel-sandbox/creel/pkg/api"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"
)

const (
	// Namespace is containerd's name space for everything of ours.
	Namespace = "creel"

	// LabelPrefix begins every label that this package writes on a
	// container. Labels of images are never copied: one of them made a host
	// command run as root (CVE-2026-53488).
	LabelPrefix = "creel/"

	// snapshotter is the only one used: its lower layers can be id-mapped.
	snapshotter = "overlayfs"

	// runcShim is the runtime plugin that drives crun and runc.
	runcShim = "io.containerd.runc.v2"

	// RangeSize is the number of ids each sandbox has.
	RangeSize = 65536
)

// ErrNoIDMap means that containerd's overlayfs cannot id-map layers on this
// host. The alternative, a copy of the image for every sandbox, is refused.
var ErrNoIDMap = api.Errorf(api.CodeUnsupportedHost,
	"containerd's overlayfs cannot id-map image layers here").
	WithHint("use Linux 5.19 or later and a file system that supports id-mapped mounts (ext4, xfs, btrfs, tmpfs) for the state directory")

// wrap gives an error of containerd's a class of ours and says what failed.
func wrap(err error, what string) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*api.Error](err); ok {
		return fmt.Errorf("%s: %w", what, err)
	}
	err = native(err)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", what, err)
	case errdefs.IsUnavailable(err):
		return api.Errorf(api.CodeUnavailable, "%s: containerd does not answer: %w", what, err).
			WithHint("it is restarted by creeld; try again, or see containerd.log in the state directory")
	case errdefs.IsNotFound(err):
		return api.Errorf(api.CodeNotFound, "%s: %w", what, err)
	case errdefs.IsAlreadyExists(err), errdefs.IsFailedPrecondition(err):
		return api.Errorf(api.CodeConflict, "%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// gone turns "not found" into success, for removals.
func gone(err error) error {
	if errdefs.IsNotFound(native(err)) {
		return nil
	}
	return err
}

// native gives an error its class: services answer with gRPC's, the client's
// stores have translated it already.
func native(err error) error {
	if _, ok := status.FromError(err); ok {
		return errgrpc.ToNative(err)
	}
	return err
}

// trimV removes the "v" of a version's name.
func trimV(s string) string {
	if len(s) > 1 && s[0] == 'v' {
		return s[1:]
	}
	return s
}
