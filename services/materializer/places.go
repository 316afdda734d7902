package materializer

import "hash/maphash"

// places finds entries by their keys: a hash table with open addressing. Beside an entry's number stands a part of its key's hash, so that a key
// elsewhere in memory is read next to never in vain; and what a search will read can be read ahead, see [fold.readAhead].
type places struct {
	seed  maphash.Seed
	slots []place // a power of two of them
	used  int
}

type place struct {
	hash  uint32 // the upper half; the lower one tells where to begin
	entry uint32 // its number + 1, 0: none
}

const (
	minPlaces = 256
	// tableBytes is about how much memory of the table an entry takes: from two to four places.
	tableBytes = 24
)

func newPlaces() places { return places{seed: maphash.MakeSeed(), slots: make([]place, minPlaces)} }

func (t *places) hash(key []byte) uint64 { return maphash.Bytes(t.seed, key) }

// first is where the search for a hash begins.
func (t *places) first(hash uint64) int { return int(hash & uint64(len(t.slots)-1)) }

// find returns the number of the entry with a key, of which same decides; -1 if there is none.
func (t *places) find(hash uint64, same func(entry int) bool) int {
	upper := uint32(hash >> 32)
	for i := t.first(hash); ; i = (i + 1) & (len(t.slots) - 1) {
		s := t.slots[i]
		if s.entry == 0 {
			return -1
		}
		if s.hash == upper && same(int(s.entry-1)) {
			return int(s.entry - 1)
		}
	}
}

// add notes an entry whose key is not there yet; hashOf tells those of the entries before it, for when the table grows.
func (t *places) add(hash uint64, entry int, hashOf func(entry int) uint64) {
	if t.used++; t.used > len(t.slots)/2 {
		t.slots = make([]place, 2*len(t.slots))
		for i := range entry {
			t.put(hashOf(i), i)
		}
	}
	t.put(hash, entry)
}

func (t *places) put(hash uint64, entry int) {
	i := t.first(hash)
	for t.slots[i].entry != 0 {
		i = (i + 1) & (len(t.slots) - 1)
	}
	t.slots[i] = place{hash: uint32(hash >> 32), entry: uint32(entry + 1)}
}

// reset empties the table.
func (t *places) reset() {
	clear(t.slots)
	t.used = 0
}
