package alicaptcha

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What may not be opened is not, whatever the Policy and the default say.
func TestActionWithoutOpening(t *testing.T) {
	t.Parallel()
	open := Policy{}
	for c := range codes {
		open[c] = Allow()
	}
	for _, p := range []Policy{nil, open} {
		for c := range codes {
			a := p.action(c, nil)
			require.False(t, a.Allow, c)
			require.GreaterOrEqual(t, a.Status, 400, c)
		}
	}
}
