package main

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// Fewer runs keep the promises too.
func TestReport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := report{short: true}
		r.write()
		t.Log(r.String())
		require.Empty(t, r.broken)
	})
}
