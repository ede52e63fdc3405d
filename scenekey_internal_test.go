package alicaptcha

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The vectors were made by openssl; testdata/scenekey/README.md says how.
func TestSceneKeyVectors(t *testing.T) {
	file, err := os.Open("testdata/scenekey/vectors.jsonl")
	require.NoError(t, err)
	defer file.Close()
	n := 0
	for lines := bufio.NewScanner(file); lines.Scan(); n++ {
		var vector struct{ About, Ekey, IV, Plaintext, Value string }
		require.NoError(t, json.Unmarshal(lines.Bytes(), &vector))
		iv, err := hex.DecodeString(vector.IV)
		require.NoError(t, err)
		key, err := NewSceneKey(vector.Ekey)
		require.NoError(t, err)
		sealed := key.seal([16]byte(iv), vector.Plaintext)
		require.Equal(t, vector.Value, base64.StdEncoding.EncodeToString(sealed), vector.About)
	}
	require.Equal(t, 9, n)
}
