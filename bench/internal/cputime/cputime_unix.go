//go:build unix

// Package cputime reads the processor time of this process.
package cputime

import (
	"syscall"
	"time"
)

// Used returns the processor time that all threads of this process have used so
// far.
func Used() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // it cannot fail with these arguments
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
