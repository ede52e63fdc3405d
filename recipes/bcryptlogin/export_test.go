package bcryptlogin

// Compared makes l report each hash that it compares.
func (l *Login) Compared(report func(hash []byte)) {
	compare := l.compare
	l.compare = func(hash, password []byte) error {
		report(hash)
		return compare(hash, password)
	}
}
