package integration_test

import (
	"errors"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
)

// asAPI is err as the daemon sent it.
func asAPI(t *testing.T, err error) *api.Error {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) {
		t.Fatalf("not an answer of the daemon: %v", err)
	}
	return e
}
