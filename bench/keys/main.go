// Command keys prints what logins get while the source of the keys fails, hangs or gives
// revoked ones:
//
//	cd bench && go run ./keys
//
// The time is virtual, and nothing listens anywhere. It ends with FAIL and status 1 if a
// promise is broken.
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
		report, broken := "", []string(nil)
		for _, s := range scenarios {
			synctest.Test(t, func(*testing.T) {
				row, faults := s.run()
				report += row
				broken = append(broken, faults...)
			})
		}
		fmt.Print(header + report + "\n")
		for _, promise := range broken {
			t.Error(promise)
		}
	}}}, nil, nil)
}
