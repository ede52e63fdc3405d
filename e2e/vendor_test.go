package e2e

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// vendorPage is a page as the vendor documents it, with other callbacks than the
// vendor's only in that they record their values in the object got. query goes to the
// script's URL, and script initializes the widget.
func vendorPage(t *testing.T, cfg alicaptchatest.Config, query, script string) (*person, *alicaptchatest.Server) {
	t.Helper()
	simulator := alicaptchatest.Start(t, cfg)
	page := `<!doctype html><html lang="en"><meta charset="utf-8"><title>Vendor</title><link rel="icon" href="data:,">
		<script>window.AliyunCaptchaConfig = {region: "cn", prefix: "1tbpug"};
		let captcha; const got = {success: [], fail: [], onError: [], onClose: [], biz: [], instance: []};
		const calls = (name) => (value) => { got[name].push(value); got.at = performance.now(); };
		const getInstance = (instance) => { captcha = instance; got.bound = performance.now(); got.instance.push(Object.keys(instance).sort().join()); };
		</script>
		<script src="` + simulator.URL + `/AliyunCaptcha.js` + query + `"></script>
		<h1>Vendor</h1><div id="captcha-element"></div><button id="captcha-button">Go</button>
		<script>` + script + `</script>`
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, page)
	}))
	t.Cleanup(site.Close)
	p := newWindow(t, window{})
	p.site, p.simulator = site.URL, simulator.URL
	p.open("/")
	return p, simulator
}

// clicks clicks the widget's own button.
func (p *person) clicks() {
	p.t.Helper()
	eval[bool](p, `(document.getElementById("captcha-button").click(), true)`)
}

// verified sends a param to the simulator, as a server does.
func verified(t *testing.T, s *alicaptchatest.Server, param string) (code, certifyID string) {
	t.Helper()
	result, err := s.Client().Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
	require.NoError(t, err)
	return string(result.Code), result.CertifyID
}

