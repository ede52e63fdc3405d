// Package kratos puts alicaptcha in front of operations and routes of Kratos, version 2.
package kratos

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/go-kratos/kratos/v2/errors"
	"github.com/go-kratos/kratos/v2/middleware"
	"github.com/go-kratos/kratos/v2/transport"
	khttp "github.com/go-kratos/kratos/v2/transport/http"

	"github.com/alicaptcha/alicaptcha"
)

// Gate returns a middleware for the operations of one scene, over HTTP and gRPC.
// Handlers find the Outcome by FromContext.
func Gate(captcha *alicaptcha.Middleware) middleware.Middleware {
	return func(next middleware.Handler) middleware.Handler {
		return func(ctx context.Context, req any) (any, error) {
			ctx, err := Check(ctx, captcha, req)
			if err != nil {
				return nil, err
			}
			return next(ctx, req)
		}
	}
}

// Check verifies the param of a request, which spends it. It returns the context for
// the handler, or the error that rejects the request.
func Check(ctx context.Context, captcha *alicaptcha.Middleware, req any) (context.Context, error) {
	tr, isServer := transport.FromServerContext(ctx)
	o := captcha.CheckParam(ctx, param(tr, req))
	if o.Allowed || o.Mode == alicaptcha.ReportOnly {
		return context.WithValue(ctx, outcomeKey{}, o), nil
	}
	if isServer {
		tr.ReplyHeader().Set("Cache-Control", "no-store")
		if seconds := int64((o.Action.RetryAfter + time.Second - 1) / time.Second); seconds > 0 {
			tr.ReplyHeader().Set("Retry-After", strconv.FormatInt(seconds, 10))
		}
	}
	return ctx, NewError(o)
}

// param returns the first value of the header or metadata Captcha-Verify-Param, or
// else the field captcha_verify_param of the message.
func param(tr transport.Transporter, req any) string {
	if tr != nil {
		if value := tr.RequestHeader().Get("Captcha-Verify-Param"); value != "" {
			return value
		}
	}
	if req, ok := req.(interface{ GetCaptchaVerifyParam() string }); ok {
		return req.GetCaptchaVerifyParam()
	}
	return ""
}

type outcomeKey struct{}

// FromContext returns the Outcome of a request behind Gate.
func FromContext(ctx context.Context) (alicaptcha.Outcome, bool) {
	o, ok := ctx.Value(outcomeKey{}).(alicaptcha.Outcome)
	return o, ok
}

// NewError returns the error for a rejection. It has retry in its metadata.
func NewError(o alicaptcha.Outcome) *errors.Error {
	status := o.Action.Status
	switch {
	case o.Code == alicaptcha.ClientCanceled:
		return errors.ClientClosed("client_canceled", "the client has canceled the request")
	case status == http.StatusRequestEntityTooLarge:
		status = http.StatusBadRequest // Kratos has no code of gRPC for 413
	}
	return errors.New(status, o.Action.Reason, "the captcha was not passed").
		WithMetadata(map[string]string{"retry": strconv.FormatBool(o.Action.Retry)})
}

// NewServer returns a server in which POST /login is behind the gate. The handler of
// POST /signup asks for the verdict itself. Routes that are registered by hand need no
// more than the gate of net/http, and its Outcome is in c.Request().Context().
func NewServer(captcha *alicaptcha.Middleware, home, login, signup khttp.HandlerFunc) *khttp.Server {
	srv := khttp.NewServer(khttp.Timeout(10 * time.Second))
	r := srv.Route("/")
	r.GET("/", home)
	r.POST("/login", login, captcha.Handler)
	r.POST("/signup", signup, captcha.Deferred)
	return srv
}

// Signup returns a handler that does not spend a param on an incomplete form.
func Signup(create func(username string)) khttp.HandlerFunc {
	return func(c khttp.Context) error {
		var form struct {
			Username string `json:"username"`
		}
		c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, 64<<10)
		if err := c.Bind(&form); err != nil || form.Username == "" {
			return errors.New(http.StatusUnprocessableEntity, "USERNAME", "a username is required")
		}
		if !alicaptcha.Require(c.Response(), c.Request()) {
			return nil // the rejection is written
		}
		create(form.Username)
		c.Response().WriteHeader(http.StatusCreated)
		return nil
	}
}
