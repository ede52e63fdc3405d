package grpc_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	recipe "github.com/alicaptcha/alicaptcha/recipes/grpc"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
)

// The methods of the service: unary ones, one that answers with a stream, and one with
// a stream in both directions.
const (
	login  = "/acme.v1.UserService/Login"
	signup = "/acme.v1.UserService/Signup"
	ping   = "/acme.v1.UserService/Ping"
	watch  = "/acme.v1.UserService/Watch"
	chat   = "/acme.v1.UserService/Chat"
)

// A message has the fields username and captcha_verify_param, separated by a space.
type message struct{ wrapperspb.StringValue }

func text(username, param string) *message {
	m := new(message)
	m.Value = username + " " + param
	return m
}

func (m *message) GetUsername() string {
	username, _, _ := strings.Cut(m.GetValue(), " ")
	return username
}

func (m *message) GetCaptchaVerifyParam() string {
	_, param, _ := strings.Cut(m.GetValue(), " ")
	return param
}

// users is the service. Its calls are those that got to a handler behind a gate.
type users struct {
	captcha *alicaptcha.Middleware

	mu       sync.Mutex
	calls    []string
	outcomes []alicaptcha.Outcome
}

func (u *users) record(ctx context.Context, username string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	o, _ := recipe.FromContext(ctx)
	u.calls, u.outcomes = append(u.calls, username), append(u.outcomes, o)
}

type unary = func(context.Context, *message) error

// method returns what protoc-gen-go-grpc generates for a unary method.
func method(name string, serve unary) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(
		srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor,
	) (any, error) {
		in := new(message)
		if err := dec(in); err != nil {
			return nil, err
		}
		handler := func(ctx context.Context, req any) (any, error) {
			return text("welcome", ""), serve(ctx, req.(*message))
		}
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: "/acme.v1.UserService/" + name}
		return interceptor(ctx, in, info, handler)
	}}
}

func (u *users) desc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "acme.v1.UserService",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			method("Login", func(ctx context.Context, req *message) error {
				u.record(ctx, req.GetUsername())
				return nil
			}),
			method("Ping", func(context.Context, *message) error { return nil }),
			method("Signup", func(ctx context.Context, req *message) error {
				return recipe.Signup(ctx, u.captcha, req, func(username string) { u.record(ctx, username) })
			}),
		},
		Streams: []grpc.StreamDesc{
			{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
				in := new(message)
				if err := stream.RecvMsg(in); err != nil {
					return err
				}
				u.record(stream.Context(), in.GetUsername())
				return stream.SendMsg(text("welcome", ""))
			}},
			{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
				u.record(stream.Context(), "")
				for {
					in := new(message)
					if err := stream.RecvMsg(in); err != nil {
						if err == io.EOF {
							err = nil
						}
						return err
					}
					if err := stream.SendMsg(in); err != nil {
						return err
					}
				}
			}},
		},
	}
}

// start serves u with login, watch and chat behind captcha.
func start(t *testing.T, u *users, opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	gates := recipe.Gates{login: u.captcha, watch: u.captcha, chat: u.captcha}
	server := grpc.NewServer(append(opts,
		grpc.ChainUnaryInterceptor(gates.Unary), grpc.ChainStreamInterceptor(gates.Stream))...)
	server.RegisterService(u.desc(), u)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// with returns a context with values of the metadata captcha-verify-param.
func with(t *testing.T, params ...string) context.Context {
	ctx := metadata.AppendToOutgoingContext(t.Context(), "captcha-verified", "true")
	for _, param := range params {
		ctx = metadata.AppendToOutgoingContext(ctx, "captcha-verify-param", param)
	}
	return ctx
}

// call sends one message to a method of any kind, and returns how the call ended.
func call(ctx context.Context, conn *grpc.ClientConn, method string, in *message) error {
	if method != watch && method != chat {
		return conn.Invoke(ctx, method, in, new(message))
	}
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: method == chat}
	stream, err := conn.NewStream(ctx, desc, method)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(in); err != nil && err != io.EOF {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		if err := stream.RecvMsg(new(message)); err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
	}
}

// requireRejected checks the code and the details of err.
func requireRejected(t *testing.T, err error, code codes.Code, reason string, retry bool, retryAfter time.Duration) {
	t.Helper()
	s := status.Convert(err)
	require.Equal(t, code, s.Code(), "%v", err)
	require.Equal(t, "the captcha was not passed", s.Message())
	var info *errdetails.ErrorInfo
	var wait time.Duration
	for _, detail := range s.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			info = detail
		case *errdetails.RetryInfo:
			wait = detail.RetryDelay.AsDuration()
		}
	}
	require.NotNil(t, info)
	require.Equal(t, reason, info.Reason)
	require.Equal(t, strconv.FormatBool(retry), info.Metadata["retry"])
	require.Equal(t, retryAfter, wait)
}

