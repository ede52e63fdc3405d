package docs

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// Each piece of Go in the README is compiled: a program by itself, any other as
// a part of the examples.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	var examples strings.Builder
	for _, file := range []string{
		"../example_test.go", "../example_require_test.go", "../otelalicaptcha/example_test.go",
	} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		examples.Write(text)
	}
	// Without indentation and without the alignment of comments.
	flat := func(code string) string {
		var lines []string
		for line := range strings.Lines(code) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return strings.Join(lines, "\n")
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, blocks)
	for _, block := range blocks {
		code := block[1]
		if strings.HasPrefix(code, "package main") {
			file := filepath.Join(t.TempDir(), "main.go")
			require.NoError(t, os.WriteFile(file, []byte(code), 0o600))
			out, err := exec.Command("go", "vet", file).CombinedOutput()
			require.NoError(t, err, "%s", out)
			continue
		}
		require.Contains(t, flat(examples.String()), flat(code))
	}
}

// The rejection that the README shows is one.
func TestReadmeRejection(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/login", nil)
	alicaptcha.WriteRejection(w, r, alicaptcha.Outcome{Code: alicaptcha.F018})
	require.Contains(t, string(readme), "```json\n"+w.Body.String()+"```")
}

// The figures in the README's table are those of the report.
func TestReadmePerformance(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	report, err := os.ReadFile("performance.md")
	require.NoError(t, err)
	_, section, _ := strings.Cut(string(readme), "\n## Performance\n")
	section, _, _ = strings.Cut(section, "\n## ")
	figures := 0
	for row := range strings.Lines(section) {
		cells := strings.Split(row, "|")
		if len(cells) != 5 {
			continue
		}
		for _, figure := range regexp.MustCompile(`\d[\d.]*( (µs|ms|s|kB|MB)\b)?`).FindAllString(cells[2]+cells[3], -1) {
			figures++
			require.Regexp(t, `[ |]`+regexp.QuoteMeta(figure)+`(\.0)? \|`, string(report), row)
		}
	}
	require.Greater(t, figures, 15)
}
