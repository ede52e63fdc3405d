package docs

import (
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// Each link in the documents leads to a file, and to a heading in it. Links to
// other sites are checked for their form only.
func TestDocsLinks(t *testing.T) {
	t.Parallel()
	links, faults := docLinks(os.DirFS(".."))
	require.Empty(t, faults)
	require.Greater(t, links, 20)
}

var (
	docCode    = regexp.MustCompile("`[^`]*`")
	docHeading = regexp.MustCompile(`^#{1,6} +(.*?)( +#+)? *$`)
	docText    = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`) // of a link
	docLink    = regexp.MustCompile(`\]\(([^)]*)\)|^ {0,3}\[[^\]]+\]: *(.*)|(?:href|src)="([^"]*)"|<(https?:[^>]*)>`)
	docLine    = regexp.MustCompile(`^L[0-9]+(-L[0-9]+)?$`)
)

// docLinks returns how many links the Markdown files in tree have, and what is
// wrong with them.
func docLinks(tree fs.FS) (links int, faults []string) {
	lines := map[string][]string{}          // of each document, without code
	anchors := map[string]map[string]bool{} // of each document, as GitHub makes them
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() && entry.Name() == ".git" {
			return errOr(err, fs.SkipDir)
		}
		if entry.IsDir() || path.Ext(name) != ".md" {
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		anchors[name] = map[string]bool{}
		fenced := false
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\r\n")
			if strings.HasPrefix(strings.TrimSpace(line), "```") {
				fenced = !fenced
				continue
			}
			if fenced {
				continue
			}
			if heading := docHeading.FindStringSubmatch(line); heading != nil {
				anchor := docAnchor(heading[1])
				for n := 1; anchors[name][anchor]; n++ {
					anchor = docAnchor(heading[1]) + "-" + strconv.Itoa(n)
				}
				anchors[name][anchor] = true
			}
			lines[name] = append(lines[name], docCode.ReplaceAllString(line, "code"))
		}
		return nil
	})
	if err != nil {
		return 0, []string{err.Error()}
	}

	for name := range anchors {
		for _, line := range lines[name] {
			for _, match := range docLink.FindAllStringSubmatch(line, -1) {
				links++
				target := strings.Join(match[1:], "")
				if fault := docFault(tree, anchors, name, target); fault != "" {
					faults = append(faults, fmt.Sprintf("%s: %q %s", name, target, fault))
				}
			}
		}
	}
	slices.Sort(faults)
	return links, faults
}

// docFault returns what is wrong with a link to target in the document name, or
// nothing.
func docFault(tree fs.FS, anchors map[string]map[string]bool, name, target string) string {
	u, err := url.Parse(target)
	switch {
	case err != nil, target == "", strings.ContainsFunc(target, unicode.IsSpace):
		return "is not a URL"
	case u.Scheme != "" || u.Host != "":
		if u.Scheme != "https" || !strings.Contains(u.Hostname(), ".") {
			return "is not an https URL"
		}
		return ""
	}
	file := name
	if u.Path != "" {
		file = path.Join(path.Dir(name), u.Path)
	}
	if _, err := fs.Stat(tree, file); err != nil || path.IsAbs(u.Path) {
		return "leads to no file"
	}
	if u.Fragment != "" && !anchors[file][u.Fragment] && (path.Ext(file) == ".md" || !docLine.MatchString(u.Fragment)) {
		return "leads to no heading"
	}
	return ""
}

// docAnchor returns the anchor that GitHub gives to a heading.
func docAnchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r) || unicode.IsMark(r):
			return unicode.ToLower(r)
		}
		return -1
	}, docText.ReplaceAllString(heading, "$1"))
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// The check of the links finds what it is for.
func TestDocsLinksFaults(t *testing.T) {
	t.Parallel()
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	links, faults := docLinks(fstest.MapFS{
		"README.md": file("# The `Code`, or [more](docs/a.md)\n## 说明：代码\n## Twice\n## Twice\n" +
			"[a](docs/a.md) [b](docs/a.md#one-two) [c](#the-code-or-more) [d](#说明代码) [e](#twice-1) [f](go.mod#L3) " +
			"[g](docs) ![h](https://example.com/x.png)\n" +
			"[ref]: docs/a.md#one-two\n<https://example.com>\n`[code](nowhere)`\n```\n[code](nowhere)\n# no-heading\n```\n"),
		"docs/a.md": file("# One: two!\n[up](../README.md#twice) [same](#one-two)\n"),
		"go.mod":    file("module x\n"),
	})
	require.Empty(t, faults)
	require.Equal(t, 13, links)

	for link, fault := range map[string]string{
		"[a](docs/b.md)":               "leads to no file",
		"[a](Docs/a.md)":               "leads to no file",
		"[a](../x.md)":                 "leads to no file",
		"[a](/docs/a.md)":              "leads to no file",
		"[a](docs/a.md#two)":           "leads to no heading",
		"[a](#One)":                    "leads to no heading",
		"[a](#one-1)":                  "leads to no heading",
		"[a](go.mod#one)":              "leads to no heading",
		"[a](docs/a.md#L3)":            "leads to no heading",
		"[a]()":                        "is not a URL",
		"[a](docs/a.md \"x\")":         "is not a URL",
		"[a](https://%zz/)":            "is not a URL",
		"[a](http://example.com)":      "is not an https URL",
		"[a](https://pkg/x)":           "is not an https URL",
		"[a](//example.com)":           "is not an https URL",
		"[a]: docs/b.md":               "leads to no file",
		"<img src=\"docs/b.png\">":     "leads to no file",
		"<http://example.com>":         "is not an https URL",
		"text [`a`](docs/b.md) more":   "leads to no file",
		"| [a](docs/a.md) [b](b.md) |": "leads to no file",
	} {
		_, faults := docLinks(fstest.MapFS{
			"README.md": file("# One\n" + link + "\n"), "docs/a.md": file("# One\n"), "go.mod": file(""),
		})
		require.Len(t, faults, 1, link)
		require.Contains(t, faults[0], fault, link)
	}
}

