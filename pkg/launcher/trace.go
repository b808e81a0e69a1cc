package launcher

import (
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// trace says where a launch's time went.
type trace struct {
	start time.Time
	mono  int64 // start on CLOCK_MONOTONIC, to place creel-init's stamp
	list  []api.Step
}

func newTrace() trace { return trace{start: time.Now(), mono: monotonic()} }

func (t *trace) end(name string, began time.Time) {
	t.list = append(t.list, api.Step{Name: name, Start: ms(began.Sub(t.start)), Took: ms(time.Since(began))})
}

// stamp adds a moment that another process took on CLOCK_MONOTONIC.
func (t *trace) stamp(name string, mono int64) {
	t.list = append(t.list, api.Step{Name: name, Start: ms(time.Duration(mono - t.mono)), At: mono})
}

func (t *trace) steps() []api.Step { return t.list }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
