package alicaptcha

import "testing"

func BenchmarkReference(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		newReference()
	}
}