// Each form of page that the vendor documents, with every option and callback.
func TestVendorPages(t *testing.T) {
	t.Parallel()
	const options = `SceneId: "login", element: "#captcha-element", button: "#captcha-button", getInstance,
		slideStyle: {width: 360, height: 40}, language: "en", timeout: 5000, rem: 1, onError: calls("onError"), onClose: calls("onClose"),
		captchaLogoImg: "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7", dualStack: true,
		UserCertifyId: "1tbpug_abcDEF0123", showErrorTip: true, delayBeforeSuccess: true, zIndex: 100, disableMaskClick: false, `
	const es6 = `async captchaVerifyCallback(captchaVerifyParam) {
			got.success.push(captchaVerifyParam);
			const result = await Promise.resolve({captchaVerifyResult: got.success.length > 1, bizResult: true});
			return {captchaResult: result.captchaVerifyResult, bizResult: result.bizResult};
		}, onBizResultCallback: calls("biz")`
	const es5 = `captchaVerifyCallback: function (captchaVerifyParam, callback) {
			got.success.push(captchaVerifyParam);
			setTimeout(function () { callback({captchaResult: got.success.length > 1, bizResult: true}); }, 10);
		}, onBizResultCallback: calls("biz")`
	const v3, v3Methods = `success: calls("success"), fail: calls("fail")`, "hide,show"
	const v2Methods = "destroyCaptcha,hide,refresh,show"
	for name, row := range map[string]struct {
		query, options, instance string
		isV2, isTraceless        bool
	}{
		"V3 popup":      {"", `mode: "popup", ` + v3, v3Methods, false, false},
		"V3 embed":      {"", `mode: "embed", ` + v3, v3Methods, false, false},
		"V3 traceless":  {"?traceless", `mode: "popup", ` + v3, "startTracelessVerification", false, true},
		"V2 popup, ES6": {"", `mode: "popup", ` + es6, v2Methods, true, false},
		"V2 popup, ES5": {"", `mode: "popup", ` + es5, v2Methods, true, false},
		"V2 embed, ES6": {"", `mode: "embed", ` + es6, v2Methods, true, false},
		"V2 embed, ES5": {"", `mode: "embed", ` + es5, v2Methods, true, false},
		"V2 traceless":  {"?traceless", `mode: "popup", ` + es6, "destroyCaptcha,hide,show", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, simulator := vendorPage(t, alicaptchatest.Config{}, row.query, `initAliyunCaptcha({`+options+row.options+`});`)
			p.until(`captcha`)
			require.Equal(t, row.instance, eval[string](p, `got.instance.join(" ")`))
			isEmbed := strings.Contains(row.options, "embed")
			solve := func() {
				if !isEmbed {
					p.until(opened)
				}
				p.drags(1)
				if isEmbed && row.isV2 {
					p.until(widget + `.querySelector("#hint").textContent === "Verified"`)
					p.clicks()
				}
			}
			switch {
			case row.isTraceless:
				eval[bool](p, `(captcha.show?.(), true)`) // has no effect on the first verification
				require.True(t, eval[bool](p, "!"+opened))
				p.clicks()
			case isEmbed:
				require.Equal(t, 360, eval[int](p, widget+`.querySelector(".embedded").offsetWidth`))
				solve()
			default:
				p.clicks()
				require.Equal(t, 360+32, eval[int](p, opened+`.offsetWidth`))
				require.True(t, eval[bool](p, opened+`.querySelector("img").complete`))
				solve()
			}
			params := 1
			if row.isV2 { // whose first param the page refuses
				p.until(`got.success.length === 1`)
				solve()
				params = 2
				p.until(`got.biz.join() === "true"`)
			}
			p.until(fmt.Sprintf(`got.success.length === %d`, params))
			p.until("!" + opened)
			got := eval[[]string](p, `got.success`)
			code, id := verified(t, simulator, got[0])
			require.Equal(t, "T001", code)
			require.Equal(t, "1tbpug_abcDEF0123", id)
			if !row.isV2 {
				require.Len(t, got[0], 280)
				require.Empty(t, eval[[]any](p, `got.biz`))
				require.GreaterOrEqual(t, eval[float64](p, `got.at - performance.getEntriesByType("resource").`+
					`find(({name}) => name.endsWith("/widget/verify")).responseEnd`), 990.0, "delayBeforeSuccess")
				return
			}
			require.Greater(t, len(got[0]), 4000)
			code, id = verified(t, simulator, got[1])
			require.Equal(t, "T001", code)
			require.Regexp(t, "^[0-9A-Za-z]{10}$", id, "the UserCertifyId was for the first param")
			require.Empty(t, eval[[]any](p, `[...got.fail, ...got.onError, ...got.onClose]`))
		})
	}
}

// element and button may be elements, and a page that does not say which language it
// wants gets Chinese.
func TestVendorDefaults(t *testing.T) {
	t.Parallel()
	for language, title := range map[string]string{
		``: "请完成安全验证", `language: "cn",`: "请完成安全验证", `language: "tw",`: "请完成安全验证",
		`language: "en",`: "Please complete the verification", `language: "ja",`: "Please complete the verification",
	} {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			p, simulator := vendorPage(t, alicaptchatest.Config{}, "", `initAliyunCaptcha({SceneId: "login", mode: "popup", `+language+`
				element: document.getElementById("captcha-element"), button: document.getElementById("captcha-button"),
				success: calls("success"), getInstance});`)
			p.until(`captcha`)
			p.clicks()
			require.Equal(t, title, eval[string](p, opened+`.querySelector("h2").textContent`))
			p.drags(1)
			p.until(`got.success.length === 1`)
			code, id := verified(t, simulator, eval[string](p, `got.success[0]`))
			require.Equal(t, "T001", code)
			require.Regexp(t, "^[0-9A-Za-z]{10}$", id)
		})
	}
}

