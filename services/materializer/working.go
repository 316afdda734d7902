package materializer

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// fold is a partition's working set: the rows that its facts have touched since the latest commit, as they are now, and what is to be written
// with them. A row is read at most once, folded in memory as its facts come, and written once, with all others and the offset behind the
// facts. Live, the set is committed after each take from the queue; a partition that catches up keeps it open, see [partition.due].
type fold struct {
	blank bool // the store has no rows of the partition: there is nothing to read

	blocks  [][]entry // of blockEntries each, so that an entry stays where it is
	size    int       // entries in use
	places  places
	names   map[string]string // of nodes
	arena   arena
	logs    logs          // what is to be appended to the clients' logs
	history logs          // and to their histories
	out     []store.Chunk // the outbox
	record  kgo.Record    // that is being put into it
	outSize int           // bytes of it
	spill   *store.Spill  // what has the first chunks of it, nil if all of them are in memory
	spilled int           // chunks
	onDisk  int           // bytes of them
	counted counted
	bytes   int       // of the entries' states; see memory
	records int       // that were taken
	began   time.Time // when the first of them was
	firstMS int64     // received time of the first fact, 0 if there was none

	// Of one take.
	facts  []pendingFact
	hashes []uint64 // of the keys of the next facts
	ahead  int64    // nobody uses what readAhead read
	unread []int    // entries without their rows
	poison []*eventlog.DeadLetter

	// Of one client.
	leaving []store.Session // what a fact may take out of the state
	scratch []byte
	state   []byte
	key     []byte
}

// pendingFact is a decoded fact, what became of it, and the entry that it goes to.
type pendingFact struct {
	store.Evidence
	entry int
}

// entry is a row of the working set.
type entry struct {
	key   string
	found bool
	row   store.Row
	// published is the state as in the client's latest record, as far as this set knows it: as it was read, or as a transition of
	// the set left it.
	published  []byte
	before     []byte // as read
	indexed    store.Indexed
	transition bool
	touched    bool // received time grew
	settled    bool // no fact came since published was written
	forgotten  bool // what was logged before the chains is to go
	expired    bool // the row was gone, and what followed was folded onto nothing

	logged, sessions chain
	stateBytes       int
}

const (
	blockEntries = 128
	entryBytes   = int(unsafe.Sizeof(entry{})) + tableBytes
	// maxNames bounds the names of nodes that are shared.
	maxNames = 1 << 10
	// keptBytes is the size from which a set's memory is not kept: there are few such sets, and far between.
	keptBytes = 16 << 20
)

func (f *fold) init() { f.places, f.names = newPlaces(), map[string]string{} }

// reset empties the set.
func (f *fold) reset() {
	// Memory is kept for the next set, unless that is likely to need far less.
	if f.memory() > keptBytes || f.records <= liveBatch && len(f.blocks)*blockEntries > 4*liveBatch {
		*f = fold{blank: f.blank, places: newPlaces(), names: f.names, scratch: f.scratch, state: f.state, key: f.key}
		return
	}
	for _, b := range f.blocks {
		clear(b)
	}
	f.places.reset()
	clear(f.facts)
	clear(f.leaving[:cap(f.leaving)])
	f.logs.reset()
	f.history.reset()
	*f = fold{blank: f.blank, blocks: f.blocks, places: f.places, names: f.names, arena: f.arena, logs: f.logs, history: f.history, facts: f.facts[:0], hashes: f.hashes[:0], unread: f.unread[:0],
		leaving: f.leaving[:0], scratch: f.scratch, state: f.state, key: f.key}
	f.arena.used = 0
}

// empty reports whether all that was folded is committed.
func (f *fold) empty() bool { return f.records == 0 }

// memory is about how many bytes the set takes.
func (f *fold) memory() int {
	return f.size*entryBytes + f.bytes + f.arena.used + f.logs.size + f.history.size + f.outSize - f.onDisk
}

func (f *fold) entry(i int) *entry { return &f.blocks[i/blockEntries][i%blockEntries] }

// readAhead reads what the next records will need of the set, all at once: a processor waits for many such reads in the time of one, and they
// are far apart.
func (f *fold) readAhead(records []*kgo.Record) {
	f.hashes = f.hashes[:0]
	for _, r := range records {
		f.hashes = append(f.hashes, f.places.hash(r.Key))
	}
	sum := int64(0)
	for _, h := range f.hashes {
		sum += int64(f.places.slots[f.places.first(h)].hash)
	}
	for _, h := range f.hashes {
		s := f.places.slots[f.places.first(h)]
		if s.entry == 0 || s.hash != uint32(h>>32) {
			continue // or in one of the next places, and read when it is needed
		}
		e := f.entry(int(s.entry - 1))
		sum += int64(e.key[0]) + e.row.Latest.Event
		if len(e.row.State.Nodes) > 0 {
			n := &e.row.State.Nodes[0]
			sum += n.Conn.OpenedMS + n.TakeoverMS
		}
	}
	f.ahead = sum
}

