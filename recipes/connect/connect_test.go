package connect_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	recipe "github.com/alicaptcha/alicaptcha/recipes/connect"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
)

const (
	login  = "/acme.v1.UserService/Login"
	signup = "/acme.v1.UserService/Signup"
	status = "/acme.v1.UserService/Status"
)

type text = wrapperspb.StringValue

// users is a service, built in the same way as by generated code.
type users struct {
	logins   []string
	outcomes []alicaptcha.Outcome
	signups  []bool
}

func (u *users) handler(opts ...connect.HandlerOption) http.Handler {
	loginHandler := connect.NewUnaryHandler(login, u.login, opts...)
	signupHandler := connect.NewUnaryHandler(signup, u.signup, opts...)
	up := func(context.Context, *connect.Request[text]) (*connect.Response[text], error) {
		return connect.NewResponse(wrapperspb.String("up")), nil
	}
	statusHandler := connect.NewUnaryHandler(status, up, opts...)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case login:
			loginHandler.ServeHTTP(w, r)
		case signup:
			signupHandler.ServeHTTP(w, r)
		case status:
			statusHandler.ServeHTTP(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}

func (u *users) login(ctx context.Context, req *connect.Request[text]) (*connect.Response[text], error) {
	o, _ := alicaptcha.FromContext(ctx)
	u.logins = append(u.logins, req.Msg.Value)
	u.outcomes = append(u.outcomes, o)
	if req.Msg.Value == "boom" {
		panic("boom")
	}
	return connect.NewResponse(wrapperspb.String("welcome")), nil
}

func (u *users) signup(ctx context.Context, req *connect.Request[text]) (*connect.Response[text], error) {
	create := func(string) {
		_, proceed := alicaptcha.Ask(ctx) // asks no second time
		u.signups = append(u.signups, proceed)
	}
	if err := recipe.Signup(ctx, req.Msg.Value, create); err != nil {
		return nil, err
	}
	return connect.NewResponse(wrapperspb.String("welcome")), nil
}

// serve returns the address of h, and a client for it that speaks HTTP/2.
func serve(t *testing.T, h http.Handler) (string, *http.Client) {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, server.Client()
}

var protocols = []struct {
	name string
	opts []connect.ClientOption
}{
	{"Connect", nil},
	{"Connect, JSON", []connect.ClientOption{connect.WithProtoJSON()}},
	{"Connect, packed", []connect.ClientOption{connect.WithSendGzip()}},
	{"gRPC", []connect.ClientOption{connect.WithGRPC()}},
	{"gRPC, JSON", []connect.ClientOption{connect.WithGRPC(), connect.WithProtoJSON()}},
	{"gRPC-Web", []connect.ClientOption{connect.WithGRPCWeb()}},
}

// requireError checks the code and the details of err.
func requireError(t *testing.T, err error, code connect.Code, reason, retry string, retryAfter time.Duration) {
	t.Helper()
	require.Equal(t, code, connect.CodeOf(err), "%v", err)
	var rpc *connect.Error
	require.ErrorAs(t, err, &rpc)
	var info *errdetails.ErrorInfo
	var wait time.Duration
	for _, detail := range rpc.Details() {
		value, err := detail.Value()
		require.NoError(t, err)
		switch value := value.(type) {
		case *errdetails.ErrorInfo:
			info = value
		case *errdetails.RetryInfo:
			wait = value.RetryDelay.AsDuration()
		}
	}
	require.NotNil(t, info)
	require.Equal(t, reason, info.Reason)
	require.Equal(t, retry, info.Metadata["retry"])
	require.Equal(t, retryAfter, wait)
}

func TestProtocols(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(protocol.name, func(t *testing.T) {
			service := gatetest.Start(t)
			captcha, err := recipe.NewGate(service, "login")
			require.NoError(t, err)
			var u users
			mux := http.NewServeMux()
			mux.Handle("/acme.v1.UserService/", recipe.Gate(captcha, captcha.Deferred(u.handler()), login))
			address, client := serve(t, mux)
			call := func(procedure, value, param string) error {
				req := connect.NewRequest(wrapperspb.String(value))
				if param != "" {
					req.Header().Set("Captcha-Verify-Param", param)
				}
				_, err := connect.NewClient[text, text](client, address+procedure, protocol.opts...).CallUnary(t.Context(), req)
				return err
			}
			issue := func(code alicaptcha.Code) string {
				param, err := service.Issue(alicaptchatest.Issue{SceneID: "login", Code: code})
				require.NoError(t, err)
				return param
			}

			requireError(t, call(login, "alice", ""), connect.CodeInvalidArgument, "captcha_missing", "true", 0)
			require.Zero(t, service.Count())
			param := issue("T001")
			require.NoError(t, call(login, "alice", param))
			requireError(t, call(login, "alice", param), connect.CodePermissionDenied, "captcha_expired", "true", 0)
			requireError(t, call(login, "alice", issue("F009")), connect.CodePermissionDenied, "captcha_rejected", "false", 0)
			requireError(t, call(login, "alice", issue("F010")),
				connect.CodeResourceExhausted, "captcha_rate_limited", "false", time.Hour)
			requireError(t, call(login, "alice", strings.Repeat("x", 33<<10)),
				connect.CodeInvalidArgument, "captcha_invalid", "false", 0)
			require.NoError(t, service.SetFaults(alicaptchatest.Faults{Status: 500}))
			requireError(t, call(login, "alice", issue("T001")),
				connect.CodeUnavailable, "captcha_unavailable", "true", 5*time.Second)
			require.NoError(t, service.SetFaults(alicaptchatest.Faults{}))
			require.Equal(t, []string{"alice"}, u.logins)
			require.True(t, u.outcomes[0].Verified)

			count := service.Count()
			require.NoError(t, call(status, "", ""), "another procedure")
			require.ErrorContains(t, call(signup, "", issue("T001")), "a username is required")
			require.Equal(t, count, service.Count(), "its own checks come first")
			requireError(t, call(signup, "bob", ""), connect.CodeInvalidArgument, "captcha_missing", "true", 0)
			param = issue("T001")
			require.NoError(t, call(signup, "bob", param))
			require.Equal(t, count+1, service.Count())
			requireError(t, call(signup, "bob", param), connect.CodePermissionDenied, "captcha_expired", "true", 0)
			require.Equal(t, []bool{true}, u.signups)
		})
	}
}

