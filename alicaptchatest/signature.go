package alicaptchatest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	algorithm  = "ACS3-HMAC-SHA256"
	dateLayout = "2006-01-02T15:04:05Z"
	dateWindow = 15 * time.Minute // in both directions
)

// authenticate returns nil if the call has a valid signature, is in time and is not
// a replay. Otherwise it returns the answer to the first problem, in the order in
// which the service's gateway looks for them.
func (s *Simulator) authenticate(r *http.Request, body []byte) *answer {
	if r.Header.Get("X-Acs-Action") != "VerifyIntelligentCaptcha" {
		return &answer{status: 404, code: "InvalidAction.NotFound", message: "The specified action is not found."}
	}
	if r.Header.Get("X-Acs-Version") != "2023-03-05" {
		return &answer{status: 400, code: "InvalidVersion", message: "Specified parameter Version is not valid."}
	}
	date, err := time.Parse(dateLayout, r.Header.Get("X-Acs-Date"))
	// Parse takes fractions of a second that the layout does not have.
	if err != nil || date.Format(dateLayout) != r.Header.Get("X-Acs-Date") {
		return &answer{
			status: 400, code: "InvalidTimeStamp.Format",
			message: "Specified time stamp or date value is not well formatted.",
		}
	}
	if time.Since(date).Abs() > dateWindow { // Advance does not count, because it does not move the client's clock
		return &answer{
			status: 400, code: "InvalidTimeStamp.Expired",
			message: "Specified time stamp or date value is expired.",
		}
	}
	nonce := r.Header.Get("X-Acs-Signature-Nonce")
	if nonce == "" {
		return &answer{status: 400, code: "MissingParameter", message: "SignatureNonce is mandatory for this action."}
	}
	fault := s.checkSignature(r, body)

	s.mu.Lock()
	defer s.mu.Unlock()
	if until, used := s.nonces[nonce]; used && !time.Now().After(until) {
		return &answer{status: 400, code: "SignatureNonceUsed", message: "Specified signature nonce was used already."}
	}
	if fault == nil { // or anyone could use up a nonce before its owner does
		s.nonces[nonce] = date.Add(dateWindow)
	}
	return fault
}

func (s *Simulator) checkSignature(r *http.Request, body []byte) *answer {
	auth, ok := parseAuthorization(r.Header.Get("Authorization"))
	if !ok || !auth.covers(r.Header) {
		return &answer{
			status: 400, code: "IncompleteSignature",
			message: "The request signature does not conform to Aliyun standards.",
		}
	}
	if auth.keyID != s.cfg.AccessKeyID {
		return &answer{status: 404, code: "InvalidAccessKeyId.NotFound", message: "Specified access key is not found."}
	}
	switch token := r.Header.Get("X-Acs-Security-Token"); {
	case token == "" && s.cfg.SecurityToken != "":
		return &answer{status: 400, code: "MissingSecurityToken", message: "SecurityToken is mandatory for this action."}
	case token != s.cfg.SecurityToken:
		return &answer{status: 400, code: "InvalidSecurityToken.Malformed", message: "Specified SecurityToken is malformed."}
	case token != "" && r.Header.Get("X-Acs-Accesskey-Id") != auth.keyID:
		return &answer{
			status: 400, code: "InvalidSecurityToken.MismatchWithAccessKey",
			message: "Specified SecurityToken mismatches with the access key.",
		}
	}
	sum := sha256.Sum256(body)
	hashed := hex.EncodeToString(sum[:])
	want, ok := sign(r, hashed, auth.signed, s.cfg.AccessKeySecret)
	if !ok || r.Header.Get("X-Acs-Content-Sha256") != hashed || !hmac.Equal([]byte(want), []byte(auth.signature)) {
		return &answer{
			status: 400, code: "SignatureDoesNotMatch",
			message: "Specified signature does not match our calculation.",
		}
	}
	return nil
}

// authorization is a parsed Authorization header.
type authorization struct {
	keyID     string
	signed    []string // the names in SignedHeaders
	signature string
}

func parseAuthorization(header string) (authorization, bool) {
	rest, isACS3 := strings.CutPrefix(header, algorithm+" ")
	parts := strings.Split(rest, ",")
	if !isACS3 || len(parts) != 3 {
		return authorization{}, false
	}
	for i, prefix := range []string{"Credential=", "SignedHeaders=", "Signature="} {
		value, ok := strings.CutPrefix(parts[i], prefix)
		if !ok || value == "" {
			return authorization{}, false
		}
		parts[i] = value
	}
	return authorization{keyID: parts[0], signed: strings.Split(parts[1], ";"), signature: parts[2]}, true
}

// covers reports whether the signature covers all the headers that it must cover.
func (a authorization) covers(header http.Header) bool {
	for _, name := range []string{
		"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-version",
	} {
		if !slices.Contains(a.signed, name) {
			return false
		}
	}
	for name := range header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-acs-") && !slices.Contains(a.signed, name) {
			return false
		}
	}
	return true
}

// sign returns the signature of r over the named headers, where hashedBody is the
// hash of the body. It reports false if the query of r cannot be parsed.
func sign(r *http.Request, hashedBody string, headers []string, secret string) (string, bool) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", false
	}
	headers = slices.Sorted(slices.Values(headers))
	var b strings.Builder
	b.WriteString(r.Method + "\n/\n" + strings.ReplaceAll(query.Encode(), "+", "%20") + "\n")
	for _, name := range headers {
		values := []string{r.Host}
		if name != "host" {
			values = slices.Clone(r.Header.Values(name))
		}
		for i := range values {
			values[i] = strings.TrimSpace(values[i])
		}
		slices.Sort(values)
		b.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}
	b.WriteString("\n" + strings.Join(headers, ";") + "\n" + hashedBody)

	canonical := sha256.Sum256([]byte(b.String()))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(algorithm + "\n" + hex.EncodeToString(canonical[:])))
	return hex.EncodeToString(mac.Sum(nil)), true
}
