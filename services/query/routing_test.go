package query

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
)

const someGroup = groupPrefix + "a"

// describe returns the description of a group that real Kafka code made: kadm's assignments have no constructor.
func describe(t *testing.T, state string, members map[string][]int32) kadm.DescribedGroups {
	t.Helper()
	cluster, cfg := eventlogtest.NewCluster(t)
	cluster.ControlKey(int16(kmsg.DescribeGroups), func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		response, ok := request.ResponseKind().(*kmsg.DescribeGroupsResponse)
		if !ok {
			return nil, errors.New("not a response to DescribeGroups"), true
		}
		g := kmsg.NewDescribeGroupsResponseGroup()
		g.Group, g.State, g.ProtocolType = someGroup, state, "consumer"
		if state == "" {
			g.ErrorCode = kerr.CoordinatorLoadInProgress.Code
		}
		for instance, partitions := range members {
			m := kmsg.NewDescribeGroupsResponseGroupMember()
			m.MemberID = "member of " + instance
			if instance != "" {
				m.InstanceID = kmsg.StringPtr(instance)
			}
			assigned := kmsg.NewConsumerMemberAssignment()
			topic := kmsg.NewConsumerMemberAssignmentTopic()
			topic.Topic, topic.Partitions = eventlog.TopicClientEvents, partitions
			other := kmsg.NewConsumerMemberAssignmentTopic()
			other.Topic, other.Partitions = "another", []int32{0, 1, 2, 3}
			assigned.Topics = append(assigned.Topics, other, topic)
			m.MemberAssignment = assigned.AppendTo(nil)
			g.Members = append(g.Members, m)
		}
		response.Groups = append(response.Groups, g)
		return response, nil, true
	})
	admin := kadm.NewClient(eventlogtest.NewClient(t, cfg, kgo.RetryTimeout(time.Second)))
	described, err := admin.DescribeGroups(t.Context(), someGroup)
	if err != nil {
		t.Fatal(err)
	}
	return described
}

func TestRoute(t *testing.T) {
	now := time.Now()
	before := now.Add(-time.Minute)
	old := &routing{partitions: 4, confirmed: before, replicas: []replica{{group: someGroup, owners: []string{"o:1", "o:1", "o:2", "o:2"}}}}
	full := map[string][]int32{"n:1": {0, 2}, "n:2": {1, 3}}
	for _, c := range []struct {
		name    string
		state   string
		members map[string][]int32
		old     *routing
		owners  string
		at      time.Time
		says    string
	}{
		{"stable", "Stable", full, old, "n:1 n:2 n:1 n:2", now, ""},
		{"stable, first time", "Stable", full, nil, "n:1 n:2 n:1 n:2", now, ""},
		{"a partition without owner", "Stable", map[string][]int32{"n:1": {0}}, old, "n:1 - - -", now, ""},
		{"rebalancing keeps the last owners", "PreparingRebalance", nil, old, "o:1 o:1 o:2 o:2", before, ""},
		{"nearly rebalanced", "CompletingRebalance", nil, old, "o:1 o:1 o:2 o:2", before, ""},
		{"rebalancing, first time", "PreparingRebalance", nil, nil, "- - - -", time.Time{}, ""},
		{"everyone has left", "Empty", nil, old, "- - - -", now, ""},
		{"no such group", "Dead", nil, old, "- - - -", now, ""},
		{"a group that cannot be described keeps the last owners", "", nil, old, "o:1 o:1 o:2 o:2", before, "COORDINATOR_LOAD_IN_PROGRESS"},
		{"a member without instance ID", "Stable", map[string][]int32{"": {0, 1}, "n:1": {2}}, old, "- - n:1 -", now, "instance ID"},
		{"an instance ID that is no address", "Stable", map[string][]int32{"host": {0}}, old, "- - - -", now, "instance ID"},
		{"partitions that do not exist", "Stable", map[string][]int32{"n:1": {-1, 3, 4}}, old, "- - - n:1", now, ""},
		{"partitions were added", "PreparingRebalance", nil, &routing{partitions: 2, confirmed: before, replicas: []replica{{owners: []string{"o:1", "o:1"}}}}, "- - - -", before, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := route(describe(t, c.state, c.members), []string{someGroup}, 4, c.old, now)
			if (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %q", err, c.says)
			}
			owners := slices.Clone(got.replicas[0].owners)
			for i, o := range owners {
				if o == "" {
					owners[i] = "-"
				}
			}
			if s := strings.Join(owners, " "); s != c.owners || !got.confirmed.Equal(c.at) {
				t.Errorf("owners %s at %v, want %s at %v", s, got.confirmed, c.owners, c.at)
			}
		})
	}
}

func TestOwnerPrefersTheFirstReplicaThatIsNotExcluded(t *testing.T) {
	r := &routing{partitions: 2, replicas: []replica{{owners: []string{"a:1", ""}}, {owners: []string{"b:1", "b:1"}}}}
	none := func(string) bool { return false }
	notA := func(addr string) bool { return addr == "a:1" }
	all := func(string) bool { return true }
	for _, c := range []struct {
		partition int32
		excluded  func(string) bool
		want      string
	}{{0, none, "a:1"}, {0, notA, "b:1"}, {1, none, "b:1"}, {0, all, ""}} {
		if got := r.owner(c.partition, c.excluded); got != c.want {
			t.Errorf("owner of partition %d is %q, want %q", c.partition, got, c.want)
		}
	}
	if r.unowned() != 0 || (&routing{partitions: 2, replicas: r.replicas[:1]}).unowned() != 1 {
		t.Error("unowned partitions are counted wrong")
	}
}
