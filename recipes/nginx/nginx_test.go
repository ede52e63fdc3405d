package nginx_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

const scene = "1a2b3c4d" // as in captcha.conf

// module is nginx's JavaScript.
const module = "/usr/lib/nginx/modules/ngx_http_js_module.so"

// A site is nginx with captcha.conf, the gate, the simulator of the service, and an
// app that is not written in Go: another nginx, which repeats what it gets.
type site struct {
	*alicaptchatest.Server
	http1, http2 *http.Client
	plain        http.Handler // what net/http has in place of all this

	gate *exec.Cmd
	dir  string
	app  *exec.Cmd
}

// The gate's program is built once.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "gate")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "alicaptcha")
	build := exec.Command("go", "build", "-o", program, "github.com/alicaptcha/alicaptcha/cmd/alicaptcha")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

// start starts a site, whose captcha.conf is changed by the pairs in edits.
func start(t *testing.T, edits ...string) *site {
	t.Helper()
	_, err := exec.LookPath("nginx")
	require.NoError(t, err, "in Debian: apt-get install nginx")
	require.FileExists(t, module, "in Debian: apt-get install libnginx-mod-http-js")
	dir, err := os.MkdirTemp("", "site") // the path of a socket must be short
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{Server: alicaptchatest.Start(t, alicaptchatest.Config{Scenes: []string{scene, "easy"}}), dir: dir}

	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: s.Client(), SceneID: scene, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	s.plain = captcha.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))

	s.gate = exec.Command(program, "gate", "-addr", "127.0.0.1:0", "-admin-addr", "127.0.0.1:0",
		"-endpoint", s.URL, "-scene", scene, "-scene", "easy", "-outage-budget", "1000000")
	s.gate.Env = append(os.Environ(), "ALIBABA_CLOUD_ACCESS_KEY_ID=test-id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=test-secret")
	gateURL := begin(t, s.gate, false, regexp.MustCompile(`^Scene: +(http://.*)/gate/`+scene))

	s.write(t, "app.js", `
		function answer(r) {
			r.headersOut['Seen-Verified'] = String(r.headersIn['Captcha-Verified']);
			r.headersOut['Seen'] = r.method + ' ' + r.variables.request_uri;
			r.headersOut['Content-Type'] = 'text/plain; charset=utf-8';
			r.return(200, r.requestText || '');
		}
		export default { answer };`)
	s.app = s.nginx(t, "app", `
		js_path "`+dir+`";
		js_import app from app.js;
		log_format seen "$request_method $request_uri verified=$http_captcha_verified";
		access_log `+dir+`/app.log seen;
		server {
			listen unix:`+dir+`/app.sock;
			client_max_body_size 8m;
			client_body_buffer_size 8m;
			location / { js_content app.answer; }
		}`)

	source, err := os.ReadFile("captcha.js")
	require.NoError(t, err)
	s.write(t, "captcha.js", string(source))
	source, err = os.ReadFile("captcha.conf")
	require.NoError(t, err)
	config := string(source)
	for _, edit := range slices.Collect(slices.Chunk(append([]string{
		"/etc/nginx/njs", dir,
		"listen 127.0.0.1:8080;", "listen unix:" + dir + "/1.sock; listen unix:" + dir + "/2.sock http2;",
		"http://127.0.0.1:3000", "http://unix:" + dir + "/app.sock",
		"http://127.0.0.1:8082", gateURL,
	}, edits...), 2)) {
		require.Contains(t, config, edit[0])
		config = strings.ReplaceAll(config, edit[0], edit[1])
	}
	s.nginx(t, "front", "access_log off;\n"+config)
	s.http1, s.http2 = s.client(t, "1.sock"), s.client(t, "2.sock")
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s.http2.Transport.(*http.Transport).Protocols = protocols
	return s
}

func (s *site) write(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644))
}

