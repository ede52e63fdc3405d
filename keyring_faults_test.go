package alicaptcha_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aliyun/credentials-go/credentials"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// A typedSource is a Credential that fails and says of what type it is.
type typedSource struct {
	credentials.Credential
	kind string
	err  error
}

func (s typedSource) GetCredential() (*credentials.CredentialModel, error) { return nil, s.err }

func (s typedSource) GetType() *string { return &s.kind }

// What is safe of the cause is named: the texts of credentials-go, which hold what the
// endpoint answered, are not.
func TestKeyringNamesTheCause(t *testing.T) {
	t.Parallel()
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(100, 100, 100, 200), Port: 80},
		Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, row := range []struct {
		kind, want string
		err        error
	}{
		{"ecs_ram_role", " (ecs_ram_role) failed: dial tcp 100.100.100.200:80: connect: connection refused",
			fmt.Errorf("get: %w", refused)},
		{"ecs_ram_role", " (ecs_ram_role) failed: connection refused", fmt.Errorf("refresh Ecs sts token err: %s", refused)},
		{"ecs_ram_role", " (ecs_ram_role) failed: status 404",
			errors.New("get role name failed: http://100.100.100.200/latest/" + keySecret + " 404")},
		{"ram_role_arn", " (ram_role_arn) failed: code EntityNotExist.Role",
			errors.New(`refresh session token failed: {"RequestId":"` + keySecret + `","Code":"EntityNotExist.Role"}`)},
		{"oidc_role_arn", " (oidc_role_arn) failed: no such file",
			errors.New("open /var/run/" + keySecret + ": no such file or directory")},
		{"", " failed: a *errors.errorString", errors.New(keySecret)},
		{keySecret + " ", " failed: a *errors.errorString", errors.New(`"Code":"` + keySecret + ` "`)},
		{"ram_role_arn", " (ram_role_arn) failed: a *errors.errorString", errors.New(strings.Repeat("x", 5000) + "EOF")},
	} {
		cfg := secretConfig(cannedTransport(200, passAnswer))
		cfg.Credential = typedSource{kind: row.kind, err: row.err}
		_, err := alicaptcha.NewClient(cfg)
		require.EqualError(t, err, "alicaptcha: ClientConfig.Credential provided no keys: "+
			"alicaptcha: misconfigured: the Credential"+row.want)
		require.ErrorIs(t, err, row.err)
	}
}

// After the service has refused the keys, as it does after they were revoked, the source
// is asked anew, but not more often than every 10 seconds.
func TestKeyringAsksAnewForRefusedKeys(t *testing.T) {
	for _, code := range []string{"InvalidAccessKeyId.NotFound", "InvalidSecurityToken.Malformed"} {
		t.Run(code, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := startRotation(t, nil)
				var revoked atomic.Value
				revoked.Store("key-1,key-2,key-3")
				cfg := secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
					_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
					id, _, _ := strings.Cut(rest, ",")
					if strings.Contains(revoked.Load().(string), id) {
						return cannedTransport(403, `{"Code":"`+code+`","RequestId":"R-1"}`)(r)
					}
					return cannedTransport(200, passAnswer)(r)
				}))
				cfg.Credential, cfg.Logger = c.source(), nil
				quietDefault(t)
				client := newClient(t, cfg)
				asked := c.count()
				verify := func() error {
					_, err := client.Verify(context.Background(), alicaptcha.Request{Param: secretParam})
					return err
				}
				start := time.Now()
				for verify() != nil {
					time.Sleep(100 * time.Millisecond)
					synctest.Wait()
				}
				require.InDelta(t, 20, time.Since(start).Seconds(), 1, "two of the new keys were refused as well")
				require.Equal(t, asked+2, c.count())
				for range 500 {
					require.NoError(t, verify())
					time.Sleep(100 * time.Millisecond)
				}
				require.Equal(t, asked+2, c.count(), "good keys are renewed as ever")
			})
		})
	}
}

// A Logger that panics does not end the program, whoever asks the Credential.
func TestKeyringLoggerPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		panics := 0
		cfg := secretConfig(cannedTransport(200, passAnswer))
		cfg.Logger = slog.New(handlerFunc(func() { panics++; panic("disk full") }))
		fails := false
		cfg.Credential = &keySource{get: func() (*credentials.CredentialModel, error) {
			if fails {
				return nil, errors.New("no keys")
			}
			return keyModel("key", keySecret, "token"), nil
		}}
		client := newClient(t, cfg)
		for _, fails = range []bool{true, false} {
			time.Sleep(2 * time.Minute)
			_, err := client.Verify(context.Background(), alicaptcha.Request{Param: secretParam})
			require.NoError(t, err)
			synctest.Wait()
		}
		require.Equal(t, 2, panics, "one for the failure, one for its end")
	})
}
