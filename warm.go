package alicaptcha

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	// warmEvery is the least time from one request by Warm to the next. It is less than the
	// 20 seconds for which the default Transport keeps idle connections, so that a page that is
	// viewed all the time always finds one.
	warmEvery = 15 * time.Second

	// After a call, a connection is kept for so long that Warm has nothing to do for freshFor:
	// a person who needs 15 seconds still finds it.
	freshFor = 5 * time.Second
)

// Warm opens a connection to the service, or uses one that is kept, so that the next call of
// Verify finds one. Opening it takes two or three round trips to the service, which may be on
// another continent, before the one of the call. Warm is meant for the handler that serves the
// page with the widget, because a person takes some seconds to solve it. That handler should
// not wait for it:
//
//	go client.Warm(context.WithoutCancel(r.Context()))
//
// Warm sends one unsigned GET request, which has neither a param nor a key: nothing is
// verified or billed. However often it is called, it makes one request at a time and one in
// 15 seconds. At other times, and if a call has used a connection within the last 5 seconds, it
// returns nil at once. The default Transport keeps the connection for 20 seconds. The
// connection serves one call at a time: of two logins at once, one waits for the other's
// connection or for one of its own.
//
// Warm returns when the service has answered, with any status, or when ctx is done, or after 5
// seconds. If ctx ends earlier than the request, the request continues within the 5 seconds, so
// that a visitor who leaves does not waste it. Every error is an [*Error]. It needs no handling:
// Verify then opens a connection itself, and no [Breaker] counts the error.
func (c *Client) Warm(ctx context.Context) error {
	switch {
	case c == nil || c.keys == nil:
		return &Error{Code: Misconfigured, Err: errNoClient}
	case ctx.Err() != nil:
		return callError(ctx, ctx.Err())
	case !c.connection.calls.warmth.begin():
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		var err error
		defer func() {
			// In a goroutine of its own, a panic would end the program.
			if v := recover(); v != nil {
				err = &Error{Code: ServiceUnavailable, Err: safeError{text: fmt.Sprintf("the Transport panicked with a %T", v)}}
			}
			c.connection.calls.warmth.end()
			ended <- err
		}()
		err = c.connection.warm(context.WithoutCancel(ctx), c.endpoint)
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return callError(ctx, ctx.Err())
	}
}

// notKept returns the error for an answer after which there is no connection to be used.
func notKept(status int) error {
	return &Error{Code: ServiceUnavailable, Status: status, Err: safeError{text: "the connection is not kept"}}
}

// warm makes the request of Warm.
func (c connection) warm(ctx context.Context, endpoint string) error {
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return callError(ctx, err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := c.transport.RoundTrip(req)
	switch {
	case err != nil:
		return callError(ctx, err)
	case resp == nil || resp.Body == nil:
		return notKept(0)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 && resp.StatusCode <= 499 {
		// As after any other refusal, the gateway may close the connection without notice. The
		// call that then fails on it must not count as an outage, which page views could feign.
		c.calls.refused.Store(time.Now().UnixNano())
	}
	if resp.Close || resp.StatusCode == http.StatusSwitchingProtocols {
		return notKept(resp.StatusCode)
	}
	// The connection is kept only if the answer has been read to its end.
	n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return callError(ctx, err)
	case n > maxAnswerBytes:
		return notKept(resp.StatusCode)
	}
	return nil
}

// warmth holds when a connection was used last.
type warmth struct {
	mu     sync.Mutex
	warmed time.Time // when the last request of Warm began
	busy   bool      // it is under way
	called time.Time // when a call last left a connection to be kept
}

// begin reports whether Warm should make a request now. If so, end must be called.
func (w *warmth) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.busy || now.Sub(w.warmed) < warmEvery || now.Sub(w.called) < freshFor {
		return false
	}
	w.busy, w.warmed = true, now
	return true
}

func (w *warmth) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy = false
}

// use records that a call has left a connection to be kept.
func (w *warmth) use() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.called = time.Now()
}
