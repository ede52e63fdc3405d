package main

import (
	"bytes"
	"crypto/rand"
	"embed"
	"html/template"
	"net/http"
	"strings"

	"golang.org/x/text/language"
)

//go:embed web
var web embed.FS

var pages = template.Must(template.ParseFS(web, "web/pages.html"))

// words contains the texts of the pages in one language.
type words struct {
	Lang   string // the language of the page
	Widget string // the language of the widget, as the vendor names it

	Start, Home, Login, Signup, Adaptive, Welcome string // titles
	LoginHint, SignupHint, AdaptiveHint           string
	DoLogin, DoSignup                             string // on buttons
	Pages, Intro, Simulator, Faults, NoScript     string
	Username, Password, NewPassword, Email        string
	Captcha, NoUsername, ShortPassword, SignedUp  string
	Script                                        scriptWords
}

// scriptWords contains the texts for page.js.
type scriptWords struct {
	Loading     string `json:"loading"`
	NotLoaded   string `json:"notLoaded"`
	Dismissed   string `json:"dismissed"`
	Renewed     string `json:"renewed"`
	Unavailable string `json:"unavailable"`
	Sending     string `json:"sending"`
	Unreachable string `json:"unreachable"`
	Wrong       string `json:"wrong"`
	Failed      string `json:"failed"`
	Now         string `json:"now"`
	Welcome     string `json:"welcome"` // {} stands for the name
}

var english = words{
	Lang:       "en",
	Widget:     "en",
	Start:      "Start",
	Home:       "Forms behind a captcha",
	Login:      "Log in",
	Signup:     "Sign up",
	Adaptive:   "Adaptive login",
	Welcome:    "Welcome",
	LoginHint:  "The one account is alice, with the password correct-horse.",
	SignupHint: "A plain form. What you enter is checked and then forgotten.",
	AdaptiveHint: "The same account. A captcha is required only after failed logins: " +
		"three for an account, or ten from an address.",
	DoLogin:  "Log in",
	DoSignup: "Sign up",
	Pages:    "Pages",
	Intro:    "Each form is behind a gate of its own. The service's verdict decides which requests reach it.",
	Simulator: "This site runs on a simulator of the service. These commands mint a param for the login's scene, " +
		"log in with it, and send it again, which is refused: a param can be verified only once.",
	Faults: "To see how the pages handle a rejection or an outage, and to end it:",
	NoScript: "This form needs JavaScript: the captcha does not work without it. " +
		"Please switch it on and reload the page.",
	Username:      "Username",
	Password:      "Password",
	NewPassword:   "Password (8 characters or more)",
	Email:         "E-mail (optional)",
	Captcha:       "Captcha",
	NoUsername:    "Please enter a username.",
	ShortPassword: "The password must have 8 characters or more.",
	SignedUp:      "Your account would now exist: ",
	Script: scriptWords{
		Loading:     "The captcha is still loading. Please wait.",
		NotLoaded:   "The captcha could not be loaded. Please check your connection and reload the page.",
		Dismissed:   "The captcha was closed. Please complete it to go on.",
		Renewed:     "This page was too old for the captcha and has been loaded again. Please try again.",
		Unavailable: "The captcha cannot be used right now. Please try again later.",
		Sending:     "Sending…",
		Unreachable: "The site cannot be reached. Please check your connection and try again.",
		Wrong:       "Wrong username or password.",
		Failed:      "Something went wrong. Please try again.",
		Now:         "You can try again now.",
		Welcome:     "Welcome, {}. You are logged in.",
	},
}

