package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/presence"
)

// ended is what the history keeps of a typical connection.
func ended(ms int64) Session {
	return Session{
		Node: "emqx@10.0.3.11", Stated: true, EndMS: t0 + ms + 60_000, Reason: presence.ReasonNormal, RawReason: "normal",
		Conn: presence.Connection{Key: fmt.Sprint(t0 + ms), Dialect: "emqx", OpenedMS: t0 + ms, Seen: true, Username: "fleet", Peer: "203.0.113.7",
			ProtocolVersion: 5, KeepAliveS: presence.Some[uint32](60), CleanStart: presence.Some(false), SessionExpiryS: presence.Some[uint32](7200)},
	}
}

func TestSessionRoundTrip(t *testing.T) {
	for i, want := range []Session{
		ended(1),
		{Node: "n1", Conn: presence.Connection{Key: "k", OpenedMS: 5, Order: 3}, Why: presence.CloseAmbiguous},
		{Conn: presence.Connection{OpenedMS: 5, Seen: true, CleanStart: presence.Some(true)}, EndMS: 4, Why: presence.NodeRestarted},
		{Conn: presence.Connection{OpenedMS: 5}, Stated: true, EndMS: 0},
	} {
		entry, rest, err := nextEvidence(AppendSession([]byte("before"), &want)[len("before"):])
		if err != nil || len(rest) != 0 {
			t.Fatalf("%d: rest %x, error %v", i, rest, err)
		}
		var it item
		r, err := it.parse(entry)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := it.session(r); err != nil || got != want {
			t.Errorf("%d: decoded\n%+v, error %v, want\n%+v", i, got, err, want)
		}
		for n := range entry {
			r, err := it.parse(entry[:n])
			if err == nil {
				_, err = it.session(r)
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%d: %d of %d bytes: error is %v", i, n, len(entry), err)
			}
		}
	}
	want := Ending{Node: "n1", Key: "10.0.0.1:1", Dialect: "rmqtt", ClosedMS: t0, Order: 2, Reason: presence.ReasonTakenOver, RawReason: "Kicked"}
	sessions, endings, cut, err := DecodeSessions(AppendEnding(nil, &want))
	if err != nil || cut || len(sessions) != 0 || len(endings) != 1 || endings[0] != want {
		t.Errorf("decoded %+v %+v, cut %v, error %v", sessions, endings, cut, err)
	}
}

func TestSessionIsSmall(t *testing.T) {
	s := ended(1)
	if n := len(AppendSession(nil, &s)); n > 68 {
		t.Errorf("a session takes %d bytes", n)
	}
	long := strings.Repeat("ä", 40_000)
	s.Node, s.Conn.Dialect, s.Conn.Key, s.RawReason, s.Conn.Username, s.Conn.Peer, s.Conn.Transport = long, long, long, long, long, long, long
	log := AppendSession(nil, &s)
	if len(log) > 7*maxText+80 {
		t.Errorf("a session with long texts takes %d bytes", len(log))
	}
	got, _, _, err := DecodeSessions(log)
	if err != nil || !got[0].Names(long, &s.Conn) {
		t.Errorf("%+v, error %v: is not known again", got, err)
	}
}

// However Pebble brackets the operands, in whichever order, and whatever comes twice: the joined history is the same.
func TestSessionsJoinInAnyOrder(t *testing.T) {
	const limit = 4
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		var operands [][]byte
		for len(operands) < 1+random.IntN(9) {
			var operand []byte
			for range 1 + random.IntN(3) {
				operand = appendSighting(operand, random)
			}
			operands = append(operands, operand)
			if random.IntN(3) == 0 {
				operands = append(operands, operand)
			}
		}
		all := bytes.Join(operands, nil)
		want, err := JoinSessions(all, limit)
		if err != nil {
			t.Fatal(err)
		}
		checkNewest(t, all, want, limit)
		random.Shuffle(len(operands), func(i, j int) { operands[i], operands[j] = operands[j], operands[i] })
		m := merger(Options{SessionsPerClient: limit})
		for len(operands) > 1 {
			i := random.IntN(len(operands) - 1)
			n := 2 + random.IntN(len(operands)-i-1)
			operands = append(append(operands[:i:i], mergeAll(t, m, kindSessions, operands[i:i+n], random.IntN(2) == 0)), operands[i+n:]...)
		}
		if got := mergeAll(t, m, kindSessions, operands, true); !bytes.Equal(got, want) {
			t.Fatalf("joined\n%x, want\n%x", got, want)
		}
	}
}

