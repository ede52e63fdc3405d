package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aliyun/credentials-go/credentials"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
)

const gateHelp = `usage: alicaptcha gate -region cn|sgp -scene ID [-scene ID]... [flags]

Gate is a forward-auth server. It puts a captcha in front of programs in any
language, for proxies that ask another server whether a request may pass: nginx,
Traefik, Envoy and others. The proxy sends it the request with the body, and gets
one of these answers:

  204           The request may pass. Captcha-Verified is "true" if the service
                passed the param. It is "false" if the request is let through
                unverified, by -outage-budget or -mode. With -pass-status 200
                the status is 200, without which Envoy and Higress pass nothing.
  400 to 599    The request is rejected. The proxy should send the answer to the
                client as it is. A request that prefers text/html gets a page,
                and others get application/problem+json.
  404           No scene has this URL. The proxy is configured incorrectly.

Each scene has a URL of its own, which the proxy's configuration must contain:

  /gate/ID      and all paths below it, with any method. Nothing else chooses the
                scene: neither a header nor what follows the ID.

The proxy must copy Captcha-Verified from the answer to the request that it passes
on, in place of what the client sent. It must remove it from all other requests.

The keys are taken from the environment:

  ALIBABA_CLOUD_ACCESS_KEY_ID      a RAM user's pair
  ALIBABA_CLOUD_ACCESS_KEY_SECRET
  ALIBABA_CLOUD_SECURITY_TOKEN     only with temporary keys from STS

With -credential default they are those that the default chain of the vendor's
credentials-go finds, and are renewed.

A second address, which the proxy must not use, serves:

  GET /healthz  200, or 503 while the gate shuts down
  GET /metrics  metrics in the text format of Prometheus

Ctrl-C and SIGTERM end the gate after the requests that are under way. The exit
status is then 0. It is 1 if the gate could not serve, 2 for incorrect usage.
`

const (
	// bodyTime is how long a request may take to arrive, with its body. A proxy that
	// holds the whole body sends it at once.
	bodyTime = 20 * time.Second

	// keepTime is how long an idle connection is kept. It is longer than nginx (60 s)
	// and Traefik (90 s) keep theirs, so that no request meets a connection that is
	// just being closed.
	keepTime = 3 * time.Minute

	// maxHeaderBytes leaves room for a param of 28 KB in a header.
	maxHeaderBytes = 64 << 10

	// maxDiscarded is how much of a body is read after the param was found. A proxy
	// that is still sending might not read the answer. The connection of a body that
	// is longer is closed.
	maxDiscarded = 8 << 20
)

// gateSettings are what the command line of gate says.
type gateSettings struct {
	addr, adminAddr   string
	client            alicaptcha.ClientConfig
	credential        string
	scenes            []string
	config            alicaptcha.Config // without Verifier, scene, Observe and Logger
	passStatus        int
	unavailableStatus int
}

