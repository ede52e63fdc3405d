package kratos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-kratos/kratos/v2/errors"
	"github.com/go-kratos/kratos/v2/log"
	"github.com/go-kratos/kratos/v2/middleware"
	"github.com/go-kratos/kratos/v2/middleware/logging"
	"github.com/go-kratos/kratos/v2/middleware/recovery"
	"github.com/go-kratos/kratos/v2/middleware/selector"
	kgrpc "github.com/go-kratos/kratos/v2/transport/grpc"
	khttp "github.com/go-kratos/kratos/v2/transport/http"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	grpcrecipe "github.com/alicaptcha/alicaptcha/recipes/grpc"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
	"github.com/alicaptcha/alicaptcha/recipes/kratos"
)

func TestMain(m *testing.M) {
	log.SetLogger(log.NewStdLogger(io.Discard))
	m.Run()
}

func wrap(h http.HandlerFunc) khttp.HandlerFunc {
	return func(c khttp.Context) error {
		h(c.Response(), c.Request())
		return nil
	}
}

func TestServer(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		Signup: true,
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
			return kratos.NewServer(captcha, wrap(home), wrap(login), kratos.Signup(create))
		},
	})
}

const (
	login = "/acme.v1.UserService/Login"
	ping  = "/acme.v1.UserService/Ping"
	watch = "/acme.v1.UserService/Watch"
)

// request is the message of HTTP, and message that of gRPC.
type request struct {
	Username           string `json:"username"`
	CaptchaVerifyParam string `json:"captchaVerifyParam"`
}

func (r *request) GetCaptchaVerifyParam() string { return r.CaptchaVerifyParam }

type message struct{ wrapperspb.StringValue }

func (m *message) GetCaptchaVerifyParam() string { return m.GetValue() }

func text(s string) *message {
	m := new(message)
	m.Value = s
	return m
}

// users is the service.
type users struct{ outcomes []alicaptcha.Outcome }

func (u *users) login(ctx context.Context, _ any) (any, error) {
	o, _ := kratos.FromContext(ctx)
	u.outcomes = append(u.outcomes, o)
	return map[string]string{}, nil
}

// serveHTTP returns a server with the routes that protoc-gen-go-http generates.
func (u *users) serveHTTP(opts ...khttp.ServerOption) *khttp.Server {
	srv := khttp.NewServer(opts...)
	route := func(path, operation string, serve func(context.Context, any) (any, error)) {
		srv.Route("/").POST(path, func(c khttp.Context) error {
			var in request
			if err := c.Bind(&in); err != nil {
				return err
			}
			if err := c.BindQuery(&in); err != nil {
				return err
			}
			khttp.SetOperation(c, operation)
			out, err := c.Middleware(serve)(c, &in)
			if err != nil {
				return err
			}
			return c.Result(200, out)
		})
	}
	route("/v1/login", login, u.login)
	route("/v1/ping", ping, func(context.Context, any) (any, error) { return map[string]string{}, nil })
	return srv
}

