package alicaptcha_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// ekey is the Base64 of sceneKeyBytes.
const (
	sceneKeyBytes = "an-ekey-that-must-not-be-printed"
	ekey          = "YW4tZWtleS10aGF0LW11c3Qtbm90LWJlLXByaW50ZWQ="
)

func newSceneKey(t testing.TB) *alicaptcha.SceneKey {
	t.Helper()
	key, err := alicaptcha.NewSceneKey(ekey)
	require.NoError(t, err)
	return key
}

// openSceneID decrypts value as the service does, and returns its IV and its fields.
func openSceneID(t testing.TB, value string) (iv, sceneID string, from, life int64) {
	t.Helper()
	sealed, err := base64.StdEncoding.Strict().DecodeString(value)
	require.NoError(t, err)
	require.NotContains(t, value, "\n")
	require.Zero(t, len(sealed)%aes.BlockSize)
	require.GreaterOrEqual(t, len(sealed), 2*aes.BlockSize)
	block, err := aes.NewCipher([]byte(sceneKeyBytes))
	require.NoError(t, err)
	iv = string(sealed[:aes.BlockSize])
	plain := make([]byte, len(sealed)-aes.BlockSize)
	cipher.NewCBCDecrypter(block, []byte(iv)).CryptBlocks(plain, sealed[aes.BlockSize:])
	padding := int(plain[len(plain)-1])
	require.True(t, padding >= 1 && padding <= aes.BlockSize, padding)
	plain, pad := plain[:len(plain)-padding], plain[len(plain)-padding:]
	require.Equal(t, bytes.Repeat([]byte{byte(padding)}, padding), pad)
	fields := strings.Split(string(plain), "&")
	require.Len(t, fields, 3)
	from, err = strconv.ParseInt(fields[1], 10, 64)
	require.NoError(t, err)
	require.Equal(t, fields[1], strconv.FormatInt(from, 10))
	life, err = strconv.ParseInt(fields[2], 10, 64)
	require.NoError(t, err)
	require.Equal(t, fields[2], strconv.FormatInt(life, 10))
	return iv, fields[0], from, life
}

func TestSceneKeyTimes(t *testing.T) {
	key := newSceneKey(t)
	for _, row := range []struct {
		ttl      time.Duration
		wantLife int64
	}{
		{time.Second, 6},
		{1999 * time.Millisecond, 6}, // the fraction is dropped
		{90 * time.Second, 95},
		{time.Hour, 3605},
		{86_394*time.Second + 999*time.Millisecond, 86_399},
		{86_395 * time.Second, 86_400},
		{86_396 * time.Second, 86_400}, // no longer than the service allows
		{24 * time.Hour, 86_400},
	} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(700 * time.Millisecond) // the value has whole seconds
			now := time.Now()
			value, err := key.Encrypt("1a2b3c4d", row.ttl)
			require.NoError(t, err)
			_, sceneID, from, life := openSceneID(t, value)
			require.Equal(t, "1a2b3c4d", sceneID)
			require.Equal(t, now.Unix()-5, from)
			require.Equal(t, row.wantLife, life, row.ttl)
			require.LessOrEqual(t, time.Unix(from+life, 0), now.Add(row.ttl))
		})
	}
}

