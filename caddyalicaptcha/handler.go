// Package caddyalicaptcha is a module of the Caddy web server that puts Alibaba Cloud
// CAPTCHA 2.0 in front of any site, with package alicaptcha.
//
// It registers the handler http.handlers.alicaptcha and the Caddyfile directive
// alicaptcha. Build a Caddy that has it by importing this package, for example with
// xcaddy.
package caddyalicaptcha

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/alicaptcha/alicaptcha"
)

func init() { caddy.RegisterModule(Handler{}) }

// Handler is the handler http.handlers.alicaptcha. It passes on a request whose param
// the service has verified, and rejects others, as an alicaptcha.Middleware does. The
// request that it passes on has the header Captcha-Verified: "true" if the service has
// passed the param, and "false" if the request is let through unverified. From every
// request, it removes what the client has sent under this name.
//
// Strings may contain placeholders that are known when the configuration is loaded:
// {env.*}, {file.*} and {system.*}.
type Handler struct {
	// Match selects the requests that need a param. The others are passed on
	// without the header Captcha-Verified. Empty means all requests. A matcher of
	// the route, in place of this one, also selects the requests from which the
	// header is removed.
	Match caddyhttp.RawMatcherSets `json:"match,omitempty" caddy:"namespace=http.matchers"`

	// Scene is the ID of the scene that the param must be of. It is required.
	Scene string `json:"scene,omitempty"`

	// Region is the region of the service: "cn" or "sgp". It is required unless
	// Endpoint is set.
	Region string `json:"region,omitempty"`

	// Endpoint replaces the endpoint of the region: a host, an https URL, or an http
	// URL of a loopback host.
	Endpoint string `json:"endpoint,omitempty"`

	// AccessKeyID and AccessKeySecret are the AccessKey pair, and SecurityToken is
	// the token of temporary keys. If all three are empty, they are taken from the
	// environment variables ALIBABA_CLOUD_ACCESS_KEY_ID,
	// ALIBABA_CLOUD_ACCESS_KEY_SECRET and ALIBABA_CLOUD_SECURITY_TOKEN. Use a
	// placeholder, because a configuration is not kept secret.
	AccessKeyID     string `json:"access_key_id,omitempty"`
	AccessKeySecret string `json:"access_key_secret,omitempty"`
	SecurityToken   string `json:"security_token,omitempty"`

	// Param lists where the param is looked for, in order. Empty means the header
	// Captcha-Verify-Param, and then the field captchaVerifyParam or
	// CaptchaVerifyParam of a form or of a JSON body.
	Param []Source `json:"param,omitempty"`

	// Policy overrides the default action for a code, such as F010 or param_missing.
	Policy map[alicaptcha.Code]Action `json:"policy,omitempty"`

	// Outage lets requests through unverified, up to the budget, while the service
	// cannot be reached: for the codes service_timeout and service_unavailable.
	// Without it, an outage lets nobody in.
	Outage *Budget `json:"outage,omitempty"`

	// Mode is "enforce", "report_only" or "exempt". Empty means "enforce".
	Mode string `json:"mode,omitempty"`

	// Timeout bounds a call to the service. Zero means 5 seconds.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// MaxParamBytes bounds the length of the param. Zero means 32 KiB.
	MaxParamBytes int `json:"max_param_bytes,omitempty"`

	// MaxBodyBytes bounds how far into a body the param is looked for. It does not
	// bound the body that is passed on. Zero means 128 KiB.
	MaxBodyBytes int `json:"max_body_bytes,omitempty"`

	// MaxConcurrent bounds the number of verifications at the same time. Zero means
	// 256.
	MaxConcurrent int `json:"max_concurrent,omitempty"`

	// Breaker configures when the service is no longer asked during an outage.
	Breaker Breaker `json:"breaker,omitzero"`

	gate     *alicaptcha.Middleware
	matchers caddyhttp.MatcherSets
	releases []func() error // of what is held in the pool
}

