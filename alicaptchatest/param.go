package alicaptchatest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"slices"

	"github.com/alicaptcha/alicaptcha"
)

// Format is a format of params.
type Format string

// The formats of the two generations of the service. A V3 param is 280 characters
// of base64, and must be verified within 90 seconds. A V2 param is about 4.5 KB of
// JSON, and is valid for 20 minutes.
const (
	V3 Format = "v3"
	V2 Format = "v2"
)

const (
	deviceTokenLen = 700
	defaultData    = 3700
	maxData        = 1 << 20
	v3JSONLen      = 210 // 280 characters of base64
	minTokenLen    = 32  // if a long scene ID leaves less
)

// Issue describes a param to issue. In JSON it is the body of POST /issue.
type Issue struct {
	// SceneID is a scene of the account. It must be set.
	SceneID string `json:"sceneId"`

	// Code is the verdict on the param if nothing else is wrong with it: T or F
	// and three digits. If empty, it is T001.
	Code alicaptcha.Code `json:"code,omitzero"`

	// Format is V3 or V2. If empty, it is V3.
	Format Format `json:"format,omitzero"`

	// Bytes is the approximate length of the data in a V2 param, at most 1 MiB.
	// The rest of the param takes less than 1 KB. Zero means a param of about
	// 4.5 KB in all. The service has been seen to issue params of 28 KB.
	Bytes int `json:"bytes,omitzero"`
}

type v3Param struct {
	CertifyID     string `json:"certifyId"`
	SceneID       string `json:"sceneId"`
	IsSign        bool   `json:"isSign"`
	SecurityToken string `json:"securityToken"`
}

type v2Param struct {
	SceneID     string `json:"sceneId"`
	CertifyID   string `json:"certifyId"`
	DeviceToken string `json:"deviceToken"`
	Data        string `json:"data"`
}

// mint returns a new param for i, whose Code and Format must be set.
func mint(i Issue, certifyID string) string {
	if i.Format == V2 {
		n := i.Bytes
		if n == 0 {
			n = defaultData
		}
		return string(marshal(v2Param{i.SceneID, certifyID, random(deviceTokenLen), random((n + 3) / 4 * 4)}))
	}
	p := v3Param{CertifyID: certifyID, SceneID: i.SceneID, IsSign: true}
	p.SecurityToken = random(max(v3JSONLen-len(marshal(p)), minTokenLen))
	return base64.StdEncoding.EncodeToString(marshal(p))
}

func marshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // not possible for strings and booleans
	}
	return text
}

// random returns n random characters of base64.
func random(n int) string {
	b := make([]byte, n*3/4+1)
	rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)[:n]
}

// param is what a Simulator reads in a param, whoever made it.
type param struct {
	complete, failover bool
	format             Format
	sceneID, certifyID string
}

// parseParam parses text. It reports false if text is neither a JSON object (V2)
// nor base64 of one (V3).
func parseParam(text string) (param, bool) {
	p := param{format: V2}
	required := []string{"sceneId", "certifyId", "deviceToken", "data"}
	object, ok := parseObject([]byte(text))
	if !ok {
		p.format = V3
		required = []string{"sceneId", "certifyId", "securityToken"}
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return param{}, false
		}
		if object, ok = parseObject(decoded); !ok {
			return param{}, false
		}
	}
	p.sceneID, _ = object["sceneId"].(string)
	p.certifyID, _ = object["certifyId"].(string)
	// The script makes such a param itself if it cannot reach the service.
	if p.failover = object["failover"] == "T" && p.sceneID != ""; p.failover {
		return p, true
	}
	for _, name := range required {
		if value, _ := object[name].(string); value == "" {
			return p, true
		}
	}
	_, isBool := object["isSign"].(bool)
	p.complete = isBool || p.format == V2
	return p, true
}

func parseObject(text []byte) (map[string]any, bool) {
	var object map[string]any
	err := json.Unmarshal(text, &object)
	return object, err == nil && object != nil // null is not an object
}

// isAboutScene reports whether c is a verdict on the scene, whatever the param.
func isAboutScene(c alicaptcha.Code) bool {
	return slices.Contains([]alicaptcha.Code{alicaptcha.T005, alicaptcha.F004, alicaptcha.F005, alicaptcha.F006}, c)
}

// isVerdict reports whether c has the form of a VerifyCode.
func isVerdict(c alicaptcha.Code) bool {
	_, ok := c.Verdict()
	return ok
}
