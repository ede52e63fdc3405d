package alicaptchatest_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	captcha "github.com/alibabacloud-go/captcha-20230305/client"
	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/utils"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// newCall returns a valid call without a signature.
func newCall(body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "http://captcha.test/", strings.NewReader(body))
	sum := sha256.Sum256([]byte(body))
	for name, value := range map[string]string{
		"Content-Type":          "application/x-www-form-urlencoded",
		"X-Acs-Action":          "VerifyIntelligentCaptcha",
		"X-Acs-Version":         "2023-03-05",
		"X-Acs-Date":            time.Now().UTC().Format(time.RFC3339),
		"X-Acs-Signature-Nonce": rand.Text(),
		"X-Acs-Content-Sha256":  hex.EncodeToString(sum[:]),
	} {
		r.Header.Set(name, value)
	}
	return r
}

// signWith signs r over host and all its x-acs headers except those left out. It
// is independent of the package's own code.
func signWith(r *http.Request, id, secret string, leftOut ...string) {
	lines := map[string]string{"host": r.Host}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-acs-") {
			lines[name] = strings.Join(slices.Sorted(slices.Values(r.Header.Values(name))), ",")
		}
	}
	for _, name := range leftOut {
		delete(lines, name)
	}
	var names []string
	for name := range lines {
		names = append(names, name)
	}
	slices.Sort(names)
	var canonical strings.Builder
	canonical.WriteString(r.Method + "\n" + r.URL.Path + "\n" + r.URL.RawQuery + "\n")
	for _, name := range names {
		canonical.WriteString(name + ":" + lines[name] + "\n")
	}
	canonical.WriteString("\n" + strings.Join(names, ";") + "\n" + r.Header.Get("X-Acs-Content-Sha256"))
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "ACS3-HMAC-SHA256\n%x", sha256.Sum256([]byte(canonical.String())))
	r.Header.Set("Authorization", fmt.Sprintf("ACS3-HMAC-SHA256 Credential=%s,SignedHeaders=%s,Signature=%x",
		id, strings.Join(names, ";"), mac.Sum(nil)))
}

// signed returns a valid call.
func signed(body string) *http.Request {
	r := newCall(body)
	signWith(r, "test-id", "test-secret")
	return r
}

type reply struct {
	status    int
	header    http.Header
	Code      string
	Message   string
	RequestID string `json:"RequestId"`
	HostID    string `json:"HostId"`
	Success   bool
	Result    struct {
		VerifyResult bool
		VerifyCode   alicaptcha.Code
		CertifyID    string `json:"CertifyId"`
	}
	raw string
}

func send(t *testing.T, s http.Handler, r *http.Request) reply {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	a := reply{status: w.Code, header: w.Header(), raw: w.Body.String()}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &a), a.raw)
	require.Regexp(t, "^[0-9A-F]{8}-[0-9A-F]{4}-4[0-9A-F]{3}-[89AB][0-9A-F]{3}-[0-9A-F]{12}$", a.RequestID)
	return a
}

func form(param string, scene ...string) string {
	values := url.Values{"CaptchaVerifyParam": {param}}
	if len(scene) > 0 {
		values["SceneId"] = scene
	}
	return values.Encode()
}

func verify(t *testing.T, s http.Handler, param string, scene ...string) alicaptcha.Code {
	t.Helper()
	a := send(t, s, signed(form(param, scene...)))
	require.Equal(t, 200, a.status, a.raw)
	return a.Result.VerifyCode
}

func issue(t *testing.T, s interface {
	Issue(alicaptchatest.Issue) (string, error)
}, i alicaptchatest.Issue,
) string {
	t.Helper()
	if i.SceneID == "" {
		i.SceneID = "login"
	}
	param, err := s.Issue(i)
	require.NoError(t, err)
	return param
}

func TestVerdictShapes(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	param := issue(t, s, alicaptchatest.Issue{})
	a := send(t, s, signed(form(param, "login")))
	require.Equal(t, "application/json;charset=utf-8", a.header.Get("Content-Type"))
	require.NotEmpty(t, a.Result.CertifyID)
	require.JSONEq(t, `{"RequestId":"`+a.RequestID+`","Message":"success","Code":"Success","Success":true,
		"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"`+a.Result.CertifyID+`"}}`, a.raw)

	a = send(t, s, signed(form("junk", "login")))
	require.JSONEq(t, `{"RequestId":"`+a.RequestID+`","Message":"success","Code":"Success","Success":true,
		"Result":{"VerifyResult":false,"VerifyCode":"F003"}}`, a.raw)

	r := signed("SceneId=login")
	a = send(t, s, r)
	require.JSONEq(t, `{"RequestId":"`+a.RequestID+`","HostId":"captcha.test","Code":"MissingParameter",
		"Message":"CaptchaVerifyParam is mandatory for this action."}`, a.raw)
}

