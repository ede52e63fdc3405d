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

// A short soak with a small load meets every condition. Conditions on time are not
// checked, since a busy machine could break them.
func TestSoak(t *testing.T) {
	report, err := soak(100, 500*time.Millisecond, false)
	require.NoError(t, err, report)
	require.Contains(t, report, "throttling")
}

// Under a small load, each request has the answer of the Mode that it had.
func TestFlips(t *testing.T) {
	report, err := flips(200, time.Second)
	t.Log(report)
	require.NoError(t, err)
}

// In a short run of each attack, no client is let through, feigns an outage, or leaves
// anything behind.
func TestAttacks(t *testing.T) {
	report, err := underAttack(true)
	t.Log(report)
	require.NoError(t, err)
}
