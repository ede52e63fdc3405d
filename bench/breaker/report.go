package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A report is what was printed, and which promises were broken.
type report struct {
	strings.Builder
	broken []string
	short  bool // fewer runs: only to see that it runs
}

func (r *report) print(format string, args ...any) { fmt.Fprintf(r, format, args...) }

func (r *report) promise(kept bool, format string, args ...any) {
	if !kept {
		r.broken = append(r.broken, fmt.Sprintf(format, args...))
	}
}

// few returns n, or 2 in a short report.
func (r *report) few(n int) uint64 {
	if r.short {
		return 2
	}
	return uint64(n)
}

func (r *report) write() {
	r.ratios()
	r.outages()
	r.flaps()
	r.recoveries()
	r.junk()
}

var verbs = map[answer]string{fails: "fails", hangs: "hangs"}

func share(logins []login, of func(login) bool) float64 {
	n := 0
	for _, l := range logins {
		if of(l) {
			n++
		}
	}
	return float64(n) / float64(len(logins))
}

func failed(l login) bool   { return !l.passed }
func wouldNot(l login) bool { return !l.would }
func isHeld(l login) bool   { return l.took >= heldAfter }

// percentile returns that of the times that those who passed took.
func percentile(logins []login, p int) time.Duration {
	var took []time.Duration
	for _, l := range logins {
		if l.passed {
			took = append(took, l.took)
		}
	}
	slices.Sort(took)
	return took[(len(took)-1)*p/100].Round(time.Millisecond)
}

// runs returns the logins of n runs, and the greatest share of one that failed.
func (s scenario) runs(c contender, n uint64) (all []login, worst float64) {
	for seed := range n {
		logins := s.run(c, seed)
		worst = max(worst, share(logins, failed))
		all = append(all, logins...)
	}
	return all, worst
}

func (r *report) ratios() {
	n := r.few(5)
	r.print("A service that fails a share of its calls at random, two minutes, %d runs: the logins that fail, in all "+
		"runs and in the worst.\n\n| logins a second | no breaker | five in a row | the worst | Breaker | the worst | "+
		"times no breaker |\n|--:|--:|--:|--:|--:|--:|--:|\n", n)
	for _, perSecond := range []float64{5, 20, 75, 500} {
		for _, p := range []float64{.2, .3, .5} {
			s := scenario{perSecond: perSecond, replicas: 1, lasting: 2 * time.Minute, service: failing(p)}
			old, oldWorst := s.runs(fiveInRow, n)
			we, worst := s.runs(ours, n)
			own := share(we, wouldNot)
			times := share(we, failed) / own
			r.print("| %g | %.1f %% | %.1f %% | %.1f %% | %.1f %% | %.1f %% | %.2f |\n",
				perSecond, 100*own, 100*share(old, failed), 100*oldWorst, 100*share(we, failed), 100*worst, times)
			r.promise(times <= 1.2, "%g a second of which %.0f %% fail: %.2f times as many users", perSecond, 100*p, times)
			r.promise(perSecond < 75 || worst <= 1.2*p,
				"%g a second of which %.0f %% fail: %.0f %% of the users in the worst run", perSecond, 100*p, 100*worst)
		}
	}
	r.print("\n")
}

func (r *report) outages() {
	const from, lasting = 10 * time.Second, time.Minute
	r.print("A service that is dead for %v: when the first caller is turned away, callers that wait for %v or longer "+
		"until then, afterwards, and at once afterwards; calls that are made in vain.\n\n"+
		"| logins a second | the service | breaker | opens after | wait | afterwards | at once | in vain |\n"+
		"|--:|---|---|--:|--:|--:|--:|--:|\n", lasting, heldAfter)
	for _, perSecond := range []float64{1, 5, 75, 500} {
		for _, how := range []answer{hangs, fails} {
			s := scenario{perSecond: perSecond, replicas: 1, lasting: from + lasting, service: out(from, lasting, how)}
			var found []outage
			for _, c := range contenders {
				o := outageOf(s.run(c, 1), from)
				found = append(found, o)
				opens := "never"
				if o.opens >= 0 {
					opens = o.opens.Round(10 * time.Millisecond).String()
				}
				r.print("| %g | %s | %s | %s | %d | %d | %d | %d |\n",
					perSecond, verbs[how], c.name, opens, o.before, o.after, o.atOnce, o.inVain)
			}
			old, we := found[1], found[2]
			r.promise(we.before <= old.before+2 && we.after <= old.after && we.atOnce <= 1,
				"%g a second, the service %s: more wait than with five in a row", perSecond, verbs[how])
			// The first openings are so short that at a low rate nobody may come during one,
			// and then it is a later one in which the first caller is turned away.
			r.promise(perSecond == 1 || we.opens >= 0 && we.opens <= old.opens+5*time.Second,
				"%g a second, the service %s: opens after %v", perSecond, verbs[how], we.opens)
		}
	}
	r.print("\n")
}

