package alicaptcha

import (
	"net/http"
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

func TestIsNil(t *testing.T) {
	t.Parallel()
	for _, v := range []any{
		nil, (*int)(nil), (func())(nil), map[string]int(nil), chan int(nil), []int(nil), http.Header(nil), (*Client)(nil),
	} {
		require.True(t, isNil(v), "%T", v)
	}
	for _, v := range []any{
		new(int), func() {}, map[string]int{}, make(chan int), []int{}, http.Header{}, new(Client),
		struct{}{}, never{}, [1]*int{}, 0, "", false, Code(""), struct{ p *int }{},
	} {
		require.False(t, isNil(v), "%T", v)
	}
}
