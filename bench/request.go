package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"time"

	"github.com/go-chi/jwtauth/v5"
	"github.com/gorilla/csrf"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// A gate is a middleware in front of a handler. Most gates ask a Verifier.
type gate struct {
	name string
	wrap func(alicaptcha.Verifier, http.Handler) http.Handler
}

const (
	bareName = "bare handler"
	oursName = "alicaptcha"
)

var bareGate = gate{bareName, func(_ alicaptcha.Verifier, next http.Handler) http.Handler { return next }}

// oursGate searches more of a body than the default of 128 KiB. Otherwise it would
// reject a body of 1 MB with the field last.
var oursGate = gate{oursName, func(v alicaptcha.Verifier, next http.Handler) http.Handler {
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: v, SceneID: scene, MaxBodyBytes: 2 << 20, MaxConcurrent: 1000, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(err) // the Config is a constant
	}
	return m.Handler(next)
}}

func readAllGate(name string, decode func(*http.Request, []byte) string) gate {
	return gate{name, func(v alicaptcha.Verifier, next http.Handler) http.Handler {
		return readAll(v, decode, false, next)
	}}
}

// parseFormGate leaves the handler r.PostForm in place of the body.
var parseFormGate = gate{"ParseForm", func(v alicaptcha.Verifier, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ParseForm() != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		verify(v, r.PostForm.Get("captchaVerifyParam"), false, next, w, r)
	})
}}

var parseMultipartGate = gate{"ParseMultipartForm", func(v alicaptcha.Verifier, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ParseMultipartForm(32<<20) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		defer r.MultipartForm.RemoveAll() // in a server, net/http does this
		verify(v, r.PostForm.Get("captchaVerifyParam"), false, next, w, r)
	})
}}

func decodeForm(_ *http.Request, body []byte) string {
	values, err := url.ParseQuery(string(body))
	if err != nil {
		return ""
	}
	return values.Get("captchaVerifyParam")
}

func decodeMultipart(r *http.Request, body []byte) string {
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	form, err := multipart.NewReader(bytes.NewReader(body), params["boundary"]).ReadForm(32 << 20)
	if err != nil {
		return ""
	}
	defer form.RemoveAll()
	return strings.Join(form.Value["captchaVerifyParam"], "")
}

var secret = []byte("0123456789abcdef0123456789abcdef")

var tokens = jwtauth.New("HS256", secret, nil)

// The yardsticks check something other than a captcha.
var yardsticks = []gate{
	{"gorilla/csrf", func(_ alicaptcha.Verifier, next http.Handler) http.Handler { return csrf.Protect(secret)(next) }},
	{"go-chi/jwtauth", func(_ alicaptcha.Verifier, next http.Handler) http.Handler {
		return jwtauth.Verifier(tokens)(jwtauth.Authenticator(tokens)(next))
	}},
	{"CrossOriginProtection", func(_ alicaptcha.Verifier, next http.Handler) http.Handler {
		return http.NewCrossOriginProtection().Handler(next)
	}},
}

// A request is a request that a client sends repeatedly.
type request struct {
	header http.Header
	body   string
}

// stream is a body that, like that of a server, has no shortcut for io.Copy.
type stream struct{ io.Reader }

func (stream) Close() error { return nil }

