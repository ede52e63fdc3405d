package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"golang.org/x/net/http2/hpack"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/bench/internal/loopback"
)

// An attack describes what clients do to a site. For fields that are nil or zero, the
// site is the program of the README, and the service is healthy.
type attack struct {
	name          string
	requests, few int // in a full and in a short run
	run           func(t *target, n int) error
	reaches       []alicaptcha.Code // the Codes with which some of its requests must end

	faults  alicaptchatest.Faults
	service func(*target) error
	config  func(*target, *alicaptcha.Config)
	routes  func(*target, *alicaptcha.Middleware, handleFunc) error

	connections int  // the most connections to the service; 0 means any number
	calls       int  // the most calls of the service for two requests; 0 means any number
	outage      bool // the service is out, so only what remains in use is checked
}

var attacks = []attack{
	// This attack is first because net/http continues the handshakes for 5 s.
	{
		name: "none: an endpoint that takes connections and says nothing, Timeout 1 s", requests: 200, few: 100,
		run: sendJunk(200), service: silent, config: bare, outage: true,
		reaches: []alicaptcha.Code{alicaptcha.ServiceTimeout},
	},
	{
		name: "headers of 8 KB to 1 MB", requests: 2600, few: 52, run: flood,
		reaches: []alicaptcha.Code{alicaptcha.ParamMissing, alicaptcha.ParamMalformed, alicaptcha.ParamTooLarge},
	},
	{
		// net/http dials for a call even if the connection of another call becomes
		// free in the meantime, and keeps both.
		name: "hang-ups", requests: 4000, few: 160,
		run: hangUps(128, 600*time.Millisecond, 0, 1, 2, 3), connections: 256 + 64,
		faults:  alicaptchatest.Faults{Latency: 50 * time.Millisecond, Jitter: 550 * time.Millisecond},
		reaches: []alicaptcha.Code{alicaptcha.ClientCanceled},
	},
	{
		name: "hang-ups, MaxConcurrent 10", requests: 500, few: 200,
		run: hangUps(16, 100*time.Millisecond, 3), connections: 10 + 10,
		faults:  alicaptchatest.Faults{Latency: 50 * time.Millisecond, Jitter: 550 * time.Millisecond},
		config:  func(_ *target, cfg *alicaptcha.Config) { cfg.MaxConcurrent = 10 },
		reaches: []alicaptcha.Code{alicaptcha.ClientCanceled, alicaptcha.Overloaded},
	},
	{
		name: "slow bodies, under a router's timeout of 1 s and 3 s", requests: 800, few: 60,
		run: slowBodies, routes: timeouts,
		faults:  alicaptchatest.Faults{Latency: 50 * time.Millisecond, Jitter: 350 * time.Millisecond},
		reaches: []alicaptcha.Code{alicaptcha.Overloaded},
	},
	{
		name: "params of 32 KiB, with a gateway that answers 413 early and closes", requests: 1000, few: 200,
		run: longParams, service: gateway, reaches: []alicaptcha.Code{alicaptcha.RequestRefused, alicaptcha.F003},
	},
	{
		name: "params that the service repeats in 64 KiB and more", requests: 1000, few: 40,
		run: repeatedParams, service: echo, reaches: []alicaptcha.Code{alicaptcha.RequestRefused},
	},
	{
		name: "nested gates", requests: 1500, few: 60, run: nestedGates, routes: nested, calls: 3,
		reaches: []alicaptcha.Code{alicaptcha.F003},
	},
}

// carry returns a request that contains param in the i-th of four ways.
func carry(param string, i int) request {
	r := request{path: "/login"}
	kind := "application/json"
	switch i % 4 {
	case 0:
		r.header = []hpack.HeaderField{{Name: "captcha-verify-param", Value: param}}
		return r
	case 1:
		login := map[string]string{"captchaVerifyParam": param, "password": strings.Repeat("x", 200)}
		body, _ := json.Marshal(login) // strings cannot fail
		r.body = string(body)
	case 2:
		kind = "application/x-www-form-urlencoded"
		r.body = url.Values{"captchaVerifyParam": {param}, "password": {"x"}}.Encode()
	default:
		var b bytes.Buffer
		form := multipart.NewWriter(&b)
		form.WriteField("captchaVerifyParam", param)
		form.WriteField("password", "x")
		form.Close()
		kind, r.body = form.FormDataContentType(), b.String()
	}
	r.header = []hpack.HeaderField{{Name: "content-type", Value: kind}}
	return r
}

// junk returns a param that the service has not issued.
func junk(i int) string {
	switch i % 5 {
	case 0:
		made := `{"certifyId":"x","sceneId":"login","isSign":true,"securityToken":"y"}`
		return base64.StdEncoding.EncodeToString([]byte(made))
	case 1:
		return `{"sceneId":"login","certifyId":"x","deviceToken":"y","data":"z"}`
	case 2:
		return `{"sceneId":`
	case 3:
		return strings.Repeat("验证<&", 100)
	}
	return "junk"
}

