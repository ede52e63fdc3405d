package redislogin

import "time"

// WaitFor makes l wait for Redis as long as a busy machine may take.
func (l *Login) WaitFor(d time.Duration) *Login {
	l.patience = d
	return l
}