// A sink is a ResponseWriter that keeps only the status.
type sink struct {
	header http.Header
	status int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
func (s *sink) WriteHeader(status int)      { s.status = status }

// through returns an operation that sends q through h, and the sink of its answers. The
// operation must not run concurrently with itself.
func (q request) through(h http.Handler) (operation func(), answer *sink) {
	template := httptest.NewRequest(http.MethodPost, "https://127.0.0.1/login", nil)
	template.Header = q.header
	template.ContentLength = int64(len(q.body))
	answer = &sink{header: make(http.Header)}
	return func() {
		r := *template
		r.Body = stream{strings.NewReader(q.body)}
		clear(answer.header)
		answer.status = http.StatusOK
		h.ServeHTTP(answer, &r)
	}, answer
}

var (
	reads  = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	enters = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
)

// jsonBody and formBody have size bytes with the param first or last.
func jsonBody(size int, param string, first bool) request {
	field := fmt.Sprintf(`"captchaVerifyParam":%q`, param)
	return request{http.Header{"Content-Type": {"application/json"}},
		fill(size, "{", field, ",", `"username":"alice","password":"correct-horse","profile":"`, `"`, "}", first)}
}

func formBody(size int, param string, first bool) request {
	field := "captchaVerifyParam=" + url.QueryEscape(param)
	return request{http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		fill(size, "", field, "&", "username=alice&password=correct-horse&profile=", "", "", first)}
}

func fill(size int, open, field, comma, rest, end, closing string, first bool) string {
	room := size - len(open+field+comma+rest+end+closing)
	rest += strings.Repeat("x", room) + end
	if first {
		return open + field + comma + rest + closing
	}
	return open + rest + comma + field + closing
}

// v3 is a param with the length of a V3 param.
var v3 = strings.Repeat("p", 280)

// A row is a request and the gates through which it is sent.
type row struct {
	name    string
	request request
	gates   []gate
}

func rows() ([]row, error) {
	readJSON := readAllGate("read-all", decodeJSON)
	var all []row
	for _, size := range []struct {
		name  string
		bytes int
	}{{"0.5 KB", 512}, {"4 KB", 4 << 10}, {"64 KB", 64 << 10}, {"1 MB", 1 << 20}} {
		for _, place := range []string{"first", "last"} {
			all = append(all, row{"JSON, " + size.name + ", " + place, jsonBody(size.bytes, v3, place == "first"),
				[]gate{bareGate, oursGate, readJSON}})
		}
	}
	readForm := readAllGate("read-all", decodeForm)
	for _, size := range []struct {
		name  string
		bytes int
	}{{"0.5 KB", 512}, {"4 KB", 4 << 10}} {
		for _, place := range []string{"first", "last"} {
			all = append(all, row{"urlencoded, " + size.name + ", " + place, formBody(size.bytes, v3, place == "first"),
				[]gate{bareGate, oursGate, parseFormGate, readForm}})
		}
	}
	header, err := headerRequest()
	return append(all, row{"header, JSON of 4 KB", header, append([]gate{bareGate, oursGate}, yardsticks...)}), err
}

// headerRequest returns a request with the headers that each of the gates requires.
func headerRequest() (request, error) {
	q := jsonBody(4<<10, "", false)
	q.header.Set("Captcha-Verify-Param", v3)
	q.header.Set("Sec-Fetch-Site", "same-origin")
	q.header.Set("Origin", "https://127.0.0.1")
	q.header.Set("Referer", "https://127.0.0.1/")
	_, token, err := tokens.Encode(map[string]any{"sub": "alice"})
	if err != nil {
		return request{}, err
	}
	q.header.Set("Authorization", "Bearer "+token)

	// gorilla/csrf sends its token and its cookie with the page that has the form.
	page := httptest.NewRecorder()
	csrf.Protect(secret)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		q.header.Set("X-CSRF-Token", csrf.Token(r))
	})).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "https://127.0.0.1/", nil))
	for _, cookie := range page.Result().Cookies() {
		q.header.Add("Cookie", cookie.Name+"="+cookie.Value)
	}
	return q, nil
}

