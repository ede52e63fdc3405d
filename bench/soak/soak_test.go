package main

import (
	"fmt"
	"os"
	"testing"
	"time"

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

// A short soak with a small load keeps every promise but those about time,
// which a busy machine could break.
func TestSoak(t *testing.T) {
	report, err := soak(100, 500*time.Millisecond, false)
	require.NoError(t, err, report)
	require.Contains(t, report, "throttling")
}

// A few of each attack, by which no client gets in, makes the service look as if
// it were out, or leaves anything behind.
func TestAttacks(t *testing.T) {
	report, err := underAttack(true)
	t.Log(report)
	require.NoError(t, err)
}
