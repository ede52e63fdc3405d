package alicaptcha_test

import (
	"log/slog"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// New warns of a limit on open files in which MaxConcurrent does not fit. The limit can
// only be lowered, so that another process is tried.
func TestNewWarnsOfDescriptors(t *testing.T) {
	if os.Getenv("ALICAPTCHA_TEST_DESCRIPTORS") != "" {
		for _, most := range []int{1, 32, 33, 256, 1 << 40} {
			log := new(logbook)
			newMiddleware(t, alicaptcha.Config{Verifier: passing(), MaxConcurrent: most, Logger: slog.New(log)})
			t.Logf("%d: %q", most, log.String())
		}
		return
	}
	const run = `ulimit -n 128 && exec "$0" -test.v -test.run '^TestNewWarnsOfDescriptors$'`
	child := exec.Command("sh", "-c", run, os.Args[0])
	child.Env = append(os.Environ(), "ALICAPTCHA_TEST_DESCRIPTORS=1")
	out, err := child.CombinedOutput()
	require.NoError(t, err, "%s", out)
	const warning = `"WARN captcha: the limit on open files (RLIMIT_NOFILE) is too low for Config.MaxConcurrent ` +
		`captcha.descriptors=128 captcha.max_concurrent=`
	require.Contains(t, string(out), `1: ""`)
	require.Contains(t, string(out), `32: ""`)
	for _, most := range []string{"33", "256", "1099511627776"} {
		require.Contains(t, string(out), most+": "+warning+most)
	}
}