// For the rest of this file.
const (
	vendorOptions = `SceneId: "login", element: "#captcha-element", button: "#captcha-button", getInstance, language: "en", ` +
		`fail: calls("fail"), onError: calls("onError"), onClose: calls("onClose"), `
	vendorV3 = vendorOptions + `success: calls("success"), `
	popupV3  = `initAliyunCaptcha({` + vendorV3 + `mode: "popup"});`
)

// A click before getInstance is lost.
func TestVendorBindsLate(t *testing.T) {
	t.Parallel()
	for query, binds := range map[string]bool{"": true, "?delay=500": true, "?never": false} {
		t.Run(query, func(t *testing.T) {
			t.Parallel()
			p, _ := vendorPage(t, alicaptchatest.Config{}, query, `
				const before = document.getElementById("captcha-button");
				`+popupV3+`
				before.click();
				const atOnce = got.instance.length, began = performance.now();`)
			p.until(`document.readyState === "complete"`)
			require.Zero(t, eval[int](p, `atOnce`))
			if !binds {
				// As long as it takes another window's widget to be ready, and a while.
				other, _ := vendorPage(t, alicaptchatest.Config{}, "?delay=500", popupV3)
				other.until(`captcha`)
				require.Equal(t, "[[],[],[],[],[],[]]", eval[string](p, `JSON.stringify(Object.values(got))`))
				require.True(t, eval[bool](p, `!`+popup))
				return
			}
			p.until(`captcha`)
			if query != "" {
				require.GreaterOrEqual(t, eval[float64](p, `got.bound - began`), 490.0)
			}
			require.True(t, eval[bool](p, `!`+opened), "a click was not lost")
			p.clicks()
			p.until(opened)
		})
	}
}

// In V3 the browser itself gets a verdict, and the widget starts again until it is a
// pass.
func TestVendorFails(t *testing.T) {
	t.Parallel()
	p, simulator := vendorPage(t, alicaptchatest.Config{}, "?fail=F001,F015", popupV3)
	p.until(`captcha`)
	p.clicks()
	for i := range 2 {
		p.drags(1)
		p.until(fmt.Sprintf(`got.fail.length === %d`, i+1))
		p.until(widget + `.querySelector("#hint").textContent === "Verification failed. Please try again."`)
		p.until(opened)
	}
	require.Equal(t, "F001 F015", eval[string](p, `got.fail.map((f) => f.verifyCode).join(" ")`))
	require.Empty(t, eval[[]string](p, `got.success`))
	p.drags(1)
	p.until(`got.success.length === 1`)
	code, _ := verified(t, simulator, eval[string](p, `got.success[0]`))
	require.Equal(t, "T001", code)
}

// A risky visitor of a traceless scene has a second challenge.
func TestVendorTracelessRisk(t *testing.T) {
	t.Parallel()
	p, _ := vendorPage(t, alicaptchatest.Config{}, "?traceless&fail=F001", popupV3)
	p.until(`captcha`)
	eval[bool](p, `(captcha.startTracelessVerification(), captcha.startTracelessVerification(), true)`)
	p.until(opened)
	require.Equal(t, "F001", eval[string](p, `got.fail.map((f) => f.verifyCode).join(" ")`), "one at a time")
	p.drags(1)
	p.until(`got.success.length === 1`)
	p.until("!" + opened)
	eval[bool](p, `(captcha.startTracelessVerification(), true)`) // a new one without a challenge
	p.until(`got.success.length === 2 && got.success[0] !== got.success[1]`)
	require.True(t, eval[bool](p, "!"+opened))
}

