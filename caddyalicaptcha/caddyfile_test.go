//go:build unix

package caddyalicaptcha_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/caddyalicaptcha"
)

// handlerIn returns the JSON of the first handler of the adapted Caddyfile.
func handlerIn(t *testing.T, caddyfile string) string {
	t.Helper()
	var config struct {
		Apps struct {
			HTTP struct {
				Servers map[string]struct {
					Routes []struct {
						Match  json.RawMessage
						Handle []json.RawMessage
					}
				}
			}
		}
	}
	require.NoError(t, json.Unmarshal(adapt(t, caddyfile), &config))
	route := config.Apps.HTTP.Servers["srv0"].Routes[0]
	require.Nil(t, route.Match, "the route itself has no matcher")
	return string(route.Handle[0])
}

func TestCaddyfile(t *testing.T) {
	for _, c := range []struct{ directive, want string }{
		{"alicaptcha login {\nregion cn\n}", `{"handler":"alicaptcha","scene":"login","region":"cn"}`},
		{"alicaptcha * login {\nregion sgp\n}", `{"handler":"alicaptcha","scene":"login","region":"sgp"}`},
		{
			"alicaptcha /login login {\nendpoint https://example.com\n}",
			`{"handler":"alicaptcha","match":[{"path":["/login"]}],"scene":"login","endpoint":"https://example.com"}`,
		},
		{
			"@post {\nmethod POST\npath /login /signup\n}\nalicaptcha @post {env.SCENE} {\nregion {env.REGION}\n}",
			`{"handler":"alicaptcha","match":[{"method":["POST"],"path":["/login","/signup"]}],"scene":"{env.SCENE}","region":"{env.REGION}"}`,
		},
		{
			`alicaptcha login {
				region cn
				access_key {env.ID} {file./run/secrets/key} {env.TOKEN}
				header Captcha
				form a b
				json c /d/e
				policy F010 F011 reject 404
				policy F023 allow
				policy misconfigured allow 10 1m
				outage 20 1h
				mode report_only
				timeout 3s
				max_param_bytes 16KiB
				max_body_bytes 1MiB
				max_concurrent 100
				breaker {
					failures 1
					failure_ratio 0.5
					window 2s
					min_calls 3
					open_for 1m
					probes 4
				}
			}`,
			`{"handler":"alicaptcha","scene":"login","region":"cn",
			"access_key_id":"{env.ID}","access_key_secret":"{file./run/secrets/key}","security_token":"{env.TOKEN}",
			"param":[{"header":"Captcha"},{"form":["a","b"]},{"json":["c","/d/e"]}],
			"policy":{"F010":{"status":404},"F011":{"status":404},"F023":{"allow":true},
				"misconfigured":{"allow":true,"budget":{"requests":10,"per":60000000000}}},
			"outage":{"requests":20,"per":3600000000000},"mode":"report_only","timeout":3000000000,
			"max_param_bytes":16384,"max_body_bytes":1048576,"max_concurrent":100,
			"breaker":{"failures":1,"failure_ratio":0.5,"window":2000000000,"min_calls":3,"open_for":60000000000,"probes":4}}`,
		},
	} {
		got := handlerIn(t, ":8080 {\n"+c.directive+"\n}")
		require.JSONEq(t, c.want, got)

		// What was adapted says the same again.
		var h caddyalicaptcha.Handler
		text := strings.Replace(got, `"handler":"alicaptcha",`, "", 1)
		require.NoError(t, caddy.StrictUnmarshalJSON([]byte(text), &h))
		require.JSONEq(t, text, mustJSON(h))
	}
}

func TestCaddyfileFaults(t *testing.T) {
	const options = "http://127.0.0.1 {\n\talicaptcha /login login {\n\t\tregion cn\n\t\t%s\n\t}\n}"
	for _, c := range []struct {
		option, want string
		line         int
	}{
		{"region sgp", "region is set already", 4},
		{"unknown 1", "unrecognized option unknown", 4},
		{"access_key id", "wrong argument count", 4},
		{"access_key a b c d", "wrong argument count", 4},
		{`access_key "" b`, "the argument is empty", 4},
		{"header", "wrong argument count", 4},
		{"header a b", "wrong argument count", 4},
		{"header a:b", "not a valid header name", 4},
		{"json /a~2", "not a JSON Pointer", 4},
		{`form ""`, "contains an empty string", 4},
		{"policy", "expected codes", 4},
		{"policy F001", "expected codes", 4},
		{"policy allow", "expected codes", 4},
		{"policy F001 reject", "expected one status", 4},
		{"policy F001 reject 200", `it must be 400 to 599`, 4},
		{"policy F001 allow 5", "expected a number of requests and a duration", 4},
		{"policy F001 allow 0 1m", "must be at least 1", 4},
		{"policy F001 allow 5 0s", "not a positive duration", 4},
		{"policy F008 allow", "must not be allowed: a client can cause it at will", 4},
		{"policy service_timeout allow", "must not be allowed without a bound: set a budget", 4},
		{"policy nonsense allow", "nonsense", 4},
		{"policy F001 allow\npolicy F001 reject 404", "policy F001 is set already", 5},
		{"policy T001 allow 5 1m", "a pass of the service is not bounded", 4},
		{"outage 5", "expected a number of requests and a duration", 4},
		{"outage 5 1m\npolicy service_timeout allow 5 1m", "outage and policy service_timeout are both set", 2},
		{"mode reportonly", `it must be enforce or report_only or exempt`, 4},
		{"timeout 5", "not a positive duration", 4},
		{"timeout 1ms", "timeout is 1ms; it must be 0 or at least 100ms", 4},
		{"max_param_bytes 1TiB", "not a size", 4},
		{"max_body_bytes -1", "not a size", 4},
		{"max_concurrent 0", "not a positive number", 4},
		{"breaker 1", "wrong argument count", 4},
		{"breaker {\nfailures\n}", "wrong argument count", 5},
		{"breaker {\nfailure_ratio 2\n}", "not a ratio between 0 and 1", 5},
		{"breaker {\nfailure_ratio NaN\n}", "not a ratio between 0 and 1", 5},
		{"breaker {\nwindow 48h\n}", "breaker.window is not between 1 ms and 24 h", 5},
		{"breaker {\nunknown 1\n}", "unrecognized option unknown of breaker", 5},
	} {
		requireFault(t, fmt.Sprintf(options, c.option), c.want, c.line)
	}
	for _, c := range []struct {
		text, want string
		line       int
	}{
		{"alicaptcha", "expected the ID of the scene", 2},
		{"alicaptcha /login", "expected the ID of the scene", 2},
		{"alicaptcha /login a b", "expected the ID of the scene", 2},
		{"alicaptcha @unknown login {\nregion cn\n}", "unrecognized matcher name", 2},
		{"alicaptcha /login login", "region cn or sgp is missing", 2},
		{"respond ok\nalicaptcha login {\nregion us\n}", `region is "us"; it must be cn or sgp`, 4},
	} {
		requireFault(t, "http://127.0.0.1 {\n"+c.text+"\n}", c.want, c.line)
	}
}

