package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	captcha "github.com/alibabacloud-go/captcha-20230305/client"
	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/utils"
	"github.com/alibabacloud-go/tea/dara"

	"github.com/alicaptcha/alicaptcha"
)

const (
	accessKeyID     = "test-id"
	accessKeySecret = "test-secret"
	scene           = "login"
)

// A sample is a Verifier that follows the vendor's sample code: one client of the SDK
// with timeouts of 5 s, and Body.Result.VerifyResult as the verdict.
type sample struct{ client *captcha.Client }

// newSample returns a sample for the service at endpoint, a URL without a path. A nil
// connection means that of the SDK, as in the vendor's code.
func newSample(endpoint string, connection dara.HttpClient) (sample, error) {
	protocol, host, _ := strings.Cut(endpoint, "://")
	client, err := captcha.NewClient(&openapi.Config{
		AccessKeyId:     new(accessKeyID),
		AccessKeySecret: new(accessKeySecret),
		Endpoint:        &host,
		Protocol:        &protocol,
		ConnectTimeout:  new(5000),
		ReadTimeout:     new(5000),
		HttpClient:      connection,
	})
	return sample{client}, err
}

// Verify ignores ctx, because the vendor's code has none.
func (s sample) Verify(_ context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	out, err := s.client.VerifyIntelligentCaptcha(&captcha.VerifyIntelligentCaptchaRequest{
		CaptchaVerifyParam: &req.Param, SceneId: &req.SceneID,
	})
	if err != nil {
		return alicaptcha.Result{}, err
	}
	return alicaptcha.Result{Passed: *out.Body.Result.VerifyResult}, nil
}

// readAll is the usual hand-written middleware: it reads the whole body, decodes it and
// puts it back. If it follows the vendor's advice, it treats an error of the Verifier as
// a pass.
func readAll(
	verifier alicaptcha.Verifier, decode func(*http.Request, []byte) string, passOnError bool, next http.Handler,
) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		verify(verifier, decode(r, body), passOnError, next, w, r)
	})
}

// verify calls the next handler if verifier passes param.
func verify(
	verifier alicaptcha.Verifier, param string, passOnError bool,
	next http.Handler, w http.ResponseWriter, r *http.Request,
) {
	result, err := verifier.Verify(r.Context(), alicaptcha.Request{Param: param, SceneID: scene})
	if err != nil && !passOnError || err == nil && !result.Passed {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	next.ServeHTTP(w, r)
}

// decodeJSON returns the param in body, or "" if there is none.
func decodeJSON(_ *http.Request, body []byte) string {
	var fields struct {
		CaptchaVerifyParam string `json:"captchaVerifyParam"`
	}
	if json.Unmarshal(body, &fields) != nil {
		return ""
	}
	return fields.CaptchaVerifyParam
}