// A Source is a place for the param. Exactly one of its fields is set.
type Source struct {
	Header string   `json:"header,omitempty"` // the name of a header
	Form   []string `json:"form,omitempty"`   // names of form fields
	JSON   []string `json:"json,omitempty"`   // names of top-level members, or JSON Pointers
}

// An Action says what to do with a request whose verification ended with some code.
// The zero Action rejects it with status 403.
type Action struct {
	Allow  bool    `json:"allow,omitempty"`  // lets the request through
	Budget *Budget `json:"budget,omitempty"` // bounds Allow; beyond it, the default action applies
	Status int     `json:"status,omitempty"` // of a rejection, 400 to 599; 0 means 403
}

// A Budget bounds how many requests are let through unverified. At first and after a
// pause of Per, it lets Requests through at once, and later one more each Requests-th
// part of Per. Gates with the same service, keys, scene and budget share it.
type Budget struct {
	Requests int            `json:"requests"`
	Per      caddy.Duration `json:"per"`
}

// Breaker holds the settings of an alicaptcha.BreakerConfig. Zero fields have the
// defaults that are described there.
type Breaker struct {
	Failures     int            `json:"failures,omitempty"`
	FailureRatio float64        `json:"failure_ratio,omitempty"`
	Window       caddy.Duration `json:"window,omitempty"`
	MinCalls     int            `json:"min_calls,omitempty"`
	OpenFor      caddy.Duration `json:"open_for,omitempty"`
	Probes       int            `json:"probes,omitempty"`
}

// CaddyModule implements caddy.Module.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.alicaptcha", New: func() caddy.Module { return new(Handler) }}
}

// modes are the values of Handler.Mode.
var modes = map[string]alicaptcha.Mode{
	"": alicaptcha.Enforce, "enforce": alicaptcha.Enforce, "report_only": alicaptcha.ReportOnly, "exempt": alicaptcha.Exempt,
}

// Provision implements caddy.Provisioner. An error names the field that is wrong.
func (h *Handler) Provision(ctx caddy.Context) error {
	if h.Match != nil {
		sets, err := ctx.LoadModule(h, "Match")
		if err == nil {
			err = h.matchers.FromInterface(sets)
		}
		if err != nil {
			return fmt.Errorf("match: %w", err)
		}
	}
	if err := h.replacePlaceholders(); err != nil {
		return err
	}
	if h.Scene == "" {
		return errors.New("scene is required")
	}
	if h.Scene != strings.TrimSpace(h.Scene) {
		return errors.New("scene is surrounded by white space")
	}
	mode, ok := modes[h.Mode]
	if !ok {
		return fmt.Errorf("mode is %q; it must be enforce, report_only or exempt", h.Mode)
	}
	extractors, err := extractorsFor(h.Param)
	if err != nil {
		return err
	}
	service, err := h.service()
	if err != nil {
		return err
	}
	policy, err := h.policy(service)
	if err != nil {
		return err
	}
	verifier, observe, err := h.observed(ctx, service)
	if err != nil {
		return err
	}
	h.gate, err = alicaptcha.New(alicaptcha.Config{
		Verifier:      verifier,
		SceneID:       h.Scene,
		Extractors:    extractors,
		Policy:        policy,
		Observe:       observe,
		Logger:        ctx.Slogger(),
		Timeout:       time.Duration(h.Timeout),
		MaxParamBytes: h.MaxParamBytes,
		MaxBodyBytes:  h.MaxBodyBytes,
		MaxConcurrent: h.MaxConcurrent,
		Mode:          mode,
	})
	return named(err)
}

