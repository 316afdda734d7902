package query

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// A resume token is a position in client-state. It is opaque to callers, and not signed: nothing that it can say gives more than a watch
// from another position would.
//
//	base64url( version 1 | topic ID 16 | time in epoch milliseconds, uvarint | partitions, uvarint | next offset, uvarint ... )
//
// All records after the position were written at that time or later, which says how much of them compaction may have removed since.
const (
	watchTokenVersion = 1
	// maxWatchToken is the longest token that is looked at, in bytes: 10,000 partitions.
	maxWatchToken = 128 << 10
	// maxWatchTokenAhead is how far another process's clock may be ahead of this one.
	maxWatchTokenAhead = 24 * time.Hour
)

// watchPosition is a position in client-state: everything before it has been looked at.
type watchPosition struct {
	topic  kadm.TopicID
	timeMS int64
	next   []int64 // offset of the next record, by partition
}

// token returns the position for a caller to come back with.
func (p *watchPosition) token() string {
	b := make([]byte, 0, 1+len(p.topic)+binary.MaxVarintLen64+4+4*len(p.next))
	b = append(b, watchTokenVersion)
	b = append(b, p.topic[:]...)
	b = binary.AppendUvarint(b, uint64(max(0, p.timeMS)))
	b = binary.AppendUvarint(b, uint64(len(p.next)))
	for _, offset := range p.next {
		b = binary.AppendUvarint(b, uint64(max(0, offset)))
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

var errWatchToken = errors.New("it is not a token of this service")

// parseWatchToken reads a token. It takes nothing but what token makes, byte for byte.
func parseWatchToken(token string, now time.Time) (*watchPosition, error) {
	if len(token) > maxWatchToken {
		return nil, fmt.Errorf("%w: it has %d bytes", errWatchToken, len(token))
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return nil, fmt.Errorf("%w: it is not base64url without padding", errWatchToken)
	}
	p := &watchPosition{}
	if len(b) < 1+len(p.topic) || b[0] != watchTokenVersion {
		return nil, errWatchToken
	}
	b = b[1+copy(p.topic[:], b[1:]):]
	number := func() int64 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > math.MaxInt64>>1 {
			err = errWatchToken
			return 0
		}
		b = b[size:]
		return int64(n)
	}
	p.timeMS = number()
	partitions := number()
	if err != nil || partitions > int64(len(b)) {
		return nil, errWatchToken
	}
	p.next = make([]int64, partitions)
	for i := range p.next {
		p.next[i] = number()
	}
	if err != nil || len(b) > 0 || p.token() != token {
		return nil, errWatchToken
	}
	if ahead := time.UnixMilli(p.timeMS).Sub(now); ahead > maxWatchTokenAhead {
		return nil, fmt.Errorf("%w: its time is %v ahead", errWatchToken, ahead.Round(time.Second))
	}
	return p, nil
}
