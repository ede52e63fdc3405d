package caddyalicaptcha

import (
	"io"
	"net/http"
	"strconv"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// outcomeHeader tells an upstream whether the service has passed the param.
const outcomeHeader = "Captcha-Verified"

// outcomeVar is the name of the variable of a request that holds its headerState.
const outcomeVar = "alicaptcha.outcome_header"

// A headerState says what the gates of a request have done with its outcome header.
type headerState struct{ unverified bool }

// outcomeHeaderOf returns the state for r. The first gate of a request removes what the
// client has sent. Later ones must not, because they would remove what an earlier gate
// has set.
func outcomeHeaderOf(r *http.Request) *headerState {
	if seen, ok := caddyhttp.GetVar(r.Context(), outcomeVar).(*headerState); ok {
		return seen
	}
	removeOutcome(r.Header)
	if r.Trailer != nil && r.Body != nil {
		removeOutcome(r.Trailer)
		r.Body = &trailerFilter{r.Body, r.Trailer}
	}
	seen := new(headerState)
	caddyhttp.SetVar(r.Context(), outcomeVar, seen)
	return seen
}

// set sets the header of r for the outcome of one more gate. Where several gates stand
// behind each other, it is true only if all of them have verified a param.
func (s *headerState) set(r *http.Request, verified bool) {
	s.unverified = s.unverified || !verified
	r.Header.Set(outcomeHeader, strconv.FormatBool(!s.unverified))
}

// removeOutcome removes the outcome header in all of its spellings.
func removeOutcome(h http.Header) {
	for name := range h {
		if isOutcome(name) {
			delete(h, name)
		}
	}
}

// isOutcome reports whether an upstream may take name for the outcome header. CGI and
// its successors replace "-" by "_", and some of them every character that is neither a
// letter nor a digit: Captcha_Verified and Captcha.Verified become
// HTTP_CAPTCHA_VERIFIED, too.
func isOutcome(name string) bool {
	if len(name) != len(outcomeHeader) {
		return false
	}
	for i := range len(name) {
		if fold(name[i]) != fold(outcomeHeader[i]) {
			return false
		}
	}
	return true
}

func fold(c byte) byte {
	switch {
	case c >= 'A' && c <= 'Z':
		return c | 0x20
	case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		return c
	}
	return '-'
}

// A trailerFilter is a body that removes the outcome header from the trailers, which
// are known when the body has ended.
type trailerFilter struct {
	io.ReadCloser
	trailer http.Header
}

func (b *trailerFilter) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		removeOutcome(b.trailer)
	}
	return n, err
}
