package alicaptcha

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
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
// A call waits for keysPatience at most, and less if its deadline is near. Then it is
// signed with the old keys: the service knows whether they are still good, and says so.
const (
	keysFresh    = 60 * time.Second
	keysStale    = 150 * time.Second
	keysPatience = 4 * time.Second
	keysLate     = 10 * time.Second // after which the source counts as failed
	keysRetry    = 2 * time.Second  // from a failure to the next question, and up to 3 s more
	keysAnew     = 10 * time.Second // between questions after the service has refused the keys
)

// A keyring holds the keys of a Client.
type keyring struct {
	source   credentials.Credential // nil if the keys never change
	logger   *slog.Logger           // nil means slog.Default()
	logLimit rate.Sometimes         // limits how often a failure is logged

	mu         sync.Mutex
	key        accessKey
	next       time.Time     // when the source is asked again, by the first call after it
	got, asked time.Time     // when the source last returned keys, and when it was last asked
	failed     bool          // the last request failed or exceeds keysLate; reset after keysStale
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
		next: now.Add(keysFresh),
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
		return accessKey{}, credentialError("the Credential"+kindOf(source)+" failed: "+causeOf(err), err)
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

// kindOf returns the type that source has in credentials-go, such as ecs_ram_role, in
// parentheses, or "" if it has none.
func kindOf(source credentials.Credential) (kind string) {
	defer func() {
		if recover() != nil { // of a source that embeds an interface and leaves it nil
			kind = ""
		}
	}()
	kind = token(dara.StringValue(source.GetType()))
	if kind == "" {
		return ""
	}
	return " (" + kind + ")"
}

// stsCode finds the Code in an answer of STS, and statusAtEnd the status of an
// answer of the metadata server, in the texts of credentials-go's errors.
var (
	stsCode     = regexp.MustCompile(`"Code"\s*:\s*"([A-Za-z0-9._]{1,64})"`)
	statusAtEnd = regexp.MustCompile(`\s([1-5][0-9]{2})$`)
)

// knownCauses are phrases in the errors of the operating system and of credentials-go,
// which mostly keeps only their text.
var knownCauses = []string{
	"connection refused", "connection reset", "no such host", "no route to host", "network is unreachable",
	"i/o timeout", "Client.Timeout exceeded", "deadline exceeded", "server misbehaving", "certificate", "EOF",
	"no such file", "permission denied", "executable file not found", "exit status", "timed out",
	"json unmarshal fail", "json.Unmarshal fail", "fail to get credentials", "unable to get credentials",
}

// causeOf returns what is known to be safe of the error of a Credential. Its text may
// hold anything, as the answer of an STS endpoint with the keys.
func causeOf(err error) string {
	if text, ok := safeText(err); ok {
		return text
	}
	text := err.Error()
	text = text[:min(len(text), 4096)]
	if code := stsCode.FindStringSubmatch(text); code != nil {
		return "code " + code[1]
	}
	for _, cause := range knownCauses {
		if strings.Contains(text, cause) {
			return cause
		}
	}
	if status := statusAtEnd.FindStringSubmatch(text); status != nil {
		return "status " + status[1]
	}
	return fmt.Sprintf("a %T", err)
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
	if k.asking == nil && now.After(k.next) {
		// A failure from long ago does not predict the outcome of this request.
		k.failed = k.failed && now.Sub(k.asked) <= keysStale
		k.asked = now
		k.asking = make(chan struct{})
		go k.renew()
	}
	overdue := k.asking != nil && now.Sub(k.asked) > keysLate
	k.failed, k.broken = k.failed || overdue, k.broken || overdue
	key, asking := k.key, k.asking
	// After a failure no call waits: the old keys are used until the service refuses them.
	usable := k.failed || now.Sub(k.got) <= keysStale
	patience := min(keysPatience-now.Sub(k.asked), waitFor(ctx, now))
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

// waitFor returns how long a call may wait for keys, so that enoughTime is left for the
// service, or half of the time that there is.
func waitFor(ctx context.Context, now time.Time) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return keysPatience
	}
	left := deadline.Sub(now)
	return max(left/2, left-enoughTime)
}

// refused says that the service has refused key, as it does after it was revoked: the
// source is asked anew by the next call, at most every keysAnew. If there are other keys
// by now, that says nothing of them.
func (k *keyring) refused(key accessKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	isPresent := k.key.model.AccessKeyId == key.model.AccessKeyId // a pointer
	if anew := k.asked.Add(keysAnew); isPresent && anew.Before(k.next) {
		k.next = anew
	}
}

// renew asks the source once.
func (k *keyring) renew() {
	var key accessKey
	var err error = credentialError("the Credential ended its goroutine", nil)
	defer func() { recover() }() // of the Logger: in this goroutine it would end the program
	defer func() {               // runs even if the source ends the goroutine
		k.mu.Lock()
		mended := k.broken && err == nil
		k.failed = err != nil
		k.broken = err != nil
		now := time.Now()
		if err == nil {
			k.key, k.got, k.next = key, now, k.asked.Add(keysFresh)
		} else {
			k.next = now.Add(keysRetry + rand.N(3*time.Second)) // replicas do not ask together
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
