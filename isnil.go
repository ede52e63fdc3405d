package alicaptcha

import "reflect"

// isNil reports whether v is nil or holds a nil value. A nil pointer in an
// interface would panic only when it is first used, such as a Limiter in the
// first outage.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	switch rv := reflect.ValueOf(v); rv.Kind() {
	case reflect.Pointer, reflect.Func, reflect.Map, reflect.Chan, reflect.Slice:
		return rv.IsNil()
	}
	return false
}
