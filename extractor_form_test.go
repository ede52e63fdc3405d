package alicaptcha_test

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

func TestExtractURLEncoded(t *testing.T) {
	t.Parallel()
	fields := func(fields ...string) []alicaptcha.Extractor {
		return []alicaptcha.Extractor{alicaptcha.FromForm(fields...)}
	}
	cases := []extractCase{
		{name: "alone", body: "f=x", param: "x"},
		{name: "last", body: "a=1&f=x", param: "x"},
		{name: "first", body: "f=x&a=1", param: "x"},
		{name: "in the middle", body: "a=1&f=x&b=2", param: "x"},
		{name: "repeated", body: "f=x&f=no", param: "x"},
		{name: "first is empty", body: "f=&f=x&f=no", param: "x"},
		{name: "first is bare", body: "f&f=x", param: "x"},
		{name: "empty", body: "f=", code: alicaptcha.ParamMissing},
		{name: "bare", body: "f", code: alicaptcha.ParamMissing},
		{name: "empty body", body: "", code: alicaptcha.ParamMissing},
		{name: "without the field", body: "user=u&password=p", code: alicaptcha.ParamMissing},
		{name: "several names, the first in the body wins", extractors: fields("f", "g"), body: "g=x&f=no", param: "x"},
		{name: "several names, the first is empty", extractors: fields("f", "g"), body: "f=&g=x", param: "x"},
		{name: "prefix of a name", body: "ff=no&f1=no&xf=no", code: alicaptcha.ParamMissing},
		{name: "case of a name", body: "F=no", code: alicaptcha.ParamMissing},
		{name: "as a value", body: "a=f&b=f%3Dno", code: alicaptcha.ParamMissing},
		{name: "equals signs in the value", body: "f=a=b==", param: "a=b=="},
		{name: "empty name", body: "=no&f=x", param: "x"},
		{name: "ampersands", body: strings.Repeat("&", 100_000) + "f=x" + strings.Repeat("&", 100), param: "x"},
		{name: "many pairs", body: strings.Repeat("f=&", 20_000) + "f=x", param: "x"},

		{name: "escaped", body: "f=%22a%26b%3Dc%25%22", param: `"a&b=c%"`},
		{name: "plus is a space", body: "f=a+b%2Bc", param: "a b+c"},
		{name: "plus alone", body: "f=+", param: " "},
		{name: "UTF-8", body: "f=%C3%A9é", param: "éé"},
		{name: "not UTF-8", body: "f=a%FFb", code: alicaptcha.ParamMalformed},
		{name: "not UTF-8, raw", body: "f=a\xffb", code: alicaptcha.ParamMalformed},
		{name: "bad escape in the value", body: "f=%zz", code: alicaptcha.ParamMalformed},
		{name: "cut escape in the value", body: "f=a%4", code: alicaptcha.ParamMalformed},
		{name: "bad escape, then a good one", body: "f=%zz&f=no", code: alicaptcha.ParamMalformed},
		{name: "bad escape in another value", body: "a=%zz&f=x&b=%", param: "x"},
		{name: "bad escape in another name", body: "%zz=1&f=x", param: "x"},
		{name: "bad escape in a like name", body: "f%zz=no&f%=no&%66%=no", code: alicaptcha.ParamMissing},
		{name: "escaped name", body: "%66=x", param: "x"},
		{name: "escaped longer name", extractors: fields("captchaVerifyParam"), body: "captcha%56erify%50aram=x", param: "x"},
		{name: "escaped twice", body: "%2566=no", code: alicaptcha.ParamMissing},
		{name: "name with a space", extractors: fields("my field"), body: "my+field=&my%20field=x", param: "x"},
		{name: "name with a plus", extractors: fields("a+b"), body: "a+b=no&a%2Bb=x", param: "x"},
		{name: "name with a slash is no pointer", extractors: fields("/a/b"), body: "/a/b=x", param: "x"},
		{name: "FromBody: name with a slash is no pointer", extractors: []alicaptcha.Extractor{alicaptcha.FromBody("/a~1b")},
			body: "a%2Fb=no&%2Fa~1b=x", param: "x"},
		{name: "name with an ampersand", extractors: fields("a&b"), body: "a&b=no&a%26b=x", param: "x"},

		{name: "semicolon in the pair", body: "f=a;b", code: alicaptcha.ParamMalformed},
		{name: "semicolon as a separator", body: "a=1;f=no", code: alicaptcha.ParamMissing},
		{name: "semicolon after the field", body: "f=x;a=1", code: alicaptcha.ParamMalformed},
		{name: "semicolon in another pair", body: "a;b=1&f=x", param: "x"},
		{name: "escaped semicolon", body: "f=a%3Bb", param: "a;b"},

		{name: "query only", target: "/?f=no", body: "a=1", code: alicaptcha.ParamMissing},
		{name: "query and body", target: "/?f=no", body: "f=x", param: "x"},
		{name: "query of an empty body", target: "/?f=no", body: "", code: alicaptcha.ParamMissing},

		{name: "param at the limit", body: "f=%31%32%33%34%35%36%37%38", maxParam: 8, param: "12345678"},
		{name: "param over the limit", body: "f=123456789", maxParam: 8, code: alicaptcha.ParamTooLarge},
		{name: "ends at the limit", body: "a=1&f=1234", maxBody: 10, param: "1234"},
		{name: "cut at the limit", body: "a=1&f=12345", maxBody: 10, code: alicaptcha.ParamTooLarge},
		{name: "separator is the last byte", body: "a=1&f=123&b=2", maxBody: 10, param: "123"},
		{name: "name is cut", body: "aaaaaaaaa=1&f=x", maxBody: 10, code: alicaptcha.ParamTooLarge},
		{name: "not there, body as long as the limit", body: "aaaaaaaa=1", maxBody: 10, code: alicaptcha.ParamMissing},
		{name: "not there, body one longer", body: "aaaaaaaa=12", maxBody: 10, code: alicaptcha.ParamTooLarge},
		{name: "behind a long value", body: "a=" + strings.Repeat("y", 100<<10) + "&f=x", param: "x"},
		{name: "behind a too long value", body: "a=" + strings.Repeat("y", 128<<10) + "&f=x", code: alicaptcha.ParamTooLarge},
		{name: "not there, long", body: strings.Repeat("a=1&", 1<<18), code: alicaptcha.ParamTooLarge},
	}
	// Around the sizes of buffers.
	for _, size := range []int{
		1018, 1019, 1020, 1021, 1022, 1023, 1024, 1025, 2048, 4090, 4093, 4094, 4095, 4096, 4097, 28_000, 32 << 10,
	} {
		value := strings.Repeat("v", size-1) + "w"
		cases = append(cases,
			extractCase{name: fmt.Sprintf("%d bytes, last", size), body: "f=" + value, param: value},
			extractCase{name: fmt.Sprintf("%d bytes, first", size), body: "f=" + value + "&a=1", param: value},
			extractCase{name: fmt.Sprintf("%d bytes, after another as long", size),
				body: "a=" + value + "&f=" + value + "&b=1", param: value},
			extractCase{name: fmt.Sprintf("%d bytes of another", size), body: strings.Repeat("&", size) + "f=x", param: "x"},
		)
	}
	for i := range cases {
		cases[i].contentType = formType
		if cases[i].extractors == nil {
			cases[i].extractors = fields("f")
		}
	}
	runCases(t, cases)
}

