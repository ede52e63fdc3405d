//go:build unix

package caddyalicaptcha_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// spellings are names that an upstream may take for Captcha-Verified.
var spellings = []string{
	"Captcha-Verified", "captcha-verified", "CAPTCHA-VERIFIED", "Captcha_Verified", "captcha_verified",
	"Captcha.Verified", "captcha~verified", "Captcha!Verified", "cAPTCHA|vERIFIED",
}

// outcomeNames are the names in h that may be taken for the outcome.
func outcomeNames(h http.Header) (names []string) {
	for name := range h {
		folded := strings.ToLower(strings.Map(func(r rune) rune {
			if strings.ContainsRune("-_.~!|", r) {
				return '-'
			}
			return r
		}, name))
		if folded == "captcha-verified" {
			names = append(names, name)
		}
	}
	return names
}

const headerSite = `
	alicaptcha /login login {
		SERVICE
	}
	alicaptcha /report login {
		SERVICE
		mode report_only
	}
	alicaptcha /exempt login {
		SERVICE
		mode exempt
	}
	alicaptcha /double login {
		SERVICE
		header First
	}
	alicaptcha /double login {
		SERVICE
		header Second
	}
	route /route {
		alicaptcha login {
			SERVICE
		}
		reverse_proxy %[1]s
	}
	handle /handle {
		alicaptcha login {
			SERVICE
		}
		reverse_proxy %[1]s
	}
	reverse_proxy %[1]s
`

func TestUpstreamLearnsTheOutcome(t *testing.T) {
	service, u := alicaptchatest.Start(t, alicaptchatest.Config{}), startUpstream(t)
	s := start(t, service, fmt.Sprintf(headerSite, u.URL))
	upstreamLearnsTheOutcome(t, service, u, s, newClient(t, false), newClient(t, true))
	for name, start := range overTLS {
		t.Run(name, func(t *testing.T) {
			s, client := start(t, service, fmt.Sprintf(headerSite, u.URL))
			upstreamLearnsTheOutcome(t, service, u, s, client)
		})
	}
}

func upstreamLearnsTheOutcome(t *testing.T, service *alicaptchatest.Server, u *upstream, s *site, clients ...*http.Client) {
	t.Helper()
	param := func() string { return issue(t, service) }
	for _, client := range clients {
		for _, c := range []struct {
			path     string
			header   http.Header
			verified bool
		}{
			{"/login", withParam(param()), true},
			{"/route", withParam(param()), true},
			{"/handle", withParam(param()), true},
			{"/report", withParam(param()), true},
			{"/report", withParam("junk"), false},
			{"/report", nil, false},
			{"/exempt", withParam(param()), false},
			{"/other", withParam(param()), false},
			{"/double", http.Header{"First": {param()}, "Second": {param()}}, true},
		} {
			for _, name := range append(spellings, "") {
				if c.verified {
					c.header = c.header.Clone() // a param is good for one request
					for key := range c.header {
						c.header[key] = []string{param()}
					}
				}
				header := c.header.Clone()
				if name != "" {
					if header == nil {
						header = http.Header{}
					}
					header[name] = []string{"true", "yes"}
				}
				status, _ := s.send(t, client, c.path, header, nil)
				require.Equal(t, 200, status, c.path)
				got := u.last(t).header
				if c.verified {
					require.Equal(t, []string{"Captcha-Verified"}, outcomeNames(got), c.path)
					require.Equal(t, []string{"true"}, got["Captcha-Verified"], "%s %s", c.path, name)
					continue
				}
				if c.path == "/other" { // no gate
					require.Empty(t, outcomeNames(got), name)
					continue
				}
				require.Equal(t, []string{"Captcha-Verified"}, outcomeNames(got), c.path)
				require.Equal(t, []string{"false"}, got["Captcha-Verified"], "%s %s", c.path, name)
			}
		}
		status, _ := s.send(t, client, "/double", http.Header{"First": {param()}}, nil)
		require.Equal(t, 400, status)
		require.Empty(t, u.take())
	}
}

// A header that is named in Connection ends at the proxy, so that a client can take the
// mark off its own request, but not put one on.
func TestOutcomeNamedInConnection(t *testing.T) {
	service, u := alicaptchatest.Start(t, alicaptchatest.Config{}), startUpstream(t)
	s := start(t, service, fmt.Sprintf(headerSite, u.URL))
	for _, connection := range []string{"close, Captcha-Verified", "close, captcha_verified, CAPTCHA-VERIFIED"} {
		for path, header := range map[string]string{
			"/login": "Captcha-Verify-Param: " + issue(t, service) + "\r\n", "/other": "", "/report": "",
		} {
			answer := rawAnswer(t, s.addr, "POST "+path+" HTTP/1.1\r\nHost: "+s.addr+"\r\n"+header+
				"Captcha-Verified: true\r\nConnection: "+connection+"\r\nContent-Length: 0\r\n\r\n")
			require.Regexp(t, "^HTTP/1.1 200", answer)
			require.Empty(t, outcomeNames(u.last(t).header), path)
		}
	}
}

func TestTrailersCarryNoOutcome(t *testing.T) {
	service, u := alicaptchatest.Start(t, alicaptchatest.Config{}), startUpstream(t)
	s := start(t, service, fmt.Sprintf(headerSite, u.URL))
	for _, path := range []string{"/login", "/other", "/report", "/exempt"} {
		for _, announced := range []string{"", "Trailer: X-Sum\r\n", "Trailer: Captcha-Verified, X-Sum, Captcha_Verified\r\n"} {
			conn, err := net.Dial("tcp", s.addr)
			require.NoError(t, err)
			require.NoError(t, conn.SetDeadline(time.Now().Add(testGuard)))
			_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nCaptcha-Verify-Param: %s\r\n%sConnection: close\r\n"+
				"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\nCaptcha-Verified: true\r\nCaptcha_Verified: true\r\n\r\n",
				path, s.addr, issue(t, service), announced)
			require.NoError(t, err)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err)
			require.Equal(t, 200, resp.StatusCode)
			require.NoError(t, conn.Close())
			got := u.last(t)
			require.Equal(t, "hello", got.body)
			require.Empty(t, outcomeNames(got.trailer), path)
			if announced != "" {
				require.Equal(t, "1", got.trailer.Get("X-Sum"))
			}
		}
		trailersCarryNoOutcome(t, service, u, s, newClient(t, true), path)
	}
	for name, start := range overTLS {
		t.Run(name, func(t *testing.T) {
			s, client := start(t, service, fmt.Sprintf(headerSite, u.URL))
			for _, path := range []string{"/login", "/other", "/report", "/exempt"} {
				trailersCarryNoOutcome(t, service, u, s, client, path)
			}
		})
	}
}

func trailersCarryNoOutcome(t *testing.T, service *alicaptchatest.Server, u *upstream, s *site, client *http.Client, path string) {
	t.Helper()
	for _, name := range spellings {
		r, err := http.NewRequestWithContext(t.Context(), "POST", s.url+path, io.MultiReader(strings.NewReader("hello")))
		require.NoError(t, err)
		r.Header = withParam(issue(t, service))
		r.Trailer = http.Header{name: {"true"}, "X-Sum": {"1"}}
		resp, err := client.Do(r)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, 200, resp.StatusCode)
		got := u.last(t)
		require.Equal(t, "hello", got.body)
		require.Empty(t, outcomeNames(got.trailer), path)
		if resp.ProtoMajor == 2 { // Caddy passes none of HTTP/3 on
			require.Equal(t, "1", got.trailer.Get("X-Sum"))
		}
	}
}
