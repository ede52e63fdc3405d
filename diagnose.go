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

// Diagnose asks the service about a made-up param of the scene, and returns nil
// or an error that says what the operator has to change. The error wraps an
// [*Error]; where it is about the scene, the Error's ServiceCode is the verdict's
// VerifyCode. It costs one verification. An empty sceneID leaves the scene out of
// it, and the page's widget, whose region must be the endpoint's, always is.
func (c *Client) Diagnose(ctx context.Context, sceneID string) error {
	// Of the form that V3 has: with any other the service need not look at the scene.
	made, err := json.Marshal(map[string]any{"certifyId": "alicaptcha-diagnose", "sceneId": sceneID, "isSign": true, "securityToken": "alicaptcha-diagnose"})
	if err != nil {
		return err
	}
	result, err := c.Verify(ctx, Request{Param: base64.StdEncoding.EncodeToString(made), SceneID: sceneID})
	if e, ok := errors.AsType[*Error](err); ok {
		if e.Code == RequestRefused && (e.ServiceCode == "InvalidParameter" || e.ServiceCode == "MissingParameter") {
			return nil // it was signed and permitted, and the made-up param was noticed
		}
		return fmt.Errorf("%w: %s", e, remedy(e))
	}
	if result.Passed || result.Code == F004 || result.Code == F005 || result.Code == F006 {
		e := &Error{Code: Misconfigured, Status: http.StatusOK, ServiceCode: string(result.Code), RequestID: token(result.RequestID)}
		return fmt.Errorf("%w: scene %q: %s", e, sceneID, remedy(e))
	}
	return nil
}

// remedies say what to do about the Codes that begin so; the first one counts.
var remedies = []struct{ prefix, text string }{
	{"InvalidAccessKeyId.Inactive", "the AccessKey is disabled: enable it in the RAM console, or use another"},
	{"InvalidAccessKeyId", "the AccessKey ID does not exist: compare it with the RAM console, and see that it is of an Alibaba Cloud account"},
	{"SignatureNonceUsed", "the call arrived twice: something on the way to the service repeats it"},
	{"Signature", "the AccessKey secret is not that of the AccessKey ID: set both anew (or something on the way to the service changes the call)"},
	{"IncompleteSignature", "the signature arrived in part: something on the way to the service drops headers"},
	{"InvalidSecurityToken.Expired", "the STS token has expired: use new temporary keys, or a Credential, which renews them"},
	{"InvalidSecurityToken", "the STS token is not that of the AccessKey: take all three from one answer of STS, and no token for a RAM user's own AccessKey"},
	{"MissingSecurityToken", "the AccessKey is a temporary one: set its STS token too"},
	{"InvalidTimeStamp", "the clock is more than 15 minutes off: set it, best by NTP"},
	{"IllegalTimestamp", "the clock is more than 15 minutes off: set it, best by NTP"},
	{"Forbidden.AccountAccessDenied", "the account is overdue, or CAPTCHA 2.0 is not activated for it: pay or activate it in the console"},
	{"Forbidden.AccessKeyDisabled", "the AccessKey is disabled: enable it in the RAM console, or use another"},
	{"Forbidden", "the RAM user or role lacks the permission: attach AliyunYundunAFSFullAccess to it in the RAM console"},
	{"NoPermission", "the RAM user or role lacks the permission: attach AliyunYundunAFSFullAccess to it in the RAM console"},
	{"InvalidAction", "the endpoint is not one of CAPTCHA 2.0: set the Region, or correct the Endpoint"},
	{"InvalidVersion", "the endpoint is not one of CAPTCHA 2.0: set the Region, or correct the Endpoint"},
	{"Throttling", "the account's limit on calls is reached: try again later; if the usual load does it, have the limit raised"},
	{"InternalError", "the service has a fault of its own: try again later"},
	{"F004", "it is in test mode and fails everybody: switch test mode off in the console"},
	{"F005", "it does not exist: compare it with the console's, of the region that the endpoint and the page's widget have"},
	{"F006", "it belongs to another account: compare it with the console of the account that the AccessKey is of"},
	{"T005", "it is in test mode and passes everybody: switch test mode off in the console, or allow T005 in the Policy where that is meant"},
	{"T0", "a made-up param passed: look for test mode and an allow-list in the console"},
}

// remedy says what to do about e.
func remedy(e *Error) string {
	for _, r := range remedies {
		if strings.HasPrefix(e.ServiceCode, r.prefix) {
			return r.text
		}
	}
	_, isDNS := errors.AsType[*net.DNSError](e)
	_, isCert := errors.AsType[*tls.CertificateVerificationError](e)
	_, isNoTLS := errors.AsType[tls.RecordHeaderError](e)
	switch {
	case isDNS:
		return "the endpoint could not be reached, as its name has no address: correct it, or this machine's DNS"
	case isCert || isNoTLS:
		return "the endpoint could not be reached by TLS: correct it, or this machine's root certificates, or let the proxy leave TLS alone"
	case e.Status == 0 && (e.Code == ServiceUnavailable || e.Code == ServiceTimeout):
		return "the endpoint could not be reached, or not in time: look at it, the firewall and the environment's HTTPS_PROXY"
	case e.ServiceCode == "" && (e.Code == ServiceUnavailable || e.Code == RequestRefused):
		return "the answer is not of the service's form: look for a proxy or gateway on the way, and at the endpoint"
	}
	return e.Code.Description()
}
