package alicaptcha

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// sceneKeySize is the size of an ekey in bytes: AES-256.
const sceneKeySize = 32

// sceneKeyAgo is how far in the past the timestamp of an encrypted scene ID is, because
// the service refuses one from its future, and clocks differ.
const sceneKeyAgo = 5 * time.Second

// maxSceneKeyTTL is the longest life that the service accepts, from the timestamp on.
const maxSceneKeyTTL = 24 * time.Hour

// A SceneKey encrypts scene IDs for the encrypted mode of V3, in which the service
// refuses a widget that does not have a recent EncryptedSceneId from the site's own
// server. It is made by [NewSceneKey], and is safe for concurrent use.
//
// Packages fmt, slog and encoding/json print a *SceneKey without its key.
type SceneKey struct {
	// seal encrypts a plaintext and returns the IV and the ciphertext. It is a function
	// because not even a printer that follows pointers by reflection finds a key in one.
	seal func(iv [aes.BlockSize]byte, plaintext string) []byte
}

// NewSceneKey returns the SceneKey for ekey, which the console shows for the account in
// its overview. It must be the standard Base64 of 32 bytes, with its padding and without
// white space. No error contains ekey or a part of it.
func NewSceneKey(ekey string) (*SceneKey, error) {
	if ekey == "" {
		return nil, errors.New("alicaptcha: the ekey is empty")
	}
	if strings.ContainsFunc(ekey, unicode.IsSpace) { // the decoder ignores line breaks
		return nil, errors.New("alicaptcha: the ekey contains white space, such as the newline at the end of a file")
	}
	key, err := base64.StdEncoding.Strict().DecodeString(ekey)
	if err != nil {
		return nil, errors.New("alicaptcha: the ekey is not standard Base64")
	}
	if len(key) != sceneKeySize {
		return nil, fmt.Errorf("alicaptcha: the ekey is the Base64 of %d bytes instead of %d", len(key), sceneKeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, errors.New("alicaptcha: the ekey cannot be used for AES-256")
	}
	return &SceneKey{seal: func(iv [aes.BlockSize]byte, plaintext string) []byte {
		padding := aes.BlockSize - len(plaintext)%aes.BlockSize // PKCS#7
		padded := plaintext + strings.Repeat(string(rune(padding)), padding)
		sealed := slices.Concat(iv[:], []byte(padded))
		cipher.NewCBCEncrypter(block, iv[:]).CryptBlocks(sealed[aes.BlockSize:], sealed[aes.BlockSize:])
		return sealed
	}}, nil
}

// Encrypt returns an EncryptedSceneId for the widget: sceneID, the time and a life in
// seconds, encrypted with AES-256 in CBC mode under a fresh random IV, in standard Base64
// without line breaks. It is different each time. A page that contains one must not be
// cached.
//
// The value expires ttl from now, or up to a second earlier. A ttl of less than a second
// or more than 24 hours is an error, and a fraction of a second is dropped. The time in
// the value is 5 seconds in the past, because the service refuses one from its future,
// and the clock of this machine may be ahead. The life in the value counts from that time,
// so it is 5 seconds longer than ttl, but never longer than the 24 hours that the service
// allows: with a ttl of 24 hours, the value expires 5 seconds early.
//
// A sceneID that is empty, is not valid UTF-8, or contains '&' or white space is an error,
// and so is a call on a nil or zero SceneKey. No error contains the key.
func (k *SceneKey) Encrypt(sceneID string, ttl time.Duration) (string, error) {
	switch {
	case k == nil || k.seal == nil:
		return "", errors.New("alicaptcha: the SceneKey was not made by NewSceneKey")
	case sceneID == "":
		return "", errors.New("alicaptcha: the scene ID is empty")
	case !utf8.ValidString(sceneID):
		return "", errors.New("alicaptcha: the scene ID is not valid UTF-8")
	case strings.ContainsRune(sceneID, '&') || strings.ContainsFunc(sceneID, unicode.IsSpace):
		return "", errors.New("alicaptcha: the scene ID contains '&' or white space")
	case ttl < time.Second || ttl > maxSceneKeyTTL:
		return "", fmt.Errorf("alicaptcha: the ttl is %v; it must be from 1s to 24h", ttl)
	}
	life := min(ttl.Truncate(time.Second)+sceneKeyAgo, maxSceneKeyTTL)
	from := time.Now().Add(-sceneKeyAgo).Unix()
	plaintext := sceneID + "&" + strconv.FormatInt(from, 10) + "&" + strconv.FormatInt(int64(life/time.Second), 10)
	var iv [aes.BlockSize]byte
	rand.Read(iv[:]) // it never returns an error
	return base64.StdEncoding.EncodeToString(k.seal(iv, plaintext)), nil
}

const redactedSceneKey = "SceneKey([redacted])"

// Format implements [fmt.Formatter]. It writes no part of the key.
func (*SceneKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, redactedSceneKey) }

// LogValue implements [slog.LogValuer]. It returns no part of the key.
func (*SceneKey) LogValue() slog.Value { return slog.StringValue(redactedSceneKey) }

// MarshalJSON implements [encoding/json.Marshaler]. It returns no part of the key.
func (*SceneKey) MarshalJSON() ([]byte, error) { return []byte(`"` + redactedSceneKey + `"`), nil }
