package alicaptcha_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

func TestErrorText(t *testing.T) {
	for _, tc := range []struct {
		err  *alicaptcha.Error
		want string
	}{
		{nil, "alicaptcha: no verdict"},
		{&alicaptcha.Error{Code: alicaptcha.ServiceTimeout}, "alicaptcha: service_timeout"},
		{&alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Status: 502}, "alicaptcha: service_unavailable (status 502)"},
		{
			&alicaptcha.Error{
				Code: alicaptcha.RequestRefused, Status: 401, ServiceCode: "InvalidParameter", RequestID: "R-1",
			},
			"alicaptcha: request_refused (status 401, code InvalidParameter, request R-1)",
		},
		{&alicaptcha.Error{Code: alicaptcha.Misconfigured, RequestID: "R-1"}, "alicaptcha: misconfigured (request R-1)"},
		{&alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Err: errors.New(keySecret)},
			"alicaptcha: service_unavailable"},
		{&alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Err: context.Canceled}, "alicaptcha: service_unavailable"},
		{
			&alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Err: &alicaptcha.Error{Err: errors.New(keySecret)}},
			"alicaptcha: service_unavailable",
		},
	} {
		require.Equal(t, tc.want, tc.err.Error())
		require.Equal(t, tc.want, fmt.Sprint(tc.err))
		requireNothingShown(t, tc.err)
	}
}

func TestErrorNil(t *testing.T) {
	var fault *alicaptcha.Error
	require.NotPanics(t, func() {
		require.NoError(t, fault.Unwrap())
		require.NotErrorIs(t, error(fault), context.Canceled)
		_, ok := errors.AsType[*net.OpError](error(fault))
		require.False(t, ok)
	})
}

func TestErrorUnwraps(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("login: %w", &alicaptcha.Error{
		Code: alicaptcha.ServiceUnavailable, Err: fmt.Errorf("deep: %w", cause),
	})
	require.ErrorIs(t, err, cause)

	for _, cause := range []error{
		errors.New(secretMessage), io.ErrUnexpectedEOF, &net.DNSError{Err: "no such host", Name: "captcha.example"},
		&net.OpError{Op: "dial", Net: "tcp", Err: io.EOF},
	} {
		result, err := askClient(t, t.Context(), newClient(t, secretConfig(failingTransport(fmt.Errorf("x: %w", cause)))))
		requireFault(t, result, err)
		require.ErrorIs(t, err, cause)
	}
	for _, cause := range []error{context.Canceled, context.DeadlineExceeded} { // a Transport's, while the context lives
		result, err := askClient(t, t.Context(), newClient(t, secretConfig(failingTransport(cause))))
		require.NotEqual(t, alicaptcha.ClientCanceled, requireFault(t, result, err).Code)
		require.ErrorIs(t, err, cause)
	}
}

