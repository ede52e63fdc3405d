package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// The login works at the first attempt in each kind of window.
func TestLogin(t *testing.T) {
	t.Parallel()
	title := map[string]string{"en": "Please complete the verification", "zh-CN": "请完成安全验证"}
	welcome := map[string]string{"en": "Welcome, alice. You are logged in.", "zh-CN": "欢迎，alice。您已登录。"}
	for _, width := range []int64{360, 1280} {
		for _, language := range []string{"en", "zh-CN"} {
			for _, dark := range []bool{false, true} {
				t.Run(fmt.Sprint(width, " ", language, " dark=", dark), func(t *testing.T) {
					t.Parallel()
					p := newPerson(t, window{width: width, language: language, dark: dark})
					name := fmt.Sprintf("%d-%s-%s", width, language, map[bool]string{false: "light", true: "dark"}[dark])
					p.open("/")
					p.looks("index-" + name)
					p.open("/login")
					p.looks("login-" + name)
					p.logsIn("alice", "correct-horse")
					p.until(opened)
					require.Equal(t, title[language], eval[string](p, widget+`.querySelector("h2").textContent`))
					p.looks("challenge-" + name)
					p.drags(1)
					p.sees(welcome[language])
					p.looks("welcome-" + name)
				})
			}
		}
	}
}

func TestLoginByKeyboard(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{})
	p.open("/login")
	p.until(`typeof captcha === "object"`)
	p.do(chromedp.Focus(chromedp.CSS("#username")))
	p.presses("alice" + kb.Tab + "correct-horse" + kb.Enter)
	p.until(opened) // the focus is in it
	p.slider()
	p.presses(strings.Repeat(kb.ArrowRight, 40))
	p.until(widget + `.querySelector("input").value === "40"`)
	p.looks("challenge-by-keyboard")
	p.presses(strings.Repeat(kb.ArrowRight, 60))
	p.sees("Welcome, alice. You are logged in.")
	p.until(`document.activeElement.id === "welcome"`) // where a screen reader continues
}

func TestLoginByTouch(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{width: 360, touch: true})
	p.open("/login")
	p.logsIn("alice", "correct-horse")
	p.until(opened)
	p.swipes()
	p.sees("Welcome, alice. You are logged in.")
}

// A slider that is released too early goes back. A challenge that is closed can be
// started again, and the focus is where it was.
func TestChallengeGivenUp(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{})
	p.open("/login")
	p.logsIn("alice", "correct-horse")
	p.until(opened)
	p.drags(0.6)
	p.until(widget + `.querySelector("input").value === "0"`)
	for _, closes := range []func(){
		func() { p.presses(kb.Escape) },
		func() { p.do(chromedp.Evaluate[chromedp.Void](widget + `.querySelector("dialog button").click()`)) },
	} {
		p.until(opened)
		closes()
		p.until("!" + opened)
		p.until(`document.activeElement.type === "submit"`)
		p.presses(kb.Enter)
	}
	p.until(opened)
	p.drags(1)
	p.sees("Welcome, alice.")
}

// A wrong password spends the param too, so the next attempt has a new challenge.
func TestWrongPasswordThenAgain(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{width: 360})
	p.before(documentedOnly)
	p.open("/login")
	p.logsIn("alice", "wrong")
	p.drags(1)
	p.sees("Wrong username or password.")
	p.until(`document.activeElement.id === "password"`)
	p.looks("wrong-password")
	require.Empty(t, eval[string](p, opened+` ? "open" : ""`), "a challenge before the form was changed")

	p.presses("correct-horse" + kb.Enter) // the wrong password is selected
	p.until(opened)
	p.drags(1)
	p.sees("Welcome, alice.")
}