// section returns the text between the heading and the next of its level.
func section(t *testing.T, file, heading string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	_, rest, found := strings.Cut("\n"+string(text), "\n"+heading+"\n")
	require.True(t, found, "%s has no %q", file, heading)
	level, _, _ := strings.Cut(heading, " ")
	body, _, _ := strings.Cut(rest, "\n"+level+" ")
	return body
}

// cells returns the rows of the tables in text, without their headings.
func cells(text string) (rows [][]string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "|--") {
			rows = rows[:len(rows)-1] // what stands above it is the heading
			continue
		}
		if !strings.HasPrefix(line, "|") {
			continue
		}
		row := strings.Split(strings.Trim(line, "|"), "|")
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		rows = append(rows, row)
	}
	return rows
}

var docName = regexp.MustCompile("`([^`]+)`")

// names returns what stands in backquotes in text.
func names(text string) (found []string) {
	for _, match := range docName.FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	return found
}

// The table in docs/operations.md has each Code once, with what the log and the
// client get by default.
func TestOperationsCodes(t *testing.T) {
	t.Parallel()
	policy := alicaptcha.DefaultPolicy()
	seen := map[alicaptcha.Code]bool{}
	for _, row := range cells(section(t, "operations.md", "## Codes")) {
		if !strings.HasPrefix(row[0], "`") {
			continue // codes to come
		}
		code := alicaptcha.Code(strings.Trim(row[0], "`"))
		a, known := policy[code]
		require.True(t, known, "%s is not a code", code)
		require.False(t, seen[code], "%s has two rows", code)
		seen[code] = true
		require.Len(t, row, 6, code)

		client := "let through"
		if !a.Allow {
			client = strconv.Itoa(a.Status)
			if a.Reason != "" {
				client += " `" + a.Reason + "`"
			}
			if a.Retry {
				client += ", retry"
			}
			if a.RetryAfter != 0 {
				client += fmt.Sprintf(", `Retry-After: %d`", int(a.RetryAfter.Seconds()))
			}
		}
		require.Equal(t, logLevel(t, code), row[1], code)
		require.Equal(t, client, row[2], code)
		for _, cell := range row[3:] { // what it means, who has to act, what to do
			require.NotEmpty(t, cell, code)
		}
	}
	require.Len(t, seen, len(policy), "a code has no row")
}

// logLevel returns the level of the line that the log has for a request that
// ends in code.
func logLevel(t *testing.T, code alicaptcha.Code) string {
	t.Helper()
	var log bytes.Buffer
	gate, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			if len(code) == len("F001") {
				return alicaptcha.Result{Passed: code[0] == 'T', Code: code}, nil
			}
			return alicaptcha.Result{}, &alicaptcha.Error{Code: code}
		}),
		SceneID:       "login",
		MaxParamBytes: 10,
		Logger:        slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	require.NoError(t, err)
	body := `{"captchaVerifyParam":"x"}`
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	switch code {
	case alicaptcha.ParamMissing:
		body = "{}"
	case alicaptcha.ParamMalformed:
		body = "{"
	case alicaptcha.ParamTooLarge:
		body = `{"captchaVerifyParam":"more than 10 bytes"}`
	case alicaptcha.ClientCanceled:
		cancel()
	}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/login", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	require.Equal(t, code, gate.Check(r).Code)
	_, level, _ := strings.Cut(log.String(), "level=")
	level, _, _ = strings.Cut(level, " ")
	return strings.ToLower(level)
}

