package query

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// CheckIndexes implements the call of both transports. It reads every row, so one check runs at a time.
func (a *answers) CheckIndexes(ctx context.Context, req *presencev1.CheckIndexesRequest) (*presencev1.CheckIndexesResponse, error) {
	if !a.checking.TryAcquire(1) {
		return nil, retryLater(codes.ResourceExhausted, "a check of the indexes is under way; ask again when it is done", 10*retryDelay)
	}
	defer a.checking.Release(1)
	within, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	r, err := a.reader.CheckStore(within, &presencev1.CheckStoreRequest{Repair: req.GetRepair()})
	if err != nil {
		return nil, a.readError(ctx, err, nil)
	}
	if err := a.complete(ctx, r, len(r.GetChecks())); err != nil {
		return nil, err
	}
	counts, err := a.counts(ctx, a.cfg.Cluster)
	if err != nil {
		return nil, err
	}
	answer := &presencev1.CheckIndexesResponse{Ok: true, Freshness: a.worstOf(counts)}
	for _, c := range r.GetChecks() {
		answer.Ok = answer.GetOk() && len(c.GetDifferences()) == 0
		answer.Partitions = append(answer.Partitions, &presencev1.IndexCheck{
			Partition: c.GetPartition(), Clients: c.GetClients(), IndexEntries: c.GetIndexEntries(), Counters: c.GetCounters(),
			Differences: c.GetDifferences(), Repairing: c.GetRepairing(),
		})
	}
	slices.SortFunc(answer.GetPartitions(), func(a, b *presencev1.IndexCheck) int { return int(a.GetPartition()) - int(b.GetPartition()) })
	return answer, nil
}