func TestOfficialClients(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]alicaptchatest.Config{
		"default keys": {},
		"own keys":     {AccessKeyID: "LTAI-own", AccessKeySecret: "s3cret/+=", Scenes: []string{"login"}},
		"STS":          {AccessKeyID: "STS.own", AccessKeySecret: "secret", SecurityToken: "CAIS+token/=="},
	} {
		for protocol, start := range map[string]func(testing.TB, alicaptchatest.Config) *alicaptchatest.Server{
			"http": alicaptchatest.Start, "https": alicaptchatest.StartTLS,
		} {
			t.Run(name+"/"+protocol, func(t *testing.T) {
				t.Parallel()
				srv := start(t, cfg)
				require.True(t, strings.HasPrefix(srv.URL, protocol+"://127.0.0.1:"), srv.URL)
				client := srv.Client()
				for _, format := range []alicaptchatest.Format{alicaptchatest.V3, alicaptchatest.V2} {
					param := issue(t, srv, alicaptchatest.Issue{Format: format, Code: alicaptcha.T006})
					result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
					require.NoError(t, err)
					require.Equal(t, alicaptcha.T006, result.Code)
					require.True(t, result.Passed)
					require.NotEmpty(t, result.CertifyID)
					require.NotEmpty(t, result.RequestID)
				}
				require.NoError(t, client.Diagnose(t.Context(), "login"))

				bad := srv.ClientConfig()
				bad.AccessKeySecret = "wrong"
				client, err := alicaptcha.NewClient(bad)
				require.NoError(t, err)
				_, err = client.Verify(t.Context(), alicaptcha.Request{Param: "x"})
				failure, ok := err.(*alicaptcha.Error)
				require.True(t, ok)
				require.Equal(t, alicaptcha.Misconfigured, failure.Code)
				require.Equal(t, "SignatureDoesNotMatch", failure.ServiceCode)
			})
		}
	}
}

func TestOfficialSDK(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]alicaptchatest.Config{
		"pair": {},
		"STS":  {AccessKeyID: "STS.id", AccessKeySecret: "secret", SecurityToken: "token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := alicaptchatest.Start(t, cfg)
			keys := srv.ClientConfig()
			config := &openapi.Config{
				Endpoint:        new(strings.TrimPrefix(srv.URL, "http://")),
				Protocol:        new("http"),
				NoProxy:         new("127.0.0.1"),
				AccessKeyId:     &keys.AccessKeyID,
				AccessKeySecret: &keys.AccessKeySecret,
			}
			if keys.SecurityToken != "" {
				config.SecurityToken = &keys.SecurityToken
			}
			sdk, err := captcha.NewClient(config)
			require.NoError(t, err)
			for _, format := range []alicaptchatest.Format{alicaptchatest.V3, alicaptchatest.V2} {
				for _, code := range []alicaptcha.Code{alicaptcha.T001, alicaptcha.F001} {
					param := issue(t, srv, alicaptchatest.Issue{Format: format, Code: code})
					req := &captcha.VerifyIntelligentCaptchaRequest{CaptchaVerifyParam: &param, SceneId: new("login")}
					resp, err := sdk.VerifyIntelligentCaptcha(req)
					require.NoError(t, err)
					require.Equal(t, string(code), *resp.Body.Result.VerifyCode)
					require.Equal(t, code == alicaptcha.T001, *resp.Body.Result.VerifyResult)
					require.True(t, *resp.Body.Success)
				}
			}
		})
	}
}

func TestHTTP2(t *testing.T) {
	t.Parallel()
	srv := alicaptchatest.StartTLS(t, alicaptchatest.Config{})
	client := &http.Client{Transport: srv.ClientConfig().Transport}
	resp, err := client.Post(srv.URL+"/issue", "application/json", strings.NewReader(`{"sceneId":"login"}`))
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, 2, resp.ProtoMajor)
	require.Equal(t, 200, resp.StatusCode)
}

func TestServerEndsWithTheTest(t *testing.T) {
	t.Parallel()
	for _, start := range []func(testing.TB, alicaptchatest.Config) *alicaptchatest.Server{
		alicaptchatest.Start, alicaptchatest.StartTLS,
	} {
		tb := &fakeTB{TB: t}
		srv := start(tb, alicaptchatest.Config{})
		client := srv.Client()
		_, err := client.Verify(t.Context(), alicaptcha.Request{Param: "x"})
		require.NoError(t, err)
		tb.cleanup()
		_, err = client.Verify(t.Context(), alicaptcha.Request{Param: "x"})
		require.Error(t, err)
		require.Equal(t, 1, srv.Count(), "what it recorded stays")
	}
}

func TestClientFatal(t *testing.T) {
	t.Parallel()
	tb := &fakeTB{TB: t}
	srv := alicaptchatest.Start(tb, alicaptchatest.Config{AccessKeyID: "white space", AccessKeySecret: "s"})
	defer tb.cleanup()
	require.PanicsWithValue(t, "fatal", func() { srv.Client() })
}

// fakeTB panics when a test would end.
type fakeTB struct {
	testing.TB
	cleanups []func()
}

func (*fakeTB) Helper()               {}
func (tb *fakeTB) Cleanup(f func())   { tb.cleanups = append(tb.cleanups, f) }
func (*fakeTB) Fatalf(string, ...any) { panic("fatal") }
func (tb *fakeTB) cleanup() {
	for _, f := range slices.Backward(tb.cleanups) {
		f()
	}
}

