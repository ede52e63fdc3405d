package grpcgateway_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	gw "go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/grpcgateway"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
)

func TestMux(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, _ func(string)) http.Handler {
			mux := grpcgateway.NewMux(captcha)
			handle(t, mux, "GET", "/", home)
			handle(t, mux, "POST", "/login", login)
			return mux
		},
	})
}

func handle(t *testing.T, mux *runtime.ServeMux, method, pattern string, h http.HandlerFunc) {
	t.Helper()
	withoutParams := func(w http.ResponseWriter, r *http.Request, _ map[string]string) { h(w, r) }
	require.NoError(t, mux.HandlePath(method, pattern, withoutParams))
}

// etcd's Auth is a login with generated code for gRPC and for the gateway.
const authenticate = "/v3/auth/authenticate"

type auth struct {
	etcdserverpb.UnimplementedAuthServer
	calls    int
	received *etcdserverpb.AuthenticateRequest
	metadata metadata.MD
	outcome  alicaptcha.Outcome
}

func (a *auth) Authenticate(
	ctx context.Context, req *etcdserverpb.AuthenticateRequest,
) (*etcdserverpb.AuthenticateResponse, error) {
	a.calls++
	a.received = req
	a.metadata, _ = metadata.FromIncomingContext(ctx)
	a.outcome, _ = alicaptcha.FromContext(ctx)
	return &etcdserverpb.AuthenticateResponse{Token: "a token"}, nil
}

func (a *auth) AuthStatus(context.Context, *etcdserverpb.AuthStatusRequest) (*etcdserverpb.AuthStatusResponse, error) {
	return &etcdserverpb.AuthStatusResponse{Enabled: true}, nil
}

// log returns everything that reached the backend, as a log might show it.
func (a *auth) log(t *testing.T) string {
	t.Helper()
	text, err := protojson.Marshal(a.received)
	require.NoError(t, err)
	var all strings.Builder
	all.Write(text)
	for key, values := range a.metadata {
		all.WriteString(key + "=" + strings.Join(values, ",") + "\n")
	}
	return all.String()
}

// start serves a over gRPC, and returns a gateway in front of it.
func start(t *testing.T, a *auth, captcha *alicaptcha.Middleware, opts ...runtime.ServeMuxOption) *runtime.ServeMux {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	backend := grpc.NewServer()
	etcdserverpb.RegisterAuthServer(backend, a)
	go backend.Serve(listener)
	t.Cleanup(backend.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })

	if captcha != nil {
		opts = append(opts, runtime.WithMiddlewares(grpcgateway.Gate(captcha, authenticate)))
	}
	mux := runtime.NewServeMux(opts...)
	require.NoError(t, gw.RegisterAuthHandler(t.Context(), mux, conn))
	return mux
}

func inBody(param string) string {
	return `{"name":"alice","password":"secret","captchaVerifyParam":"` + param + `"}`
}

func sendHeader(t *testing.T, h http.Handler, param string) gatetest.Answer {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	body := strings.NewReader(`{"name":"alice","password":"secret"}`)
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+authenticate, body)
	require.NoError(t, err)
	r.Header.Set("Captcha-Verify-Param", param)
	r.Header.Set("Content-Type", "application/json")
	return gatetest.Do(t, r)
}

// By default the gateway discards members of the body that the message does not have,
// and forwards no custom headers, so the backend never sees the param.
func TestGeneratedService(t *testing.T) {
	service := gatetest.Start(t)
	var a auth
	mux := start(t, &a, service.Gate(t))

	param := service.Param(t)
	answer := gatetest.Send(t, mux, "POST", authenticate, "application/json", inBody(param))
	require.Equal(t, http.StatusOK, answer.Status, answer.Body)
	require.Contains(t, answer.Body, "a token")
	require.Equal(t, "alice", a.received.Name)
	require.Equal(t, "secret", a.received.Password)
	require.NotContains(t, a.log(t), param)
	again := gatetest.Send(t, mux, "POST", authenticate, "application/json", inBody(param))
	gatetest.RequireRejected(t, again, 403, "captcha_expired")

	param = service.Param(t)
	require.Equal(t, http.StatusOK, sendHeader(t, mux, param).Status)
	require.Equal(t, 2, a.calls)
	require.NotContains(t, a.log(t), param)

	alicaptchatest.AssertProtected(t, mux, "POST "+authenticate)
	other := gatetest.Send(t, mux, "POST", "/v3/auth/status", "application/json", "{}")
	require.Equal(t, http.StatusOK, other.Status, "another binding")
	require.Equal(t, 2, a.calls)
}

