// Command idle calls a service that closes idle connections at odd moments, and counts
// the calls that are lost and the params that come twice, with the Client and with what
// net/http does by itself:
//
//	cd bench && go run ./idle
//
// Service and callers are in one process and talk over loopback, a part by TLS. It takes about
// four minutes, and ends with status 1 if a promise is broken. It needs Linux, as bench
// does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/bench/internal/loopback"
)

func main() {
	calls := flag.Int("calls", 100_000, "how many `calls` the Client makes; net/http alone makes a third")
	flag.Parse()
	forget, err := loopback.Only()
	if err == nil {
		err = run(*calls, true)
		forget()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A load is how calls are made, and how long the service keeps a connection.
type load struct {
	share int           // of all calls, in percent
	burst int           // calls at once
	every time.Duration // from one burst to the next
	idle  time.Duration // a connection is closed after a random time that is shorter
	plain bool          // without TLS, whose handshakes would keep the machine busy
}

var loads = []load{
	{2, 1, 7 * time.Millisecond, 50 * time.Millisecond, false},
	{2, 1, 7 * time.Millisecond, time.Second, false},
	{48, 1, 1500 * time.Microsecond, time.Second, true},
	{48, 64, 96 * time.Millisecond, time.Second, true},
}

// mostLost is the share of the Client's calls that may be lost, but for those that the
// service had got when it closed. Of these nobody else can know whether it has read them.
const mostLost = .001

// A contender has the Transport for a Client.
type contender struct {
	name      string
	transport http.RoundTripper // nil for its own
}

const clientName = "the Client"

// contenders returns the Client as it is, and net/http without what the Client does.
func contenders() []contender {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return []contender{
		{"net/http alone", untraced{&http.Transport{Protocols: protocols, MaxIdleConnsPerHost: 512}}},
		{clientName, nil},
	}
}

// untraced keeps the Client from learning which connection a call has got.
type untraced struct{ *http.Transport }

func (u untraced) RoundTrip(r *http.Request) (*http.Response, error) {
	return u.Transport.RoundTrip(r.WithContext(valueless{r.Context()}))
}

// valueless has no values, and so no trace.
type valueless struct{ context.Context }

func (valueless) Value(any) any { return nil }

// run prints the table. Only if it is strict it asks for a share of lost calls, which a
// busy machine may exceed.
func run(calls int, strict bool) error {
	fmt.Printf("A service that closes each connection after a random time of idleness. Lost are calls whose " +
		"connection was closed. Late are calls that had come, and were not read, when it closed: of these no caller can " +
		"know. Calls time out if the machine is too busy for the rate.\n\n" +
		"| calls | every | closed within | | by | lost | | late | timeouts | params that came twice | connections |\n" +
		"|--:|--:|--:|---|---|--:|--:|--:|--:|--:|--:|\n")
	var broken []error
	var all tally // of the Client
	for _, l := range loads {
		for _, c := range contenders() {
			n := calls * l.share / 100
			if c.name != clientName {
				n /= 3
			}
			t, err := l.run(c, n)
			if err != nil {
				return err
			}
			scheme := "TLS"
			if l.plain {
				scheme = "plain"
			}
			fmt.Printf("| %d, %d at once | %v | %v | %s | %s | %d | %.3f %% | %d | %d | %d | %d |\n",
				t.calls, l.burst, l.every, l.idle, scheme, c.name,
				t.lost, 100*float64(t.lost)/float64(t.calls), t.late, t.timeouts, t.twice, t.connections)
			if t.twice > 0 {
				broken = append(broken, fmt.Errorf("%d params came twice", t.twice))
			}
			if c.name == clientName {
				all.calls += t.calls
				all.lost += t.lost
				all.late += t.late
			}
		}
	}
	of := func(n int64) float64 { return 100 * float64(n) / float64(all.calls) }
	fmt.Printf("\nOf %d calls by the Client %.3f %% were lost, but for the late %.3f %%.\n",
		all.calls, of(all.lost), of(all.lost-all.late))
	if strict && of(all.lost-all.late) > 100*mostLost {
		broken = append(broken, errors.New("too many calls were lost"))
	}
	return errors.Join(broken...)
}

// A tally is what became of the calls.
type tally struct{ calls, lost, late, timeouts, twice, connections int64 }

func (l load) run(c contender, calls int) (tally, error) {
	s, err := newService(l.idle, l.plain)
	if err != nil {
		return tally{}, err
	}
	defer s.close()
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint: s.url(), AccessKeyID: "test-id", AccessKeySecret: "test-secret", Transport: c.transport,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return tally{}, err
	}
	var lost, timeouts atomic.Int64
	var underWay sync.WaitGroup
	start := time.Now()
	for i := range calls {
		if i%l.burst == 0 {
			time.Sleep(time.Until(start.Add(time.Duration(i/l.burst) * l.every)))
		}
		underWay.Go(func() {
			_, err := client.Verify(context.Background(), alicaptcha.Request{Param: fmt.Sprint(i)})
			if e, ok := errors.AsType[*alicaptcha.Error](err); ok && e.Code == alicaptcha.ServiceTimeout {
				timeouts.Add(1)
			} else if err != nil {
				lost.Add(1)
			}
		})
	}
	underWay.Wait()
	return tally{int64(calls), lost.Load(), s.late.Load(), timeouts.Load(), s.twice(), s.opened.Load()}, nil
}