// At first, everything about the call is wrong. Each step corrects what was reported.
func TestOrderOfFaults(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{
		SecurityToken: "token", AccessKeyID: "id", AccessKeySecret: "secret",
	})
	used := newCall(form("x"))
	used.Header.Set("X-Acs-Security-Token", "token")
	used.Header.Set("X-Acs-Accesskey-Id", "id")
	signWith(used, "id", "secret")
	require.Equal(t, 200, send(t, s, used).status)

	body := "CaptchaVerifyParam=%zz"
	r := newCall(body)
	r.Header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	mend := func(name, value string) func() { return func() { r.Header.Set(name, value) } }
	signAs := func(id, secret string) func() { return func() { signWith(r, id, secret) } }
	hash := sha256.Sum256([]byte(body))
	for _, step := range []struct {
		status int
		code   string
		mend   func()
	}{
		{404, "InvalidAction.NotFound", mend("X-Acs-Action", "VerifyCaptcha")},
		{404, "InvalidAction.NotFound", mend("X-Acs-Action", "VerifyIntelligentCaptcha")},
		{400, "InvalidVersion", mend("X-Acs-Version", "2023-03-06")},
		{400, "InvalidVersion", mend("X-Acs-Version", "2023-03-05")},
		{400, "InvalidTimeStamp.Format", mend("X-Acs-Date", time.Now().UTC().Format(time.RFC1123))},
		{400, "InvalidTimeStamp.Format", mend("X-Acs-Date", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"))},
		{400, "InvalidTimeStamp.Format", mend("X-Acs-Date", "2020-01-01T00:00:00Z")},
		{400, "InvalidTimeStamp.Expired", mend("X-Acs-Date", time.Now().UTC().Format(time.RFC3339))},
		{400, "MissingParameter", mend("X-Acs-Signature-Nonce", used.Header.Get("X-Acs-Signature-Nonce"))},
		{400, "SignatureNonceUsed", mend("X-Acs-Signature-Nonce", rand.Text())},
		{400, "IncompleteSignature", mend("Authorization", "Bearer x")},
		{400, "IncompleteSignature", signAs("other", "other")}, // x-acs-content-sha256 is missing, so it cannot be signed
		{400, "IncompleteSignature", func() {
			mend("X-Acs-Content-Sha256", strings.Repeat("0", 64))()
			signAs("other", "other")()
		}},
		{404, "InvalidAccessKeyId.NotFound", signAs("id", "other")},
		{400, "MissingSecurityToken", func() { mend("X-Acs-Security-Token", "wrong")(); signAs("id", "other")() }},
		{400, "InvalidSecurityToken.Malformed", func() { mend("X-Acs-Security-Token", "token")(); signAs("id", "other")() }},
		{400, "InvalidSecurityToken.MismatchWithAccessKey", func() {
			mend("X-Acs-Accesskey-Id", "other")()
			signAs("id", "other")()
		}},
		{400, "InvalidSecurityToken.MismatchWithAccessKey", func() {
			mend("X-Acs-Accesskey-Id", "id")()
			signAs("id", "other")()
		}},
		{400, "SignatureDoesNotMatch", signAs("id", "secret")}, // correct for another body
		{400, "SignatureDoesNotMatch", func() {
			mend("X-Acs-Content-Sha256", hex.EncodeToString(hash[:]))()
			signAs("id", "secret")()
		}},
		{401, "InvalidParameter", func() {
			body = "SceneId=login"
			fresh := newCall(body)
			fresh.Header.Set("X-Acs-Security-Token", "token")
			fresh.Header.Set("X-Acs-Accesskey-Id", "id")
			r = fresh
			signAs("id", "secret")()
		}},
		{400, "MissingParameter", func() {}},
	} {
		r = r.Clone(t.Context())
		r.Body = http.NoBody
		if body != "" {
			r.Body = httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)).Body
		}
		a := send(t, s, r)
		require.Equal(t, step.code, a.Code, a.raw)
		require.Equal(t, step.status, a.status, a.raw)
		require.Equal(t, "captcha.test", a.HostID)
		require.NotEmpty(t, a.Message)
		step.mend()
	}
}

