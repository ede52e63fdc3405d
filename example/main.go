// Command example serves a site that has two logins and a signup behind captchas.
//
// Usage:
//
//	go run ./example [flags]
//
// The flags are:
//
//	-addr address
//		The address at which the site listens (default 127.0.0.1:8080).
//	-simulator address
//		The address at which the simulator of the service listens (default
//		127.0.0.1:8081). It is not used with the real service.
//
// Without further settings the site runs on the simulator, whose captcha is a
// slider, and prints curl commands that try it. If the environment has these
// variables, the same code runs on the real service:
//
//	ALIBABA_CLOUD_ACCESS_KEY_ID      the AccessKey pair of a RAM user
//	ALIBABA_CLOUD_ACCESS_KEY_SECRET
//	ALIBABA_CLOUD_SECURITY_TOKEN     with temporary keys only
//	CAPTCHA_REGION                   cn or sgp
//	CAPTCHA_PREFIX                   the prefix that the console shows, for the page
//	CAPTCHA_SCENE_LOGIN              the scene IDs that the console shows
//	CAPTCHA_SCENE_SIGNUP
//	CAPTCHA_EKEY                     the ekey that the console shows, in encrypted mode only
package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the shutdown

	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	// A joined error has a line for each fault.
	fmt.Fprintln(os.Stderr, "example:", strings.ReplaceAll(err.Error(), "\n", "; "))
	if _, ok := errors.AsType[usageError](err); ok {
		os.Exit(2)
	}
	os.Exit(1)
}

// A usageError is a fault of the command line.
type usageError struct{ error }

// run serves the site until ctx is done. It returns what makes a start
// impossible before it serves anything.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("example", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "the `address` at which the site listens")
	simulatorAddr := flags.String("simulator", "127.0.0.1:8081",
		"the `address` at which the simulator listens; not used with the real service")
	flags.SetOutput(io.Discard) // main prints the error in one line
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(stderr, "usage: example [flags]")
		flags.SetOutput(stderr)
		flags.PrintDefaults() // the comment of the package lists them as well
		return err
	case err != nil:
		return usageError{err}
	case flags.NArg() > 0:
		return usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}

	s, isReal, err := realService(getenv)
	if err != nil {
		return err
	}

	logger := slog.New(slog.NewTextHandler(stderr, nil))
	var servers []server

	site, err := net.Listen("tcp", *addr)
	if err != nil {
		return fmt.Errorf("-addr: %w", err)
	}
	defer site.Close()

	banner := "Site:              " + baseURL(site) + "\n"
	if isReal {
		banner += "Service:           the real one, region " + s.Region() + "\n"
	} else {
		simulator, err := net.Listen("tcp", *simulatorAddr)
		if err != nil {
			return fmt.Errorf("-simulator: %w", err)
		}
		defer simulator.Close()
		s = simulated(baseURL(site), baseURL(simulator))
		servers = append(servers, newServer(simulator, logger, alicaptchatest.NewSimulator(alicaptchatest.Config{
			AccessKeyID:     s.client.AccessKeyID,
			AccessKeySecret: s.client.AccessKeySecret,
			EKey:            s.ekey,
			Scenes:          []string{s.LoginScene, s.SignupScene},
		})))
		banner += "Simulator:         " + baseURL(simulator) + "\n" +
			"Access key ID:     " + s.client.AccessKeyID + "\n" +
			"Access key secret: " + s.client.AccessKeySecret + "\n" +
			"Login scene:       " + s.LoginScene + "\n" +
			"Signup scene:      " + s.SignupScene + "\n" +
			"Mint a param for the login scene, log in with it, send it again:\n" +
			strings.Join(s.Commands, "\n") + "\n"
	}
	banner += "Ctrl-C stops it.\n"

	handler, err := newSite(s, logger)
	if err != nil {
		return err
	}
	// The site stops first: the requests that it still serves need the simulator.
	servers = append([]server{newServer(site, logger, handler)}, servers...)

	if _, err := io.WriteString(stdout, banner); err != nil {
		return err
	}
	return serve(ctx, logger, servers)
}

