package materializer

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/mqtt-presence/presence/libs/backup"
	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// reference is the fold of facts, by client.
type reference map[string]*presence.State

func (ref reference) apply(facts ...presence.Fact) {
	for i := range facts {
		s := ref[facts[i].ClientID]
		if s == nil {
			s = &presence.State{}
			ref[facts[i].ClientID] = s
		}
		s.Apply(&facts[i])
	}
}

// send appends facts to the log and to the reference.
func (ref reference) send(l *log, facts ...presence.Fact) {
	l.t.Helper()
	l.facts(facts...)
	ref.apply(facts...)
}

// sameAs compares the rows of an instance, which owns all partitions, with the reference: the state of each client byte for byte, and that
// there is no other.
func (ref reference) sameAs(i *instance) {
	i.t.Helper()
	db := i.shared.Load().store
	rows := map[string]bool{}
	for id := range i.owned() {
		if _, err := db.Rows(id, nil, 1<<20, func(client, value []byte) error {
			var row store.Row
			state, err := row.Decode(value)
			if err != nil {
				return err
			}
			_, clientID, _ := strings.Cut(string(client), "/")
			rows[clientID] = true
			want := ref[clientID]
			if want == nil {
				want = &presence.State{}
			}
			if b := want.Append(nil); !bytes.Equal(state, b) {
				i.t.Errorf("%s has state %x, want %x", clientID, state, b)
			}
			return nil
		}); err != nil {
			i.t.Fatal(err)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(ref)) {
		if !rows[id] {
			i.t.Errorf("%s has no row", id)
		}
	}
}

// uneventful makes facts most of which change no status: copies of another bridge, ends of connections that were replaced, ends that come before
// their connection, answers to queries.
func uneventful(clients int) []presence.Fact {
	var facts []presence.Fact
	for i := range clients {
		id := fmt.Sprint("quiet", i)
		open := opened(id, "n1", 10_000)
		again := open
		again.ReceivedMS -= 3
		facts = append(facts, open, again)
		switch i % 4 {
		case 0: // Two ghosts: of the connection before, which nobody announced, and of one of another node.
			facts = append(facts, closedAt(id, "n1", 5_000, 9_000), closedAt(id, "n2", 4_000, 6_000))
		case 1: // Its end is here before it opened.
			facts = append(facts, closedAt(id, "n1", 20_000, 21_000))
		case 2: // The broker confirms it, twice.
			for k := range int64(2) {
				f := presence.Fact{
					Kind: presence.Observed, Cluster: "default", ClientID: id, Dialect: presence.DialectEMQX, Node: "n1", Connection: open.Connection, Online: presence.Some(true),
					TimeMS: t0 + 30_000 + k, ReceivedMS: t0 + 30_010 + k, QueryStartMS: t0 + 30_000 + k, QueryEndMS: t0 + 30_010 + k, Source: "rest",
				}
				f.SetID()
				facts = append(facts, f)
			}
		case 3: // Another node has an older one, told late and closed.
			facts = append(facts, opened(id, "n2", 2_000), closedAt(id, "n2", 2_000, 3_000))
		}
	}
	return facts
}

// late are facts whose outcome depends on what uneventful left without a transition.
func late(clients int) []presence.Fact {
	var facts []presence.Fact
	for i := range clients {
		if i%4 == 1 {
			facts = append(facts, opened(fmt.Sprint("quiet", i), "n1", 20_000))
		}
	}
	return facts
}

// checkpointed waits until client-state has a checkpoint at the end of each partition.
func (i *instance) checkpointed(l *log) {
	i.t.Helper()
	i.published(l)
	servicetest.Eventually(i.t, patience, func() error {
		for id, p := range i.owned() {
			meta, _, err := i.shared.Load().store.Meta(id)
			if err != nil || meta.Checkpoint < meta.Next || p.outbox.depth() > 0 {
				return fmt.Errorf("partition %d: checkpoint %d of %d, %v", id, meta.Checkpoint, meta.Next, err)
			}
		}
		return nil
	})
}

// forgetEvents deletes all records that client-events has.
func (l *log) forgetEvents() {
	l.t.Helper()
	adm := kadm.NewClient(l.client)
	ends, err := adm.ListEndOffsets(l.t.Context(), eventlog.TopicClientEvents)
	if err == nil {
		_, err = adm.DeleteRecords(l.t.Context(), ends.Offsets())
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *log) frequentCheckpoints(fs vfs.FS) Config {
	cfg := l.config(fs)
	cfg.CheckpointInterval = 20 * time.Millisecond
	return cfg
}

func (i *instance) mustStop() {
	i.t.Helper()
	if err := i.stop(); err != nil {
		i.t.Fatal(err)
	}
}

// An empty disk is filled from client-state alone, and from the client-events after the checkpoint: also with what caused no transition, on
// which later facts depend.
func TestRestoreOfAnEmptyDisk(t *testing.T) {
	l, ref := newLog(t), reference{}
	const clients = 40
	m := l.start(l.frequentCheckpoints(vfs.NewMem())).ready()
	ref.send(l, uneventful(clients)...)
	m.checkpointed(l)
	transitions := 0
	for _, s := range l.states() {
		if s.Transition {
			transitions++
		}
	}
	if facts := len(uneventful(clients)); transitions >= facts/2 {
		t.Fatalf("%d transitions of %d facts: most facts are to cause none", transitions, facts)
	}
	m.mustStop()
	l.forgetEvents()
	ref.send(l, late(clients)...)

	m = l.start(l.config(vfs.NewMem())).ready()
	m.published(l)
	ref.sameAs(m)
	for i := range clients {
		want := "online"
		if i%4 == 1 {
			want = "offline"
		}
		if e := m.get(fmt.Sprint("quiet", i), nil); e.GetStatus() != want {
			t.Errorf("%s is %s, want %s", e.GetClientId(), e.GetStatus(), want)
		}
	}
	m.mustStop()
	l.states()
}

// A disk of some time ago catches up: from client-events, and where those are gone from client-state.
func TestRestoreOfAnOldDisk(t *testing.T) {
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprintf("gone=%v", gone), func(t *testing.T) {
			t.Parallel()
			l, ref := newLog(t), reference{}
			const clients = 40
			fs := vfs.NewCrashableMem()
			m := l.start(l.frequentCheckpoints(fs)).ready()
			ref.send(l, uneventful(clients/2)...)
			m.published(l)
			if err := m.shared.Load().store.Sync(); err != nil {
				t.Fatal(err)
			}
			old := fs.CrashClone(vfs.CrashCloneCfg{})
			ref.send(l, uneventful(clients)...)
			m.checkpointed(l)
			m.mustStop()
			if gone {
				l.forgetEvents()
			}
			ref.send(l, late(clients)...)
			m = l.start(l.config(old)).ready()
			m.published(l)
			ref.sameAs(m)
			m.mustStop()
			l.states()
		})
	}
}

