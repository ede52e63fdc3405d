package alicaptcha

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// An Extractor finds the CaptchaVerifyParam in a request. It returns "" and nil if there
// is none, and the next Extractor is tried. It must be safe for concurrent use.
//
// It may read r.Body, up to Config.MaxBodyBytes. The middleware then restores the body,
// and discards what the Extractor parsed, such as r.Form. It must not call Begin, Ask or
// Require, which would verify before there is a param. An error ends the search: with
// a *[http.MaxBytesError] in its chain the request ends as ParamTooLarge, otherwise as
// ParamMalformed.
type Extractor func(r *http.Request) (string, error)

// DefaultExtractors returns the Extractors of a Config that has none: the header
// Captcha-Verify-Param, then the field captchaVerifyParam or CaptchaVerifyParam of the
// body.
func DefaultExtractors() []Extractor {
	return []Extractor{
		FromHeader("Captcha-Verify-Param"),
		FromBody("captchaVerifyParam", "CaptchaVerifyParam"),
	}
}

// FromHeader returns an Extractor that takes the param from the first header of that
// name. A V2 param belongs in the body: many proxies refuse a header of its length.
//
// It panics if name is not a valid header name.
func FromHeader(name string) Extractor {
	if name == "" || strings.ContainsFunc(name, notInToken) {
		panic("alicaptcha: FromHeader: " + strconv.Quote(name) + " is not a valid header name")
	}
	here, key := &place{header: name}, http.CanonicalHeaderKey(name)
	return func(r *http.Request) (string, error) {
		here.lookIn(r)
		if values := r.Header[key]; len(values) > 0 {
			return values[0], nil
		}
		return "", nil
	}
}

// notInToken reports whether r cannot be in a token of RFC 9110, section 5.6.2.
func notInToken(r rune) bool {
	isAlphanumeric := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !isAlphanumeric && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// FromForm returns an Extractor that takes the param from a body of type
// application/x-www-form-urlencoded or multipart/form-data. It finds nothing in other
// bodies or in the URL's query, which ends up in logs.
//
// If the body has several of the fields, it takes the first that is not empty in the
// order of the body. A file is not a field. In a multipart body put the field before any file: only the first
// Config.MaxBodyBytes are searched. If the form was parsed before, the parsed form is
// searched.
//
// It panics if fields is empty or contains an empty string.
func FromForm(fields ...string) Extractor {
	fields = checkFields("FromForm", fields)
	here := &place{fields: fields, form: true}
	return func(r *http.Request) (string, error) {
		here.lookIn(r)
		return fromForm(r, mediaType(r), fields)
	}
}

// FromJSON returns an Extractor that takes the param from a body of type
// application/json or application/*+json. It finds nothing in other bodies. A field is
// the name of a member of the top-level object, and its case matters. A field that
// begins with "/" is a JSON Pointer (RFC 6901).
//
// If the body has several of the fields, it takes the first that is not empty in the
// order of the body. A value that is not a string is an error, even null, and so
// is a body that is not strict JSON (RFC 8259) up to the field. What follows the field
// is not examined.
//
// It panics if fields is empty, or contains an empty string, a string that is not valid
// UTF-8, or a pointer with a "~" that is not followed by "0" or "1".
func FromJSON(fields ...string) Extractor {
	paths := checkPaths("FromJSON", fields)
	here := &place{fields: slices.Clone(fields), json: true}
	return func(r *http.Request) (string, error) {
		here.lookIn(r)
		if !isJSON(mediaType(r)) {
			return "", nil
		}
		return fromJSON(r, paths)
	}
}

// FromBody returns an Extractor that works as [FromForm] or [FromJSON] does, depending on
// the body's Content-Type. In a form, a field that begins with "/" is an ordinary name.
//
// It panics if FromForm or FromJSON would.
func FromBody(fields ...string) Extractor {
	fields = checkFields("FromBody", fields)
	paths := checkPaths("FromBody", fields)
	here := &place{fields: fields, form: true, json: true}
	return func(r *http.Request) (string, error) {
		here.lookIn(r)
		kind := mediaType(r)
		if isJSON(kind) {
			return fromJSON(r, paths)
		}
		return fromForm(r, kind, fields)
	}
}

func checkFields(function string, fields []string) []string {
	if len(fields) == 0 || slices.Contains(fields, "") {
		panic("alicaptcha: " + function + ": fields is empty or contains an empty string")
	}
	return slices.Clone(fields)
}

// The longest Content-Type of a multipart body, whose boundary has at most 70 bytes
// (RFC 2046, section 5.1.1), and the longest Content-Disposition of a part, whose file
// name may have 255 bytes, or three times as many if they are escaped. For longer ones
// mime.ParseMediaType takes more than linear time, and 90 times their memory.
const (
	maxContentType = 512
	maxDisposition = 2048
)

const (
	typeURLEncoded = "application/x-www-form-urlencoded"
	typeMultipart  = "multipart/form-data"
)

// maxMediaType is the length of the longest media type (RFC 6838, section 4.2). Longer
// ones are not examined, because over HTTP/2 a single byte can stand for one of 4 KB.
const maxMediaType = 255

// mediaType returns the type of r's body, without parameters, in lower case.
func mediaType(r *http.Request) string {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if kind = strings.TrimSpace(kind); len(kind) > maxMediaType {
		return "too long"
	}
	return strings.ToLower(kind)
}

func isJSON(kind string) bool {
	return kind == "application/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json")
}

var (
	errEncoded = safeError{text: "the body is compressed"}
	errBody    = safeError{text: "the body cannot be read as its Content-Type says"}
	errValue   = safeError{text: "the field is not a string"}
)