// Encrypted mode: what the service refuses ends in the browser.
func TestVendorEncryptedScene(t *testing.T) {
	t.Parallel()
	key, other := strings.Repeat("k", 32), strings.Repeat("o", 32)
	now := time.Now().Unix()
	for name, row := range map[string]struct {
		value, code string
	}{
		"valid":           {encrypted(key, "login", now-5, 3600), "T001"},
		"wrong key":       {encrypted(other, "login", now-5, 3600), "F022"},
		"from the future": {encrypted(key, "login", now+600, 3600), "F022"},
		"expired":         {encrypted(key, "login", now-3600, 3600), "F022"},
		"missing":         {"", "F022"},
		"another scene's": {encrypted(key, "signup", now-5, 3600), "F022"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := alicaptchatest.Config{EKey: base64.StdEncoding.EncodeToString([]byte(key))}
			script := fmt.Sprintf(`initAliyunCaptcha({`+vendorV3+`mode: "popup", EncryptedSceneId: %q});`, row.value)
			p, simulator := vendorPage(t, cfg, "", script)
			p.allow("AliyunCaptcha.js (simulator): F022: ")
			p.until(`captcha`)
			p.clicks()
			for i := range 2 { // the widget starts again, in vain
				p.drags(1)
				if row.code == "T001" {
					p.until(`got.success.length === 1`)
					code, _ := verified(t, simulator, eval[string](p, `got.success[0]`))
					require.Equal(t, row.code, code)
					return
				}
				p.until(fmt.Sprintf(`got.fail.length === %d`, i+1))
				require.Equal(t, row.code, eval[string](p, `got.fail.at(-1).verifyCode`))
			}
			require.Empty(t, eval[[]string](p, `got.success`))
			require.Len(t, p.complaints(), 2)
		})
	}
	t.Run("V2 has none", func(t *testing.T) {
		t.Parallel()
		p, _ := vendorPage(t, alicaptchatest.Config{EKey: base64.StdEncoding.EncodeToString([]byte(key))}, "",
			`initAliyunCaptcha({`+vendorOptions+`mode: "popup", captchaVerifyCallback: () => ({captchaResult: true}), `+
				`onBizResultCallback: () => got.biz.push("over")});`)
		p.until(`captcha`)
		p.clicks()
		p.drags(1)
		p.until(`got.biz.join() === "over"`)
	})
}

// encrypted returns an EncryptedSceneId. It is independent of the package's own code.
func encrypted(key, scene string, timestamp int64, expireTime int) string {
	text := fmt.Appendf(nil, "%s&%d&%d", scene, timestamp, expireTime)
	n := aes.BlockSize - len(text)%aes.BlockSize
	text = append(text, bytes.Repeat([]byte{byte(n)}, n)...)
	block, err := aes.NewCipher([]byte(key))
	if err != nil {
		panic(err)
	}
	iv := []byte(rand.Text()[:aes.BlockSize])
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(text, text)
	return base64.StdEncoding.EncodeToString(append(iv, text...))
}