// A disk that is so old that client-state no longer says who was forgotten since does not bring them back, whether or not client-events does.
func TestForgottenStaysForgottenOnAVeryOldDisk(t *testing.T) {
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprintf("gone=%v", gone), func(t *testing.T) {
			t.Parallel()
			l, ref := newLog(t), reference{}
			fs := vfs.NewCrashableMem()
			m := l.start(l.frequentCheckpoints(fs)).ready()
			l.facts(opened("secret", "n1", 0))
			ref.send(l, uneventful(20)...)
			m.published(l)
			if err := m.shared.Load().store.Sync(); err != nil {
				t.Fatal(err)
			}
			old := fs.CrashClone(vfs.CrashCloneCfg{})
			l.facts(forgotten("secret", 1000, 1000))
			ref.send(l, late(20)...)
			for day := range int64(9) {
				for i := range 20 {
					ref.send(l, opened(fmt.Sprint("daily", i), "n1", (day+1)*dayMS))
				}
			}
			m.checkpointed(l)
			m.mustStop()
			if gone {
				l.forgetEvents()
			}
			l.compactTombstones()
			m = l.start(l.config(old)).ready()
			m.published(l)
			if e := m.get("secret", nil); e.GetFound() {
				t.Errorf("the client that was forgotten is back: %v", e)
			}
			ref.sameAs(m)
		})
	}
}

// compactTombstones makes client-state what Kafka's cleaner makes of it once tombstones have had their time.
func (l *log) compactTombstones() {
	l.t.Helper()
	adm := kadm.NewClient(l.client)
	zero, never := "0", "-1"
	if _, err := adm.AlterTopicConfigs(l.t.Context(), []kadm.AlterConfig{
		{Op: kadm.SetConfig, Name: "delete.retention.ms", Value: &zero},
		// The fake deletes by time, too, and from compacted topics.
		{Op: kadm.SetConfig, Name: "retention.ms", Value: &never},
	}, eventlog.TopicClientState, eventlog.TopicClientEvents); err != nil {
		l.t.Fatal(err)
	}
	servicetest.Eventually(l.t, patience, func() error {
		l.cluster.Compact()
		for _, r := range l.read(eventlog.TopicClientState) {
			if r.Value == nil {
				return fmt.Errorf("a tombstone of %s is left", r.Key)
			}
		}
		return nil
	})
}