func TestSignupWithoutDeferred(t *testing.T) {
	err := recipe.Signup(t.Context(), "bob", func(string) { t.Error("created") })
	requireError(t, err, connect.CodeUnavailable, "captcha_unavailable", "false", 0)
}

// A client that uses none of the protocols gets the same rejection as elsewhere.
func TestOtherClients(t *testing.T) {
	service := gatetest.Start(t)
	captcha, err := recipe.NewGate(service, "login")
	require.NoError(t, err)
	var u users
	h := recipe.Gate(captcha, u.handler(), login)
	gatetest.RequireRejected(t, gatetest.Send(t, h, "POST", login, "text/plain", "hello"), 400, "captcha_missing")
	a := gatetest.Send(t, h, "POST", login, "application/json", `"alice"`)
	require.Equal(t, http.StatusBadRequest, a.Status)
	require.Contains(t, a.Body, `"code":"invalid_argument"`)
	require.Equal(t, "no-store", a.Header.Get("Cache-Control"))
	alicaptchatest.AssertProtected(t, h, "POST "+login)

	// The same holds at the root, where a mux does not compare the path.
	for _, path := range []string{
		"/acme.v1.UserService%2FLogin", "/acme.v1.UserService/%4Cogin", "//acme.v1.UserService/Login", login + "/",
	} {
		gatetest.Send(t, h, "POST", path, "application/json", `"alice"`)
		require.Empty(t, u.logins, path)
	}

	// A gate on a pattern of the mux can be bypassed if the service uses another path.
	mux := http.NewServeMux()
	mux.Handle(login, captcha.Handler(u.handler()))
	mux.Handle("/", u.handler())
	gatetest.Send(t, mux, "POST", "/acme.v1.UserService%2FLogin", "application/json", `"alice"`)
	require.Equal(t, []string{"alice"}, u.logins)
}

