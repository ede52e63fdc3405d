package docs

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/stretchr/testify/require"
)

// The dashboard is one by Grafana's schema, which has all of its fields and values.
func TestDashboardSchema(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	text, err := os.ReadFile("grafana-dashboard.json")
	require.NoError(t, err)
	require.Empty(t, dashboardFaults(text))

	// A field that has another name, or a value of another type, is found.
	for _, field := range []string{
		"schemaVersion", "allValue", "gridPos", "expr", "legendFormat", "drawStyle", "displayMode",
		"reduceOptions", "colorMode", "mergeValues", "thresholds", "mappings", "matcher", "unit",
	} {
		name := `"` + field + `":`
		require.Contains(t, string(text), name)
		require.NotEmpty(t, dashboardFaults([]byte(strings.Replace(string(text), name, `"x`+name[1:], 1))), field)
		require.NotEmpty(t, dashboardFaults([]byte(strings.Replace(string(text), name, name+`{"a":1},"y":`, 1))), field)
	}
}

// dashboardFaults returns what is wrong with a dashboard. The generated code is not
// strict about the fields of a panel's fieldConfig.
func dashboardFaults(text []byte) []string {
	var d dashboard.Dashboard //lint:ignore SA1019 this form is the one that every Grafana can import
	var faults []string
	add := func(err error) {
		if err != nil && err.Error() != "" { // an error without an entry is none
			faults = append(faults, err.Error())
		}
	}
	add(d.UnmarshalJSONStrict(text))
	add(d.Validate())
	var raw struct {
		Panels []struct{ FieldConfig json.RawMessage }
	}
	add(json.Unmarshal(text, &raw))
	for _, panel := range raw.Panels {
		var config dashboard.FieldConfigSource
		add(config.UnmarshalJSONStrict(panel.FieldConfig))
	}
	return faults
}