// parseGate parses args. It reports false if they ask for help, which it prints, or
// are in error.
func parseGate(args []string, stdout io.Writer) (s gateSettings, ok bool, err error) {
	flags := flag.NewFlagSet("gate", flag.ContinueOnError)
	flags.StringVar(&s.addr, "addr", "127.0.0.1:8082", "the `address` to serve the scenes on; port 0 is any free port")
	flags.StringVar(&s.adminAddr, "admin-addr", "127.0.0.1:8083", "the `address` to serve health and metrics on")
	flags.Func("scene", "the `ID` of a scene in the console; repeat the flag for more scenes", func(id string) error {
		return s.addScene(id)
	})
	flags.StringVar((*string)(&s.client.Region), "region", "",
		"the `region` of the service, which the page's widget must have too: cn or sgp")
	flags.StringVar(&s.client.Endpoint, "endpoint", "", "a `host` or URL in place of the region's, such as "+
		"captcha-vpc.cn-shanghai.aliyuncs.com, or http://127.0.0.1:8081 for the simulator")
	flags.StringVar(&s.credential, "credential", "env", "the `source` of the keys: env, or default for the vendor's chain")
	header := flags.String("header", "Captcha-Verify-Param", "the `name` of the header that may have the param; if empty, none")
	fields := flags.String("fields", "captchaVerifyParam,CaptchaVerifyParam",
		"the `names` of the fields of a form or of JSON that may have the param, separated by commas; if empty, none")
	flags.IntVar(&s.config.MaxBodyBytes, "max-body", 128<<10, "how many `bytes` of a body are searched for the param")
	flags.IntVar(&s.config.MaxParamBytes, "max-param", 32<<10, "how many `bytes` a param may have")
	flags.IntVar(&s.config.MaxConcurrent, "max-concurrent", 256, "how many `verifications` of a scene may be under way; four times "+
		"as many requests are held")
	flags.DurationVar(&s.config.Timeout, "timeout", 5*time.Second, "how long a verification may take")
	mode := flags.String("mode", "enforce", "the `mode`: enforce; report-only, which logs what it would reject and "+
		"lets all requests through; or exempt, which verifies nothing")
	budget := flags.Int("outage-budget", 0, "how many `requests` are let through unverified while the service does not "+
		"answer: this many at once, and then this many a minute, for all scenes together")
	flags.IntVar(&s.passStatus, "pass-status", http.StatusNoContent, "the `status` for a request that may pass: 204 or 200")
	flags.IntVar(&s.unavailableStatus, "unavailable-status", 0, "the `status`, 400 to 499, of rejections that would "+
		"have 500 or more; for proxies that let a request pass, or write an answer of their own, if they get one of those")
	if ok, err := parse(flags, args, gateHelp, stdout); !ok {
		return gateSettings{}, false, err
	}

	if err := s.complete(*mode, *budget); err != nil {
		return gateSettings{}, false, usageError{err}
	}
	if s.config.Extractors, err = newExtractors(*header, *fields); err != nil {
		return gateSettings{}, false, usageError{err}
	}
	return s, true, nil
}

// addScene adds the scene with the ID, which stands in a URL as it is.
func (s *gateSettings) addScene(id string) error {
	switch {
	case id == "" || strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "":
		return errors.New("an ID has letters, digits, - and _ only")
	case slices.Contains(s.scenes, id):
		return errors.New("it is given twice")
	}
	s.scenes = append(s.scenes, id)
	return nil
}

// complete checks the flags, and sets what follows from mode and budget.
func (s *gateSettings) complete(mode string, budget int) error {
	modes := []alicaptcha.Mode{alicaptcha.Enforce, alicaptcha.ReportOnly, alicaptcha.Exempt}
	known := slices.IndexFunc(modes, func(m alicaptcha.Mode) bool { return m.String() == mode })
	switch {
	case s.client.Region == "" && s.client.Endpoint == "":
		return errors.New("-region is required (cn or sgp), or -endpoint: see alicaptcha help gate")
	case len(s.scenes) == 0:
		return errors.New("-scene is required")
	case s.credential != "env" && s.credential != "default":
		return errors.New("-credential must be env or default")
	case known < 0:
		return errors.New("-mode must be enforce, report-only or exempt")
	case s.config.Timeout < 100*time.Millisecond:
		return errors.New("-timeout must be at least 100ms")
	case min(s.config.MaxBodyBytes, s.config.MaxParamBytes, s.config.MaxConcurrent) <= 0:
		return errors.New("-max-body, -max-param and -max-concurrent must be greater than zero")
	case s.config.MaxConcurrent > 1<<20:
		return errors.New("-max-concurrent must be at most 1048576")
	case budget < 0:
		return errors.New("-outage-budget is negative")
	}
	if err := s.checkStatuses(); err != nil {
		return err
	}
	s.config.Mode = modes[known]
	if budget > 0 {
		opened := alicaptcha.AllowAtMost(rate.NewLimiter(rate.Limit(budget)/60, budget))
		s.config.Policy = alicaptcha.Policy{alicaptcha.ServiceTimeout: opened, alicaptcha.ServiceUnavailable: opened}
	}

	// With these keys and this Transport, only the flags can be at fault.
	client := s.client
	client.AccessKeyID, client.AccessKeySecret, client.Transport = "none", "none", http.DefaultTransport
	if _, err := alicaptcha.NewClient(client); err != nil {
		return errors.New(short(err))
	}
	return nil
}

