package launcher

import (
	"slices"

	"github.com/creel-sandbox/creel/pkg/api"
)

// moves is the life of a sandbox. A move that is not here is refused.
//
//	creating ─> running <─> paused
//	    │          │           │
//	    │          └─> stopping <┘
//	    │                 │
//	    │              stopped ─> removing ─> (gone)
//	    └─> unknown <──── any whose undo or clean-up failed; reconcile retries
var moves = map[api.State][]api.State{
	api.StateCreating: {api.StateRunning, api.StateUnknown},
	api.StateRunning:  {api.StatePaused, api.StateStopping},
	api.StatePaused:   {api.StateRunning, api.StateStopping},
	api.StateStopping: {api.StateStopped},
	api.StateStopped:  {api.StateRemoving},
	api.StateRemoving: {},
	api.StateUnknown:  {api.StateRemoving},
}

// checkMove is nil if a sandbox may go from one state to the other.
func checkMove(from, to api.State) error {
	if slices.Contains(moves[from], to) {
		return nil
	}
	return api.Errorf(api.CodeConflict, "the sandbox is %s and cannot become %s", from, to)
}

// ended says whether nothing of the sandbox runs any more.
func ended(s api.State) bool {
	return s == api.StateStopped || s == api.StateRemoving || s == api.StateUnknown
}
