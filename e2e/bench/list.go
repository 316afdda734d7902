package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	goalList = 50 * time.Millisecond
	pageSize = 100
	// walk is how many pages of a list are read before another begins.
	walk = 10
	// silentNode is the node whose clients become unknown.
	silentNode = 0
)

// filters are the kinds of lists. Each value is drawn anew, so that no list is always the same.
var filters = []struct {
	name string
	draw func(r *rand.Rand, clients int, now time.Time) presenceclient.Filter
}{
	{"no filter", func(*rand.Rand, int, time.Time) presenceclient.Filter { return presenceclient.Filter{} }},
	{"status", func(r *rand.Rand, _ int, _ time.Time) presenceclient.Filter {
		return presenceclient.Filter{Status: anyStatus(r)}
	}},
	{"node", func(r *rand.Rand, _ int, _ time.Time) presenceclient.Filter {
		return presenceclient.Filter{Node: node(r.IntN(nodes))}
	}},
	{"status and node", func(r *rand.Rand, _ int, _ time.Time) presenceclient.Filter {
		return presenceclient.Filter{Status: anyStatus(r), Node: node(r.IntN(nodes))}
	}},
	{"username", func(r *rand.Rand, _ int, _ time.Time) presenceclient.Filter {
		return presenceclient.Filter{Username: username(r.IntN(usernames))}
	}},
	{"username and status", func(r *rand.Rand, _ int, _ time.Time) presenceclient.Filter {
		return presenceclient.Filter{Username: username(r.IntN(usernames)), Status: anyStatus(r)}
	}},
	{"ID prefix", func(r *rand.Rand, clients int, _ time.Time) presenceclient.Filter {
		return presenceclient.Filter{Prefix: clientID(r.IntN(clients))[:5+r.IntN(4)]}
	}},
	{"ID prefix and status", func(r *rand.Rand, clients int, _ time.Time) presenceclient.Filter {
		return presenceclient.Filter{Prefix: clientID(r.IntN(clients))[:5+r.IntN(4)], Status: anyStatus(r)}
	}},
	{"since", func(r *rand.Rand, _ int, now time.Time) presenceclient.Filter {
		return presenceclient.Filter{SinceFrom: now.Add(-time.Duration(r.Int64N(day.Milliseconds())) * time.Millisecond)}
	}},
	{"since and status", func(r *rand.Rand, _ int, now time.Time) presenceclient.Filter {
		from := now.Add(-time.Duration(r.Int64N(day.Milliseconds())) * time.Millisecond)
		return presenceclient.Filter{SinceFrom: from, SinceBefore: from.Add(time.Hour), Status: anyStatus(r)}
	}},
}

func anyStatus(r *rand.Rand) string {
	return []string{presenceclient.StatusOnline, presenceclient.StatusOffline, presenceclient.StatusUnknown}[r.IntN(3)]
}

// measureList reads pages of each kind of list, one after the other, and checks that each client is one that the filter selects.
func measureList(ctx context.Context, cfg config, s *stack, t *table) (err error) {
	began := time.Now()
	if err := s.fill(ctx, cfg.Clients); err != nil {
		return err
	}
	if err := s.awaitTotal(ctx, int64(cfg.Clients)); err != nil {
		return err
	}
	took := time.Since(began)
	t.line("filled", fmt.Sprintf("%d clients in %v (%.0f/s)", cfg.Clients, took.Round(time.Millisecond), float64(cfg.Clients)/took.Seconds()), "", "")
	if err := s.silence(ctx, silentNode); err != nil {
		return err
	}
	client, err := s.client()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	began = time.Now()
	if err := await(ctx, "the clients of the silent node to be unknown", func(ctx context.Context) error {
		stats, err := client.Stats(ctx, 0)
		if err == nil && (!stats.GetExact() || stats.GetClients().GetUnknown() == 0) {
			err = fmt.Errorf("%d clients are counted as unknown, exact: %t", stats.GetClients().GetUnknown(), stats.GetExact())
		}
		return err
	}); err != nil {
		return err
	}
	t.line("swept", fmt.Sprintf("%d clients of a silent node in %v", cfg.Clients/nodes, time.Since(began).Round(time.Millisecond)), "", "")
	for _, f := range filters {
		d, short, err := pages(ctx, cfg, client, f.draw)
		if err != nil {
			return fmt.Errorf("list by %s: %w", f.name, err)
		}
		d.sorted()
		t.result("page of 100 by "+f.name, fmt.Sprintf("%v, max %s, %d pages, %d not full", d, milliseconds(d.at(1)), len(d), short),
			fmt.Sprintf("p99 under %v", goalList), d.at(0.99) < goalList)
	}
	return nil
}

// pages reads pages of drawn filters, and tells how many of them were not full and yet not the last one.
func pages(ctx context.Context, cfg config, client *presenceclient.Client, draw func(*rand.Rand, int, time.Time) presenceclient.Filter) (delays, int, error) {
	r := rand.New(rand.NewPCG(5, 17))
	now := time.Now().Truncate(time.Millisecond)
	var took delays
	short := 0
	for len(took) < cfg.Pages {
		filter := draw(r, cfg.Clients, now)
		filter.PageSize = pageSize
		read := 0
		last := time.Now()
		for page, err := range client.Pages(ctx, filter) {
			if err != nil {
				return nil, 0, err
			}
			took = append(took, time.Since(last))
			if err := check(filter, page); err != nil {
				return nil, 0, err
			}
			if page.GetNextPageToken() != "" && len(page.GetClients()) < pageSize {
				short++
			}
			if read++; read == walk || len(took) == cfg.Pages {
				break
			}
			last = time.Now()
		}
	}
	return took, short, nil
}

// check returns an error if a client of a page is not one that the filter selects, or stands in another order.
func check(filter presenceclient.Filter, page *presencev1.ListClientsResponse) error {
	bySince := !filter.SinceFrom.IsZero()
	for i, c := range page.GetClients() {
		since := c.GetSince().AsTime()
		switch {
		case filter.Status != "" && c.GetStatus() != filter.Status,
			filter.Node != "" && c.GetConnection().GetNode() != filter.Node,
			filter.Username != "" && c.GetConnection().GetUsername() != filter.Username,
			len(c.GetClientId()) < len(filter.Prefix) || c.GetClientId()[:len(filter.Prefix)] != filter.Prefix,
			bySince && since.Before(filter.SinceFrom),
			!filter.SinceBefore.IsZero() && !since.Before(filter.SinceBefore):
			return fmt.Errorf("%+v selects %v", filter, c)
		}
		if i == 0 {
			continue
		}
		before := page.GetClients()[i-1]
		if bySince && since.Before(before.GetSince().AsTime()) || !bySince && c.GetClientId() <= before.GetClientId() {
			return fmt.Errorf("%+v lists %s after %s", filter, c.GetClientId(), before.GetClientId())
		}
	}
	return nil
}
