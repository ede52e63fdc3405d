package alicaptcha_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func TestClientDiagnose(t *testing.T) {
	refused := func(status int, code string) transportFunc {
		return cannedTransport(status, `{"RequestId":"R-9","Code":"`+code+`","Message":"`+secretMessage+`"}`)
	}
	verdict := func(passed bool, code string) transportFunc {
		return cannedTransport(200, answerWith(fmt.Sprintf(`{"VerifyResult":%v,"VerifyCode":%q}`, passed, code)))
	}
	for name, tc := range map[string]struct {
		transport transportFunc
		want      []string // in the error; nil: none
	}{
		"F002": {verdict(false, "F002"), nil}, "F003": {verdict(false, "F003"), nil},
		"F013": {verdict(false, "F013"), nil}, "F001": {verdict(false, "F001"), nil},
		"F014": {verdict(false, "F014"), nil}, "F017": {verdict(false, "F017"), nil},
		"F022":             {verdict(false, "F022"), nil}, // the made-up param cannot have an encrypted scene ID
		"InvalidParameter": {refused(401, "InvalidParameter"), nil},
		"MissingParameter": {refused(400, "MissingParameter"), nil},

		"F004": {verdict(false, "F004"), []string{`"login"`, "F004", "test mode and fails", "R-1"}},
		"F005": {verdict(false, "F005"), []string{`"login"`, "F005", "does not exist", "console", "region"}},
		"F006": {verdict(false, "F006"), []string{`"login"`, "F006", "another account"}},
		"T001": {verdict(true, "T001"), []string{`"login"`, "T001", "made-up param passed"}},
		"T005": {verdict(true, "T005"), []string{`"login"`, "T005", "test mode and passes"}},
		"T006": {verdict(true, "T006"), []string{`"login"`, "T006", "allow-list"}},
		"not activated": {refused(403, "Forbidden.AccountAccessDenied"),
			[]string{"misconfigured", "Forbidden.AccountAccessDenied", "R-9", "activated", "overdue"}},
		"not permitted": {refused(403, "Forbidden.RAMUserAccessDenied"),
			[]string{"misconfigured", "RAM user or role lacks", "attach AliyunYundunAFSFullAccess"}},
		"no permission": {refused(403, "Forbidden.NoPermission"),
			[]string{"misconfigured", "RAM user or role lacks", "attach AliyunYundunAFSFullAccess"}},
		"no permission at all": {refused(403, "NoPermission"),
			[]string{"misconfigured", "RAM user or role lacks", "attach AliyunYundunAFSFullAccess"}},
		"disabled key": {refused(403, "Forbidden.AccessKeyDisabled"), []string{"misconfigured", "AccessKey is disabled"}},
		"inactive key": {refused(403, "InvalidAccessKeyId.Inactive"), []string{"misconfigured", "AccessKey is disabled"}},
		"wrong keys": {refused(404, "InvalidAccessKeyId.NotFound"),
			[]string{"misconfigured", "InvalidAccessKeyId.NotFound", "AccessKey ID does not exist"}},
		"wrong secret": {refused(400, "SignatureDoesNotMatch"),
			[]string{"misconfigured", "SignatureDoesNotMatch", "secret does not belong to"}},
		"half a signature": {refused(400, "IncompleteSignature"), []string{"misconfigured", "drops headers"}},
		"sent twice":       {refused(400, "SignatureNonceUsed"), []string{"misconfigured", "repeats it"}},
		"expired token":    {refused(400, "InvalidSecurityToken.Expired"), []string{"misconfigured", "has expired"}},
		"another's token": {refused(400, "InvalidSecurityToken.MismatchWithAccessKey"),
			[]string{"misconfigured", "STS token does not belong to"}},
		"no token":              {refused(400, "MissingSecurityToken"), []string{"misconfigured", "set its STS token"}},
		"clock":                 {refused(400, "InvalidTimeStamp.Expired"), []string{"misconfigured", "15 minutes", "NTP"}},
		"clock by its old name": {refused(400, "IllegalTimestamp"), []string{"misconfigured", "15 minutes", "NTP"}},
		"another service": {refused(404, "InvalidAction.NotFound"),
			[]string{"misconfigured", "not one of CAPTCHA 2.0"}},
		"another version": {refused(400, "InvalidVersion"), []string{"misconfigured", "not one of CAPTCHA 2.0"}},

		"another refusal": {refused(404, "NotFound"), []string{"request_refused", "status 404", "refused the request"}},
		"a gateway's page": {cannedTransport(404, "<html>"+secretMessage),
			[]string{"request_refused", "status 404", "proxy or gateway"}},
		"a gateway's outage": {cannedTransport(502, "<html>"+secretMessage),
			[]string{"service_unavailable", "status 502", "proxy or gateway"}},
		"throttled": {refused(400, "Throttling.User"),
			[]string{"service_throttled", "try again later", "raised"}},
		"throttled without a Code": {cannedTransport(429, ""), []string{"service_throttled", "limit"}},
		"broken": {refused(500, "InternalError"),
			[]string{"service_unavailable", "status 500", "try again later"}},
		"InvalidParameter with 500": {refused(500, "InvalidParameter"), []string{"service_unavailable"}},
		"no verdict":                {cannedTransport(200, "{}"), []string{"service_unavailable"}},
		"unreachable": {failingTransport(&net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}),
			[]string{"service_unavailable", "dial tcp", "could not be reached", "firewall"}},
		"unresolvable": {failingTransport(&net.DNSError{Err: "no such host", Name: "captcha.example"}),
			[]string{"lookup captcha.example", "could not be reached", "DNS"}},
		"untrusted": {failingTransport(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}),
			[]string{"could not be reached", "root certificates"}},
		"not TLS": {failingTransport(tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}),
			[]string{"could not be reached", "over TLS"}},
		"too slow":          {failingTransport(os.ErrDeadlineExceeded), []string{"service_timeout", "not in time"}},
		"failing elsewhere": {failingTransport(errors.New(keySecret)), []string{"service_unavailable"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := newClient(t, secretConfig(tc.transport)).Diagnose(t.Context(), "login")
			if tc.want == nil {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			for _, want := range tc.want {
				require.ErrorContains(t, err, want)
			}
			requireNothingShown(t, err)
			// The error says what is wrong, then what to do.
			fault, ok := errors.AsType[*alicaptcha.Error](err)
			require.True(t, ok)
			remedy, ok := strings.CutPrefix(err.Error(), fault.Error()+": ")
			require.True(t, ok)
			require.NotEmpty(t, remedy)
			require.False(t, strings.HasPrefix(string(fault.Code), "T") || strings.HasPrefix(string(fault.Code), "F"))
			if len(fault.ServiceCode) == 4 { // about the scene
				require.Equal(t, 200, fault.Status)
				require.Equal(t, "R-1", fault.RequestID)
				require.Equal(t, alicaptcha.Misconfigured, fault.Code)
			}
		})
	}
}

