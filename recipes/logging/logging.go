// Package logging keeps a flood of rejections from filling the disk.
package logging

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// A Sampler is a slog.Handler that passes every record at warn and above on to Handler,
// and one in Every of the others, with the attribute sampled_1_in. Every must be at
// least 1. Its loggers count together.
type Sampler struct {
	slog.Handler
	Every int64
	count *atomic.Int64
}

// NewSampler returns a Sampler:
//
//	logger := slog.New(logging.NewSampler(slog.NewJSONHandler(os.Stderr, nil), 100))
func NewSampler(h slog.Handler, every int64) *Sampler {
	return &Sampler{h, every, new(atomic.Int64)}
}

// Handle passes r on, or drops it.
func (s *Sampler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		if s.count.Add(1)%s.Every != 0 {
			return nil
		}
		r = r.Clone()
		r.AddAttrs(slog.Int64("sampled_1_in", s.Every))
	}
	return s.Handler.Handle(ctx, r)
}

// WithAttrs returns a Sampler whose records have attrs.
func (s *Sampler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Sampler{s.Handler.WithAttrs(attrs), s.Every, s.count}
}

// WithGroup returns a Sampler whose records are in a group.
func (s *Sampler) WithGroup(name string) slog.Handler {
	return &Sampler{s.Handler.WithGroup(name), s.Every, s.count}
}

// requestKey is the key of a request's ID in its context.
type requestKey struct{}

// NewContext returns a context whose log lines have the ID of a request.
func NewContext(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// WithRequestID is a slog.Handler that adds the request's ID to each record. The lines
// of a gate have the context of their request, so they get it too.
type WithRequestID struct{ slog.Handler }

// Handle adds the ID to r and passes it on.
func (h WithRequestID) Handle(ctx context.Context, r slog.Record) error {
	if id, ok := ctx.Value(requestKey{}).(string); ok {
		r = r.Clone()
		r.AddAttrs(slog.String("request_id", id))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs returns a WithRequestID whose records have attrs.
func (h WithRequestID) WithAttrs(attrs []slog.Attr) slog.Handler {
	return WithRequestID{h.Handler.WithAttrs(attrs)}
}

// WithGroup returns a WithRequestID whose records are in a group.
func (h WithRequestID) WithGroup(name string) slog.Handler {
	return WithRequestID{h.Handler.WithGroup(name)}
}
