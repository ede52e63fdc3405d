package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// buildGate returns the path of the command alicaptcha, which it builds.
func buildGate(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "alicaptcha")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./cmd/alicaptcha")
	build.Dir = ".."
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	return path
}

// startGate starts the command's gate for the person's simulator, and returns its address.
func (p *person) startGate(command string) string {
	p.t.Helper()
	gate := exec.Command(command, "gate", "-addr", "127.0.0.1:0", "-admin-addr", "127.0.0.1:0",
		"-endpoint", p.simulator, "-scene", "login", "-outage-budget", "1000000")
	gate.Env = append(os.Environ(), "ALIBABA_CLOUD_ACCESS_KEY_ID=test-id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=test-secret")
	stdout, err := gate.StdoutPipe()
	require.NoError(p.t, err)
	require.NoError(p.t, gate.Start())
	p.t.Cleanup(func() {
		gate.Process.Signal(os.Interrupt)
		gate.Wait()
	})
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if match := regexp.MustCompile(`^Scene: +http://(.*)/gate/login$`).FindStringSubmatch(lines.Text()); match != nil {
			go io.Copy(io.Discard, stdout)
			return match[1]
		}
	}
	require.Fail(p.t, "the gate did not start")
	return ""
}

// startNginx starts nginx with the files of recipes/nginx between the gate and the program
// at app, and returns its URL and the path of its log of errors.
func (p *person) startNginx(gate, app string) (site, log string) {
	p.t.Helper()
	const module = "/usr/lib/nginx/modules/ngx_http_js_module.so"
	_, err := exec.LookPath("nginx")
	require.NoError(p.t, err, "in Debian: apt-get install nginx")
	require.FileExists(p.t, module, "in Debian: apt-get install libnginx-mod-http-js")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(p.t, err)
	addr := listener.Addr().String()
	require.NoError(p.t, listener.Close())

	dir := p.t.TempDir()
	script, err := os.ReadFile("../recipes/nginx/captcha.js")
	require.NoError(p.t, err)
	require.NoError(p.t, os.WriteFile(filepath.Join(dir, "captcha.js"), script, 0o600))
	text, err := os.ReadFile("../recipes/nginx/captcha.conf")
	require.NoError(p.t, err)
	recipe := string(text)
	for _, edit := range [][2]string{
		{"/etc/nginx/njs", dir},
		{"127.0.0.1:8080", addr},
		{"http://127.0.0.1:3000", app},
		{"http://127.0.0.1:8082/gate/1a2b3c4d", "http://" + gate + "/gate/login"},
		{"captcha.ask;", "captcha.askUnlessRead;"}, // the page has the path of the login
	} {
		require.Contains(p.t, recipe, edit[0])
		recipe = strings.ReplaceAll(recipe, edit[0], edit[1])
	}
	log = filepath.Join(dir, "error.log")
	config := fmt.Sprintf(`
		load_module %[2]s;
		daemon off;
		user root; # the folder is root's; without root nginx ignores this
		pid %[1]s/pid;
		error_log %[3]s notice;
		worker_processes 1;
		events {}
		http {
			access_log off;
			client_body_temp_path %[1]s/client_body;
			proxy_temp_path %[1]s/proxy;
			fastcgi_temp_path %[1]s/fastcgi;
			uwsgi_temp_path %[1]s/uwsgi;
			scgi_temp_path %[1]s/scgi;
			%[4]s
		}`, dir, module, log, recipe)
	file := filepath.Join(dir, "nginx.conf")
	require.NoError(p.t, os.WriteFile(file, []byte(config), 0o600))
	nginx := exec.Command("nginx", "-p", dir, "-c", file)
	require.NoError(p.t, nginx.Start())
	p.t.Cleanup(func() {
		nginx.Process.Signal(syscall.SIGTERM) // it ends its workers
		nginx.Wait()
	})
	site = "http://" + addr
	require.Eventually(p.t, func() bool {
		resp, err := http.Get(site + "/login")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	}, 20*time.Second, 20*time.Millisecond)
	return site, log
}