func TestClientDiagnoseAsksForTheScene(t *testing.T) {
	sim := alicaptchatest.Start(t, alicaptchatest.Config{ForeignScenes: []string{"theirs"}})
	client := sim.Client()
	for scene, want := range map[string]alicaptcha.Code{
		"login": "", "": "", "nowhere": alicaptcha.F005, "theirs": alicaptcha.F006,
	} {
		err := client.Diagnose(t.Context(), scene)
		call := sim.Calls()[sim.Count()-1]
		require.Equal(t, scene, call.SceneID)
		require.Equal(t, scene != "", call.HasSceneID)
		if want == "" {
			require.NoError(t, err)
		} else {
			require.Equal(t, want, call.VerifyCode)
			fault, ok := errors.AsType[*alicaptcha.Error](err)
			require.True(t, ok)
			require.NotEmpty(t, fault.RequestID)
			require.Equal(t, &alicaptcha.Error{
				Code: alicaptcha.Misconfigured, Status: 200, ServiceCode: string(want), RequestID: fault.RequestID,
			}, fault)
		}
	}
	require.Equal(t, 4, sim.Count())

	for _, code := range []alicaptcha.Code{alicaptcha.T005, alicaptcha.F004, alicaptcha.F005, alicaptcha.F006} {
		require.NoError(t, sim.SetFaults(alicaptchatest.Faults{VerifyCode: code}))
		fault, ok := errors.AsType[*alicaptcha.Error](client.Diagnose(t.Context(), "login"))
		require.True(t, ok, code)
		require.Equal(t, string(code), fault.ServiceCode)
	}

	cfg := sim.ClientConfig()
	cfg.AccessKeySecret = keySecret
	err := newClient(t, cfg).Diagnose(t.Context(), "login")
	fault, ok := errors.AsType[*alicaptcha.Error](err)
	require.True(t, ok)
	require.Equal(t, alicaptcha.Misconfigured, fault.Code)
	requireNothingShown(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, client.Diagnose(ctx, "login"), context.Canceled)
}
