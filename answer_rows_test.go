package alicaptcha_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

type answerRow struct {
	name   string
	status int
	body   string

	code                   alicaptcha.Code
	serviceCode, requestID string
}

// answersWithoutVerdict are answers that are no verdict. What looks like a pass in
// them must not become one.
func answersWithoutVerdict() []answerRow {
	const (
		refused     = alicaptcha.RequestRefused
		unavailable = alicaptcha.ServiceUnavailable
		throttled   = alicaptcha.ServiceThrottled
		misconf     = alicaptcha.Misconfigured
	)
	var rows []answerRow
	add := func(name string, status int, body string, code alicaptcha.Code, serviceCode, requestID string) {
		rows = append(rows, answerRow{name, status, body, code, serviceCode, requestID})
	}

	// Another status makes a pass none.
	for status, code := range map[int]alicaptcha.Code{
		201: unavailable, 202: unavailable, 203: unavailable, 205: unavailable, 206: unavailable,
		226: unavailable, 299: unavailable,
		300: unavailable, 301: unavailable, 302: unavailable, 303: unavailable, 305: unavailable,
		307: unavailable, 308: unavailable, 399: unavailable,
		400: refused, 401: refused, 402: refused, 403: refused, 404: refused, 405: refused, 407: refused,
		408: refused, 409: refused, 410: refused,
		413: refused, 414: refused, 418: refused, 429: throttled, 431: refused, 451: refused, 499: refused,
		500: unavailable, 501: unavailable, 502: unavailable, 503: unavailable, 504: unavailable,
		520: unavailable, 599: unavailable,
		600: unavailable, 700: unavailable, 999: unavailable,
	} {
		add(fmt.Sprintf("%d with a pass", status), status, passAnswer, code, "Success", "R-1")
		add(fmt.Sprintf("%d empty", status), status, "", code, "", "")
		add(fmt.Sprintf("%d HTML", status), status, "<html><body><h1>"+secretMessage+"</h1></body></html>", code, "", "")
	}

	// Not one document of the service's form: nothing of it is believed.
	for name, body := range map[string]string{
		"empty": "", "white space": " \n",
		"null": "null", "true": "true", "number": "200", "string": `"success"`, "text": "success",
		"array": "[]", "array around a pass": "[" + passAnswer + "]", "string around a pass": `"{\"Success\":true}"`,
		"HTML": "<!doctype html><title>200</title>",
		"XML": "<R><Code>Success</Code><Success>true</Success>" +
			"<Result><VerifyResult>true</VerifyResult></Result></R>",
		"XML error with 200":            "<Error><Code>Throttling</Code><RequestId>R-1</RequestId></Error>",
		"truncated by a byte":           passAnswer[:len(passAnswer)-1],
		"truncated in the middle":       passAnswer[:len(passAnswer)/2],
		"brace only":                    "{",
		"garbage after":                 passAnswer + "x",
		"brace after":                   passAnswer + "}",
		"comma after":                   passAnswer + ",",
		"NUL after":                     passAnswer + "\x00",
		"NUL before":                    "\x00" + passAnswer,
		"two documents":                 passAnswer + passAnswer,
		"two lines":                     passAnswer + "\n" + passAnswer,
		"null after":                    passAnswer + " null",
		"BOM":                           "\ufeff" + passAnswer,
		"UTF-16":                        "{\x00\"\x00",
		"XSSI prefix":                   ")]}'\n" + passAnswer,
		"comment":                       "/* */" + passAnswer,
		"comma at the end":              strings.Replace(passAnswer, `"C-1"}`, `"C-1",}`, 1),
		"single quotes":                 strings.ReplaceAll(passAnswer, `"`, `'`),
		"control character in a string": answerWith("{\"VerifyResult\":true,\"CertifyId\":\"a\nb\"}"),
		"deep nesting": strings.Replace(passAnswer, `{"RequestId"`,
			`{"x":`+strings.Repeat("[", 20000)+strings.Repeat("]", 20000)+`,"RequestId"`, 1),
		"deep nesting, not closed": `{"x":` + strings.Repeat(`{"x":`, 10500),

		"Code twice": `{"Code":"Success","Code":"Success","Success":true,` +
			`"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"Success twice": `{"Code":"Success","Success":false,"Success":true,` +
			`"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"Result twice": `{"Code":"Success","Success":true,` +
			`"Result":{"VerifyResult":false,"VerifyCode":"F001"},` +
			`"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"Result twice, once null": `{"Code":"Success","Success":true,` +
			`"Result":{"VerifyResult":true,"VerifyCode":"T001"},"Result":null}`,
		"RequestId twice": `{"RequestId":"R-1","RequestId":"R-2","Code":"Success",` +
			`"Success":true,"Result":{"VerifyResult":true}}`,
		"Message twice": `{"Message":"a","Message":"b","Code":"Success",` +
			`"Success":true,"Result":{"VerifyResult":true}}`,
		"unknown twice": `{"x":1,"x":2,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"unknown twice inside": `{"x":{"y":1,"y":2},"Code":"Success",` +
			`"Success":true,"Result":{"VerifyResult":true}}`,
		"Result twice by an escape": `{"Code":"Success","Success":true,"Result":{"VerifyResult":false},` +
			`"\u0052esult":{"VerifyResult":true}}`,
		"VerifyResult twice":              answerWith(`{"VerifyResult":false,"VerifyResult":true,"VerifyCode":"T001"}`),
		"VerifyResult twice, the same":    answerWith(`{"VerifyResult":true,"VerifyResult":true}`),
		"VerifyResult twice by an escape": answerWith(`{"VerifyResult":false,"Verify\u0052esult":true}`),
		"VerifyCode twice":                answerWith(`{"VerifyResult":true,"VerifyCode":"F001","VerifyCode":"T001"}`),
		"CertifyId twice":                 answerWith(`{"VerifyResult":true,"CertifyId":"a","CertifyId":"b"}`),

		"code beside Code": `{"Code":"Success","code":"Fail","Success":true,` +
			`"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"CODE beside Code": `{"CODE":"Fail","Code":"Success","Success":true,` +
			`"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"success beside Success": `{"Code":"Success","success":false,"Success":true,` +
			`"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"result beside Result": `{"Code":"Success","Success":true,"Result":{"VerifyResult":true},` +
			`"result":{"VerifyResult":false}}`,
		"Re\u017fult beside Result": `{"Code":"Success","Success":true,"Result":{"VerifyResult":true},` +
			`"Re` + "\u017f" + `ult":{"VerifyResult":false}}`,
		"requestid beside RequestId": `{"RequestId":"R-1","requestid":"R-2","Code":"Success",` +
			`"Success":true,"Result":{"VerifyResult":true}}`,
		"requestID alone":     `{"RequestID":"R-1","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"message alone":       `{"message":"success","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"all in lower case":   strings.ToLower(passAnswer),
		"all in upper case":   strings.ToUpper(passAnswer),
		"code alone":          `{"code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"success alone":       `{"Code":"Success","success":true,"Result":{"VerifyResult":true}}`,
		"result alone":        `{"Code":"Success","Success":true,"result":{"VerifyResult":true}}`,
		"verifyResult alone":  answerWith(`{"verifyResult":true,"VerifyCode":"T001"}`),
		"verifyresult beside": answerWith(`{"VerifyResult":true,"verifyresult":false}`),
		"VERIFYRESULT before": answerWith(`{"VERIFYRESULT":false,"VerifyResult":true}`),
		"verifyCode alone":    answerWith(`{"VerifyResult":true,"verifyCode":"T001"}`),
		"verifyCode beside":   answerWith(`{"VerifyResult":true,"VerifyCode":"T001","verifyCode":"F001"}`),
		"certifyId alone":     answerWith(`{"VerifyResult":true,"VerifyCode":"T001","certifyId":"x"}`),
		"CertifyID beside":    answerWith(`{"VerifyResult":true,"CertifyId":"x","CertifyID":"y"}`),

		"Code null":                 `{"Code":null,"Success":true,"Result":{"VerifyResult":true}}`,
		"Code a number":             `{"Code":200,"Success":true,"Result":{"VerifyResult":true}}`,
		"Code an array":             `{"Code":["Success"],"Success":true,"Result":{"VerifyResult":true}}`,
		"RequestId a number":        `{"RequestId":1,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"RequestId an object":       `{"RequestId":{},"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"Result null":               answerWith(`null`),
		"Result an array":           answerWith(`[]`),
		"Result a list":             answerWith(`[{"VerifyResult":true,"VerifyCode":"T001"}]`),
		"Result a string":           answerWith(`"{\"VerifyResult\":true}"`),
		"Result true":               answerWith(`true`),
		"VerifyCode null":           answerWith(`{"VerifyResult":true,"VerifyCode":null}`),
		"VerifyCode a number":       answerWith(`{"VerifyResult":true,"VerifyCode":1}`),
		"VerifyCode an array":       answerWith(`{"VerifyResult":true,"VerifyCode":["T001"]}`),
		"VerifyCode empty":          answerWith(`{"VerifyResult":true,"VerifyCode":""}`),
		"VerifyCode empty, refused": answerWith(`{"VerifyResult":false,"VerifyCode":""}`),
		"CertifyId a number":        answerWith(`{"VerifyResult":true,"VerifyCode":"T001","CertifyId":1}`),
	} {
		add(name, 200, body, unavailable, "", "")
	}

	// Of the service's form, but no verdict.
	add("{}", 200, `{}`, unavailable, "", "")
	for _, result := range []string{
		`{}`, `{"VerifyCode":"T001"}`, `{"VerifyCode":"F001"}`, `{"CertifyId":"C-1"}`,
		`{"VerifyResult":"true","VerifyCode":"T001"}`, `{"VerifyResult":"TRUE","VerifyCode":"T001"}`,
		`{"VerifyResult":"false"}`, `{"VerifyResult":""}`,
		`{"VerifyResult":1,"VerifyCode":"T001"}`, `{"VerifyResult":0}`,
		`{"VerifyResult":-7,"VerifyCode":"T001"}`, `{"VerifyResult":1.5}`,
		`{"VerifyResult":null,"VerifyCode":"T001"}`, `{"VerifyResult":{},"VerifyCode":"T001"}`,
		`{"VerifyResult":{"VerifyResult":true},"VerifyCode":"T001"}`,
		`{"VerifyResult":[true],"VerifyCode":"T001"}`, `{"VerifyResult":[],"VerifyCode":"T001"}`,
		`{"VerifyResult ":true,"VerifyCode":"T001"}`, `{"Verify_Result":true,"VerifyCode":"T001"}`,

		`{"VerifyResult":true,"VerifyCode":"F001"}`, `{"VerifyResult":true,"VerifyCode":"F999"}`,
		`{"VerifyResult":false,"VerifyCode":"T001"}`, `{"VerifyResult":false,"VerifyCode":"T006"}`,
	} {
		add("Result "+result, 200, answerWith(result), unavailable, "Success", "R-1")
	}
	for _, code := range []string{
		"X001", "T01", "T1", "T", "T0001", "T001 ", " T001", "t001", "f001",
		"\uff34001", "T\uff10\uff10\uff11", "T0O1", "T-01", "T+01", "T1e2", "001T", "0001",
		"TTTT", "Success", "T001,F001", "service_timeout", "param_missing",
		"T\u0660\u0660\u0661", "T00\\u0000", "\\u0054\\u0020001",
	} {
		for _, passed := range []string{"true", "false"} {
			body := answerWith(`{"VerifyResult":` + passed + `,"VerifyCode":"` + code + `"}`)
			add(fmt.Sprintf("%s with VerifyCode %q", passed, code), 200, body, unavailable, "Success", "R-1")
		}
	}
	for _, success := range []string{`"true"`, `"false"`, `null`, `1`, `0`, `[]`, `{}`, `[true]`} {
		add("Success "+success, 200,
			`{"RequestId":"R-1","Code":"Success","Success":`+success+`,`+
				`"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
			unavailable, "Success", "R-1")
	}
	add("Success missing", 200,
		`{"RequestId":"R-1","Code":"Success","Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		unavailable, "Success", "R-1")
	add("Success false", 200,
		`{"RequestId":"R-1","Code":"Success","Success":false,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		refused, "Success", "R-1")
	add("Success false with a rejection", 200,
		`{"RequestId":"R-1","Code":"Success","Success":false,"Result":{"VerifyResult":false,"VerifyCode":"F001"}}`,
		refused, "Success", "R-1")
	add("Success false, Code InvalidParameter", 200,
		`{"RequestId":"R-1","Code":"InvalidParameter","Success":false}`, refused, "InvalidParameter", "R-1")
	add("Success false, Code Throttling.User", 200,
		`{"RequestId":"R-1","Code":"Throttling.User","Success":false}`, throttled, "Throttling.User", "R-1")
	add("Success false, Code Forbidden", 200,
		`{"RequestId":"R-1","Code":"Forbidden.AccountAccessDenied","Success":false}`,
		misconf, "Forbidden.AccountAccessDenied", "R-1")
	add("Success false, no Code", 200, `{"RequestId":"R-1","Success":false}`, refused, "", "R-1")
	add("Code missing", 200,
		`{"RequestId":"R-1","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		unavailable, "", "R-1")
	for code, shown := range map[string]string{
		"": "", "success": "success", "SUCCESS": "SUCCESS", "Success ": "", " Success": "", "Fail": "Fail", "200": "200",
		"OK": "OK", "Success.Partial": "Success.Partial",
	} {
		body := `{"RequestId":"R-1","Code":"` + code + `","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`
		add(fmt.Sprintf("Code %q", code), 200, body, unavailable, shown, "R-1")
	}
	add("Result missing", 200, `{"RequestId":"R-1","Code":"Success","Success":true}`, unavailable, "Success", "R-1")
	add("verdict at the top", 200,
		`{"RequestId":"R-1","Code":"Success","Success":true,"VerifyResult":true,"VerifyCode":"T001"}`,
		unavailable, "Success", "R-1")
	add("verdict too deep", 200, `{"Data":`+passAnswer+`}`, unavailable, "", "")

	// The service's errors, and a gateway's.
	for _, e := range []struct {
		status int
		code   string
		want   alicaptcha.Code
	}{
		{400, "MissingParameter", refused},
		{401, "InvalidParameter", refused},
		{400, "MissingCaptchaVerifyParam", refused},
		{400, "SomethingNew", refused},
		{404, "NotFound", refused},
		{405, "UnsupportedHTTPMethod", refused},
		{413, "RequestEntityTooLarge", refused},
		{403, "forbidden", refused},
		{403, "XForbidden", refused},
		{403, "Forbidden.AccountAccessDenied", misconf},
		{403, "Forbidden.RAMUserAccessDenied", misconf},
		{403, "Forbidden.NoPermission", misconf},
		{403, "Forbidden.AccessKeyDisabled", misconf},
		{403, "Forbidden", misconf},
		{403, "NoPermission", misconf},
		{400, "NoPermission.Something", misconf},
		{404, "InvalidAccessKeyId.NotFound", misconf},
		{400, "InvalidAccessKeyId.Inactive", misconf},
		{403, "InvalidAccessKeyId", misconf},
		{400, "SignatureDoesNotMatch", misconf},
		{403, "SignatureDoesNotMatch", misconf},
		{400, "SignatureNonceUsed", misconf},
		{400, "IncompleteSignature", misconf},
		{400, "InvalidSecurityToken.Expired", misconf},
		{400, "InvalidSecurityToken.Malformed", misconf},
		{400, "MissingSecurityToken", misconf},
		{400, "InvalidTimeStamp.Expired", misconf},
		{400, "InvalidTimeStamp.Format", misconf},
		{400, "IllegalTimestamp", misconf},
		{404, "InvalidAction.NotFound", misconf},
		{400, "InvalidVersion", misconf},
		{500, "Forbidden.AccountAccessDenied", misconf},
		{503, "InvalidSecurityToken.Expired", misconf},
		{302, "Forbidden", misconf},
		{400, "Throttling", throttled},
		{400, "Throttling.User", throttled},
		{400, "Throttling.Api", throttled},
		{400, "ThrottlingByStrategy", throttled},
		{403, "Throttling.Api", throttled},
		{429, "Throttling.User", throttled},
		{503, "Throttling", throttled},
		{500, "Throttling.User", throttled},
		{302, "Throttling", throttled},
		{429, "Forbidden.AccountAccessDenied", throttled},
		{429, "InvalidParameter", throttled},
		{429, "Anything", throttled},
		{400, "throttling", refused},
		{500, "InternalError", unavailable},
		{500, "InvalidParameter", unavailable},
		{502, "BadGateway", unavailable},
		{503, "ServiceUnavailable", unavailable},
		{504, "GatewayTimeout", unavailable},
		{300, "Whatever", unavailable},
	} {
		add(fmt.Sprintf("JSON %d %s", e.status, e.code), e.status,
			`{"RequestId":"R-9","HostId":"captcha.example","Code":"`+e.code+`","Message":"`+secretMessage+
				`","Recommend":"https://example.com"}`, e.want, e.code, "R-9")
		add(fmt.Sprintf("XML %d %s", e.status, e.code), e.status,
			`<?xml version='1.0' encoding='UTF-8'?><Error><RequestId>R-9</RequestId><HostId>captcha.example</HostId><Code>`+
				e.code+`</Code><Message>`+secretMessage+`</Message></Error>`, e.want, e.code, "R-9")
	}
	add("JSON 403 with a pass in it", 403,
		`{"RequestId":"R-9","Code":"Forbidden","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		misconf, "Forbidden", "R-9")
	add("JSON 400 with Code twice", 400, `{"Code":"Throttling","Code":"InvalidParameter"}`, refused, "", "")
	add("JSON 400, nothing else", 400, `{"Code":"InvalidParameter"}`, refused, "InvalidParameter", "")
	add("XML 400 with broken Code", 400, `<Error><Code>Throttling`, refused, "", "")
	add("XML bomb", 400,
		`<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Error><Code>&b;</Code></Error>`,
		refused, "", "")
	add("XML with a file", 400, `<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><Error><Code>&a;</Code></Error>`,
		refused, "", "")
	add("XML, deep", 400, strings.Repeat("<a>", 12000), refused, "", "")
	add("200 refused, invalid UTF-8", 200,
		`{"RequestId":"R-9","Code":"InvalidParameter","Success":false,"Message":"`+"\xff"+`"}`,
		refused, "InvalidParameter", "R-9")
	// A pass that is not strict is none, but a client may have brought that about, so it ends in no Code that is opened.
	add("pass, invalid UTF-8 in a name", 200,
		strings.Replace(passAnswer, `{"RequestId"`, `{"x`+"\xff"+`":1,"RequestId"`, 1), refused, "", "")
	add("pass, invalid UTF-8 in Message", 200,
		strings.Replace(passAnswer, `"success"`, `"succ`+"\xff"+`ess"`, 1), refused, "", "")
	add("pass, invalid UTF-8 in the code", 200,
		answerWith(`{"VerifyResult":true,"VerifyCode":"T001`+"\xff"+`"}`), refused, "", "")
	add("pass, lone surrogate", 200, answerWith(`{"VerifyResult":true,"CertifyId":"\ud800"}`), refused, "", "")
	// The service may repeat what a client sent, so length is no outage.
	add("over 64 KB", 200, passAnswer+strings.Repeat(" ", 64<<10+1-len(passAnswer)), refused, "", "")
	add("pass after 64 KB", 200, strings.Repeat(" ", 64<<10)+passAnswer, refused, "", "")
	add("500 over 64 KB", 500, passAnswer+strings.Repeat(" ", 64<<10), unavailable, "", "")
	add("400 over 64 KB", 400, `{"Code":"Throttling"}`+strings.Repeat(" ", 64<<10), refused, "", "")

	// What somebody put in the place of a Code or an ID is not shown.
	long := strings.Repeat("a", 65)
	add("long Code", 400, `{"RequestId":"R-9","Code":"`+long+`"}`, refused, "", "R-9")
	add("long RequestId", 400, `{"RequestId":"`+long+`","Code":"X"}`, refused, "X", "")
	add("Code of words", 400, `{"RequestId":"R-9","Code":"`+secretMessage+` is the secret"}`, refused, "", "R-9")
	add("Code with a line break", 400, `{"RequestId":"R-9","Code":"A\nlevel=ERROR"}`, refused, "", "R-9")
	add("Code with an escape sequence", 400, `{"RequestId":"R-9","Code":"\u001b[31m"}`, refused, "", "R-9")
	add("Code with a colon", 400, `{"RequestId":"R-9","Code":"a:b"}`, refused, "", "R-9")
	add("Code with a quote", 400, `{"RequestId":"R-9","Code":"a\"b"}`, refused, "", "R-9")
	add("RequestId with a line break", 400, `{"RequestId":"R\r\n9","Code":"X"}`, refused, "X", "")
	add("Misconfigured although not shown", 403,
		`{"RequestId":"R-9","Code":"Forbidden because of `+secretMessage+`"}`, misconf, "", "R-9")
	add("the param in the place of the Code", 400,
		`{"RequestId":"R-9","Code":`+fmt.Sprintf("%q", secretParam)+`}`, refused, "", "R-9")
	add("RequestId null", 400, `{"RequestId":null,"Code":"X"}`, refused, "X", "")
	return rows
}

func (row answerRow) check(t *testing.T, result alicaptcha.Result, err error) {
	t.Helper()
	fault := requireFault(t, result, err)
	require.Equal(t, row.code, fault.Code, row.body)
	require.Equal(t, row.status, fault.Status)
	require.Equal(t, row.serviceCode, fault.ServiceCode)
	require.Equal(t, row.requestID, fault.RequestID)
	require.Contains(t, err.Error(), string(row.code))
	require.Contains(t, err.Error(), fmt.Sprintf("status %d", row.status))
	if row.serviceCode != "" {
		require.Contains(t, err.Error(), row.serviceCode)
	}
	if row.requestID != "" {
		require.Contains(t, err.Error(), row.requestID)
	}
}
