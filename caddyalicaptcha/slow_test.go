//go:build unix

package caddyalicaptcha_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// slowly sends a login whose body does not end, and returns when its request has ended.
// It calls arrives when the body has begun.
func slowly(t *testing.T, client *http.Client, url, kind, began string, arrives func()) {
	body, end := io.Pipe()
	go func() { // until the other end is closed
		_, err := io.WriteString(end, began)
		arrives()
		for ; err == nil; _, err = io.WriteString(end, " ") {
			time.Sleep(50 * time.Millisecond)
		}
	}()
	defer body.Close()
	r, err := http.NewRequestWithContext(t.Context(), "POST", url+"/login", body)
	if err != nil {
		t.Error(err)
		return
	}
	r.Header.Set("Content-Type", kind)
	resp, err := client.Do(r)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.Error(kind, "nothing bounds the body") // any other error is a connection that was closed
	}
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != 503 && resp.StatusCode != 400 {
			t.Error(kind, resp.Status)
		}
	}
}

// The option of the README ends a request whose body does not end, over each protocol. Such
// a request takes no place of max_concurrent.
func TestSlowBodies(t *testing.T) {
	const bounded = `"read_timeout":1000000000`
	require.Contains(t, string(adapt(t, "{\nservers {\ntimeouts {\nread_body 1s\n}\n}\n}\n:80 {\nrespond ok\n}\n")), bounded)

	service, u := alicaptchatest.Start(t, alicaptchatest.Config{}), startUpstream(t)
	directives := fmt.Sprintf(`
	alicaptcha /login login {
		SERVICE
		max_concurrent 1
	}
	reverse_proxy %s
	`, u.URL)
	for name, started := range map[string]func(t *testing.T) (*site, []*http.Client){
		"without TLS": func(t *testing.T) (*site, []*http.Client) {
			return start(t, service, directives), []*http.Client{newClient(t, false), newClient(t, true)}
		},
		"HTTP/2 over TLS": func(t *testing.T) (*site, []*http.Client) {
			s, client := startTLS(t, service, directives)
			return s, []*http.Client{client}
		},
		"HTTP/3": func(t *testing.T) (*site, []*http.Client) {
			s, client := startHTTP3(t, service, directives)
			return s, []*http.Client{client}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, clients := started(t)
			config := strings.Replace(string(s.config(t, service, directives)), `"listen":`, bounded+`,"listen":`, 1)
			require.NoError(t, caddy.Load([]byte(config), true))
			asked := service.Count()
			for _, client := range clients {
				client.CloseIdleConnections()
				var slow, arriving sync.WaitGroup
				for kind, began := range map[string]string{
					"application/json": "{", "application/x-www-form-urlencoded": "captchaVerifyParam=x", "multipart/form-data; boundary=b": "--b\r\n",
				} {
					for range 3 {
						arriving.Add(1)
						slow.Go(func() { slowly(t, client, s.url, kind, began, arriving.Done) })
					}
				}
				arriving.Wait()
				status, text := s.send(t, client, "/login", withParam(issue(t, service)), nil)
				require.Equal(t, 200, status, text)
				slow.Wait()
			}
			require.Equal(t, asked+len(clients), service.Count())
			require.Len(t, u.take(), len(clients))
			require.NotContains(t, s.logged(t), "overloaded")
		})
	}
}