var chinese = words{
	Lang:       "zh-CN",
	Widget:     "cn",
	Start:      "首页",
	Home:       "受验证码保护的表单",
	Login:      "登录",
	Signup:     "注册",
	Adaptive:   "自适应登录",
	Welcome:    "欢迎",
	LoginHint:  "唯一的账号是 alice，密码是 correct-horse。",
	SignupHint: "普通表单。填写的内容校验后不会保存。",
	AdaptiveHint: "账号同上。" +
		"同一账号登录失败三次，或同一地址登录失败十次后，才要求验证码。",
	DoLogin:  "登录",
	DoSignup: "注册",
	Pages:    "页面",
	Intro:    "每个表单都由单独的验证码保护，能否提交以服务端的校验结果为准。",
	Simulator: "本站点运行在服务的模拟器上。" +
		"以下命令为登录场景生成一个参数，用它登录，然后再次发送；" +
		"第二次会被拒绝，因为一个参数只能校验一次。",
	Faults:        "用以下命令模拟拒绝或故障，最后一条恢复正常：",
	NoScript:      "此表单需要 JavaScript，否则验证码无法工作。请启用后重新加载页面。",
	Username:      "用户名",
	Password:      "密码",
	NewPassword:   "密码（至少 8 个字符）",
	Email:         "电子邮箱（选填）",
	Captcha:       "验证码",
	NoUsername:    "请输入用户名。",
	ShortPassword: "密码至少需要 8 个字符。",
	SignedUp:      "注册成功（演示站点，不会保存）：",
	Script: scriptWords{
		Loading:     "验证码仍在加载，请稍候。",
		NotLoaded:   "验证码加载失败，请检查网络后重新加载页面。",
		Dismissed:   "验证码已关闭，完成验证后才能继续。",
		Renewed:     "页面打开时间过长，验证码已失效，页面已重新加载。请重试。",
		Unavailable: "验证码暂时无法使用，请稍后再试。",
		Sending:     "正在提交…",
		Unreachable: "无法连接本站，请检查网络后重试。",
		Wrong:       "用户名或密码错误。",
		Failed:      "出现错误，请重试。",
		Now:         "现在可以重试了。",
		Welcome:     "欢迎，{}。您已登录。",
	},
}

var languages = language.NewMatcher([]language.Tag{language.English, language.SimplifiedChinese})

func wordsFor(r *http.Request) words {
	// A longer list takes time to parse, and no browser sends one.
	if accept := strings.Join(r.Header.Values("Accept-Language"), ","); len(accept) <= 1000 {
		if _, i := language.MatchStrings(languages, accept); i == 1 {
			return chinese
		}
	}
	return english
}

// A page is the input of a template.
type page struct {
	settings
	Words             words
	Nav               []link
	Path, Title, Hint string
	Scene, Submit     string // the scene and the button of a form
	Error, Invalid    string // the error in a form, and the field that has it
	Username, Email   string // the values of a form that is shown again
	Nonce             string
}

// EncryptedScene returns the EncryptedSceneId of the page's form, or an empty string
// outside encrypted mode.
func (p page) EncryptedScene() (string, error) {
	if p.sceneKey == nil {
		return "", nil
	}
	return p.sceneKey.Encrypt(p.Scene, sceneLife)
}

type link struct{ Path, Title, Hint string }

// page returns the page for the path of r.
func (s settings) page(r *http.Request) page {
	t := wordsFor(r)
	p := page{settings: s, Words: t, Path: r.URL.Path, Nonce: rand.Text(), Nav: []link{
		{"/", t.Start, ""},
		{"/login", t.Login, t.LoginHint},
		{"/signup", t.Signup, t.SignupHint},
		{"/adaptive", t.Adaptive, t.AdaptiveHint},
	}}
	for _, l := range p.Nav {
		if l.Path == p.Path {
			p.Title, p.Hint = l.Title, l.Hint
		}
	}
	switch p.Path {
	case "/":
		p.Title = t.Home
	case "/login", "/adaptive":
		p.Scene, p.Submit = s.LoginScene, t.DoLogin
	case "/signup":
		p.Scene, p.Submit = s.SignupScene, t.DoSignup
	}
	return p
}

// show writes the page with the named template.
func (p page) show(w http.ResponseWriter, status int, name string) {
	var body bytes.Buffer
	if err := pages.ExecuteTemplate(&body, name, p); err != nil {
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", p.Words.Lang)
	h.Set("Vary", "Accept-Language")
	h.Set("Cache-Control", "no-store") // the nonce must be used only once, and an EncryptedSceneId expires
	// The vendor specifies these origins, which are wide. The escaping of the
	// template is what keeps other scripts out of the page.
	h.Set("Content-Security-Policy", "default-src 'self' "+p.Origins+
		"; script-src 'self' 'nonce-"+p.Nonce+"' "+p.Origins+
		"; style-src 'self' 'unsafe-inline' "+p.Origins+
		"; img-src 'self' data: "+p.Origins+
		"; object-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	w.Write(body.Bytes())
}