// What makes a start impossible is told to onError, and there is no instance.
func TestVendorErrors(t *testing.T) {
	t.Parallel()
	const rest = `getInstance, onError: calls("onError"), element: "#captcha-element", button: "#captcha-button", `
	for name, row := range map[string]struct{ query, options, code string }{
		"no scene":         {"", rest + `mode: "popup", success() {}`, "IllegalScene"},
		"unknown scene":    {"", rest + `mode: "popup", success() {}, SceneId: "nobody"`, "IllegalScene"},
		"short id":         {"", vendorV3 + `mode: "popup", UserCertifyId: "1tbpug_short"`, "IllegalCertifyId"},
		"foreign id":       {"", vendorV3 + `mode: "popup", UserCertifyId: "other_abcDEF0123"`, "IllegalCertifyId"},
		"bare id":          {"", vendorV3 + `mode: "popup", UserCertifyId: "abcDEF0123"`, "IllegalCertifyId"},
		"overdue":          {"?error=Forbidden.AccountAccessDenied", vendorV3 + `mode: "popup"`, "Forbidden.AccountAccessDenied"},
		"throttled":        {"?error=Throttling", vendorV3 + `mode: "popup"`, "Throttling"},
		"throttled by us":  {"?error=ThrottlingByStrategy", vendorV3 + `mode: "popup"`, "ThrottlingByStrategy"},
		"no mode":          {"", vendorV3, "SIMULATOR"},
		"no callback":      {"", vendorOptions + `mode: "popup"`, "SIMULATOR"},
		"no button":        {"", vendorV3 + `mode: "popup", button: "#nobody"`, "SIMULATOR"},
		"button of no use": {"", vendorV3 + `mode: "popup", button: {}`, "SIMULATOR"},
		"traceless embed":  {"?traceless", vendorV3 + `mode: "embed"`, "SIMULATOR"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := vendorPage(t, alicaptchatest.Config{}, row.query, `initAliyunCaptcha({`+row.options+`});`)
			p.allow("AliyunCaptcha.js (simulator): " + row.code + ": ")
			p.until(`got.onError.length === 1`)
			require.Equal(t, row.code, eval[string](p, `got.onError[0].code`))
			require.NotEmpty(t, eval[string](p, `got.onError[0].msg`))
			p.clicks()
			require.True(t, eval[bool](p, `!`+popup+` && got.instance.length === 0`))
			require.Len(t, p.complaints(), 1)
		})
	}
	for name, config := range map[string]string{
		"late":      `undefined`,
		"no region": `{prefix: "1tbpug"}`,
		"no prefix": `{region: "cn"}`,
		"bad":       `{region: "cn", prefix: "a.b"}`,
	} {
		t.Run("config "+name, func(t *testing.T) {
			t.Parallel()
			p, _ := vendorPage(t, alicaptchatest.Config{}, "", `
				// The script again, as if it were the first time, with this configuration when it loads.
				delete window.initAliyunCaptcha;
				window.AliyunCaptchaConfig = `+config+`;
				const again = document.createElement("script");
				again.src = document.scripts[1].src;
				again.onload = () => {
					window.AliyunCaptchaConfig = {region: "cn", prefix: "1tbpug"};
					`+popupV3+`
				};
				document.body.append(again);`)
			p.allow("AliyunCaptcha.js (simulator): IllegalUserTag: ")
			p.until(`got.onError.length === 1`)
			require.Equal(t, "IllegalUserTag", eval[string](p, `got.onError[0].code`))
		})
	}
	t.Run("the script twice", func(t *testing.T) {
		t.Parallel()
		p, _ := vendorPage(t, alicaptchatest.Config{}, "", `
			const again = document.createElement("script");
			again.src = document.scripts[1].src;
			again.onload = () => { `+popupV3+` };
			document.body.append(again);`)
		p.allow("AliyunCaptcha.js (simulator): the script is loaded twice")
		p.until(`captcha`) // of the first
		require.Len(t, p.complaints(), 1)
	})
}

// The param of a widget that cannot reach the service comes by the usual way, and is
// refused by the service.
func TestVendorFailover(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ options, code string }{
		"V3 popup": {vendorV3 + `mode: "popup"`, "F014"},
		"V3 embed": {vendorV3 + `mode: "embed"`, "F014"},
		"V2": {vendorOptions + `mode: "popup",
			captchaVerifyCallback(param) { got.success.push(param); return {captchaResult: false, bizResult: false}; }`, "F023"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, simulator := vendorPage(t, alicaptchatest.Config{}, "?down", `initAliyunCaptcha({`+row.options+`});`)
			p.allow("AliyunCaptcha.js (simulator): INIT_FAIL: ")
			p.until(`got.onError.length === 1`)
			require.Equal(t, "INIT_FAIL", eval[string](p, `got.onError[0].code`))
			require.Empty(t, eval[[]string](p, `got.instance`))
			for i := range 2 {
				p.clicks()
				p.until(fmt.Sprintf(`got.success.length === %d`, i+1))
			}
			param := eval[string](p, `got.success[0]`)
			text := param
			if row.code == "F014" {
				decoded, err := base64.StdEncoding.DecodeString(param)
				require.NoError(t, err)
				text = string(decoded)
			}
			require.Contains(t, text, `"failover":"T","err":{"code":"INIT_FAIL"}`)
			code, certifyID := verified(t, simulator, param)
			require.Equal(t, row.code, code)
			require.Empty(t, certifyID)
		})
	}
	// The same if the page's Content-Security-Policy or a firewall is what forbids it,
	// or if nothing answers in time.
	t.Run("blocked", func(t *testing.T) {
		t.Parallel()
		p, _ := vendorPage(t, alicaptchatest.Config{}, "", `
			document.head.insertAdjacentHTML("beforeend", '<meta http-equiv="Content-Security-Policy" content="connect-src https://nowhere.test">');`+popupV3)
		p.allow("INIT_FAIL")
		p.allow("Content Security Policy")
		p.until(`got.onError.length === 1 && got.onError[0].code === "INIT_FAIL"`)
		p.clicks()
		p.until(`got.success.length === 1`)
	})
	t.Run("timeout", func(t *testing.T) {
		t.Parallel()
		p, _ := vendorPage(t, alicaptchatest.Config{}, "", `
			window.fetch = (url, {signal}) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
			initAliyunCaptcha({`+vendorV3+`mode: "popup", timeout: 50});`)
		p.allow("INIT_FAIL")
		p.until(`got.onError.length === 1 && got.onError[0].code === "INIT_FAIL"`)
		p.clicks()
		p.until(`got.success.length === 1`)
	})
}

