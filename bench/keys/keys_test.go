package main

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestScenarios(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		synctest.Test(t, func(t *testing.T) {
			row, broken := s.run()
			t.Log(row)
			require.Empty(t, broken)
		})
	}
}