// A marshaler without DiscardUnknown refuses a param in the body, after the param is
// spent. A param in the header works.
func TestStrictMarshaler(t *testing.T) {
	service := gatetest.Start(t)
	var a auth
	strict := runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{})
	mux := start(t, &a, service.Gate(t), strict)

	answer := gatetest.Send(t, mux, "POST", authenticate, "application/json", inBody(service.Param(t)))
	require.Equal(t, http.StatusBadRequest, answer.Status)
	require.Contains(t, answer.Body, "unknown field")
	require.NotContains(t, answer.Body, "captcha_")
	require.Equal(t, 1, service.Count(), "the param is spent")
	require.Zero(t, a.calls)

	require.Equal(t, http.StatusOK, sendHeader(t, mux, service.Param(t)).Status)

	discarding := &runtime.JSONPb{UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true}}
	mux = start(t, &a, service.Gate(t), runtime.WithMarshalerOption(runtime.MIMEWildcard, discarding))
	answer = gatetest.Send(t, mux, "POST", authenticate, "application/json", inBody(service.Param(t)))
	require.Equal(t, http.StatusOK, answer.Status)
}

// A matcher that forwards every header sends the param to the backend. A matcher that
// ends with the default one does not.
func TestHeaderMatcher(t *testing.T) {
	service := gatetest.Start(t)
	var a auth
	every := func(name string) (string, bool) { return name, true }
	param := service.Param(t)
	sendHeader(t, start(t, &a, service.Gate(t), runtime.WithIncomingHeaderMatcher(every)), param)
	require.Contains(t, a.log(t), param)

	param = service.Param(t)
	mux := start(t, &a, service.Gate(t), runtime.WithIncomingHeaderMatcher(grpcgateway.ForwardHeaders))
	server := httptest.NewServer(mux)
	defer server.Close()
	body := strings.NewReader(`{"name":"alice"}`)
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+authenticate, body)
	require.NoError(t, err)
	r.Header.Set("Captcha-Verify-Param", param)
	r.Header.Set("X-Request-Id", "17")
	require.Equal(t, http.StatusOK, gatetest.Do(t, r).Status)
	require.Equal(t, []string{"17"}, a.metadata.Get("x-request-id"))
	require.NotContains(t, a.log(t), param)
}

// The gateway unescapes the path as a whole, but the mux of net/http unescapes each
// segment. So a gate on a mux in front of the gateway can be bypassed with a
// differently encoded path.
func TestNoWayRound(t *testing.T) {
	service := gatetest.Start(t)
	var a auth
	spellings := []string{
		"/v3%2Fauth%2Fauthenticate", "/v3/auth%2Fauthenticate", "/v3%2fauth/authenticate", "/v3/%61uth/authenticate",
		"/v3/auth/authenticate/", "/v3/auth/authenticate:x", "/v3/auth/authenticate?x",
	}
	mux := start(t, &a, service.Gate(t))
	for _, path := range spellings {
		gatetest.Send(t, mux, "POST", path, "application/json", `{"name":"alice"}`)
		require.Zero(t, a.calls, path)
	}

	before := http.NewServeMux()
	open := start(t, &a, nil)
	before.Handle(authenticate, service.Gate(t).Handler(open))
	before.Handle("/", open)
	answer := gatetest.Send(t, before, "POST", authenticate, "application/json", `{"name":"alice"}`)
	gatetest.RequireRejected(t, answer, 400, "captcha_missing")
	require.Zero(t, a.calls)
	gatetest.Send(t, before, "POST", "/v3%2Fauth/authenticate", "application/json", `{"name":"alice"}`)
	require.Equal(t, 1, a.calls, "this is why the gate stands behind the gateway's routing")
}

// A service in the same process finds the Outcome in its context; a remote service
// does not.
func TestOutcome(t *testing.T) {
	service := gatetest.Start(t)
	var remote, local auth
	require.Equal(t, http.StatusOK, sendHeader(t, start(t, &remote, service.Gate(t)), service.Param(t)).Status)
	require.Zero(t, remote.outcome)

	mux := runtime.NewServeMux(runtime.WithMiddlewares(grpcgateway.Gate(service.Gate(t), authenticate)))
	require.NoError(t, gw.RegisterAuthHandlerServer(t.Context(), mux, &local))
	require.Equal(t, http.StatusOK, sendHeader(t, mux, service.Param(t)).Status)
	require.True(t, local.outcome.Verified)
}

// The gateway writes the variable of a pattern as {tenant=*}, and Gate needs that form.
func TestPatternWithVariable(t *testing.T) {
	captcha := gatetest.Start(t).Gate(t)
	mux := runtime.NewServeMux(runtime.WithMiddlewares(grpcgateway.Gate(captcha, "/v1/{tenant=*}/login")))
	handle(t, mux, "POST", "/v1/{tenant}/login", func(http.ResponseWriter, *http.Request) {})
	alicaptchatest.AssertProtected(t, mux, "POST /v1/acme/login")
}
