//go:build unix

package main

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Windows cannot send these signals to a process.
func TestStopsOnSignals(t *testing.T) {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			program := exec.CommandContext(t.Context(), os.Args[0], anyPort...)
			program.Env = programEnv(t, nil)
			stdout, err := program.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, program.Start())
			startLines(t, stdout)
			require.NoError(t, program.Process.Signal(sig))
			require.NoError(t, program.Wait())
		})
	}
}
