//go:build unix

package caddyalicaptcha_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// phpSite is the site of the README.
func phpSite(p *php) string {
	return fmt.Sprintf(`
	root * %s
	alicaptcha /login login {
		SERVICE
	}
	php_fastcgi unix/%s {
		request_buffers 1MiB
	}
	`, p.root, p.socket)
}

// bodies are logins of the given size in all forms, with their Content-Type.
func bodies(t *testing.T, param string, size int) map[string]string {
	t.Helper()
	padding := strings.Repeat("0123456789abcdef", size/16)
	all := map[string]string{
		"application/x-www-form-urlencoded": "captchaVerifyParam=" + url.QueryEscape(param) + "&user=alice&padding=" + padding,
		"application/json":                  `{"captchaVerifyParam":` + mustJSON(param) + `,"user":"alice","padding":"` + padding + `"}`,
	}
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	require.NoError(t, w.WriteField("captchaVerifyParam", param))
	file, err := w.CreateFormFile("avatar", "avatar.png")
	require.NoError(t, err)
	_, err = io.WriteString(file, padding)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	all[w.FormDataContentType()] = form.String()
	return all
}

func TestLoginArrivesWhole(t *testing.T) {
	service, p := alicaptchatest.Start(t, alicaptchatest.Config{}), startPHP(t)
	s := start(t, service, phpSite(p))
	loginsArriveWhole(t, service, p, s, map[string]*http.Client{
		"HTTP/1.1": newClient(t, false), "HTTP/2.0": newClient(t, true),
	})
}

func TestLoginArrivesWholeOverTLS(t *testing.T) {
	for name, start := range overTLS {
		t.Run(name, func(t *testing.T) {
			service, p := alicaptchatest.Start(t, alicaptchatest.Config{}), startPHP(t)
			s, client := start(t, service, phpSite(p))
			loginsArriveWhole(t, service, p, s, map[string]*http.Client{name: client})
		})
	}
}

func loginsArriveWhole(t *testing.T, service *alicaptchatest.Server, p *php, s *site, clients map[string]*http.Client) {
	t.Helper()
	passed := 0
	arrive := func(t *testing.T, version string, header http.Header, body string, reader io.Reader) {
		status, text := s.send(t, clients[version], "/login", header, reader)
		passed++
		require.Equal(t, 200, status, text)
		var seen seenByPHP
		require.NoError(t, json.Unmarshal([]byte(text), &seen), text)
		sum := sha256.Sum256([]byte(body))
		require.Equal(t, hex.EncodeToString(sum[:]), seen.Body)
		require.Equal(t, strconv.Itoa(len(body)), seen.Length)
		require.Equal(t, "true", *seen.Verified)
		require.Equal(t, []string{"HTTP_CAPTCHA_VERIFIED"}, seen.Names)
		require.Equal(t, version, seen.Protocol)
		require.Equal(t, s.cert != "", seen.TLS)
	}
	for version := range clients {
		for _, format := range []alicaptchatest.Format{alicaptchatest.V2, alicaptchatest.V3} {
			param := func() string {
				param, err := service.Issue(alicaptchatest.Issue{SceneID: "login", Format: format})
				require.NoError(t, err)
				return param
			}
			for kind, body := range bodies(t, "PARAM", 200_000) {
				fill := func() string {
					value := param()
					switch kind {
					case "application/json":
						return strings.Replace(body, `"PARAM"`, mustJSON(value), 1)
					case "application/x-www-form-urlencoded":
						value = url.QueryEscape(value)
					}
					return strings.Replace(body, "PARAM", value, 1)
				}
				t.Run(version+" "+string(format)+" "+kind, func(t *testing.T) {
					header := http.Header{"Content-Type": {kind}}
					whole := fill()
					arrive(t, version, header, whole, strings.NewReader(whole))
					chunked := fill()
					arrive(t, version, header, chunked, io.MultiReader(strings.NewReader(chunked)))
					header.Set("Expect", "100-continue")
					expected := fill()
					arrive(t, version, header, expected, strings.NewReader(expected))
				})
			}
		}
		header := withParam(issue(t, service))
		header.Set("Content-Type", "application/octet-stream")
		arrive(t, version, header, "anything", strings.NewReader("anything"))
	}
	require.Equal(t, passed, p.calls(t))
}