// The lines and keys of the log that docs/operations.md shows are those of the
// code.
func TestOperationsLog(t *testing.T) {
	t.Parallel()
	var source strings.Builder
	files, err := filepath.Glob("../*.go")
	require.NoError(t, err)
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			source.Write(text)
		}
	}
	literals := func(pattern string) (found []string) {
		for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(source.String(), -1) {
			found = append(found, match[1])
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	keys, messages := literals(`"(captcha\.[a-z_]+)"`), literals(`"(captcha: [^"]+)"`)
	require.Contains(t, keys, "captcha.code")

	log := section(t, "operations.md", "## Logs")
	var documented []string
	for _, row := range cells(log) {
		documented = append(documented, names(row[0])...)
	}
	slices.Sort(documented)
	documented = slices.DeleteFunc(documented, func(key string) bool { return strings.HasPrefix(key, "http.") })
	require.Equal(t, keys, documented)
	for _, message := range names(log) {
		if strings.HasPrefix(message, "captcha: ") {
			require.Contains(t, messages, message)
		}
	}

	_, shown, found := strings.Cut(log, "```text\n")
	require.True(t, found)
	shown, _, _ = strings.Cut(shown, "```")
	value := regexp.MustCompile(`([a-z._]+)=("[^"]*"|\S+)`)
	lines := 0
	for line := range strings.Lines(shown) {
		lines++
		attrs := map[string]string{}
		for _, match := range value.FindAllStringSubmatch(line, -1) {
			attrs[match[1]] = strings.Trim(match[2], `"`)
			if strings.HasPrefix(match[1], "captcha.") {
				require.Contains(t, keys, match[1], line)
			}
		}
		begins := func(m string) bool { return strings.HasPrefix(attrs["msg"], m) }
		require.True(t, slices.ContainsFunc(messages, begins), line)
		if attrs["captcha.description"] != "" {
			require.Equal(t, alicaptcha.Code(attrs["captcha.code"]).Description(), attrs["captcha.description"])
		}
	}
	require.Greater(t, lines, 5)
}

// What SECURITY.md says can never be opened, or only with a bound, New refuses.
func TestSecurityOpenings(t *testing.T) {
	t.Parallel()
	documented := map[string][]string{}
	for _, row := range cells(section(t, "../.github/SECURITY.md", "## What can be opened")) {
		documented[row[0]] = names(row[1])
	}
	opens := func(c alicaptcha.Code, a alicaptcha.Action) bool {
		_, err := alicaptcha.New(alicaptcha.Config{
			Verifier: alicaptchatest.Passing(), SceneID: "login", Policy: alicaptcha.Policy{c: a},
		})
		return err == nil
	}
	var never, bounded []string
	for c := range alicaptcha.DefaultPolicy() {
		switch {
		case opens(c, alicaptcha.Allow()):
		case opens(c, alicaptcha.AllowAtMost(rate.NewLimiter(1, 1))):
			bounded = append(bounded, string(c))
		default:
			never = append(never, string(c))
		}
	}
	require.ElementsMatch(t, never, documented["never"])
	require.ElementsMatch(t, bounded, documented["with a Limiter only"])
}

// Each test that SECURITY.md names as the proof of a claim is there. One of
// another folder has the folder before its name.
func TestSecurityTests(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	root := os.DirFS("..")
	require.NoError(t, fs.WalkDir(root, ".", func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(file, "_test.go") {
			return err
		}
		text, err := fs.ReadFile(root, file)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		folder := ""
		if dir := path.Dir(file); dir != "." {
			folder = dir + "."
		}
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				there[folder+f.Name.Name] = true
			}
		}
		return nil
	}))
	claims := cells(section(t, "../.github/SECURITY.md", "## The tests behind this"))
	require.Greater(t, len(claims), 20)
	for _, claim := range claims {
		require.Len(t, claim, 2)
		tests := names(claim[1])
		require.NotEmpty(t, tests, claim[0])
		for _, test := range tests {
			require.Regexp(t, `^(.*\.)?(Test|Fuzz)[A-Z]`, test)
			require.True(t, there[test], "there is no %s", test)
		}
	}
}

// The bounds of TestBodyMemory are those that the documents give.
func TestOperationsMemory(t *testing.T) {
	source, err := os.ReadFile("../body_replay_test.go")
	require.NoError(t, err)
	rows := cells(section(t, "operations.md", "### Memory"))
	require.Len(t, rows, 3)
	for _, row := range rows {
		var limit, bound int
		var unit string
		_, err := fmt.Sscanf(row[0], "%d KiB", &limit)
		require.NoError(t, err)
		_, err = fmt.Sscanf(row[1], "%d %s", &bound, &unit)
		require.NoError(t, err)
		thousands := map[string]string{"KB": "_000", "MB": "_000_000"}[unit]
		require.True(t, strings.Contains(string(source), fmt.Sprintf("{%d, %d%s},", limit, bound, thousands)), row[0])
	}
	security, err := os.ReadFile("../.github/SECURITY.md")
	require.NoError(t, err)
	require.Contains(t, string(security), "up to "+rows[0][1]+" of memory")
}