func TestReplay(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{})
	p.open("/login")
	p.until(`typeof captcha === "object"`)
	p.types("username", "alice")
	p.types("password", "wrong")
	// Simulates a faulty page, which keeps the param.
	eval[bool](p, `(window.sendBefore = send, send = (param) => { window.kept = param; sendBefore(param); }, true)`)
	p.submits()
	p.drags(1)
	p.sees("Wrong username or password.")
	p.types("password", "correct-horse")
	eval[bool](p, `(restarts = 1, sendBefore(kept), true)`)
	p.sees("The captcha has expired or was used already. Please solve a new one.")
	p.until(opened)
	p.looks("replay")
	p.drags(1)
	p.sees("Welcome, alice.")
}

// The page has a message for each class of rejection, and starts a new challenge
// once if that helps.
func TestRejections(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		code, english, chinese string
		again                  bool
	}{
		{
			"F001", "The captcha was not passed. Please solve a new one.",
			"验证未通过。请重新完成验证。", true,
		},
		{
			"F003", "The captcha could not be read. Please solve a new one.",
			"无法识别验证信息。请重新完成验证。", true,
		},
		{
			"F019", "The captcha has expired or was used already. Please solve a new one.",
			"验证已过期或已被使用。请重新完成验证。", true,
		},
		{
			"F009", "The captcha was not passed. Trying again will not help.",
			"验证未通过。重试也无法通过。", false,
		},
		{
			"F010", "There were too many attempts. Please wait at least an hour before you try again.",
			"尝试次数过多。请至少等待 1 小时后再试。", false,
		},
		{
			"F005", "The captcha cannot be checked right now. Please try again later.",
			"暂时无法完成验证。请稍后再试。", false,
		},
		{
			"T005", "The captcha cannot be checked right now. Please try again later.",
			"暂时无法完成验证。请稍后再试。", false,
		},
	} {
		for _, language := range []string{"en", "zh"} {
			t.Run(row.code+" "+language, func(t *testing.T) {
				t.Parallel()
				p := newPerson(t, window{width: 360, language: language})
				p.faults(`{"verifyCode":"` + row.code + `"}`)
				p.open("/login")
				p.logsIn("alice", "correct-horse")
				p.drags(1)
				words := row.english
				if language == "zh" {
					words = row.chinese
				}
				p.sees(words)
				if row.again {
					p.until(opened)
					p.looks("rejected-" + row.code + "-" + language + "-again")
					p.drags(1)
					p.until("!" + opened)
					p.sees(words)
				}
				p.looks("rejected-" + row.code + "-" + language)
				require.Empty(t, eval[string](p, opened+` ? "open" : ""`),
					"a challenge that does not help, or a second one")

				p.faults(`{}`)
				p.submits()
				p.drags(1)
				p.until(`!document.getElementById("welcome").hidden`)
			})
		}
	}
}

func TestOutage(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{})
	p.before(`const later = setTimeout; window.setTimeout = (f, ms) => ms === 5000 ? void (window.over = f) : later(f, ms);`)
	p.faults(`{"status":500}`)
	p.open("/login")
	p.logsIn("alice", "correct-horse")
	p.drags(1)
	p.sees("The captcha cannot be checked right now. You can try again in 5 s.")
	p.looks("outage")
	require.Equal(t, "true", eval[string](p, `submit.getAttribute("aria-disabled")`))
	p.submits() // the button does nothing before that
	require.Empty(t, eval[string](p, opened+` ? "open" : ""`))
	p.faults(`{}`)
	eval[bool](p, `(over(), true)`) // five seconds later
	p.sees("You can try again now.")
	p.looks("outage-over")
	p.submits()
	p.until(opened)
	p.drags(1)
	p.sees("Welcome, alice.")
}