func TestMethods(t *testing.T) {
	for _, method := range []string{login, watch, chat} {
		t.Run(method, func(t *testing.T) {
			service := gatetest.Start(t)
			u := users{captcha: service.Gate(t)}
			conn := start(t, &u)
			issue := func(code alicaptcha.Code) string {
				param, err := service.Issue(alicaptchatest.Issue{SceneID: "login", Code: code})
				require.NoError(t, err)
				return param
			}
			other, err := service.Issue(alicaptchatest.Issue{SceneID: "signup"})
			require.NoError(t, err)

			spent := issue("T001")
			require.NoError(t, call(with(t, spent), conn, method, text("alice", "")))
			for _, row := range []struct {
				name   string
				params []string
				field  string
				code   codes.Code
				reason string
				retry  bool
				wait   time.Duration
			}{
				{"missing", nil, "", codes.InvalidArgument, "captcha_missing", true, 0},
				{"junk", []string{"junk"}, "", codes.InvalidArgument, "captcha_invalid", true, 0},
				{"long", []string{strings.Repeat("x", 33<<10)}, "", codes.InvalidArgument, "captcha_invalid", false, 0},
				{"spent", []string{spent}, "", codes.PermissionDenied, "captcha_expired", true, 0},
				{"other scene", []string{other}, "", codes.PermissionDenied, "captcha_rejected", false, 0},
				{"refused", []string{issue("F009")}, "", codes.PermissionDenied, "captcha_rejected", false, 0},
				{"too many", []string{issue("F010")}, "", codes.ResourceExhausted, "captcha_rate_limited", false, time.Hour},
				{"first of two", []string{"junk", issue("T001")}, "", codes.InvalidArgument, "captcha_invalid", true, 0},
				{"first is empty", []string{"", issue("T001")}, "", codes.InvalidArgument, "captcha_missing", true, 0},
				{"metadata and field", []string{"junk"}, issue("T001"), codes.InvalidArgument, "captcha_invalid", true, 0},
			} {
				err := call(with(t, row.params...), conn, method, text("alice", row.field))
				require.Error(t, err, row.name)
				requireRejected(t, err, row.code, row.reason, row.retry, row.wait)
			}
			require.NoError(t, service.SetFaults(alicaptchatest.Faults{Status: 500}))
			requireRejected(t, call(with(t, issue("T001")), conn, method, text("alice", "")),
				codes.Unavailable, "captcha_unavailable", true, 5*time.Second)
			require.NoError(t, service.SetFaults(alicaptchatest.Faults{}))
			require.Len(t, u.calls, 1)
			require.Equal(t, alicaptcha.T001, u.outcomes[0].Code)
			require.True(t, u.outcomes[0].Verified)

			err = call(with(t), conn, method, text("alice", issue("T001")))
			if method == chat { // the messages of a stream from the client are not searched
				requireRejected(t, err, codes.InvalidArgument, "captcha_missing", true, 0)
				return
			}
			require.NoError(t, err)
			require.NoError(t, call(with(t, ""), conn, method, text("alice", issue("T001"))))
			requireRejected(t, call(with(t), conn, method, text("alice", strings.Repeat("x", 33<<10))),
				codes.InvalidArgument, "captcha_invalid", false, 0)
			require.Len(t, u.calls, 3)
		})
	}
}

// A method that is not in Gates is left alone, and Signup checks by itself.
func TestOtherMethods(t *testing.T) {
	service := gatetest.Start(t)
	u := users{captcha: service.Gate(t)}
	conn := start(t, &u)
	require.NoError(t, call(with(t), conn, ping, text("", "")))
	require.ErrorContains(t, call(with(t, service.Param(t)), conn, signup, text("", "")), "a username is required")
	require.Zero(t, service.Count(), "its own checks come first")
	requireRejected(t, call(with(t), conn, signup, text("bob", "")), codes.InvalidArgument, "captcha_missing", true, 0)
	param := service.Param(t)
	require.NoError(t, call(with(t, param), conn, signup, text("bob", "")))
	requireRejected(t, call(with(t, param), conn, signup, text("bob", "")),
		codes.PermissionDenied, "captcha_expired", true, 0)
	require.Equal(t, []string{"bob"}, u.calls)
}

// A method with a gate that New did not make is closed.
func TestNilGate(t *testing.T) {
	logger := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	defer slog.SetDefault(logger)
	var u users
	conn := start(t, &u)
	for _, method := range []string{login, watch, chat} {
		err := call(with(t, "a param"), conn, method, text("alice", ""))
		requireRejected(t, err, codes.Unavailable, "captcha_unavailable", false, 0)
	}
	require.Empty(t, u.calls)
}

// One param admits one of many calls.
func TestOneOfMany(t *testing.T) {
	service := gatetest.Start(t)
	u := users{captcha: service.Gate(t)}
	conn := start(t, &u)
	ctx := with(t, service.Param(t))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { call(ctx, conn, []string{login, watch, chat}[i%3], text("alice", "")) })
	}
	wg.Wait()
	require.Equal(t, 8, service.Count())
	require.Len(t, u.calls, 1)
}

