package query

import (
	"context"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Entries of a page.
const (
	defaultPage = 100
	maxPage     = 1_000
)

// pageSize returns how many entries a page is to have.
func pageSize(asked int32) (int, error) {
	switch {
	case asked == 0:
		return defaultPage, nil
	case asked < 0 || asked > maxPage:
		return 0, invalid("page_size", fmt.Sprintf("page_size %d is not between 1 and 1,000; leave it out for 100", asked))
	}
	return int(asked), nil
}

func validStatus(word string) error {
	switch word {
	case "", "online", "offline", "unknown":
		return nil
	}
	return invalid("status", fmt.Sprintf("status %.20q is none of online, offline and unknown; leave it out for any", word))
}

// validText checks a text of a filter, which may be empty.
func validText(field, text string) error {
	switch {
	case len(text) > maxText:
		return invalid(field, fmt.Sprintf("%s has %d bytes: MQTT allows at most 65,535", field, len(text)))
	case !utf8.ValidString(text):
		return invalid(field, field+" is not valid UTF-8")
	}
	return nil
}

// bound returns a bound of since in epoch milliseconds, nil for none. Stamps are whole milliseconds: the first that is not before t is
// the bound, of either side.
func bound(field string, t *timestamppb.Timestamp) (*int64, error) {
	if t == nil {
		return nil, nil
	}
	if err := t.CheckValid(); err != nil {
		return nil, invalid(field, field+" is not a time: give one of RFC 3339, such as 2026-01-31T12:00:00Z")
	}
	at := t.AsTime()
	if at.Before(time.UnixMilli(0)) {
		return nil, invalid(field, field+" is before 1970; leave it out for no bound")
	}
	ms := at.UnixMilli()
	if at.After(time.UnixMilli(ms)) {
		ms++
	}
	return &ms, nil
}

// listRequest checks the filter of a list.
func (a *answers) listRequest(req *presencev1.ListClientsRequest) (*presencev1.ListStatesRequest, error) {
	cluster, err := a.validCluster(req.GetCluster())
	if err != nil {
		return nil, err
	}
	if err := validStatus(req.GetStatus()); err != nil {
		return nil, err
	}
	for _, f := range []struct{ field, text string }{
		{"node", req.GetNode()}, {"username", req.GetUsername()}, {"client_id_prefix", req.GetClientIdPrefix()},
	} {
		if err := validText(f.field, f.text); err != nil {
			return nil, err
		}
	}
	ask := &presencev1.ListStatesRequest{
		Cluster: cluster, Status: req.GetStatus(), Node: req.GetNode(), Username: req.GetUsername(), ClientIdPrefix: req.GetClientIdPrefix(),
	}
	if ask.SinceFromMs, err = bound("since_from", req.GetSinceFrom()); err != nil {
		return nil, err
	}
	if ask.SinceBeforeMs, err = bound("since_before", req.GetSinceBefore()); err != nil {
		return nil, err
	}
	if ask.SinceFromMs != nil && ask.SinceBeforeMs != nil && ask.GetSinceBeforeMs() <= ask.GetSinceFromMs() {
		return nil, invalid("since_before", "since_before is not after since_from: nothing lies between them")
	}
	return ask, nil
}

// ListClients implements the call of both transports. The freshness of the clients stands once, beside them.
func (a *answers) ListClients(ctx context.Context, req *presencev1.ListClientsRequest) (*presencev1.ListClientsResponse, error) {
	ask, err := a.listRequest(req)
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	filter := filterOf("ListClients", ask.GetCluster(), ask.GetStatus(), ask.GetNode(), ask.GetUsername(), ask.GetClientIdPrefix(),
		textOf(ask.SinceFromMs), textOf(ask.SinceBeforeMs))
	after, ok, err := a.tokens.read(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	if ok {
		ask.After = &presencev1.Position{SinceMs: after.number, ClientId: after.text}
	}
	ask.Limit, ask.Count = int32(size), true
	r, err := a.listStates(ctx, ask)
	if err != nil {
		return nil, err
	}
	answer := &presencev1.ListClientsResponse{
		Clients: make([]*presencev1.Client, len(r.GetEntries())), Total: r.Total, Exact: r.GetExact(), Freshness: a.worstOf(r),
	}
	for i, e := range r.GetEntries() {
		answer.Clients[i] = client(ask.GetCluster(), e.GetClientId(), e)
		if i == 0 || e.GetNode() != r.GetEntries()[i-1].GetNode() {
			answer.Freshness.Node = worse(answer.GetFreshness().GetNode(), nodeHealth(r.GetHealth(), e.GetNode()))
		}
	}
	if to := r.GetReadTo(); to != nil {
		answer.NextPageToken = a.tokens.make(filter, place{to.GetSinceMs(), to.GetClientId()})
	}
	return answer, nil
}

// maxListing bounds the lists of one account that are read, or wait for that.
const maxListing = 16

// listStates reads clients of all partitions. Lists take half of the cores at most: each may look at thousands of rows, and must not keep
// those waiting who ask for one client.
func (a *answers) listStates(ctx context.Context, ask *presencev1.ListStatesRequest) (*presencev1.ListStatesResponse, error) {
	if u := passOf(ctx).usage; u != nil {
		defer u.listing.Add(-1)
		if u.listing.Add(1) > maxListing {
			return nil, retryLater(codes.ResourceExhausted, fmt.Sprintf("the account has %d lists under way, more are not read at once; ask again", maxListing), retryDelay)
		}
	}
	within, cancel := context.WithTimeout(ctx, a.cfg.RequestTimeout)
	defer cancel()
	if err := a.listing.Acquire(within, 1); err != nil {
		if ctx.Err() != nil {
			return nil, a.readError(ctx, ctx.Err(), nil)
		}
		return nil, retryLater(codes.ResourceExhausted, "as many lists are being read as may be; ask again", retryDelay)
	}
	defer a.listing.Release(1)
	r, err := a.reader.ListStates(within, ask)
	if err != nil {
		return nil, a.readError(ctx, err, nil)
	}
	return r, a.readAll(ctx, r)
}

func textOf(ms *int64) string {
	if ms == nil {
		return ""
	}
	return strconv.FormatInt(*ms, 10)
}

// partitioned is a reader's answer over partitions.
type partitioned interface {
	byPartition
	GetPartitions() []*presencev1.PartitionFreshness
	GetHealth() *presencev1.ClusterHealth
}

// readAll refuses an answer that is not of all partitions: it would look like one that is. In process that happens while partitions are
// being restored.
func (a *answers) readAll(ctx context.Context, r partitioned) error {
	read := make(map[int32]bool)
	for _, p := range r.GetPartitions() {
		read[p.GetPartition()] = true
	}
	return a.complete(ctx, r, len(read))
}

func (a *answers) complete(ctx context.Context, r byPartition, read int) error {
	switch {
	case r.GetPartitionCount() <= 0:
		return a.internal(ctx, fmt.Errorf("an answer over %d partitions", r.GetPartitionCount()))
	case len(r.GetNotOwned()) > 0 || read < int(r.GetPartitionCount()):
		return unavailable(fmt.Sprintf("%d of %d partitions have nobody who answers for them right now; ask again",
			int(r.GetPartitionCount())-read, r.GetPartitionCount()))
	}
	return nil
}

// worstOf is the freshness of all partitions of an answer.
func (a *answers) worstOf(r partitioned) *presencev1.Freshness {
	c := a.clock()
	all := make([]*presencev1.Freshness, 0, len(r.GetPartitions()))
	for _, p := range r.GetPartitions() {
		all = append(all, c.freshness(p, r.GetHealth(), ""))
	}
	return worst(all)
}
