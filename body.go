package alicaptcha

import (
	"errors"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"sync/atomic"
)

// extract returns the param that the first successful one of extractors finds, or why
// none finds one, if that is known. Whatever the extractors do, it leaves r as if it
// had not been read: r.Body has every byte, and no form is parsed that was not parsed
// before.
//
// While an extractor parses, it holds a place in parsers, except while it waits for
// the client.
func extract(
	r *http.Request, extractors []Extractor, limit int, parsers chan struct{},
) (param, missing string, err error) {
	body := r.Body
	rec := &recording{src: body, limit: min(limit, math.MaxInt-1), size: r.ContentLength, parsers: parsers}
	hasBody := body != nil && body != http.NoBody
	if !hasBody {
		rec.err = io.EOF
	}
	r.Body = rec
	param, err = extractAny(r, extractors)
	if r.Body = body; hasBody {
		r.Body = rec.replay()
	}
	if param == "" && rec.tooLarge != nil {
		err = rec.tooLarge // an extractor may have replaced this error by another, or ignored it
	}
	if param == "" && err == nil {
		parsers <- struct{}{}
		defer func() { <-parsers }()
		if n := rec.placed; n <= len(rec.places) { // else what it says may be wrong
			missing = whyMissing(r, rec.places[:n], rec.buf, rec.err == io.EOF)
		}
	}
	return param, missing, err
}

func extractAny(r *http.Request, extractors []Extractor) (param string, err error) {
	for _, extractor := range extractors {
		if param, err = extractOne(r, extractor); param != "" || err != nil {
			break
		}
	}
	return param, err
}

func extractOne(r *http.Request, extractor Extractor) (string, error) {
	body, form, postForm, multipartForm := r.Body, r.Form, r.PostForm, r.MultipartForm
	// Parsing a multipart form adds values to the present ones.
	r.Form, r.PostForm = maps.Clone(form), maps.Clone(postForm)
	defer func() {
		if parsed := r.MultipartForm; parsed != nil && parsed != multipartForm {
			parsed.RemoveAll() // otherwise its temporary files outlive the request
		}
		r.Body, r.Form, r.PostForm, r.MultipartForm = body, form, postForm, multipartForm
		if rec, ok := body.(*recording); ok && !rec.replaying {
			rec.pos = 0
		}
	}()
	return extractor(r)
}

// A recording is a body that can be read twice. The extractors read at most limit
// bytes of it, which are recorded. The handler then reads the record and the rest of
// src. A handler may keep a recording, so it is not reused.
type recording struct {
	src       io.ReadCloser
	limit     int
	size      int64  // the size that the client announced, which may be false
	buf       []byte // the bytes of src that were recorded; at most limit+1
	pos       int    // the index in buf of the next byte to return
	err       error  // the error with which src ended while recording
	tooLarge  *http.MaxBytesError
	replaying bool
	parsers   chan struct{}
	isParsing bool // it holds a place in parsers whenever it has something to parse
	hasPlace  bool // it holds one now
	places    [4]*place
	placed    int         // how many places were searched, of which places has the first
	closed    atomic.Bool // a handler may call Close during Read, as http.Transport does
}

// replay ends the recording and returns the body for the handler.
func (b *recording) replay() io.ReadCloser {
	if len(b.buf) == 0 && b.err == nil {
		return b.src // no extractor has read it
	}
	b.replaying = true
	return b
}

func (b *recording) Read(p []byte) (int, error) {
	if b.replaying {
		if b.closed.Load() {
			return 0, http.ErrBodyReadAfterClose
		}
		if b.pos == len(b.buf) && b.err == nil {
			return b.src.Read(p)
		}
	} else if b.pos == len(b.buf) && b.pos <= b.limit && b.err == nil && len(p) > 0 {
		b.record()
	}
	end := len(b.buf)
	if !b.replaying {
		end = min(end, b.limit)
	}
	if b.pos < end || len(p) == 0 {
		n := copy(p, b.buf[b.pos:end])
		b.pos += n
		return n, nil
	}
	if end < len(b.buf) {
		b.tooLarge = &http.MaxBytesError{Limit: int64(b.limit)}
		return 0, b.tooLarge
	}
	return 0, b.err
}

// record reads src once. It reads up to one byte more than the limit, to tell a body
// that ends there from a longer one.
func (b *recording) record() {
	if len(b.buf) == cap(b.buf) {
		grown := 2 * len(b.buf)
		if grown == 0 {
			// This is enough for a login, but a false size does not take much memory.
			grown = int(min(max(b.size+1, 512), 4096))
		}
		b.buf = slices.Grow(b.buf, min(grown, b.limit+1)-len(b.buf))
	}
	free := b.buf[len(b.buf):min(cap(b.buf), b.limit+1)]
	n, err := b.readSource(free)
	b.buf = b.buf[:len(b.buf)+n]
	b.err = err
	if err != nil && err != io.EOF {
		b.tooLarge, _ = errors.AsType[*http.MaxBytesError](err) // from an outer http.MaxBytesReader
	}
}

// readSource gives the place in parsers back while it waits for the client.
func (b *recording) readSource(p []byte) (int, error) {
	b.leave()
	if b.isParsing {
		defer b.enter()
	}
	return b.src.Read(p)
}

// searched keeps p for whyMissing.
func (b *recording) searched(p *place) {
	if b.replaying {
		return
	}
	if b.placed < len(b.places) {
		b.places[b.placed] = p
	}
	b.placed++
}

// beginParsing waits for a place in parsers, unless the client has to be waited for
// first.
func (b *recording) beginParsing() {
	b.isParsing = true
	if len(b.buf) > 0 {
		b.enter()
	}
}

func (b *recording) endParsing() {
	b.isParsing = false
	b.leave()
}

// enter waits for a place in parsers, and leave gives it back.
func (b *recording) enter() {
	b.parsers <- struct{}{}
	b.hasPlace = true
}

func (b *recording) leave() {
	if b.hasPlace {
		b.hasPlace = false
		<-b.parsers
	}
}

// Close closes the body for the handler. It has no effect for an extractor.
func (b *recording) Close() error {
	if !b.replaying {
		return nil
	}
	b.closed.Store(true)
	return b.src.Close()
}