// The page says so if the script or the site cannot be reached.
func TestNothingToReach(t *testing.T) {
	t.Parallel()
	t.Run("script", func(t *testing.T) {
		t.Parallel()
		p := newPerson(t, window{blockedScript: true})
		p.allow("the captcha's script could not be loaded")
		p.open("/login")
		p.types("username", "alice")
		p.types("password", "correct-horse")
		p.submits()
		p.sees("The captcha could not be loaded. Please check your connection and reload the page.")
		p.looks("no-script")
	})
	t.Run("site", func(t *testing.T) {
		t.Parallel()
		p := newPerson(t, window{})
		p.allow("TypeError: Failed to fetch")
		p.open("/login")
		p.until(`typeof captcha === "object"`)
		eval[bool](p, `(form.action = "http://127.0.0.1:1/login", true)`)
		p.allow("Content Security Policy") // it forbids that address too
		p.logsIn("alice", "correct-horse")
		p.drags(1)
		p.sees("The site cannot be reached. Please check your connection and try again.")
		p.looks("no-site")
	})
	t.Run("simulator", func(t *testing.T) {
		t.Parallel()
		p := newPerson(t, window{})
		p.allow("AliyunCaptcha.js (simulator)")
		p.allow("SIMULATOR")
		p.open("/login")
		p.logsIn("alice", "correct-horse")
		p.slider()
		eval[bool](p, `(window.fetchBefore = fetch, fetch = () => Promise.reject(new Error("offline")), true)`)
		p.drags(1)
		p.until(widget + `.querySelector("#hint").textContent === "The verification cannot be reached. Please try again."`)
		p.looks("no-simulator")
		eval[bool](p, `(fetch = fetchBefore, true)`)
		p.drags(1)
		p.sees("Welcome, alice.")
	})
}

// The signup is a plain form with a full page load.
func TestSignup(t *testing.T) {
	t.Parallel()
	for _, width := range []int64{360, 1280} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			t.Parallel()
			p := newPerson(t, window{width: width, dark: width == 360})
			fill := func(password string) {
				p.until(`typeof captcha === "object"`)
				p.types("username", "bob & co")
				p.types("email", "bob@example.com")
				p.types("password", password)
			}
			p.open("/signup")
			p.looks(fmt.Sprint("signup-", width))

			// The browser validates first, so that an empty form does not spend a
			// challenge.
			p.submits()
			p.until(`document.activeElement.id === "username" && !document.activeElement.validity.valid`)
			require.Empty(t, eval[string](p, opened+` ? "open" : ""`))

			fill("long-enough")
			p.submits()
			p.drags(1)
			p.sees("Your account would now exist: bob & co <bob@example.com>")
			p.looks(fmt.Sprint("signed-up-", width))

			// The site validates after the captcha. The form is shown again with what
			// was typed, and needs another param.
			p.open("/signup")
			fill("short")
			eval[bool](p, `(form.noValidate = true)`)
			p.submits()
			p.drags(1)
			p.sees("The password must have 8 characters or more.")
			p.looks(fmt.Sprint("signup-invalid-", width))
			p.until(`document.activeElement === form.password && ` +
				`form.password.getAttribute("aria-invalid") === "true" && ` +
				`form.password.getAttribute("aria-describedby") === "message"`)
			require.True(t, eval[bool](p, `!form.username.hasAttribute("aria-invalid")`))
			require.Equal(t, "bob & co bob@example.com ",
				eval[string](p, `form.username.value + " " + form.email.value + " " + form.password.value`))
			p.until(`typeof captcha === "object"`)
			p.types("password", "long-enough")
			p.submits()
			p.drags(1)
			p.sees("Your account would now exist: bob & co <bob@example.com>")
		})
	}
}