// Each is signed correctly, and then changed, or lacks a header in its signature.
func TestSignature(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	right := func(r *http.Request) { signWith(r, "test-id", "test-secret") }
	for name, c := range map[string]struct {
		spoil func(*http.Request)
		code  string
	}{
		"right":          {right, "Success"},
		"another secret": {func(r *http.Request) { signWith(r, "test-id", "secret") }, "SignatureDoesNotMatch"},
		"header changed": {func(r *http.Request) {
			right(r)
			r.Header.Set("X-Acs-Signature-Nonce", "other")
		}, "SignatureDoesNotMatch"},
		"header doubled": {func(r *http.Request) {
			right(r)
			r.Header.Add("X-Acs-Signature-Nonce", "other")
		}, "SignatureDoesNotMatch"},
		"host changed": {func(r *http.Request) { right(r); r.Host = "evil.test" }, "SignatureDoesNotMatch"},
		"query added": {func(r *http.Request) {
			right(r)
			r.URL.RawQuery = "SceneId=login"
		}, "SignatureDoesNotMatch"},
		"query unreadable": {func(r *http.Request) { r.URL.RawQuery = "%zz"; right(r) }, "SignatureDoesNotMatch"},
		"query signed":     {func(r *http.Request) { r.URL.RawQuery = "a=1%202&b="; right(r) }, "Success"},
		"body changed": {func(r *http.Request) {
			right(r)
			r.Body = newCall("CaptchaVerifyParam=y").Body
		}, "SignatureDoesNotMatch"},
		"content type unsigned": {func(r *http.Request) {
			right(r)
			r.Header.Set("Content-Type", "text/plain")
		}, "MissingParameter"},
		"unexpected token": {func(r *http.Request) {
			r.Header.Set("X-Acs-Security-Token", "t")
			right(r)
		}, "InvalidSecurityToken.Malformed"},
		"unsigned x-acs header": {func(r *http.Request) {
			right(r)
			r.Header.Set("X-Acs-Credentials-Provider", "p")
		}, "IncompleteSignature"},
		"signed x-acs header": {func(r *http.Request) {
			r.Header.Set("X-Acs-Credentials-Provider", "p")
			right(r)
		}, "Success"},
		"header of two values": {func(r *http.Request) {
			r.Header["X-Acs-Trace"] = []string{"b", "a"}
			right(r)
		}, "Success"},
		"upper-case signature":  {func(r *http.Request) { right(r); upperSignature(r) }, "SignatureDoesNotMatch"},
		"host left out":         {leaveOut("host"), "IncompleteSignature"},
		"action left out":       {leaveOut("x-acs-action"), "IncompleteSignature"},
		"version left out":      {leaveOut("x-acs-version"), "IncompleteSignature"},
		"date left out":         {leaveOut("x-acs-date"), "IncompleteSignature"},
		"nonce left out":        {leaveOut("x-acs-signature-nonce"), "IncompleteSignature"},
		"content hash left out": {leaveOut("x-acs-content-sha256"), "IncompleteSignature"},
		"content hash not there": {func(r *http.Request) {
			r.Header.Del("X-Acs-Content-Sha256")
			right(r)
		}, "IncompleteSignature"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newCall("CaptchaVerifyParam=x")
			c.spoil(r)
			require.Equal(t, c.code, send(t, s, r).Code)
		})
	}
}

func leaveOut(name string) func(*http.Request) {
	return func(r *http.Request) { signWith(r, "test-id", "test-secret", name) }
}

func upperSignature(r *http.Request) {
	head, signature, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
	r.Header.Set("Authorization", head+"Signature="+strings.ToUpper(signature))
}

func TestDateWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // the clock does not move, and shows a whole second
		for offset, code := range map[time.Duration]string{
			15 * time.Minute:                "Success",
			15*time.Minute + time.Second:    "InvalidTimeStamp.Expired",
			-15 * time.Minute:               "Success",
			-(15*time.Minute + time.Second): "InvalidTimeStamp.Expired",
		} {
			s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
			r := newCall(form("x"))
			r.Header.Set("X-Acs-Date", time.Now().UTC().Add(offset).Format(time.RFC3339))
			signWith(r, "test-id", "test-secret")
			require.Equal(t, code, send(t, s, r).Code, offset)
		}
		s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
		s.Advance(16 * time.Minute)
		require.Equal(t, "Success", send(t, s, signed(form("x"))).Code, "the client's clock did not advance")
	})
}

func TestNonces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
		with := func(nonce, secret string, ahead time.Duration) string {
			r := newCall(form("x"))
			r.Header.Set("X-Acs-Signature-Nonce", nonce)
			r.Header.Set("X-Acs-Date", time.Now().UTC().Add(ahead).Format(time.RFC3339))
			signWith(r, "test-id", secret)
			return send(t, s, r).Code
		}
		require.Equal(t, "SignatureDoesNotMatch", with("a", "wrong", 0))
		require.Equal(t, "Success", with("a", "test-secret", 0), "a bad call does not use up a nonce")
		require.Equal(t, "SignatureNonceUsed", with("a", "test-secret", 0))
		require.Equal(t, "SignatureNonceUsed", with("a", "wrong", 0))
		require.Equal(t, "Success", with("b", "test-secret", 0))
		require.Equal(t, "Success", with("ahead", "test-secret", 10*time.Minute))

		time.Sleep(15 * time.Minute)
		require.Equal(t, "SignatureNonceUsed", with("a", "test-secret", 0))
		time.Sleep(time.Second)
		require.Equal(t, "Success", with("a", "test-secret", 0), "the first would be refused by its date now")
		require.Equal(t, "SignatureNonceUsed", with("ahead", "test-secret", 0), "the first still has a valid date")
	})
}

func TestOneOfManyWithOneNonce(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	template := signed(form("x"))
	var good atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			r := newCall(form("x"))
			r.Header = template.Header.Clone()
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code == 200 {
				good.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, good.Load())
}

