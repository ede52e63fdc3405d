package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

const passed = `{"RequestId":"0A1B2C3D-0000-1111-2222-333344445555","Message":"success","Code":"Success",` +
	`"Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"certify"}}`

// canned answers every call with a pass, without a network. It is an http.RoundTripper
// and an HttpClient of the SDK.
type canned struct{}

func (canned) RoundTrip(r *http.Request) (*http.Response, error) {
	io.Copy(io.Discard, r.Body)
	return &http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(passed)),
	}, nil
}

func (c canned) Call(r *http.Request, _ *http.Transport) (*http.Response, error) {
	return c.RoundTrip(r)
}

const (
	sampleName = "vendor's sample"
	floorName  = "floor"
)

// A caller is a Verifier to compare.
type caller struct {
	name string
	alicaptcha.Verifier
}

// ours returns a Client for endpoint. A nil transport means the default one.
func ours(endpoint string, transport http.RoundTripper) (*alicaptcha.Client, error) {
	return alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint: endpoint, AccessKeyID: accessKeyID, AccessKeySecret: accessKeySecret, Transport: transport,
	})
}

// callers returns the three callers for the service at endpoint, or for a canned one if
// endpoint is empty.
func callers(endpoint string) ([]caller, error) {
	if endpoint == "" {
		const nowhere = "https://127.0.0.1:1"
		client, err := ours(nowhere, canned{})
		if err != nil {
			return nil, err
		}
		byVendor, err := newSample(nowhere, canned{})
		return []caller{{oursName, client}, {sampleName, byVendor}, {floorName, newFloor(nowhere, canned{})}}, err
	}
	client, err := ours(endpoint, nil)
	if err != nil {
		return nil, err
	}
	byVendor, err := newSample(endpoint, nil)
	floor := newFloor(endpoint, &http.Transport{MaxIdleConnsPerHost: 512})
	return []caller{{oursName, client}, {sampleName, byVendor}, {floorName, floor}}, err
}

// params returns a param of each relevant length: V3, V2, and the longest V2.
func params() ([]string, error) {
	sim := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	var all []string
	for _, i := range []alicaptchatest.Issue{
		{Format: alicaptchatest.V3}, {Format: alicaptchatest.V2}, {Format: alicaptchatest.V2, Bytes: 27_200},
	} {
		i.SceneID = scene
		param, err := sim.Issue(i)
		if err != nil {
			return nil, err
		}
		all = append(all, param)
	}
	return all, nil
}

// call returns an operation that verifies param with v. It panics if v fails.
func call(v caller, param string) func() {
	return func() {
		result, err := v.Verify(context.Background(), alicaptcha.Request{Param: param, SceneID: scene})
		if err != nil || !result.Passed {
			panic(fmt.Sprintf("%s: %t, %v", v.name, result.Passed, err))
		}
	}
}

func (b *bench) callCost() error {
	b.print("## Call cost\n\n"+
		"One verification at a time, on an answer that is there at once: first from a canned transport, then from a "+
		"service on loopback over TLS. %s is the SDK as the vendor's sample code uses it, floor a hand-written signer "+
		"without a single guard, on net/http alone. CPU is the whole process's, on loopback with the service's part. "+
		"Medians of %d rounds.\n\n", sampleName, b.rounds)
	b.print("| service | param | caller | time | CPU | bytes | allocations |\n|---|--:|---|--:|--:|--:|--:|\n")
	texts, err := params()
	if err != nil {
		return err
	}
	service, err := newService(serviceConfig{tls: true})
	if err != nil {
		return err
	}
	defer service.close()
	sizes := []string{"280 B", "4.5 KB", "28 KB"}
	fewest, leastCPU, timeAt28 := 1.0, 0.0, 0.0 // the least favorable ratios to the sample
	for _, at := range []struct{ name, endpoint string }{{"canned", ""}, {"loopback", service.URL}} {
		all, err := callers(at.endpoint)
		if err != nil {
			return err
		}
		for i, param := range texts {
			var contenders []contender
			for _, c := range all {
				contenders = append(contenders, contender{c.name, call(c, param)})
			}
			found := compare(b.rounds, b.each, contenders)
			for _, c := range all {
				mid := found[c.name].median()
				b.print("| %s | %s | %s | %s | %s | %s | %.0f |\n", at.name, sizes[i], c.name,
					showTime(mid.ns), showTime(mid.cpu), showBytes(mid.bytes), mid.allocs)
			}
			if at.endpoint == "" {
				we, they := found[oursName].median(), found[sampleName].median()
				fewest = min(fewest, 1-we.allocs/they.allocs)
				leastCPU = max(leastCPU, we.cpu/they.cpu)
				timeAt28 = we.ns / they.ns // in the end that of the last param, which is the longest
			}
		}
	}
	b.print("\n")
	b.target("a call: at least 30 % fewer allocations than the sample", 100*fewest, "%.0f %% fewer", fewest >= 0.3)
	b.target("a call: less CPU than the sample", leastCPU, "%.2f of it", leastCPU < 1)
	b.target("a call with 28 KB: less than half the sample's time", timeAt28, "%.2f of it", timeAt28 < 0.5)
	return nil
}
