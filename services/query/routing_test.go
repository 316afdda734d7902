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

func TestOwnerPrefersTheFirstReplicaOfThoseWithoutDoubt(t *testing.T) {
	r := &routing{partitions: 2, replicas: []replica{{owners: []string{"a:1", ""}}, {owners: []string{"b:1", "b:1"}}}}
	behind := func(applied int64) *standing { return &standing{behind: map[int32]int64{0: applied}} }
	suspect := &standing{suspect: true}
	a, b := failures{}.with("a:1", 0), failures{}.with("b:1", -1)
	for _, c := range []struct {
		name      string
		partition int32
		failed    failures
		doubts    map[string]*standing
		want      string
	}{
		{"both are fine", 0, nil, nil, "a:1"},
		{"the first has failed", 0, a, nil, "b:1"},
		{"the first has no owner", 1, a, nil, "b:1"},
		{"all have failed", 0, a.with("b:1", 0), nil, ""},
		{"the second has failed", 0, b, nil, "a:1"},
		{"the second has failed, the first has no owner", 1, b, nil, ""},
		{"the first is suspect", 0, nil, map[string]*standing{"a:1": suspect}, "b:1"},
		{"the first is behind", 0, nil, map[string]*standing{"a:1": behind(7)}, "b:1"},
		{"both are behind, the first less", 0, nil, map[string]*standing{"a:1": behind(7), "b:1": behind(5)}, "a:1"},
		{"both are behind, the second less", 0, nil, map[string]*standing{"a:1": behind(5), "b:1": behind(7)}, "b:1"},
		{"both are as far behind", 0, nil, map[string]*standing{"a:1": behind(7), "b:1": behind(7)}, "a:1"},
		{"one is suspect, one behind", 0, nil, map[string]*standing{"a:1": suspect, "b:1": behind(1)}, "b:1"},
		{"both are suspect", 0, nil, map[string]*standing{"a:1": suspect, "b:1": suspect}, "a:1"},
		{"the suspect is all there is", 1, nil, map[string]*standing{"b:1": suspect}, "b:1"},
		{"it is behind with another partition", 1, nil, map[string]*standing{"b:1": behind(0)}, "b:1"},
	} {
		if got := r.owner(c.partition, c.failed, c.doubts); got != c.want {
			t.Errorf("%s: %q owns partition %d, want %q", c.name, got, c.partition, c.want)
		}
	}
	if r.unowned() != 0 || (&routing{partitions: 2, replicas: r.replicas[:1]}).unowned() != 1 {
		t.Error("unowned partitions are counted wrong")
	}
	if got := r.ownedBy("b:1"); !slices.Equal(got, []int32{0, 1}) {
		t.Errorf("b:1 owns %v", got)
	}
}
