package alicaptcha

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
)

// serviceCode describes the Codes of the service, and the VerifyCodes in
// Diagnose's errors, that begin with prefix.
type serviceCode struct {
	prefix string
	code   Code   // how the call ends; empty if the status decides
	check  string // the check of doctor that the Code is about
	remedy string
}

// serviceCodes has the descriptions in the order in which they are tried.
var serviceCodes = []serviceCode{
	{"InvalidAccessKeyId.Inactive", Misconfigured, "signature",
		"the AccessKey is disabled: enable it in the RAM console, or use another one"},
	{"InvalidAccessKeyId", Misconfigured, "signature",
		"the AccessKey ID does not exist: compare it with the RAM console, and check that it is for Alibaba Cloud"},
	{"SignatureNonceUsed", Misconfigured, "signature",
		"the call arrived twice: find out what repeats it on the way to the service"},
	{"Signature", Misconfigured, "signature",
		"the AccessKey secret does not belong to the AccessKey ID: set both again " +
			"(or something on the way to the service changes the call)"},
	{"IncompleteSignature", Misconfigured, "signature",
		"the signature arrived incomplete: find out what drops headers on the way to the service"},
	{"InvalidSecurityToken.Expired", Misconfigured, "signature",
		"the STS token has expired: use new temporary keys, or a Credential, which renews them"},
	{"InvalidSecurityToken", Misconfigured, "signature",
		"the STS token does not belong to the AccessKey: take all three from the same answer of STS, " +
			"and set no token for a RAM user's own AccessKey"},
	{"MissingSecurityToken", Misconfigured, "signature",
		"the AccessKey is temporary: set its STS token too"},
	{"InvalidTimeStamp", Misconfigured, "clock",
		"the clock is more than 15 minutes off: set it, preferably by NTP"},
	{"IllegalTimestamp", Misconfigured, "clock",
		"the clock is more than 15 minutes off: set it, preferably by NTP"},
	{"InvalidAction", Misconfigured, "endpoint",
		"the endpoint is not one of CAPTCHA 2.0: set the Region, or correct the Endpoint"},
	{"InvalidVersion", Misconfigured, "endpoint",
		"the endpoint is not one of CAPTCHA 2.0: set the Region, or correct the Endpoint"},
	{"Forbidden.AccountAccessDenied", Misconfigured, "service",
		"the account is overdue, or CAPTCHA 2.0 is not activated for it: pay, or activate it, in the console"},
	{"Forbidden.AccessKeyDisabled", Misconfigured, "signature",
		"the AccessKey is disabled: enable it in the RAM console, or use another one"},
	{"Forbidden", Misconfigured, "permission",
		"the RAM user or role lacks the permission: attach AliyunYundunAFSFullAccess to it in the RAM console"},
	{"NoPermission", Misconfigured, "permission",
		"the RAM user or role lacks the permission: attach AliyunYundunAFSFullAccess to it in the RAM console"},
	{"Throttling", ServiceThrottled, "call",
		"the account's limit on calls is reached: try again later; if normal load reaches the limit, have it raised"},
	{"InternalError", "", "call",
		"the service has an internal error: try again later"},
	{"F004", "", "scene",
		"it is in test mode and fails everybody: turn test mode off in the console"},
	{"F005", "", "scene",
		"it does not exist: look it up in the console, in the region of the endpoint and of the page's widget"},
	{"F006", "", "scene",
		"it belongs to another account: look it up in the console of the account that the AccessKey belongs to"},
	{"T005", "", "scene",
		"it is in test mode and passes everybody: turn test mode off in the console, " +
			"or allow T005 in the Policy if that is intended"},
	{"T0", "", "scene",
		"a made-up param passed: look for test mode and an allow-list in the console"},
}

// ownRemedies has the remedies for Errors that the package makes without a call, by
// the texts of their causes.
var ownRemedies = map[string]string{
	errBreakerOpen.text:  "the breaker is open because the service has failed: look for the failures before it",
	errNoBreaker.text:    "use a Breaker that NewBreaker returned, and check its error",
	errNoClient.text:     "use a Client that NewClient returned, and check its error",
	errNoMiddleware.text: "put a Middleware that New returned in front of the handler, and check the error of New",
	errNoRequest.text:    "give the Middleware a SceneID or AnyScene, and no ModeFunc, or call Check with a request",
	errNoScene.text:      "make SceneIDFunc return a scene for the route, or gate the route by another Middleware",
	errNoVerdict.text:    "correct the Verifier: its Result contradicts itself, or its Code has an unknown form",
	errNoAnswer.text:     "correct the Verifier: it must return soon after its context is done",
	errPanicked.text:     "correct the Verifier: the log line about its panic has the stack",
}