// ReportOnly rejects nothing, and the handler finds what it would have done.
func TestReportOnly(t *testing.T) {
	cfg := gatetest.Start(t).Config()
	cfg.Mode = alicaptcha.ReportOnly
	captcha, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	u := users{captcha: captcha}
	conn := start(t, &u)
	for _, method := range []string{login, watch, chat} {
		require.NoError(t, call(with(t), conn, method, text("alice", "")))
	}
	require.Len(t, u.calls, 3)
	for _, o := range u.outcomes {
		require.Equal(t, alicaptcha.ParamMissing, o.Code)
		require.False(t, o.Allowed)
	}
}

// raw calls a method with an empty message and the client of net/http, which sends what
// that of gRPC does not. It returns the headers and trailers of the answer.
func raw(t *testing.T, conn *grpc.ClientConn, path string, header http.Header) (http.Header, error) {
	t.Helper()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	defer transport.CloseIdleConnections()
	message := bytes.NewReader(make([]byte, 5))
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+conn.Target()+path, message)
	require.NoError(t, err)
	r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	maps.Copy(r.Header, header)
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	_, err = io.ReadAll(answer.Body)
	maps.Copy(answer.Header, answer.Trailer)
	return answer.Header, err
}

// The path of a method is compared as it is: no other spelling of it gets to the
// handler.
func TestNoWayRound(t *testing.T) {
	service := gatetest.Start(t)
	u := users{captcha: service.Gate(t)}
	conn := start(t, &u)
	send := func(path string, params ...string) string {
		trailer, err := raw(t, conn, path, http.Header{"Captcha-Verify-Param": params})
		require.NoError(t, err)
		return trailer.Get("Grpc-Status")
	}
	for _, path := range []string{
		"/acme.v1.UserService%2FLogin", "/acme.v1.UserService/%4Cogin", "//acme.v1.UserService/Login", login + "/",
		login + "?x", "/acme.v1.userservice/login", "/./acme.v1.UserService/Login", "/x/..%2Facme.v1.UserService/Login",
	} {
		require.NotEqual(t, "0", send(path), path)
	}
	for _, params := range [][]string{{"\xff"}, {"\xff", service.Param(t)}, {"\xed\xa0\x80"}} {
		require.Equal(t, "3", send(login, params...))
		require.Equal(t, alicaptcha.ParamMalformed, (<-service.Outcomes).Code)
	}
	require.Empty(t, u.calls)
	require.Equal(t, "0", send(login, service.Param(t), "\xff"))
	require.Len(t, u.calls, 1)
}

// An older grpc-go serves streams whose method the client has sent without its slash.
func TestMethodWithoutSlash(t *testing.T) {
	service := gatetest.Start(t)
	gates := recipe.Gates{chat: service.Gate(t)}
	for _, method := range []string{chat, strings.TrimPrefix(chat, "/")} {
		info := &grpc.StreamServerInfo{FullMethod: method, IsClientStream: true}
		err := gates.Stream(nil, contextStream{ctx: t.Context()}, info, func(any, grpc.ServerStream) error { return nil })
		require.Equal(t, codes.InvalidArgument, status.Code(err), method)
	}
}

// contextStream is a stream without messages.
type contextStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s contextStream) Context() context.Context { return s.ctx }

// hang returns the service of a gate for which the service hangs.
func hang(t *testing.T) (*gatetest.Service, *users) {
	t.Helper()
	service := gatetest.Start(t)
	cfg := service.Config()
	cfg.Timeout = 1500 * time.Millisecond
	captcha, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
	return service, &users{captcha: captcha}
}

func TestClientHangsUp(t *testing.T) {
	for _, method := range []string{login, watch, chat} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			service, u := hang(t)
			ctx, cancel := context.WithCancel(with(t, service.Param(t)))
			go func() {
				<-service.Asked
				cancel()
			}()
			require.Equal(t, codes.Canceled, status.Code(call(ctx, start(t, u), method, text("alice", ""))))
			require.Equal(t, alicaptcha.ClientCanceled, (<-service.Outcomes).Code)
			require.Empty(t, u.calls)
		})
	}
}

// The end of a client's deadline counts as a hang-up, even if it leaves a call enough
// time: otherwise a client could make the service look slow. This client does not end
// the call itself.
func TestClientsDeadline(t *testing.T) {
	for _, method := range []string{login, watch, chat} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			service, u := hang(t)
			_, err := raw(t, start(t, u), method, http.Header{
				"Captcha-Verify-Param": {service.Param(t)}, "Grpc-Timeout": {"1200m"},
			})
			require.Error(t, err, "the server ends the call")
			require.Equal(t, alicaptcha.ClientCanceled, (<-service.Outcomes).Code)
			require.Empty(t, u.calls)
		})
	}
}

// A deadline that an interceptor sets outside the gate ends the call in the same way,
// however short it is.
func TestServerDeadline(t *testing.T) {
	service := gatetest.Start(t)
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
	u := users{captcha: service.Gate(t)}
	conn := start(t, &u, grpc.UnaryInterceptor(func(
		ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler,
	) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		return next(ctx, req)
	}))
	require.Equal(t, codes.Canceled, status.Code(call(with(t, service.Param(t)), conn, login, text("alice", ""))))
	require.Equal(t, alicaptcha.ClientCanceled, (<-service.Outcomes).Code)
	require.Empty(t, u.calls)
}