// A person who gives up is reported with the vendor's reason; what the page does itself
// is not.
func TestVendorOnClose(t *testing.T) {
	t.Parallel()
	p, _ := vendorPage(t, alicaptchatest.Config{}, "", popupV3)
	p.until(`captcha`)
	mask := func() { p.do(chromedp.MouseClickXY(5, 5)) }
	for i, closes := range []func(){
		func() { p.presses(kb.Escape) },
		func() { eval[bool](p, `(`+opened+`.querySelector("button").click(), true)`) },
		mask,
	} {
		p.clicks()
		p.until(opened)
		closes()
		p.until("!" + opened)
		p.until(fmt.Sprintf(`got.onClose.length === %d`, i+1))
	}
	require.Equal(t, "userDismiss userDismiss userDismiss", eval[string](p, `got.onClose.join(" ")`))
	eval[bool](p, `(captcha.show(), captcha.hide(), captcha.show(), true)`)
	p.until(opened)
	p.drags(1)
	p.until(`got.success.length === 1`)
	require.Len(t, eval[[]string](p, `got.onClose`), 3)

	p, _ = vendorPage(t, alicaptchatest.Config{}, "", `initAliyunCaptcha({`+vendorV3+`mode: "popup", disableMaskClick: true});`)
	p.until(`captcha`)
	p.clicks()
	p.until(opened)
	mask()
	require.Empty(t, eval[[]string](p, `got.onClose`))
	p.until(opened)
}

// Initializing again without removing the elements doubles the callbacks.
func TestVendorDoubleInit(t *testing.T) {
	t.Parallel()
	const elements = `document.querySelectorAll("#aliyunCaptcha-mask, #aliyunCaptcha-window-popup").length`
	for name, row := range map[string]struct {
		between string
		calls   int
	}{
		"left over": {``, 2},
		"removed":   {`document.getElementById("aliyunCaptcha-mask").remove(); document.getElementById("aliyunCaptcha-window-popup").remove();`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, simulator := vendorPage(t, alicaptchatest.Config{}, "", popupV3)
			p.until(`captcha`)
			require.Equal(t, 2, eval[int](p, elements))
			eval[bool](p, `((() => {`+row.between+popupV3+`})(), true)`)
			p.until(`got.instance.length === 2`)
			require.Equal(t, 2, eval[int](p, elements))
			p.clicks()
			p.drags(1)
			p.until(fmt.Sprintf(`got.success.length === %d`, row.calls))
			p.until("!" + opened)
			params := eval[[]string](p, `got.success`)
			require.Len(t, params, row.calls)
			code, _ := verified(t, simulator, params[0])
			require.Equal(t, "T001", code)
			if row.calls == 2 {
				code, _ = verified(t, simulator, params[1])
				require.Equal(t, "F018", code, "the same param")
			}
		})
	}
	t.Run("V2 destroyed", func(t *testing.T) {
		t.Parallel()
		const script = `initAliyunCaptcha({` + vendorOptions + `mode: "popup", ` +
			`captchaVerifyCallback(param) { got.success.push(param); return {captchaResult: true}; }});`
		p, _ := vendorPage(t, alicaptchatest.Config{}, "", script)
		p.until(`captcha`)
		eval[bool](p, `(captcha.destroyCaptcha(), true)`)
		require.Zero(t, eval[int](p, elements))
		eval[bool](p, `((() => {`+script+`})(), true)`)
		p.until(`got.instance.length === 2`)
		p.clicks()
		p.drags(1)
		p.until("!" + opened)
		require.Len(t, eval[[]string](p, `got.success`), 1)
	})
	t.Run("V2 traceless destroyed", func(t *testing.T) {
		t.Parallel()
		const script = `initAliyunCaptcha({` + vendorOptions + `mode: "popup", ` +
			`captchaVerifyCallback(param) { got.success.push(param); return {captchaResult: true}; }, onBizResultCallback: calls("biz")});`
		p, _ := vendorPage(t, alicaptchatest.Config{}, "?traceless", script)
		p.until(`captcha`)
		eval[bool](p, `(captcha.destroyCaptcha(), true)`)
		p.clicks() // is of no effect, or its param would come first
		eval[bool](p, `((() => {`+script+`})(), true)`)
		p.until(`got.instance.length === 2`)
		p.clicks()
		p.until(`got.biz.length === 1`)
		require.Len(t, eval[[]string](p, `got.success`), 1)
	})
}