// ask sends r alternately over HTTP/1.1 and HTTP/2, and expects a rejection.
func (t *target) ask(r request, i int) error {
	l, err := t.wires[i%2].open()
	if err != nil {
		return err
	}
	err = l.head(r)
	if err == nil && r.body != "" {
		err = l.send(r.body, true)
	}
	return t.refused(l, err)
}

// refused expects a rejection from l. The site may have answered before all of the
// request was sent.
func (t *target) refused(l line, sending error) error {
	status, err := l.answer()
	switch {
	case err != nil:
		return errors.Join(sending, err)
	case status < 400 || status > 599:
		return fmt.Errorf("the status is %d", status)
	}
	return nil
}

// sendJunk returns an attack with junk params.
func sendJunk(atOnce int) func(*target, int) error {
	return func(t *target, n int) error {
		return each(n, atOnce, func(i int) error { return t.ask(carry(junk(i/4), i), i) })
	}
}

// A header becomes long by the repetition of a unit.
type header struct {
	name, prefix, unit string
	list               bool // the header may occur many times
}

var floods = []header{
	{name: "accept", unit: "text/html;q=9e-323,", list: true},
	{name: "accept", unit: "*/*;q=0.001,text/html,", list: true},
	{name: "accept", unit: "a/b;", list: true},
	{name: "accept", unit: ",", list: true},
	{name: "accept-language", unit: "zh;q=9e-323,", list: true},
	{name: "accept-language", unit: "en-u-co-phonebk,", list: true},
	{name: "accept-language", unit: "zh-", list: true},
	{name: "content-type", prefix: "multipart/form-data; boundary=b", unit: "; a*0*=%41"},
	{name: "content-type", prefix: "multipart/form-data; boundary=", unit: "b"},
	{name: "referer", prefix: "https://127.0.0.1/", unit: "%41&"},
	{name: "content-encoding", unit: "identity,", list: true},
	{name: "captcha-verify-param", unit: "<验", list: true},
	{name: "host", unit: "a."},
}

// longest is the longest header: a server of net/http accepts 1 MiB of headers.
const longest = 1_000_000

// entry is a length that fits the dynamic table of HPACK, which has 4096 bytes.
const entry = 4000

// request returns a request that has the header in lines of at most most bytes, with a
// total of at most size bytes. If size is 0, the request does not have the header.
func (h header) request(size, most int) request {
	r := request{path: "/login", body: `{"username":"alice"}`}
	// The field is marked sensitive, so that it does not displace others in the table.
	switch h.name {
	case "referer":
		r.header = []hpack.HeaderField{{Name: "accept", Value: "text/html", Sensitive: true}}
	case "content-encoding":
		r.header = []hpack.HeaderField{{Name: "content-type", Value: "application/json", Sensitive: true}}
	}
	if size == 0 {
		return r
	}
	fill := func(n int) string { return h.prefix + strings.Repeat(h.unit, (n-len(h.prefix))/len(h.unit)) }
	if h.name == "host" {
		r.host = fill(size)
		return r
	}
	f := hpack.HeaderField{Name: h.name, Value: fill(min(size, most))}
	for left := size; left >= len(f.Value); left -= len(f.Value) + len(f.Name) + 32 { // as RFC 9113 counts
		r.header = append(r.header, f)
	}
	return r
}

func flood(t *target, n int) error {
	sizes := []int{8 << 10, 64 << 10, 256 << 10, longest}
	requests := make([]request, 0, 2*len(sizes)*len(floods))
	for turn := range sizes { // a short run uses each header and each size
		for i, h := range floods {
			size := sizes[(turn+i)%len(sizes)]
			overHTTP2 := entry
			if !h.list {
				overHTTP2 = size
			}
			requests = append(requests, h.request(size, size), h.request(size, overHTTP2))
		}
	}
	return each(n, 16, func(i int) error { return t.ask(requests[i%len(requests)], i) })
}

// hangUps returns an attack that hangs up before (0), while (1) or after (2) the body is
// sent, or while the service is asked (3), within the given time.
func hangUps(atOnce int, within time.Duration, stages ...int) func(*target, int) error {
	return func(t *target, n int) error {
		return each(n, atOnce, func(i int) error {
			l, err := t.wires[i%2].open()
			if err != nil {
				return err
			}
			defer l.hangUp()
			r := carry(junk(i), 1+i/8%3)
			if err := l.head(r); err != nil {
				return err
			}
			switch stages[i/2%len(stages)] {
			case 1:
				l.send(r.body[:rand.N(len(r.body))], false)
			case 2:
				l.send(r.body, true)
			case 3:
				l.send(r.body, true)
				time.Sleep(rand.N(within))
			}
			return nil
		})
	}
}

// timeouts puts chi's Timeout in front of the gate.
func timeouts(t *target, gate *alicaptcha.Middleware, handle handleFunc) error {
	for _, d := range []time.Duration{time.Second, 3 * time.Second} {
		handle("/"+d.String(), middleware.Timeout(d)(gate.Handler(t)))
	}
	return nil
}

