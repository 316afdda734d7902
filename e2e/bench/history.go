package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// history is what happened to a fleet within the last hour. The same numbers make the same history, whenever it is made.
type history struct {
	clients, events int
	// atRest is of clients that have all connected once, in no order, of which three of ten went again: events is not looked at. Otherwise each
	// event is one of a client that is drawn, which connects if it is offline and else disconnects.
	atRest bool
	// connections is how many each client of a fleet at rest has had, the last as above; 0 is one.
	connections int
	format      eventlog.Format
}

// counts are how many clients have a status.
type counts struct{ online, offline, unknown int64 }

func (c counts) total() int64 { return c.online + c.offline + c.unknown }

// randomID is 22 characters of which nothing can be told in advance.
func randomID(i int) string {
	r := rand.New(rand.NewPCG(uint64(i), 29))
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], r.Uint64())
	binary.LittleEndian.PutUint64(b[8:], r.Uint64())
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// id is the name of client i.
func (h history) id(i int) string {
	if h.atRest {
		return randomID(i)
	}
	return clientID(i)
}

func (h history) opened(i int, ms int64) presence.Fact {
	f := openedAt(i, ms)
	if h.atRest {
		f.ClientID, f.Username, f.Peer = h.id(i), "user-"+strconv.Itoa(i), fmt.Sprintf("10.%d.%d.%d:%d", i>>16&255, i>>8&255, i&255, 1024+i%60_000)
		f.SetID()
	}
	return f
}

const (
	hour = time.Hour
	// leaving of each ten clients of a fleet at rest are offline.
	leaving = 3
	// scatter, a prime larger than any fleet, makes an order of clients in which neighbours are far from each other.
	scatter = 2_147_483_647
)

// each calls fn for every fact in order, and returns what the statuses are afterwards.
func (h history) each(now time.Time, fn func(*presence.Fact) error) (counts, error) {
	begin := now.Add(-hour).UnixMilli()
	at := func(i, of int) int64 { return begin + int64(i)*hour.Milliseconds()/int64(of) }
	if h.atRest {
		left := h.clients * leaving / 10
		both := 2 * h.clients // events of a connection of every client
		all := max(0, h.connections-1)*both + h.clients + left
		for i := range all {
			client := (i % h.clients) * (scatter % h.clients) % h.clients
			f := h.opened(client, at(i/both*both+i%h.clients, all))
			if i%both >= h.clients {
				f = closedAt(f, at(i, all))
			}
			if err := fn(&f); err != nil {
				return counts{}, err
			}
		}
		return counts{online: int64(h.clients - left), offline: int64(left)}, nil
	}
	r := rand.New(rand.NewPCG(1, 2))
	opened := make([]int64, h.clients) // when the current connection began; 0: none; -1: there was one
	for i := range h.events {
		client, ms := r.IntN(h.clients), at(i, h.events)
		var f presence.Fact
		if opened[client] > 0 {
			f = closedAt(h.opened(client, opened[client]), ms)
			opened[client] = -1
		} else {
			f = h.opened(client, ms)
			opened[client] = ms
		}
		if err := fn(&f); err != nil {
			return counts{}, err
		}
	}
	var c counts
	for _, ms := range opened {
		switch {
		case ms > 0:
			c.online++
		case ms < 0:
			c.offline++
		}
	}
	return c, nil
}

// produced is a history that is in Kafka.
type produced struct {
	history
	counts
	records int64
}

// produce writes a history into topics that it makes, and that all nodes are alive.
func (h history) produce(ctx context.Context, k eventlog.Config) (_ produced, err error) {
	opts, err := k.Opts(slog.New(slog.DiscardHandler))
	if err != nil {
		return produced{}, err
	}
	client, err := kgo.NewClient(append(append(opts, k.ProducerOpts()...), kgo.MaxBufferedRecords(200_000), kgo.ProducerLinger(20*time.Millisecond))...)
	if err != nil {
		return produced{}, fmt.Errorf("create the kafka client: %w", err)
	}
	defer client.Close()
	if err := eventlog.Ensure(ctx, client, k); err != nil {
		return produced{}, err
	}
	now := time.Now()
	var mu sync.Mutex
	var first error
	done := func(_ *kgo.Record, err error) {
		if err != nil {
			mu.Lock()
			first = errors.Join(first, err)
			mu.Unlock()
		}
	}
	for _, f := range nodesAlive(now) {
		client.Produce(ctx, eventlog.NodeRecord(&f, h.format), done)
	}
	p := produced{history: h}
	p.counts, err = h.each(now, func(f *presence.Fact) error {
		client.Produce(ctx, eventlog.FactRecord(f, h.format), done)
		p.records++
		return ctx.Err()
	})
	if err == nil {
		err = client.Flush(ctx)
	}
	mu.Lock()
	defer mu.Unlock()
	if err := errors.Join(err, first); err != nil {
		return produced{}, fmt.Errorf("produce facts: %w", err)
	}
	return p, nil
}
