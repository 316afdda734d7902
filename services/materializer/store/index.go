package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mqtt-presence/presence/libs/presence"
)

// Standing is the status by which a client is indexed and counted: that of its last transition, with one exception.
type Standing byte

// NeverSeen stands for the status of all clients of a cluster of which no connection is known, as if they had never been seen. It is
// computed, as it follows the feed and changes without a word about the client. The other standings are values of presence.Presence.
const NeverSeen Standing = 3

// NumStandings is the number of standings, which begin with 0.
const NumStandings = 4

// String returns online, offline, unknown or never_seen.
func (s Standing) String() string {
	if s == NeverSeen {
		return presence.NeverSeen.String()
	}
	return presence.Presence(s).String()
}

// Indexed is what indexes and counters have of a row. It is a function of the row alone.
type Indexed struct {
	Listed   bool // false: nothing, since there is no row, or nothing is known of the client
	Standing Standing
	SinceMS  int64
	Node     string
	Username string // of the connection that decided, if the state knows it
}

// Indexed returns what indexes and counters have of the row. Its strings are the row's.
func (r *Row) Indexed() Indexed {
	l := &r.Last
	if r.State.Empty() {
		return Indexed{}
	}
	x := Indexed{Listed: true, Standing: Standing(l.Status), SinceMS: l.SinceMS, Node: l.Node}
	if l.Reason == presence.NeverSeen {
		x.Standing, x.SinceMS = NeverSeen, 0
	}
	x.Username = r.Username(l.Node, l.Key)
	return x
}

// Indexes maintains the indexes and counters of one partition, in the batches that write its rows. It belongs to the one goroutine that
// does, and there is one batch of it at a time.
//
// They are valid, and every batch keeps them so; or they are being built, and have what the rows up to a place say; or nothing is done for
// them, which is fastest for the first facts of an empty store. A crash leaves them valid or to be built from the start.
type Indexes struct {
	store     *Store
	partition int32
	valid     bool
	building  bool
	loading   bool             // the batch is a load that makes them valid
	blank     bool             // the batch removes all that was there before it
	after     []byte           // while they are built: rows up to this client are in them
	places    map[string]int64 // all counters by place, as in the store; the key is the counter's
	usernames map[string]int64 // some of the counters by username, the same
	changes   indexChanges     // of the batch, or of the next one
}

// Indexes returns what maintains the indexes of a partition, from where the store left them.
func (s *Store) Indexes(partition int32) (*Indexes, error) {
	x := &Indexes{store: s, partition: partition, places: map[string]int64{}, usernames: map[string]int64{}}
	version, found, err := s.uvarint(appendPrefix(nil, kindIndexed, partition), "the version of the indexes", partition)
	if err != nil || !found || version != indexVersion {
		return x, err
	}
	x.valid = true
	lower, upper := kindBounds(partition, kindPlaceCount, "")
	return x, s.scan(lower, upper, func(key, value []byte) (bool, error) {
		n, err := decodeCount(value)
		x.places[string(key)] = n
		return true, err
	})
}

// NewBatch returns an empty batch that may write rows. It must be committed or closed.
func (x *Indexes) NewBatch() *Batch {
	b := x.store.NewBatch(x.partition)
	x.changes.reset(x)
	b.changes = &x.changes
	return b
}

// Valid reports whether indexes and counters are what the rows say.
func (x *Indexes) Valid() bool { return x.valid }

// covers reports whether the client's row is to be in the indexes already.
func (x *Indexes) covers(client []byte) bool {
	return x.valid || x.loading || x.building && bytes.Compare(client, x.after) <= 0
}

// indexChanges are the changes of a batch. They are written in the order of their keys, which is cheaper than that of the clients.
type indexChanges struct {
	of      *Indexes
	keys    []byte
	entries []entryChange
	counts  []countChange
	byKey   map[string]int // into counts
	wrong   bool           // the batch has shown that a counter was
}

