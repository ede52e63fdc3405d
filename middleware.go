package alicaptcha

import (
	"time"
)

// placeholder until written
type Outcome struct {
	Code     Code
	Result   Result
	Action   Action
	Allowed  bool
	Verified bool
	SceneID  string
	Duration time.Duration
	Err      error
}
