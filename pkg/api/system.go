package api

import "time"

// DiskUsage is what creel keeps on disk: the caller's own, for root
// everybody's.
type DiskUsage struct {
	Rows []DiskUse `json:"rows"`
	Disk Disk      `json:"disk"`
}

// DiskUse is what one caller has of one kind.
type DiskUse struct {
	// What is "images", "layers" (writable ones; those in memory have no
	// bytes), "logs", "records" (what is remembered of a sandbox, evidence and
	// exec results included) or "volumes" (persistent homes included).
	What string `json:"what"`
	// UID is whose they are. Images of 0 are everybody's.
	UID   uint32 `json:"uid"`
	Count int    `json:"count"`
	// Bytes are what all of the row takes together: what images share counts
	// once.
	Bytes int64 `json:"bytes"`
	// ReclaimableCount and ReclaimableBytes are what a prune, with images,
	// would remove: images that nothing runs from, and what is kept of ended
	// sandboxes. No prune removes a volume.
	ReclaimableCount int   `json:"reclaimable_count"`
	ReclaimableBytes int64 `json:"reclaimable_bytes"`
}

// Disk is the file system of the daemon's state.
type Disk struct {
	Total int64 `json:"total"` // bytes
	Free  int64 `json:"free"`  // bytes that a program without privilege could write
	// Reserve is the bytes below which writers are paused; 0 is none.
	Reserve int64 `json:"reserve"`
}

// Diff is what a sandbox changed in its root since it started, and what was
// changed meanwhile in the volumes and directories that it can write.
type Diff struct {
	// Rootfs is "readonly", where nothing can change, or "ephemeral".
	Rootfs  string   `json:"rootfs"`
	Changes []Change `json:"changes"`
	// Truncated says that there is more than is listed.
	Truncated bool `json:"truncated"`
	// ByTime are the mounted volumes and directories of which is listed what
	// was made or changed since the start, by whomever. What was removed there
	// is not; the directory that it was in is.
	ByTime []string `json:"by_time,omitempty"`
	// NotCompared are the places where it could write and of which nothing is
	// listed: tmpfs, and mounts when an older creeld launched it.
	NotCompared []string `json:"not_compared"`
}

// Change is one path that is not as in the image or, in a mount, not as at the
// start. The sandbox made the name: it may hold any character, and what is not
// UTF-8 is U+FFFD.
type Change struct {
	Kind string `json:"kind"` // A added, C changed, D deleted
	Path string `json:"path"`
	// Mount is the target of the mount that it is in, empty in the root.
	Mount string `json:"mount,omitempty"`
	// Type is file, dir, symlink or other; empty of what is deleted.
	Type string `json:"type,omitempty"`
	Mode uint32 `json:"mode,omitempty"` // permission bits
	Size int64  `json:"size,omitempty"` // bytes; of a directory none
}

// PruneRequest asks to remove what is kept and not in use: the caller's own,
// for root everybody's. It is a closed schema.
type PruneRequest struct {
	// Images removes images as well: those that no sandbox runs from and that
	// neither the configuration nor a profile names.
	Images bool `json:"images,omitempty"`
	// Until keeps what ended, or was imported, less than this long ago.
	Until Duration `json:"until,omitzero"`
	// DryRun says what would be removed, and removes nothing.
	DryRun bool `json:"dry_run,omitempty"`
}

// PruneResult is what was removed.
type PruneResult struct {
	DryRun bool     `json:"dry_run,omitempty"`
	Items  []Pruned `json:"items"`
	// Bytes that were freed, or would be: the sum over the items without a
	// problem.
	Bytes int64 `json:"bytes"`
}

// Pruned is one thing that was removed.
type Pruned struct {
	What string    `json:"what"` // sandbox, image
	ID   string    `json:"id"`   // a sandbox's id, an image's digest
	Name string    `json:"name"` // a sandbox's name, an image's reference
	UID  uint32    `json:"uid"`  // whose it was
	Time time.Time `json:"time"` // when it ended, or was imported
	// Bytes are what went with it. What several images share goes with the last.
	Bytes int64 `json:"bytes"`
	// Problem is why it is still there.
	Problem string `json:"problem,omitempty"`
}
