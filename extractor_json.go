package alicaptcha

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// A path denotes a value in a JSON document, by a token for each level.
type path struct {
	tokens    []string
	isPointer bool // the path is a JSON Pointer, whose tokens may be indices of arrays
}

func checkPaths(function string, fields []string) []path {
	var paths []path
	for _, field := range checkFields(function, fields) {
		if !utf8.ValidString(field) {
			panic("alicaptcha: " + function + ": " + strconv.Quote(field) + " is not UTF-8")
		}
		if !strings.HasPrefix(field, "/") {
			paths = append(paths, path{tokens: []string{field}})
			continue
		}
		pointer := jsontext.Pointer(field)
		if !pointer.IsValid() {
			panic("alicaptcha: " + function + ": " + strconv.Quote(field) + " is not a JSON Pointer")
		}
		paths = append(paths, path{slices.Collect(pointer.Tokens()), true})
	}
	return paths
}

// decoders saves half of the memory that reading a body allocates. The strings that
// a decoder returns are copies.
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// A decoder that has read more than maxPooledNames names is not put back into the
// pool. Reset keeps the memory for the names of each level of nesting, so a client
// that sends names at another level in each request could make a decoder hold
// hundreds of megabytes.
const maxPooledNames = 100

// A jsonFinder searches a body for a field.
type jsonFinder struct {
	*jsontext.Decoder
	names    int  // the number of names it has read itself
	isNested bool // it has skipped an object or an array, whose names are not counted
}

func fromJSON(r *http.Request, paths []path) (string, error) {
	body, err := plainBody(r)
	if err != nil {
		return "", err
	}
	if b, ok := r.Body.(parserBody); ok {
		b.beginParsing()
		defer b.endParsing()
	}
	f := jsonFinder{Decoder: decoders.Get().(*jsontext.Decoder)}
	f.Reset(body)
	defer func() {
		if f.isNested || f.names > maxPooledNames {
			return
		}
		f.Reset(http.NoBody) // otherwise the pool retains the request
		decoders.Put(f.Decoder)
	}()

	isPointer := func(p path) bool { return p.isPointer }
	switch kind := f.PeekKind(); {
	case kind == jsontext.KindBeginObject, kind == jsontext.KindBeginArray && slices.ContainsFunc(paths, isPointer):
		return f.find(paths, 0)
	case kind == 0:
		if err := f.SkipValue(); err == io.EOF {
			return "", nil // an empty body
		} else if err != nil {
			return "", bodyError(err)
		}
	}
	return "", errBody
}

// find reads the next value, an object or array, and returns the field in it. The
// first level tokens of paths denote that value.
func (f *jsonFinder) find(paths []path, level int) (string, error) {
	open, err := f.ReadToken()
	if err != nil {
		return "", bodyError(err)
	}
	inArray := open.Kind() == jsontext.KindBeginArray
	for index := 0; ; index++ {
		if kind := f.PeekKind(); kind == jsontext.KindEndObject || kind == jsontext.KindEndArray {
			break
		}
		var name []byte
		if inArray {
			name = strconv.AppendInt(nil, int64(index), 10)
		} else if name, err = f.readName(); err != nil {
			return "", bodyError(err)
		}
		here, deeper := follow(paths, level, name, inArray)
		value, err := f.findIn(here, deeper, level)
		if value != "" || err != nil {
			return value, err
		}
	}
	if _, err := f.ReadToken(); err != nil {
		return "", bodyError(err)
	}
	return "", nil
}

// readName reads the next name. It is valid until the next read.
func (f *jsonFinder) readName() ([]byte, error) {
	f.names++
	name, err := f.ReadValue()
	if err != nil {
		return nil, err
	}
	if bytes.IndexByte(name, '\\') >= 0 {
		return jsontext.AppendUnquote(nil, name)
	}
	return name[1 : len(name)-1], nil
}

// follow reports whether one of paths ends at the name, and returns the paths that
// continue after it.
func follow(paths []path, level int, name []byte, inArray bool) (here bool, deeper []path) {
	for _, p := range paths {
		switch {
		case p.tokens[level] != string(name) || inArray && !p.isPointer:
		case len(p.tokens) == level+1:
			here = true
		default:
			deeper = append(deeper, p)
		}
	}
	return here, deeper
}

// findIn reads the next value. The value is the field if here is true. It may
// contain the field if deeper is not empty.
func (f *jsonFinder) findIn(here bool, deeper []path, level int) (string, error) {
	var err error
	switch kind := f.PeekKind(); {
	case here && kind == jsontext.KindString:
		var token jsontext.Token
		if token, err = f.ReadToken(); err == nil {
			return token.String(), nil
		}
	case deeper != nil && (kind == jsontext.KindBeginObject || kind == jsontext.KindBeginArray):
		return f.find(deeper, level+1)
	case here && kind != 0:
		return "", errValue
	default:
		f.isNested = f.isNested || kind == jsontext.KindBeginObject || kind == jsontext.KindBeginArray
		err = f.SkipValue()
	}
	if err != nil {
		return "", bodyError(err)
	}
	return "", nil
}