// replacePlaceholders replaces the placeholders in the settings.
func (h *Handler) replacePlaceholders() error {
	repl := caddy.NewReplacer()
	for _, field := range []struct {
		name  string
		value *string
	}{
		{"scene", &h.Scene},
		{"region", &h.Region},
		{"endpoint", &h.Endpoint},
		{"access_key_id", &h.AccessKeyID},
		{"access_key_secret", &h.AccessKeySecret},
		{"security_token", &h.SecurityToken},
	} {
		if *field.value == "" {
			continue
		}
		// An empty key must not silently select the keys of the environment. The
		// token may be empty, because not all keys are temporary.
		value, err := repl.ReplaceOrErr(*field.value, field.name != "security_token", true)
		if err != nil {
			return fmt.Errorf("%s: %w", field.name, err)
		}
		*field.value = value
	}
	return nil
}

// extractorsFor returns the Extractors for the sources, or nil for the default ones.
func extractorsFor(sources []Source) (extractors []alicaptcha.Extractor, err error) {
	for i, s := range sources {
		set := 0
		for _, isSet := range []bool{s.Header != "", len(s.Form) > 0, len(s.JSON) > 0} {
			if isSet {
				set++
			}
		}
		if set != 1 {
			return nil, fmt.Errorf("param[%d]: exactly one of header, form and json must be set", i)
		}
		extractor, err := s.extractor()
		if err != nil {
			return nil, fmt.Errorf("param[%d]: %w", i, err)
		}
		extractors = append(extractors, extractor)
	}
	return extractors, nil
}

// extractor returns the Extractor for s. The functions that make one panic if a name
// is malformed.
func (s Source) extractor() (extractor alicaptcha.Extractor, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%v", v)
		}
	}()
	switch {
	case s.Header != "":
		return alicaptcha.FromHeader(s.Header), nil
	case len(s.Form) > 0:
		return alicaptcha.FromForm(s.Form...), nil
	}
	return alicaptcha.FromJSON(s.JSON...), nil
}

// policy returns the Policy with the budgets that the configuration shares.
func (h *Handler) policy(s *service) (alicaptcha.Policy, error) {
	actions := make(map[alicaptcha.Code]alicaptcha.Action, len(h.Policy)+2)
	for code, a := range h.Policy {
		action := alicaptcha.Action{Allow: a.Allow, Status: a.Status}
		if a.Allow && a.Status != 0 {
			return nil, fmt.Errorf("policy.%s: status has no effect with allow", code)
		}
		if a.Budget != nil {
			limiter, err := h.limiter(s, string(code), *a.Budget)
			if err != nil {
				return nil, fmt.Errorf("policy.%s: budget.%w", code, err)
			}
			action.Limit = limiter
		}
		actions[code] = action
	}
	if h.Outage == nil {
		return actions, nil
	}
	limiter, err := h.limiter(s, "outage", *h.Outage)
	if err != nil {
		return nil, fmt.Errorf("outage.%w", err)
	}
	for _, code := range []alicaptcha.Code{alicaptcha.ServiceTimeout, alicaptcha.ServiceUnavailable} {
		if _, ok := actions[code]; ok {
			return nil, fmt.Errorf("outage: policy.%s is set as well", code)
		}
		actions[code] = alicaptcha.AllowAtMost(limiter)
	}
	return actions, nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	seen := outcomeHeaderOf(r)
	if gated, err := h.matchers.AnyMatchWithError(r); err != nil || !gated {
		if err != nil {
			return err // whether the request needs a param is not known, so it ends here
		}
		return next.ServeHTTP(w, r)
	}
	var err error
	h.gate.Handler(http.HandlerFunc(func(w http.ResponseWriter, inner *http.Request) {
		// Caddy keeps r for its error routes, which then read from here on, as
		// they would without a gate.
		r.Body = inner.Body
		o, _ := alicaptcha.FromContext(inner.Context())
		seen.set(inner, o.Verified)
		err = next.ServeHTTP(w, inner)
	})).ServeHTTP(w, r)
	return err
}

// Cleanup implements caddy.CleanerUpper. It gives back what Provision took from the
// pool, even if Provision failed.
func (h *Handler) Cleanup() error {
	var errs []error
	for _, release := range h.releases {
		errs = append(errs, release())
	}
	h.releases = nil
	return errors.Join(errs...)
}

var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
