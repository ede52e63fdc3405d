//go:build !unix

package alicaptcha

func descriptorLimit() (limit uint64, ok bool) { return 0, false }
