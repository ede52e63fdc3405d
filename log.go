package alicaptcha

import (
	"strings"

	"golang.org/x/time/rate"
)

// printable makes a text from outside fit to be shown: at most most bytes of
// printable ASCII.
func printable(s string, most int) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), most)])
}

// isDue reports whether limit lets something happen now. What then happens is
// not done in limit.Do, which holds a lock.
func isDue(limit *rate.Sometimes) (due bool) {
	limit.Do(func() { due = true })
	return due
}