func TestExtractMultipart(t *testing.T) {
	t.Parallel()
	field := formPart(`name="f"`, "x") + formEnd
	file := func(size int) string {
		return formPart(`name="upload"; filename="a.bin"`, strings.Repeat("0123456789abcde\n", size/16))
	}
	long := strings.Repeat("v", 28_000)
	cases := []extractCase{
		{name: "alone", body: field, param: "x"},
		{name: "after others", body: formPart(`name="a"`, "1") + formPart(`name="b"`, "") + field, param: "x"},
		{name: "before a large file", body: formPart(`name="f"`, "x") + file(1<<20) + formEnd, param: "x"},
		{name: "behind a small file", body: file(64<<10) + field, param: "x"},
		{name: "behind a large file", body: file(128<<10) + field, code: alicaptcha.ParamTooLarge},
		{name: "long", body: formPart(`name="f"`, long) + formEnd, param: long},
		{name: "raw bytes are not unescaped", body: formPart(`name="f"`, "a+b%41\r\n--c\r\n") + formEnd,
			param: "a+b%41\r\n--c\r\n"},
		{name: "unquoted name", body: formPart("name=f", "x") + formEnd, param: "x"},
		{name: "preamble", body: "before\r\n" + field, param: "x"},
		{name: "line feeds only", body: "--b\nContent-Disposition: form-data; name=\"f\"\n\nx\n--b--\n", param: "x"},
		{name: "other headers", body: formPart("name=\"f\"\nContent-Type: text/plain; charset=utf-8\nX-A: b", "x") + formEnd,
			param: "x"},

		{name: "repeated", body: formPart(`name="f"`, "x") + formPart(`name="f"`, "no") + formEnd, param: "x"},
		{name: "first is empty", body: formPart(`name="f"`, "") + field, param: "x"},
		{name: "empty", body: formPart(`name="f"`, "") + formEnd, code: alicaptcha.ParamMissing},
		{name: "several names, the first in the body wins", extractors: []alicaptcha.Extractor{alicaptcha.FromForm("f", "g")},
			body: formPart(`name="g"`, "x") + formPart(`name="f"`, "no") + formEnd, param: "x"},
		{name: "name with a slash is no pointer", extractors: []alicaptcha.Extractor{alicaptcha.FromBody("/f")},
			body: formPart(`name="f"`, "no") + formPart(`name="/f"`, "x") + formEnd, param: "x"},
		{name: "case of a name", body: formPart(`name="F"`, "no") + formEnd, code: alicaptcha.ParamMissing},
		{name: "without the field", body: file(16) + formEnd, code: alicaptcha.ParamMissing},
		{name: "without any", body: formEnd, code: alicaptcha.ParamMissing},
		{name: "query only", target: "/?f=no", body: formPart(`name="a"`, "1") + formEnd, code: alicaptcha.ParamMissing},

		{name: "a file of that name", body: formPart(`name="f"; filename="a.txt"`, "no") + formEnd,
			code: alicaptcha.ParamMissing},
		{name: "a file of that name before", body: formPart(`name="f"; filename="a.txt"`, "no") + field, param: "x"},
		{name: "a file with an encoded name", body: formPart(`name="f"; filename*=utf-8''a.txt`, "no") + field, param: "x"},
		{name: "an attachment", body: crlf("--b\nContent-Disposition: attachment; name=\"f\"\n\nno\n") + field, param: "x"},
		{name: "a part without a name", body: crlf("--b\nContent-Type: text/plain\n\nno\n") + field, param: "x"},

		{name: "quoted-printable",
			body: formPart("name=\"f\"\nContent-Transfer-Encoding: quoted-printable", "a=3Db=\r\nc") + formEnd, param: "a=bc"},
		{name: "bad quoted-printable",
			body: formPart("name=\"f\"\nContent-Transfer-Encoding: quoted-printable", "a\x01b") + formEnd,
			code: alicaptcha.ParamMalformed},
		{name: "quoted-printable that net/http takes as it is",
			body: formPart("name=\"f\"\nContent-Transfer-Encoding: Quoted-Printable", "a=ZZ") + formEnd, param: "a=ZZ"},
		{name: "not UTF-8", body: formPart(`name="f"`, "a\xffb") + formEnd, code: alicaptcha.ParamMalformed},
		{name: "param at the limit", body: formPart(`name="f"`, "12345678") + formEnd, maxParam: 8, param: "12345678"},
		{name: "param over the limit", body: formPart(`name="f"`, "123456789") + formEnd, maxParam: 8,
			code: alicaptcha.ParamTooLarge},

		{name: "final boundary missing, field complete", body: formPart(`name="f"`, "x") + formPart(`name="a"`, "1"),
			param: "x"},
		{name: "boundary after the field missing", body: formPart(`name="f"`, "x"), code: alicaptcha.ParamMalformed},
		{name: "cut in the field", body: strings.TrimSuffix(formPart(`name="f"`, "xyz"), "z\r\n"),
			code: alicaptcha.ParamMalformed},
		{name: "cut in a header's name", body: crlf("--b\nContent-Dispo"), code: alicaptcha.ParamMalformed},
		{name: "cut between headers, which net/http takes for the end",
			body: crlf("--b\nContent-Disposition: form-data; name=\"f\"\n"), code: alicaptcha.ParamMissing},
		{name: "cut before the field", body: formPart(`name="a"`, "1"), code: alicaptcha.ParamMalformed},
		{name: "bad headers", body: crlf("--b\nno header\n\nno\n") + field, code: alicaptcha.ParamMalformed},
		{name: "another boundary", body: strings.ReplaceAll(field, "--b", "--c"), code: alicaptcha.ParamMalformed},
		{name: "no multipart at all", body: "f=no", code: alicaptcha.ParamMalformed},
		{name: "empty body", body: "", code: alicaptcha.ParamMissing},
		{name: "broken behind the field", body: formPart(`name="f"`, "x") + "--b\r\nno header", param: "x"},
	}
	for i := range cases {
		cases[i].contentType = multipartType
		if cases[i].extractors == nil {
			cases[i].extractors = []alicaptcha.Extractor{alicaptcha.FromForm("f")}
		}
	}
	runCases(t, cases)
}

