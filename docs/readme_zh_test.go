package docs

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// README.zh-CN.md says what README.md says, as far as a machine can tell: see
// readmeFaults. Who changes one of them changes the other.
func TestReadmeChinese(t *testing.T) {
	t.Parallel()
	english, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	chinese, err := os.ReadFile("../README.zh-CN.md")
	require.NoError(t, err)
	require.Contains(t, string(chinese), "\n\n[English](README.md)\n\n")
	require.Empty(t, readmeFaults(string(english), string(chinese)))
}

// readmeFaults returns in what the two texts differ. They must have the same
// blocks in the same order: headings of each level, paragraphs, items of lists,
// tables, code. In each pair of blocks these must be equal:
//   - code in a fence, with its language
//   - the `code` in a line, and where links lead to, without anchors
//   - the figures, with their units, and the names_like_this; see readmeFigures
//   - a table's rows and cells in number, and the above in each cell, in order
//   - which cells of a column are alike, such as those that say yes
//
// A paragraph or an item that is the same in both was not translated. What words
// mean nobody but a reader can tell.
func readmeFaults(english, chinese string) (faults []string) {
	en, zh := readmeBlocks(english), readmeBlocks(chinese)
	place := "the beginning"
	for i := range max(len(en), len(zh)) {
		if i >= len(en) || i >= len(zh) || en[i].kind != zh[i].kind {
			// What follows would differ, too.
			return append(faults, fmt.Sprintf("after %q the blocks differ: %q, %q", place, at(en, i), at(zh, i)))
		}
		place = en[i].text
		fault := func(what string, e, z any) {
			if fmt.Sprintf("%q", e) != fmt.Sprintf("%q", z) {
				faults = append(faults, fmt.Sprintf("%s: %q, %q, in %q", what, e, z, place))
			}
		}
		switch kind := en[i].kind; {
		case kind == "code":
			fault("code", en[i].text, zh[i].text)
		case kind == "table":
			e, z := readmeTable(en[i].text), readmeTable(zh[i].text)
			fault("rows", len(e), len(z))
			for row := range min(len(e), len(z)) {
				fault("cells", len(e[row]), len(z[row]))
				for cell := range min(len(e[row]), len(z[row])) {
					e, z := e[row][cell], z[row][cell]
					if !readmeWords.MatchString(docName.ReplaceAllString(e, "")) {
						fault("cell", e, strings.NewReplacer("、", ", ", "，", ", ").Replace(z))
					}
					fault("code in a cell", names(e), names(z))
					fault("links in a cell", readmeLinks(e), readmeLinks(z))
					fault("figures in a cell", readmeFigures(e), readmeFigures(z))
				}
				for above := range row {
					fault("columns like those of "+z[above][0], alike(e[above], e[row]), alike(z[above], z[row]))
				}
			}
		default:
			e, z := en[i].text, zh[i].text
			fault("code in the text", sorted(names(e)), sorted(names(z)))
			fault("links", sorted(readmeLinks(e)), sorted(readmeLinks(z)))
			fault("figures", sorted(readmeFigures(e)), sorted(readmeFigures(z)))
			if e == z && kind != "#" {
				faults = append(faults, fmt.Sprintf("not translated: %q", e))
			}
			if numeral := readmeNumeral.FindString(z); numeral != "" {
				faults = append(faults, fmt.Sprintf("a figure that is not in digits: %q", numeral))
			}
		}
	}
	return faults
}

type readmeBlock struct {
	kind string // "#" to "######", "text", "item", "table" or "code"
	text string
}

// at returns the block at i, or nothing after the last.
func at(blocks []readmeBlock, i int) string {
	if i >= len(blocks) {
		return "nothing"
	}
	return blocks[i].kind + " " + blocks[i].text
}

// readmeBlocks returns the blocks of a text, without the line that leads to the
// other language.
func readmeBlocks(text string) (blocks []readmeBlock) {
	kind := "" // of the block that the next line may go on with
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		trimmed := strings.TrimSpace(line)
		begins := ""
		switch {
		case kind == "code":
			blocks[len(blocks)-1].text += "\n" + line
			if trimmed == "```" {
				kind = ""
			}
			continue
		case trimmed == "" || trimmed == "[简体中文](README.zh-CN.md)" || trimmed == "[English](README.md)":
			kind = ""
			continue
		case strings.HasPrefix(trimmed, "```"):
			begins = "code"
		case docHeading.MatchString(line):
			begins, _, _ = strings.Cut(line, " ")
		case strings.HasPrefix(trimmed, "- "):
			begins = "item"
		case strings.HasPrefix(trimmed, "|") && kind != "table":
			begins = "table"
		case kind == "" || strings.HasPrefix(kind, "#"):
			begins = "text"
		}
		switch last := len(blocks) - 1; {
		case begins != "":
			kind = begins
			blocks = append(blocks, readmeBlock{kind, line})
		case kind == "table":
			blocks[last].text += "\n" + line
		default:
			blocks[last].text += " " + trimmed
		}
	}
	return blocks
}

