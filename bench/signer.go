package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/alicaptcha/alicaptcha"
)

// A floor is a Verifier that does only what the service requires: it signs the request
// with ACS3-HMAC-SHA256, sends it, and decodes the answer, without any other check. It
// shows the lower limit for the cost of a call.
type floor struct {
	url, host string
	transport http.RoundTripper
}

// newFloor returns a floor for the service at endpoint, a URL without a path.
func newFloor(endpoint string, transport http.RoundTripper) floor {
	_, host, _ := strings.Cut(endpoint, "://")
	return floor{endpoint + "/", host, transport}
}

func (f floor) Verify(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	body := "CaptchaVerifyParam=" + url.QueryEscape(req.Param) + "&SceneId=" + url.QueryEscape(req.SceneID)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url, strings.NewReader(body))
	if err != nil {
		return alicaptcha.Result{}, err
	}
	r.Header = signed(accessKeyID, accessKeySecret, f.host, body, time.Now(), rand.Text())
	resp, err := f.transport.RoundTrip(r)
	if err != nil {
		return alicaptcha.Result{}, err
	}
	defer resp.Body.Close()
	var answer struct {
		RequestID string `json:"RequestId"`
		Result    struct {
			VerifyResult bool
			VerifyCode   alicaptcha.Code
			CertifyID    string `json:"CertifyId"`
		}
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return alicaptcha.Result{}, err
	}
	if err := json.Unmarshal(text, &answer); err != nil || resp.StatusCode != http.StatusOK {
		return alicaptcha.Result{}, fmt.Errorf("status %d, %w", resp.StatusCode, err)
	}
	return alicaptcha.Result{
		Passed: answer.Result.VerifyResult, Code: answer.Result.VerifyCode,
		CertifyID: answer.Result.CertifyID, RequestID: answer.RequestID,
	}, nil
}

// signed returns the headers of a call that sends body to host.
func signed(id, secret, host, body string, at time.Time, nonce string) http.Header {
	const names = "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version"
	date := at.UTC().Format(time.RFC3339)
	sum := sha256.Sum256([]byte(body))
	hashed := hex.EncodeToString(sum[:])
	canonical := sha256.Sum256([]byte("POST\n/\n\nhost:" + host +
		"\nx-acs-action:VerifyIntelligentCaptcha\nx-acs-content-sha256:" + hashed +
		"\nx-acs-date:" + date + "\nx-acs-signature-nonce:" + nonce +
		"\nx-acs-version:2023-03-05\n\n" + names + "\n" + hashed))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("ACS3-HMAC-SHA256\n" + hex.EncodeToString(canonical[:])))
	return http.Header{
		"Content-Type":          {"application/x-www-form-urlencoded"},
		"X-Acs-Action":          {"VerifyIntelligentCaptcha"},
		"X-Acs-Content-Sha256":  {hashed},
		"X-Acs-Date":            {date},
		"X-Acs-Signature-Nonce": {nonce},
		"X-Acs-Version":         {"2023-03-05"},
		"Authorization": {"ACS3-HMAC-SHA256 Credential=" + id + ",SignedHeaders=" + names +
			",Signature=" + hex.EncodeToString(mac.Sum(nil))},
	}
}