// serveGRPC serves u as protoc-gen-go-grpc does.
func (u *users) serveGRPC(t *testing.T, opts ...kgrpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := kgrpc.NewServer(append(opts, kgrpc.Listener(listener))...)
	unary := func(name string, serve func(context.Context, any) (any, error)) grpc.MethodDesc {
		return grpc.MethodDesc{MethodName: name, Handler: func(
			srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor,
		) (any, error) {
			in := new(message)
			if err := dec(in); err != nil {
				return nil, err
			}
			return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/acme.v1.UserService/" + name},
				func(ctx context.Context, req any) (any, error) {
					_, err := serve(ctx, req)
					return text("welcome"), err
				})
		}}
	}
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "acme.v1.UserService",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			unary("Login", u.login),
			unary("Ping", func(context.Context, any) (any, error) { return nil, nil }),
		},
		Streams: []grpc.StreamDesc{
			{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
				if err := stream.RecvMsg(new(message)); err != nil {
					return err
				}
				o, _ := grpcrecipe.FromContext(stream.Context())
				u.outcomes = append(u.outcomes, o)
				return nil
			}},
		},
	}, u)
	go srv.Start(context.Background())
	t.Cleanup(srv.Server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// An attempt is what a client sends, and what it gets.
type attempt struct {
	name   string
	params []string // of the header or the metadata
	field  string
	code   codes.Code
	status int
	reason string
	retry  string
	after  string
}

func attempts(t *testing.T, service *gatetest.Service, spent string) []attempt {
	t.Helper()
	issue := func(scene string, code alicaptcha.Code) string {
		param, err := service.Issue(alicaptchatest.Issue{SceneID: scene, Code: code})
		require.NoError(t, err)
		return param
	}
	long := strings.Repeat("x", 33<<10)
	const invalid, denied = codes.InvalidArgument, codes.PermissionDenied
	return []attempt{
		{"missing", nil, "", invalid, 400, "captcha_missing", "true", ""},
		{"junk", []string{"junk"}, "", invalid, 400, "captcha_invalid", "true", ""},
		{"junk in the field", nil, "junk", invalid, 400, "captcha_invalid", "true", ""},
		{"long", []string{long}, "", invalid, 400, "captcha_invalid", "false", ""},
		{"long field", nil, long, invalid, 400, "captcha_invalid", "false", ""},
		{"spent", []string{spent}, "", denied, 403, "captcha_expired", "true", ""},
		{"other scene", nil, issue("signup", ""), denied, 403, "captcha_rejected", "false", ""},
		{"too many", nil, issue("login", "F010"), codes.ResourceExhausted, 429, "captcha_rate_limited", "false", "3600"},
		{"first of two", []string{"junk", issue("login", "")}, "", invalid, 400, "captcha_invalid", "true", ""},
		{"first is empty", []string{"", issue("login", "")}, "", invalid, 400, "captcha_missing", "true", ""},
		{"both", []string{"junk"}, issue("login", ""), invalid, 400, "captcha_invalid", "true", ""},
	}
}

// send sends a login over HTTP.
func send(t *testing.T, h http.Handler, path, body string, params ...string) gatetest.Answer {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header = http.Header{
		"Content-Type": {"application/json"}, "Captcha-Verified": {"true"}, "Captcha-Verify-Param": params,
	}
	return gatetest.Do(t, r)
}

// requireError checks a rejection over HTTP.
func requireError(t *testing.T, a gatetest.Answer, status int, reason, retry string) {
	t.Helper()
	require.Equal(t, status, a.Status, a.Body)
	require.Equal(t, "application/json", a.Header.Get("Content-Type"))
	require.Equal(t, "no-store", a.Header.Get("Cache-Control"))
	var e errors.Status
	require.NoError(t, json.Unmarshal([]byte(a.Body), &e))
	require.Equal(t, reason, e.Reason)
	require.Equal(t, "the captcha was not passed", e.Message)
	require.Equal(t, map[string]string{"retry": retry}, e.Metadata)
}

func gate(captcha *alicaptcha.Middleware) khttp.ServerOption {
	return khttp.Middleware(recovery.Recovery(), selector.Server(kratos.Gate(captcha)).Path(login).Build())
}

func TestOperationOverHTTP(t *testing.T) {
	service := gatetest.Start(t)
	var u users
	srv := u.serveHTTP(gate(service.Gate(t)))
	spent := service.Param(t)
	require.Equal(t, http.StatusOK, send(t, srv, "/v1/login", "{}", spent).Status)
	for _, row := range attempts(t, service, spent) {
		body, err := json.Marshal(request{"alice", row.field})
		require.NoError(t, err)
		a := send(t, srv, "/v1/login", string(body), row.params...)
		requireError(t, a, row.status, row.reason, row.retry)
		require.Equal(t, row.after, a.Header.Get("Retry-After"), row.name)
	}
	requireError(t, send(t, srv, "/v1/login", "{}", "\xff"), 400, "captcha_invalid", "true")
	require.Len(t, u.outcomes, 1)
	body, err := json.Marshal(request{"alice", service.Param(t)})
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, send(t, srv, "/v1/login", string(body)).Status)
	require.Len(t, u.outcomes, 2)
	require.True(t, u.outcomes[1].Verified)
	require.Equal(t, http.StatusOK, send(t, srv, "/v1/ping", "{}").Status)
}

