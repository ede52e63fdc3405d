package caddyalicaptcha

// Pooled returns how many values the pool holds.
func Pooled() (n int) {
	pool.Range(func(any, any) bool { n++; return true })
	return n
}