func requireFault(t *testing.T, caddyfile, want string, line int) {
	t.Helper()
	_, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	require.ErrorContains(t, err, want, caddyfile)
	require.ErrorContains(t, err, fmt.Sprintf("Caddyfile:%d", line), caddyfile)
}

func TestFaultsOfJSON(t *testing.T) {
	t.Setenv("TEST_SECRET", "hunter2")
	t.Setenv("TEST_EMPTY", "")
	good := map[string]string{
		"scene": `"login"`, "region": `"cn"`, "access_key_id": `"test-id"`, "access_key_secret": `"{env.TEST_SECRET}"`,
	}
	validate := func(changes map[string]string) error {
		var fields []string
		for _, set := range []map[string]string{good, changes} {
			for name, value := range set {
				if _, changed := changes[name]; changed && value == good[name] {
					continue
				}
				if value != "" {
					fields = append(fields, fmt.Sprintf("%q:%s", name, value))
				}
			}
		}
		var config caddy.Config
		require.NoError(t, json.Unmarshal([]byte(`{"admin":{"disabled":true},"apps":{"http":{"servers":{"x":{"listen":["127.0.0.1:0"],
			"automatic_https":{"disable":true},"routes":[{"handle":[{"handler":"alicaptcha",`+strings.Join(fields, ",")+`}]}]}}}}}`), &config))
		return caddy.Validate(&config)
	}
	require.NoError(t, validate(nil))
	for _, c := range []struct{ field, value, want string }{
		{"scene", "", "scene is required"},
		{"scene", `" login"`, "scene is surrounded by white space"},
		{"scene", `"{env.TEST_EMPTY}"`, "scene: evaluated placeholder {env.TEST_EMPTY} is empty"},
		{"scene", `"{http.request.header.Scene}"`, "scene: unrecognized placeholder"},
		{"region", `""`, `region must be "cn" or "sgp", or endpoint must be set`},
		{"region", `"us"`, `region must be "cn" or "sgp"`},
		{"endpoint", `"http://example.com"`, "endpoint must be https"},
		{"access_key_id", `"{env.TEST_EMPTY}"`, "access_key_id: evaluated placeholder"},
		{"access_key_secret", `"{file./nowhere}"`, "access_key_secret: evaluated placeholder"},
		{"access_key_secret", `""`, "access_key_secret is missing"},
		{"access_key_secret", `"a b"`, "access_key_secret contains white space"},
		{"param", `[{}]`, "param[0]: exactly one of header, form and json must be set"},
		{"param", `[{"header":"A"},{"header":"a b"}]`, "param[1]: alicaptcha: FromHeader"},
		{"policy", `{"F008":{"allow":true}}`, "policy"},
		{"policy", `{"F001":{"allow":true,"status":404}}`, "policy.F001: status has no effect with allow"},
		{"policy", `{"F001":{"budget":{"requests":1,"per":"1m"}}}`, "budget without allow"},
		{"policy", `{"F001":{"allow":true,"budget":{}}}`, "policy.F001: budget.requests is 0"},
		{"outage", `{"requests":1}`, "outage.per must be positive"},
		{"mode", `"off"`, `mode is "off"; it must be enforce, report_only or exempt`},
		{"timeout", `"1ms"`, "timeout is 1ms"},
		{"max_param_bytes", "-1", "max_param_bytes is negative"},
		{"max_body_bytes", "-1", "max_body_bytes is negative"},
		{"max_concurrent", "-1", "max_concurrent is negative"},
		{"breaker", `{"failure_ratio":2}`, "breaker.failure_ratio is not between 0 and 1"},
		{"match", `[{"unknown":{}}]`, "match: "},
		{"unknown", `1`, "unknown field"},
	} {
		err := validate(map[string]string{c.field: c.value})
		require.ErrorContains(t, err, c.want)
		require.NotContains(t, err.Error(), "hunter2")
		require.Zero(t, caddyalicaptcha.Pooled(), c.want)
	}

	// Without keys, those of the environment are used.
	none := map[string]string{"access_key_id": "", "access_key_secret": ""}
	require.ErrorContains(t, validate(none), "ALIBABA_CLOUD_ACCESS_KEY_ID")
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "test-id")
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "test-secret")
	require.NoError(t, validate(none))
}
