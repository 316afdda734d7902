package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// goalFlood is how much longer the others may wait under siege, at the 99th percentile.
	goalFlood = 2.0
	// floodRate is the limit of each account, in requests per second: well above what the others need.
	floodRate = 500
	others    = 8
	// otherPace is the time between two requests of one of the others.
	otherPace = 5 * time.Millisecond
	// floodRounds is how often quiet and siege take turns.
	floodRounds = 3
)

// measureFlood compares how long well-behaved accounts wait in a quiet service with how long they wait while connections idle and dawdle, and one
// account asks far beyond its limit.
func measureFlood(ctx context.Context, cfg config, s *stack, t *table) (err error) {
	id, err := s.online(ctx)
	if err != nil {
		return err
	}
	if err := s.stopQuery(); err != nil {
		return err
	}
	s.queryConf.RateLimit = floodRate
	s.queryConf.AuditLog = filepath.Join(s.dir, "audit.log")
	_, rest, _ := strings.Cut(account, ":")
	lines := account + flooder + ":" + rest
	for i := range others {
		lines += other(i) + ":" + rest
	}
	if err := os.WriteFile(s.queryConf.AccountsFile, []byte(lines), 0o600); err != nil {
		return fmt.Errorf("write the accounts: %w", err)
	}
	if err := s.startQuery(ctx); err != nil {
		return err
	}
	lay := siege{HTTPAddr: s.queryConf.HTTPAddr, GRPCAddr: s.queryConf.GRPCAddr, Client: id, Idle: cfg.Idle, Slow: cfg.Idle / 5, Floods: cfg.Floods}
	turn := max(cfg.Round*time.Duration(cfg.Rounds)/floodRounds, 10*otherPace)
	if _, err := paced(ctx, s.queryConf.HTTPAddr, id, turn/4); err != nil { // to warm up
		return err
	}
	var quiet, loaded delays
	var floods []float64 // requests per second
	for range floodRounds {
		calm, err := paced(ctx, s.queryConf.HTTPAddr, id, turn)
		if err != nil {
			return err
		}
		under, flood, err := besieged(ctx, cfg, lay, func() (delays, error) { return paced(ctx, s.queryConf.HTTPAddr, id, turn) })
		if err != nil {
			return err
		}
		quiet, loaded, floods = append(quiet, calm...), append(loaded, under...), append(floods, flood)
	}
	err = t.profileHere(ctx, "flood", cfg.Profile, func(d time.Duration) error {
		_, _, err := besieged(ctx, cfg, lay, func() (delays, error) { return paced(ctx, s.queryConf.HTTPAddr, id, d) })
		return err
	})
	if err != nil {
		return err
	}
	ratio := float64(loaded.sorted().at(0.99)) / float64(quiet.sorted().at(0.99))
	t.line("others, quiet", fmt.Sprintf("%v", quiet), "", "")
	t.line("others, under siege", fmt.Sprintf("%v", loaded), "", "")
	t.line("  the flood asks meanwhile", fmt.Sprintf("%.0f/s", median(floods)), "", "")
	t.result("  p99 under siege", fmt.Sprintf("%.2f times that of the quiet run", ratio), fmt.Sprintf("below %.0f times", goalFlood), ratio < goalFlood)
	return nil
}

func other(i int) string { return fmt.Sprintf("other%d", i) }

// besieged measures while the siege is under way, and returns how often a second it asked.
func besieged(ctx context.Context, cfg config, lay siege, measure func() (delays, error)) (took delays, flood float64, err error) {
	var stop func() (asked int64, err error)
	if cfg.SiegeInProcess {
		stop, err = lay.startHere(ctx)
	} else {
		stop, err = lay.start(ctx)
	}
	if err != nil {
		return nil, 0, err
	}
	began := time.Now()
	took, err = measure()
	lasted := time.Since(began)
	asked, failed := stop()
	return took, float64(asked) / lasted.Seconds(), errors.Join(err, failed)
}

// paced lets all others ask at their pace for a time. Who asks late because the answer before was late is not excused: the wait counts from when
// the request was due.
func paced(ctx context.Context, addr, id string, d time.Duration) (delays, error) {
	var wg sync.WaitGroup
	took := make([]delays, others)
	errs := make([]error, others)
	for i := range others {
		wg.Go(func() { took[i], errs[i] = pacedOne(ctx, addr, id, i, d) })
	}
	wg.Wait()
	var all delays
	for _, t := range took {
		all = append(all, t...)
	}
	return all, errors.Join(errs...)
}

func pacedOne(ctx context.Context, addr, id string, i int, d time.Duration) (_ delays, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	r := bufio.NewReader(conn)
	request := []byte("GET /client-id/" + id + "/status HTTP/1.1\r\nHost: presence\r\nAuthorization: Basic " +
		base64.StdEncoding.EncodeToString([]byte(other(i)+":"+password)) + "\r\n\r\n")
	var took delays
	// The first request pays for the password.
	if err := roundTrip(conn, r, request); err != nil {
		return nil, err
	}
	begin := time.Now().Add(time.Duration(i) * otherPace / others)
	for due := begin; due.Sub(begin) < d && ctx.Err() == nil; due = due.Add(otherPace) {
		if wait := time.Until(due); wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return took, ctx.Err()
			}
		}
		if err := roundTrip(conn, r, request); err != nil {
			return nil, err
		}
		took = append(took, time.Since(due))
	}
	return took, ctx.Err()
}