// With the default extractors, a gRPC body that contains JSON is read as JSON.
func TestHeaderOnly(t *testing.T) {
	service := gatetest.Start(t)
	cfg := service.Config()
	cfg.OnReject = recipe.OnReject()
	captcha, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	var u users
	address, client := serve(t, recipe.Gate(captcha, u.handler(), login))
	_, err = connect.NewClient[text, text](client, address+login, connect.WithGRPC(), connect.WithProtoJSON()).
		CallUnary(t.Context(), connect.NewRequest(wrapperspb.String("alice")))
	requireError(t, err, connect.CodeInvalidArgument, "captcha_invalid", "true", 0)
}

// WithRecover recovers a panic of the handler.
func TestPanic(t *testing.T) {
	service := gatetest.Start(t)
	captcha, err := recipe.NewGate(service, "login")
	require.NoError(t, err)
	var u users
	recovered := make(chan any, 1)
	opt := connect.WithRecover(func(_ context.Context, _ connect.Spec, _ http.Header, v any) error {
		recovered <- v
		return connect.NewError(connect.CodeInternal, errors.New("internal"))
	})
	address, client := serve(t, recipe.Gate(captcha, u.handler(opt), login))
	req := connect.NewRequest(wrapperspb.String("boom"))
	req.Header().Set("Captcha-Verify-Param", service.Param(t))
	_, err = connect.NewClient[text, text](client, address+login).CallUnary(t.Context(), req)
	require.Equal(t, connect.CodeInternal, connect.CodeOf(err))
	require.Equal(t, "boom", <-recovered)
}

// If a client cancels its RPC, the outcome is ClientCanceled.
func TestClientHangsUp(t *testing.T) {
	for _, protocol := range protocols {
		service := gatetest.Start(t)
		cfg := service.Config()
		cfg.Extractors = []alicaptcha.Extractor{alicaptcha.FromHeader("Captcha-Verify-Param")}
		cfg.OnReject = recipe.OnReject()
		captcha, err := alicaptcha.New(cfg)
		require.NoError(t, err)
		require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
		var u users
		address, client := serve(t, recipe.Gate(captcha, u.handler(), login))

		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-service.Asked
			cancel()
		}()
		req := connect.NewRequest(wrapperspb.String("alice"))
		req.Header().Set("Captcha-Verify-Param", service.Param(t))
		_, err = connect.NewClient[text, text](client, address+login, protocol.opts...).CallUnary(ctx, req)
		require.Equal(t, connect.CodeCanceled, connect.CodeOf(err), protocol.name)
		require.Equal(t, alicaptcha.ClientCanceled, (<-service.Outcomes).Code, protocol.name)
		require.Empty(t, u.logins)
	}
}

// The deadline of an RPC is the client's, so that its end counts as a hang-up even if it
// leaves a call enough time. This client waits for the answer.
func TestClientsDeadline(t *testing.T) {
	service := gatetest.Start(t)
	cfg := service.Config()
	cfg.Timeout = 1500 * time.Millisecond
	captcha, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
	var u users
	server := httptest.NewServer(captcha.Deferred(u.handler()))
	defer server.Close()
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+signup, strings.NewReader(`"bob"`))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Connect-Timeout-Ms", "1200")
	r.Header.Set("Captcha-Verify-Param", service.Param(t))
	require.NotEqual(t, http.StatusOK, gatetest.Do(t, r).Status)
	require.Equal(t, alicaptcha.ClientCanceled, (<-service.Outcomes).Code)
	require.Empty(t, u.signups)
}
