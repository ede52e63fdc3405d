// Package grpc puts alicaptcha in front of methods of a gRPC server.
package grpc

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/alicaptcha/alicaptcha"
)

// Gates has the gate of each method that is behind one. A method is written as in the
// generated constant, such as "/acme.v1.UserService/Login".
type Gates map[string]*alicaptcha.Middleware

// Unary is a grpc.UnaryServerInterceptor.
func (g Gates) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if captcha, gated := g[info.FullMethod]; gated {
		var err error
		if ctx, err = Check(ctx, captcha, req); err != nil {
			return nil, err
		}
	}
	return next(ctx, req)
}

// Stream is a grpc.StreamServerInterceptor. If the client sends a stream, the param
// must be in the metadata. If it sends a single message, the param is checked when the
// handler receives that, which generated code does before anything else.
func (g Gates) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	// Before 1.79.3, grpc-go also takes a method without its slash, and then shows it so.
	captcha, gated := g["/"+strings.TrimPrefix(info.FullMethod, "/")]
	if !gated {
		return next(srv, stream)
	}
	s := &gatedStream{ServerStream: stream, ctx: stream.Context(), captcha: captcha}
	if info.IsClientStream {
		if err := s.check(nil); err != nil {
			return err
		}
	}
	return next(srv, s)
}

type gatedStream struct {
	grpc.ServerStream
	ctx     context.Context
	captcha *alicaptcha.Middleware
	passed  bool
}

func (s *gatedStream) Context() context.Context { return s.ctx }

func (s *gatedStream) RecvMsg(message any) error {
	if err := s.ServerStream.RecvMsg(message); err != nil || s.passed {
		return err
	}
	return s.check(message)
}

func (s *gatedStream) check(message any) error {
	ctx, err := Check(s.ctx, s.captcha, message)
	if err == nil {
		s.ctx, s.passed = ctx, true
	}
	return err
}

// Check verifies the param of a call, which spends it. It returns the context for the
// handler, or the status that rejects the call.
func Check(ctx context.Context, captcha *alicaptcha.Middleware, req any) (context.Context, error) {
	o := captcha.CheckParam(ctx, param(ctx, req))
	if !o.Allowed && o.Mode != alicaptcha.ReportOnly {
		return ctx, NewStatus(o).Err()
	}
	return context.WithValue(ctx, outcomeKey{}, o), nil
}

// param returns the first value of the metadata captcha-verify-param, or else the
// field captcha_verify_param of the message.
func param(ctx context.Context, req any) string {
	if values := metadata.ValueFromIncomingContext(ctx, "captcha-verify-param"); len(values) > 0 && values[0] != "" {
		return values[0]
	}
	if req, ok := req.(interface{ GetCaptchaVerifyParam() string }); ok {
		return req.GetCaptchaVerifyParam()
	}
	return ""
}

type outcomeKey struct{}

// FromContext returns the Outcome of the call that ctx belongs to.
func FromContext(ctx context.Context) (alicaptcha.Outcome, bool) {
	o, ok := ctx.Value(outcomeKey{}).(alicaptcha.Outcome)
	return o, ok
}

// NewStatus returns the status for a rejection. Its details are an ErrorInfo with the
// reason, and with retry in its metadata. If the client should wait, there is also a
// RetryInfo.
func NewStatus(o alicaptcha.Outcome) *status.Status {
	if o.Code == alicaptcha.ClientCanceled {
		return status.New(codes.Canceled, "the client has canceled the call")
	}
	code := codes.PermissionDenied
	switch o.Action.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		code = codes.InvalidArgument
	case http.StatusTooManyRequests:
		code = codes.ResourceExhausted
	case http.StatusServiceUnavailable:
		code = codes.Unavailable
	}
	rejection := status.New(code, "the captcha was not passed")
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{
		Reason:   o.Action.Reason,
		Domain:   "alicaptcha",
		Metadata: map[string]string{"retry": strconv.FormatBool(o.Action.Retry)},
	}}
	if o.Action.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(o.Action.RetryAfter)})
	}
	if detailed, err := rejection.WithDetails(details...); err == nil {
		rejection = detailed
	}
	return rejection
}

// Signup is a method that does not spend a param on an incomplete request. It is not
// in Gates.
func Signup(
	ctx context.Context, captcha *alicaptcha.Middleware, req interface{ GetUsername() string }, create func(string),
) error {
	if req.GetUsername() == "" {
		return status.Error(codes.InvalidArgument, "a username is required")
	}
	if _, err := Check(ctx, captcha, req); err != nil {
		return err
	}
	create(req.GetUsername())
	return nil
}
