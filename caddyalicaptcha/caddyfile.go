package caddyalicaptcha

import (
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/dustin/go-humanize"

	"github.com/alicaptcha/alicaptcha"
)

func init() {
	httpcaddyfile.RegisterDirective("alicaptcha", parseDirective)
	// After everything that changes what the request is, and before everything that
	// answers it, asks for a password or compresses the answer.
	httpcaddyfile.RegisterDirectiveOrder("alicaptcha", httpcaddyfile.Before, "basicauth")
}

// parseDirective makes the handler's own matcher of the directive's, so that the outcome
// header is removed from the requests that do not match, too.
func parseDirective(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, h.WrapErr(err)
	}
	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	if matcher != nil {
		handler.Match = append(handler.Match, matcher)
	}
	return h.NewRoute(nil, handler), nil
}

// UnmarshalCaddyfile implements caddyfile.Unmarshaler. The syntax is:
//
//	alicaptcha [<matcher>] <scene> {
//	    region          cn|sgp
//	    endpoint        <host or URL>
//	    access_key      <id> <secret> [<token>]
//	    header          <name>
//	    form            <fields...>
//	    json            <members or pointers...>
//	    policy          <codes...> allow [<requests> <per>]
//	    policy          <codes...> reject <status>
//	    outage          <requests> <per>
//	    mode            enforce|report_only|exempt
//	    timeout         <duration>
//	    max_param_bytes <size>
//	    max_body_bytes  <size>
//	    max_concurrent  <number>
//	    breaker {
//	        failures      <number>
//	        failure_ratio <ratio>
//	        window        <duration>
//	        min_calls     <number>
//	        open_for      <duration>
//	        probes        <number>
//	    }
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the directive
	if !d.AllArgs(&h.Scene) {
		return d.Err("expected the ID of the scene, after the matcher if there is one")
	}
	start := *d // has the line of the directive
	seen := make(map[string]bool)
	for d.NextBlock(0) {
		option := d.Val()
		if seen[option] && !slices.Contains([]string{"header", "form", "json", "policy"}, option) {
			return d.Errf("%s is set already", option)
		}
		seen[option] = true
		if err := h.parseOption(d, option); err != nil {
			return err
		}
	}
	switch {
	case !seen["region"] && !seen["endpoint"]:
		return start.Err("region cn or sgp is missing, where the scenes were created")
	case h.Outage == nil:
		return nil
	}
	for _, code := range []alicaptcha.Code{alicaptcha.ServiceTimeout, alicaptcha.ServiceUnavailable} {
		if _, ok := h.Policy[code]; ok {
			return start.Errf("outage and policy %s are both set", code)
		}
	}
	return nil
}

// parseOption parses the option that d has come to.
func (h *Handler) parseOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "region":
		return choice(d, &h.Region, string(alicaptcha.Mainland), string(alicaptcha.International))
	case "mode":
		return choice(d, &h.Mode, "enforce", "report_only", "exempt")
	case "endpoint":
		return all(d, &h.Endpoint)
	case "access_key":
		if d.CountRemainingArgs() == 3 {
			return all(d, &h.AccessKeyID, &h.AccessKeySecret, &h.SecurityToken)
		}
		return all(d, &h.AccessKeyID, &h.AccessKeySecret)
	case "header", "form", "json":
		return h.parseSource(d, option)
	case "policy":
		return h.parsePolicy(d)
	case "outage":
		budget, err := parseBudget(d, d.RemainingArgs())
		h.Outage = budget
		return err
	case "timeout":
		if err := duration(d, &h.Timeout); err != nil {
			return err
		}
		return tried(d, alicaptcha.Config{Timeout: time.Duration(h.Timeout)})
	case "max_param_bytes":
		return size(d, &h.MaxParamBytes)
	case "max_body_bytes":
		return size(d, &h.MaxBodyBytes)
	case "max_concurrent":
		return number(d, &h.MaxConcurrent)
	case "breaker":
		return h.Breaker.parse(d)
	}
	return d.Errf("unrecognized option %s", option)
}

func (h *Handler) parseSource(d *caddyfile.Dispenser, kind string) error {
	names := d.RemainingArgs()
	var s Source
	switch {
	case len(names) == 0, kind == "header" && len(names) > 1:
		return d.ArgErr()
	case kind == "header":
		s.Header = names[0]
	case kind == "form":
		s.Form = names
	default:
		s.JSON = names
	}
	if _, err := extractorsFor([]Source{s}); err != nil {
		return d.Errf("%s: %v", kind, err)
	}
	h.Param = append(h.Param, s)
	return nil
}

