package store

import (
	"encoding/json"
	"fmt"

	"github.com/creel-sandbox/creel/pkg/api"
)

// PutAgent writes an agent. It goes into the commit of what it did.
func (t *Tx) PutAgent(a api.Agent) error {
	return putJSON(t.tx.Bucket(bucketAgents), nameKey(a.Caller.UID, a.Name), a)
}

// DeleteAgent forgets one. It succeeds when there is none.
func (t *Tx) DeleteAgent(uid uint32, name string) error {
	return t.tx.Bucket(bucketAgents).Delete(nameKey(uid, name))
}

// PutAgent is [Tx.PutAgent] in a commit of its own.
func (s *Store) PutAgent(a api.Agent) error {
	return s.Update(func(t *Tx) error { return t.PutAgent(a) })
}

// Agents are all of them, by uid and name.
func (s *Store) Agents() (all []api.Agent, err error) {
	err = s.View(func(t *Tx) error {
		return t.tx.Bucket(bucketAgents).ForEach(func(k, v []byte) error {
			var a api.Agent
			if err := json.Unmarshal(v, &a); err != nil {
				return fmt.Errorf("record of agent %q: %w", k, err)
			}
			all = append(all, a)
			return nil
		})
	})
	return all, err
}
