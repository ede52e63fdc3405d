package alicaptcha

import (
	"net/http"
	"net/http/httptrace"
)

// mostClosed is how many kept connections a call may find closed.
const mostClosed = 100

// roundTrip sends req by the Transport. If a connection that was kept from an earlier call
// was closed before anything of this one was sent on it, it takes another one. net/http
// does so itself only if its write fails, not if it has noticed the closing before.
func (c connection) roundTrip(req *http.Request, a *answer) (*http.Response, error) {
	resp, err := c.transport.RoundTrip(req)
	for n := 0; n < mostClosed && a.isUnsent(err) && req.GetBody != nil; n++ {
		body, failed := req.GetBody()
		if failed != nil || req.Context().Err() != nil {
			break
		}
		req = req.WithContext(req.Context())
		req.Body = body
		a.reused.Store(false) // of the next connection nothing is known yet
		resp, err = c.transport.RoundTrip(req)
	}
	return resp, err
}

// got records which connection the call has got. It closes a connection that the peer has
// closed, so that nothing can be sent on it.
func (a *answer) got(info httptrace.GotConnInfo) {
	a.reused.Store(info.Reused)
	a.wrote.Store(false)
	a.closed.Store(info.Reused && isClosed(info.Conn))
	if a.closed.Load() {
		info.Conn.Close()
	}
}

// isUnsent reports whether err means that a connection was closed before anything of the
// call was sent on it. Unless it was closed by got, that takes net/http's word that it was
// idle: a Transport of another kind might not tell when it writes.
func (a *answer) isUnsent(err error) bool {
	return err != nil && a.reused.Load() &&
		(a.closed.Load() || !a.wrote.Load() && err.Error() == "http: server closed idle connection")
}