func (h *Handler) parsePolicy(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	verb := slices.IndexFunc(args, func(arg string) bool { return arg == "allow" || arg == "reject" })
	if verb < 1 {
		return d.Err("expected codes, and then allow or reject")
	}
	codes, rest := args[:verb], args[verb+1:]
	var action Action
	switch {
	case args[verb] == "allow":
		action.Allow = true
		if len(rest) > 0 {
			budget, err := parseBudget(d, rest)
			if err != nil {
				return err
			}
			action.Budget = budget
		}
	case len(rest) != 1:
		return d.Err("expected one status after reject")
	default:
		status, err := strconv.Atoi(rest[0])
		if err != nil || status < 400 || status > 599 {
			return d.Errf("the status is %q; it must be 400 to 599", rest[0])
		}
		action.Status = status
	}
	for _, code := range codes {
		code := alicaptcha.Code(code)
		if _, ok := h.Policy[code]; ok {
			return d.Errf("policy %s is set already", code)
		}
		tryout := alicaptcha.Action{Allow: action.Allow, Status: action.Status}
		if action.Budget != nil {
			tryout.Limit = anyLimiter{}
		}
		if err := tried(d, alicaptcha.Config{Policy: alicaptcha.Policy{code: tryout}}); err != nil {
			return err
		}
		if h.Policy == nil {
			h.Policy = make(map[alicaptcha.Code]Action)
		}
		h.Policy[code] = action
	}
	return nil
}

// anyLimiter stands for a limiter that Provision makes.
type anyLimiter struct{}

func (anyLimiter) Allow() bool { return false }

// tried returns what package alicaptcha has against cfg, with the line of the option.
func tried(d *caddyfile.Dispenser, cfg alicaptcha.Config) error {
	cfg.Verifier, cfg.AnyScene, cfg.Logger = new(alicaptcha.Client), true, slog.New(slog.DiscardHandler)
	if _, err := alicaptcha.New(cfg); err != nil {
		return d.Err(named(err).Error())
	}
	return nil
}

func parseBudget(d *caddyfile.Dispenser, args []string) (*Budget, error) {
	if len(args) != 2 {
		return nil, d.Err("expected a number of requests and a duration, such as 10 1m")
	}
	requests, err := strconv.Atoi(args[0])
	if err != nil || requests < 1 {
		return nil, d.Errf("the number of requests is %q; it must be at least 1", args[0])
	}
	per, err := caddy.ParseDuration(args[1])
	if err != nil || per <= 0 {
		return nil, d.Errf("%q is not a positive duration, such as 1m", args[1])
	}
	return &Budget{Requests: requests, Per: caddy.Duration(per)}, nil
}

func (b *Breaker) parse(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch option := d.Val(); option {
		case "failures":
			err = number(d, &b.Failures)
		case "failure_ratio":
			err = b.parseRatio(d)
		case "window":
			err = duration(d, &b.Window)
		case "min_calls":
			err = number(d, &b.MinCalls)
		case "open_for":
			err = duration(d, &b.OpenFor)
		case "probes":
			err = number(d, &b.Probes)
		default:
			err = d.Errf("unrecognized option %s of breaker", option)
		}
		if err != nil {
			return err
		}
		if _, err := alicaptcha.NewBreaker(new(alicaptcha.Client), b.config()); err != nil {
			return d.Err(named(err).Error())
		}
	}
	return nil
}

func (b *Breaker) parseRatio(d *caddyfile.Dispenser) error {
	var text string
	if err := all(d, &text); err != nil {
		return err
	}
	ratio, err := strconv.ParseFloat(text, 64)
	if err != nil || !(ratio > 0 && ratio <= 1) {
		return d.Errf("%q is not a ratio between 0 and 1", text)
	}
	b.FailureRatio = ratio
	return nil
}

// all sets targets to the arguments of the option, of which there must be as many.
func all(d *caddyfile.Dispenser, targets ...*string) error {
	if !d.AllArgs(targets...) {
		return d.ArgErr()
	}
	for _, target := range targets {
		if *target == "" {
			return d.Err("the argument is empty")
		}
	}
	return nil
}

// choice sets target to one of the words, or to placeholders, which are not known yet.
func choice(d *caddyfile.Dispenser, target *string, words ...string) error {
	option := d.Val()
	if err := all(d, target); err != nil {
		return err
	}
	if !slices.Contains(words, *target) && !strings.Contains(*target, "{") {
		return d.Errf("%s is %q; it must be %s", option, *target, strings.Join(words, " or "))
	}
	return nil
}

func duration(d *caddyfile.Dispenser, target *caddy.Duration) error {
	var text string
	if err := all(d, &text); err != nil {
		return err
	}
	parsed, err := caddy.ParseDuration(text)
	if err != nil || parsed <= 0 {
		return d.Errf("%q is not a positive duration, such as 5s", text)
	}
	*target = caddy.Duration(parsed)
	return nil
}

func number(d *caddyfile.Dispenser, target *int) error {
	var text string
	if err := all(d, &text); err != nil {
		return err
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return d.Errf("%q is not a positive number", text)
	}
	*target = n
	return nil
}

func size(d *caddyfile.Dispenser, target *int) error {
	var text string
	if err := all(d, &text); err != nil {
		return err
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n < 1 || n > 1<<30 {
		return d.Errf("%q is not a size of at most 1 GiB, such as 64KiB", text)
	}
	*target = int(n)
	return nil
}

var _ caddyfile.Unmarshaler = (*Handler)(nil)