// The service goes away after the start.
func TestVendorUnreachable(t *testing.T) {
	t.Parallel()
	for option, hint := range map[string]string{
		"":                      "The verification cannot be reached. Please try again.",
		"showErrorTip: true, ":  "The verification cannot be reached. Please try again.",
		"showErrorTip: false, ": "Drag the slider to the end, or hold the right arrow key.",
	} {
		t.Run(option, func(t *testing.T) {
			t.Parallel()
			p, _ := vendorPage(t, alicaptchatest.Config{}, "", `initAliyunCaptcha({`+vendorV3+option+`mode: "popup"});`)
			p.allow("AliyunCaptcha.js (simulator): SIMULATOR: Error: offline")
			p.until(`captcha`)
			eval[bool](p, `(window.fetchBefore = fetch, fetch = () => Promise.reject(new Error("offline")), true)`)
			p.clicks()
			p.drags(1)
			p.until(`got.onError.length === 1`)
			require.Equal(t, hint, eval[string](p, widget+`.querySelector("#hint").textContent`))
			eval[bool](p, `(fetch = fetchBefore, true)`)
			p.drags(1)
			p.until(`got.success.length === 1`)
		})
	}
}

// A V2 callback whose verdict the widget never sees leaves it stuck.
func TestVendorV2Stuck(t *testing.T) {
	t.Parallel()
	for name, callback := range map[string]string{
		"returns nothing":     `() => { Promise.resolve({captchaResult: true, bizResult: true}); }`,
		"returns a text":      `() => "true"`,
		"throws":              `() => { throw new Error("mine"); }`,
		"rejects":             `() => Promise.reject(new Error("mine"))`,
		"says yes":            `() => ({captchaResult: "yes"})`,
		"calls back nothing":  `(param, callback) => { callback(); }`,
		"calls back a string": `(param, callback) => { callback("true"); }`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := vendorPage(t, alicaptchatest.Config{}, "", `initAliyunCaptcha({`+vendorOptions+`mode: "popup",
				onBizResultCallback: calls("biz"), captchaVerifyCallback: `+callback+`});`)
			p.allow("the widget is stuck")
			p.until(`captcha`)
			p.clicks()
			p.drags(1)
			require.Eventually(t, func() bool { return len(p.complaints()) == 1 }, 20*time.Second, 20*time.Millisecond)
			stuck := opened + ` && ` + widget + `.querySelector("input").disabled && ` +
				widget + `.querySelector("#hint").textContent === "Verifying…"`
			require.True(t, eval[bool](p, `Boolean(`+stuck+`)`))
			p.presses(kb.Escape)
			p.until("!" + opened)
			p.clicks() // is of no help
			require.True(t, eval[bool](p, `Boolean(`+stuck+`)`))
			require.Empty(t, eval[[]any](p, `got.biz`))
			eval[bool](p, `(captcha.refresh(), true)`)
			require.False(t, eval[bool](p, widget+`.querySelector("input").disabled`))
		})
	}
	t.Run("a callback that is never called", func(t *testing.T) {
		t.Parallel()
		p, _ := vendorPage(t, alicaptchatest.Config{}, "", `initAliyunCaptcha({`+vendorOptions+`mode: "popup",
			onBizResultCallback: calls("biz"), captchaVerifyCallback: (param, callback) => { window.later = callback; }});`)
		p.until(`captcha`)
		p.clicks()
		p.drags(1)
		p.until(`window.later`)
		require.True(t, eval[bool](p, widget+`.querySelector("input").disabled`))
		eval[bool](p, `(later({captchaResult: true, bizResult: "late"}), later({captchaResult: true, bizResult: "twice"}), true)`)
		p.until(`got.biz.join() === "late"`)
	})
}

