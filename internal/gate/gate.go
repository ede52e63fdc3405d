// Package gate holds what alicaptcha and alicaptchatest share through a
// request's context.
package gate

import "sync/atomic"

// OutcomeKey is the context's key of what FromContext, Ask and Require read.
type OutcomeKey struct{}

// MarkKey is the context's key of a *Mark.
type MarkKey struct{}

// A Mark is set by the middleware, so that a test sees what it did whatever the
// response looks like.
type Mark struct {
	Rejected atomic.Bool // Ask or Require returned false
	Passed   atomic.Bool // the next handler was called, or Ask or Require returned true

	// Refusing, if not nil, is called when Ask or Require is about to return
	// false for the first time.
	Refusing func()

	// Rejecting, if not nil, is called before the middleware has a rejection
	// of that status written, and what it returns afterwards. The status is 0 if
	// an OnReject chooses it.
	Rejecting func(status int) (written func())
}