// slowBodies sends single bytes slowly, and the rest when little or nothing of the timeout
// is left.
func slowBodies(t *target, n int) error {
	return each(n, n, func(i int) error {
		r := carry(junk(i), 1+i/4%3)
		after := 300*time.Millisecond + rand.N(time.Second)
		if r.path = "/1s"; i/2%2 == 1 {
			r.path = "/3s"
			after += 1500 * time.Millisecond
		}
		l, err := t.wires[i%2].open()
		if err != nil {
			return err
		}
		err = l.head(r)
		for end := time.Now().Add(after); err == nil && len(r.body) > 1 && time.Now().Before(end); {
			err = l.send(r.body[:1], false)
			r.body = r.body[1:]
			time.Sleep(100 * time.Millisecond)
		}
		if err == nil {
			err = l.send(r.body, true)
		}
		return t.refused(l, err)
	})
}

// longParams sends params of 32 KiB, some of which become six times as long when they are
// escaped in JSON or in a form, and short params in between.
func longParams(t *target, n int) error {
	return each(n, 16, func(i int) error {
		if i/2%2 == 0 {
			return t.ask(carry("junk", i), i)
		}
		return t.ask(carry(long(i/4, 32<<10), i), i)
	})
}

// repeatedParams sends such params of any length.
func repeatedParams(t *target, n int) error {
	return each(n, 16, func(i int) error { return t.ask(carry(long(i/4, 1+rand.N(32<<10)), i), i) })
}

// long returns a param of about size bytes.
func long(i, size int) string {
	unit := []string{"x", "<", `"`, "验"}[i%4]
	return strings.Repeat(unit, size/len(unit))
}

// gateway is a service behind a gateway that refuses calls of more than 16 KiB: it reads
// the headers but not the body, answers, and closes the connection.
func gateway(t *target) error {
	own, err := loopback.Certificate()
	if err != nil {
		return err
	}
	config := &tls.Config{Certificates: []tls.Certificate{own}}
	t.rest = t.accept(func(conn net.Conn, i int) {
		conn.SetDeadline(time.Now().Add(patience))
		secure := tls.Server(conn, config)
		in := bufio.NewReader(secure)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if r.ContentLength > 16<<10 {
				break
			}
			io.Copy(io.Discard, r.Body)
			const answer = `{"Code":"Success","Success":true,"Result":{"VerifyResult":false,"VerifyCode":"F003"}}`
			fmt.Fprintf(secure, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
		}
		io.WriteString(secure, "HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 0\r\n\r\n")
		if i%2 == 0 {
			secure.Close() // sends a close notification first
		}
	})
	return nil
}

// silent is a service that never answers.
func silent(t *target) error {
	t.accept(func(conn net.Conn, _ int) { io.Copy(io.Discard, conn) })
	return nil
}

// bare removes the Breaker, which would not ask the service, and the budget.
func bare(t *target, cfg *alicaptcha.Config) {
	cfg.Verifier, cfg.Policy, cfg.Timeout = t.client, nil, time.Second
}

// echo is a service that repeats the param with each byte escaped, in refusals with the
// statuses 200 and 400 and in rejections.
func echo(t *target) error {
	return t.serveCalls(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		param := r.PostFormValue("CaptchaVerifyParam")
		var b strings.Builder
		for digits := hex.EncodeToString([]byte(param)); digits != ""; digits = digits[2:] {
			b.WriteString(`\u00` + digits[:2])
		}
		w.Header().Set("Content-Type", "application/json")
		switch len(param) % 3 {
		case 0:
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"RequestId":"x","Code":"InvalidParameter","Message":"%s"}`, &b)
		case 1:
			fmt.Fprintf(w, `{"RequestId":"x","Code":"InvalidParameter","Success":false,"Message":"%s"}`, &b)
		default:
			fmt.Fprintf(w, `{"RequestId":"x","Code":"Success","Success":true,`+
				`"Result":{"VerifyResult":false,"VerifyCode":"F003","CertifyId":"%s"}}`, &b)
		}
	}))
}

// nested has one gate twice, and a strict gate around another one that is there twice in
// ReportOnly, so that it asks the service once and lets everybody through.
func nested(t *target, gate *alicaptcha.Middleware, handle handleFunc) error {
	trial, err := alicaptcha.New(alicaptcha.Config{
		Verifier: t.verifier, SceneID: "signup", Mode: alicaptcha.ReportOnly, Logger: quiet,
	})
	if err != nil {
		return err
	}
	requires := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if alicaptcha.Require(w, r) {
			t.ServeHTTP(w, r)
		}
	})
	handle("/twice", gate.Handler(gate.Handler(t)))
	handle("/trial", gate.Deferred(trial.Handler(trial.Handler(requires))))
	return nil
}

func nestedGates(t *target, n int) error {
	return each(n, 32, func(i int) error {
		r := carry(junk(i/8), i/2)
		r.path = []string{"/twice", "/trial"}[i%2]
		return t.ask(r, i/2)
	})
}
