package server

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
)

// answerOne sends what a Service method returned.
func answerOne(w http.ResponseWriter) func(v any, err error) error {
	return func(v any, err error) error {
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, v)
		return nil
	}
}

// answerList sends a list; an empty one is [], never null.
func answerList(w http.ResponseWriter) func(v any, err error) error {
	return func(v any, err error) error {
		if err != nil {
			return err
		}
		if rv := reflect.ValueOf(v); rv.Kind() == reflect.Slice && rv.IsNil() {
			v = []struct{}{}
		}
		writeJSON(w, http.StatusOK, v)
		return nil
	}
}

// A page of a list: at most limit items (all when 0) whose keys are beyond
// after.
type page struct {
	limit int
	after string
}

const (
	maxPage   = 1000
	maxCursor = 1024
	// nextHeader has, when there is more, what to give as after.
	nextHeader = "Creel-Next"
)

// cut sorts a list by key and takes a page of it. The cursor is the key of the
// last item, so it holds its place whatever is added and removed meanwhile.
func cut[T any](w http.ResponseWriter, p page, list []T, key func(T) string) []T {
	slices.SortStableFunc(list, func(a, b T) int { return strings.Compare(key(a), key(b)) })
	keys := make([]string, len(list))
	for i, v := range list {
		keys[i] = key(v)
	}
	for i, same := 1, 0; i < len(keys); i++ {
		if key(list[i]) != key(list[i-1]) {
			same = 0
			continue
		}
		same++ // those that nobody can tell apart are counted
		keys[i] = fmt.Sprintf("%s#%06d", key(list[i]), same)
	}
	begin := 0
	if p.after != "" {
		for begin < len(keys) && keys[begin] <= p.after {
			begin++
		}
	}
	end := len(list)
	if p.limit > 0 && end-begin > p.limit {
		end = begin + p.limit
		w.Header().Set(nextHeader, keys[end-1])
	}
	return list[begin:end]
}

// answerNone says that it is done: 204 without a body.
func answerNone(w http.ResponseWriter, err error) error {
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// stopped is the reason that ctx, made by untilStop, has ended, else err.
func stopped(ctx context.Context, err error) error {
	if context.Cause(ctx) == errStopping { //nolint:errorlint // our own value, given to cancel as it is
		return errStopping
	}
	return err
}
