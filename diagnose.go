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

// A serviceCode is what is known of the Codes of the service, and of the VerifyCodes
// in Diagnose's errors, that begin with prefix.
type serviceCode struct {
	prefix string
	code   Code   // what the call ends as; empty where the status decides
	check  string // of doctor: what the Code is about
	remedy string
}

// serviceCodes has them in the order in which they are looked for.
var serviceCodes = []serviceCode{
	{"InvalidAccessKeyId.Inactive", Misconfigured, "signature",
		"the AccessKey is disabled: enable it in the RAM console, or use another"},
	{"InvalidAccessKeyId", Misconfigured, "signature",
		"the AccessKey ID does not exist: compare it with the RAM console, and see that it is of an Alibaba Cloud account"},
	{"SignatureNonceUsed", Misconfigured, "signature",
		"the call arrived twice: something on the way to the service repeats it"},
	{"Signature", Misconfigured, "signature",
		"the AccessKey secret is not that of the AccessKey ID: set both anew " +
			"(or something on the way to the service changes the call)"},
	{"IncompleteSignature", Misconfigured, "signature",
		"the signature arrived in part: something on the way to the service drops headers"},
	{"InvalidSecurityToken.Expired", Misconfigured, "signature",
		"the STS token has expired: use new temporary keys, or a Credential, which renews them"},
	{"InvalidSecurityToken", Misconfigured, "signature",
		"the STS token is not that of the AccessKey: take all three from one answer of STS, " +
			"and no token for a RAM user's own AccessKey"},
	{"MissingSecurityToken", Misconfigured, "signature",
		"the AccessKey is a temporary one: set its STS token too"},
	{"InvalidTimeStamp", Misconfigured, "clock",
		"the clock is more than 15 minutes off: set it, best by NTP"},
	{"IllegalTimestamp", Misconfigured, "clock",
		"the clock is more than 15 minutes off: set it, best by NTP"},
	{"InvalidAction", Misconfigured, "endpoint",
		"the endpoint is not one of CAPTCHA 2.0: set the Region, or correct the Endpoint"},
	{"InvalidVersion", Misconfigured, "endpoint",
		"the endpoint is not one of CAPTCHA 2.0: set the Region, or correct the Endpoint"},
	{"Forbidden.AccountAccessDenied", Misconfigured, "service",
		"the account is overdue, or CAPTCHA 2.0 is not activated for it: pay or activate it in the console"},
	{"Forbidden.AccessKeyDisabled", Misconfigured, "signature",
		"the AccessKey is disabled: enable it in the RAM console, or use another"},
	{"Forbidden", Misconfigured, "permission",
		"the RAM user or role lacks the permission: attach AliyunYundunAFSFullAccess to it in the RAM console"},
	{"NoPermission", Misconfigured, "permission",
		"the RAM user or role lacks the permission: attach AliyunYundunAFSFullAccess to it in the RAM console"},
	{"Throttling", ServiceThrottled, "call",
		"the account's limit on calls is reached: try again later; if the usual load does it, have the limit raised"},
	{"InternalError", "", "call",
		"the service has a fault of its own: try again later"},
	{"F004", "", "scene",
		"it is in test mode and fails everybody: switch test mode off in the console"},
	{"F005", "", "scene",
		"it does not exist: compare it with the console's, of the region that the endpoint and the page's widget have"},
	{"F006", "", "scene",
		"it belongs to another account: compare it with the console of the account that the AccessKey is of"},
	{"T005", "", "scene",
		"it is in test mode and passes everybody: switch test mode off in the console, " +
			"or allow T005 in the Policy where that is meant"},
	{"T0", "", "scene",
		"a made-up param passed: look for test mode and an allow-list in the console"},
}

// ownRemedies are for the Errors that the package makes without a call, by the texts
// of their causes.
var ownRemedies = map[string]string{
	errBreakerOpen.text:  "the breaker is open because the service has failed: see what failed before",
	errNoBreaker.text:    "use a Breaker that NewBreaker returned, and its error",
	errNoClient.text:     "use a Client that NewClient returned, and its error",
	errNoMiddleware.text: "put a Middleware that New returned before the handler, and look at the error of New",
	errNoScene.text:      "have SceneIDFunc return a scene for the route, or gate it by another Middleware",
	errNoVerdict.text:    "mend the Verifier: its Result contradicts itself, or has a Code of another shape",
	errPanicked.text:     "mend the Verifier: the line about its panic has the stack",
}

// lookUp returns what is known of a Code of the service.
func lookUp(code string) (known serviceCode, ok bool) {
	for _, known := range serviceCodes {
		if strings.HasPrefix(code, known.prefix) {
			return known, true
		}
	}
	return serviceCode{}, false
}

// Remedy returns what the operator can do about e, in words that may change. It is
// not meant for the client.
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
		return "the endpoint could not be reached, as its name has no address: correct it, or this machine's DNS"
	case isCert || isNoTLS:
		return "the endpoint could not be reached by TLS: correct it, or this machine's root certificates, " +
			"or let the proxy leave TLS alone"
	case e.Status == 0 && (e.Code == ServiceUnavailable || e.Code == ServiceTimeout):
		return "the endpoint could not be reached, or not in time: look at it, the firewall and the environment's HTTPS_PROXY"
	case e.ServiceCode == "" && (e.Code == ServiceUnavailable || e.Code == RequestRefused):
		return "the answer is not of the service's form: look for a proxy or gateway on the way, and at the endpoint"
	}
	return e.Code.Description()
}

// Diagnose asks the service about a made-up param of the scene, and returns nil
// or an error that says what the operator has to change. The error wraps an
// [*Error], whose Remedy says the same; where it is about the scene, the Error's
// ServiceCode is the verdict's VerifyCode. It costs one verification. An empty
// sceneID leaves the scene out of it, and the page's widget, whose region must be
// the endpoint's, always is.
//
// The error also has a method Check() string that names what it is about: "call",
// "signature", "clock", "endpoint", "service", "permission" or "scene".
func (c *Client) Diagnose(ctx context.Context, sceneID string) error {
	// Of the form that V3 has: with any other the service need not look at the scene.
	made, err := json.Marshal(map[string]any{
		"certifyId": "alicaptcha-diagnose", "sceneId": sceneID, "isSign": true, "securityToken": "alicaptcha-diagnose",
	})
	if err != nil {
		return err
	}
	result, err := c.Verify(ctx, Request{Param: base64.StdEncoding.EncodeToString(made), SceneID: sceneID})
	if e, ok := errors.AsType[*Error](err); ok {
		if e.Code == RequestRefused && (e.ServiceCode == "InvalidParameter" || e.ServiceCode == "MissingParameter") {
			return nil // it was signed and permitted, and the made-up param was noticed
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

// A diagnosis is Diagnose's error.
type diagnosis struct {
	fault   *Error
	sceneID string // of a fault of the scene
}

func (d *diagnosis) Error() string {
	if d.Check() == "scene" {
		return fmt.Sprintf("%s: scene %q: %s", d.fault.Error(), d.sceneID, d.fault.Remedy())
	}
	return d.fault.Error() + ": " + d.fault.Remedy()
}

func (d *diagnosis) Unwrap() error { return d.fault }

// Check returns the name of what d is about.
func (d *diagnosis) Check() string {
	if d.fault.Code != Misconfigured {
		return "call"
	}
	if known, ok := lookUp(d.fault.ServiceCode); ok {
		return known.check
	}
	return "signature"
}
