package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// maxDifferences bounds the differences that a check names.
const maxDifferences = 100

// checkEvery is how many keys a check reads between two looks whether it is to stop.
const checkEvery = 1 << 10

// Check is what comparing a partition's indexes and counters with its rows has shown.
type Check struct {
	Clients     int64
	Entries     int64 // of indexes
	Counters    int64
	Differences []string // at most 100
}

// Check compares indexes and counters of a partition with a scan of its rows, in memory that does not grow with them: each row's entries are
// looked up in the indexes; where an index then has more entries than rows have in it, the row of each of its entries is; and counters are
// compared with the entries of the indexes that they count.
func (v *View) Check(ctx context.Context, partition int32) (Check, error) {
	c := &checking{view: v, ctx: ctx, partition: partition}
	err := c.rows()
	for _, kind := range [...]byte{kindPlace, kindSince, kindUsername} {
		if err == nil {
			err = c.index(kind)
		}
	}
	if err != nil {
		return Check{}, fmt.Errorf("check the indexes of partition %d: %w", partition, err)
	}
	return c.Check, nil
}

// checking is one check.
type checking struct {
	Check
	view      *View
	ctx       context.Context
	partition int32
	seen      int
	present   [kindUsername + 1]int64 // by kind: entries that are in the indexes and should be
	changes   indexChanges            // what makes a row's entries
}

func (c *checking) differ(format string, args ...any) {
	if len(c.Differences) < maxDifferences {
		c.Differences = append(c.Differences, fmt.Sprintf(format, args...))
	}
}

// goOn returns an error if the check is to stop.
func (c *checking) goOn() error {
	if c.seen++; c.seen%checkEvery != 0 {
		return nil
	}
	return errors.Join(c.ctx.Err(), c.view.stopped())
}

// entries calls fn with the key of every entry that indexes have for a row.
func (c *checking) entries(client, value []byte, fn func(key []byte)) error {
	var r Row
	if _, err := r.Decode(value); err != nil {
		return err
	}
	now := r.Indexed()
	c.changes.reset(&Indexes{partition: c.partition})
	c.changes.note(client, &now, kept{}, 1)
	for _, e := range c.changes.entries {
		fn(c.changes.keys[e.begin:e.end])
	}
	return nil
}

// rows looks the entries of all rows up.
func (c *checking) rows() (err error) {
	var its [kindUsername + 1]*pebble.Iterator
	defer func() {
		for _, it := range its {
			if it != nil {
				err = errors.Join(err, closeIter(it))
			}
		}
	}()
	for kind := kindPlace; kind <= kindUsername; kind++ {
		if its[kind], err = c.view.iter(kindBounds(c.partition, kind, "")); err != nil {
			return err
		}
	}
	lower, upper := kindBounds(c.partition, kindClient, "")
	return c.view.scan(lower, upper, func(key, value []byte) (bool, error) {
		listed := int64(0)
		if err := c.entries(key[prefixSize:], value, func(entry []byte) {
			listed = 1
			it := its[entry[0]]
			if it.SeekGE(entry) && bytes.Equal(it.Key(), entry) {
				c.present[entry[0]]++
			} else if it.Error() == nil {
				c.differ("%s is missing", describe(entry))
			}
		}); err != nil {
			return false, err
		}
		c.Clients += listed
		return true, c.goOn()
	})
}

// index counts an index's entries, compares them with the counters, and names those that no row has.
func (c *checking) index(kind byte) error {
	counters, err := c.counters(kind)
	if err != nil {
		return err
	}
	var entries int64
	lower, upper := kindBounds(c.partition, kind, "")
	err = c.view.scan(lower, upper, func(key, _ []byte) (bool, error) {
		entries++
		if err := counters.entry(key); err != nil {
			return false, err
		}
		return true, c.goOn()
	})
	if err = errors.Join(err, counters.end()); err != nil {
		return err
	}
	c.Entries += entries
	if entries > c.present[kind] {
		return c.extra(kind)
	}
	return nil
}

// extra names the entries of an index that no row has.
func (c *checking) extra(kind byte) error {
	lower, upper := kindBounds(c.partition, kind, "")
	return c.view.scan(lower, upper, func(key, _ []byte) (bool, error) {
		header := headerSize(key)
		if header < 0 {
			c.differ("key %x is no entry of an index", key)
			return true, c.goOn()
		}
		cluster, _ := cutCluster(key[prefixSize:])
		client, has := append(bytes.Clone(cluster), key[header:]...), false
		var failed error
		c.view.key = appendClient(c.view.key[:0], kindClient, c.partition, client)
		if _, err := c.view.get(c.view.key, func(value []byte) error {
			failed = c.entries(client, value, func(entry []byte) { has = has || bytes.Equal(entry, key) })
			return failed
		}); err != nil {
			return false, err
		}
		if !has {
			c.differ("%s is not what the row says", describe(key))
		}
		return true, c.goOn()
	})
}