// A replica that does not publish has nothing but client-events to catch up from.
func TestOldDiskOfAReplicaThatDoesNotPublish(t *testing.T) {
	l, ref := newLog(t), reference{}
	m := l.start(l.frequentCheckpoints(vfs.NewMem())).ready()
	b := l.config(vfs.NewMem())
	b.Replica, b.Publish, b.StateAdvertise = "b", false, "127.0.0.1:2"
	mb := l.start(b).ready()
	ref.send(l, uneventful(8)...)
	mb.caughtUp(l).mustStop()
	ref.send(l, late(8)...)
	m.checkpointed(l)
	m.mustStop()
	l.forgetEvents()
	if err := runError(t, b); !errors.Is(err, errOutOfRange) || !strings.Contains(err.Error(), "empty data-dir to begin with the latest checkpoint") {
		t.Errorf("error is %v", err)
	}
	b.fs = vfs.NewMem()
	mb = l.start(b).ready()
	ref.sameAs(mb)
}

// What is in data-dir is refused where it is not of this log, or no store, and the message says what it is and what to do.
func TestRefusesForeignDisks(t *testing.T) {
	filled := func(t *testing.T, l *log) string {
		dir := t.TempDir()
		cfg := l.config(nil)
		cfg.DataDir = dir
		m := l.start(cfg).ready()
		l.facts(opened("a", "n1", 0))
		m.published(l)
		m.mustStop()
		return dir
	}
	for _, tc := range []struct {
		name string
		disk func(t *testing.T, l *log) string // returns data-dir
		want []string
	}{
		{"another cluster", func(t *testing.T, l *log) string { return filled(t, newLog(t)) },
			[]string{"of another client-events, node-events: ", "set another data-dir, or empty it"}},
		{"a topic deleted and created again", func(t *testing.T, l *log) string {
			dir := filled(t, l)
			if _, err := kadm.NewClient(l.client).DeleteTopic(t.Context(), eventlog.TopicClientEvents); err != nil {
				t.Fatal(err)
			}
			eventlogtest.Ensure(t, l.cfg)
			return dir
		}, []string{"of another client-events: ", "set another data-dir, or empty it"}},
		{"another partition count", func(t *testing.T, l *log) string {
			dir := filled(t, l)
			if _, err := kadm.NewClient(l.client).CreatePartitions(t.Context(), 1, eventlog.TopicClientEvents, eventlog.TopicClientState, eventlog.TopicDeadLetters); err != nil {
				t.Fatal(err)
			}
			l.cfg.Partitions++
			return dir
		}, []string{"of another number of partitions: ", "with 4 partitions", "with 5 partitions"}},
		{"another schema", func(t *testing.T, l *log) string {
			dir := filled(t, l)
			overwrite(t, dir, []byte{0x01}, []byte{99, 1, 'x'})
			return dir
		}, []string{"of another version of this program: its schema has version 99", "run the version that wrote it, or empty data-dir"}},
		{"a store of the bridge", func(t *testing.T, l *log) string {
			dir := t.TempDir()
			overwrite(t, dir, []byte("spool"), []byte("x"))
			return dir
		}, []string{"open the store in", "if it is another program's, set another data-dir"}},
		{"garbage", func(t *testing.T, l *log) string {
			dir := filled(t, l)
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), "MANIFEST") {
					if err := os.WriteFile(filepath.Join(dir, e.Name()), []byte("garbage"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			return dir
		}, []string{"open the store in", "empty data-dir"}},
		{"somebody's files", func(t *testing.T, l *log) string {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, []string{`has no store, but "notes.txt"`, "set another data-dir"}},
		{"the bridge's data-dir", func(t *testing.T, l *log) string {
			dir := t.TempDir()
			overwrite(t, filepath.Join(dir, "spool"), []byte("k"), []byte("x"))
			return dir
		}, []string{`has no store, but "spool"`}},
		{"a restore that was cut off", func(t *testing.T, l *log) string {
			dir := filled(t, l)
			if err := os.WriteFile(filepath.Join(dir, backup.Unfinished), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, []string{"not finished", "empty the directory and restore the backup again"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLog(t)
			dir := tc.disk(t, l)
			cfg := l.config(nil)
			cfg.DataDir = dir
			err := runError(t, cfg)
			if err == nil {
				t.Fatal("it runs")
			}
			for _, want := range append(tc.want, cfg.DataDir) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %v, want %q in it", err, want)
				}
			}
		})
	}
}

// overwrite sets a key of a store, or makes a store of another kind that has no other.
func overwrite(t *testing.T, dir string, key, value []byte) {
	t.Helper()
	opts := &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Merger: &pebble.Merger{Name: "another", Merge: pebble.DefaultMerger.Merge}}
	if desc, err := pebble.Peek(dir, vfs.Default); err == nil && desc.Exists {
		opts.Merger.Name = "presence.evidence.1"
	}
	db, err := pebble.Open(dir, opts)
	if err == nil {
		err = errors.Join(db.Set(key, value, pebble.Sync), db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