func TestOperationOverGRPC(t *testing.T) {
	service := gatetest.Start(t)
	var u users
	captcha := service.Gate(t)
	conn := u.serveGRPC(t,
		kgrpc.Middleware(recovery.Recovery(), selector.Server(kratos.Gate(captcha)).Path(login).Build()),
		kgrpc.StreamInterceptor(grpcrecipe.Gates{watch: captcha}.Stream))
	call := func(method, field string, params ...string) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "captcha-verified", "true")
		for _, param := range params {
			ctx = metadata.AppendToOutgoingContext(ctx, "captcha-verify-param", param)
		}
		return conn.Invoke(ctx, method, text(field), new(message))
	}
	spent := service.Param(t)
	require.NoError(t, call(login, "", spent))
	for _, row := range attempts(t, service, spent) {
		err := call(login, row.field, row.params...)
		require.Equal(t, row.code, status.Code(err), row.name)
		e := errors.FromError(err)
		require.Equal(t, row.reason, e.Reason)
		require.Equal(t, row.retry, e.Metadata["retry"])
	}
	require.Len(t, u.outcomes, 1)
	require.NoError(t, call(login, service.Param(t)))
	require.Len(t, u.outcomes, 2)
	require.True(t, u.outcomes[1].Verified)
	require.NoError(t, call(ping, ""))

	// A middleware of Kratos gates no streams; the interceptor of the gRPC recipe does.
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, watch)
	require.NoError(t, err)
	require.NoError(t, stream.SendMsg(text("junk")))
	require.Equal(t, codes.InvalidArgument, status.Code(stream.RecvMsg(new(message))))
	require.Len(t, u.outcomes, 2)
}

// By default a server of Kratos gives a request one second, which is too short for a
// call to the service: it ends as ClientCanceled, which no Policy can open. A longer
// time is that of the gate.
func TestTimeoutOverHTTP(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		opts   []khttp.ServerOption
		code   alicaptcha.Code
		status int
	}{
		{nil, alicaptcha.ClientCanceled, 499},
		{[]khttp.ServerOption{khttp.Timeout(10 * time.Second)}, alicaptcha.ServiceTimeout, 503},
	} {
		service, captcha := gatetest.Hang(t, 1500*time.Millisecond)
		var u users
		srv := u.serveHTTP(append(row.opts, gate(captcha))...)
		require.Equal(t, row.status, send(t, srv, "/v1/login", "{}", service.Param(t)).Status)
		require.Equal(t, row.code, (<-service.Outcomes).Code)
		require.Empty(t, u.outcomes)
	}
}

// Over gRPC the deadline may be that of the client, which only ever hangs up.
func TestTimeoutOverGRPC(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		opts     []kgrpc.ServerOption
		deadline time.Duration
		code     alicaptcha.Code
		status   codes.Code
	}{
		{nil, time.Minute, alicaptcha.ClientCanceled, codes.Canceled}, // the server's own second
		{[]kgrpc.ServerOption{kgrpc.Timeout(0)}, time.Minute, alicaptcha.ServiceTimeout, codes.Unavailable},
		{[]kgrpc.ServerOption{kgrpc.Timeout(0)}, 1200 * time.Millisecond, alicaptcha.ClientCanceled, codes.DeadlineExceeded},
	} {
		service, captcha := gatetest.Hang(t, 1500*time.Millisecond)
		var u users
		conn := u.serveGRPC(t, append(row.opts, kgrpc.Middleware(kratos.Gate(captcha)))...)
		ctx, cancel := context.WithTimeout(t.Context(), row.deadline)
		err := conn.Invoke(ctx, login, text(service.Param(t)), new(message))
		cancel()
		require.Equal(t, row.status, status.Code(err))
		require.Equal(t, row.code, (<-service.Outcomes).Code)
		require.Empty(t, u.outcomes)
	}
}

