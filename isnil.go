package alicaptcha

import (
	"reflect"
)

// isNil also finds a nil pointer inside the interface, whose Allow would panic
// at the first outage.
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