// nginx starts an nginx with config in its context http.
func (s *site) nginx(t *testing.T, name, config string) *exec.Cmd {
	t.Helper()
	var paths strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		paths.WriteString(kind + "_temp_path " + filepath.Join(s.dir, name+"-"+kind) + ";\n")
	}
	s.write(t, name+".conf", `
		load_module `+module+`;
		daemon off;
		user root; # the folder is root's; without root nginx ignores this
		pid `+s.dir+`/`+name+`.pid;
		error_log stderr notice;
		worker_processes 1;
		events { worker_connections 4096; }
		http {
			`+paths.String()+config+`
		}`)
	cmd := exec.Command("nginx", "-p", s.dir, "-c", filepath.Join(s.dir, name+".conf"))
	begin(t, cmd, true, regexp.MustCompile(`(start worker process)`))
	return cmd
}

// begin starts a program until the end of the test, and returns what expression
// captures in a line of its output.
func begin(t *testing.T, cmd *exec.Cmd, onStderr bool, expression *regexp.Regexp) string {
	t.Helper()
	pipe, other := cmd.StdoutPipe, &cmd.Stderr
	if onStderr {
		pipe, other = cmd.StderrPipe, &cmd.Stdout
	}
	output, err := pipe()
	require.NoError(t, err)
	*other = io.Discard
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) // nginx ends its workers
		cmd.Wait()
	})
	var text strings.Builder
	for lines := bufio.NewScanner(output); lines.Scan(); {
		fmt.Fprintln(&text, lines.Text())
		if match := expression.FindStringSubmatch(lines.Text()); match != nil {
			go io.Copy(io.Discard, output)
			return match[1]
		}
	}
	require.Fail(t, "it did not start", text.String())
	return ""
}

func (s *site) client(t *testing.T, socket string) *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.dir, socket))
		},
		MaxIdleConnsPerHost: 64,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (s *site) param(t require.TestingT, scene string) string {
	param, err := s.Issue(alicaptchatest.Issue{SceneID: scene})
	require.NoError(t, err)
	return param
}

// seen stops the app, and returns a line for each request that reached it.
func (s *site) seen(t *testing.T) []string {
	t.Helper()
	require.NoError(t, s.app.Process.Signal(syscall.SIGQUIT))
	s.app.Wait()
	text, err := os.ReadFile(filepath.Join(s.dir, "app.log"))
	require.NoError(t, err)
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// An answer is one without what differs between two requests, and without what
// nginx says of itself.
type answer struct {
	status int
	header http.Header
	body   string
}

func read(t *testing.T, resp *http.Response) answer {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	h := resp.Header.Clone()
	reference := h.Get("Captcha-Reference")
	if reference != "" {
		h.Set("Captcha-Reference", "REFERENCE")
		body = bytes.ReplaceAll(body, []byte(reference), []byte("REFERENCE"))
	}
	for _, name := range []string{"Date", "Server", "Connection", "Keep-Alive", "Content-Length"} {
		h.Del(name)
	}
	return answer{resp.StatusCode, h, string(body)}
}

func do(t *testing.T, client *http.Client, method, path, contentType, body string, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://example.com"+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", contentType)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(r)
	require.NoError(t, err, "%s of %d bytes", contentType, len(body))
	return read(t, resp)
}

// bodies returns a login with param, unless that is empty, in each form.
func bodies(t *testing.T, param string, padding int) map[string]string {
	t.Helper()
	rest := strings.Repeat("0123456789abcdef", padding/16)
	fields := url.Values{"username": {"alice"}, "padding": {rest}}
	var form bytes.Buffer
	parts := multipart.NewWriter(&form)
	require.NoError(t, parts.SetBoundary("b"))
	members := map[string]string{"username": "alice", "zpadding": rest}
	if param != "" {
		fields.Set("captchaVerifyParam", param)
		members["captchaVerifyParam"] = param
		require.NoError(t, parts.WriteField("captchaVerifyParam", param))
	}
	file, err := parts.CreateFormFile("file", "file")
	require.NoError(t, err)
	io.WriteString(file, rest)
	require.NoError(t, parts.Close())
	object, err := json.Marshal(members)
	require.NoError(t, err)
	return map[string]string{
		"application/x-www-form-urlencoded": fields.Encode(),
		"multipart/form-data; boundary=b":   form.String(),
		"application/json":                  string(object),
	}
}

func TestPasses(t *testing.T) {
	t.Parallel()
	s := start(t)
	n := 0
	for _, client := range []*http.Client{s.http1, s.http2} {
		for _, padding := range []int{0, 200_000} {
			for contentType := range bodies(t, "", 0) {
				for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "BREW"} {
					body := bodies(t, s.param(t, scene), padding)[contentType]
					got := do(t, client, method, "/login?x=%2Fy", contentType, body, "Captcha-Verified", "forged")
					require.Equal(t, 200, got.status, got.body)
					require.Equal(t, body, got.body)
					require.Equal(t, "true", got.header.Get("Seen-Verified"))
					require.Equal(t, method+" /login?x=%2Fy", got.header.Get("Seen"))
					n++
				}
			}
		}
		// Without a length, and a param in the header.
		for _, header := range []string{"", s.param(t, scene)} {
			body := "anything"
			if header == "" {
				body = bodies(t, s.param(t, scene), 200_000)["application/json"]
			}
			r, err := http.NewRequestWithContext(t.Context(), "POST", "http://example.com/login", io.MultiReader(strings.NewReader(body)))
			require.NoError(t, err)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Captcha-Verify-Param", header)
			resp, err := client.Do(r)
			require.NoError(t, err)
			got := read(t, resp)
			require.Equal(t, 200, got.status, got.body)
			require.Equal(t, body, got.body)
			n++
		}
	}
	seen := s.seen(t)
	require.Len(t, seen, n)
	for _, line := range seen {
		require.True(t, strings.HasSuffix(line, " verified=true"), line)
	}
}

