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
)

// An Extractor finds the CaptchaVerifyParam in a request. It returns "" and nil
// where there is none, and the next Extractor is tried.
//
// It may read r.Body, up to Config.MaxBodyBytes: the middleware gives the body
// back, and what the Extractor parsed of it (r.Form and its like) is forgotten.
// An error ends the search; a *[http.MaxBytesError] anywhere in its chain
// counts as ParamTooLarge, any other as ParamMalformed. It must be safe for
// concurrent use.
type Extractor func(r *http.Request) (string, error)

// DefaultExtractors returns what a Config without Extractors uses: the header
// Captcha-Verify-Param, then the body's captchaVerifyParam or
// CaptchaVerifyParam.
func DefaultExtractors() []Extractor {
	return []Extractor{
		FromHeader("Captcha-Verify-Param"),
		FromBody("captchaVerifyParam", "CaptchaVerifyParam"),
	}
}

// FromHeader finds the param in the first header of that name. A long (V2)
// param does not fit a header on many proxies; a body is the place for it.
//
// It panics if name is not a possible name of a header.
func FromHeader(name string) Extractor {
	if name == "" || strings.ContainsFunc(name, notInToken) {
		panic("alicaptcha: FromHeader: " + strconv.Quote(name) + " is not the name of a header")
	}
	here := &place{header: name}
	return func(r *http.Request) (string, error) {
		here.lookIn(r)
		return r.Header.Get(name), nil
	}
}

// notInToken reports a rune that stands in no token of RFC 9110, section 5.6.2.
func notInToken(r rune) bool {
	isAlphanumeric := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !isAlphanumeric && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// FromForm finds the param in a body of type application/x-www-form-urlencoded
// or multipart/form-data; in any other it finds nothing. It never looks at the
// URL's query, which ends up in logs.
//
// Of several fields the first in the body that is not empty wins. A file is not
// a field; in a multipart body the field must stand before large files, see
// Config.MaxBodyBytes. A form that somebody has parsed before counts too.
//
// It panics without a field, and on an empty one.
func FromForm(fields ...string) Extractor {
	fields = checkFields("FromForm", fields)
	here := &place{fields: fields, form: true}
	return func(r *http.Request) (string, error) {
		here.lookIn(r)
		return fromForm(r, mediaType(r), fields)
	}
}

// FromJSON finds the param in a body of type application/json or
// application/*+json; in any other it finds nothing. A field is the name of a
// member of the object that the body is, in just that case; one that begins
// with "/" is a JSON Pointer (RFC 6901) into the body.
//
// Of several fields the first in the body that is not empty wins, of a repeated
// one its first. A value that is no string (null too), and a body that is not
// strict JSON (RFC 8259) as far as it is read, is an error. What follows the
// field is not looked at.
//
// It panics without a field, on an empty one, on one that is not UTF-8, and on
// a pointer with a "~" that is neither "~0" nor "~1".
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

// FromBody finds the param as [FromForm] or [FromJSON] does, by the body's
// Content-Type. In a form a field that begins with "/" is just a name.
//
// It panics where one of the two does.
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
		panic("alicaptcha: " + function + ": no field, or an empty one")
	}
	return slices.Clone(fields)
}

// The longest Content-Type of a multipart body, whose boundary has 70 bytes at most
// (RFC 2046, section 5.1.1), and Content-Disposition of a part, whose file's name may
// have 255 and three times as many where they are escaped. For longer ones
// mime.ParseMediaType takes more than linear time, and 90 times their memory.
const (
	maxContentType = 512
	maxDisposition = 2048
)

const (
	typeURLEncoded = "application/x-www-form-urlencoded"
	typeMultipart  = "multipart/form-data"
)

// mediaType returns the type of r's body, without parameters, in lower case.
func mediaType(r *http.Request) string {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(kind))
}

func isJSON(kind string) bool {
	return kind == "application/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json")
}

var (
	errEncoded = safeError{text: "the body is compressed"}
	errBody    = safeError{text: "the body cannot be read as its Content-Type says"}
	errValue   = safeError{text: "the field is not a string"}
)

// bodyError returns what an Extractor tells of err: a parser's own text would
// quote the body.
func bodyError(err error) error {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge
	}
	return errBody
}

// plainBody returns r's body, or an error where it is compressed: unpacking it
// for anybody who asks is how bombs go off.
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

// A parserBody is a body that bounds how many are parsed at once. A flood of bodies
// that take their time would else keep every call to the service from the processor,
// and make a healthy service look slow.
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

// fromURLEncoded reads pair by pair, as [url.ParseQuery] would, and unescapes
// only what may be meant.
func fromURLEncoded(body io.Reader, fields []string) (string, error) {
	in := bufio.NewReaderSize(body, 1024)
	for {
		pair, err := in.ReadSlice('&')
		if err == bufio.ErrBufferFull {
			var rest []byte
			pair = bytes.Clone(pair)
			rest, err = in.ReadBytes('&')
			pair = append(pair, rest...)
		}
		if err != nil && err != io.EOF {
			return "", bodyError(err) // a pair that was cut short is none
		}
		pair = bytes.TrimSuffix(pair, []byte("&"))
		name, value, _ := bytes.Cut(pair, []byte("="))
		if isField(name, fields) && len(value) > 0 {
			unescaped, unescapeErr := url.QueryUnescape(string(value))
			if unescapeErr != nil || bytes.IndexByte(pair, ';') >= 0 {
				return "", errBody
			}
			return unescaped, nil
		}
		if err == io.EOF {
			return "", nil
		}
	}
}

// isField reports whether name, which may be escaped, is one of fields.
func isField(name []byte, fields []string) bool {
	if bytes.ContainsAny(name, "%+") {
		unescaped, err := url.QueryUnescape(string(name))
		return err == nil && slices.Contains(fields, unescaped)
	}
	return slices.ContainsFunc(fields, func(field string) bool { return field == string(name) })
}

// fromMultipart does not use r.MultipartReader: after that the handler could
// not.
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
		// Raw, because a fault in the encoding of a part that is skipped would be
		// one or none, as the body happens to arrive.
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

// An errorKeeper keeps the error of its Reader, because mime/multipart takes a
// boundary that an error cuts off for a whole one, and drops the error.
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
