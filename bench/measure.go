package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"github.com/alicaptcha/alicaptcha/bench/internal/cputime"
)

// A cost is the cost of one operation: the time and the processor time in nanoseconds,
// and the allocations. The processor time is that of the whole process, including the
// garbage collector.
type cost struct{ ns, cpu, bytes, allocs float64 }

// measure returns the mean cost of n operations.
func measure(n int, operation func()) cost {
	var before, after runtime.MemStats
	runtime.GC() // so that the garbage of earlier operations does not count
	runtime.ReadMemStats(&before)
	cpu, start := cputime.Used(), time.Now()
	for range n {
		operation()
	}
	took, used := time.Since(start), cputime.Used()-cpu
	runtime.ReadMemStats(&after)
	each := func(total float64) float64 { return total / float64(n) }
	return cost{
		each(float64(took)), each(float64(used)),
		each(float64(after.TotalAlloc - before.TotalAlloc)), each(float64(after.Mallocs - before.Mallocs)),
	}
}

// A contender is one way to do the work of a row.
type contender struct {
	name      string
	operation func()
}

// A series is the cost of one contender in each round.
type series []cost

// compare measures every contender for about the time each in every round, and reverses
// their order after each round.
func compare(rounds int, each time.Duration, contenders []contender) map[string]series {
	counts := make([]int, len(contenders))
	for i, c := range contenders {
		c.operation() // fills pools, opens connections
		n := 1
		took := measure(n, c.operation).ns
		for took*float64(n) < float64(each)/8 {
			n *= 2
			took = measure(n, c.operation).ns
		}
		counts[i] = max(1, int(float64(each)/took))
	}
	found := make(map[string]series)
	for round := range rounds {
		for _, i := range order(round, len(contenders)) {
			c := contenders[i]
			found[c.name] = append(found[c.name], measure(counts[i], c.operation))
		}
	}
	return found
}

// order returns 0 to n-1 for even rounds and the reverse for odd ones.
func order(round, n int) []int {
	turns := make([]int, n)
	for i := range turns {
		turns[i] = i
		if round%2 == 1 {
			turns[i] = n - 1 - i
		}
	}
	return turns
}

// median returns the median of each part of the cost.
func (s series) median() cost { return s.pick(median) }

// best returns the minimum of each part of the cost.
func (s series) best() cost { return s.pick(slices.Min[[]float64]) }

func (s series) pick(from func([]float64) float64) cost {
	part := func(of func(cost) float64) float64 {
		values := make([]float64, len(s))
		for i, c := range s {
			values[i] = of(c)
		}
		return from(values)
	}
	return cost{
		part(func(c cost) float64 { return c.ns }), part(func(c cost) float64 { return c.cpu }),
		part(func(c cost) float64 { return c.bytes }), part(func(c cost) float64 { return c.allocs }),
	}
}

// less returns c minus other.
func (c cost) less(other cost) cost {
	return cost{c.ns - other.ns, c.cpu - other.cpu, c.bytes - other.bytes, c.allocs - other.allocs}
}

// median returns the median of values, or 0 if there are none.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// percentile returns the p-th percentile of values, or 0 if there are none.
func percentile(values []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, int(math.Ceil(p/100*float64(len(sorted))))-1)]
}

// showTime formats nanoseconds with three significant digits.
func showTime(ns float64) string {
	switch a := math.Abs(ns); {
	case a < 999.5:
		return fmt.Sprintf("%.0f ns", ns)
	case a < 999.5e3:
		return digits(ns/1e3) + " µs"
	case a < 999.5e6:
		return digits(ns/1e6) + " ms"
	}
	return digits(ns/1e9) + " s"
}

// showBytes formats a number of bytes in the same way.
func showBytes(n float64) string {
	switch a := math.Abs(n); {
	case a < 999.5:
		return fmt.Sprintf("%.0f B", n)
	case a < 999.5e3:
		return digits(n/1e3) + " kB"
	}
	return digits(n/1e6) + " MB"
}

func digits(x float64) string {
	switch a := math.Abs(x); {
	case a < 9.995:
		return fmt.Sprintf("%.2f", x)
	case a < 99.95:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

// medianOf returns the median of a part of values.
func medianOf[T any](values []T, of func(T) float64) float64 {
	parts := make([]float64, len(values))
	for i, v := range values {
		parts[i] = of(v)
	}
	return median(parts)
}
