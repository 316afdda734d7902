package materializer

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// What a set counts of its outbox is what it holds in memory, however much of it is on disk: else the bound of memory is none.
func TestSpillLeavesWhatIsCounted(t *testing.T) {
	p := catchingUp(t, 1<<40)
	p.spillFrom = 1 << 20
	for batch := range slices.Chunk(benchRecords(60_000, 30_000), 1000) {
		if err := p.fold(context.Background(), batch); err != nil {
			t.Fatal(err)
		}
		held := 0
		for i := range p.folds.out {
			held += p.folds.out[i].Bytes()
		}
		counted := p.folds.outSize - p.folds.onDisk
		if counted < held*3/4 || counted > held*5/4 {
			t.Fatalf("%d bytes of the outbox are in memory after %d facts, %d are counted; %d are on disk", held, p.folds.records, counted, p.folds.onDisk)
		}
		if held > p.spillFrom*2 {
			t.Fatalf("%d bytes of the outbox are in memory", held)
		}
	}
	if p.folds.onDisk < 8<<20 {
		t.Errorf("%d bytes are on disk", p.folds.onDisk)
	}
}

// A process that dies while a set is open and partly on disk, or while the set is published, loses no transition, and none comes out of order.
func TestCrashesWithSpills(t *testing.T) {
	l := newLog(t)
	const facts, clients = 140_000, 20_000
	for batch := range slices.Chunk(benchRecords(facts, clients), 10_000) {
		l.produce(batch...)
	}
	fs := vfs.NewCrashableMem()
	m := l.start(l.config(fs))
	var crashed []*vfs.MemFS
	crash := func(what string, when func(p *partition) bool) {
		eventually(t, what, func() bool {
			for _, p := range m.owned() {
				if when(p) {
					crashed = append(crashed, fs.CrashClone(vfs.CrashCloneCfg{}))
					return true
				}
			}
			return false
		})
	}
	spilled := func(p *partition) (bytes, stored, published int) {
		p.outbox.mu.Lock()
		defer p.outbox.mu.Unlock()
		if len(p.outbox.chunks) > 0 {
			published = int(p.outbox.chunks[0].Seq - 1)
		}
		return p.outbox.spilled, p.outbox.stored, published
	}
	crash("a set is open that is partly on disk", func(p *partition) bool {
		bytes, stored, _ := spilled(p)
		return bytes > stored
	})
	crash("a set with chunks on disk is committed", func(p *partition) bool {
		_, stored, _ := spilled(p)
		return stored > 0
	})
	crash("chunks from the disk are being published", func(p *partition) bool {
		_, stored, published := spilled(p)
		return stored > 0 && published > 0
	})
	// What is read from now on was published by another process in the same partitions, some of it ahead of what the crashed store has.
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	for i, fs := range crashed {
		m := l.start(l.config(fs))
		m.published(l)
		if n := m.shared.Load().spilled.Load(); n != 0 {
			t.Errorf("crash %d: %d bytes are taken for spilled", i, n)
		}
		if names, err := fs.List("data/load"); err == nil && len(names) > 0 {
			t.Errorf("crash %d has left %q", i, names)
		}
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
	}
	latest, transitions := map[string]eventlog.ClientState{}, 0
	for _, s := range l.states() {
		if s.Transition {
			latest[s.ClientID] = s
			transitions++
		}
	}
	if transitions != facts || len(latest) != clients {
		t.Errorf("%d transitions of %d clients, want %d of %d", transitions, len(latest), facts, clients)
	}
	for i := facts - clients; i < facts; i++ { // the last facts are one of each client
		id, want := fmt.Sprintf("VIN%019d", i*7919%clients), presence.Online
		if i/clients%2 == 1 {
			want = presence.Offline
		}
		if latest[id].Status != want {
			t.Fatalf("client %s is %v, want %v", id, latest[id].Status, want)
		}
	}
}
