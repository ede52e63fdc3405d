package alicaptcha

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Each row of the table of the service's codes can be reached, and has a check and
// a remedy.
func TestServiceCodes(t *testing.T) {
	t.Parallel()
	for _, row := range serviceCodes {
		known, ok := lookUp(row.prefix)
		require.True(t, ok)
		require.Equal(t, row, known, "an earlier row hides %s", row.prefix)
		require.NotEmpty(t, row.check)
		e := &Error{Code: row.code, ServiceCode: row.prefix + ".More"}
		require.Equal(t, row.remedy, e.Remedy())
		require.NotEmpty(t, row.remedy)
	}
	_, ok := lookUp("Success")
	require.False(t, ok)
	require.Empty(t, (*Error)(nil).Remedy())
	for _, own := range []safeError{
		errBreakerOpen, errNoBreaker, errNoClient, errNoMiddleware, errNoScene, errNoVerdict, errPanicked,
	} {
		e := &Error{Code: ServiceUnavailable, Err: own}
		require.NotEmpty(t, ownRemedies[own.text])
		require.Equal(t, ownRemedies[own.text], e.Remedy())
	}
	require.NotEmpty(t, (&Error{Code: ServiceUnavailable, Err: unhashable{"x"}}).Remedy())
	require.Equal(t, Overloaded.Description(), (&Error{Code: Overloaded}).Remedy(), "else what the Code says")
}

// An unhashable error cannot be the key of a map.
type unhashable []string

func (unhashable) Error() string { return "x" }
