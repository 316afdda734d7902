package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// chart is panels side by side over the same numbers of clients.
type chart struct {
	title  string
	x      []float64 // ascending and positive
	panels []panel
}

// panel is one quantity, with a line for each series.
type panel struct {
	title  string // with the unit
	series []series
}

type series struct {
	name   string
	values []float64 // one for each x
}

// growthChart shows what grows with the number of clients, and what does not.
func growthChart(all []growth) *chart {
	c := &chart{title: "Cost by number of clients"}
	values := func(name string, of func(growth) float64) series {
		s := series{name: name}
		for _, g := range all {
			s.values = append(s.values, of(g))
		}
		return s
	}
	perClient := func(name string, of func(growth) uint64) series {
		return values(name, func(g growth) float64 { return float64(of(g)) / float64(max(g.clients, 1)) })
	}
	for _, g := range all {
		c.x = append(c.x, float64(g.clients))
	}
	c.panels = []panel{
		{"thousand per second", []series{
			values("rebuild, events", func(g growth) float64 { return g.rebuilt.rate() / 1000 }),
			values("first pass, events", func(g growth) float64 { return g.passed.rate() / 1000 }),
			values("restore, clients", func(g growth) float64 { return g.restored.rate() / 1000 }),
		}},
		{"bytes per client on disk, compacted", []series{
			perClient("rows", func(g growth) uint64 { return g.compacted.Clients }),
			perClient("indexes", func(g growth) uint64 { return g.compacted.Indexes }),
			perClient("evidence", func(g growth) uint64 { return g.compacted.Evidence }),
			perClient("sessions", func(g growth) uint64 { return g.compacted.Sessions }),
		}},
		{"peak resident memory, MiB", []series{
			values("rebuild", func(g growth) float64 { return float64(g.rebuilt.peak) / mib }),
			values("first pass", func(g growth) float64 { return float64(g.passed.peak) / mib }),
			values("restore", func(g growth) float64 { return float64(g.restored.peak) / mib }),
			values("serving", func(g growth) float64 { return float64(g.serving.peak) / mib }),
		}},
		{"lookup in process, microseconds", []series{
			values("p50", func(g growth) float64 { return float64(g.lookup50.Nanoseconds()) / 1000 }),
			values("p99", func(g growth) float64 { return float64(g.lookup99.Nanoseconds()) / 1000 }),
		}},
	}
	return c
}

// Sizes in pixels.
const (
	panelWidth, panelHeight = 420, 240
	marginLeft, marginTop   = 56, 56
	plotWidth, plotHeight   = 250, 140
	panelsInRow             = 2
	titleHeight             = 36
)

var colours = []string{"#1f77b4", "#d62728", "#2ca02c", "#9467bd"}

// svg draws the chart on a white ground, so that it can be read on a dark page.
func (c *chart) svg() string {
	var b strings.Builder
	rows := (len(c.panels) + panelsInRow - 1) / panelsInRow
	width, height := panelWidth*panelsInRow, titleHeight+rows*panelHeight
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	text(&b, width/2, 24, `text-anchor="middle" font-size="16"`, c.title)
	for i, p := range c.panels {
		fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`+"\n", i%panelsInRow*panelWidth, titleHeight+i/panelsInRow*panelHeight)
		c.panel(&b, p)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (c *chart) panel(b *strings.Builder, p panel) {
	text(b, marginLeft, marginTop-24, `font-size="13"`, p.title)
	top := 0.0
	for _, s := range p.series {
		for _, v := range s.values {
			top = max(top, v)
		}
	}
	top = roundUp(top)
	y := func(v float64) float64 { return marginTop + plotHeight*(1-v/top) }
	const lines = 4
	for i := range lines + 1 {
		v := top * float64(i) / lines
		fmt.Fprintf(b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`+"\n", marginLeft, y(v), marginLeft+plotWidth, y(v))
		text(b, marginLeft-6, int(y(v))+4, `text-anchor="end"`, short(v))
	}
	for _, x := range c.x {
		text(b, int(c.place(x)), marginTop+plotHeight+18, `text-anchor="middle"`, short(x))
	}
	for i, s := range p.series {
		colour := colours[i%len(colours)]
		var points []string
		for j, v := range s.values {
			points = append(points, fmt.Sprintf("%.1f,%.1f", c.place(c.x[j]), y(v)))
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"><title>%s</title></circle>`+"\n", c.place(c.x[j]), y(v), colour, short(v))
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour)
		text(b, marginLeft+plotWidth+12, marginTop+12+16*i, fmt.Sprintf(`fill="%s"`, colour), s.name)
	}
}

// place is the horizontal place of a number of clients, on a logarithmic axis.
func (c *chart) place(x float64) float64 {
	low, high := math.Log(c.x[0]), math.Log(c.x[len(c.x)-1])
	if low == high {
		return marginLeft + plotWidth/2
	}
	return marginLeft + plotWidth*(math.Log(x)-low)/(high-low)
}

// roundUp returns the next of 1, 2, 4, 5 and 8 times a power of ten, which a quarter divides well.
func roundUp(v float64) float64 {
	if v <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, f := range []float64{1, 2, 4, 5, 8} {
		if v <= f*unit {
			return f * unit
		}
	}
	return 10 * unit
}

// short writes a number with k and M.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.3gk", v/1e3)
	}
	return fmt.Sprintf("%.4g", v)
}

func text(b *strings.Builder, x, y int, attributes, s string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" %s>`, x, y, attributes)
	// A strings.Builder takes everything.
	_ = xml.EscapeText(b, []byte(s))
	b.WriteString("</text>\n")
}