func TestBody(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	for name, c := range map[string]struct {
		body   string
		status int
		code   string
	}{
		"nothing":               {"", 400, "MissingParameter"},
		"no param":              {"SceneId=login", 400, "MissingParameter"},
		"param of another case": {"captchaVerifyParam=x", 400, "MissingParameter"},
		"empty param":           {"CaptchaVerifyParam=", 200, "Success"},
		"bad escape":            {"CaptchaVerifyParam=%zz", 401, "InvalidParameter"},
		"semicolon":             {"CaptchaVerifyParam=x;SceneId=login", 401, "InvalidParameter"},
		"param no UTF-8":        {"CaptchaVerifyParam=%ff", 401, "InvalidParameter"},
		"scene no UTF-8":        {"CaptchaVerifyParam=x&SceneId=%ff", 401, "InvalidParameter"},
		"param twice":           {"CaptchaVerifyParam=x&CaptchaVerifyParam=y", 401, "InvalidParameter"},
		"scene twice":           {"CaptchaVerifyParam=x&SceneId=login&SceneId=signup", 401, "InvalidParameter"},
		"1 MiB":                 {"CaptchaVerifyParam=" + strings.Repeat("x", 1<<20-19), 200, "Success"},
		"more than 1 MiB":       {"CaptchaVerifyParam=" + strings.Repeat("x", 1<<20-18), 413, "InvalidParameter"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := send(t, s, signed(c.body))
			require.Equal(t, c.code, a.Code, a.raw)
			require.Equal(t, c.status, a.status)
		})
	}
	t.Run("content type with a parameter", func(t *testing.T) {
		t.Parallel()
		r := signed(form("x"))
		r.Header.Set("Content-Type", "Application/X-WWW-Form-Urlencoded; charset=utf-8")
		require.Equal(t, "Success", send(t, s, r).Code)
	})
	t.Run("param in the query", func(t *testing.T) {
		t.Parallel()
		r := newCall("")
		r.URL.RawQuery = form("x")
		signWith(r, "test-id", "test-secret")
		require.Equal(t, "MissingParameter", send(t, s, r).Code)
	})
	t.Run("breaks off", func(t *testing.T) {
		t.Parallel()
		r := signed(form("x"))
		r.Body = io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF))
		a := send(t, s, r)
		require.Equal(t, "InvalidParameter", a.Code)
		require.Equal(t, 400, a.status)
	})
}

func TestPaths(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	r := signed(form("x"))
	r.URL.Path = "/other"
	a := send(t, s, r)
	require.Equal(t, 404, a.status)
	require.Equal(t, "InvalidAction.NotFound", a.Code)
	a = send(t, s, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, 405, a.status)
	require.Equal(t, http.MethodPost, a.header.Get("Allow"))
	require.Zero(t, s.Count())
}

// v2 and v3 return a param with the members, which are JSON.
func v2(members string) string { return "{" + members + "}" }
func v3(members string) string { return base64.StdEncoding.EncodeToString([]byte("{" + members + "}")) }

func TestVerifyCodes(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{
		Scenes: []string{"login", "signup", "shared"}, ForeignScenes: []string{"theirs", "shared"},
	})
	const whole2 = `"sceneId":"login","certifyId":"c","deviceToken":"d","data":"e"`
	const whole3 = `"certifyId":"c","sceneId":"login","isSign":true,"securityToken":"t"`
	for name, c := range map[string]struct {
		param string
		scene []string
		code  alicaptcha.Code
	}{
		"empty":                   {"", []string{"nowhere"}, "F002"},
		"no JSON":                 {"junk!", []string{"nowhere"}, "F003"},
		"JSON, no object":         {`["sceneId"]`, nil, "F003"},
		"null":                    {`null`, nil, "F003"},
		"something after it":      {v2(whole2) + "x", nil, "F003"},
		"base64 of no JSON":       {base64.StdEncoding.EncodeToString([]byte("junk")), nil, "F003"},
		"base64 of no object":     {base64.StdEncoding.EncodeToString([]byte("17")), nil, "F003"},
		"base64 of null":          {base64.StdEncoding.EncodeToString([]byte("null")), nil, "F003"},
		"base64 without padding":  {strings.TrimRight(v3(whole3+" "), "="), nil, "F003"},
		"v2 empty":                {v2(""), []string{"nowhere"}, "F013"},
		"v2 no sceneId":           {v2(`"certifyId":"c","deviceToken":"d","data":"e"`), nil, "F013"},
		"v2 no certifyId":         {v2(`"sceneId":"login","deviceToken":"d","data":"e"`), nil, "F013"},
		"v2 no deviceToken":       {v2(`"sceneId":"login","certifyId":"c","data":"e"`), nil, "F013"},
		"v2 no data":              {v2(`"sceneId":"login","certifyId":"c","deviceToken":"d"`), nil, "F013"},
		"v2 empty data":           {v2(`"sceneId":"login","certifyId":"c","deviceToken":"d","data":""`), nil, "F013"},
		"v2 data no string":       {v2(`"sceneId":"login","certifyId":"c","deviceToken":"d","data":7`), nil, "F013"},
		"v2 member of other case": {v2(`"sceneId":"login","certifyId":"c","deviceToken":"d","Data":"e"`), nil, "F013"},
		"v3 no certifyId":         {v3(`"sceneId":"login","isSign":true,"securityToken":"t"`), nil, "F013"},
		"v3 no sceneId":           {v3(`"certifyId":"c","isSign":true,"securityToken":"t"`), nil, "F013"},
		"v3 no isSign":            {v3(`"certifyId":"c","sceneId":"login","securityToken":"t"`), nil, "F013"},
		"v3 no securityToken":     {v3(`"certifyId":"c","sceneId":"login","isSign":true`), nil, "F013"},
		"v3 empty securityToken":  {v3(`"certifyId":"c","sceneId":"login","isSign":true,"securityToken":""`), nil, "F013"},
		"foreign scene":           {v2(whole2), []string{"theirs"}, "F006"},
		"scene foreign and own":   {v2(whole2), []string{"shared"}, "F006"},
		"unknown scene":           {v2(whole2), []string{"nowhere"}, "F005"},
		"empty scene":             {v2(whole2), []string{""}, "F005"},
		"another scene":           {v2(whole2), []string{"signup"}, "F012"},
		"v2 never issued":         {v2(whole2), []string{"login"}, "F014"},
		"v3 never issued":         {v3(whole3), []string{"login"}, "F014"},
		"never issued, no scene":  {v3(whole3), nil, "F014"},
		"unknown scene in a param": {
			v3(`"certifyId":"c","sceneId":"nowhere","isSign":true,"securityToken":"t"`),
			nil, "F014",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := send(t, s, signed(form(c.param, c.scene...)))
			require.Equal(t, c.code, a.Result.VerifyCode, a.raw)
			require.False(t, a.Result.VerifyResult)
			require.Empty(t, a.Result.CertifyID)
		})
	}
}