func (b *bench) requestCost() error {
	// There are many short rounds, so that even on a busy machine the best of them is undisturbed.
	rounds, each := b.few(31, 2), b.each/5
	b.print("## Request cost\n\n"+
		"What a gate adds to a request that is in memory, with a Verifier that answers at once. The handler reads the "+
		"body to its end; the body can be read and no more, as net/http's. “Until the handler” is the same without "+
		"the handler's reading. read-all is `io.ReadAll`, decode, put back. Medians of %d rounds, and the best of "+
		"them; all but the bare handler's own are less the bare handler.\n\n", rounds)
	b.print("| request, the field's place | gate | time | best | until the handler | bytes | allocations |\n" +
		"|---|---|--:|--:|--:|--:|--:|\n")
	all, err := rows()
	if err != nil {
		return err
	}
	added := make(map[string]cost) // by the best of the rounds
	until := make(map[string]float64)
	for _, row := range all {
		var reading, entering []contender
		for _, g := range row.gates {
			operation, _ := row.request.through(g.wrap(alicaptchatest.Passing(), reads))
			reading = append(reading, contender{g.name, operation})
			operation, _ = row.request.through(g.wrap(alicaptchatest.Passing(), enters))
			entering = append(entering, contender{g.name, operation})
		}
		read, entered := compare(rounds, each, reading), compare(rounds, each, entering)
		for _, g := range row.gates {
			mid, best, toHandler := read[g.name].median(), read[g.name].best(), entered[g.name].median().ns
			if g.name != bareName {
				mid, best = mid.less(read[bareName].median()), best.less(read[bareName].best())
				toHandler -= entered[bareName].median().ns
			}
			added[row.name+g.name] = best
			until[row.name+g.name] = entered[g.name].best().ns - entered[bareName].best().ns
			b.print("| %s | %s | %s | %s | %s | %s | %.1f |\n", row.name, g.name,
				showTime(mid.ns), showTime(best.ns), showTime(toHandler), showBytes(mid.bytes), mid.allocs)
		}
	}
	b.print("\ngorilla/csrf, go-chi/jwtauth and CrossOriginProtection check other things than a captcha and are a " +
		"yardstick. ParseForm leaves the handler a form in place of the body. MaxBodyBytes is raised for 1 MB with the " +
		"field last, else a rejection.\n\n")

	most := 0.0
	for _, size := range []string{"0.5 KB", "4 KB", "64 KB", "1 MB"} {
		most = max(most, added["JSON, "+size+", first"+oursName].allocs)
	}
	for _, last := range []string{"0.5 KB", "4 KB"} {
		most = max(most, added["JSON, "+last+", last"+oursName].allocs)
	}
	most = math.Floor(most) // as in go test; the fraction comes from pools that the garbage collector has emptied
	b.target("a login adds at most 10 allocations", most, "%.0f", most <= 10)
	for _, t := range []struct {
		size string
		most float64
	}{{"0.5 KB", 0.55}, {"4 KB", 0.15}, {"64 KB", 0.02}} {
		key := "JSON, " + t.size + ", first"
		share := added[key+oursName].ns / added[key+"read-all"].ns
		b.target(fmt.Sprintf("%s, field first: at most %g of read-all's time", t.size, t.most),
			share, "%.3f", share <= t.most)
	}
	share := 0.0
	for _, place := range []string{"first", "last"} {
		key := "urlencoded, 0.5 KB, " + place
		share = max(share, added[key+oursName].ns/added[key+"ParseForm"].ns)
	}
	b.target("urlencoded, 0.5 KB: at most 0.9 of ParseForm's time", share, "%.3f", share <= 0.9)
	growth := until["JSON, 1 MB, first"+oursName] / until["JSON, 4 KB, first"+oursName]
	b.target("1 MB, field first: within 2 times of 4 KB (until the handler)", growth, "%.2f", growth <= 2)
	return b.upload()
}

const uploadSize = 50 << 20

// An upload is a multipart body with the field of the param before a file, which is
// generated while it is read. It monitors the heap.
type upload struct {
	head, tail string
	size, at   int64 // of the whole body and of what has been read, in bytes
	peak       uint64
	next       int64 // the position at which the heap is measured again
}

func newUpload(size int64) (*upload, http.Header) {
	const boundary = "a-boundary-of-some-length"
	u := &upload{
		head: "--" + boundary + "\r\n" +
			"Content-Disposition: form-data; name=\"captchaVerifyParam\"\r\n\r\n" + v3 + "\r\n" +
			"--" + boundary + "\r\n" +
			"Content-Disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n" +
			"Content-Type: application/octet-stream\r\n\r\n",
		tail: "\r\n--" + boundary + "--\r\n",
		size: size,
	}
	return u, http.Header{"Content-Type": {"multipart/form-data; boundary=" + boundary}}
}

