package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A short soak with a small load keeps every promise but those about time,
// which a busy machine could break.
func TestSoak(t *testing.T) {
	report, err := soak(100, 500*time.Millisecond, false)
	require.NoError(t, err, report)
	require.Contains(t, report, "throttling")
}