func TestIssuedParams(t *testing.T) {
	t.Parallel()
	formats := map[alicaptchatest.Format]alicaptcha.Code{alicaptchatest.V2: "F008", alicaptchatest.V3: "F018"}
	for format, again := range formats {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			s := alicaptchatest.NewSimulator(alicaptchatest.Config{ForeignScenes: []string{"theirs"}})
			for _, code := range []alicaptcha.Code{"T001", "T005", "T006", "T999", "F001", "F004", "F023", "F999"} {
				param := issue(t, s, alicaptchatest.Issue{Format: format, Code: code})
				// None of these calls spends the param.
				for scene, code := range map[string]alicaptcha.Code{"theirs": "F006", "nowhere": "F005", "signup": "F012"} {
					a := send(t, s, signed(form(param, scene)))
					require.Equal(t, code, a.Result.VerifyCode)
					require.NotEmpty(t, a.Result.CertifyID)
				}
				a := send(t, s, signed(form(param, "login")))
				require.Equal(t, code, a.Result.VerifyCode)
				require.Equal(t, code[0] == 'T', a.Result.VerifyResult)
				id := a.Result.CertifyID
				require.NotEmpty(t, id)

				a = send(t, s, signed(form(param, "login")))
				require.Equal(t, again, a.Result.VerifyCode)
				require.Equal(t, id, a.Result.CertifyID)
				require.Equal(t, again, verify(t, s, param))
			}
			fresh := issue(t, s, alicaptchatest.Issue{Format: format})
			require.EqualValues(t, "T001", verify(t, s, fresh), "the scene need not be sent")
		})
	}
}

func TestChangedParam(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	param := issue(t, s, alicaptchatest.Issue{Format: alicaptchatest.V2})
	data := bytes.LastIndexByte([]byte(param), '"') - 1
	flipped := []byte(param)
	flipped[data] ^= 1
	for _, changed := range []string{
		param + " ", " " + param, string(flipped),
		strings.Replace(param, `,"`, `, "`, 1), strings.Replace(param, `"login"`, `"signup"`, 1),
	} {
		a := send(t, s, signed(form(changed)))
		require.EqualValues(t, "F017", a.Result.VerifyCode)
		require.Empty(t, a.Result.CertifyID)
	}
	require.EqualValues(t, "T001", verify(t, s, param, "login"), "the changed ones did not spend it")
	require.EqualValues(t, "F017", verify(t, s, param+" "), "not F008: it never was this param")

	param = issue(t, s, alicaptchatest.Issue{})
	require.EqualValues(t, "F017", verify(t, s, param[:4]+"\n"+param[4:]), "base64 that decodes to the same")
	require.EqualValues(t, "T001", verify(t, s, param, "login"))
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // only Advance moves time
		for _, c := range []struct {
			format alicaptchatest.Format
			age    time.Duration
			code   alicaptcha.Code
		}{
			{alicaptchatest.V3, 90 * time.Second, "T001"},
			{alicaptchatest.V3, 90*time.Second + 1, "F019"},
			{alicaptchatest.V3, 20 * time.Minute, "F019"},
			{alicaptchatest.V3, 20*time.Minute + 1, "F014"},
			{alicaptchatest.V3, 3 * time.Hour, "F014"},
			{alicaptchatest.V2, 90*time.Second + 1, "T001"},
			{alicaptchatest.V2, 20 * time.Minute, "T001"},
			{alicaptchatest.V2, 20*time.Minute + 1, "F014"},
			{alicaptchatest.V2, 3 * time.Hour, "F014"},
		} {
			s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
			param := issue(t, s, alicaptchatest.Issue{Format: c.format})
			s.Advance(c.age)
			require.Equal(t, c.code, verify(t, s, param, "login"), c)
		}

		s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
		param := issue(t, s, alicaptchatest.Issue{})
		require.EqualValues(t, "T001", verify(t, s, param))
		s.Advance(2 * time.Minute)
		require.EqualValues(t, "F018", verify(t, s, param), "used goes before old")
	})
	require.Panics(t, func() { alicaptchatest.NewSimulator(alicaptchatest.Config{}).Advance(-1) })
}