// entryChange sets or removes an entry of an index; the key is keys[begin:end].
type entryChange struct {
	begin, end int
	remove     bool
}

type countChange struct {
	key   string
	delta int64
	value int64 // after the batch
}

func (c *indexChanges) reset(x *Indexes) {
	if cap(c.keys) > maxRetained || c.byKey == nil {
		*c = indexChanges{byKey: map[string]int{}}
	}
	clear(c.byKey)
	clear(c.counts)
	c.of, c.keys, c.entries, c.counts, c.wrong = x, c.keys[:0], c.entries[:0], c.counts[:0], false
}

// index notes what becomes of a client in the indexes.
func (b *Batch) index(client []byte, before, now Indexed) {
	c := b.changes
	if c == nil {
		b.fail(errors.New("a row in a batch that is not one of the partition's indexes"))
		return
	}
	if before == now || !c.of.covers(client) {
		return
	}
	both := before.Listed && now.Listed
	keep := kept{
		place:    both && before.Standing == now.Standing && before.Node == now.Node,
		since:    both && before.Standing == now.Standing && before.SinceMS == now.SinceMS,
		username: both && before.Username == now.Username,
	}
	c.note(client, &before, keep, -1)
	c.note(client, &now, keep, 1)
}

// kept are the indexes in which a client stays where it is.
type kept struct{ place, since, username bool }

// note adds a client to the indexes, or removes it: by is 1 or -1.
func (c *indexChanges) note(client []byte, x *Indexed, keep kept, by int64) {
	if !x.Listed {
		return
	}
	cluster, id := cutCluster(client)
	partition := c.of.partition
	if !keep.place {
		begin := len(c.keys)
		c.keys = appendPlace(c.keys, kindPlace, partition, cluster, x.Standing, x.Node)
		c.count(begin, kindPlaceCount, by)
		c.entry(begin, id, by)
	}
	if !keep.since {
		begin := len(c.keys)
		c.keys = appendSince(c.keys, partition, cluster, x.Standing, x.SinceMS)
		c.entry(begin, id, by)
	}
	if !keep.username && x.Username != "" {
		begin := len(c.keys)
		c.keys = appendUsername(c.keys, kindUsername, partition, cluster, x.Username)
		c.count(begin, kindUsernameCount, by)
		c.entry(begin, id, by)
	}
}

// entry notes an entry of an index, whose key is what stands from begin on and the client ID.
func (c *indexChanges) entry(begin int, id []byte, by int64) {
	c.keys = append(c.keys, id...)
	c.entries = append(c.entries, entryChange{begin: begin, end: len(c.keys), remove: by < 0})
}

// count notes a change of a counter, whose key is what stands from begin on, but of another kind.
func (c *indexChanges) count(begin int, kind byte, by int64) {
	key := c.keys[begin:]
	was := key[0]
	key[0] = kind
	i, ok := c.byKey[string(key)]
	if !ok {
		i = len(c.counts)
		c.counts = append(c.counts, countChange{key: string(key)})
		c.byKey[c.counts[i].key] = i
	}
	key[0] = was
	c.counts[i].delta += by
}

// writeIndexes puts the noted changes into the batch.
func (b *Batch) writeIndexes() {
	c := b.changes
	if c == nil {
		return
	}
	if c.of.loading {
		b.value = binary.AppendUvarint(b.value[:0], indexVersion)
		b.set(appendPrefix(b.key[:0], kindIndexed, b.partition), b.value)
	}
	// Of two changes of one entry the later counts.
	slices.SortFunc(c.entries, func(p, q entryChange) int {
		return cmp.Or(bytes.Compare(c.keys[p.begin:p.end], c.keys[q.begin:q.end]), cmp.Compare(p.begin, q.begin))
	})
	for i, e := range c.entries {
		if key := c.keys[e.begin:e.end]; i+1 < len(c.entries) && bytes.Equal(key, c.keys[c.entries[i+1].begin:c.entries[i+1].end]) {
			continue
		} else if e.remove {
			b.drop(key)
		} else {
			b.put(key, nil)
		}
	}
	slices.SortFunc(c.counts, func(p, q countChange) int { return cmp.Compare(p.key, q.key) })
	for i := range c.counts {
		n := &c.counts[i]
		if n.delta == 0 {
			continue
		}
		was, err := c.of.count(n.key)
		b.fail(err)
		n.value = was + n.delta
		c.wrong = c.wrong || n.value < 0
		if b.key = append(b.key[:0], n.key...); n.value <= 0 {
			b.drop(b.key)
			continue
		}
		b.value = binary.AppendUvarint(b.value[:0], uint64(n.value))
		b.put(b.key, b.value)
	}
	if c.wrong {
		// Fewer than none: the counters were not what the rows said. They are counted again.
		b.invalidate()
	}
}