func (s *gateSettings) checkStatuses() error {
	switch {
	case s.passStatus != http.StatusNoContent && s.passStatus != http.StatusOK:
		return errors.New("-pass-status must be 204 or 200")
	case s.unavailableStatus != 0 && (s.unavailableStatus < 400 || s.unavailableStatus > 499):
		return errors.New("-unavailable-status must be 400 to 499")
	}
	return nil
}

// newExtractors returns those for the header, and for the fields of the body.
func newExtractors(header, fields string) (extractors []alicaptcha.Extractor, err error) {
	name := "-header"
	defer func() {
		if v := recover(); v != nil { // what is not valid
			err = fmt.Errorf("%s: %s", name, strings.TrimPrefix(fmt.Sprint(v), "alicaptcha: "))
		}
	}()
	if header != "" {
		extractors = append(extractors, alicaptcha.FromHeader(header))
	}
	name = "-fields"
	if fields != "" {
		extractors = append(extractors, alicaptcha.FromBody(strings.Split(fields, ",")...))
	}
	if extractors == nil {
		return nil, errors.New("-header and -fields must not both be empty")
	}
	return extractors, nil
}

// runGate serves until ctx is done.
func runGate(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, ok, err := parseGate(args, stdout)
	if !ok {
		return err
	}
	logger := slog.New(slog.NewTextHandler(stderr, nil))
	s.client.Logger = logger
	if s.credential == "default" {
		if s.client.Credential, err = credentials.NewCredential(nil); err != nil {
			return fmt.Errorf("the default chain gave no keys: %w", err)
		}
	}
	client, err := alicaptcha.NewClient(s.client)
	if err != nil {
		return errors.New(short(err))
	}
	g, m, err := newGate(s, client, logger)
	if err != nil {
		return err
	}

	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("-addr: %w", err)
	}
	defer listener.Close()
	adminListener, err := net.Listen("tcp", s.adminAddr)
	if err != nil {
		return fmt.Errorf("-admin-addr: %w", err)
	}
	defer adminListener.Close()
	if !listener.Addr().(*net.TCPAddr).IP.IsLoopback() {
		fmt.Fprintf(stderr, "alicaptcha: warning: anyone who can reach %s can have params verified, "+
			"which is billed; only the proxy should reach it\n", listener.Addr())
	}

	a := &admin{metrics: m}
	// The body, the verification and a Limiter take their time one after the other.
	writeTime := bodyTime + s.config.Timeout + 5*time.Second
	server := newServer(g, writeTime, logger)
	adminServer := newServer(a, 10*time.Second, logger)
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(listener) }()
	go func() { failed <- adminServer.Serve(adminListener) }()
	if _, err := io.WriteString(stdout, s.banner(listener.Addr(), adminListener.Addr())); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	a.isStopping.Store(true)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Timeout+shutdownTime)
	defer cancel()
	if server.Shutdown(bounded) != nil { // for example because a proxy does not read
		logger.Warn("closing connections that are still in use")
		server.Close()
	}
	adminServer.Close()
	return nil
}

func newServer(h http.Handler, writeTime time.Duration, logger *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       bodyTime,
		WriteTimeout:      writeTime,
		IdleTimeout:       keepTime,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         protocols,
		// Or it would answer OPTIONS * with 200.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}

// banner returns what is printed at the start.
func (s gateSettings) banner(addr, adminAddr net.Addr) string {
	var b strings.Builder
	for _, scene := range s.scenes {
		fmt.Fprintf(&b, "Scene:             http://%s/gate/%s\n", addr, scene)
	}
	fmt.Fprintf(&b, "Health:            http://%s/healthz\n", adminAddr)
	fmt.Fprintf(&b, "Metrics:           http://%s/metrics\n", adminAddr)
	b.WriteString("Ctrl-C stops it.\n")
	return b.String()
}

// A gate is a handler that answers what a proxy asks.
type gate struct {
	scenes            map[string]*scene
	passStatus        int
	unavailableStatus int
	logger            *slog.Logger
	strays            rate.Sometimes // bounds the log lines about URLs of no scene
}

// A scene bounds how many of its requests are held, because each may hold a part of
// its body while it arrives.
type scene struct {
	captcha *alicaptcha.Middleware
	full    *alicaptcha.Middleware // for a request beyond the places: it reads nothing
	places  chan struct{}          // one taken for each request
}

func newScene(config alicaptcha.Config) (*scene, error) {
	captcha, err := alicaptcha.New(config)
	if err != nil {
		return nil, err
	}
	places := make(chan struct{}, 4*config.MaxConcurrent)
	config.MaxConcurrent, config.MaxParamBytes = 1, 0 // a second one also ends as Overloaded
	observe := config.Observe
	config.Observe = func(ctx context.Context, o alicaptcha.Outcome) {
		o.Duration = 0 // the service is not asked
		observe(ctx, o)
	}
	config.Extractors = []alicaptcha.Extractor{func(*http.Request) (string, error) { return "unread", nil }}
	config.Verifier = alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
		return alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.Overloaded}
	})
	full, err := alicaptcha.New(config)
	return &scene{captcha, full, places}, err
}

