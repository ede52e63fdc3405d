//go:build unix

package caddyalicaptcha_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// exported holds the spans that Caddy exports where OTEL_TRACES_EXPORTER is "test". Unlike
// tracetest.InMemoryExporter, it keeps them when Caddy shuts its provider down.
var exported spans

type spans struct {
	mu  sync.Mutex
	all tracetest.SpanStubs
}

func init() {
	autoexport.RegisterSpanExporter("test", func(context.Context) (sdktrace.SpanExporter, error) { return &exported, nil })
}

func (s *spans) ExportSpans(_ context.Context, ended []sdktrace.ReadOnlySpan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, tracetest.SpanStubsFromReadOnlySpans(ended)...)
	return nil
}

func (*spans) Shutdown(context.Context) error { return nil }

// take returns the spans since the last call, by trace.
func (s *spans) take() map[string]tracetest.SpanStubs {
	s.mu.Lock()
	defer s.mu.Unlock()
	traces := make(map[string]tracetest.SpanStubs)
	for _, span := range s.all {
		id := span.SpanContext.TraceID().String()
		traces[id] = append(traces[id], span)
	}
	s.all = nil
	return traces
}

// attributesOf returns the attributes of a span that are of this module.
func attributesOf(span tracetest.SpanStub) map[string]string {
	own := make(map[string]string)
	for _, a := range span.Attributes {
		if name, ok := strings.CutPrefix(string(a.Key), "alicaptcha."); ok {
			own[name] = a.Value.String()
		}
	}
	return own
}

// Under Caddy's own directive tracing, a call to the service is a span below the
// request's, which has the outcome.
func TestTracing(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "test")
	t.Setenv("OTEL_PROPAGATORS", "tracecontext")
	sim := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	var traced sync.Map // headers of the calls to the service that propagate a trace
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "Trace") || name == "Baggage" {
				traced.Store(name, r.Header[name])
			}
		}
		sim.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	service, u := &alicaptchatest.Server{Simulator: sim, URL: srv.URL}, startUpstream(t)
	directives := fmt.Sprintf(`
	@traced path /login /report
	tracing @traced {
		span "the login"
	}
	alicaptcha /login login {
		SERVICE
		breaker {
			failures 1
			failure_ratio 0.01
			open_for 1h
		}
	}
	alicaptcha /report login {
		SERVICE
		mode report_only
	}
	alicaptcha /untraced login {
		SERVICE
	}
	reverse_proxy %s
	`, u.URL)
	s := start(t, service, directives)
	clients := []*http.Client{newClient(t, false), newClient(t, true)}
	n, asked := 0, service.Count()
	const caller = "00f067aa0ba902b7"

	// send sends a login that belongs to a trace, and returns the trace's ID.
	send := func(client *http.Client, path, flags, param string, status int) string {
		t.Helper()
		n++
		id := fmt.Sprintf("4bf92f3577b34da6a3ce929d%08x", n)
		header := http.Header{"Traceparent": {"00-" + id + "-" + caller + "-" + flags}, "Content-Type": {"application/json"}}
		got, text := s.send(t, client, path, header, strings.NewReader(`{"captchaVerifyParam":`+mustJSON(param)+`}`))
		require.Equal(t, status, got, text)
		return id
	}
	type want struct {
		param          string
		call           map[string]string // nil if there is none
		code, decision string
		status         codes.Code
		isReferenced   bool
	}
	passed := map[string]string{"code": "T001", "scene": "login"}
	refused := map[string]string{"code": "F003", "scene": "login"}
	wants := map[string]want{}
	all := func() {
		for _, client := range clients {
			param := issue(t, service)
			wants[send(client, "/login", "01", param, 200)] = want{param: param, call: passed, code: "T001", decision: "passed"}
			wants[send(client, "/login", "01", "junk", 400)] = want{call: refused, code: "F003", decision: "rejected", isReferenced: true}
			wants[send(client, "/login", "01", "", 400)] = want{code: "param_missing", decision: "rejected", isReferenced: true}
			wants[send(client, "/report", "01", "junk", 200)] = want{call: refused, code: "F003", decision: "would_reject", isReferenced: true}
			// Neither a trace that its caller does not record nor a site without the directive has spans.
			send(client, "/login", "00", issue(t, service), 200)
			send(client, "/untraced", "01", issue(t, service), 200)
		}
	}
	all()
	require.NoError(t, caddy.Load(s.config(t, service, directives), true))
	for _, client := range clients {
		client.CloseIdleConnections()
	}
	all()
	require.Equal(t, asked+4*5, service.Count())

	// A call that fails, and one that the breaker refuses.
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Status: 500}))
	failed := map[string]string{"code": "service_unavailable", "scene": "login"}
	wants[send(clients[0], "/login", "01", "junk", 503)] = want{
		call: failed, code: "service_unavailable", decision: "rejected", status: codes.Error, isReferenced: true,
	}
	wants[send(clients[0], "/login", "01", "junk", 503)] = want{code: "service_unavailable", decision: "rejected", isReferenced: true}

	require.NoError(t, caddy.Load(s.config(t, service, "respond ok"), true)) // exports what is left
	traces, arrivals := exported.take(), make(map[string]bool)
	for _, got := range u.take() {
		arrivals[got.header.Get("Traceparent")] = true
	}
	require.Len(t, traces, len(wants))
	for id, want := range wants {
		var request, call *tracetest.SpanStub
		for i, span := range traces[id] {
			switch span.SpanKind {
			case trace.SpanKindServer:
				request = &traces[id][i]
			case trace.SpanKindClient:
				call = &traces[id][i]
			}
		}
		require.NotNil(t, request)
		require.Equal(t, "the login", request.Name)
		require.Equal(t, caller, request.Parent.SpanID().String())
		// The site gets the trace as it does without a gate.
		parent := "00-" + id + "-" + request.SpanContext.SpanID().String() + "-01"
		require.Equal(t, want.decision != "rejected", arrivals[parent], want)
		got := attributesOf(*request)
		require.Equal(t, want.isReferenced, got["reference"] != "", want)
		delete(got, "reference")
		require.Equal(t, map[string]string{"code": want.code, "decision": want.decision}, got)
		text := fmt.Sprintf("%+v", traces[id])
		require.NotContains(t, text, "test-secret")
		if want.param != "" {
			require.NotContains(t, text, want.param)
		}
		if want.call == nil {
			require.Len(t, traces[id], 1)
			continue
		}
		require.Len(t, traces[id], 2)
		require.NotNil(t, call)
		require.Equal(t, "POST VerifyIntelligentCaptcha", call.Name)
		require.Equal(t, request.SpanContext.SpanID(), call.Parent.SpanID())
		require.Equal(t, request.Resource, call.Resource, "of Caddy's provider")
		require.Equal(t, "github.com/alicaptcha/alicaptcha/otelalicaptcha", call.InstrumentationScope.Name)
		require.Equal(t, want.status, call.Status.Code)
		got = attributesOf(*call)
		require.Equal(t, want.status != codes.Error, got["request_id"] != "", want)
		delete(got, "request_id")
		require.Equal(t, want.call, got)
	}
	traced.Range(func(name, value any) bool {
		t.Errorf("the service has got %v: %v", name, value)
		return true
	})
}
