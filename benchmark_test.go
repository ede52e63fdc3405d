package alicaptcha_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	captcha "github.com/alibabacloud-go/captcha-20230305/client"
	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/utils"
	"github.com/alibabacloud-go/tea/dara"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// readAll is the middleware that everybody writes.
func readAll(verifier alicaptcha.Verifier, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		var fields struct {
			CaptchaVerifyParam string `json:"captchaVerifyParam"`
		}
		if json.Unmarshal(body, &fields) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		result, err := verifier.Verify(r.Context(), alicaptcha.Request{Param: fields.CaptchaVerifyParam, SceneID: "login"})
		if err != nil || !result.Passed {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// BenchmarkMiddleware compares the gate with readAll and with no gate, in front
// of a handler that reads the body to its end. The metric of-readall is the
// gate's time as a part of readAll's, each less that without a gate.
func BenchmarkMiddleware(b *testing.B) {
	verifier := alicaptchatest.Passing()
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: verifier, SceneID: "login", Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(b, err)
	calls := 0
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		calls++
		io.Copy(io.Discard, r.Body)
	})
	field := `"captchaVerifyParam":"` + strings.Repeat("p", 280) + `"`
	for _, size := range []int{512, 4 << 10, 64 << 10} {
		rest := `"username":"alice","password":"correct-horse","profile":"`
		rest += strings.Repeat("x", size-len(field)-len(rest)-len(`{,"}`)) + `"`
		for _, order := range []struct{ name, body string }{
			{"first", "{" + field + "," + rest + "}"},
			{"last", "{" + rest + "," + field + "}"},
		} {
			require.Len(b, order.body, size)
			took := map[string]float64{}
			for _, gate := range []struct {
				name    string
				handler http.Handler
			}{
				{"bare", handler},
				{"readall", readAll(verifier, handler)},
				{"gate", m.Handler(handler)},
			} {
				b.Run(fmt.Sprintf("size=%d/field=%s/%s", size, order.name, gate.name), func(b *testing.B) {
					request := httptest.NewRequest("POST", "/login", nil)
					request.Header.Set("Content-Type", "application/json")
					request.ContentLength = int64(size)
					w := httptest.NewRecorder()
					before, served := calls, 0
					b.ReportAllocs()
					for b.Loop() {
						r := *request
						r.Body = io.NopCloser(strings.NewReader(order.body))
						gate.handler.ServeHTTP(w, &r)
						served++
					}
					if calls-before != served {
						b.Fatalf("the handler was called %d times for %d requests", calls-before, served)
					}
					took[gate.name] = float64(b.Elapsed()) / float64(served)
					if gate.name == "gate" && took["readall"] > 0 {
						b.ReportMetric((took["gate"]-took["bare"])/(took["readall"]-took["bare"]), "of-readall")
					}
				})
			}
		}
	}
}

// A canned transport gives the same answer to every call.
type canned string

func (c canned) RoundTrip(r *http.Request) (*http.Response, error) {
	io.Copy(io.Discard, r.Body)
	return &http.Response{
		StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(string(c))),
	}, nil
}

func (c canned) Call(r *http.Request, _ *http.Transport) (*http.Response, error) {
	return c.RoundTrip(r)
}

// BenchmarkClient compares a call through Client with one through the SDK as it
// is, both on a canned answer. The metric of-sdk is the former's time as a part
// of the latter's.
func BenchmarkClient(b *testing.B) {
	const pass = canned(`{"RequestId":"0A1B2C3D-0000-1111-2222-333344445555","Message":"success","Code":"Success",` +
		`"Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"certify"}}`)
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Region: alicaptcha.International, AccessKeyID: "test-id", AccessKeySecret: "test-secret", Transport: pass,
	})
	require.NoError(b, err)
	sdk, err := captcha.NewClient(&openapi.Config{
		Endpoint: new("captcha.ap-southeast-1.aliyuncs.com"), AccessKeyId: new("test-id"),
		AccessKeySecret: new("test-secret"), HttpClient: pass,
	})
	require.NoError(b, err)
	scene := "login"
	for _, size := range []int{280, 4500, 28000} {
		param := strings.Repeat("p", size)
		var bySDK float64
		b.Run(fmt.Sprintf("param=%d/sdk", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				in := &captcha.VerifyIntelligentCaptchaRequest{CaptchaVerifyParam: &param, SceneId: &scene}
				out, err := sdk.VerifyIntelligentCaptchaWithContext(context.Background(), in, &dara.RuntimeOptions{})
				if err != nil || !*out.Body.Result.VerifyResult {
					b.Fatal(out, err)
				}
			}
			bySDK = float64(b.Elapsed()) / float64(b.N)
		})
		b.Run(fmt.Sprintf("param=%d/client", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				result, err := client.Verify(context.Background(), alicaptcha.Request{Param: param, SceneID: scene})
				if err != nil || !result.Passed {
					b.Fatal(result, err)
				}
			}
			if bySDK > 0 {
				b.ReportMetric(float64(b.Elapsed())/float64(b.N)/bySDK, "of-sdk")
			}
		})
	}
}

// BenchmarkMode is what a ModeFunc costs beside a Mode, and what an exempt request costs.
func BenchmarkMode(b *testing.B) {
	for _, gate := range []struct {
		name string
		cfg  alicaptcha.Config
	}{
		{"Mode", alicaptcha.Config{}},
		{"ModeFunc", alicaptcha.Config{ModeFunc: new(switchable).mode}},
		{"Exempt", alicaptcha.Config{Mode: alicaptcha.Exempt}},
	} {
		b.Run(gate.name, func(b *testing.B) {
			gate.cfg.Verifier, gate.cfg.SceneID = alicaptchatest.Passing(), "login"
			gate.cfg.Logger = slog.New(slog.DiscardHandler)
			m, err := alicaptcha.New(gate.cfg)
			require.NoError(b, err)
			h := m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			r := httptest.NewRequest("POST", "/login", nil)
			r.Header.Set("Captcha-Verify-Param", param)
			w := httptest.NewRecorder()
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
	}
}

// A switchable is a Mode that may change.
type switchable struct{ now atomic.Int64 }

func (s *switchable) mode(*http.Request) alicaptcha.Mode { return alicaptcha.Mode(s.now.Load()) }

// BenchmarkLog is what the line of a rejection costs in time and in bytes, as JSON.
func BenchmarkLog(b *testing.B) {
	for _, code := range []alicaptcha.Code{alicaptcha.F001, alicaptcha.ServiceUnavailable} {
		for _, name := range []string{"without", "with"} {
			b.Run(string(code)+"/"+name, func(b *testing.B) {
				var written counter
				logger := slog.New(slog.DiscardHandler)
				if name == "with" {
					logger = slog.New(slog.NewJSONHandler(&written, nil))
				}
				verifier := alicaptchatest.Failing(alicaptcha.ServiceUnavailable)
				if code == alicaptcha.F001 {
					result := alicaptcha.Result{
						Code: code, CertifyID: "0a1b2c3d4e", RequestID: "0A1B2C3D-0000-1111-2222-333344445555",
					}
					verifier = alicaptcha.VerifierFunc(
						func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) { return result, nil })
				}
				m, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "login", Logger: logger})
				require.NoError(b, err)
				r := httptest.NewRequest("POST", "/login", nil)
				r.Header.Set("Captcha-Verify-Param", param)
				b.ReportAllocs()
				for b.Loop() {
					m.Check(r)
				}
				if name == "with" {
					b.ReportMetric(float64(written)/float64(b.N), "log-B/op")
				}
			})
		}
	}
}

// A counter counts what is written to it.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
