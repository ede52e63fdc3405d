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

// A path leads to a value in JSON, a token for each level.
type path struct {
	tokens    []string
	isPointer bool // the tokens may also be indices of arrays
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

// decoders saves half of what reading a body allocates. The strings that a
// decoder gives are copies.
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// maxPooledNames is how many names a decoder may have read that goes back to the
// pool. Reset keeps the memory for the names of each level of nesting, so that a
// client could make a decoder hold hundreds of megabytes, a level in each request.
const maxPooledNames = 100

// A jsonFinder looks for a field in a body.
type jsonFinder struct {
	*jsontext.Decoder
	names    int  // read by us
	isNested bool // it has also skipped an object or an array
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
		f.Reset(http.NoBody) // else the pool would hold on to the request
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

// find reads the object or array that comes next, level levels deep, where the
// first tokens of paths have led.
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

// readName reads the name that comes next. It is good until the next read.
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

// follow reports whether one of paths ends at the name, and returns those that
// lead on from it.
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

// findIn reads the value that comes next: the field's if a path ends here, or one
// that may hold it.
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
