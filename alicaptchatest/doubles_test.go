package alicaptchatest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/internal/gate"
)

func TestPassing(t *testing.T) {
	t.Parallel()
	result, err := alicaptchatest.Passing().Verify(t.Context(), alicaptcha.Request{})
	require.NoError(t, err)
	require.True(t, result.Passed)
	require.Equal(t, alicaptcha.T001, result.Code)
	require.NotEmpty(t, result.CertifyID)
	require.NotEmpty(t, result.RequestID)
}

func TestRejecting(t *testing.T) {
	t.Parallel()
	for _, code := range []alicaptcha.Code{"F001", "F025", "F999"} {
		result, err := alicaptchatest.Rejecting(code).Verify(t.Context(), alicaptcha.Request{})
		require.NoError(t, err)
		require.False(t, result.Passed)
		require.Equal(t, code, result.Code)
		require.NotEmpty(t, result.CertifyID)
		require.NotEmpty(t, result.RequestID)
	}
	for _, code := range []alicaptcha.Code{"", "T001", "F01", "F0001", "F00x", alicaptcha.ServiceTimeout} {
		require.Panics(t, func() { alicaptchatest.Rejecting(code) }, code)
	}
}

func TestFailing(t *testing.T) {
	t.Parallel()
	for _, code := range []alicaptcha.Code{
		alicaptcha.ParamMissing, alicaptcha.ParamMalformed, alicaptcha.ParamTooLarge, alicaptcha.RequestRefused,
		alicaptcha.ClientCanceled, alicaptcha.ServiceTimeout, alicaptcha.ServiceUnavailable, alicaptcha.ServiceThrottled,
		alicaptcha.Misconfigured, alicaptcha.Overloaded,
	} {
		result, err := alicaptchatest.Failing(code).Verify(t.Context(), alicaptcha.Request{})
		require.Equal(t, &alicaptcha.Error{Code: code}, err)
		require.Zero(t, result)
	}
	for _, code := range []alicaptcha.Code{"", "T001", "F001", "F999", "service_timeouts"} {
		require.Panics(t, func() { alicaptchatest.Failing(code) }, code)
	}
}

func TestNewContext(t *testing.T) {
	t.Parallel()
	want := alicaptcha.Outcome{Code: alicaptcha.T001, Allowed: true, Verified: true, SceneID: "login"}
	ctx := alicaptchatest.NewContext(t.Context(), want)
	require.Equal(t, want, ctx.Value(gate.OutcomeKey{}))
}

// Under ReportOnly a request may proceed that would have been rejected.
func TestNewContextOfReportOnly(t *testing.T) {
	t.Parallel()
	want := alicaptcha.Outcome{Code: alicaptcha.F001, Mode: alicaptcha.ReportOnly}
	o, proceed := alicaptcha.Ask(alicaptchatest.NewContext(t.Context(), want))
	require.True(t, proceed)
	require.False(t, o.Allowed)
	want.Mode = alicaptcha.Enforce
	_, proceed = alicaptcha.Ask(alicaptchatest.NewContext(t.Context(), want))
	require.False(t, proceed)
}
