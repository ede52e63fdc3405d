package docs

import (
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

var docBlock = regexp.MustCompile("(?ms)^ *```([^`\n]*)\n(.*?)^ *```$")

// Each piece of Go in any document is compiled: a program by itself, and anything
// else as a part of a file that the compiler sees. Pieces in other languages are
// in a document in which something tries them.
func TestCode(t *testing.T) {
	t.Parallel()
	var compiled strings.Builder
	files, err := filepath.Glob("../recipes/*/*.go")
	require.NoError(t, err)
	for _, file := range append(files, "examples_test.go", "apps_test.go", "../otelalicaptcha/example_test.go", "../redisalicaptcha/example_test.go") {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		compiled.WriteString(flat(string(text)))
	}
	tried := map[string][]string{
		"README.md":                   {"mermaid", "sh", "html", "js", "json"},                 // .ci/readme, e2e, TestReadmeRejection
		"README.zh-CN.md":             {"mermaid", "sh", "html", "js", "json"},                 // the same as README.md's, by TestReadmeChinese
		"docs/page.md":                {"html", "js"},                                          // e2e
		"docs/apps.md":                {"html", "js", "kotlin", "swift", "ts", "dart", "http"}, // e2e; the others need their platforms
		"docs/testing.md":             {"sh"},                                                  // .ci/readme
		"docs/doctor.md":              {"sh"},
		"docs/proxies.md":             {"sh"},
		"docs/telemetry.md":           {"sh"},
		"docs/operations.md":          {"sh", "text", "promql", "yaml"}, // TestOperationsLog, TestOperationsRoute
		"docs/performance.md":         {"sh"},                           // bench's own test
		"recipes/README.md":           {"sh"},
		"recipes/compose/README.md":   {"sh"},                     // its own test
		"redisalicaptcha/README.md":   {"sh"},                     // go get
		"caddyalicaptcha/README.md":   {"sh", "Caddyfile", "php"}, // its own tests, and xcaddy
		"testdata/scenekey/README.md": {"sh"},                     // .ci/scenekey
		".github/CONTRIBUTING.md":     {"sh"},                     // .ci/run
	}

	pieces := map[string]int{}
	root := os.DirFS("..")
	require.NoError(t, fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path.Ext(name) != ".md" {
			return err
		}
		text, err := fs.ReadFile(root, name)
		require.NoError(t, err)
		blocks := docBlock.FindAllStringSubmatch(string(text), -1)
		require.Equal(t, strings.Count(string(text), "```"), 2*len(blocks), "%s has a block without an end", name)
		for _, block := range blocks {
			language, code := block[1], block[2]
			pieces[language]++
			switch {
			case language != "go":
				require.True(t, slices.Contains(tried[name], language), "%s: nothing tries this %q:\n%s", name, language, code)
			case strings.HasPrefix(code, "package main\n"):
				file := filepath.Join(t.TempDir(), "main.go")
				require.NoError(t, os.WriteFile(file, []byte(code), 0o600))
				out, err := exec.CommandContext(t.Context(), "go", "vet", file).CombinedOutput()
				require.NoError(t, err, "%s: %s", name, out)
				out, err = exec.CommandContext(t.Context(), "gofmt", "-l", file).CombinedOutput()
				require.NoError(t, err, "%s: %s", name, out)
				require.Empty(t, string(out), "%s: a program is not formatted", name)
			default:
				require.True(t, strings.Contains(compiled.String(), flat(code)), "%s: nothing compiles this:\n%s", name, code)
			}
		}
		return nil
	}))
	require.Greater(t, pieces["go"], 30)
}

// flat returns code without indentation and without the alignment of comments.
func flat(code string) string {
	var lines []string
	for line := range strings.Lines(code) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n") + "\n"
}

// Both READMEs can be read in one go.
func TestReadmeLength(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"../README.md", "../README.zh-CN.md"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Less(t, strings.Count(string(text), "\n"), 250, file)
	}
}

// The programs that are shown have the timeouts that operations.md derives.
func TestReadmeTimeouts(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	documented := map[string]string{}
	for _, row := range cells(section(t, "operations.md", "### Timeouts")) {
		if name := names(row[0]); len(name) == 1 {
			documented[name[0]], _, _ = strings.Cut(row[1], " s")
		}
	}
	shown := regexp.MustCompile(`(\w+Timeout): +(\d+) \* time\.Second`).FindAllStringSubmatch(string(readme), -1)
	require.Len(t, shown, 3)
	for _, timeout := range shown {
		require.Equal(t, documented[timeout[1]], timeout[2], timeout[1])
	}
}

// The table of rejections is that of the default Policy.
func TestReadmePolicy(t *testing.T) {
	t.Parallel()
	policy, seen := alicaptcha.DefaultPolicy(), 0
	for _, row := range cells(section(t, "../README.md", "## What is rejected, and how")) {
		for _, code := range regexp.MustCompile(`[TF]\d{3}|[a-z]+(?:_[a-z]+)+|misconfigured|overloaded`).FindAllString(row[0], -1) {
			seen++
			a, known := policy[alicaptcha.Code(code)]
			require.True(t, known, code)
			if a.Allow {
				require.Equal(t, "let through", row[1], code)
				continue
			}
			status := strconv.Itoa(a.Status)
			if a.RetryAfter > 0 {
				status += fmt.Sprintf(", `Retry-After: %d`", int(a.RetryAfter.Seconds()))
			}
			require.Equal(t, status, strings.TrimSuffix(row[1], " without a body"), code)
			require.Equal(t, a.Reason, strings.Trim(row[2], "`"), code)
			require.Equal(t, a.Retry, row[3] == "yes", code)
		}
	}
	require.Equal(t, len(policy), seen)
}

// The rejection that the README shows is one.
func TestReadmeRejection(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/login", nil)
	alicaptcha.WriteRejection(w, r, alicaptcha.Outcome{
		Code: alicaptcha.F018, Reference: "ea1b1f8b-41ef-489f-9b42-e0297a586aa0",
	})
	require.Contains(t, string(readme), "```json\n"+w.Body.String()+"```")
}
