package doctor

import "github.com/creel-sandbox/creel/pkg/api"

// What the tests of parsers need from inside.
var (
	CompareVersions = compareVersions
	CorePattern     = corePattern
	BoundingOf      = boundingOf
	Swap            = swap
	Clock           = clock
	Disk            = disk
	MountsBeneath   = mountsBeneath
	Touches         = touches
	VersionCheck    = version
)

// Groups judges the groups of a made-up user.
func Groups(groups ...string) []api.Check { return groupDoors(account{name: "u", groups: groups}) }

// Sockets judges socket paths for a user with one group.
func Sockets(uid, gid uint32, paths ...string) []api.Check {
	return socketDoors(account{name: "u", uid: uid, gid: gid, gids: []uint32{gid}}, paths)
}
