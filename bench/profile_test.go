package main

import (
	"strings"
	"testing"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// BenchmarkRequest sends the requests of "Request cost" through each gate, one at a time,
// so that a profile shows what the time of one of them consists of:
//
//	go test -run '^$' -bench 'Request/urlencoded,_0.5_KB,_first/alicaptcha' -cpuprofile cpu.out
//	go tool pprof -top cpu.out
func BenchmarkRequest(b *testing.B) {
	all, err := rows()
	if err != nil {
		b.Fatal(err)
	}
	for _, row := range all {
		for _, g := range row.gates {
			b.Run(strings.ReplaceAll(row.name, " ", "_")+"/"+strings.ReplaceAll(g.name, "/", "_"), func(b *testing.B) {
				operation, _ := row.request.through(g.wrap(alicaptchatest.Passing(), reads))
				b.ReportAllocs()
				for b.Loop() {
					operation()
				}
			})
		}
	}
}
