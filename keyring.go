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

// Keys from a Credential are asked for again in the background when they are
// older than keysFresh, and not used without asking when they are older than
// keysStale. When they end cannot be seen: a CredentialModel does not say it.
// But what credentials-go gives is good for 180 s more, a fifth of the shortest
// session: asked later than that it renews. So it renews while a call that asks
// is not held up, and two minutes before the keys end. (The deprecated
// rsa_key_pair renews when 5% are left, which is 180 s of its default session.)
// A source that has not answered for keysPatience is not waited for.
const (
	keysFresh    = 60 * time.Second
	keysStale    = 150 * time.Second
	keysPatience = 10 * time.Second
)

// A keyring has the keys of a Client.
type keyring struct {
	source   credentials.Credential // nil: the keys never change
	logger   *slog.Logger           // nil: slog.Default
	logLimit rate.Sometimes         // when a failure is logged

	mu         sync.Mutex
	key        accessKey
	got, asked time.Time     // when the source last gave keys, and was last asked
	failed     bool          // it gave none when last asked, or is late by keysPatience; forgotten after keysStale
	broken     bool          // it has failed since it last gave keys
	asking     chan struct{} // closed when the source has answered; nil while it is not being asked
}

// accessKey is the Credential that the SDK signs a call with.
type accessKey struct {
	credentials.Credential // nil: the SDK calls GetCredential alone
	model                  credentials.CredentialModel
}

func (k accessKey) GetCredential() (*credentials.CredentialModel, error) { return &k.model, nil }

// newKeyring returns a keyring with the keys that source gives now.
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

// askFor asks source for its keys. Its error does not show the source's text,
// which may hold what an STS endpoint answered.
func askFor(source credentials.Credential) (key accessKey, err error) {
	defer func() {
		// It also runs in a goroutine of ours, where a panic would end the program.
		if v := recover(); v != nil {
			err = credentialError(fmt.Sprintf("the Credential panicked with a %T", v), nil)
		}
	}()
	model, err := source.GetCredential()
	if err != nil {
		return accessKey{}, credentialError(fmt.Sprintf("the Credential failed with a %T", err), err)
	}
	if model == nil || dara.StringValue(model.AccessKeyId) == "" || dara.StringValue(model.AccessKeySecret) == "" {
		return accessKey{}, credentialError("the Credential has no AccessKey pair", nil)
	}
	if kind := dara.StringValue(model.Type); kind == "bearer" || kind == "id_token" {
		return accessKey{}, credentialError("the Credential is of a type that signs nothing", nil)
	}
	for _, value := range []*string{model.AccessKeyId, model.AccessKeySecret, model.SecurityToken} {
		if strings.ContainsFunc(dara.StringValue(value), notInKey) {
			text := "the Credential's keys have white space or other characters that no key has"
			return accessKey{}, credentialError(text, nil)
		}
	}
	return accessKey{model: *model}, nil
}

// credentialError returns the Error for a Credential that gives no keys. The text is
// shown, err is not.
func credentialError(text string, err error) *Error {
	return &Error{Code: Misconfigured, Err: safeError{text, err}}
}

// notInKey reports a rune that stands in no key; most often it is the newline
// at the end of a file.
func notInKey(r rune) bool { return r <= ' ' || r > '~' }

// get returns the keys to sign a call with. It waits for a slow source only
// where the keys at hand may have ended, and never past ctx.
func (k *keyring) get(ctx context.Context) (accessKey, error) {
	if k.source == nil {
		return k.key, nil
	}
	k.mu.Lock()
	now := time.Now()
	if k.asking == nil && now.Sub(k.asked) > keysFresh {
		// What a source said long ago says nothing of the one that is asked now.
		k.failed = k.failed && now.Sub(k.asked) <= keysStale
		k.asked = now
		k.asking = make(chan struct{})
		go k.renew()
	}
	overdue := k.asking != nil && now.Sub(k.asked) > keysPatience
	k.failed, k.broken = k.failed || overdue, k.broken || overdue
	key, asking := k.key, k.asking
	// After a failure nobody waits: the old keys serve on until the service refuses them.
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
	defer func() { // also if the source does that
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
			k.log().Info("captcha: the Credential gives keys again")
		}
	}()
	key, err = askFor(k.source)
}

// logFailure logs err, which shows nothing of what the source said.
func (k *keyring) logFailure(err error) {
	if isDue(&k.logLimit) {
		k.log().Error("captcha: the Credential gave no new keys, the old ones serve on until they end",
			"captcha.error", err.Error())
	}
}

func (k *keyring) log() *slog.Logger { return cmp.Or(k.logger, slog.Default()) }