type outage struct {
	opens                         time.Duration // after the service died; -1 for never
	before, after, atOnce, inVain int
}

func outageOf(logins []login, from time.Duration) outage {
	o := outage{opens: -1}
	var ends []time.Duration // of those who wait, afterwards
	for _, l := range logins {
		if l.came < from {
			continue
		}
		if l.asked {
			o.inVain++
		} else if o.opens < 0 {
			o.opens = l.came - from
		}
		switch {
		case !isHeld(l):
		case o.opens < 0:
			o.before++
		default:
			o.after++
			ends = slices.DeleteFunc(ends, func(end time.Duration) bool { return end <= l.came })
			ends = append(ends, l.came+l.took)
			o.atOnce = max(o.atOnce, len(ends))
		}
	}
	return o
}

func (r *report) flaps() {
	s := scenario{perSecond: 140, replicas: 2, lasting: 4 * time.Minute, service: failing(0)}
	if r.short {
		s.lasting = time.Minute
	}
	healthy := percentile(s.run(noBreaker, 1), 99)
	r.print("A service that works and fails, or hangs, in turn for 2 s, %g logins a second, two replicas, %v. While it "+
		"works all the time, the 99th percentile is %v.\n\n| the service | breaker | logins that fail | that wait | "+
		"p50 of the others | p99 |\n|---|---|--:|--:|--:|--:|\n", s.perSecond, s.lasting, healthy)
	for _, how := range []answer{fails, hangs} {
		s.service = flapping(2*time.Second, how)
		for _, c := range contenders {
			logins := s.run(c, 1)
			lost, p99 := share(logins, failed), percentile(logins, 99)
			r.print("| %s | %s | %.1f %% | %.1f %% | %v | %v |\n", verbs[how], c.name, 100*lost, 100*share(logins, isHeld),
				percentile(logins, 50), p99)
			if c.name == ours.name && how == fails {
				r.promise(lost <= .6, "flapping: %.1f %% fail", 100*lost)
				r.promise(p99 <= 3*healthy, "flapping: p99 is %v", p99)
			}
		}
	}
	r.print("\n")
}

func (r *report) recoveries() {
	n := r.few(20)
	r.print("After an outage of a certain time and up to 5 s more, %d runs, 75 logins a second: how long until ten in "+
		"a row pass.\n\n| the service | for | five in a row, mean | the longest | Breaker, mean | the longest |\n"+
		"|---|--:|--:|--:|--:|--:|\n", n)
	for _, how := range []answer{fails, hangs} {
		for _, lasting := range []time.Duration{time.Second, 3 * time.Second, 10 * time.Second, time.Minute} {
			r.print("| %s | %v ", verbs[how], lasting)
			r.recovery(scenario{perSecond: 75}, lasting, how, n)
		}
	}
	r.print("\n")
}

func (r *report) junk() {
	n := r.few(10)
	r.print("The same after 10 s, where so much of what comes is junk, which a service that works refuses.\n\n" +
		"| junk | five in a row, mean | the longest | Breaker, mean | the longest |\n|--:|--:|--:|--:|--:|\n")
	for _, share := range []float64{0, .5, .9, .99} {
		r.print("| %.0f %% ", 100*share)
		r.recovery(scenario{perSecond: 75 / (1 - share), junk: share}, 10*time.Second, fails, n)
	}
	r.print("\n")
}

// recovery prints the rest of a row.
func (r *report) recovery(s scenario, lasting time.Duration, how answer, n uint64) {
	const from, after = 5 * time.Second, 30 * time.Second
	for _, c := range contenders[1:] {
		var sum, longest time.Duration
		for seed := range n {
			over := from + lasting + 5*time.Second*time.Duration(seed)/time.Duration(n)
			s.replicas, s.lasting, s.service = 1, over+after, out(from, over-from, how)
			took := recovered(s.run(c, seed), over)
			sum += took
			longest = max(longest, took)
		}
		r.print("| %v | %v ", (sum / time.Duration(n)).Round(10*time.Millisecond), longest.Round(10*time.Millisecond))
		r.promise(c.name != ours.name || longest < after, "it has not recovered in %v", after)
	}
	r.print("|\n")
}

// recovered returns how long after that time ten logins in a row have passed.
func recovered(logins []login, over time.Duration) time.Duration {
	row := 0
	for _, l := range logins {
		switch {
		case l.came < over:
		case !l.passed:
			row = 0
		default:
			if row++; row == 10 {
				return l.came - over
			}
		}
	}
	return time.Hour
}
