package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

// The tests of the root module pass for those who depend on it. What they get is
// a zip file of the module, without the modules in its folders.
func TestConsumer(t *testing.T) {
	root := module.Version{Path: "github.com/alicaptcha/alicaptcha", Version: "v0.0.0-test"}
	proxy := t.TempDir()
	files := filepath.Join(proxy, root.Path, "@v", root.Version)
	require.NoError(t, os.MkdirAll(filepath.Dir(files), 0o700))
	require.NoError(t, os.WriteFile(files+".info", []byte(`{"Version":"`+root.Version+`"}`), 0o600))
	mod, err := os.ReadFile("../go.mod")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(files+".mod", mod, 0o600))
	archive, err := os.Create(files + ".zip")
	require.NoError(t, err)
	require.NoError(t, zip.CreateFromDir(archive, root, ".."))
	require.NoError(t, archive.Close())

	// The consumer has a module cache of its own, for which the usual one is a
	// proxy, too. The sums of all but the root are in the root's go.sum.
	consumer := t.TempDir()
	sums, err := os.ReadFile("../go.sum")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(consumer, "go.sum"), sums, 0o600))
	ambient, err := exec.CommandContext(t.Context(), "go", "env", "GOMODCACHE", "GOPROXY").Output()
	require.NoError(t, err)
	cache, proxies, _ := strings.Cut(strings.TrimSpace(string(ambient)), "\n")
	env := append(os.Environ(),
		"GOMODCACHE="+t.TempDir(),
		"GOPROXY=file://"+proxy+",file://"+cache+"/cache/download,"+proxies,
		"GONOPROXY=none",
		"GONOSUMDB="+root.Path,
		"GOFLAGS=-mod=mod -modcacherw",
		"GOWORK=off",
	)
	var out []byte
	for _, args := range [][]string{
		{"mod", "init", "example.com/consumer"},
		{"get", root.String()},
		{"test", root.Path + "/..."},
	} {
		command := exec.CommandContext(t.Context(), "go", args...)
		command.Dir, command.Env = consumer, env
		out, err = command.CombinedOutput()
		require.NoError(t, err, "go %s\n%s", strings.Join(args, " "), out)
	}
	require.Contains(t, string(out), "ok  \t"+root.Path+"/alicaptchatest\t")
}

// An app that has versions of chi and testify of its own, which are not new,
// keeps them when it adds the module.
func TestConsumerKeepsItsVersions(t *testing.T) {
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	sums, err := os.ReadFile("../go.sum")
	require.NoError(t, err)
	app := t.TempDir()
	for name, content := range map[string]string{
		"go.mod": "module example.com/app\n\ngo 1.26.0\n\nrequire (\n" +
			"\tgithub.com/alicaptcha/alicaptcha v0.0.0\n" +
			"\tgithub.com/go-chi/chi/v5 v5.0.12\n\tgithub.com/stretchr/testify v1.9.0\n)\n\n" +
			"replace github.com/alicaptcha/alicaptcha => " + root + "\n",
		"go.sum": string(sums),
		"main.go": `package main

import (
	"github.com/alicaptcha/alicaptcha"
	"github.com/go-chi/chi/v5"
)

func main() { chi.NewRouter().Use((*alicaptcha.Middleware)(nil).Handler) }
`,
		"main_test.go": `package main

import (
	"testing"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/stretchr/testify/require"
)

func Test(t *testing.T) { require.NotNil(t, alicaptchatest.Passing()) }
`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(app, name), []byte(content), 0o600))
	}
	var out []byte
	for _, args := range [][]string{
		{"mod", "tidy"}, {"vet", "./..."},
		{"list", "-m", "github.com/go-chi/chi/v5", "github.com/stretchr/testify"},
	} {
		command := exec.CommandContext(t.Context(), "go", args...)
		command.Dir, command.Env = app, append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
		out, err = command.CombinedOutput()
		require.NoError(t, err, "go %s\n%s", strings.Join(args, " "), out)
	}
	require.Equal(t, "github.com/go-chi/chi/v5 v5.0.12\ngithub.com/stretchr/testify v1.9.0\n", string(out))
}
