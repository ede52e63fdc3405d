package docs

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// README.zh-CN.md has the code, the tables and the links of README.md. Only a
// reader can tell whether the words say the same.
func TestReadmeChinese(t *testing.T) {
	t.Parallel()
	english, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	chinese, err := os.ReadFile("../README.zh-CN.md")
	require.NoError(t, err)
	want, got := readmeFacts(string(english)), readmeFacts(string(chinese))
	for i := range min(len(want), len(got)) {
		require.Equal(t, want[i], got[i])
	}
	require.Equal(t, len(want), len(got))
}

var (
	// What a diagram says in words.
	readmeLabel = regexp.MustCompile(`(?: as|:|alt|else) .*`)
	readmeFact  = regexp.MustCompile("`[^`]*`|[A-Z]?[0-9][0-9.]*( (µs|ms|s|kB|MB)\\b)?")
	readmeLink  = strings.NewReplacer("README.zh-CN.md", "README.md",
		"https://help.aliyun.com/zh/captcha/", "https://www.alibabacloud.com/help/en/captcha/")
)

// readmeFacts returns the lines of code blocks, those of diagrams without their
// labels, then the code and the figures in
// the cells of each row of a table, then the targets of links without their
// anchors. The links are sorted, since languages order a sentence differently.
func readmeFacts(text string) []string {
	var code, rows, links []string
	fenced, diagram := false, false
	for line := range strings.Lines(text) {
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		if fence || fenced {
			fenced, diagram = fenced != fence, strings.HasPrefix(line, "```mermaid") || diagram && !fence
			if diagram {
				line = readmeLabel.ReplaceAllString(line, "")
			}
			code = append(code, line)
			continue
		}
		if strings.HasPrefix(line, "|") {
			cells := strings.Split(line, "|")
			for i, cell := range cells {
				cells[i] = strings.Join(readmeFact.FindAllString(cell, -1), " ")
			}
			rows = append(rows, strings.Join(cells, "|"))
		}
		for _, match := range docLink.FindAllStringSubmatch(docCode.ReplaceAllString(line, ""), -1) {
			target, _, _ := strings.Cut(strings.Join(match[1:], ""), "#")
			links = append(links, readmeLink.Replace(target))
		}
	}
	slices.Sort(links)
	return slices.Concat(code, rows, links)
}

// The comparison finds what it is for, whichever of the two was changed.
func TestReadmeChineseFaults(t *testing.T) {
	t.Parallel()
	const english = "# name\n\n[简体中文](README.zh-CN.md)\n\n" +
		"`name` is [the vendor's](https://www.alibabacloud.com/help/en/captcha/), see [below](#limits)\n" +
		"and [docs](docs/).\n\n```sh\ngo run .\n\n# more\n```\n\n" +
		"```mermaid\nA->>B: send\nalt yes\n```\n\n" +
		"| place | `code` |\n|---|---|\n| first / last | 0.71 / 0.32 |\n| `x`, `y` | 429, `z` |\n" +
		"| T001 | 6.5 ms / 1.2 s |\n| 6 | [more](docs/) |\n"
	const chinese = "# name\n\n[English](README.md)\n\n" +
		"`name` 属于[阿里云](https://help.aliyun.com/zh/captcha/)，见[文档](docs/)和[下文](#限制)。\n\n" +
		"```sh\ngo run .\n\n# more\n```\n\n" +
		"```mermaid\nA->>B: 发送\nalt 是\n```\n\n" +
		"| 位置 | `code` |\n|---|---|\n| 最前 / 最后 | 0.71 / 0.32 |\n| `x`、`y` | 429，`z` |\n" +
		"| T001 | 6.5 ms / 1.2 s |\n| 6 | [更多](docs/) |\n"
	require.Equal(t, readmeFacts(english), readmeFacts(chinese))

	for _, change := range []struct{ old, new string }{
		{"[简体中文](README.zh-CN.md)", ""},
		{"(README.md)", "(docs/)"},
		{"help/en/captcha/", "help/en/other/"},
		{"help.aliyun.com/zh/captcha/", "help.aliyun.com/zh/other/"},
		{"(docs/)", "(docs/operations.md)"},
		{"\nand [docs](docs/)", ""},
		{"[下文](#限制)", "下文"},
		{"```sh", "```go"},
		{"go run .\n\n", "go run .\n"},
		{"# more\n", "# less\n"},
		{"A->>B", "A->>C"},
		{"```mermaid", "```text"},
		{"| `code` |", "| `other` |"},
		{"| 0.71 / 0.32 |", "| 0.32 / 0.71 |"},
		{"| 0.71 / 0.32 |", "| 0.71 / 0.32 | |"},
		{"| `x`, `y` |", "| `y`, `x` |"},
		{"| `x`, `y` | 429, `z` |\n", ""},
		{"`x`、`y`", "`x`"},
		{"429, `z`", "403, `z`"},
		{"429，`z`", "429，z"},
		{"T001", "F001"},
		{"6.5 ms", "6.5 µs"},
		{"[more](docs/)", "[more](docs/operations.md)"},
		{"| 6 | [更多](docs/) |\n", "| 6 | [更多](docs/) |\n| | |\n"},
	} {
		en, zh := strings.Replace(english, change.old, change.new, 1), strings.Replace(chinese, change.old, change.new, 1)
		require.False(t, en == english && zh == chinese, "there is no %q", change.old)
		if en != english {
			require.NotEqual(t, readmeFacts(en), readmeFacts(chinese), change.new)
		}
		if zh != chinese {
			require.NotEqual(t, readmeFacts(english), readmeFacts(zh), change.new)
		}
	}
}
