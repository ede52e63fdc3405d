//go:build unix

package alicaptcha

import "syscall"

// descriptorLimit returns how many files and sockets the process may have open, and
// whether that is known. Go raises the soft limit to the hard one when it starts.
func descriptorLimit() (limit uint64, ok bool) {
	var r syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r)
	return uint64(r.Cur), err == nil
}