// A new challenge by what V3 documents, and what V2 has for it.
func TestVendorNewChallenge(t *testing.T) {
	t.Parallel()
	t.Run("V3 popup, in the callback", func(t *testing.T) {
		t.Parallel()
		p, _ := vendorPage(t, alicaptchatest.Config{}, "", `initAliyunCaptcha({`+vendorOptions+`mode: "popup",
			success(param) { got.success.push(param); if (got.success.length < 3) captcha.show(); throw new Error("mine"); }});`)
		p.allow("mine")
		p.until(`captcha`)
		p.clicks()
		for i := range 3 {
			p.until(opened)
			p.drags(1)
			p.until(fmt.Sprintf(`got.success.length === %d`, i+1))
		}
		p.until("!" + opened)
		require.Equal(t, 3, eval[int](p, `new Set(got.success).size`))
	})
	t.Run("V3 embed", func(t *testing.T) {
		t.Parallel()
		p, _ := vendorPage(t, alicaptchatest.Config{}, "", `initAliyunCaptcha({`+vendorV3+`mode: "embed"});`)
		p.until(`captcha`)
		p.drags(1)
		p.until(`got.success.length === 1`)
		p.until(widget + `.querySelector("#hint").textContent === "Verified"`)
		eval[bool](p, `(captcha.hide(), true)`)
		p.until("!" + widget + `.querySelector("input").checkVisibility()`)
		eval[bool](p, `(captcha.show(), true)`)
		p.drags(1)
		p.until(`got.success.length === 2 && got.success[0] !== got.success[1]`)
	})
	t.Run("V2 embed", func(t *testing.T) {
		t.Parallel()
		p, _ := vendorPage(t, alicaptchatest.Config{}, "", `initAliyunCaptcha({`+vendorOptions+`mode: "embed",
			captchaVerifyCallback(param) { got.success.push(param); return {captchaResult: got.success.length > 1, bizResult: 7}; },
			onBizResultCallback: calls("biz")});`)
		p.until(`captcha`)
		solves := func() {
			p.drags(1)
			p.until(widget + `.querySelector("#hint").textContent === "Verified"`)
		}
		solves()
		require.Empty(t, eval[[]string](p, `got.success`))
		eval[bool](p, `(captcha.refresh(), true)`)
		p.clicks() // has nothing to send
		solves()
		p.clicks()
		p.until(`got.success.length === 1 && got.biz.length === 0`)
		solves() // it was refused
		p.clicks()
		p.until(`got.success.length === 2 && got.biz.join() === "7"`)
		p.clicks() // once is enough
		require.Len(t, eval[[]string](p, `got.success`), 2)
		eval[bool](p, `(captcha.destroyCaptcha(), true)`)
		require.Zero(t, eval[int](p, `document.querySelector("#captcha-element").children.length`))
	})
}