// invalidate has the indexes built anew.
func (b *Batch) invalidate() {
	b.remove(appendPrefix(b.key[:0], kindIndexed, b.partition))
}

// indexesWritten is called once the batch is committed.
func (b *Batch) indexesWritten() {
	c := b.changes
	if c == nil {
		return
	}
	for i := range c.counts {
		if n := &c.counts[i]; n.delta != 0 {
			c.of.counted(n.key, max(n.value, 0))
		}
	}
	if c.wrong {
		c.of.valid, c.of.building = false, false
	}
	if c.of.loading {
		c.of.valid, c.of.loading, c.of.blank = true, false, false
	}
}

// Build brings indexes and counters that are not valid closer to being it: it reads the next rows, at most limit, and commits what is to be
// in the indexes for them. What a former version, or one that was interrupted, has left of them goes first. With the last rows they become
// valid. For each row see is called before; it may change what the indexes show, and returns whether it did, and the row is written anew.
func (x *Indexes) Build(limit int, see func(client []byte, r *Row) bool) error {
	if x.valid {
		return nil
	}
	b := x.NewBatch()
	if !x.building {
		for _, kinds := range [...][2]byte{{kindPlace, kindUsername}, {kindPlaceCount, kindUsernameCount}} {
			for kind := kinds[0]; kind <= kinds[1]; kind++ {
				lower, upper := kindBounds(x.partition, kind, "")
				b.fail(b.b.DeleteRange(lower, upper, nil))
			}
		}
		x.after, x.blank = nil, true
		clear(x.places)
		clear(x.usernames)
	}
	lower, upper := kindBounds(x.partition, kindClient, "")
	if x.after != nil {
		lower = append(appendClient(nil, kindClient, x.partition, x.after), 0)
	}
	seen, last := 0, []byte(nil)
	var r Row
	err := x.store.scan(lower, upper, func(key, value []byte) (bool, error) {
		if seen++; seen > limit {
			return false, nil
		}
		last = append(last[:0], key[prefixSize:]...)
		state, err := r.Decode(value)
		if err != nil {
			return false, err
		}
		if see(last, &r) {
			b.value = r.Append(b.value[:0], state)
			b.set(appendClient(b.key[:0], kindClient, x.partition, last), b.value)
		}
		now := r.Indexed()
		x.changes.note(last, &now, kept{}, 1)
		return true, nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("build the indexes of partition %d: %w", x.partition, err), b.Close())
	}
	done := seen <= limit
	if done {
		b.value = binary.AppendUvarint(b.value[:0], indexVersion)
		b.set(appendPrefix(b.key[:0], kindIndexed, x.partition), b.value)
	}
	if err := b.Commit(); err != nil {
		return err
	}
	x.blank = false
	if x.valid, x.building = done, !done; x.building {
		x.after = last
	}
	return nil
}

// Invalidate has the indexes built anew. Until then nothing is in them for readers.
func (x *Indexes) Invalidate() error {
	b := x.NewBatch()
	b.invalidate()
	if err := b.Commit(); err != nil {
		return err
	}
	x.valid, x.building = false, false
	return nil
}