// appendSighting appends what one fact may have said of one of a few connections.
func appendSighting(log []byte, random *rand.Rand) []byte {
	ms := t0 + int64(random.IntN(8))
	if random.IntN(4) == 0 {
		return AppendEnding(log, &Ending{Node: "n1", Key: fmt.Sprint(random.IntN(3)), ClosedMS: ms, Reason: presence.Reason(random.IntN(3))})
	}
	s := Session{Node: "n1", Conn: presence.Connection{Key: fmt.Sprint(t0 + int64(random.IntN(2))), OpenedMS: ms}}
	if random.IntN(2) == 0 {
		s.Conn.Seen, s.Conn.Username, s.Conn.Dialect = true, fmt.Sprint(random.IntN(2)), fmt.Sprint(random.IntN(2))
	}
	switch random.IntN(3) {
	case 0:
		s.Stated, s.EndMS, s.Reason, s.RawReason = true, ms+int64(random.IntN(2)), presence.Reason(random.IntN(2)), fmt.Sprint(random.IntN(2))
	case 1:
		s.EndMS, s.Why = ms+int64(random.IntN(2)), presence.StatusReason(random.IntN(2))
	default:
		s.Why = presence.StatusReason(random.IntN(2))
	}
	return AppendSession(log, &s)
}

// checkNewest checks that a joined history has the newest sessions, each with the best of its sightings.
func checkNewest(t *testing.T, all, joined []byte, limit int) {
	t.Helper()
	sightings, _, _, err := DecodeSessions(all)
	if err != nil {
		t.Fatal(err)
	}
	sessions, endings, cut, err := DecodeSessions(joined)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for i := range sightings {
		x := &sightings[i]
		names[fmt.Sprint(x.Conn.OpenedMS, x.Conn.Key)] = true
		for j := range sessions {
			if s := &sessions[j]; s.Names(x.Node, &x.Conn) && (x.Stated && !s.Stated || x.EndMS != 0 && s.EndMS == 0 || x.Conn.Seen && !s.Conn.Seen) {
				t.Fatalf("joined %+v of a sighting %+v", *s, *x)
			}
		}
	}
	if len(sessions) != min(limit, len(names)) || cut != (len(names) > limit) || len(endings) > limit {
		t.Fatalf("%d sessions and %d endings of %d connections, cut %v", len(sessions), len(endings), len(names), cut)
	}
	for i := range sightings {
		x := &sightings[i]
		if len(sessions) == limit && x.Conn.OpenedMS > sessions[0].Conn.OpenedMS {
			found := false
			for j := range sessions {
				found = found || sessions[j].Names(x.Node, &x.Conn)
			}
			if !found {
				t.Fatalf("%+v is newer than the oldest that was kept", *x)
			}
		}
	}
}

// A client that connects all the time has a history of bounded size.
func TestHistoryIsBounded(t *testing.T) {
	s, err := Open("data", Options{FS: vfs.NewMem(), SessionsPerClient: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	client := []byte("default/a")
	for i := range int64(500) {
		b := s.NewBatch(7)
		x := ended(1000 * i)
		b.AddSessions(client, AppendSession(nil, &x))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	sessions, _, cut, err := s.Sessions(7, client)
	if err != nil || len(sessions) != 3 || !cut || sessions[0] != ended(497_000) || sessions[2] != ended(499_000) {
		t.Errorf("%+v, cut %v, error %v", sessions, cut, err)
	}
	b := s.NewBatch(7)
	b.SetSessions(client, nil)
	b.PutHistory(HistoryNext)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if sessions, _, _, err := s.Sessions(7, client); err != nil || len(sessions) != 0 {
		t.Errorf("%+v, error %v after the history was removed", sessions, err)
	}
	for partition, want := range map[int32]int64{7: HistoryNext, 8: NoHistory} {
		if since, err := s.History(partition); err != nil || since != want {
			t.Errorf("partition %d: history since %d, error %v, want %d", partition, since, err, want)
		}
	}
}
