package alicaptcha

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/alibabacloud-go/tea/dara"
	"github.com/aliyun/credentials-go/credentials"
	"golang.org/x/time/rate"
)

// When keys from a Credential are older than keysFresh, a call has new ones
// requested in the background. When they are older than keysStale, a call waits
// for the new ones.
//
// A CredentialModel does not say when its keys expire. But the keys that
// credentials-go returns are valid for another 180 s, which is a fifth of the
// shortest session: with less time left, it renews them first. So keys are
// renewed two minutes before they expire, while no call waits for them. (The
// deprecated rsa_key_pair renews when 5% of the session are left, which is 180 s
// of its default session.)
//
// Calls do not wait for a source that has not answered within keysPatience.
const (
	keysFresh    = 60 * time.Second
	keysStale    = 150 * time.Second
	keysPatience = 10 * time.Second
)

// A keyring holds the keys of a Client.
type keyring struct {
	source   credentials.Credential // nil if the keys never change
	logger   *slog.Logger           // nil means slog.Default()
	logLimit rate.Sometimes         // limits how often a failure is logged

	mu         sync.Mutex
	key        accessKey
	got, asked time.Time     // when the source last returned keys, and when it was last asked
	failed     bool          // the last request failed or exceeds keysPatience; reset after keysStale
	broken     bool          // a request has failed since the source last returned keys
	asking     chan struct{} // closed when the source has answered; nil if no request is under way
}

// accessKey is the Credential with which the SDK signs a call.
type accessKey struct {
	credentials.Credential // nil, since the SDK calls no other method than GetCredential
	model                  credentials.CredentialModel
}

func (k accessKey) GetCredential() (*credentials.CredentialModel, error) { return &k.model, nil }

// newKeyring returns a keyring with the keys that source returns now.
func newKeyring(source credentials.Credential, logger *slog.Logger) (*keyring, error) {
	key, err := askFor(source)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &keyring{
		source: source, logger: logger, logLimit: rate.Sometimes{Interval: time.Minute}, key: key, got: now, asked: now,
	}, nil
}

// askFor asks source for its keys. Its error does not show the text of the source,
// which may contain the answer of an STS endpoint.
func askFor(source credentials.Credential) (key accessKey, err error) {
	defer func() {
		// In the goroutine of renew, a panic would end the program.
		if v := recover(); v != nil {
			err = credentialError(fmt.Sprintf("the Credential panicked with a %T", v), nil)
		}
	}()
	model, err := source.GetCredential()
	if err != nil {
		return accessKey{}, credentialError(fmt.Sprintf("the Credential failed with a %T", err), err)
	}
	if model == nil || dara.StringValue(model.AccessKeyId) == "" || dara.StringValue(model.AccessKeySecret) == "" {
		return accessKey{}, credentialError("the Credential returned no AccessKey pair", nil)
	}
	if kind := dara.StringValue(model.Type); kind == "bearer" || kind == "id_token" {
		return accessKey{}, credentialError("the Credential is of a type that cannot sign requests", nil)
	}
	for _, value := range []*string{model.AccessKeyId, model.AccessKeySecret, model.SecurityToken} {
		if strings.ContainsFunc(dara.StringValue(value), notInKey) {
			text := "the Credential returned a key that contains white space or another character that no key has"
			return accessKey{}, credentialError(text, nil)
		}
	}
	return accessKey{model: *model}, nil
}

// credentialError returns the Error for a Credential that returns no usable keys.
// It shows text, but not err.
func credentialError(text string, err error) *Error {
	return &Error{Code: Misconfigured, Err: safeError{text, err}}
}

// notInKey reports whether r occurs in no key. Most often it is the newline at the
// end of a file.
func notInKey(r rune) bool { return r <= ' ' || r > '~' }

// get returns the keys with which to sign a call. It waits for a slow source only
// if the present keys may have expired, and never longer than ctx.
func (k *keyring) get(ctx context.Context) (accessKey, error) {
	if k.source == nil {
		return k.key, nil
	}
	k.mu.Lock()
	now := time.Now()
	if k.asking == nil && now.Sub(k.asked) > keysFresh {
		// A failure from long ago does not predict the outcome of this request.
		k.failed = k.failed && now.Sub(k.asked) <= keysStale
		k.asked = now
		k.asking = make(chan struct{})
		go k.renew()
	}
	overdue := k.asking != nil && now.Sub(k.asked) > keysPatience
	k.failed, k.broken = k.failed || overdue, k.broken || overdue
	key, asking := k.key, k.asking
	// After a failure no call waits: the old keys are used until the service refuses them.
	usable := k.failed || now.Sub(k.got) <= keysStale
	patience := keysPatience - now.Sub(k.asked)
	k.mu.Unlock()
	if overdue {
		k.logFailure(credentialError("the Credential does not answer", nil))
	}
	if usable || asking == nil {
		return key, nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-asking:
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.key, nil
	case <-timer.C:
		return key, nil
	case <-ctx.Done():
		return accessKey{}, ctx.Err()
	}
}

// renew asks the source once.
func (k *keyring) renew() {
	var key accessKey
	var err error = credentialError("the Credential ended its goroutine", nil)
	defer func() { // runs even if the source ends the goroutine
		k.mu.Lock()
		mended := k.broken && err == nil
		k.failed = err != nil
		k.broken = err != nil
		if err == nil {
			k.key, k.got = key, time.Now()
		}
		close(k.asking)
		k.asking = nil
		k.mu.Unlock()
		switch {
		case err != nil:
			k.logFailure(err)
		case mended:
			k.log().Info("captcha: the Credential provides keys again")
		}
	}()
	key, err = askFor(k.source)
}

// logFailure logs err, whose text must not contain any text of the source.
func (k *keyring) logFailure(err error) {
	if isDue(&k.logLimit) {
		k.log().Error("captcha: the Credential provided no new keys; the old keys stay in use until they expire",
			"captcha.error", err.Error())
	}
}

func (k *keyring) log() *slog.Logger { return cmp.Or(k.logger, slog.Default()) }
