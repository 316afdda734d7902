package presenceclient

import (
	"context"
	"fmt"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Filter selects clients; a field that is zero selects all. Without a bound of since, clients are listed by ID, with one by since.
type Filter struct {
	// Status is online, offline or unknown.
	Status string
	// Node is the broker node of the current connection, or of the last one.
	Node string
	// Username is that of the current connection, or of the last one.
	Username string
	// Prefix is the beginning of the client ID, byte for byte.
	Prefix string
	// SinceFrom and SinceBefore bound when the status began: at SinceFrom or later, and before SinceBefore.
	SinceFrom, SinceBefore time.Time

	// PageSize is the clients of one call at most, 1 to 1,000. Default 100 for Pages, 1,000 for List.
	PageSize int
	// PageToken goes on after a page of the same filter.
	PageToken string
}

// List returns the clients that the filter selects, a call for every page. It ends early with an error, the last pair. A client that does not change
// in the meantime comes exactly once.
func (c *Client) List(ctx context.Context, filter Filter) iter.Seq2[*presencev1.Client, error] {
	if filter.PageSize == 0 {
		filter.PageSize = maxBatch
	}
	return func(yield func(*presencev1.Client, error) bool) {
		for page, err := range c.Pages(ctx, filter) {
			if err != nil {
				yield(nil, err)
				return
			}
			for _, client := range page.GetClients() {
				if client.GetFreshness() == nil {
					client.Freshness = page.GetFreshness()
				}
				if !yield(client, nil) {
					return
				}
			}
		}
	}
}

// Pages returns the same by pages, with the total where the service knows it. A page may be empty and not be the last one.
func (c *Client) Pages(ctx context.Context, filter Filter) iter.Seq2[*presencev1.ListClientsResponse, error] {
	return func(yield func(*presencev1.ListClientsResponse, error) bool) {
		if filter.PageSize < 0 || filter.PageSize > maxBatch {
			yield(nil, failed("list the clients", invalid("page_size", fmt.Sprintf("is %d; give 1 to %d, or 0 for the default", filter.PageSize, maxBatch))))
			return
		}
		for token := filter.PageToken; ; {
			page, err := c.rpc.ListClients(ctx, &presencev1.ListClientsRequest{
				Cluster: c.cluster, Status: filter.Status, Node: filter.Node, Username: filter.Username, ClientIdPrefix: filter.Prefix,
				SinceFrom: timestamp(filter.SinceFrom), SinceBefore: timestamp(filter.SinceBefore),
				PageSize: int32(filter.PageSize), PageToken: token,
			})
			if err != nil {
				yield(nil, failed("list the clients", err))
				return
			}
			if !yield(page, nil) || page.GetNextPageToken() == "" {
				return
			}
			token = page.GetNextPageToken()
		}
	}
}

// timestamp is absent for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
