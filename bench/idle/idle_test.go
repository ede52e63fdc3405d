package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/bench/internal/loopback"
)

func TestMain(m *testing.M) {
	forget, err := loopback.Only()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	forget()
	os.Exit(code)
}

// Fewer calls: no param comes twice. How many are lost depends on what else the machine does.
func TestIdle(t *testing.T) {
	require.NoError(t, run(2000, false))
}
