package alicaptchatest

import (
	"crypto/aes"
	"crypto/cipher"
	_ "embed"
	"encoding/base64"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alicaptcha/alicaptcha"
)

const (
	ekeyLen       = 32    // AES-256
	maxExpireTime = 86400 // in seconds
)

// The forms of a prefix, which is the first label of a host name at the vendor, and
// of what follows the prefix in a UserCertifyId. They bound what a client can make a
// Simulator keep.
var (
	prefixForm    = regexp.MustCompile(`^[0-9A-Za-z-]{1,63}$`)
	certifyIDForm = regexp.MustCompile(`^[0-9A-Za-z]{10}$`)
)

//go:embed AliyunCaptcha.js
var widget []byte

// widgetCall is the body of the script's requests, which are not those of the
// vendor's script.
type widgetCall struct {
	Prefix           string `json:"prefix"`
	SceneID          string `json:"sceneId"`
	Format           Format `json:"format"`
	UserCertifyID    string `json:"userCertifyId"`
	EncryptedSceneID string `json:"encryptedSceneId"`
}

func serveWidget(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "use GET")
		return
	}
	w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.Write(widget)
}

// serveWidgetCall answers the script. POST /widget/init is answered with an empty
// object, or with the code of the error for onError. POST /widget/verify is answered
// with the browser's verdict and, if it is a pass, with a param. Nothing is kept for
// an init, so a page may stay open for as long as it likes.
func (s *Simulator) serveWidgetCall(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Access-Control-Allow-Origin", "*") // the page has another origin
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeError(w, http.StatusMethodNotAllowed, "use POST")
		return
	}
	var c widgetCall
	if err := readJSON(w, r, maxIssueBody, &c); err != nil {
		refuseJSON(w, err)
		return
	}
	if code, why := s.checkInit(c); code != "" {
		writeJSON(w, http.StatusOK, map[string]string{"code": code, "msg": why})
		return
	}
	if r.URL.Path == "/widget/init" {
		writeJSON(w, http.StatusOK, struct{}{})
		return
	}
	if c.Format == V3 && s.ekey != nil {
		if err := s.checkEncryptedScene(c.SceneID, c.EncryptedSceneID); err != nil {
			writeJSON(w, http.StatusOK, map[string]any{"verifyCode": alicaptcha.F022, "error": err.Error()})
			return
		}
	}
	param, isNew := s.mint(Issue{SceneID: c.SceneID, Format: c.Format, Code: alicaptcha.T001}, c.UserCertifyID)
	if !isNew {
		writeJSON(w, http.StatusOK, map[string]any{"verifyCode": alicaptcha.F008, "error": "the UserCertifyId was used before"})
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"verifyCode": alicaptcha.T001, "captchaVerifyParam": param})
}

// checkInit returns the code with which the vendor's script reports that it cannot
// start, and the reason, or empty strings.
func (s *Simulator) checkInit(c widgetCall) (code, why string) {
	id, isOfPrefix := strings.CutPrefix(c.UserCertifyID, c.Prefix+"_")
	switch {
	case !prefixForm.MatchString(c.Prefix):
		return "IllegalUserTag", "the prefix must be that of the account"
	case !slices.Contains(s.cfg.Scenes, c.SceneID) || c.Format != V2 && c.Format != V3:
		return "IllegalScene", "the scene is not one of the account"
	case c.UserCertifyID != "" && !(isOfPrefix && certifyIDForm.MatchString(id)):
		return "IllegalCertifyId", "UserCertifyId must be the prefix, an underscore, and 10 letters or digits"
	}
	return "", ""
}

// parseEKey returns the key in ekey, which is standard base64 of 32 bytes.
func parseEKey(ekey string) ([]byte, error) {
	key, err := decodeStrict(ekey)
	if err != nil || len(key) != ekeyLen {
		return nil, errors.New("alicaptchatest: EKey must be base64 of 32 bytes")
	}
	return key, nil
}

// decodeStrict decodes standard base64. Unlike the package base64, it refuses line
// breaks.
func decodeStrict(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("there is a line break in the base64")
	}
	return base64.StdEncoding.Strict().DecodeString(text)
}

// checkEncryptedScene returns why the service refuses encrypted as an
// EncryptedSceneId for sceneID. It is independent of the code that makes one.
//
// It is not known at which of its requests the service checks it, nor whether one may
// be used by several visitors. Here it is checked at each attempt, and may be.
func (s *Simulator) checkEncryptedScene(sceneID, encrypted string) error {
	if encrypted == "" {
		return errors.New("EncryptedSceneId is missing")
	}
	text, err := decrypt(s.ekey, encrypted)
	if err != nil {
		return err
	}
	fields := strings.Split(text, "&")
	if len(fields) != 3 {
		return errors.New("EncryptedSceneId must contain sceneId&timestamp&expireTime; is the key another one?")
	}
	timestamp, err1 := strconv.ParseUint(fields[1], 10, 40)
	expireTime, err2 := strconv.ParseUint(fields[2], 10, 40)
	at, now := time.Unix(int64(timestamp), 0), s.clock()
	switch {
	case err1 != nil || err2 != nil:
		return errors.New("timestamp and expireTime in EncryptedSceneId must be numbers")
	case fields[0] != sceneID:
		return errors.New("EncryptedSceneId is another scene's")
	case at.After(now):
		return errors.New("EncryptedSceneId is from the future: its timestamp must not be later than now")
	case expireTime < 1 || expireTime > maxExpireTime:
		return errors.New("expireTime in EncryptedSceneId must be 1 to 86400 seconds")
	case !now.Before(at.Add(time.Duration(expireTime) * time.Second)):
		return errors.New("EncryptedSceneId has expired")
	}
	return nil
}

// decrypt returns the plaintext of base64 of an IV and the ciphertext, in AES-256-CBC
// with the padding of PKCS#7.
func decrypt(key []byte, encrypted string) (string, error) {
	data, err := decodeStrict(encrypted)
	if err != nil || len(data) < 2*aes.BlockSize || len(data)%aes.BlockSize != 0 {
		return "", errors.New("EncryptedSceneId must be base64 of an IV and whole blocks, without line breaks")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return "", err
	}
	iv, text := data[:aes.BlockSize], data[aes.BlockSize:]
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(text, text)
	n := int(text[len(text)-1])
	if n < 1 || n > aes.BlockSize || strings.Trim(string(text[len(text)-n:]), string(rune(n))) != "" {
		return "", errors.New("EncryptedSceneId cannot be decrypted with the account's key")
	}
	return string(text[:len(text)-n]), nil
}
