package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

const (
	// maxListed bounds the entries of a list.
	maxListed = 10_000
	// maxLooked bounds the rows that a list looks at, over all partitions: a filter that selects few of many ends a page early.
	maxLooked = 20_000
	// maxListedBytes bounds the rows and client IDs that a list answers with, but for the last: one of very long texts ends a page early.
	maxListedBytes = 16 << 20
	// lookEvery is how many rows are looked at between two looks whether the caller is still there.
	lookEvery = 1 << 9
	// reasonIndexes is the ErrorInfo reason of a list that needs indexes which are being built, indexesRetry when to ask again.
	reasonIndexes = "INDEXES_BUILDING"
	indexesRetry  = 10 * time.Second
)

// ListStates returns the next clients of a cluster that a filter selects, with statuses computed from the rows and the node table as they are
// now, in every list that is by client ID: where the indexes of a partition do not show a change of nodes yet, or are being built, its rows
// are looked through. A list by since needs the indexes; what a change of nodes moved is missing in it until a sweep has come by, and exact
// is false until then.
//
// Errors are gRPC statuses: InvalidArgument names the field, Unavailable with ErrorInfo reason INDEXES_BUILDING is of a list by since over a partition
// whose indexes are being built, Internal of a store that cannot be read.
func (m *Materializer) ListStates(ctx context.Context, req *presencev1.ListStatesRequest) (_ *presencev1.ListStatesResponse, err error) {
	if err := checkList(req); err != nil {
		return nil, err
	}
	o, err := m.over(req.GetCluster(), req.GetPartitions())
	if err != nil {
		return nil, storeError(err)
	}
	defer o.done(&err)
	resp := &presencev1.ListStatesResponse{
		Exact: o.exact(), NotOwned: o.notOwned, Partitions: o.freshness(m), Health: o.health(), PartitionCount: m.cfg.Kafka.Partitions,
	}
	l := &list{over: o, reader: reader{m: m, cluster: o.cluster, table: o.table}, req: req, resp: resp}
	l.bySince = req.SinceFromMs != nil || req.SinceBeforeMs != nil
	for _, id := range o.ids {
		if l.bySince && !o.indexed[id] {
			return nil, o.notIndexed(id)
		}
	}
	if len(o.ids) == 0 {
		return resp, nil
	}
	if err := l.read(ctx); err != nil {
		return nil, storeError(err)
	}
	if req.GetCount() {
		if resp.Total, err = l.total(); err != nil {
			return nil, storeError(err)
		}
	}
	return resp, nil
}

// notIndexed says how far the indexes of a partition are.
func (o *over) notIndexed(id int32) error {
	f, far := o.fresh[id], ""
	if f.ready {
		far = fmt.Sprintf("are being built, and have %d clients so far", o.parts[id].building.Load())
	} else {
		far = fmt.Sprintf("are built once it has caught up, and it is %d records behind", f.end-f.next)
	}
	s := status.Newf(codes.Unavailable, "the indexes of partition %d %s: ask again later, or list without since_from and since_before", id, far)
	detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: reasonIndexes, Domain: errorDomain}, &errdetails.RetryInfo{RetryDelay: durationpb.New(indexesRetry)})
	if err != nil {
		return s.Err()
	}
	return detailed.Err()
}

// storeError is the status of a read that failed.
func storeError(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return status.FromContextError(context.Canceled).Err()
	case errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(context.DeadlineExceeded).Err()
	case errors.Is(err, store.ErrClosed):
		return status.Error(codes.Unavailable, "the materializer is stopping: ask again")
	}
	return status.Errorf(codes.Internal, "read the store: %v", err)
}

// done closes what a call has read, at its end; err is the status that it returns.
func (o *over) done(err *error) {
	if cerr := o.close(); cerr != nil && *err == nil {
		*err = storeError(cerr)
	}
}

func checkList(req *presencev1.ListStatesRequest) error {
	if err := eventlog.ValidCluster(req.GetCluster()); err != nil {
		return status.Errorf(codes.InvalidArgument, "cluster: %v", err)
	}
	if s := req.GetStatus(); s != "" && presence.ParsePresence(s).String() != s {
		return status.Errorf(codes.InvalidArgument, "status: %.20q is none of online, offline and unknown; leave it out for any", s)
	}
	if n := req.GetLimit(); n < 1 || n > maxListed {
		return status.Errorf(codes.InvalidArgument, "limit: %d is not between 1 and %d", n, maxListed)
	}
	return nil
}