func TestSingleUse(t *testing.T) {
	t.Parallel()
	for format, again := range map[alicaptchatest.Format]string{alicaptchatest.V2: "F008", alicaptchatest.V3: "F018"} {
		srv := alicaptchatest.Start(t, alicaptchatest.Config{})
		client := srv.Client()
		param := issue(t, srv, alicaptchatest.Issue{Format: format})
		codes := make(chan alicaptcha.Code, 50)
		var wg sync.WaitGroup
		for range cap(codes) {
			wg.Go(func() {
				result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
				if err != nil {
					t.Error(err)
				}
				codes <- result.Code
			})
		}
		wg.Wait()
		close(codes)
		seen := map[alicaptcha.Code]int{}
		for code := range codes {
			seen[code]++
		}
		require.Equal(t, map[alicaptcha.Code]int{"T001": 1, alicaptcha.Code(again): 49}, seen)
	}
}

func TestParamForms(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{
		Scenes: []string{"login", `1ww7"<426c`, strings.Repeat("s", 300)},
	})
	members := func(text []byte) (names []string, values map[string]any) {
		dec := json.NewDecoder(bytes.NewReader(text))
		require.NoError(t, json.Unmarshal(text, &values))
		for {
			tok, err := dec.Token()
			if err != nil {
				return names, values
			}
			if name, ok := tok.(string); ok {
				if _, isMember := values[name]; isMember {
					names = append(names, name)
				}
			}
		}
	}

	v3 := issue(t, s, alicaptchatest.Issue{})
	require.Len(t, v3, 280)
	text, err := base64.StdEncoding.Strict().DecodeString(v3)
	require.NoError(t, err)
	names, values := members(text)
	require.Equal(t, []string{"certifyId", "sceneId", "isSign", "securityToken"}, names)
	require.Equal(t, true, values["isSign"])

	v2 := issue(t, s, alicaptchatest.Issue{Format: alicaptchatest.V2})
	require.GreaterOrEqual(t, len(v2), 4278)
	require.LessOrEqual(t, len(v2), 5306)
	names, values = members([]byte(v2))
	require.Equal(t, []string{"sceneId", "certifyId", "deviceToken", "data"}, names)
	_, err = base64.StdEncoding.DecodeString(values["data"].(string))
	require.NoError(t, err)

	for _, bytes := range []int{1, 5000, 28000, 28001, 1 << 20} {
		param := issue(t, s, alicaptchatest.Issue{Format: alicaptchatest.V2, Bytes: bytes})
		require.GreaterOrEqual(t, len(param), bytes)
		require.Less(t, len(param), bytes+1000)
		_, values := members([]byte(param))
		_, err = base64.StdEncoding.DecodeString(values["data"].(string))
		require.NoError(t, err)
	}
	for _, scene := range []string{`1ww7"<426c`, strings.Repeat("s", 300)} {
		for _, format := range []alicaptchatest.Format{alicaptchatest.V3, alicaptchatest.V2} {
			param := issue(t, s, alicaptchatest.Issue{SceneID: scene, Format: format})
			require.EqualValues(t, "T001", verify(t, s, param, scene))
		}
	}
	require.NotEqual(t, issue(t, s, alicaptchatest.Issue{}), issue(t, s, alicaptchatest.Issue{}))
}

func TestIssueFaults(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{ForeignScenes: []string{"theirs"}})
	for name, i := range map[string]alicaptchatest.Issue{
		"no scene":          {},
		"unknown scene":     {SceneID: "nowhere"},
		"foreign scene":     {SceneID: "theirs"},
		"unknown format":    {SceneID: "login", Format: "V3"},
		"a word":            {SceneID: "login", Code: alicaptcha.ServiceTimeout},
		"code too short":    {SceneID: "login", Code: "T01"},
		"code of letters":   {SceneID: "login", Code: "T0O1"},
		"code of signs":     {SceneID: "login", Code: "T0/1"},
		"code of neither":   {SceneID: "login", Code: "X001"},
		"negative bytes":    {SceneID: "login", Format: alicaptchatest.V2, Bytes: -1},
		"more than 1 MiB":   {SceneID: "login", Format: alicaptchatest.V2, Bytes: 1<<20 + 1},
		"bytes with v3":     {SceneID: "login", Format: alicaptchatest.V3, Bytes: 1},
		"bytes, no format":  {SceneID: "login", Bytes: 1},
		"negative, with v3": {SceneID: "login", Bytes: -1},
	} {
		param, err := s.Issue(i)
		require.ErrorContains(t, err, "alicaptchatest: ", name)
		require.Empty(t, param, name)
	}
}