func (u *upload) Read(p []byte) (int, error) {
	if u.at >= u.next {
		u.look()
		u.next += 1 << 20
	}
	if u.at == u.size {
		return 0, io.EOF
	}
	end := u.size - int64(len(u.tail)) // the end of the file
	n := 0
	switch {
	case u.at < int64(len(u.head)):
		n = copy(p, u.head[u.at:])
	case u.at < end:
		n = int(min(int64(len(p)), end-u.at))
		clear(p[:n])
	default:
		n = copy(p, u.tail[u.at-end:])
	}
	u.at += int64(n)
	return n, nil
}

func (u *upload) Close() error { return nil }

func (u *upload) look() {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	u.peak = max(u.peak, mem.HeapAlloc)
}

// An uploaded is the result of one upload.
type uploaded struct{ total, entered, readBefore, heap float64 }

func sendUpload(g gate, size int64) (uploaded, error) {
	u, header := newUpload(size)
	var found uploaded
	var start time.Time
	calls := 0
	h := g.wrap(alicaptchatest.Passing(), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		calls++
		found.entered, found.readBefore = float64(time.Since(start)), float64(u.at)
		u.look()
		io.Copy(io.Discard, r.Body)
		u.look()
	}))
	r := httptest.NewRequest(http.MethodPost, "https://127.0.0.1/upload", nil)
	r.Header, r.Body, r.ContentLength = header, u, size
	w := &sink{header: make(http.Header)}
	var before runtime.MemStats
	runtime.GC()
	runtime.GC() // the second empties pools
	runtime.ReadMemStats(&before)
	start = time.Now()
	h.ServeHTTP(w, r)
	found.total = float64(time.Since(start))
	found.heap = float64(u.peak - min(u.peak, before.HeapAlloc))
	if calls != 1 || u.at != size {
		return uploaded{}, fmt.Errorf("%s: the handler was called %d times and %d of %d bytes were read",
			g.name, calls, u.at, size)
	}
	return found, nil
}

func uploadGates() []gate {
	return []gate{bareGate, oursGate, parseMultipartGate, readAllGate("read-all", decodeMultipart)}
}

func (b *bench) upload() error {
	gates := uploadGates()
	found := make(map[string][]uploaded)
	for round := range b.rounds {
		for _, i := range order(round, len(gates)) {
			one, err := sendUpload(gates[i], uploadSize)
			if err != nil {
				return err
			}
			found[gates[i].name] = append(found[gates[i].name], one)
		}
	}
	b.print("A multipart body of 50 MB, the field before the file, made while it is read; " +
		"the heap is looked at every MB and on entering the handler.\n\n" +
		"| gate | until the handler | read before it | heap added at its peak | the whole request |\n" +
		"|---|--:|--:|--:|--:|\n")
	for _, g := range gates {
		part := func(of func(uploaded) float64) float64 { return medianOf(found[g.name], of) }
		b.print("| %s | %s | %s | %s | %s |\n", g.name, showTime(part(func(u uploaded) float64 { return u.entered })),
			showBytes(part(func(u uploaded) float64 { return u.readBefore })),
			showBytes(part(func(u uploaded) float64 { return u.heap })),
			showTime(part(func(u uploaded) float64 { return u.total })))
	}
	b.print("\n")
	read, heap := 0.0, 0.0
	for _, u := range found[oursName] {
		read, heap = max(read, u.readBefore), max(heap, u.heap)
	}
	b.target("50 MB upload: the handler is entered before 1 % is read",
		100*read/uploadSize, "%.3f %%", read < uploadSize/100)
	b.target("50 MB upload: under 1 MB of heap added", heap/1e6, "%.3f MB", heap < 1e6)
	return nil
}