// headerSize is the length of what comes before the client ID in the key of an index; -1 for a key that is none.
func headerSize(key []byte) int {
	cluster, rest := cutCluster(key[prefixSize:])
	header, size := prefixSize+len(cluster), 0
	if len(cluster) == 0 {
		return -1
	}
	switch key[0] {
	case kindPlace:
		if len(rest) == 0 {
			return -1
		}
		header++
		size = textSize(rest[1:])
	case kindSince:
		size = 1 + 8
	case kindUsername:
		size = textSize(rest)
	}
	if size < 0 || header+size > len(key) {
		return -1
	}
	return header + size
}

// describe names an entry of an index, or a counter.
func describe(key []byte) string {
	kind := key[0]
	what := "the counter of "
	switch kind {
	case kindPlaceCount:
		kind = kindPlace
	case kindUsernameCount:
		kind = kindUsername
	default:
		what = "the entry of "
	}
	header := headerSize(append([]byte{kind}, key[1:]...))
	if header < 0 {
		return fmt.Sprintf("key %x", key)
	}
	cluster, rest := cutCluster(key[prefixSize:header])
	if kind == key[0] {
		what += fmt.Sprintf("client %q in ", append(bytes.Clone(cluster), key[header:]...))
	}
	switch kind {
	case kindPlace:
		return fmt.Sprintf("%sthe index by status and node, at %v %q in cluster %q", what, Standing(rest[0]), text(rest[1:]), cluster)
	case kindSince:
		return fmt.Sprintf("%sthe index by since, at %v %x in cluster %q", what, Standing(rest[0]), rest[1:], cluster)
	}
	return fmt.Sprintf("%sthe index by username, at %q in cluster %q", what, text(rest), cluster)
}

// counters compares the counters of an index with its entries, both of which are in the same order.
type counters struct {
	check *checking
	it    *pebble.Iterator // nil: the index has none
	valid bool
	group []byte // of the entries that are counted: the key of their counter
	count int64
}

func (c *checking) counters(kind byte) (*counters, error) {
	n := &counters{check: c}
	var of byte
	switch kind {
	case kindPlace:
		of = kindPlaceCount
	case kindUsername:
		of = kindUsernameCount
	default:
		return n, nil
	}
	var err error
	if n.it, err = c.view.iter(kindBounds(c.partition, of, "")); err != nil {
		return nil, err
	}
	n.valid = n.it.First()
	return n, nil
}

// entry counts an entry of the index.
func (n *counters) entry(key []byte) error {
	header := headerSize(key)
	if n.it == nil || header < 0 {
		return nil
	}
	if len(n.group) != header || !bytes.Equal(n.group[1:], key[1:header]) {
		if err := n.close(); err != nil {
			return err
		}
		n.group, n.count = append(n.group[:0], key[:header]...), 0
		if n.group[0] = kindPlaceCount; key[0] == kindUsername {
			n.group[0] = kindUsernameCount
		}
	}
	n.count++
	return nil
}

// close compares what was counted with its counter, and names those before it.
func (n *counters) close() error {
	if n.count == 0 {
		return nil
	}
	for ; n.valid && bytes.Compare(n.it.Key(), n.group) < 0; n.valid = n.it.Next() {
		if err := n.compare(n.it.Key(), 0); err != nil {
			return err
		}
	}
	if n.valid && bytes.Equal(n.it.Key(), n.group) {
		err := n.compare(n.group, n.count)
		n.valid = n.it.Next()
		return err
	}
	n.check.differ("%s is missing, there are %d entries", describe(n.group), n.count)
	return nil
}

// compare compares the counter under the iterator with a number of entries.
func (n *counters) compare(key []byte, entries int64) error {
	value, err := n.it.ValueAndErr()
	if err != nil {
		return fmt.Errorf("scan the store: %w", err)
	}
	n.check.Counters++
	if count, err := decodeCount(value); err != nil || count != entries {
		n.check.differ("%s is %d, there are %d entries", describe(key), count, entries)
	}
	return nil
}

// end compares what is left and closes the counters.
func (n *counters) end() error {
	if n.it == nil {
		return nil
	}
	err := n.close()
	for ; err == nil && n.valid; n.valid = n.it.Next() {
		err = n.compare(n.it.Key(), 0)
	}
	return errors.Join(err, closeIter(n.it))
}