// check returns the Outcome of r, and reads its body.
func (s *scene) check(r *http.Request) alicaptcha.Outcome {
	select {
	case s.places <- struct{}{}:
		defer func() { <-s.places }()
	default:
		return s.full.Check(r)
	}
	o := s.captcha.Check(r)
	if r.Body != nil {
		io.CopyN(io.Discard, r.Body, maxDiscarded)
	}
	return o
}

// newGate returns a gate whose scenes share verifier, behind a breaker.
func newGate(s gateSettings, verifier alicaptcha.Verifier, logger *slog.Logger) (*gate, *metrics, error) {
	m := &metrics{}
	breaker, err := alicaptcha.NewBreaker(m.verifier(verifier), alicaptcha.BreakerConfig{Logger: logger})
	if err != nil {
		return nil, nil, err
	}
	m.breaker = breaker.State
	g := &gate{
		scenes:            make(map[string]*scene),
		passStatus:        s.passStatus,
		unavailableStatus: s.unavailableStatus,
		logger:            logger,
		strays:            rate.Sometimes{Interval: time.Minute},
	}
	for _, id := range s.scenes {
		config := s.config
		config.Verifier, config.SceneID, config.Observe, config.Logger = breaker, id, m.observe, logger
		if g.scenes[id], err = newScene(config); err != nil {
			return nil, nil, err
		}
	}
	return g, m, nil
}

// ServeHTTP answers with a 2xx status only if the request may pass, because that is
// what proxies go by.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	scene := g.scenes[sceneIn(r)]
	if scene == nil {
		isDue := false
		g.strays.Do(func() { isDue = true })
		if isDue { // the path may be from the client, and is not shown
			g.logger.Warn("a request for a URL of no scene was answered with 404; the proxy must ask for /gate/ID")
		}
		http.Error(w, "No scene has this URL.", http.StatusNotFound)
		return
	}
	o := scene.check(r)
	if o.Allowed || o.Mode == alicaptcha.ReportOnly {
		w.Header().Set("Captcha-Verified", strconv.FormatBool(o.Allowed && o.Verified))
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(g.passStatus)
		return
	}
	if g.unavailableStatus != 0 && o.Action.Status >= 500 {
		o.Action.Status = g.unavailableStatus
	}
	alicaptcha.WriteRejection(w, r, o)
}

// sceneIn returns the first segment of the path of r after /gate/. It is not decoded,
// and dots and slashes that follow it have no effect: a proxy may append the path that
// the client asked for.
func sceneIn(r *http.Request) string {
	rest, _ := strings.CutPrefix(r.URL.EscapedPath(), "/gate/")
	scene, _, _ := strings.Cut(rest, "/")
	return scene
}

// An admin serves health and metrics. It has an address of its own, because a proxy
// that is configured incorrectly would take its 200 for a request that may pass.
type admin struct {
	metrics    *metrics
	isStopping atomic.Bool
}

func (a *admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	isRead := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case !isRead || r.URL.Path != "/healthz" && r.URL.Path != "/metrics":
		http.NotFound(w, r)
	case r.URL.Path == "/metrics":
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		a.metrics.writeTo(w)
	case a.isStopping.Load():
		http.Error(w, "stopping", http.StatusServiceUnavailable)
	default:
		io.WriteString(w, "ok\n")
	}
}