// readmeTable returns the cells of a table, its heading's too.
func readmeTable(text string) (rows [][]string) {
	for line := range strings.Lines(text) {
		var row []string
		for cell := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "|"), "|"), "|") {
			row = append(row, strings.TrimSpace(cell))
		}
		rows = append(rows, row)
	}
	return rows
}

// readmeLinks returns where the links of text lead to. The vendor has a manual
// for each language.
func readmeLinks(text string) (targets []string) {
	for _, match := range docLink.FindAllStringSubmatch(docCode.ReplaceAllString(text, ""), -1) {
		target, _, _ := strings.Cut(strings.Join(match[1:], ""), "#")
		if target == "https://help.aliyun.com/zh/captcha/" {
			target = "https://www.alibabacloud.com/help/en/captcha/"
		}
		targets = append(targets, target)
	}
	return targets
}

var (
	readmeWords     = regexp.MustCompile(`\pL{2}`) // there is something to translate
	readmeNumber    = regexp.MustCompile(`(?i)\b(two|three|four|five|six|seven|eight|nine|ten)\b`)
	readmeThousands = regexp.MustCompile(`([0-9]),([0-9]{3})\b`)
	readmeSeconds   = regexp.MustCompile(`([0-9]) ?(秒|seconds?\b)`)
	readmeMinutes   = regexp.MustCompile(`([0-9]) ?(分钟|minutes?\b)`)
	readmeFigure    = regexp.MustCompile(`[A-Za-z]*[0-9]+([.:][0-9]+)*( ?%| ?(KiB|KB|MiB|MB|B|ns|µs|ms|s|min)\b)?|[a-z]+(_[a-z]+)+`)
	readmeNumeral   = regexp.MustCompile(`[两二三四五六七八九十百千万]+ ?(个|次|倍|秒|核|轮|分钟|小时|条|种|项|台)`) // 一 is an article, too
)

