// Command bench measures the cost and the waiting time of a login, and compares them
// with what others use in place of this module. Run it in its own folder:
//
//	cd bench && go run . [flags]
//
// The flags are:
//
//	-o directory
//		The directory to which the report and its pictures are written (default
//		../docs).
//	-short
//		Run everything once and quickly, to see that it runs. The figures mean
//		nothing.
//
// The program takes less than ten minutes on two cores. It prints its tables as
// Markdown. All contenders run in the same process, round by round, in alternating
// order. The program starts the services and sites itself, on loopback. It builds on
// other systems, but needs Linux to run: only there can one process trust the
// certificate of the services as a root.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alicaptcha/alicaptcha/bench/internal/loopback"
)

func main() {
	short := flag.Bool("short", false, "run everything once and quickly: to see that it runs")
	dir := flag.String("o", filepath.Join("..", "docs"), "the `directory` to write to")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*dir, *short); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A bench is one run of the program, with its settings and results.
type bench struct {
	short   bool
	rounds  int
	each    time.Duration // the time for each contender in a round, if it takes microseconds
	dir     string
	text    strings.Builder
	targets []target
}

// A target is a condition on the results, with its result.
type target struct {
	text, measured string
	met            bool
}

func run(dir string, short bool) error {
	b := &bench{rounds: 9, each: 40 * time.Millisecond, dir: dir, short: short}
	if short {
		b.rounds, b.each = 2, time.Millisecond
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	forget, err := loopback.Only()
	if err != nil {
		return err
	}
	defer forget()

	start := time.Now()
	b.print("# Performance\n\nWhat a login costs and what it waits for, beside what people use in place of this module. "+
		"This is the output of\n\n```sh\ncd bench && go run .\n```\n\n%s\n", machine(start))
	for _, part := range []func() error{b.requestCost, b.callCost, b.waits, b.hashing, b.underLoad, b.outage, b.growth} {
		if err := part(); err != nil {
			return err
		}
	}
	b.print("## Targets\n\n| target | measured | met |\n|---|--:|---|\n")
	for _, t := range b.targets {
		b.print("| %s | %s | %s |\n", t.text, t.measured, map[bool]string{true: "yes", false: "**no**"}[t.met])
	}
	b.print("\n%s\nThe run took %v.\n", reasons, time.Since(start).Round(time.Second))
	return os.WriteFile(filepath.Join(dir, "performance.md"), []byte(b.text.String()), 0o644)
}

// reasons explains the targets that may be missed. It contains no figures; these are in
// the tables.
const reasons = `What keeps some of them from being met:

- 0.5 KB, JSON and urlencoded: nothing stands out; profile.txt in the folder bench has the profiles and the commands that print them.
  The largest parts are reading the body, and the deadline with its timer (five of the ten allocations). Then come the copy of
  the request that carries the context, and the copy of the param. A deadline that is made only when somebody waits for it was
  not built: every Verifier that asks a service does wait. ParseForm has no deadline and leaves no body to read.
- 4 KB: the first read takes up to 4 KB, which is what net/http has of the body by then. Only a body that was read to its end
  has net/http notice a client that hangs up, so a shorter first read, which meets the target, is not worth it.
- 15 s: these calls had been sent when the connection was closed, and nobody but the service can know whether it has read
  them. Until then the default Transport keeps a connection, since the service keeps it for 25 s; go run ./idle counts such
  calls as late. If something in between closes earlier, a Transport with a shorter IdleConnTimeout has none of them.
- 64 callers: those beyond 64 are dialed while the first handshakes compete for the cores; a caller whose new connection somebody
  else has taken dials again. A limit on connections would have a flood wait in line, and end in service_timeout.
`

// print adds text to the report and prints it.
func (b *bench) print(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Print(text)
	b.text.WriteString(text)
}

func (b *bench) target(text string, measured float64, format string, met bool) {
	b.targets = append(b.targets, target{text, fmt.Sprintf(format, measured), met})
}

// few returns n, or short in a short run.
func (b *bench) few(n, short int) int {
	if b.short {
		return short
	}
	return n
}

// machine describes the machine and the versions that were measured.
func machine(now time.Time) string {
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "| %s | %s |\n", name, value) }
	b.WriteString("| | |\n|---|---|\n")
	line("CPU", cmp.Or(procField("/proc/cpuinfo", "model name"), runtime.GOARCH))
	line("cores",
		fmt.Sprintf("%d, GOMAXPROCS %d; service, site and load share them", runtime.NumCPU(), runtime.GOMAXPROCS(0)))
	if kB, err := strconv.Atoi(strings.TrimSuffix(procField("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		line("memory", fmt.Sprintf("%.0f GB", float64(kB)/1e6))
	}
	line("Go", runtime.Version()+" "+runtime.GOOS+"/"+runtime.GOARCH)
	line("date", now.UTC().Format(time.DateOnly))
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if slices.Contains(compared, dep.Path) {
				line(dep.Path, dep.Version)
			}
		}
	}
	return b.String()
}

// compared lists the modules whose versions the report names.
var compared = []string{
	"github.com/alibabacloud-go/captcha-20230305", "github.com/alibabacloud-go/darabonba-openapi/v2",
	"github.com/alibabacloud-go/tea",
	"github.com/go-chi/jwtauth/v5", "github.com/gorilla/csrf",
}

// procField returns the first value with that name in a file of /proc, or "".
func procField(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