func TestSceneKeyEncryptErrors(t *testing.T) {
	key := newSceneKey(t)
	var none *alicaptcha.SceneKey
	for name, row := range map[string]struct {
		key     *alicaptcha.SceneKey
		sceneID string
		ttl     time.Duration
		want    string
	}{
		"nil":           {none, "1a2b3c4d", time.Hour, "not made by NewSceneKey"},
		"zero":          {new(alicaptcha.SceneKey), "1a2b3c4d", time.Hour, "not made by NewSceneKey"},
		"no scene":      {key, "", time.Hour, "scene ID is empty"},
		"ampersand":     {key, "1a2b&3c4d", time.Hour, "contains '&'"},
		"newline":       {key, "1a2b3c4d\n", time.Hour, "white space"},
		"space":         {key, " 1a2b3c4d", time.Hour, "white space"},
		"wide space":    {key, "1a2b\u30003c4d", time.Hour, "white space"},
		"not UTF-8":     {key, "1a2b\xff", time.Hour, "not valid UTF-8"},
		"no ttl":        {key, "1a2b3c4d", 0, "ttl is 0s"},
		"negative ttl":  {key, "1a2b3c4d", -time.Hour, "ttl is -1h0m0s"},
		"ttl of 3600":   {key, "1a2b3c4d", 3600, "ttl is 3.6µs"}, // a number without a unit
		"below 1 s":     {key, "1a2b3c4d", time.Second - 1, "from 1s to 24h"},
		"above 24 h":    {key, "1a2b3c4d", 24*time.Hour + 1, "from 1s to 24h"},
		"the least ttl": {key, "1a2b3c4d", -1 << 63, "from 1s to 24h"},
	} {
		value, err := row.key.Encrypt(row.sceneID, row.ttl)
		require.ErrorContains(t, err, row.want, name)
		require.Empty(t, value, name)
		require.True(t, strings.HasPrefix(err.Error(), "alicaptcha: "), name)
		requireNoKey(t, err.Error())
	}
}

func TestNewSceneKeyErrors(t *testing.T) {
	urlSafe := strings.Repeat("_-", 21) + "8="
	for name, row := range map[string]struct{ ekey, want string }{
		"empty":         {"", "empty"},
		"newline":       {ekey + "\n", "white space"},
		"line break":    {ekey[:20] + "\r\n" + ekey[20:], "white space"},
		"spaces":        {" " + ekey + " ", "white space"},
		"as it is":      {sceneKeyBytes, "not standard Base64"},
		"hexadecimal":   {fmt.Sprintf("%x", sceneKeyBytes), "48 bytes instead of 32"},
		"URL's Base64":  {urlSafe, "not standard Base64"},
		"no padding":    {strings.TrimRight(ekey, "="), "not standard Base64"},
		"trailing bits": {ekey[:42] + "R=", "not standard Base64"},
		"text after":    {ekey + "x", "not standard Base64"},
		"AES-128":       {"AAECAwQFBgcICQoLDA0ODw==", "16 bytes instead of 32"},
		"31 bytes":      {base64.StdEncoding.EncodeToString(make([]byte, 31)), "31 bytes"},
		"33 bytes":      {base64.StdEncoding.EncodeToString(make([]byte, 33)), "33 bytes"},
		"not UTF-8":     {"\xff" + ekey, "not standard Base64"},
	} {
		key, err := alicaptcha.NewSceneKey(row.ekey)
		require.ErrorContains(t, err, row.want, name)
		require.Nil(t, key, name)
		require.True(t, strings.HasPrefix(err.Error(), "alicaptcha: the ekey "), name)
		requireNoKey(t, fmt.Sprintf("%v %+v %#v", err, err, err))
	}
}

// requireNoKey requires that text has no part of the key in any form that a printer has.
func requireNoKey(t *testing.T, text string) {
	t.Helper()
	for _, form := range []string{
		sceneKeyBytes[:4], sceneKeyBytes[28:], ekey[:6], ekey[36:], // as it is
		fmt.Sprintf("%x", sceneKeyBytes[:4]), fmt.Sprintf("%X", sceneKeyBytes[:4]), // %x
		"97 110 45", "97,110,45", "0x61, 0x6e, 0x2d", "1764584033", // a slice of bytes, and a word of AES's schedule
	} {
		require.NotContains(t, text, form)
	}
}

