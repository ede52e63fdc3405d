package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aliyun/credentials-go/credentials"

	"github.com/alicaptcha/alicaptcha"
)

// A scenario is a fault of the source of the keys. A login comes every second, except for
// the time that is quiet before it.
type scenario struct {
	name     string
	quiet    time.Duration // without a login, just before the fault
	fault    time.Duration // how long it lasts
	life     time.Duration // how long keys are good from when they were given
	hangs    bool          // the source hangs, else it fails
	revoked  bool          // the keys at hand are revoked at the start of the fault, and the source is well
	mostLost time.Duration // the promise: how long logins may fail
	mostWait time.Duration // the promise: how long a login may take
}

var scenarios = []scenario{
	{name: "the source fails, the keys end meanwhile", fault: 7 * time.Minute, life: 3 * time.Minute,
		mostLost: 4*time.Minute + 6*time.Second + time.Minute, mostWait: time.Second},
	{name: "the source fails, the keys stay good", fault: 7 * time.Minute, life: time.Hour, mostWait: time.Second},
	{name: "the source hangs after 200 s of quiet, the keys stay good", quiet: 200 * time.Second, hangs: true,
		fault: 20 * time.Second, life: time.Hour, mostWait: 4100 * time.Millisecond},
	{name: "the source hangs after an hour of quiet, the keys have ended", quiet: time.Hour, hangs: true,
		fault: 20 * time.Second, life: 10 * time.Minute, mostLost: 21 * time.Second, mostWait: 4100 * time.Millisecond},
	{name: "the keys are revoked, the source has others", revoked: true, fault: time.Second, life: time.Hour,
		mostLost: 12 * time.Second, mostWait: time.Second},
}

const header = `The source of the keys has a fault, and a login comes every second. "Lost" is the time in which logins fail, "after" the
part of it after the source has recovered, and "longest" how long the slowest login took.

| fault | lasts | lost | after | ended as | longest |
|---|--:|--:|--:|---|--:|
`

// A source is a Credential that fails on demand, and the service's view of its keys.
type source struct {
	credentials.Credential
	mu      sync.Mutex
	n       int
	given   map[string]time.Time
	life    time.Duration
	failing bool
	hanging chan struct{} // closed when it no longer hangs
	revoked string
}

func (s *source) GetCredential() (*credentials.CredentialModel, error) {
	s.mu.Lock()
	failing, hanging := s.failing, s.hanging
	s.mu.Unlock()
	if hanging != nil {
		<-hanging
	}
	if failing {
		return nil, errors.New("the metadata server is down")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	id := fmt.Sprintf("STS.key%d", s.n)
	s.given[id] = time.Now()
	return &credentials.CredentialModel{
		AccessKeyId: new(id), AccessKeySecret: new("secret"), SecurityToken: new("token"),
	}, nil
}

// RoundTrip is the service, which answers at once.
func (s *source) RoundTrip(r *http.Request) (*http.Response, error) {
	_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	id, _, _ := strings.Cut(rest, ",")
	s.mu.Lock()
	given, known := s.given[id]
	good := known && id != s.revoked && time.Since(given) < s.life
	s.mu.Unlock()
	status, body := 200, `{"RequestId":"R","Message":"success","Code":"Success","Success":true,`+
		`"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`
	if !good {
		status, body = 403, `{"RequestId":"R","Code":"InvalidSecurityToken.Expired"}`
	}
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}, nil
}

// run returns the row of s and the promises that were broken.
func (s scenario) run() (row string, broken []string) {
	src := &source{given: map[string]time.Time{}, life: s.life}
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Region: alicaptcha.International, Credential: src, Transport: src, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return "", []string{err.Error()}
	}
	var lost, after, longest time.Duration
	ends := map[alicaptcha.Code]int{}
	login := func(recovered bool) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := client.Verify(ctx, alicaptcha.Request{Param: "param", SceneID: "login"})
		cancel()
		longest = max(longest, time.Since(start))
		time.Sleep(max(time.Second-time.Since(start), 0))
		if e, ok := errors.AsType[*alicaptcha.Error](err); ok {
			ends[e.Code]++
			lost += time.Since(start)
			if recovered {
				after += time.Since(start)
			}
		}
	}
	logins := func(d time.Duration, recovered bool) {
		for end := time.Now().Add(d); time.Now().Before(end); {
			login(recovered)
		}
	}
	logins(10*time.Minute, false)
	time.Sleep(s.quiet)
	src.mu.Lock()
	switch {
	case s.revoked:
		src.revoked = fmt.Sprintf("STS.key%d", src.n)
	case s.hangs:
		src.hanging = make(chan struct{})
	default:
		src.failing = true
	}
	src.mu.Unlock()
	logins(s.fault, false)
	src.mu.Lock()
	src.failing = false
	if src.hanging != nil {
		close(src.hanging)
		src.hanging = nil
	}
	src.mu.Unlock()
	logins(10*time.Minute, true)
	time.Sleep(time.Minute) // the last question has its answer

	ended := "-"
	for code, n := range ends {
		ended = fmt.Sprintf("%s %d", code, n)
		if code != alicaptcha.Misconfigured {
			broken = append(broken, s.name+": ended as "+string(code))
		}
	}
	if lost > s.mostLost || after > 6*time.Second && !s.revoked {
		broken = append(broken, fmt.Sprintf("%s: logins failed for %v, %v after the recovery", s.name, lost, after))
	}
	if longest > s.mostWait {
		broken = append(broken, fmt.Sprintf("%s: a login took %v", s.name, longest))
	}
	return fmt.Sprintf("| %s | %v | %v | %v | %s | %v |\n", s.name, s.fault, lost.Round(time.Second),
		after.Round(time.Second), ended, longest.Round(10*time.Millisecond)), broken
}