// An app has the example's pages, and a login that knows nothing of captchas but the
// header Captcha-Verified.
type app struct {
	pages  http.Handler
	mu     sync.Mutex
	logins []string // what each had in the header, and what became of it
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		if len(r.Header["Captcha-Verified"]) > 0 {
			http.Error(w, "nobody has verified this", http.StatusInternalServerError)
			return
		}
		a.pages.ServeHTTP(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	status, answer := http.StatusUnauthorized, `{"error":"wrong username or password"}`
	if strings.Contains(string(body), `"username":"alice"`) && strings.Contains(string(body), `"password":"correct-horse"`) {
		status, answer = http.StatusOK, `{"user":"alice"}`
	}
	a.mu.Lock()
	a.logins = append(a.logins, fmt.Sprint(r.Method, " ", r.URL, " ", r.Header["Captcha-Verified"], " ", status))
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	io.WriteString(w, answer)
}

// The example's pages behind the recipe's nginx, whose gate is alicaptcha gate. Only who
// has solved the challenge reaches the app's login.
func TestLoginThroughNginx(t *testing.T) {
	t.Parallel()
	needsBrowser(t)
	command := buildGate(t) // before a window opens, which has its time
	type words struct{ wrong, refused, spent, missing, back string }
	texts := map[string]words{
		"en": {
			"Wrong username or password.", "The captcha was not passed. Please solve a new one.",
			"The captcha has expired or was used already. Please solve a new one.",
			"The captcha was not completed. Please complete it and try again.", "Go back",
		},
		"zh-CN": {
			"用户名或密码错误。", "验证未通过。请重新完成验证。", "验证已过期或已被使用。请重新完成验证。",
			"尚未完成验证。请先完成验证。", "返回",
		},
	}
	inBothLanguages(t, func(t *testing.T, p *person, language string, welcome map[string]string) {
		pages, err := url.Parse(p.site)
		require.NoError(t, err)
		a := &app{pages: httputil.NewSingleHostReverseProxy(pages)}
		server := httptest.NewServer(a)
		t.Cleanup(server.Close)
		var log string
		p.site, log = p.startNginx(p.startGate(command), server.URL)
		texts := texts[language]

		p.open("/login")
		p.until(`typeof captcha === "object"`)
		eval[bool](p, `(window.sendBefore = send, send = (param) => { window.kept = param; sendBefore(param); }, true)`)
		p.logsIn("alice", "wrong")
		p.until(opened)
		p.drags(1)
		p.sees(texts.wrong)
		require.True(t, eval[bool](p, "!"+opened), "a challenge before the form was changed")

		// The next attempt has a new challenge, and the page another one after a rejection.
		p.faults(`{"verifyCode":"F001"}`)
		p.presses("correct-horse" + kb.Enter) // the wrong password is selected
		p.until(opened)
		p.drags(1)
		p.sees(texts.refused)
		p.looks("nginx-refused-" + language)
		p.faults(`{}`)
		p.until(opened)
		p.drags(1)
		p.sees(welcome["welcome"])

		// A param is good for one login. Without one, the rejection is a page.
		eval[bool](p, `(restarts = 0, sendBefore(kept), true)`)
		p.until(`message.textContent === "` + texts.spent + `"`)
		p.open("/login")
		eval[bool](p, `(HTMLFormElement.prototype.submit.call(form), true)`)
		p.sees(texts.missing)
		p.looks("nginx-missing-" + language)
		require.Equal(t, texts.back, eval[string](p, `document.querySelector("main a").innerText`))
		p.clicksOn("main a")
		p.until(`document.querySelector("form") && typeof captcha === "object"`)

		// Others have no page.
		param := p.issues("login")
		for _, forged := range []struct{ path, body string }{
			{"/login", `{"username":"alice","password":"correct-horse"}`},
			{"/login", `{"captchaVerifyParam":"junk","username":"alice","password":"correct-horse"}`},
			{"/login/", `{"username":"alice","password":"correct-horse"}`},
			{"/login?captchaVerifyParam=" + url.QueryEscape(param), `{"username":"alice","password":"correct-horse"}`},
			{"/x/..//%6Cogin", `{"username":"alice","password":"correct-horse"}`},
			{"/captcha-gate", `{}`},
		} {
			r, err := http.NewRequestWithContext(t.Context(), "POST", p.site, strings.NewReader(forged.body))
			require.NoError(t, err)
			r.URL.Opaque = "//" + r.URL.Host + forged.path
			r.Header = http.Header{"Content-Type": {"application/json"}, "Captcha-Verified": {"true"}, "captcha_verified": {"true"}}
			resp, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			resp.Body.Close()
			require.Contains(t, []int{400, 404}, resp.StatusCode, forged.path)
		}

		a.mu.Lock()
		defer a.mu.Unlock()
		require.Equal(t, []string{"POST /login [true] 401", "POST /login [true] 200"}, a.logins)
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			require.False(t, slices.ContainsFunc([]string{"[error]", "[crit]", "[alert]", "[emerg]"}, func(level string) bool {
				return strings.Contains(line, level)
			}), line)
		}
	})
}