// A page that has the path of the login is shown, as to somebody who was not verified.
func TestUnlessRead(t *testing.T) {
	t.Parallel()
	s := start(t, "captcha.ask;", "captcha.askUnlessRead;")
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "OPTIONS", "BREW", "get"} {
		got := do(t, s.http1, method, "/login", "application/json", `{}`, "Captcha-Verified", "true")
		if method != "GET" && method != "HEAD" {
			require.Equal(t, 400, got.status, method)
			continue
		}
		require.Equal(t, 200, got.status, method)
		require.Equal(t, "undefined", got.header.Get("Seen-Verified"))
	}
	body := `{"captchaVerifyParam":"` + s.param(t, scene) + `"}`
	require.Equal(t, "true", do(t, s.http1, "POST", "/login", "application/json", body).header.Get("Seen-Verified"))
	require.Len(t, s.seen(t), 3)
}

// A rejection has what net/http writes, byte for byte.
func TestRejects(t *testing.T) {
	t.Parallel()
	s := start(t)
	plain := httptest.NewServer(s.plain)
	defer plain.Close()
	direct := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { // the Host is example.com here, too
			return new(net.Dialer).DialContext(ctx, "tcp", plain.Listener.Addr().String())
		},
	}}
	defer direct.CloseIdleConnections()
	replayed := s.param(t, scene)
	const form = "application/x-www-form-urlencoded"
	require.Equal(t, 200, do(t, s.http1, "POST", "/login", form, bodies(t, replayed, 0)[form]).status)
	statuses := map[int]bool{}
	compare := func(method, contentType, body string, header ...string) {
		t.Helper()
		send := func(client *http.Client) answer {
			return do(t, client, method, "/login", contentType, strings.Replace(body, "FRESH", s.param(t, scene), 1), header...)
		}
		want := send(direct)
		require.GreaterOrEqual(t, want.status, 400)
		statuses[want.status] = true
		require.Equal(t, want, send(s.http1))
		require.Equal(t, want, send(s.http2))
	}
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	for _, param := range []string{"", "junk", replayed, strings.Repeat("x", 40_000), "easy"} {
		for contentType := range bodies(t, "", 0) {
			for _, padding := range []int{0, 200_000} {
				if param == "easy" {
					param = s.param(t, "easy") // of another scene
				}
				body := bodies(t, param, padding)[contentType]
				if padding > 0 && param == "" {
					body = bodies(t, param, 100_000)[contentType] // else it is too long to be searched
				}
				compare("POST", contentType, body)
				compare("POST", contentType, body, "Accept", browser, "Accept-Language", "zh-CN")
				compare("POST", contentType, body, "Accept", browser, "Referer", "http://example.com/form?"+strings.Repeat("&", 1900))
			}
		}
	}
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "PUT", "BREW"} {
		compare(method, "application/json", `{}`)
		compare(method, "application/json", `{"captchaVerifyParam":`)
	}
	for _, faults := range []alicaptchatest.Faults{
		{VerifyCode: alicaptcha.F010}, {VerifyCode: alicaptcha.T005}, {Credentials: "wrong"},
	} {
		require.NoError(t, s.SetFaults(faults))
		compare("POST", "application/json", `{"captchaVerifyParam":"FRESH"}`)
	}
	require.Equal(t, []int{400, 403, 413, 429, 503}, slices.Sorted(maps.Keys(statuses)))
	require.Equal(t, []string{"POST /login verified=true"}, s.seen(t))
}