// readmeFigures returns the figures of text outside code and addresses, such as
// "0.71", "128KiB", "F009", "V3", and its names_like_this. The words from two to
// ten are figures, too, for which Chinese has digits: "five seconds" and "5 秒"
// are "5s". One is an article, and no figure. "2,000" is "2000".
func readmeFigures(text string) (figures []string) {
	text = docText.ReplaceAllString(docCode.ReplaceAllString(text, " "), "$1")
	text = readmeNumber.ReplaceAllStringFunc(text, func(word string) string {
		return strconv.Itoa(2 + slices.Index([]string{"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}, strings.ToLower(word)))
	})
	text = readmeThousands.ReplaceAllString(text, "$1$2")
	text = readmeSeconds.ReplaceAllString(text, "${1}s ")
	text = readmeMinutes.ReplaceAllString(text, "${1}min ")
	for _, figure := range readmeFigure.FindAllString(text, -1) {
		figures = append(figures, strings.ReplaceAll(figure, " ", ""))
	}
	return figures
}

// alike returns which cells of two rows are the same.
func alike(above, row []string) (columns []int) {
	for i := range min(len(above), len(row)) {
		if above[i] == row[i] {
			columns = append(columns, i)
		}
	}
	return columns
}

func sorted(list []string) []string {
	slices.Sort(list)
	return list
}

// The comparison finds what it is for, whichever of the two was changed.
func TestReadmeChineseFaults(t *testing.T) {
	t.Parallel()
	const english = "# name\n\n[简体中文](README.zh-CN.md)\n\n`name` is [the vendor's](https://www.alibabacloud.com/help/en/captcha/), see [below](#limits)\nand [docs](docs/).\n\n" +
		"## Limits\n\n- It takes `a` and `b` five\n  seconds, V3 or T001.\n- Of 2,000 it lets ten through in 2 minutes.\n\n```sh\ngo run .\n\n# more\n```\nRun 128 KiB:\n\n" +
		"| place | `code` |\n|---|---|\n| first / last | 0.71 / 0.32 |\n| `x`, `y` | 429, `z` |\n| a_code 7 | 6.5ms / 1.2s |\n| 3 | yes |\n| 4 | no |\n| 8 | yes |\n| 5 | yes or `no` |\n| 6 | [more](docs/) |\n"
	const chinese = "# name\n\n[English](README.md)\n\n`name` 属于[阿里云](https://help.aliyun.com/zh/captcha/)，见[文档](docs/)和[下文](#限制)。\n\n" +
		"## 限制\n\n- 它用 5 秒处理 `b` 和 `a`，V3 或 T001。\n- 2 分钟内从 2000 个中放行 10 个。\n\n```sh\ngo run .\n\n# more\n```\n\n运行 128 KiB：\n\n" +
		"| 位置 | `code` |\n|---|---|\n| 最前 / 最后 | 0.71 / 0.32 |\n| `x`、`y` | 429，`z` |\n| a_code 7 | 6.5ms / 1.2s |\n| 3 | 是 |\n| 4 | 否 |\n| 8 | 是 |\n| 5 | 是或 `no` |\n| 6 | [更多](docs/) |\n"
	require.Empty(t, readmeFaults(english, chinese))
	require.Empty(t, readmeFaults(strings.Replace(english, "[简体中文](README.zh-CN.md)\n\n", "", 1), chinese))

	for _, change := range []struct{ old, new string }{
		{"# name", "## name"},
		{"help/en/captcha/", "help/en/other/"},
		{"(docs/)", "(docs/operations.md)"},
		{"\nand [docs](docs/)", ""},
		{"## Limits\n", "### Limits\n"},
		{"## Limits\n", "## Limits\n\nMore.\n"},
		{"## Limits\n\n", ""},
		{"- It takes", "It takes"},
		{"`b` five", "`c` five"},
		{"`b` five", "five"},
		{"five\n  seconds", "six\n  seconds"},
		{"five\n  seconds", "five\n  minutes"},
		{"V3", "V2"},
		{"T001", "T005"},
		{"2,000", "3,000"},
		{"ten through", "some through"},
		{"```sh", "```go"},
		{"go run .\n\n", "go run .\n"},
		{"# more\n", "# less\n"},
		{"128 KiB", "128 KB"},
		{"128 KiB", "64 KiB"},
		{"| `code` |", "| `other` |"},
		{"| 0.71 / 0.32 |", "| 0.32 / 0.71 |"},
		{"| 0.71 / 0.32 |", "| 0.71 / 0.32 | |"},
		{"| `x`, `y` |", "| `y`, `x` |"},
		{"| `x`, `y` | 429, `z` |\n", ""},
		{"429, `z`", "403, `z`"},
		{"a_code", "b_code"},
		{"6.5ms", "6.5µs"},
		{"| 8 | yes |", "| 8 | no |"},
		{"| 4 | 否 |", "| 4 | 是 |"},
		{"yes or `no`", "yes or `never`"},
		{"[more](docs/)", "[more](docs/operations.md)"},
		{"| 6 | [more](docs/) |\n", ""},
		{"| 6 | [more](docs/) |\n", "| 6 | [more](docs/) |\n\nThe end.\n"},
		{"| 6 | [更多](docs/) |\n", "| 6 | [更多](docs/) |\n\n完。\n"},
		{"0.71 / 0.32", "0.71, 0.32"},
		{"2 minutes", "2 seconds"},
		{"2 minutes", "2 of them"},
		{"`x`、`y`", "`x`"},
		{"5 秒", "5 分钟"},
		{"5 秒", "五秒"},
		{"2000 个", "2000 个两次"},
		{"10 个", "一些"},
		{"运行 128 KiB：", "Run 128 KiB:"},
		{"help.aliyun.com/zh/captcha/", "help.aliyun.com/zh/other/"},
		{"[下文](#限制)", "下文"},
		{"## 限制\n\n", ""},
	} {
		en, zh := strings.Replace(english, change.old, change.new, 1), strings.Replace(chinese, change.old, change.new, 1)
		require.False(t, en == english && zh == chinese, "there is no %q", change.old)
		if en != english {
			require.NotEmpty(t, readmeFaults(en, chinese), change.new)
		}
		if zh != chinese {
			require.NotEmpty(t, readmeFaults(english, zh), change.new)
		}
	}
}