// Neither the Content-Type of a multipart body nor the Content-Disposition of its
// part may be so long that it takes its time.
func TestExtractMultipartLongParameters(t *testing.T) {
	t.Parallel()
	const head = "--b\r\nContent-Disposition: form-data; name=captchaVerifyParam"
	for _, row := range []struct {
		name, contentType, body string
		code                    alicaptcha.Code
	}{
		{"ordinary", "multipart/form-data; boundary=b", head + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.T001},
		{"a type of 512 bytes", "multipart/form-data; boundary=b; x=" + strings.Repeat("y", 512-35),
			head + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.T001},
		{"a type of 513 bytes", "multipart/form-data; boundary=b; x=" + strings.Repeat("y", 513-35),
			head + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.ParamMalformed},
		{"a disposition of 2048 bytes", "multipart/form-data; boundary=b",
			head + "; x=" + strings.Repeat("y", 2048-len(head)-4+26) + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.T001},
		{"a disposition of 2049 bytes", "multipart/form-data; boundary=b",
			head + "; x=" + strings.Repeat("y", 2049-len(head)-4+26) + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.ParamMalformed},
	} {
		r := httptest.NewRequest("POST", "/login", strings.NewReader(row.body))
		r.Header.Set("Content-Type", row.contentType)
		require.Equal(t, row.code, try(t, alicaptcha.Config{Verifier: passing()}, r).outcome(t).Code, row.name)
	}
}