// list is one reading of a list.
type list struct {
	*over
	reader  reader
	req     *presencev1.ListStatesRequest
	resp    *presencev1.ListStatesResponse
	bySince bool
}

func (l *list) query() *store.Query {
	q := &store.Query{
		Cluster: l.cluster, Standings: l.standings(l.req.GetStatus()), Node: l.req.GetNode(), Username: l.req.GetUsername(),
		Prefix: l.req.GetClientIdPrefix(),
	}
	if l.bySince {
		q.Since = &store.Span{FromMS: l.req.SinceFromMs, BeforeMS: l.req.SinceBeforeMs}
	}
	if a := l.req.GetAfter(); a != nil {
		q.After = &store.Position{SinceMS: a.GetSinceMs(), ClientID: a.GetClientId()}
	}
	return q
}

// read fills entries and read_to.
func (l *list) read(ctx context.Context) (err error) {
	candidates, err := l.view.Candidates(l.ids, l.query(), l.scans)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, candidates.Close()) }()
	looked, size := 0, 0
	defer func() { l.reader.m.metrics.listRows.Observe(float64(looked)) }()
	var last *presencev1.Position
	for ; ; looked++ {
		if looked%lookEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		c, err := candidates.Next()
		if err != nil || c == nil {
			return err
		}
		if looked == maxLooked || size >= maxListedBytes || len(l.resp.GetEntries()) == int(l.req.GetLimit()) {
			l.resp.ReadTo = last
			return nil
		}
		last = &presencev1.Position{SinceMs: c.SinceMS, ClientId: string(c.ClientID)}
		e, err := l.entry(c, last.GetClientId())
		if err != nil {
			return err
		}
		if e != nil {
			l.resp.Entries = append(l.resp.Entries, e)
			size += len(c.ClientID) + len(c.Row)
		}
	}
}

// entry returns the entry of a client, nil if the filter does not select it.
func (l *list) entry(c *store.Candidate, clientID string) (*presencev1.StateEntry, error) {
	if c.Row == nil {
		return nil, nil
	}
	r := &l.reader
	if _, err := r.row.Decode(c.Row); err != nil {
		return nil, err
	}
	if r.row.State.Empty() {
		return nil, nil
	}
	p := l.parts[c.Partition]
	v := presence.Status(&r.row.State, l.table.cluster(l.cluster), p.allowanceMS())
	q := l.req
	switch {
	case q.GetStatus() != "" && v.Status.String() != q.GetStatus(),
		q.GetNode() != "" && v.Node != q.GetNode(),
		q.GetUsername() != "" && r.row.Username(v.Node, connectionKey(&v)) != q.GetUsername(),
		l.bySince && v.SinceMS != c.SinceMS,
		l.bySince && !strings.HasPrefix(clientID, q.GetClientIdPrefix()):
		return nil, nil
	}
	e := r.describe(p, &v, true, l.fresh[c.Partition].next)
	e.ClientId = clientID
	return e, nil
}

// total counts the clients that the filter selects; nil if no counter does.
func (l *list) total() (*int64, error) {
	q := l.req
	if l.bySince || q.GetClientIdPrefix() != "" || q.GetUsername() != "" && (q.GetStatus() != "" || q.GetNode() != "") {
		return nil, nil
	}
	standings := l.standings(q.GetStatus())
	var total int64
	for _, id := range l.ids {
		if !l.indexed[id] {
			return nil, nil
		}
		if q.GetUsername() != "" {
			n, err := l.view.UsernameCount(id, l.cluster, q.GetUsername())
			if err != nil {
				return nil, err
			}
			total += n
			continue
		}
		if err := l.view.Places(id, l.cluster, func(c store.PlaceCount) error {
			if (standings == nil || slices.Contains(standings, c.Standing)) && (q.GetNode() == "" || q.GetNode() == c.Node) {
				total += c.Clients
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return &total, nil
}
