package alicaptchatest_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// The script is for browsers. The module e2e tests it in one.
func TestWidget(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	ask := func(method string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(method, "/AliyunCaptcha.js", nil))
		return w
	}
	w := ask("GET")
	require.Equal(t, 200, w.Code)
	require.Equal(t, "text/javascript; charset=utf-8", w.Header().Get("Content-Type"))
	require.Contains(t, w.Body.String(), "window.initAliyunCaptcha = ")
	require.Equal(t, 200, ask("HEAD").Code)
	w = ask("POST")
	require.Equal(t, 405, w.Code)
	require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	require.Zero(t, s.Count())
}

// widgetCall returns the answer to a request of the script.
func widgetCall(t *testing.T, s *alicaptchatest.Simulator, path, body string) (int, map[string]string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("POST", "/widget/"+path, strings.NewReader(body)))
	require.Equal(t, "*", w.Header().Get("Access-Control-Allow-Origin")) // the page has another origin
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	var a map[string]string
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &a), w.Body)
	return w.Code, a
}

func TestWidgetInit(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{ForeignScenes: []string{"theirs"}})
	for body, code := range map[string]string{
		`{"prefix":"p","sceneId":"login","format":"v3"}`:                                "",
		`{"prefix":"p","sceneId":"login","format":"v2"}`:                                "",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"p_abcDEF0123"}`: "",
		`{"prefix":"p","sceneId":"login","format":"v3","encryptedSceneId":"anything"}`:  "", // without an EKey
		`{}`: "IllegalUserTag",
		`{"prefix":"p/","sceneId":"login","format":"v3"}`:                                    "IllegalUserTag",
		`{"prefix":"` + strings.Repeat("p", 64) + `","sceneId":"login","format":"v3"}`:       "IllegalUserTag",
		`{"prefix":"p","format":"v3"}`:                                                       "IllegalScene",
		`{"prefix":"p","sceneId":"nowhere","format":"v3"}`:                                   "IllegalScene",
		`{"prefix":"p","sceneId":"theirs","format":"v3"}`:                                    "IllegalScene",
		`{"prefix":"p","sceneId":"login","format":"v4"}`:                                     "IllegalScene",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"abcDEF0123"}`:        "IllegalCertifyId",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"_abcDEF0123"}`:       "IllegalCertifyId",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"q_abcDEF0123"}`:      "IllegalCertifyId",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"p_abcDEF012"}`:       "IllegalCertifyId",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"p_abcDEF01234"}`:     "IllegalCertifyId",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"p_abcDEF012-"}`:      "IllegalCertifyId",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"p_abcDEF0123\n"}`:    "IllegalCertifyId",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"p_p_abcDEF0123"}`:    "IllegalCertifyId",
		`{"prefix":"p","sceneId":"login","format":"v3","userCertifyId":"p_\u00e4bcDEF0123"}`: "IllegalCertifyId",
	} {
		for _, path := range []string{"init", "verify"} {
			status, a := widgetCall(t, s, path, body)
			require.Equal(t, 200, status, body)
			require.Equal(t, code, a["code"], body)
			require.Equal(t, code != "", a["msg"] != "", body)
			require.Equal(t, path == "verify" && code == "", a["captchaVerifyParam"] != "", body)
			if path == "init" && code == "" {
				require.Empty(t, a)
			}
		}
	}
	require.Zero(t, s.Count(), "these are no calls")
}

func TestWidgetVerify(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	certifyID := func(param string) string {
		a := send(t, s, signed(form(param, "login")))
		require.Equal(t, alicaptcha.T001, a.Result.VerifyCode)
		return a.Result.CertifyID
	}
	for format, length := range map[string]int{"v3": 280, "v2": 4278} {
		own := `{"prefix":"p","sceneId":"login","format":"` + format + `"}`
		status, a := widgetCall(t, s, "verify", own)
		require.Equal(t, 200, status)
		require.Equal(t, "T001", a["verifyCode"])
		require.GreaterOrEqual(t, len(a["captchaVerifyParam"]), length)
		require.Regexp(t, "^[0-9A-Za-z]{10}$", certifyID(a["captchaVerifyParam"]))

		users := `{"prefix":"p","sceneId":"login","format":"` + format + `","userCertifyId":"p_abcDEF01` + format + `"}`
		_, a = widgetCall(t, s, "verify", users)
		first := a["captchaVerifyParam"]
		_, a = widgetCall(t, s, "verify", users)
		require.Equal(t, "F008", a["verifyCode"])
		require.Empty(t, a["captchaVerifyParam"])
		require.Equal(t, "p_abcDEF01"+format, certifyID(first), "the first param is still good")
	}

	for _, c := range []struct {
		method, body string
		status       int
	}{
		{"POST", ``, 400},
		{"POST", `null and void`, 400},
		{"POST", `{"sceneId":7}`, 400},
		{"POST", `{"code":"T001"}`, 400},
		{"POST", `{"sceneId":"` + strings.Repeat("l", 64<<10) + `"}`, 413},
		{"GET", ``, 405},
	} {
		for _, path := range []string{"/widget/init", "/widget/verify"} {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(c.method, path, strings.NewReader(c.body)))
			require.Equal(t, c.status, w.Code, c.body)
			require.Contains(t, w.Body.String(), `"error"`)
		}
	}
	require.Equal(t, 404, send(t, s, httptest.NewRequest("POST", "/widget/other", nil)).status)
}

// encrypted returns base64 of an IV and text in AES-256-CBC. It is independent of the
// package's own code.
func encrypted(key []byte, text string) string {
	n := aes.BlockSize - len(text)%aes.BlockSize
	return encryptedBlocks(key, text+strings.Repeat(string(rune(n)), n))
}

func encryptedBlocks(key []byte, text string) string {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	iv, out := make([]byte, aes.BlockSize), []byte(text)
	rand.Read(iv)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, out)
	return base64.StdEncoding.EncodeToString(append(iv, out...))
}

// In encrypted mode a script gets no V3 param without a valid EncryptedSceneId.
func TestEncryptedScene(t *testing.T) {
	t.Parallel()
	key, other := bytes.Repeat([]byte("k"), 32), bytes.Repeat([]byte("o"), 32)
	ekey := base64.StdEncoding.EncodeToString(key)
	at := func(scene string, offset, life int64) string {
		return encrypted(key, fmt.Sprintf("%s&%d&%d", scene, time.Now().Unix()+offset, life))
	}
	valid := at("login", -5, 3600)
	now := fmt.Sprint(time.Now().Unix())
	sceneKey, err := alicaptcha.NewSceneKey(ekey)
	require.NoError(t, err)
	ours, err := sceneKey.Encrypt("login", time.Minute)
	require.NoError(t, err)

	s := alicaptchatest.NewSimulator(alicaptchatest.Config{EKey: ekey})
	ask := func(encryptedSceneID, format string) map[string]string {
		body, err := json.Marshal(map[string]string{
			"prefix": "p", "sceneId": "login", "format": format, "encryptedSceneId": encryptedSceneID,
		})
		require.NoError(t, err)
		_, a := widgetCall(t, s, "verify", string(body))
		return a
	}
	for name, row := range map[string]struct {
		value, why string
	}{
		"valid":              {valid, ""},
		"by a SceneKey":      {ours, ""},
		"of this second":     {at("login", 0, 3600), ""},
		"of a whole day":     {at("login", -86000, 86400), ""},
		"missing":            {"", "missing"},
		"wrong key":          {encrypted(other, "login&"+now+"&3600"), "EncryptedSceneId"}, // one of two reasons
		"key not decoded":    {encrypted([]byte(ekey[:32]), "login&"+now+"&3600"), "EncryptedSceneId"},
		"from the future":    {at("login", 60, 3600), "from the future"},
		"expired":            {at("login", -3600, 3600), "expired"},
		"another scene's":    {at("signup", -5, 3600), "another scene's"},
		"longer than a day":  {at("login", -5, 86401), "1 to 86400"},
		"of no time":         {at("login", -5, 0), "1 to 86400"},
		"of negative time":   {at("login", -5, -1), "numbers"},
		"in milliseconds":    {encrypted(key, "login&"+now+"000&3600"), "numbers"},
		"not of this age":    {encrypted(key, "login&"+now+"0&3600"), "from the future"},
		"no number":          {encrypted(key, "login&now&3600"), "numbers"},
		"two fields":         {encrypted(key, "login&"+now), "sceneId&timestamp&expireTime"},
		"four fields":        {encrypted(key, "login&"+now+"&3600&"), "sceneId&timestamp&expireTime"},
		"plain":              {"login&" + now + "&3600", "base64"},
		"a line break":       {valid[:20] + "\n" + valid[20:], "base64"},
		"for URLs":           {strings.Repeat("_", 64), "base64"},
		"without its end":    {valid[:len(valid)-4], "base64"},
		"an IV only":         {base64.StdEncoding.EncodeToString(make([]byte, 16)), "base64"},
		"padding of 0":       {encryptedBlocks(key, "login&"+now+strings.Repeat("\x00", 16)), "decrypted"},
		"padding of zeros":   {encryptedBlocks(key, strings.Repeat("\x00", 16)), "decrypted"},
		"padding of 17":      {encryptedBlocks(key, strings.Repeat("\x11", 32)), "decrypted"},
		"padding of one lie": {encryptedBlocks(key, "login&1&1\x01\x07\x07\x07\x07\x07\x07"), "decrypted"},
		"padding alone":      {encryptedBlocks(key, strings.Repeat("\x10", 16)), "sceneId&timestamp&expireTime"},
	} {
		t.Run(name, func(t *testing.T) {
			a := ask(row.value, "v3")
			if row.why == "" {
				require.Equal(t, "T001", a["verifyCode"], a["error"])
				require.Equal(t, alicaptcha.T001, verify(t, s, a["captchaVerifyParam"], "login"))
				return
			}
			require.Equal(t, "F022", a["verifyCode"])
			require.Contains(t, a["error"], row.why)
			require.Empty(t, a["captchaVerifyParam"])
			require.Equal(t, "T001", ask(row.value, "v2")["verifyCode"], "V2 has no encrypted mode")
		})
	}
	require.Equal(t, "T001", ask(valid, "v3")["verifyCode"], "it may be used again")
	s.Advance(time.Hour - 6*time.Second)
	require.Equal(t, "T001", ask(valid, "v3")["verifyCode"])
	s.Advance(time.Minute)
	require.Equal(t, "F022", ask(valid, "v3")["verifyCode"], "by the Simulator's clock")
	issue(t, s, alicaptchatest.Issue{}) // needs none
}

func TestEKeyRefused(t *testing.T) {
	t.Parallel()
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, ekey := range []string{
		"x", key + "\n", key[:40], strings.Repeat("k", 32), base64.StdEncoding.EncodeToString(make([]byte, 16)),
	} {
		require.Panics(t, func() { alicaptchatest.NewSimulator(alicaptchatest.Config{EKey: ekey}) }, ekey)
	}
}

// The param of a script that cannot reach the service is refused, whatever it says.
func TestFailover(t *testing.T) {
	t.Parallel()
	const members = `"sceneId":"login","certifyId":"p_abcDEF0123","failover":"T","err":{"code":"INIT_FAIL"}`
	issued := func(s *alicaptchatest.Simulator) string { // with the members of a param that was issued
		param := issue(t, s, alicaptchatest.Issue{Format: alicaptchatest.V2})
		return strings.TrimSuffix(param, "}") + `,"failover":"T"}`
	}
	for name, row := range map[string]struct {
		param func(*alicaptchatest.Simulator) string
		scene string
		want  alicaptcha.Code
	}{
		"V2":            {scene: "login", want: "F023", param: func(*alicaptchatest.Simulator) string { return v2(members) }},
		"V3":            {scene: "login", want: "F014", param: func(*alicaptchatest.Simulator) string { return v3(members) }},
		"V2, issued":    {scene: "login", want: "F023", param: issued},
		"another scene": {scene: "signup", want: "F012", param: func(*alicaptchatest.Simulator) string { return v2(members) }},
		"no scene":      {scene: "nowhere", want: "F005", param: func(*alicaptchatest.Simulator) string { return v3(members) }},
		"not T": {scene: "login", want: "F013", param: func(*alicaptchatest.Simulator) string {
			return v2(strings.Replace(members, `"T"`, `"F"`, 1))
		}},
		"without a scene": {scene: "login", want: "F013", param: func(*alicaptchatest.Simulator) string {
			return v2(`"failover":"T","err":{"code":"INIT_FAIL"}`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
			param := row.param(s)
			for range 2 { // it cannot be used up
				require.Equal(t, row.want, verify(t, s, param, row.scene))
			}
		})
	}
}