// A rejection of a full page load is a page with a link back.
func TestSignupRejected(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		window
		code, words, back string
	}{
		{window{}, "F001", "The captcha was not passed. Please solve a new one.", "Go back"},
		{
			window{width: 360, dark: true, language: "zh-CN"},
			"F010", "尝试次数过多。请至少等待 1 小时后再试。", "返回",
		},
	} {
		t.Run(row.code, func(t *testing.T) {
			t.Parallel()
			p := newPerson(t, row.window)
			p.faults(`{"verifyCode":"` + row.code + `"}`)
			p.open("/signup")
			p.until(`typeof captcha === "object"`)
			p.types("username", "bob")
			p.types("password", "long-enough")
			p.submits()
			p.drags(1)
			p.sees(row.words)
			p.looks("signup-rejected-" + row.code)
			p.faults(`{}`)
			p.clicksOn("main a")
			p.until(`document.querySelector("form") && typeof captcha === "object"`)
			p.types("username", "bob")
			p.types("password", "long-enough")
			p.submits()
			p.drags(1)
			p.until(`document.body.innerText.includes("bob") && !document.querySelector("form")`)
		})
	}
}

// Without JavaScript there is no captcha. The form and the rejection say so.
func TestWithoutJavaScript(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/signup", "/login"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			p := newPerson(t, window{noJS: true, width: 360})
			text := func() string {
				s, err := chromedp.Run(p.ctx, chromedp.Text(chromedp.CSS("main")))
				require.NoError(t, err)
				return s
			}
			p.open(path)
			require.Contains(t, text(), "This form needs JavaScript: the captcha does not work without it.")
			p.picture("without-javascript" + strings.ReplaceAll(path, "/", "-"))
			p.do(chromedp.SendKeys(chromedp.CSS("#username"), "bob"),
				chromedp.SendKeys(chromedp.CSS("#password"), "long-enough"+kb.Enter))
			p.do(chromedp.WaitVisible(chromedp.CSS("main [role=alert]")))
			p.do(chromedp.WaitNotPresent(chromedp.CSS("form")))
			require.Contains(t, text(), "The captcha needs JavaScript. Please turn it on.")
			p.picture("without-javascript-sent" + strings.ReplaceAll(path, "/", "-"))
			p.do(chromedp.Click(chromedp.CSS("main a")), chromedp.WaitVisible(chromedp.CSS("form")))
		})
	}
}

// There is no captcha at first. After three failures for an account each login needs one.
func TestAdaptive(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{width: 360})
	p.open("/adaptive")
	for range 3 {
		p.logsIn("alice", "wrong")
		p.sees("Wrong username or password.")
		require.Empty(t, eval[string](p, opened+` ? "open" : ""`))
	}
	p.logsIn("alice", "correct-horse")
	p.sees("The captcha was not completed. Please complete it and try again.")
	p.until(opened)
	p.looks("adaptive-asked")
	p.presses(kb.Escape)
	p.sees("The captcha was closed. Please complete it to go on.")
	p.submits() // the page knows now
	p.until(opened)
	require.Empty(t, eval[string](p, `message.textContent`))
	p.drags(1)
	p.sees("Welcome, alice.")

	p.open("/adaptive")
	p.logsIn("bob", "wrong") // another account
	p.sees("Wrong username or password.")
	p.looks("adaptive")
}

// A flood from one address is rejected before the captcha, and the page says when to
// try again.
func TestTooManyRequests(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{})
	p.before(`const later = setTimeout; window.setTimeout = (f, ms) => ms === 1000 ? void (window.over = f) : later(f, ms);`)
	p.open("/login")
	p.until(`typeof captcha === "object"`)
	// Others at this address use up the minute's requests just before the login is sent.
	eval[bool](p, `(() => {
		const send = window.fetch, flood = {method: "POST", headers: {"Content-Type": "application/json"}, body: "{}"};
		window.fetch = async (...args) => {
			if (!String(args[0]).endsWith("/login")) return send(...args); // the widget's
			window.statuses = await Promise.all(Array.from({length: 70}, () => send("/login", flood).then((r) => r.status)));
			return send(...args);
		};
		return true;
	})()`)
	p.logsIn("alice", "correct-horse")
	p.drags(1)
	p.sees("There were too many attempts. You can try again in 1 s.")
	require.Contains(t, eval[[]int](p, `window.statuses`), 429)
	p.looks("too-many-requests")
}