func TestServeIssue(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	for _, c := range []struct {
		method, body string
		status       int
		code         alicaptcha.Code
		minLen       int
	}{
		{"POST", `{"sceneId":"login"}`, 200, "T001", 280},
		{"POST", `{"sceneId":"signup","code":"F001","format":"v3","bytes":0}` + "\n", 200, "F001", 280},
		{"POST", `{"sceneId":"login","format":"v2"}`, 200, "T001", 4278},
		{"POST", `{"sceneId":"login","format":"v2","bytes":28000}`, 200, "T001", 28000},
		{"POST", `{"sceneId":"login","code":"","format":""}`, 200, "T001", 280},
		{"POST", `{}`, 400, "", 0},
		{"POST", ``, 400, "", 0},
		{"POST", `null`, 400, "", 0},
		{"POST", `"login"`, 400, "", 0},
		{"POST", `{"sceneId":7}`, 400, "", 0},
		{"POST", `{"sceneId":"nowhere"}`, 400, "", 0},
		{"POST", `{"sceneId":"login","code":"T1"}`, 400, "", 0},
		{"POST", `{"sceneId":"login","format":"v4"}`, 400, "", 0},
		{"POST", `{"sceneId":"login","bytes":5}`, 400, "", 0},
		{"POST", `{"sceneId":"login","scene":"login"}`, 400, "", 0},
		{"POST", `{"sceneId":"login"}{}`, 400, "", 0},
		{"POST", `{"sceneId":"login"}x`, 400, "", 0},
		{"POST", `{"sceneId":"login","code":"` + strings.Repeat("T", 64<<10) + `"}`, 413, "", 0},
		{"GET", ``, 405, "", 0},
		{"PUT", `{"sceneId":"login"}`, 405, "", 0},
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(c.method, "/issue", strings.NewReader(c.body)))
		name := fmt.Sprintf("%s %.60s: %s", c.method, c.body, w.Body)
		require.Equal(t, "*", w.Header().Get("Access-Control-Allow-Origin"), name) // the page has another origin
		require.Equal(t, c.status, w.Code, name)
		var a map[string]string
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &a), name)
		require.Len(t, a, 1, name)
		if c.status != 200 {
			require.NotEmpty(t, a["error"], name)
			require.Equal(t, c.status == 405, w.Header().Get("Allow") == "POST", name)
			continue
		}
		require.GreaterOrEqual(t, len(a["captchaVerifyParam"]), c.minLen, name)
		require.Equal(t, c.code, verify(t, s, a["captchaVerifyParam"]), name)
	}
	require.Equal(t, 5, s.Count(), "issuing is no call")

	i, err := json.Marshal(alicaptchatest.Issue{SceneID: "login"})
	require.NoError(t, err)
	require.JSONEq(t, `{"sceneId":"login"}`, string(i))
}

func TestCalls(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	require.Empty(t, s.Calls())
	s.Advance(time.Minute)
	before := time.Now().Add(time.Minute)
	param := issue(t, s, alicaptchatest.Issue{Code: alicaptcha.F011})
	send(t, s, signed(form(param, "login")))
	r := newCall(form("ü &=%", ""))
	signWith(r, "test-id", "wrong")
	send(t, s, r)
	send(t, s, signed(form("no scene")))
	send(t, s, signed("CaptchaVerifyParam=%zz"))

	calls := s.Calls()
	require.Equal(t, 4, s.Count())
	require.Len(t, calls, 4)
	require.False(t, calls[0].Time.Before(before))
	require.NotEmpty(t, calls[0].Header.Get("Authorization"))
	for i, want := range []alicaptchatest.Call{
		{Param: param, SceneID: "login", HasSceneID: true, Status: 200, ServiceCode: "Success", VerifyCode: "F011"},
		{Param: "ü &=%", HasSceneID: true, Status: 400, ServiceCode: "SignatureDoesNotMatch"},
		{Param: "no scene", Status: 200, ServiceCode: "Success", VerifyCode: "F003"},
		{Status: 401, ServiceCode: "InvalidParameter"},
	} {
		want.Time, want.Header = calls[i].Time, calls[i].Header
		require.Equal(t, want, calls[i])
	}

	calls[0].Param = ""
	calls[0].Header.Set("Authorization", "")
	require.Equal(t, param, s.Calls()[0].Param)
	require.NotEmpty(t, s.Calls()[0].Header.Get("Authorization"), "what Calls returned is a copy")
	r.Header.Set("Authorization", "")
	require.NotEmpty(t, s.Calls()[1].Header.Get("Authorization"))
}

func TestConfig(t *testing.T) {
	t.Parallel()
	require.Panics(t, func() { alicaptchatest.NewSimulator(alicaptchatest.Config{AccessKeyID: "id"}) })
	require.Panics(t, func() { alicaptchatest.NewSimulator(alicaptchatest.Config{AccessKeySecret: "secret"}) })

	scenes, foreign := []string{"a"}, []string{"b"}
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{Scenes: scenes, ForeignScenes: foreign})
	scenes[0], foreign[0] = "b", "a"
	param := issue(t, s, alicaptchatest.Issue{SceneID: "a"})
	require.EqualValues(t, "T001", verify(t, s, param, "a"), "the slices were copied")

	s = alicaptchatest.NewSimulator(alicaptchatest.Config{Scenes: []string{}})
	_, err := s.Issue(alicaptchatest.Issue{SceneID: "login"})
	require.Error(t, err, "no scenes are not the default ones")
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	srv := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := srv.Client()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				param, err := srv.Issue(alicaptchatest.Issue{SceneID: "login"})
				if err != nil {
					t.Error(err)
				}
				result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
				if err != nil || result.Code != alicaptcha.T001 {
					t.Error(result, err)
				}
				srv.Advance(time.Millisecond)
				srv.Calls()
				srv.ClientConfig()
			}
		})
	}
	wg.Wait()
	require.Equal(t, 80, srv.Count())
}
