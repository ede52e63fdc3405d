package alicaptcha

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// A place is where an Extractor of this package looks for the param.
type place struct {
	header string
	fields []string
	form   bool // it reads forms
	json   bool // it reads JSON
}

// A searchedBody is a body that is told of the places in which the param was looked
// for, so that it can say why there is none.
type searchedBody interface{ searched(*place) }

// lookIn tells the body of r that p is searched.
func (p *place) lookIn(r *http.Request) {
	if b, ok := r.Body.(searchedBody); ok {
		b.searched(p)
	}
}

// How many bytes of a body and of a query are examined to say why the param is missing.
// Over HTTP/2 a single byte can stand for a query of 4 KB.
const (
	maxExamined      = 4096
	maxExaminedQuery = 1024
)

// whyMissing returns why the param was found in none of places, for the operator of
// the site. read is what was read of the body of r, and atEnd says whether that is
// all of it. The text holds names of fields from places and nothing that the client
// sent. It is empty if nothing is known.
func whyMissing(r *http.Request, places []*place, read []byte, atEnd bool) string {
	if len(places) == 0 {
		return ""
	}
	if isInQuery(r.URL, places) {
		return "the param is in the URL's query, which is not searched"
	}
	kind := mediaType(r)
	parsed := parsedForm(r, kind)
	if parsed == nil && atEnd {
		if text := whyEmpty(r.ContentLength, int64(len(read))); text != "" {
			return text
		}
	}
	if kind == "" && r.ContentLength == 0 {
		// No Extractor reads such a body. It is often http.NoBody in a wrapper, such as
		// a MaxBytesReader, and otherwise of a request that is not from net/http.
		return "the request has no body or one without a Content-Type, and the param is in no header that is searched"
	}
	if text := whyNotRead(kind, places); text != "" {
		return text
	}

	names := nameFinder{places: places}
	read = read[:min(len(read), maxExamined)]
	switch {
	case parsed != nil:
		for name, values := range parsed {
			names.consider(name, false, slices.ContainsFunc(values, func(v string) bool { return v != "" }), false)
		}
	case isJSON(kind):
		names.inJSON(read)
	case kind == typeMultipart:
		names.inMultipart(read, r.Header.Get("Content-Type"))
	case bytes.HasPrefix(bytes.TrimLeft(read, " \t\r\n"), []byte("{")):
		return "the body looks like JSON, but its Content-Type is " + typeURLEncoded
	default:
		names.inURLEncoded(string(read))
	}
	if names.why == "" {
		return "the body has no field of a name that is searched"
	}
	return names.why
}

// whyEmpty returns why a body with that Content-Length ended after read bytes, or "" if
// it is whole.
func whyEmpty(announced, read int64) string {
	switch {
	case announced > read:
		return "the body was read before it came to the gate"
	case read > 0:
		return ""
	case announced < 0:
		return "the body is empty, or was read before it came to the gate"
	}
	return "the request has no body, and the param is in no header that is searched"
}

// parsedForm returns the form that somebody has parsed before, as fromForm uses it,
// or nil.
func parsedForm(r *http.Request, kind string) url.Values {
	switch {
	case kind == typeURLEncoded && len(r.PostForm) > 0:
		return r.PostForm
	case kind == typeMultipart && r.MultipartForm != nil:
		return r.MultipartForm.Value
	}
	return nil
}

// commonTypes are media types that a page or a client sends by mistake. A type is
// named only if it is one of them, because the client chooses it.
var commonTypes = []string{
	"text/plain", "text/html", "text/xml", "text/json", "application/xml", "application/octet-stream",
	"application/graphql", "application/javascript", "application/x-ndjson", "application/csp-report",
}

// whyNotRead returns why a body of that type is not searched, or "" if it is.
func whyNotRead(kind string, places []*place) string {
	isForm := kind == typeURLEncoded || kind == typeMultipart
	inBody := false
	for _, p := range places {
		if p.form && isForm || p.json && isJSON(kind) {
			return ""
		}
		inBody = inBody || p.form || p.json
	}
	switch {
	case !inBody:
		return "the param is in no header that is searched, and FromHeader does not search the body"
	case kind == "":
		return "the body has no Content-Type"
	case isForm:
		return "the body is a form, which FromJSON does not search"
	case isJSON(kind):
		return "the body is JSON, which FromForm does not search"
	case slices.Contains(commonTypes, kind):
		return "the body is " + kind + ", which is neither a form nor JSON"
	}
	return "the body's Content-Type is neither that of a form nor that of JSON"
}