func TestSceneKeyRedactsItself(t *testing.T) {
	key := newSceneKey(t)
	var none *alicaptcha.SceneKey
	type config struct {
		Key    *alicaptcha.SceneKey
		hidden *alicaptcha.SceneKey
		plain  alicaptcha.SceneKey
	}
	for _, v := range []any{
		key, *key, none, new(alicaptcha.SceneKey), []any{key}, map[string]any{"key": key},
		config{key, key, *key}, &config{key, key, *key},
	} {
		for _, verb := range "vsqxXdTtbcoUeEfFgGp" {
			for _, flag := range []string{"", "+", "#", "-", "0", " ", "# ", "64."} {
				requireNoKey(t, fmt.Sprintf("%"+flag+string(verb), v))
			}
		}
		requireNoKey(t, fmt.Sprint(v))
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "key", v)
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "key", v)
		requireNoKey(t, log.String())
		text, err := json.Marshal(v)
		require.NoError(t, err)
		requireNoKey(t, string(text))
		var page bytes.Buffer
		require.NoError(t, template.Must(template.New("").Parse("{{.}}<script>{{.}}</script>")).Execute(&page, v))
		requireNoKey(t, page.String())
	}
	require.Equal(t, "SceneKey([redacted])", fmt.Sprintf("%#v", key))
	require.Equal(t, "SceneKey([redacted])", fmt.Sprint(none))
}

// 100,000 values, made by several goroutines, have as many IVs.
func TestSceneKeyIVs(t *testing.T) {
	key := newSceneKey(t)
	const workers, each = 8, 12_500
	values := make([][]string, workers)
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for range each {
				value, err := key.Encrypt("1a2b3c4d", time.Hour)
				if err != nil {
					return
				}
				values[worker] = append(values[worker], value)
			}
		})
	}
	group.Wait()
	ivs := make(map[string]bool, workers*each)
	for _, made := range values {
		for _, value := range made {
			iv, err := base64.StdEncoding.DecodeString(value[:24]) // 18 bytes
			require.NoError(t, err)
			ivs[string(iv[:aes.BlockSize])] = true
		}
		_, sceneID, _, _ := openSceneID(t, made[0])
		require.Equal(t, "1a2b3c4d", sceneID)
	}
	require.Len(t, ivs, workers*each)
}

func FuzzSceneKey(f *testing.F) {
	for _, sceneID := range []string{"1a2b3c4d", "", "a&b", "场景", "\xff", " ", "\x00", strings.Repeat("s", 1000)} {
		for _, ttl := range []time.Duration{
			time.Second, time.Hour, 24 * time.Hour, 0, -1, 1500 * time.Millisecond, 1<<63 - 1,
		} {
			f.Add(sceneID, int64(ttl))
		}
	}
	f.Fuzz(func(t *testing.T, sceneID string, nanoseconds int64) {
		ttl := time.Duration(nanoseconds)
		before := time.Now()
		value, err := newSceneKey(t).Encrypt(sceneID, ttl)
		after := time.Now()
		fits := sceneID != "" && utf8.ValidString(sceneID) && !strings.Contains(sceneID, "&") &&
			len(strings.Fields(sceneID)) == 1 && strings.TrimSpace(sceneID) == sceneID &&
			ttl >= time.Second && ttl <= 24*time.Hour
		require.Equal(t, fits, err == nil, err)
		if err != nil {
			require.Empty(t, value)
			return
		}
		_, got, from, life := openSceneID(t, value)
		require.Equal(t, sceneID, got)
		require.True(t, before.Unix()-5 <= from && from <= after.Unix()-5, from)
		require.Equal(t, min(int64(ttl/time.Second)+5, 86_400), life)
	})
}

// A page with an encrypted scene ID must not be cached: the ID in it expires.
func ExampleSceneKey() {
	key, err := alicaptcha.NewSceneKey("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") // the ekey from the console
	if err != nil {
		panic(err)
	}
	page := template.Must(template.New("login").Parse(
		`<script>const captcha = {SceneId: {{.SceneID}}, EncryptedSceneId: {{.Encrypted}}};</script>`))
	login := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		encrypted, err := key.Encrypt("1a2b3c4d", time.Hour)
		if err != nil {
			http.Error(w, "no captcha", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		page.Execute(w, struct{ SceneID, Encrypted string }{"1a2b3c4d", encrypted})
	})

	w := httptest.NewRecorder()
	login.ServeHTTP(w, httptest.NewRequest("GET", "/login", nil))
	body, _ := io.ReadAll(w.Body)
	fmt.Println(w.Code, w.Header().Get("Cache-Control"))
	fmt.Println(strings.Contains(string(body), `SceneId: "1a2b3c4d", EncryptedSceneId: "`))
	// Output:
	// 200 no-store
	// true
}
