package alicaptcha_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

func TestExtractJSON(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ab\\u0041\\\"", 3000)
	var longPlain string
	require.NoError(t, json.Unmarshal([]byte(`"`+long+`"`), &longPlain))

	cases := []extractCase{
		{name: "first name", body: `{"captchaVerifyParam":"x"}`, param: "x"},
		{name: "second name", body: `{"CaptchaVerifyParam":"x"}`, param: "x"},
		{name: "the first in the body wins", body: `{"CaptchaVerifyParam":"x","captchaVerifyParam":"y"}`, param: "x"},
		{name: "white space", body: " \r\n\t{ \"a\" : 1 , \"captchaVerifyParam\" \n:\t\"x\" } ", param: "x"},
		{name: "after values of all kinds",
			body: `{"a":{"b":[1,{"c":null}]},"d":[],"e":-1.5e+9,"f":true,"g":"}\"","captchaVerifyParam":"x"}`, param: "x"},
		{name: "escaped name", body: `{"captcha\u0056erifyParam":"x"}`, param: "x"},
		{name: "name escaped throughout",
			body: `{"\u0063\u0061\u0070\u0074\u0063\u0068\u0061` +
				`\u0056\u0065\u0072\u0069\u0066\u0079\u0050\u0061\u0072\u0061\u006D":"x"}`,
			param: "x"},
		{name: "escaped value", body: `{"captchaVerifyParam":"\u0022\\\/\b\f\n\r\t\ud83d\ude00é"}`,
			param: "\"\\/\b\f\n\r\t😀é"},
		{name: "long value", body: `{"captchaVerifyParam":"` + long + `"}`, param: longPlain},
		{name: "the value is JSON itself", body: `{"captchaVerifyParam":"{\"sceneId\":\"s\",\"certifyId\":\"c\"}"}`,
			param: `{"sceneId":"s","certifyId":"c"}`},

		{name: "another case", body: `{"CAPTCHAVERIFYPARAM":"x","captchaverifyparam":"y"}`, code: alicaptcha.ParamMissing},
		{name: "another case before", body: `{"CAPTCHAVERIFYPARAM":"no","captchaVerifyParam":"x"}`, param: "x"},
		{name: "another case after", body: `{"captchaVerifyParam":"x","CAPTCHAVERIFYPARAM":"no"}`, param: "x"},
		{name: "folds to the same", body: `{"captchaVerifyParam\u0000":"no","captchaVerifyParam ":"no"}`,
			code: alicaptcha.ParamMissing},
		{name: "nested before", body: `{"a":{"captchaVerifyParam":"no"},"captchaVerifyParam":"x"}`, param: "x"},
		{name: "nested only", body: `{"a":{"captchaVerifyParam":"no"},"b":[{"captchaVerifyParam":"no"}]}`,
			code: alicaptcha.ParamMissing},
		{name: "as a value", body: `{"a":"captchaVerifyParam","b":["captchaVerifyParam","no"]}`,
			code: alicaptcha.ParamMissing},

		{name: "duplicate", body: `{"captchaVerifyParam":"x","captchaVerifyParam":"no"}`, param: "x"},
		{name: "duplicate, escaped", body: `{"captchaVerifyParam":"x","\u0063aptchaVerifyParam":"no"}`, param: "x"},
		{name: "duplicate after an empty one", body: `{"captchaVerifyParam":"","captchaVerifyParam":"no"}`,
			code: alicaptcha.ParamMalformed},
		{name: "duplicate of another before", body: `{"a":1,"\u0061":2,"captchaVerifyParam":"x"}`,
			code: alicaptcha.ParamMalformed},
		{name: "duplicate in an object before", body: `{"a":{"b":1,"b":2},"captchaVerifyParam":"x"}`,
			code: alicaptcha.ParamMalformed},
		{name: "duplicate of another after", body: `{"captchaVerifyParam":"x","a":1,"a":2}`, param: "x"},

		{name: "null", body: `{"captchaVerifyParam":null}`, code: alicaptcha.ParamMalformed},
		{name: "null, then the other name", body: `{"captchaVerifyParam":null,"CaptchaVerifyParam":"x"}`,
			code: alicaptcha.ParamMalformed},
		{name: "number", body: `{"captchaVerifyParam":1}`, code: alicaptcha.ParamMalformed},
		{name: "true", body: `{"captchaVerifyParam":true}`, code: alicaptcha.ParamMalformed},
		{name: "false", body: `{"captchaVerifyParam":false}`, code: alicaptcha.ParamMalformed},
		{name: "object", body: `{"captchaVerifyParam":{"captchaVerifyParam":"x"}}`, code: alicaptcha.ParamMalformed},
		{name: "array", body: `{"captchaVerifyParam":["x"]}`, code: alicaptcha.ParamMalformed},
		{name: "no value", body: `{"captchaVerifyParam":}`, code: alicaptcha.ParamMalformed},
		{name: "no colon", body: `{"captchaVerifyParam" "x"}`, code: alicaptcha.ParamMalformed},

		{name: "empty string", body: `{"captchaVerifyParam":""}`, code: alicaptcha.ParamMissing},
		{name: "empty string, then the other name", body: `{"captchaVerifyParam":"","CaptchaVerifyParam":"x"}`, param: "x"},
		{name: "empty object", body: `{}`, code: alicaptcha.ParamMissing},
		{name: "without the field", body: `{"user":"u","password":"p"}`, code: alicaptcha.ParamMissing},
		{name: "empty body", body: "", code: alicaptcha.ParamMissing},
		{name: "white space only", body: " \r\n\t ", code: alicaptcha.ParamMissing},

		{name: "top-level array", body: `[{"captchaVerifyParam":"x"}]`, code: alicaptcha.ParamMalformed},
		{name: "top-level string", body: `"captchaVerifyParam"`, code: alicaptcha.ParamMalformed},
		{name: "top-level null", body: `null`, code: alicaptcha.ParamMalformed},
		{name: "top-level number", body: `1`, code: alicaptcha.ParamMalformed},
		{name: "no JSON", body: `hello`, code: alicaptcha.ParamMalformed},
		{name: "byte order mark", body: "\ufeff" + `{"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "UTF-16", body: "\xff\xfe{\x00}\x00", code: alicaptcha.ParamMalformed},
		{name: "single quotes", body: `{'captchaVerifyParam':'x'}`, code: alicaptcha.ParamMalformed},
		{name: "comment", body: `{/**/"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "leading comma", body: `{,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "two commas", body: `{"a":1,,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "wrong bracket", body: `{"a":[1},"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "closed by a bracket", body: `{]`, code: alicaptcha.ParamMalformed},
		{name: "leading zero before", body: `{"a":01,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "NaN before", body: `{"a":NaN,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "raw line feed in the value", body: "{\"captchaVerifyParam\":\"a\nb\"}", code: alicaptcha.ParamMalformed},
		{name: "bad escape in the value", body: `{"captchaVerifyParam":"\x41"}`, code: alicaptcha.ParamMalformed},
		{name: "not UTF-8", body: "{\"captchaVerifyParam\":\"a\xffb\"}", code: alicaptcha.ParamMalformed},
		{name: "overlong UTF-8", body: "{\"captchaVerifyParam\":\"\xc0\x80\"}", code: alicaptcha.ParamMalformed},
		{name: "not UTF-8 before", body: "{\"a\":\"\xff\",\"captchaVerifyParam\":\"x\"}", code: alicaptcha.ParamMalformed},
		{name: "lone surrogate", body: `{"captchaVerifyParam":"\ud800"}`, code: alicaptcha.ParamMalformed},
		{name: "lone low surrogate", body: `{"captchaVerifyParam":"\udc00x"}`, code: alicaptcha.ParamMalformed},
		{name: "surrogates in the wrong order", body: `{"captchaVerifyParam":"\ude00\ud83d"}`,
			code: alicaptcha.ParamMalformed},
		{name: "lone surrogate in a name", body: `{"\ud800":1,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},

		{name: "deep array", body: strings.Repeat("[", 100_000), code: alicaptcha.ParamMalformed},
		{name: "deep array in a member", body: `{"a":` + strings.Repeat("[", 100_000), code: alicaptcha.ParamMalformed},
		{name: "deep object", body: strings.Repeat(`{"a":`, 20_000), code: alicaptcha.ParamMalformed},
		{name: "deep array as the value", body: `{"captchaVerifyParam":` + strings.Repeat("[", 100_000),
			code: alicaptcha.ParamMalformed},

		{name: "broken after the field", body: `{"captchaVerifyParam":"x"]]] not JSON`, param: "x"},
		{name: "truncated after the field", body: `{"captchaVerifyParam":"x"`, param: "x"},
		{name: "not UTF-8 after the field", body: "{\"captchaVerifyParam\":\"x\",\"a\":\"\xff\"}", param: "x"},
		{name: "truncated in the value", body: `{"captchaVerifyParam":"x`, code: alicaptcha.ParamMalformed},
		{name: "truncated in an escape", body: `{"captchaVerifyParam":"x\`, code: alicaptcha.ParamMalformed},
		{name: "truncated before the value", body: `{"captchaVerifyParam":`, code: alicaptcha.ParamMalformed},
		{name: "truncated in the name", body: `{"captchaVerify`, code: alicaptcha.ParamMalformed},
		{name: "truncated before the field", body: `{"a":1,`, code: alicaptcha.ParamMalformed},
		{name: "truncated after another", body: `{"a":1`, code: alicaptcha.ParamMalformed},
		{name: "brace only", body: `{`, code: alicaptcha.ParamMalformed},

		{name: "param at the limit", body: `{"captchaVerifyParam":"12345678"}`, maxParam: 8, param: "12345678"},
		{name: "param at the limit, escaped",
			body: `{"captchaVerifyParam":"\u0031\u0032\u0033\u0034\u0035\u0036\u0037\u0038"}`, maxParam: 8, param: "12345678"},
		{name: "param over the limit", body: `{"captchaVerifyParam":"123456789"}`, maxParam: 8,
			code: alicaptcha.ParamTooLarge},
		{name: "far behind", body: `{"a":"` + strings.Repeat("x", 128<<10) + `","captchaVerifyParam":"x"}`,
			code: alicaptcha.ParamTooLarge},
		{name: "far, but not too far behind", body: `{"a":"` + strings.Repeat("x", 100<<10) + `","captchaVerifyParam":"x"}`,
			param: "x"},
		{name: "not there as far as we read", body: `{"a":"` + strings.Repeat("x", 1<<20) + `"}`,
			code: alicaptcha.ParamTooLarge},
	}
	for i := range cases {
		cases[i].contentType = jsonType
	}
	runCases(t, cases)
}

func TestExtractJSONPointer(t *testing.T) {
	t.Parallel()
	pointer := func(fields ...string) []alicaptcha.Extractor {
		return []alicaptcha.Extractor{alicaptcha.FromJSON(fields...)}
	}
	cases := []extractCase{
		{name: "top", extractors: pointer("/p"), body: `{"p":"x"}`, param: "x"},
		{name: "nested", extractors: pointer("/a/b/p"), body: `{"p":"no","a":{"p":"no","b":{"p":"x"}}}`, param: "x"},
		{name: "nested, escaped in the body", extractors: pointer("/a/b"), body: `{"\u0061":{"\u0062":"x"}}`, param: "x"},
		{name: "~1 is a slash", extractors: pointer("/a~1b"), body: `{"a":{"b":"no"},"a/b":"x"}`, param: "x"},
		{name: "~0 is a tilde", extractors: pointer("/m~0n"), body: `{"m~0n":"no","m~n":"x"}`, param: "x"},
		{name: "~01 is a tilde and a one", extractors: pointer("/~01"), body: `{"/":"no","~1":"x"}`, param: "x"},
		{name: "~10 is a slash and a nought", extractors: pointer("/~10"), body: `{"~0":"no","/0":"x"}`, param: "x"},
		{name: "empty name", extractors: pointer("/"), body: `{"a":"no","":"x"}`, param: "x"},
		{name: "two empty names", extractors: pointer("//"), body: `{"":{"":"x"}}`, param: "x"},
		{name: "name with a quote", extractors: pointer(`/a"b\`), body: `{"a\"b\\":"x"}`, param: "x"},
		{name: "no unescaping of per cent", extractors: pointer("/a%20b"), body: `{"a b":"no","a%20b":"x"}`, param: "x"},
		{name: "index", extractors: pointer("/a/1"), body: `{"a":["no","x"]}`, param: "x"},
		{name: "index of two digits", extractors: pointer("/a/10"), body: `{"a":[0,1,2,3,4,5,6,7,8,9,"x"]}`, param: "x"},
		{name: "index with a leading nought", extractors: pointer("/a/01"), body: `{"a":["no","no"]}`,
			code: alicaptcha.ParamMissing},
		{name: "index with a sign", extractors: pointer("/a/+1", "/a/-1"), body: `{"a":["no","no"]}`,
			code: alicaptcha.ParamMissing},
		{name: "index after the last", extractors: pointer("/a/-"), body: `{"a":["no"]}`, code: alicaptcha.ParamMissing},
		{name: "index out of range", extractors: pointer("/a/1"), body: `{"a":["no"]}`, code: alicaptcha.ParamMissing},
		{name: "empty token in an array", extractors: pointer("/a/"), body: `{"a":["no"]}`, code: alicaptcha.ParamMissing},
		{name: "number as a name", extractors: pointer("/a/1"), body: `{"a":{"1":"x"}}`, param: "x"},
		{name: "top-level array", extractors: pointer("/0"), body: `["x"]`, param: "x"},
		{name: "array in array", extractors: pointer("/1/0/p"), body: `[["no"],[{"p":"x"}]]`, param: "x"},
		{name: "a name is no index", extractors: pointer("0", "/9"), body: `["no"]`, code: alicaptcha.ParamMissing},
		{name: "deep array", extractors: pointer("/0/0/0"), body: strings.Repeat("[", 100_000),
			code: alicaptcha.ParamMalformed},
		{name: "through null", extractors: pointer("/a/p"), body: `{"a":null}`, code: alicaptcha.ParamMissing},
		{name: "through a string", extractors: pointer("/a/p"), body: `{"a":"p"}`, code: alicaptcha.ParamMissing},
		{name: "through a number", extractors: pointer("/a/p"), body: `{"a":1}`, code: alicaptcha.ParamMissing},
		{name: "through nothing", extractors: pointer("/a/p"), body: `{"p":"no"}`, code: alicaptcha.ParamMissing},
		{name: "case of a level", extractors: pointer("/a/p"), body: `{"A":{"p":"no"},"a":{"P":"no"}}`,
			code: alicaptcha.ParamMissing},
		{name: "to null", extractors: pointer("/a/p"), body: `{"a":{"p":null}}`, code: alicaptcha.ParamMalformed},
		{name: "to an object", extractors: pointer("/a"), body: `{"a":{"p":"no"}}`, code: alicaptcha.ParamMalformed},
		{name: "to an array", extractors: pointer("/a"), body: `{"a":["no"]}`, code: alicaptcha.ParamMalformed},
		{name: "empty, then the other", extractors: pointer("/a/p", "/b/p"), body: `{"a":{"p":""},"b":{"p":"x"}}`,
			param: "x"},
		{name: "the first in the body wins", extractors: pointer("/a/p", "/b/p"), body: `{"b":{"p":"x"},"a":{"p":"no"}}`,
			param: "x"},
		{name: "two in one object", extractors: pointer("/a/q", "/a/p"), body: `{"a":{"p":"x","q":"no"}}`, param: "x"},
		{name: "one leads through the other", extractors: pointer("/a/p", "/a"), body: `{"a":{"p":"x"}}`, param: "x"},
		{name: "one leads through the other, a string", extractors: pointer("/a/p", "/a"), body: `{"a":"x"}`, param: "x"},
		{name: "pointer and name", extractors: pointer("p", "/a/p"), body: `{"a":{"p":"x"},"p":"no"}`, param: "x"},
		{name: "repeated on the way", extractors: pointer("/a/p"), body: `{"a":{"q":1},"a":{"p":"no"}}`,
			code: alicaptcha.ParamMalformed},
		{name: "broken on the way", extractors: pointer("/a/p"), body: `{"a":{"q":1,"p"`, code: alicaptcha.ParamMalformed},
		{name: "wrong bracket on the way", extractors: pointer("/a/p"), body: `{"a":{"q":1],"b":2}`,
			code: alicaptcha.ParamMalformed},
		{name: "broken after", extractors: pointer("/a/p"), body: `{"a":{"p":"x"]`, param: "x"},
		{name: "FromBody knows pointers", extractors: []alicaptcha.Extractor{alicaptcha.FromBody("/a/p")},
			body: `{"/a/p":"no","a":{"p":"x"}}`, param: "x"},
	}
	for i := range cases {
		cases[i].contentType = jsonType
	}
	runCases(t, cases)
}