// Without the gate nobody gets in, whatever answers in its place.
func TestFailsClosed(t *testing.T) {
	t.Parallel()
	const form = "application/x-www-form-urlencoded"
	t.Run("the gate is down", func(t *testing.T) {
		t.Parallel()
		s := start(t)
		require.NoError(t, s.gate.Process.Signal(syscall.SIGTERM))
		s.gate.Wait()
		got := do(t, s.http1, "POST", "/login", form, bodies(t, s.param(t, scene), 0)[form])
		require.Equal(t, 503, got.status)
		require.Equal(t, []string{""}, s.seen(t))
	})
	t.Run("the gate has no such scene", func(t *testing.T) {
		t.Parallel()
		s := start(t, "/gate/1a2b3c4d", "/gate/none")
		require.Equal(t, 503, do(t, s.http1, "POST", "/login", form, bodies(t, s.param(t, scene), 0)[form]).status)
		require.Equal(t, []string{""}, s.seen(t))
	})
	for status, headers := range map[string]string{
		"200": "Captcha-Verified: true\r\n", "204": "", "204 ": "Captcha-Verified: maybe\r\n", "302": "Location: /\r\n", "401": "",
	} {
		t.Run("something answers "+status, func(t *testing.T) {
			t.Parallel()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			t.Cleanup(func() { listener.Close() })
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					http.ReadRequest(bufio.NewReader(conn))
					fmt.Fprintf(conn, "HTTP/1.0 %s x\r\n%s\r\n", status, headers)
					conn.Close()
				}
			}()
			s := start(t, "/gate/1a2b3c4d;", ";", "internal;", "internal; set $other http://"+listener.Addr().String()+";",
				"proxy_set_header Authorization \"\";\n        proxy_pass http://", "proxy_pass $other; #")
			require.Equal(t, 503, do(t, s.http1, "GET", "/login", "", "").status)
			require.Equal(t, []string{""}, s.seen(t))
		})
	}
	t.Run("the body is too long", func(t *testing.T) {
		t.Parallel()
		s := start(t)
		require.Equal(t, 413, do(t, s.http1, "POST", "/login", form, bodies(t, s.param(t, scene), 2<<20)[form]).status)
		require.Zero(t, s.Count())
		require.Equal(t, []string{""}, s.seen(t))
	})
}

