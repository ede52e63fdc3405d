package alicaptcha

import (
	"bytes"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// documentMembers returns what a JSON object holds, and false where it is none, or has
// a name twice or in a case other than that of a known one.
func documentMembers(text []byte, known ...string) (map[string]json.RawMessage, bool) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, false
	}
	all := map[string]json.RawMessage{}
	for dec.More() {
		tok, err := dec.Token()
		name, isName := tok.(string)
		var value json.RawMessage
		if err != nil || !isName || dec.Decode(&value) != nil {
			return nil, false
		}
		if _, twice := all[name]; twice {
			return nil, false
		}
		if slices.ContainsFunc(known, func(k string) bool { return k != name && strings.EqualFold(k, name) }) {
			return nil, false
		}
		all[name] = value
	}
	return all, true
}

func FuzzReadAnswer(f *testing.F) {
	const pass = `{"RequestId":"R-1","Message":"success","Code":"Success","Success":true,` +
		`"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"C-1"}}`
	for _, body := range []string{
		pass, "", "null", "{}", "[]", pass + pass, pass[:40], strings.ToLower(pass), "\ufeff" + pass, pass + "\xff",
		`{"Code":"Success","Message":"success","RequestId":"R",` +
			`"Result":{"VerifyCode":"F001","VerifyResult":false},"Success":true}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":false}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":"true","VerifyCode":"T001"}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyResult":false}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"verifyresult":false}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"F001"}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":""}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":null,"CertifyId":null}}`,
		`{"Code":"Success","Success":true,"\u0052esult":{"Verify\u0052esult":true}}`,
		`{"Code":"Success","Success":false,"Result":{"VerifyResult":true}}`,
		`{"Code":"Throttling.User","RequestId":"R","Message":"m"}`,
		`{"Code":"Forbidden.AccountAccessDenied"}`,
		`<?xml version="1.0"?><Error><RequestId>R</RequestId><Code>SignatureDoesNotMatch</Code></Error>`,
		`<html><body>Bad Gateway`,
	} {
		for _, status := range []int{200, 204, 400, 401, 429, 500} {
			f.Add(status, []byte(body))
		}
	}
	isPass := regexp.MustCompile(`^T[0-9]{3}$`)
	isRefusal := regexp.MustCompile(`^F[0-9]{3}$`)
	isToken := regexp.MustCompile(`^[A-Za-z0-9._-]{0,64}$`)
	text := func(raw json.RawMessage) (string, bool) {
		var s *string
		err := json.Unmarshal(raw, &s)
		return deref(s), err == nil && s != nil
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		result, fault := readAnswer(status, body)
		if fault != nil {
			require.Zero(t, result)
			require.Contains(t, []Code{ServiceThrottled, Misconfigured, RequestRefused, ServiceUnavailable}, fault.Code)
			require.Equal(t, status, fault.Status)
			require.Regexp(t, isToken, fault.ServiceCode)
			require.Regexp(t, isToken, fault.RequestID)
			require.NotPanics(t, func() { _ = fault.Error() })
			if status == http.StatusTooManyRequests {
				require.Equal(t, ServiceThrottled, fault.Code)
			}
			if fault.Code == ServiceUnavailable { // what a client can cause ends in no code that is opened
				require.False(t, status >= 400 && status <= 499)
			}
			return
		}

		// A verdict. encoding/json, which is lenient, must see the same one.
		require.Equal(t, http.StatusOK, status)
		require.True(t, json.Valid(body))
		require.True(t, utf8.Valid(body) || !result.Passed)
		outer, ok := documentMembers(body, "RequestId", "Code", "Success", "Result", "Message")
		require.True(t, ok)
		code, ok := text(outer["Code"])
		require.True(t, ok)
		require.Equal(t, "Success", code)
		require.Equal(t, "true", string(outer["Success"]))
		inner, ok := documentMembers(outer["Result"], "VerifyResult", "VerifyCode", "CertifyId")
		require.True(t, ok)
		switch string(inner["VerifyResult"]) {
		case "true":
			require.True(t, result.Passed)
			require.Regexp(t, isPass, string(result.Code))
		case "false":
			require.False(t, result.Passed)
			require.Regexp(t, isRefusal, string(result.Code))
		default:
			require.Fail(t, "VerifyResult is no boolean")
		}
		if raw, there := inner["VerifyCode"]; there {
			code, ok := text(raw)
			require.True(t, ok)
			require.Equal(t, code, string(result.Code))
		}
		var typed struct {
			RequestID *string `json:"RequestId"`
			Result    struct {
				CertifyID *string `json:"CertifyId"`
			}
		}
		require.NoError(t, json.Unmarshal(body, &typed))
		require.Equal(t, deref(typed.RequestID), result.RequestID)
		require.Equal(t, deref(typed.Result.CertifyID), result.CertifyID)
	})
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
