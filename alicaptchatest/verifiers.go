package alicaptchatest

import (
	"context"
	"fmt"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/internal/gate"
)

const (
	certifyID = "test-certify-id"
	requestID = "00000000-0000-4000-8000-000000000000"
)

// Passing returns a Verifier that passes every param with T001.
func Passing() alicaptcha.Verifier {
	return always(alicaptcha.Result{Passed: true, Code: alicaptcha.T001, CertifyID: certifyID, RequestID: requestID}, nil)
}

// Rejecting returns a Verifier that rejects every param with code. It panics if
// code is not F and three digits.
func Rejecting(code alicaptcha.Code) alicaptcha.Verifier {
	if passed, ok := code.Verdict(); !ok || passed {
		panic(fmt.Sprintf("alicaptchatest: Rejecting(%q): not F and three digits", string(code)))
	}
	return always(alicaptcha.Result{Code: code, CertifyID: certifyID, RequestID: requestID}, nil)
}

// Failing returns a Verifier that never returns a verdict: its error is an
// [*alicaptcha.Error] with code. It panics if code is not one of alicaptcha's codes
// for an end without a verdict, such as ServiceTimeout. The middleware turns some of
// them into ServiceUnavailable: ParamMissing, and ClientCanceled if the client is
// still there.
func Failing(code alicaptcha.Code) alicaptcha.Verifier {
	if _, verdict := code.Verdict(); verdict || !code.Known() {
		panic(fmt.Sprintf("alicaptchatest: Failing(%q): not a code of alicaptcha for an end without a verdict", string(code)))
	}
	return always(alicaptcha.Result{}, &alicaptcha.Error{Code: code})
}

func always(result alicaptcha.Result, err error) alicaptcha.Verifier {
	return alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
		return result, err
	})
}

// NewContext returns a copy of ctx for testing a handler without the middleware. In
// it, [alicaptcha.FromContext] returns o, and [alicaptcha.Ask] and
// [alicaptcha.Require] act on o. Fields that the Action of a rejection leaves empty
// have the defaults for o.Code.
func NewContext(ctx context.Context, o alicaptcha.Outcome) context.Context {
	return context.WithValue(ctx, gate.OutcomeKey{}, o)
}
