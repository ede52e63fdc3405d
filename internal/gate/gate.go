// Package gate defines the values in the context of a request that packages
// alicaptcha and alicaptchatest share.
package gate

import "sync/atomic"

// OutcomeKey is the context key of the value that FromContext, Ask and Require
// read.
type OutcomeKey struct{}

// MarkKey is the context key of a *Mark.
type MarkKey struct{}

// Mark records what the middleware did with a request, so that a test need not
// infer it from the response.
type Mark struct {
	Rejected atomic.Bool // Ask or Require returned false
	Passed   atomic.Bool // the next handler was called, or Ask or Require returned true

	// Refusing, if not nil, is called before Ask or Require returns false for
	// the first time.
	Refusing func()

	// Rejecting, if not nil, is called before a rejection is written. It gets
	// the status, or 0 if an OnReject chooses it. The function that it returns
	// is called when the rejection has been written.
	Rejecting func(status int) (written func())
}