// What a Verifier returns is read strictly, and what is no verdict is only
// opened where it is an error that it returned.
func TestVerifierIsReadStrictly(t *testing.T) {
	t.Parallel()
	fails := func(code alicaptcha.Code) error { return &alicaptcha.Error{Code: code} }
	for _, row := range []struct {
		name   string
		result alicaptcha.Result
		err    error
		want   alicaptcha.Code
		opens  bool // under openEverything
	}{
		{"pass", alicaptcha.Result{Passed: true, Code: "T001"}, nil, "T001", true},
		{"allow-list", alicaptcha.Result{Passed: true, Code: "T006"}, nil, "T006", true},
		{"unknown T", alicaptcha.Result{Passed: true, Code: "T123"}, nil, "T123", true},
		{"older service passes", alicaptcha.Result{Passed: true}, nil, "T001", true},
		{"older service refuses", alicaptcha.Result{}, nil, "F001", true},
		{"unknown F", alicaptcha.Result{Code: "F999"}, nil, "F999", false},
		{"contradiction", alicaptcha.Result{Passed: true, Code: "F001"}, nil, "service_unavailable", false},
		{"contradiction the other way", alicaptcha.Result{Code: "T001"}, nil, "service_unavailable", false},
		{"a word", alicaptcha.Result{Code: alicaptcha.ServiceTimeout}, nil, "service_unavailable", false},
		{"a passing word", alicaptcha.Result{Passed: true, Code: alicaptcha.ParamMissing}, nil, "service_unavailable", false},
		{"short", alicaptcha.Result{Passed: true, Code: "T1"}, nil, "service_unavailable", false},
		{"long", alicaptcha.Result{Passed: true, Code: "T0011"}, nil, "service_unavailable", false},
		{"lower case", alicaptcha.Result{Passed: true, Code: "t001"}, nil, "service_unavailable", false},
		{"letters", alicaptcha.Result{Passed: true, Code: "Tabc"}, nil, "service_unavailable", false},
		{"a pass beside an error", alicaptcha.Result{Passed: true, Code: "T001"}, fails(alicaptcha.ServiceThrottled),
			"service_throttled", false},
		{"plain error", alicaptcha.Result{}, errors.New("oops"), "service_unavailable", true},
		{"nil *Error", alicaptcha.Result{}, (*alicaptcha.Error)(nil), "service_unavailable", true},
		{"empty *Error", alicaptcha.Result{}, &alicaptcha.Error{}, "service_unavailable", true},
		{"*Error with a T code", alicaptcha.Result{}, fails("T001"), "service_unavailable", true},
		{"*Error with an F code", alicaptcha.Result{}, fails("F001"), "service_unavailable", true},
		{"*Error with a code of nobody", alicaptcha.Result{}, fails("sunny"), "service_unavailable", true},
		{"ParamMissing", alicaptcha.Result{}, fails(alicaptcha.ParamMissing), "service_unavailable", true},
		{"ClientCanceled while the request lives", alicaptcha.Result{}, fails(alicaptcha.ClientCanceled),
			"service_unavailable", true},
		{"a context error while the request lives", alicaptcha.Result{}, context.Canceled, "service_unavailable", true},
		{"a deadline that is not ours", alicaptcha.Result{}, context.DeadlineExceeded, "service_unavailable", true},
		{"wrapped", alicaptcha.Result{}, fmt.Errorf("outer: %w", fails(alicaptcha.ServiceTimeout)), "service_timeout", true},
		{"ParamMalformed", alicaptcha.Result{}, fails(alicaptcha.ParamMalformed), "param_malformed", false},
		{"ParamTooLarge", alicaptcha.Result{}, fails(alicaptcha.ParamTooLarge), "param_too_large", false},
		{"RequestRefused", alicaptcha.Result{}, fails(alicaptcha.RequestRefused), "request_refused", false},
		{"Overloaded", alicaptcha.Result{}, fails(alicaptcha.Overloaded), "overloaded", false},
		{"Misconfigured", alicaptcha.Result{}, fails(alicaptcha.Misconfigured), "misconfigured", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := try(t, alicaptcha.Config{Verifier: answering(row.result, row.err)}, loginRequest())
			o := tr.outcome(t)
			require.Equal(t, row.want, o.Code)
			passed := strings.HasPrefix(string(row.want), "T")
			require.Equal(t, passed, o.Verified)
			require.Equal(t, passed, tr.called)
			if len(row.want) == 4 {
				require.NoError(t, o.Err)
				require.Equal(t, row.want, o.Result.Code)
			} else {
				var typed *alicaptcha.Error
				require.ErrorAs(t, o.Err, &typed)
				require.Equal(t, row.want, typed.Code)
				require.Zero(t, o.Result)
				if row.err != nil && !strings.HasPrefix(row.name, "nil") {
					require.ErrorIs(t, o.Err, unwrapTo(row.err))
				}
			}

			tr = try(t, alicaptcha.Config{Verifier: answering(row.result, row.err), Policy: openEverything()}, loginRequest())
			require.Equal(t, row.opens, tr.called)
			require.Equal(t, passed, tr.outcome(t).Verified)
		})
	}
}

// unwrapTo returns the *Error inside err, or err.
func unwrapTo(err error) error {
	if e, ok := errors.AsType[*alicaptcha.Error](err); ok && e != nil {
		return e
	}
	return err
}
