// Command breaker prints what the Breaker does to users while the service fails, beside
// no breaker and one that opens after five failures in a row, for 5 s each time:
//
//	cd bench && go run ./breaker
//
// Hours pass in virtual time, and about a minute on the clock. Nothing listens anywhere.
// It ends with FAIL and status 1 if a promise is broken.
package main

import (
	"fmt"
	"testing"
	"testing/synctest"
)

func main() {
	// synctest, which has the virtual time, is for tests only.
	all := func(string, string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{{Name: "promises", F: func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var r report
			r.write()
			fmt.Print(r.String())
			for _, promise := range r.broken {
				t.Error(promise)
			}
		})
	}}}, nil, nil)
}
