// Package connect puts alicaptcha in front of procedures of a Connect service.
package connect

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/alicaptcha/alicaptcha"
)

// NewGate returns a gate for RPCs, whose rejections are errors of the client's
// protocol. It takes the param from the metadata only: the body may be protobuf, and
// in gRPC it is never plain JSON.
func NewGate(
	verifier alicaptcha.Verifier, sceneID string, opts ...connect.HandlerOption,
) (*alicaptcha.Middleware, error) {
	return alicaptcha.New(alicaptcha.Config{
		Verifier:   verifier,
		SceneID:    sceneID,
		Extractors: []alicaptcha.Extractor{alicaptcha.FromHeader("Captcha-Verify-Param")},
		OnReject:   OnReject(opts...),
	})
}

// Gate returns service with the given procedures behind captcha. A procedure is
// written as in the generated constant, such as "/acme.v1.UserService/Login".
func Gate(captcha *alicaptcha.Middleware, service http.Handler, procedures ...string) http.Handler {
	gated := captcha.Handler(service)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The generated handler compares the same path, so the gate cannot be
		// bypassed with a different spelling.
		if slices.Contains(procedures, r.URL.Path) {
			gated.ServeHTTP(w, r)
			return
		}
		service.ServeHTTP(w, r)
	})
}

// OnReject returns a Config.OnReject that writes errors of the client's protocol:
// Connect, gRPC or gRPC-Web. The options are the same as for the handlers.
func OnReject(opts ...connect.HandlerOption) func(http.ResponseWriter, *http.Request, alicaptcha.Outcome) {
	rpc := connect.NewErrorWriter(opts...)
	return func(w http.ResponseWriter, r *http.Request, o alicaptcha.Outcome) {
		if !rpc.IsSupported(r) {
			alicaptcha.WriteRejection(w, r, o)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		_ = rpc.Write(w, r, NewError(o)) // it fails only if the client has disconnected
	}
}

// NewError returns the error for a rejection. Its details are an ErrorInfo with the
// reason, and with retry in its metadata. If the client should wait, there is also a
// RetryInfo.
func NewError(o alicaptcha.Outcome) *connect.Error {
	code := connect.CodePermissionDenied
	switch o.Action.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		code = connect.CodeInvalidArgument
	case http.StatusTooManyRequests:
		code = connect.CodeResourceExhausted
	case http.StatusServiceUnavailable:
		code = connect.CodeUnavailable
	}
	rejection := connect.NewError(code, errors.New("the captcha was not passed"))
	details := []proto.Message{&errdetails.ErrorInfo{
		Reason:   o.Action.Reason,
		Domain:   "alicaptcha",
		Metadata: map[string]string{"retry": strconv.FormatBool(o.Action.Retry)},
	}}
	if o.Action.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(o.Action.RetryAfter)})
	}
	for _, message := range details {
		if detail, err := connect.NewErrorDetail(message); err == nil {
			rejection.AddDetail(detail)
		}
	}
	return rejection
}

// Signup is an RPC that does not spend a param on an incomplete request. Its service
// must be behind captcha.Deferred.
func Signup(ctx context.Context, username string, create func(username string)) error {
	if username == "" {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("a username is required"))
	}
	if o, proceed := alicaptcha.Ask(patient{ctx}); !proceed {
		return NewError(o)
	}
	create(username)
	return nil
}

// A patient context has the deadline of an RPC count as a hang-up. The client chooses
// the deadline, and with a short one it could make the service look slow.
type patient struct{ context.Context }

func (patient) Deadline() (time.Time, bool) { return time.Time{}, false }

func (p patient) Err() error {
	if p.Context.Err() != nil {
		return context.Canceled
	}
	return nil
}
