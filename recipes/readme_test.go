package recipes_test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each piece of Go in the README stands word by word in a file that the
// compiler has seen.
func TestReadme(t *testing.T) {
	const files = `{{$dir := .Dir}}{{range .GoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end}}`
	out, err := exec.Command("go", "list", "-f", files, "./...").Output()
	require.NoError(t, err)
	var sources []string
	for name := range strings.Lines(string(out)) {
		source, err := os.ReadFile(strings.TrimSpace(name))
		require.NoError(t, err)
		sources = append(sources, string(source))
	}

	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, blocks)
	require.Len(t, blocks, strings.Count(string(readme), "```go"), "a block without an end")
	for _, block := range blocks {
		found := false
		for _, source := range sources {
			found = found || strings.Contains(source, block[1])
		}
		require.True(t, found, "not in the code:\n%s", block[1])
	}
}