// Of ten thousand hostile requests over HTTP/1.1 and HTTP/2 none reaches the app's
// login, and none makes the app believe that it was verified.
func TestAttacks(t *testing.T) {
	t.Parallel()
	s := start(t)
	const form = "application/x-www-form-urlencoded"
	used := s.param(t, scene)
	require.Equal(t, 200, do(t, s.http1, "POST", "/login", form, bodies(t, used, 0)[form]).status)
	noise := func() string {
		b := make([]byte, 1+rand.N(300))
		for i := range b {
			b[i] = byte(rand.N(256))
		}
		return string(b)
	}
	var fresh atomic.Int64 // params that nobody verifies
	attacks := []func() (path, contentType, body string){
		func() (string, string, string) {
			return "/login", form, "captchaVerifyParam=" + url.QueryEscape(noise())
		},
		func() (string, string, string) { return "/login", "application/json", noise() },
		func() (string, string, string) { return "/login", "application/json", strings.Repeat("[", 5000) },
		func() (string, string, string) { return "/login", "application/json", `{"captchaVerifyParam":{"a":1}}` },
		func() (string, string, string) { return "/login", "multipart/form-data; boundary=x", noise() },
		func() (string, string, string) { return "/login", form, "captchaVerifyParam=" + url.QueryEscape(used) },
		func() (string, string, string) {
			return "/login", form, "captchaVerifyParam=" + url.QueryEscape(s.param(t, "easy"))
		},
		func() (string, string, string) {
			return "/login", form, "captchaVerifyParam=" + strings.Repeat("x", 33<<10)
		},
		func() (string, string, string) {
			fresh.Add(1)
			return "/login", "application/json", `{"a":"` + strings.Repeat("x", 150<<10) + `","captchaVerifyParam":"` + s.param(t, scene) + `"}`
		},
		func() (string, string, string) {
			fresh.Add(1)
			return "/login?captchaVerifyParam=" + url.QueryEscape(s.param(t, scene)), form, ""
		},
		func() (string, string, string) {
			return []string{
				"/login/", "/login/x", "/login;x", "/./login", "/x/../login", "/%6Cogin", "//login", "/login%2Fx", "/login%00",
				"/login/../login", "/login?/../x", "/login%3Fx",
			}[rand.N(12)], form, ""
		},
		func() (string, string, string) {
			return []string{
				"/captcha-gate", "/@captcha_passed", "/captcha-gate?x", "//captcha-gate", "/%40captcha_passed", "/x", "/LOGIN",
			}[rand.N(7)], form, ""
		},
	}
	work := make(chan int)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range work {
				path, contentType, body := attacks[i%len(attacks)]()
				method := []string{"POST", "PUT", "GET", "OPTIONS"}[rand.N(4)]
				r, err := http.NewRequestWithContext(t.Context(), method, "http://example.com", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					continue
				}
				rawPath, query, _ := strings.Cut(path, "?")
				r.URL.Opaque, r.URL.RawQuery = "//example.com"+rawPath, query // as it is
				r.Header = http.Header{
					"Content-Type": {contentType}, "Captcha-Verified": {"true", "true"}, "captcha-verified": {"true"},
					"Captcha_Verified": {"true"}, "Captcha-Reference": {"x"}, "X-Accel-Redirect": {"@captcha_passed"},
					"X-Forwarded-Uri": {"/gate/easy"}, "X-Original-Uri": {"/gate/easy"}, "X-Http-Method-Override": {"GET"},
				}
				client := s.http1
				if i/len(attacks)%2 == 1 {
					client = s.http2
				}
				resp, err := client.Do(r)
				if err != nil {
					t.Error(path, err)
					continue
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	for i := range 10_000 {
		if i == 9_000 { // the account is throttled
			require.NoError(t, s.SetFaults(alicaptchatest.Faults{ThrottleRate: 50}))
		}
		work <- i
	}
	close(work)
	all.Wait()
	require.NoError(t, s.SetFaults(alicaptchatest.Faults{}))
	require.NotZero(t, fresh.Load())

	// Two at once with one param: one of them logs in.
	const pairs = 100
	for range pairs {
		body := bodies(t, s.param(t, scene), 0)[form]
		for _, client := range []*http.Client{s.http1, s.http2} {
			all.Go(func() {
				resp, err := client.Post("http://example.com/login", form, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
			})
		}
	}
	// And clients that hang up within their body.
	for range 200 {
		conn, err := net.Dial("unix", filepath.Join(s.dir, "1.sock"))
		require.NoError(t, err)
		body := bodies(t, s.param(t, scene), 0)[form]
		fmt.Fprintf(conn, "POST /login HTTP/1.1\r\nHost: example.com\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			form, len(body), body[:len(body)-1-rand.N(20)])
		conn.Close()
	}
	all.Wait()
	logins := 0
	for _, line := range s.seen(t) {
		if strings.HasSuffix(line, " verified=true") {
			logins++
			continue
		}
		// The app got it as one that nobody has verified.
		require.Regexp(t, `^[A-Z]+ (/@captcha_passed|/%40captcha_passed|/x|/LOGIN) verified=-$`, line)
	}
	require.Equal(t, 1+pairs, logins)
}
