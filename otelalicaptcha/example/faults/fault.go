package main

import (
	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// A fault befalls a site, which is a job of its own in Prometheus.
type fault struct {
	name    string
	alerts  []string // that have to fire
	perhaps []string // that may fire

	of       int                   // instances, of which the last one has the fault; 0 means 1
	visitors behavior              // what visitors do meanwhile
	code     alicaptcha.Code       // of their params, if not usual
	service  alicaptchatest.Faults // of the service meanwhile
	mode     alicaptcha.Mode       // of the site, at all times
	room     int                   // its MaxConcurrent, if not the default
	fresh    bool                  // nobody comes before
}

// A behavior is what visitors do.
type behavior int

const (
	usual     behavior = iota
	bots               // nine bots for each user
	nobody             // comes
	noParam            // the page sends none
	hugeParam          // the page sends too much
	hangUp             // before the answer
)

const (
	outage   = "CaptchaOutage"
	failing  = "CaptchaFailing"
	instance = "CaptchaInstanceFailing"
	opened   = "CaptchaOpened"
	reported = "CaptchaReportOnlyFailing"
	falling  = "CaptchaPassRatioFalling"
)

// faults returns all faults.
func faults() []fault {
	type service = alicaptchatest.Faults
	overdue := service{Credentials: "overdue"}
	all := []fault{
		{name: "nothing"},
		{name: "an attack", visitors: bots, perhaps: []string{falling}},
		{name: "no request", visitors: nobody, alerts: []string{"CaptchaNoTraffic"}},
		{name: "param_missing", visitors: noParam, alerts: []string{outage}},
		{name: "param_too_large", visitors: hugeParam, alerts: []string{outage}},
		{name: "client_canceled", visitors: hangUp, service: service{Latency: second}, alerts: []string{outage}},
		{name: "request_refused", service: service{Status: 403, Body: "no"}, alerts: []string{outage}},
	}
	for _, code := range []alicaptcha.Code{"F003", "F012", "F018", "F019", "F023"} {
		all = append(all, fault{
			name: string(code), code: code, alerts: []string{outage}, perhaps: []string{falling},
		})
	}
	return append(all, []fault{
		{name: "wrong from the start", fresh: true, code: "F003", alerts: []string{"CaptchaNobodyPasses"}},
		{
			name: "overloaded", room: 8, service: service{Latency: 4 * second},
			alerts: []string{failing, outage}, perhaps: []string{"CaptchaSlow"},
		},
		{
			name: "overloaded in part", room: 8, service: service{Latency: second},
			alerts: []string{failing}, perhaps: []string{outage},
		},
		{name: "throttled", service: service{ThrottleShare: 1}, alerts: []string{failing, outage, "CaptchaThrottled"}},
		{name: "throttled a little", service: service{ThrottleShare: .04}, alerts: []string{"CaptchaThrottled"}},
		{name: "account overdue", service: overdue, alerts: []string{failing, outage}},
		{name: "test mode", code: "T005", alerts: []string{"CaptchaTestMode", outage}, perhaps: []string{falling}},
		{
			name: "service gone", service: service{Status: 500},
			alerts:  []string{failing, outage, opened, "CaptchaBreakerOpen"},
			perhaps: []string{"CaptchaBreakerFlapping"},
		},
		{name: "one of twelve", of: 12, service: overdue, alerts: []string{instance}},
		{name: "report-only: overdue", mode: alicaptcha.ReportOnly, service: overdue, alerts: []string{reported}},
		{name: "report-only: no param", mode: alicaptcha.ReportOnly, visitors: noParam},
	}...)
}
