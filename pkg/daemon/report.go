package daemon

import (
	"context"
	"time"

	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// report records what agents were given and do not use, now and then each time
// that as much has passed as the configuration says, until ctx ends.
func (d *daemon) report(ctx context.Context) {
	every := d.cfg.Audit.Report.D()
	if every == 0 {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		all := d.launcher.ListAgents(peer.Cred{UID: 0}) // everybody's
		d.records.Report(len(all), agents.Report(all, time.Now(), agents.UnusedFor))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
