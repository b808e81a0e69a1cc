package server

import (
	"context"
	"net/http"
	"reflect"
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
