package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// withPolicy puts a proxy in front of the site that changes its Content-Security-Policy.
func (p *person) withPolicy(change func(policy string) string) {
	p.t.Helper()
	site, err := url.Parse(p.site)
	require.NoError(p.t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(site) },
		ModifyResponse: func(r *http.Response) error {
			if policy := r.Header.Get("Content-Security-Policy"); policy != "" {
				r.Header.Set("Content-Security-Policy", change(policy))
			}
			return nil
		},
	}
	server := httptest.NewServer(proxy)
	p.t.Cleanup(server.Close)
	p.site = server.URL
}

var exampleTexts = map[string]map[string]string{
	"en": {
		"loading": stillLoading, "notLoaded": notLoaded, "dismissed": "The captcha was closed. Please complete it to go on.",
		"renewed":     "This page was too old for the captcha and has been loaded again. Please try again.",
		"unavailable": "The captcha cannot be used right now. Please try again later.",
		"welcome":     "Welcome, alice. You are logged in.",
	},
	"zh-CN": {
		"loading": "验证码仍在加载，请稍候。", "notLoaded": "验证码加载失败，请检查网络后重新加载页面。",
		"dismissed": "验证码已关闭，完成验证后才能继续。", "renewed": "页面打开时间过长，验证码已失效，页面已重新加载。请重试。",
		"unavailable": "验证码暂时无法使用，请稍后再试。", "welcome": "欢迎，alice。您已登录。",
	},
}

func inBothLanguages(t *testing.T, test func(t *testing.T, p *person, language string, texts map[string]string)) {
	t.Helper()
	for language, texts := range exampleTexts {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			test(t, newPerson(t, window{width: 360, language: language}), language, texts)
		})
	}
}

// A submit before the widget is ready waits for it.
func TestExampleSlowWidget(t *testing.T) {
	t.Parallel()
	inBothLanguages(t, func(t *testing.T, p *person, language string, texts map[string]string) {
		p.before(bindsLater)
		p.open("/login")
		p.until("window.bind")
		p.fills()
		p.submits()
		p.sees(texts["loading"])
		p.looks("example-loading-" + language)
		eval[bool](p, `(bind(), true)`)
		p.until(opened)
		require.Empty(t, eval[string](p, `message.textContent`))
		p.presses(kb.Escape)
		p.sees(texts["dismissed"])
		p.looks("example-dismissed-" + language)
		p.submits()
		p.drags(1)
		p.sees(texts["welcome"])
	})
}

// A widget that does not get ready is given up after a while, and welcome after that.
func TestExampleWidgetTooLate(t *testing.T) {
	t.Parallel()
	inBothLanguages(t, func(_ *testing.T, p *person, _ string, texts map[string]string) {
		p.before(bindsLater + `const later = setTimeout; window.setTimeout = (f, ms) => ms === 20_000 ? void (window.over = f) : later(f, ms);`)
		p.allow("the captcha takes too long")
		p.open("/login")
		p.fills()
		p.until("window.bind")
		p.submits()
		p.sees(texts["loading"])
		eval[bool](p, `(over(), true)`) // twenty seconds later
		p.sees(texts["notLoaded"])
		eval[bool](p, `(bind(), true)`)
		p.until(`message.textContent === ""`)
		p.submits()
		p.drags(1)
		p.sees(texts["welcome"])
	})
}

// A drill: the Content-Security-Policy forgets the service's hosts. The server rejects
// what the widget hands over then, and the person is told what helps.
func TestExampleFailover(t *testing.T) {
	t.Parallel()
	inBothLanguages(t, func(t *testing.T, p *person, language string, texts map[string]string) {
		p.allow("INIT_FAIL")
		p.allow("Content Security Policy")
		p.allow("error: ")
		site := p.site
		p.withPolicy(func(policy string) string {
			narrow := strings.Replace(policy, "default-src 'self' "+p.simulator, "default-src 'self'", 1)
			require.NotEqual(t, policy, narrow)
			return narrow
		})
		p.before(`const real = fetch; window.statuses = [];
			window.fetch = async (...args) => { const r = await real(...args); statuses.push(r.status); return r; };`)
		p.open("/login")
		p.fills()
		p.until("failed")
		for i := range 2 {
			p.submits()
			p.until(fmt.Sprintf(`statuses.length === %d && submit.getAttribute("aria-disabled") === "false"`, i+1))
			p.sees(texts["notLoaded"])
		}
		require.Equal(t, []int{403, 403}, eval[[]int](p, "statuses")) // the server has decided
		require.Equal(t, texts["notLoaded"], eval[string](p, `message.textContent`))
		require.True(t, eval[bool](p, "!"+opened))
		p.looks("example-failover-" + language)
		p.site = site // mended
		p.open("/login")
		p.fills()
		p.submits()
		p.drags(1)
		p.sees(texts["welcome"])
	})
}

// The EncryptedSceneId of a page that was open for too long is refused in the browser. The
// page is loaded again for another one, but not if its value was made just now.
func TestExampleRenewed(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/login", "/signup"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			inBothLanguages(t, func(t *testing.T, p *person, language string, texts map[string]string) {
				// The first value is none that the simulator accepts.
				p.before(`let real; const isFirst = location.search === ""; Object.defineProperty(window, "initAliyunCaptcha", {set: (f) => { real = f; }, get: () => (options) =>
					real(isFirst ? {...options, EncryptedSceneId: "bad"} : options)});
					const now = Date.now, start = now(); let age = 0; Date.now = () => now() + age;`)
				p.allow("F022")
				p.allow("verifyCode")
				p.open(path)
				p.fills()
				p.submits()
				p.drags(1)
				p.sees(texts["unavailable"]) // the page is new
				p.until("!" + opened)
				p.looks("example-unavailable-" + language)

				eval[bool](p, `(age = 3600_000, true)`)
				p.submits()
				p.drags(1)
				p.sees(texts["renewed"])
				require.Equal(t, p.site+path, eval[string](p, "location.href"))
				p.looks("example-renewed-" + language)
				p.until(`captcha`)
				p.fills()
				p.submits()
				p.drags(1)
				p.until(`document.body.innerText.includes("alice") && (!document.querySelector("form") || form.hidden)`)
			})
		})
	}
}
