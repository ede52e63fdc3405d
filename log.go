package alicaptcha

import (
	"strings"

	"golang.org/x/time/rate"
)

// printable returns s in a form that is safe to log: it cuts s to at most most
// bytes and replaces all characters other than printable ASCII.
func printable(s string, most int) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), most)])
}

// isDue reports whether limit permits an action now. The action itself must not
// run in limit.Do, which holds a lock.
func isDue(limit *rate.Sometimes) (due bool) {
	limit.Do(func() { due = true })
	return due
}
