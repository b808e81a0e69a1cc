package store

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/creel-sandbox/creel/pkg/api"
)

// AppendEvents adds events to the ring and sets their Seq, which only ever
// grows, across restarts too. The oldest beyond [MaxEvents] go.
func (t *Tx) AppendEvents(events []api.Event) error {
	b := t.tx.Bucket(bucketEvents)
	for i := range events {
		n, err := b.NextSequence()
		if err != nil {
			return err
		}
		events[i].Seq = n
		if err := putJSON(b, number(n), events[i]); err != nil {
			return err
		}
	}
	last := b.Sequence()
	if last <= MaxEvents {
		return nil
	}
	c := b.Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) <= last-MaxEvents; k, _ = c.First() {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// Events are at most limit events with a Seq above after, in order. The first
// one's Seq is above after+1 if the ring has lost some in between.
func (t *Tx) Events(after uint64, limit int) ([]api.Event, error) {
	var out []api.Event
	if after == ^uint64(0) {
		return nil, nil
	}
	c := t.tx.Bucket(bucketEvents).Cursor()
	for k, v := c.Seek(number(after + 1)); k != nil && len(out) < limit; k, v = c.Next() {
		var e api.Event
		if err := json.Unmarshal(v, &e); err != nil {
			return nil, fmt.Errorf("read event %x: %w", k, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// LastEvent is the Seq of the newest event, 0 before the first.
func (t *Tx) LastEvent() uint64 { return t.tx.Bucket(bucketEvents).Sequence() }