var (
	uuids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)
	dates = regexp.MustCompile(`(?m)^Date: .*\r$`)
)

// rawAnswer returns what addr answers to the bytes of one request, without what differs
// from one answer to the next.
func rawAnswer(t *testing.T, addr, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(testGuard)))
	_, err = io.WriteString(conn, request)
	require.NoError(t, err)
	text, err := io.ReadAll(bufio.NewReader(conn))
	require.NoError(t, err)
	answer := dates.ReplaceAllString(string(text), "Date: X\r")
	// Caddy sends its name with every answer.
	answer = strings.Replace(answer, "Server: Caddy\r\n", "", 1)
	return uuids.ReplaceAllString(answer, "UUID")
}

// What the gate rejects gets the same bytes from Caddy as from net/http.
func TestRejectionsAreThoseOfNetHTTP(t *testing.T) {
	service, p := alicaptchatest.Start(t, alicaptchatest.Config{}), startPHP(t)
	s := start(t, service, phpSite(p))
	reference := httptest.NewServer(gateLike(t, service).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the reference let a request through")
	})))
	defer reference.Close()

	used := issue(t, service)
	status, _ := s.send(t, newClient(t, false), "/login", withParam(used), nil)
	require.Equal(t, 200, status)
	foreign, err := service.Issue(alicaptchatest.Issue{SceneID: "signup"})
	require.NoError(t, err)

	compared := 0
	compare := func(name, request string) {
		t.Helper()
		want := rawAnswer(t, reference.Listener.Addr().String(), request)
		got := rawAnswer(t, s.addr, request)
		require.Regexp(t, `^(HTTP/1\.1 100 Continue\r\n\r\n)?HTTP/1\.[01] 4`, want, name)
		require.Equal(t, want, got, name)
		compared++
	}
	bearing := "POST /login HTTP/1.1\r\nHost: " + s.addr + "\r\nConnection: close\r\n"
	for _, accept := range []string{"", "Accept: text/html\r\n", "Accept: text/html\r\nAccept-Language: zh-CN\r\nReferer: http://" + s.addr + "/login?x\r\n"} {
		for name, param := range map[string]string{
			"missing": "", "junk": "junk", "replayed": used, "of another scene": foreign, "too large": strings.Repeat("x", 33<<10),
		} {
			for kind, body := range bodies(t, param, 1000) {
				for _, more := range []string{"", "Expect: 100-continue\r\n"} {
					compare(name+" "+kind, fmt.Sprintf("%s%s%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
						bearing, accept, more, kind, len(body), body))
				}
			}
		}
		// The gate reads all of it: with something unread, Caddy resets the connection
		// that it closes, and the answer may be lost on its way.
		far := `{"a":"` + strings.Repeat("x", 128<<10+1-6)
		for name, request := range map[string]string{
			"no body":          bearing + accept + "Content-Length: 0\r\n\r\n",
			"malformed JSON":   bearing + accept + "Content-Type: application/json\r\nContent-Length: 1\r\n\r\n{",
			"too far":          bearing + accept + "Content-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(far)) + "\r\n\r\n" + far,
			"chunked":          bearing + accept + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
			"malformed chunks": bearing + accept + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
			"GET":              strings.Replace(bearing, "POST", "GET", 1) + accept + "\r\n",
			"HEAD":             strings.Replace(bearing, "POST", "HEAD", 1) + accept + "\r\n",
			"OPTIONS":          strings.Replace(bearing, "POST", "OPTIONS", 1) + accept + "\r\n",
			"HTTP/1.0":         "POST /login HTTP/1.0\r\nHost: " + s.addr + "\r\n" + accept + "Content-Length: 0\r\n\r\n",
		} {
			compare(name, request)
		}
	}
	require.Equal(t, 1, p.calls(t))
	require.Greater(t, compared, 100)
}