// add returns the index of the entry of a client with that hash, and whether it is new.
func (f *fold) add(key []byte, hash uint64) (i int, added bool) {
	i = f.places.find(hash, func(i int) bool { return f.entry(i).key == string(key) })
	if i >= 0 {
		return i, false
	}
	i = f.size
	if f.size++; i/blockEntries == len(f.blocks) {
		f.blocks = append(f.blocks, make([]entry, blockEntries))
	}
	e := f.entry(i)
	k := f.arena.copy(key)
	e.key = unsafe.String(unsafe.SliceData(k), len(k)) // never written again
	e.before, e.published = emptyState, emptyState
	e.row.Last.Version, e.row.Latest = noVersion, noVersion
	f.places.add(hash, i, func(i int) uint64 { return maphash.String(f.places.seed, f.entry(i).key) })
	return i, true
}

// name returns the one copy of a node's name that all facts of the partition share: fewer are in memory, and equal ones are seen to be so without
// a look at them.
func (f *fold) name(node string) string {
	if known, ok := f.names[node]; ok {
		return known
	}
	if len(f.names) >= maxNames {
		clear(f.names)
	}
	f.names[node] = node
	return node
}

// sorted returns the entries in the order of their keys, which is the cheapest to write.
func (f *fold) sorted() []*entry {
	order := make([]*entry, f.size)
	for i := range order {
		order[i] = f.entry(i)
	}
	slices.SortFunc(order, func(a, b *entry) int { return strings.Compare(a.key, b.key) })
	return order
}

// weigh notes how much memory an entry's state takes now.
func (f *fold) weigh(e *entry) {
	n := stateBytes(&e.row.State)
	f.bytes += n - e.stateBytes
	e.stateBytes = n
}

// stateBytes is about how many bytes of memory a state points to.
func stateBytes(s *presence.State) int {
	n := cap(s.Nodes)*int(unsafe.Sizeof(presence.NodeState{})) + cap(s.Observed)*int(unsafe.Sizeof(presence.Observation{}))
	for i := range s.Nodes {
		x := &s.Nodes[i]
		n += len(x.Node) + len(x.Conn.Key) + len(x.Conn.Username) + len(x.Conn.Peer) + len(x.End.Key) + len(x.End.RawReason) +
			cap(x.Marks)*int(unsafe.Sizeof(presence.Mark{})) + cap(x.Earlier)*int(unsafe.Sizeof(presence.Earlier{})) + cap(x.Closes)*int(unsafe.Sizeof(presence.Close{}))
		for j := range x.Earlier {
			n += len(x.Earlier[j].Key)
		}
		for j := range x.Closes {
			n += len(x.Closes[j].Key) + len(x.Closes[j].RawReason)
		}
	}
	for i := range s.Observed {
		n += len(s.Observed[i].Node) + len(s.Observed[i].Key) + len(s.Observed[i].Source)
	}
	return n
}

// counted is what the set has to add to metrics once it is committed.
type counted struct {
	facts       [presence.Forgotten + 1][presence.NumOutcomes]int
	transitions [presence.Online + 1]int
}

// arena holds bytes that live as long as the set. It never uses memory twice.
type arena struct {
	free []byte
	used int
}

const arenaChunk = 64 << 10

// copy returns a copy of b.
func (a *arena) copy(b []byte) []byte {
	if len(b) > cap(a.free)-len(a.free) {
		if len(b) > arenaChunk/8 {
			a.used += len(b)
			return slices.Clone(b)
		}
		a.free = make([]byte, 0, arenaChunk)
	}
	begin := len(a.free)
	a.free = append(a.free, b...)
	a.used += len(b)
	return a.free[begin:len(a.free):len(a.free)]
}

// logs are the entries that a set has for the logs of its clients, chained per client, in pieces of memory that stay where they are:
//
//	next (4)  place of the client's next entry, 0 for none
//	size (4)  of the entry, which follows
type logs struct {
	chunks [][]byte
	size   int
}

const (
	logChunk  = 64 << 10
	logHeader = 8
)

// chain is the places of a client's first and last entry, 0 for none, and how many there are.
type chain struct{ first, last, count uint32 }

func (l *logs) reset() {
	l.chunks, l.size = l.chunks[:min(len(l.chunks), 1)], 0
	for i := range l.chunks {
		l.chunks[i] = l.chunks[i][:0]
	}
}

// at returns what stands at a place.
func (l *logs) at(place uint32) []byte { return l.chunks[(place-1)/logChunk][(place-1)%logChunk:] }

// add appends an entry, the newest of a chain.
func (l *logs) add(c *chain, entry []byte) {
	last := len(l.chunks) - 1
	if last < 0 || len(l.chunks[last])+logHeader+len(entry) > logChunk {
		l.chunks = append(l.chunks, make([]byte, 0, max(logChunk, logHeader+len(entry))))
		last++
	}
	b := l.chunks[last]
	place := uint32(last*logChunk + len(b) + 1)
	b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, 0), uint32(len(entry)))
	l.chunks[last] = append(b, entry...)
	l.size += logHeader + len(entry)
	if c.first == 0 {
		c.first = place
	} else {
		binary.LittleEndian.PutUint32(l.at(c.last), place)
	}
	c.last = place
	c.count++
}

// append appends the newest entries of a chain to dst, at most limit.
func (l *logs) append(dst []byte, c chain, limit int) []byte {
	skip := int(c.count) - limit
	for place := c.first; place != 0; {
		b := l.at(place)
		if skip--; skip < 0 {
			dst = append(dst, b[logHeader:logHeader+binary.LittleEndian.Uint32(b[4:])]...)
		}
		place = binary.LittleEndian.Uint32(b)
	}
	return dst
}