// A client that hangs up is canceled.
func TestClientHangsUp(t *testing.T) {
	t.Parallel()
	service, captcha := gatetest.Hang(t, 1500*time.Millisecond)
	var u users
	server := httptest.NewServer(u.serveHTTP(gate(captcha)))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-service.Asked
		cancel()
	}()
	r, err := http.NewRequestWithContext(ctx, "POST", server.URL+"/v1/login", strings.NewReader("{}"))
	require.NoError(t, err)
	r.Header = http.Header{"Content-Type": {"application/json"}, "Captcha-Verify-Param": {service.Param(t)}}
	_, err = http.DefaultClient.Do(r)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, alicaptcha.ClientCanceled, (<-service.Outcomes).Code)
	require.Empty(t, u.outcomes)
}

// A second call of Middleware, or of Use for the same operation, replaces the first
// one, and a pattern does not apply to an operation that has an entry of its own.
func TestReplacedGate(t *testing.T) {
	captcha := gatetest.Start(t).Gate(t)
	var u users
	for name, srv := range map[string]*khttp.Server{
		"Middleware": u.serveHTTP(gate(captcha), khttp.Middleware(recovery.Recovery())),
		"Use":        u.serveHTTP(),
		"pattern":    u.serveHTTP(),
	} {
		u.outcomes = nil
		switch name {
		case "Use":
			srv.Use(login, kratos.Gate(captcha))
			requireError(t, send(t, srv, "/v1/login", "{}"), 400, "captcha_missing", "true")
			srv.Use(login, recovery.Recovery())
		case "pattern":
			srv.Use("/acme.v1.UserService/*", kratos.Gate(captcha))
			requireError(t, send(t, srv, "/v1/login", "{}"), 400, "captcha_missing", "true")
			srv.Use(login, recovery.Recovery())
		}
		require.Equal(t, http.StatusOK, send(t, srv, "/v1/login", "{}").Status, name)
		require.Len(t, u.outcomes, 1, name)
	}
}

// Kratos binds the query, too, so that a client can put the param into the URL.
func TestQuery(t *testing.T) {
	service := gatetest.Start(t)
	var u users
	srv := u.serveHTTP(gate(service.Gate(t)))
	require.Equal(t, http.StatusOK, send(t, srv, "/v1/login?captchaVerifyParam="+service.Param(t), "").Status)
}

// The middleware that logs, and the one that recovers from a panic, log the message,
// but not the headers.
func TestLogging(t *testing.T) {
	service := gatetest.Start(t)
	var u users
	var logged bytes.Buffer
	log.SetLogger(log.NewStdLogger(&logged))
	defer log.SetLogger(log.NewStdLogger(io.Discard))
	panics := func(middleware.Handler) middleware.Handler {
		return func(context.Context, any) (any, error) { panic("boom") }
	}
	gate := kratos.Gate(service.Gate(t))
	for _, chain := range [][]middleware.Middleware{
		{logging.Server(log.GetLogger()), gate},
		{recovery.Recovery(), gate, panics},
	} {
		srv := u.serveHTTP(khttp.Middleware(chain...))
		field, header := service.Param(t), service.Param(t)
		send(t, srv, "/v1/login", `{"captchaVerifyParam":"`+field+`"}`)
		send(t, srv, "/v1/login", "{}", header)
		require.Contains(t, logged.String(), field)
		require.NotContains(t, logged.String(), header)
	}
	require.Len(t, u.outcomes, 2)
}

// A Filter bounds the body, which Kratos otherwise reads whole.
func TestMaxBytes(t *testing.T) {
	service := gatetest.Start(t)
	var u users
	bound := func(next http.Handler) http.Handler { return http.MaxBytesHandler(next, 64<<10) }
	srv := u.serveHTTP(khttp.Filter(bound), gate(service.Gate(t)))
	body := `{"captchaVerifyParam":"` + service.Param(t) + `","padding":"` + strings.Repeat("x", 64<<10) + `"}`
	require.Equal(t, http.StatusBadRequest, send(t, srv, "/v1/login", body).Status)
	require.Empty(t, service.Outcomes)
	require.Equal(t, http.StatusOK, send(t, u.serveHTTP(gate(service.Gate(t))), "/v1/login", body).Status)
}
