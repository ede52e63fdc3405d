package e2e

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The page of docs/apps.md hands the param to each platform's bridge, and tells the app
// if the widget cannot be loaded.
func TestAppsPage(t *testing.T) {
	t.Parallel()
	pages, scripts := pieces(t, "docs/apps.md", "html"), pieces(t, "docs/apps.md", "js")
	require.Len(t, pages, 1)
	require.Len(t, scripts, 1)
	forWeChat := regexp.MustCompile(`(?s)  function tell\(.*?\n  }\n`).ReplaceAllLiteralString(pages[0], scripts[0])
	require.NotEqual(t, pages[0], forWeChat)
	const told = `<script>const told = [], bridge = {postMessage: (message) => told.push(message)};</script>`
	for name, row := range map[string]struct{ bridge, page string }{
		"Android, HarmonyOS, Flutter": {`window.CaptchaBridge = bridge`, pages[0]},
		"iOS":                         {`window.webkit = {messageHandlers: {CaptchaBridge: bridge}}`, pages[0]},
		"WeChat": {`let sent;
			window.wx = {miniProgram: {postMessage: ({data}) => { sent = data; }, navigateBack: () => told.push(sent)}}`, forWeChat},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			page := told + `<script>` + row.bridge + `</script>` + row.page
			p := serve(t, window{width: 360, touch: true}, page)
			p.open("/page")
			p.swipes() // the challenge opens by itself
			p.until(`told.length === 1`)
			var message struct{ Param string }
			require.NoError(t, json.Unmarshal([]byte(eval[string](p, `told[0]`)), &message))
			require.NotEmpty(t, message.Param)
			body, err := json.Marshal(map[string]string{
				"captchaVerifyParam": message.Param, "username": "alice", "password": "correct-horse",
			})
			require.NoError(t, err)
			resp, err := http.Post(p.site+"/login", "application/json", strings.NewReader(string(body)))
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, http.StatusOK, resp.StatusCode)

			p = serve(t, window{blockedScript: true}, page)
			p.open("/page")
			p.until(`told.length === 1`)
			require.JSONEq(t, `{"error": "the script cannot be loaded"}`, eval[string](p, `told[0]`))
		})
	}
}
