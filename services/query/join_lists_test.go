package query

import (
	"fmt"
	"testing"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// A list of names ends where the first owner's does that has more: what lies beyond may be in that one, too.
func TestJoinUsernames(t *testing.T) {
	part := func(end bool, names ...string) *presencev1.ListUsernamesResponse {
		p := &presencev1.ListUsernamesResponse{End: end, Exact: true}
		for _, n := range names {
			p.Usernames = append(p.Usernames, &presencev1.StateUsername{Username: n, Clients: 1})
		}
		return p
	}
	for _, c := range []struct {
		name  string
		parts []*presencev1.ListUsernamesResponse
		limit int
		want  string
	}{
		{"both to the end", []*presencev1.ListUsernamesResponse{part(true, "a", "c"), part(true, "b", "c")}, 9, "a1 b1 c2 true"},
		{"one has more", []*presencev1.ListUsernamesResponse{part(false, "a", "b"), part(true, "a", "c")}, 9, "a2 b1 false"},
		{"both have more", []*presencev1.ListUsernamesResponse{part(false, "a", "d"), part(false, "b", "c")}, 9, "a1 b1 c1 false"},
		{"more than asked for", []*presencev1.ListUsernamesResponse{part(true, "a", "c"), part(true, "b")}, 2, "a1 b1 false"},
	} {
		got := ""
		whole := joinUsernames(c.parts, c.limit)
		for _, u := range whole.GetUsernames() {
			got += fmt.Sprintf("%s%d ", u.GetUsername(), u.GetClients())
		}
		if got += fmt.Sprint(whole.GetEnd()); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
