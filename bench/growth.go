package main

import (
	"fmt"
	"image/color"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// A curve is the cost of one gate as a function of a load or a size.
type curve struct {
	name   string
	points plotter.XYs // Y in microseconds
}

func growthGates() []gate {
	return []gate{bareGate, oursGate, readAllGate("read-all", decodeJSON)}
}

// atOnce returns an operation in which the given number of callers send requests through
// g at the same time.
func atOnce(g gate, q request, callers, requests int) func() {
	h := g.wrap(alicaptchatest.Passing(), reads)
	operations := make([]func(), callers)
	for i := range operations {
		operations[i], _ = q.through(h)
	}
	return func() {
		var all sync.WaitGroup
		for _, operation := range operations {
			all.Go(func() {
				for range requests / callers {
					operation()
				}
			})
		}
		all.Wait()
	}
}

func (b *bench) growth() error {
	b.print("## Growth\n\nWhat a request costs with more of them at once, and with a longer body, all in: "+
		"the handler reads the body to its end. The Verifier answers at once. Medians of %d rounds.\n\n", b.rounds)

	var crowd []curve
	gates := growthGates()
	for _, g := range gates {
		crowd = append(crowd, curve{name: g.name})
	}
	requests := b.few(10_000, 1000)
	callers := []int{1, 3, 10, 30, 100, 300, 1000}
	for _, n := range callers {
		var contenders []contender
		for _, g := range gates {
			contenders = append(contenders, contender{g.name, atOnce(g, jsonBody(4<<10, v3, true), n, requests)})
		}
		found := compare(b.rounds, time.Nanosecond, contenders) // each is run once
		for i, g := range gates {
			each := found[g.name].median().ns / float64(requests/n*n)
			crowd[i].points = append(crowd[i].points, plotter.XY{X: float64(n), Y: each / 1e3})
		}
	}
	if err := b.draw("growth-concurrency.png", "Requests at once (JSON of 4 KB, field first)", "requests at once",
		func(x float64) string { return fmt.Sprintf("%.0f", x) }, crowd); err != nil {
		return err
	}

	sizes := []int{1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20}
	var length []curve
	for _, place := range []string{"first", "last"} {
		for _, g := range gates {
			if place == "first" || g.name != bareName {
				length = append(length, curve{name: strings.TrimSuffix(g.name+", "+place, " handler, first")})
			}
		}
	}
	for _, size := range sizes {
		var contenders []contender
		for _, place := range []string{"first", "last"} {
			for _, g := range gates {
				if place == "first" || g.name != bareName {
					operation, _ := jsonBody(size, v3, place == "first").through(g.wrap(alicaptchatest.Passing(), reads))
					contenders = append(contenders, contender{length[len(contenders)].name, operation})
				}
			}
		}
		found := compare(b.rounds, b.each, contenders)
		for i := range length {
			length[i].points = append(length[i].points, plotter.XY{X: float64(size), Y: found[length[i].name].median().ns / 1e3})
		}
	}
	return b.draw("growth-size.png", "Length of a JSON body, the field first or last", "bytes",
		func(x float64) string {
			if x < 1<<20 {
				return fmt.Sprintf("%.0f KB", x/(1<<10))
			}
			return fmt.Sprintf("%.0f MB", x/(1<<20))
		}, length)
}

// draw prints curves as a table and draws them into a file with logarithmic axes.
func (b *bench) draw(file, title, x string, label func(float64) string, curves []curve) error {
	b.print("![%s](%s)\n\n| %s |", title, file, x)
	for _, c := range curves {
		b.print(" %s |", c.name)
	}
	b.print("\n|--:|%s\n", strings.Repeat("--:|", len(curves)))
	var ticks plot.ConstantTicks
	for i, point := range curves[0].points {
		ticks = append(ticks, plot.Tick{Value: point.X, Label: label(point.X)})
		b.print("| %s |", label(point.X))
		for _, c := range curves {
			b.print(" %s |", showTime(c.points[i].Y*1e3))
		}
		b.print("\n")
	}
	b.print("\n")

	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text, p.Y.Label.Text = x, "µs for one request"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = ticks, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	colors := []color.Color{
		color.RGBA{R: 120, G: 120, B: 120, A: 255}, color.RGBA{G: 90, B: 200, A: 255}, color.RGBA{R: 200, G: 60, A: 255},
		color.RGBA{G: 150, B: 220, A: 255}, color.RGBA{R: 240, G: 140, A: 255},
	}
	for i, c := range curves {
		line, err := plotter.NewLine(c.points)
		if err != nil {
			return err
		}
		line.Color, line.Width = colors[i], vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(c.name, line)
	}
	p.Y.Max *= 10 // room for the legend
	return p.Save(16*vg.Centimeter, 10*vg.Centimeter, filepath.Join(b.dir, file))
}
