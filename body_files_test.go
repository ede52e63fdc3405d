package alicaptcha_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// tempFiles gives the test a directory for temporary files, and returns how many
// there are in it.
func tempFiles(t *testing.T) func() int {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	return func() int {
		files, err := os.ReadDir(dir)
		require.NoError(t, err)
		return len(files)
	}
}

// uploadRequest is a body with a file that is longer than the memory that the tests
// give to ParseMultipartForm.
func uploadRequest(size int) string {
	return formPart(`name="captchaVerifyParam"`, "x") +
		formPart(`name="up"; filename="u.bin"`, strings.Repeat("u", size)) + formEnd
}

func TestExtractTemporaryFilesOfExtractor(t *testing.T) {
	count := tempFiles(t)
	var made int
	parses := func(value string, err error) alicaptcha.Extractor {
		return func(r *http.Request) (string, error) {
			if err := r.ParseMultipartForm(1); err != nil {
				return "", err
			}
			made = count()
			return value, err
		}
	}
	upload := uploadRequest(64 << 10)
	for _, c := range []struct {
		name       string
		body       string
		extractors []alicaptcha.Extractor
		code       alicaptcha.Code
		made       int
	}{
		{"it finds", upload, []alicaptcha.Extractor{parses("x", nil)}, alicaptcha.T001, 1},
		{"the next one finds", upload,
			[]alicaptcha.Extractor{parses("", nil), alicaptcha.FromForm("captchaVerifyParam")}, alicaptcha.T001, 1},
		{"two of them", upload, []alicaptcha.Extractor{parses("", nil), parses("x", nil)}, alicaptcha.T001, 1},
		{"it fails", upload, []alicaptcha.Extractor{parses("", errBoom)}, alicaptcha.ParamMalformed, 1},
		{"none finds", upload, []alicaptcha.Extractor{parses("", nil)}, alicaptcha.ParamMissing, 1},
		{"the file is too large", uploadRequest(256 << 10), []alicaptcha.Extractor{parses("x", nil)},
			alicaptcha.ParamTooLarge, 0},
	} {
		made = 0
		gate, _ := newGateAndSpy(t, nil, c.extractors...)
		r := bodyRequest(multipartType, strings.NewReader(c.body))
		require.Equal(t, c.code, gate.Check(r).Code, c.name)
		require.Equal(t, c.made, made, "%s: no temporary file, so nothing is tested", c.name)
		require.Zero(t, count(), "%s: a temporary file is left", c.name)
		require.Nil(t, r.MultipartForm, c.name)
		got, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.True(t, c.body == string(got), "%s: the body is another", c.name)
	}
}

// What an outer middleware has parsed is not ours to remove.
func TestExtractTemporaryFilesOfOuter(t *testing.T) {
	count := tempFiles(t)
	gate, verifier := newGateAndSpy(t, nil,
		func(r *http.Request) (string, error) {
			f, _, err := r.FormFile("up")
			if err != nil {
				return "", err
			}
			return "", f.Close()
		},
		alicaptcha.FromForm("captchaVerifyParam"))
	r := bodyRequest(multipartType, strings.NewReader(uploadRequest(64<<10)))
	require.NoError(t, r.ParseMultipartForm(1))
	require.Equal(t, 1, count())
	form := r.MultipartForm
	handled := false
	gate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		handled = true
		f, _, err := r.FormFile("up")
		require.NoError(t, err)
		defer f.Close()
		got, err := io.ReadAll(f)
		require.NoError(t, err)
		require.Len(t, got, 64<<10)
	})).ServeHTTP(httptest.NewRecorder(), r)
	require.True(t, handled)
	require.Equal(t, []string{"x"}, verifier.params())
	require.Same(t, form, r.MultipartForm)
	require.Equal(t, 1, count())
	require.NoError(t, form.RemoveAll())
}

// TestExtractTemporaryFilesOfHandler does after the handler what net/http's
// server does: it removes the files of the request that it made.
func TestExtractTemporaryFilesOfHandler(t *testing.T) {
	count := tempFiles(t)
	for _, deferred := range []bool{false, true} {
		for _, panics := range []bool{false, true} {
			for gates := 1; gates <= 2; gates++ {
				name := fmt.Sprintf("deferred %t, panics %t, gates %d", deferred, panics, gates)
				var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					require.NoError(t, r.ParseMultipartForm(1), name)
					require.Equal(t, 1, count(), "%s: no temporary file, so nothing is tested", name)
					if panics {
						panic(http.ErrAbortHandler)
					}
				})
				gate, _ := newGateAndSpy(t, nil)
				for range gates {
					if deferred {
						handler = gate.Deferred(handler)
					} else {
						handler = gate.Handler(handler)
					}
				}
				r := bodyRequest(multipartType, strings.NewReader(uploadRequest(1<<20)))
				func() {
					defer func() { require.Equal(t, panics, recover() != nil, name) }()
					handler.ServeHTTP(httptest.NewRecorder(), r)
				}()
				require.NotNil(t, r.MultipartForm, "%s: the server does not know of the files", name)
				require.NoError(t, r.MultipartForm.RemoveAll(), name)
				require.Zero(t, count(), name)
			}
		}
	}
}

// An extractor's panic is its author's fault, but not a reason to keep files.
func TestExtractTemporaryFilesOfPanickingExtractor(t *testing.T) {
	count := tempFiles(t)
	gate, verifier := newGateAndSpy(t, nil, func(r *http.Request) (string, error) {
		require.NoError(t, r.ParseMultipartForm(1))
		require.Equal(t, 1, count())
		panic(http.ErrAbortHandler)
	})
	r := bodyRequest(multipartType, strings.NewReader(uploadRequest(64<<10)))
	func() {
		defer func() { require.Equal(t, http.ErrAbortHandler, recover()) }()
		gate.Handler(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), r)
	}()
	require.Empty(t, verifier.params())
	if r.MultipartForm != nil {
		require.NoError(t, r.MultipartForm.RemoveAll()) // as the server does
	}
	require.Zero(t, count(), "a temporary file is left")
}