// realService returns the settings for the real service. It reports false if the
// environment contains none of them.
func realService(getenv func(string) string) (s settings, ok bool, err error) {
	var region string
	var missing []string
	required := []struct {
		name string
		to   *string
	}{
		{"ALIBABA_CLOUD_ACCESS_KEY_ID", &s.client.AccessKeyID},
		{"ALIBABA_CLOUD_ACCESS_KEY_SECRET", &s.client.AccessKeySecret},
		{"CAPTCHA_PREFIX", &s.Prefix},
		{"CAPTCHA_REGION", &region},
		{"CAPTCHA_SCENE_LOGIN", &s.LoginScene},
		{"CAPTCHA_SCENE_SIGNUP", &s.SignupScene},
	}
	for _, v := range required {
		if *v.to = getenv(v.name); *v.to == "" {
			missing = append(missing, v.name)
		}
	}
	switch len(missing) {
	case 0:
		s.client.Region = alicaptcha.Region(region)
		s.client.SecurityToken = getenv("ALIBABA_CLOUD_SECURITY_TOKEN")
		s.ekey = getenv("CAPTCHA_EKEY")
		s.Script = "https://o.alicdn.com/captcha-frontend/aliyunCaptcha/AliyunCaptcha.js"
		s.Origins = "https://*.alicdn.com https://*.aliyuncs.com"
		return s, true, nil
	case len(required):
		return settings{}, false, nil
	}
	return settings{}, false, fmt.Errorf("the environment has only some of the variables for the real service; "+
		"missing: %s (without any of the variables the site runs on a simulator)", strings.Join(missing, ", "))
}

// simulated returns the settings for the simulator. They include keys, so that the
// Client does not take them from the environment.
func simulated(site, simulator string) settings {
	login := "curl -sS -i '" + site + `/login' -H 'Content-Type: application/json' -d ` +
		`'{"username":"alice","password":"correct-horse","captchaVerifyParam":"'"$param"'"}'`
	ekey := make([]byte, 32)
	rand.Read(ekey) // it never returns an error
	return settings{
		ekey: base64.StdEncoding.EncodeToString(ekey),
		client: alicaptcha.ClientConfig{
			Region:          alicaptcha.International,
			Endpoint:        simulator,
			AccessKeyID:     "test-id",
			AccessKeySecret: "test-secret",
		},
		LoginScene:  "login",
		SignupScene: "signup",
		Prefix:      "simulator",
		Script:      simulator + "/AliyunCaptcha.js",
		Origins:     simulator,
		Commands: []string{
			"param=$(curl -sS '" + simulator + `/issue' -H 'Content-Type: application/json' -d '{"sceneId":"login"}' ` +
				`| sed 's/.*"captchaVerifyParam": *"\([^"]*\)".*/\1/')`,
			login,
			login,
		},
	}
}

// baseURL returns the URL at which this machine can reach l.
func baseURL(l net.Listener) string {
	addr := *l.Addr().(*net.TCPAddr)
	if addr.IP.IsUnspecified() {
		addr.IP = net.IPv4(127, 0, 0, 1)
	}
	return "http://" + addr.String()
}

type server struct {
	*http.Server
	listener net.Listener
}

func newServer(l net.Listener, logger *slog.Logger, handler http.Handler) server {
	return server{&http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       20 * time.Second,
		WriteTimeout:      30 * time.Second, // longer than ReadTimeout and Config.Timeout together
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10, // room for a param in the header
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}, l}
}

// serve runs the servers until ctx is done or one of them fails, and then stops them
// in order.
func serve(ctx context.Context, logger *slog.Logger, servers []server) error {
	failed := make(chan error, len(servers))
	for _, s := range servers {
		go func() { failed <- s.Serve(s.listener) }()
	}
	var err error
	select {
	case <-ctx.Done():
		logger.Info("stopping")
	case err = <-failed:
	}

	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	for _, s := range servers {
		if s.Shutdown(bounded) != nil {
			logger.Warn("closing connections that are still in use")
			s.Close()
		}
	}
	return err
}