// isInQuery reports whether the query of u has the param.
func isInQuery(u *url.URL, places []*place) bool {
	if u == nil {
		return false
	}
	names := nameFinder{places: places}
	names.inURLEncoded(u.RawQuery[:min(len(u.RawQuery), maxExaminedQuery)])
	return names.hasValue
}

// A nameFinder compares the names in a body with those that are searched.
type nameFinder struct {
	places   []*place
	why      string // the param is missing
	hasValue bool   // a name that is searched, or one like it, has a value
}

// consider takes one name into account. isDeep says that it is not at the top of the
// JSON, hasValue that its value is not empty, and isFile that the value is a file.
func (f *nameFinder) consider(name string, isDeep, hasValue, isFile bool) {
	field, isPointer := f.fieldLike(name)
	if field == "" {
		return
	}
	f.hasValue = f.hasValue || hasValue
	switch {
	case f.why != "":
	case isFile:
		f.why = "the field is a file"
	case name != field:
		f.why = "the body has a field like " + printable(field, 64) + ", but its name is spelled differently"
	case isDeep || isPointer:
		f.why = "the field is elsewhere in the JSON: name its place by a JSON Pointer"
	case !hasValue:
		f.why = "the field is empty"
	}
}

// fieldLike returns the name that is searched and is name, or else is spelled in a
// similar way, and whether it is the last one of a JSON Pointer. It returns "" if
// there is none.
func (f *nameFinder) fieldLike(name string) (field string, isPointer bool) {
	inner := innermost(name)
	if inner == "" {
		return "", false
	}
	for _, p := range f.places {
		if p.header != "" && spelledLike(inner, p.header) {
			field, isPointer = p.header, false
		}
		for _, wanted := range p.fields {
			last := wanted[strings.LastIndexByte(wanted, '/')+1:]
			if last == "" || !spelledLike(inner, last) {
				continue
			}
			field, isPointer = last, last != wanted
			if name == last {
				return field, isPointer
			}
		}
	}
	return field, isPointer
}

// innermost returns the last name in one such as user[captcha] or user.captcha.
func innermost(name string) string {
	name = strings.TrimRight(name, "]")
	return name[strings.LastIndexAny(name, "[.")+1:]
}

// spelledLike reports whether a and b differ in nothing but the case of letters and in
// separators. It allocates nothing and ends at the first difference, because a client
// chooses how many names there are.
func spelledLike(a, b string) bool {
	for {
		a, b = trimSeparators(a), trimSeparators(b)
		if a == "" || b == "" {
			return a == b
		}
		if lower(a[0]) != lower(b[0]) {
			return false
		}
		a, b = a[1:], b[1:]
	}
}

// trimSeparators does what strings.TrimLeft does, which takes much longer because it
// first makes a set.
func trimSeparators(s string) string {
	for s != "" && (s[0] == '_' || s[0] == '-' || s[0] == ' ') {
		s = s[1:]
	}
	return s
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

func (f *nameFinder) inURLEncoded(form string) {
	for pair := range strings.SplitSeq(form, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if unescaped, err := url.QueryUnescape(name); err == nil {
			f.consider(unescaped, false, value != "", false)
		}
	}
}

func (f *nameFinder) inJSON(text []byte) {
	in := jsontext.NewDecoder(bytes.NewReader(text))
	for {
		token, err := in.ReadToken()
		if err != nil {
			return // the end, or where the text was cut off
		}
		kind, count := in.StackIndex(in.StackDepth())
		if kind == jsontext.KindBeginObject && count%2 == 1 && token.Kind() == jsontext.KindString {
			name, isDeep := token.String(), in.StackDepth() > 1
			next := in.PeekKind()
			if next == jsontext.KindString && !isDeep {
				value, err := in.ReadToken()
				f.consider(name, isDeep, err != nil || value.String() != "", false)
				continue
			}
			f.consider(name, isDeep, true, false)
		}
	}
}

func (f *nameFinder) inMultipart(text []byte, contentType string) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return
	}
	parts := multipart.NewReader(bytes.NewReader(text), params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err != nil {
			return // the end, or where the text was cut off
		}
		n, _ := io.ReadFull(part, make([]byte, 1))
		f.consider(part.FormName(), false, n > 0, part.FileName() != "")
	}
}