// bodyError returns what an Extractor returns for err. The text of a parser's own error
// would quote the body.
func bodyError(err error) error {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge
	}
	return errBody
}

// plainBody returns r's body, or an error if it is compressed. It is not decompressed,
// because a small body can expand to a huge one.
func plainBody(r *http.Request) (io.Reader, error) {
	for _, encoding := range r.Header["Content-Encoding"] {
		if encoding != "" && !strings.EqualFold(encoding, "identity") {
			return nil, errEncoded
		}
	}
	if r.Body == nil {
		return http.NoBody, nil
	}
	return r.Body, nil
}

// A parserBody is a body that bounds how many bodies are parsed at the same time.
// Otherwise a flood of them would keep the calls to the service from the processor, and
// make a healthy service look slow.
type parserBody interface {
	beginParsing()
	endParsing()
}

func fromForm(r *http.Request, kind string, fields []string) (string, error) {
	var parsed url.Values
	switch {
	case kind == typeURLEncoded:
		parsed = r.PostForm
	case kind != typeMultipart:
		return "", nil
	case r.MultipartForm != nil:
		parsed = r.MultipartForm.Value
	}
	for _, field := range fields {
		for _, value := range parsed[field] {
			if value != "" {
				return value, nil
			}
		}
	}
	if r.MultipartForm != nil {
		return "", nil // nothing is left of the body
	}

	body, err := plainBody(r)
	if err != nil {
		return "", err
	}
	if b, ok := r.Body.(parserBody); ok {
		b.beginParsing()
		defer b.endParsing()
	}
	if kind == typeMultipart {
		return fromMultipart(body, r.Header.Get("Content-Type"), fields)
	}
	return fromURLEncoded(body, fields)
}

// formReaders saves the buffers. The strings that are taken from them are copies.
var formReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4096) }}

// fromURLEncoded reads pair by pair, as [url.ParseQuery] would, and unescapes only what
// may be the field.
func fromURLEncoded(body io.Reader, fields []string) (string, error) {
	in := formReaders.Get().(*bufio.Reader)
	in.Reset(body)
	defer func() {
		in.Reset(nil) // otherwise the pool retains the request
		formReaders.Put(in)
	}()
	for {
		pair, err := in.ReadSlice('&')
		if err == bufio.ErrBufferFull {
			var rest []byte
			pair = bytes.Clone(pair)
			rest, err = in.ReadBytes('&')
			pair = append(pair, rest...)
		}
		if err != nil && err != io.EOF {
			return "", bodyError(err) // a pair that was cut off does not count
		}
		pair = bytes.TrimSuffix(pair, []byte("&"))
		name, value, _ := bytes.Cut(pair, []byte("="))
		if isField(name, fields) && len(value) > 0 {
			return unescape(pair, value)
		}
		if err == io.EOF {
			return "", nil
		}
	}
}

// unescape returns the value of a pair.
func unescape(pair, value []byte) (string, error) {
	if bytes.IndexByte(pair, ';') >= 0 {
		return "", errBody
	}
	if bytes.IndexByte(value, '%') < 0 && bytes.IndexByte(value, '+') < 0 {
		return string(value), nil // much faster than QueryUnescape, which looks at each byte
	}
	unescaped, err := url.QueryUnescape(string(value))
	if err != nil {
		return "", errBody
	}
	return unescaped, nil
}

// isField reports whether name, which may be escaped, is one of fields.
func isField(name []byte, fields []string) bool {
	if bytes.IndexByte(name, '%') >= 0 || bytes.IndexByte(name, '+') >= 0 {
		unescaped, err := url.QueryUnescape(string(name))
		return err == nil && slices.Contains(fields, unescaped)
	}
	return slices.ContainsFunc(fields, func(field string) bool { return field == string(name) })
}

// fromMultipart does not use r.MultipartReader, because the handler could not use it
// again.
func fromMultipart(body io.Reader, contentType string, fields []string) (string, error) {
	if len(contentType) > maxContentType {
		return "", errBody
	}
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil || params["boundary"] == "" {
		return "", errBody
	}
	kept := &errorKeeper{Reader: body, isEmpty: true}
	parts := multipart.NewReader(kept, params["boundary"])
	for {
		// Raw, because whether a fault in the encoding of a skipped part is noticed
		// would depend on how the body arrives.
		part, err := parts.NextRawPart()
		if err == io.EOF || kept.isEmpty {
			return "", nil
		}
		if err != nil {
			return "", bodyError(err)
		}
		if len(part.Header.Get("Content-Disposition")) > maxDisposition {
			return "", errBody
		}
		if part.FileName() != "" || !slices.Contains(fields, part.FormName()) {
			continue
		}
		var decoded io.Reader = part
		if strings.EqualFold(part.Header.Get("Content-Transfer-Encoding"), "quoted-printable") {
			decoded = quotedprintable.NewReader(part) // as for the handler
		}
		value, err := io.ReadAll(decoded)
		if err == nil {
			err = kept.err
		}
		if err != nil {
			return "", bodyError(err)
		}
		if len(value) > 0 {
			return string(value), nil
		}
	}
}

// An errorKeeper keeps the error of its Reader, because mime/multipart drops the error
// if it cuts off a boundary.
type errorKeeper struct {
	io.Reader
	err     error // not io.EOF
	isEmpty bool  // it ended by io.EOF before it gave a byte
}

func (k *errorKeeper) Read(p []byte) (int, error) {
	n, err := k.Reader.Read(p)
	if err != io.EOF {
		k.err = err
	}
	k.isEmpty = k.isEmpty && n == 0 && (err == nil || err == io.EOF)
	return n, err
}