// lookUp returns the description of a Code of the service.
func lookUp(code string) (known serviceCode, ok bool) {
	for _, known := range serviceCodes {
		if strings.HasPrefix(code, known.prefix) {
			return known, true
		}
	}
	return serviceCode{}, false
}

// Remedy returns a sentence for the operator that says what to do about e. Its
// wording may change, and it must not be shown to the client.
func (e *Error) Remedy() string {
	if e == nil {
		return ""
	}
	if known, ok := lookUp(e.ServiceCode); ok {
		return known.remedy
	}
	if safe, ok := e.Err.(safeError); ok && ownRemedies[safe.text] != "" {
		return ownRemedies[safe.text]
	}
	_, isDNS := errors.AsType[*net.DNSError](e)
	_, isCert := errors.AsType[*tls.CertificateVerificationError](e)
	_, isNoTLS := errors.AsType[tls.RecordHeaderError](e)
	switch {
	case isDNS:
		return "the endpoint could not be reached, because its name has no address: correct the name, or this machine's DNS"
	case isCert || isNoTLS:
		return "the endpoint could not be reached over TLS: correct it, or this machine's root certificates, " +
			"or make the proxy pass TLS through"
	case e.Status == 0 && (e.Code == ServiceUnavailable || e.Code == ServiceTimeout):
		return "the endpoint could not be reached, or not in time: check it, the firewall and HTTPS_PROXY in the environment"
	case e.ServiceCode == "" && (e.Code == ServiceUnavailable || e.Code == RequestRefused):
		return "the answer does not have the service's format: check the endpoint, and look for a proxy or gateway in between"
	}
	return e.Code.Description()
}

// Diagnose asks the service to verify a made-up param for the scene, which costs
// one verification. It returns nil if the service reports no problem with the
// setup, or an error that says what the operator has to change. If sceneID is
// empty, the scene is not checked.
//
// A nil error does not prove that the scene exists, nor that it is not in test
// mode, because the service may reject the made-up param first. The page's widget,
// whose region and scene must be the same, is never checked.
//
// The error wraps an [*Error], whose Remedy says what to do. If the error is about
// the scene, the ServiceCode of the Error is the VerifyCode of the verdict. The
// error also has a method Check() string that returns what it is about: "call",
// "signature", "clock", "endpoint", "service", "permission" or "scene".
func (c *Client) Diagnose(ctx context.Context, sceneID string) error {
	// It has the form of V3: with any other the service may not look at the scene.
	made, err := json.Marshal(map[string]any{
		"certifyId": "alicaptcha-diagnose", "sceneId": sceneID, "isSign": true, "securityToken": "alicaptcha-diagnose",
	})
	if err != nil {
		return err
	}
	result, err := c.Verify(ctx, Request{Param: base64.StdEncoding.EncodeToString(made), SceneID: sceneID})
	if e, ok := errors.AsType[*Error](err); ok {
		if e.Code == RequestRefused && (e.ServiceCode == "InvalidParameter" || e.ServiceCode == "MissingParameter") {
			return nil // the call was signed and permitted, and the service noticed the made-up param
		}
		return &diagnosis{fault: e}
	}
	if result.Passed || result.Code == F004 || result.Code == F005 || result.Code == F006 {
		return &diagnosis{sceneID: sceneID, fault: &Error{
			Code: Misconfigured, Status: http.StatusOK, ServiceCode: string(result.Code), RequestID: token(result.RequestID),
		}}
	}
	return nil
}

// diagnosis is the error of Diagnose.
type diagnosis struct {
	fault   *Error
	sceneID string // if the fault is about the scene
}

func (d *diagnosis) Error() string {
	if d.Check() == "scene" {
		return fmt.Sprintf("%s: scene %q: %s", d.fault.Error(), d.sceneID, d.fault.Remedy())
	}
	return d.fault.Error() + ": " + d.fault.Remedy()
}

func (d *diagnosis) Unwrap() error { return d.fault }

// Check returns what d is about, as Diagnose says.
func (d *diagnosis) Check() string {
	if d.fault.Code != Misconfigured {
		return "call"
	}
	if known, ok := lookUp(d.fault.ServiceCode); ok {
		return known.check
	}
	return "signature"
}
