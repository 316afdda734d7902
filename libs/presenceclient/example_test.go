package presenceclient_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	"github.com/mqtt-presence/presence/libs/presenceclient/presencetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// ask runs an example against a service in memory.
func ask(use func(context.Context, *presencetest.Fake, *presenceclient.Client) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fake := presencetest.Start()
	client, err := fake.Client()
	if err == nil {
		err = errors.Join(use(ctx, fake, client), client.Close())
	}
	if err := errors.Join(err, fake.Close()); err != nil {
		log.Print(err)
	}
}

// A service makes one client at its start and shares it. New does not connect: the first call does.
func ExampleNew() {
	client, err := presenceclient.New(presenceclient.Config{
		Target:      "dns:///presence.example:8081",
		TLS:         &tls.Config{MinVersion: tls.VersionTLS12},
		Credentials: presenceclient.Basic{User: "orders", Password: presenceclient.File("/run/secrets/presence-password")},
		Coalesce:    presenceclient.Coalesce{Window: time.Millisecond},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := client.Close(); err != nil {
		fmt.Println(err)
	}

	_, err = presenceclient.New(presenceclient.Config{
		Target:      "presence.example:8081",
		Credentials: presenceclient.Bearer{Token: presenceclient.File("/run/secrets/token")},
	})
	fmt.Println(err)
	// Output:
	// configure the presence client: Credentials: would go to "presence.example:8081" in plain text; set TLS, or AllowPlaintext if the network is trusted
}

func ExampleClient_Status() {
	ask(func(ctx context.Context, fake *presencetest.Fake, client *presenceclient.Client) error {
		fake.SetOnline("VIN0000001")
		fake.SetUnknown("VIN0000002", "node_silent", true)
		for _, id := range []string{"VIN0000001", "VIN0000002", "VIN0000003"} {
			status, err := client.Status(ctx, id)
			if err != nil {
				return err
			}
			switch {
			case status.Online():
				fmt.Println(id, "can be reached")
			case status.Offline():
				fmt.Println(id, "cannot be reached:", status.Reason)
			default:
				fmt.Println(id, "is", status, "because of", status.Reason)
			}
		}
		return nil
	})
	// Output:
	// VIN0000001 can be reached
	// VIN0000002 is unknown, probably online because of node_silent
	// VIN0000003 cannot be reached: never_seen
}

func ExampleClient_Get() {
	ask(func(ctx context.Context, fake *presencetest.Fake, client *presenceclient.Client) error {
		fake.SetOnline("VIN0000001")
		c, err := client.Get(ctx, "VIN0000001")
		if err != nil {
			return err
		}
		fmt.Println(c.GetStatus(), "on", c.GetConnection().GetNode())
		_, err = client.Get(ctx, "VIN0000002")
		fmt.Println("never seen:", presenceclient.IsNeverSeen(err))
		return nil
	})
	// Output:
	// online on node-1
	// never seen: true
}

// Batch takes any number of client IDs and keeps their order.
func ExampleClient_Batch() {
	ask(func(ctx context.Context, fake *presencetest.Fake, client *presenceclient.Client) error {
		ids := make([]string, 2_500)
		for i := range ids {
			ids[i] = fmt.Sprintf("VIN%07d", i)
		}
		fake.SetOnline(ids[:1_500]...)
		clients, err := client.Batch(ctx, ids)
		if err != nil {
			return err
		}
		online := 0
		for _, c := range clients {
			if presenceclient.StatusOf(c).Online() {
				online++
			}
		}
		fmt.Println(online, "of", len(clients), "in", fake.Calls("BatchGetClients"), "calls")
		return nil
	})
	// Output: 1500 of 2500 in 3 calls
}

func ExampleClient_List() {
	ask(func(ctx context.Context, fake *presencetest.Fake, client *presenceclient.Client) error {
		fake.SetOnline("VIN0000001", "VIN0000002", "pump-1")
		fake.SetOffline("VIN0000002")
		for c, err := range client.List(ctx, presenceclient.Filter{Status: presenceclient.StatusOnline, Prefix: "VIN"}) {
			if err != nil {
				return err
			}
			fmt.Println(c.GetClientId())
		}
		return nil
	})
	// Output: VIN0000001
}

// A watch goes on over broken streams by itself. Who keeps the token of the last message goes on in another process, too.
func ExampleClient_Watch() {
	ask(func(ctx context.Context, fake *presencetest.Fake, client *presenceclient.Client) error {
		fake.SetOnline("VIN0000001")
		token := ""
		for message, err := range client.Watch(ctx, presenceclient.Watch{Snapshot: true, ResumeToken: token}) {
			if err != nil {
				return err
			}
			switch message.GetType() {
			case presenceclient.EventClient:
				fmt.Println(message.GetClient().GetClientId(), "is", message.GetClient().GetStatus())
			case presenceclient.EventSnapshotEnd:
				fmt.Println("and now")
				fake.SetOffline("VIN0000001")
				fake.BreakWatches(presencetest.Unavailable())
				fake.SetOnline("VIN0000001")
			case presenceclient.EventTransition:
				t := message.GetTransition()
				fmt.Println(t.GetClientId(), "from", t.GetPreviousStatus(), "to", t.GetStatus())
				if t.GetStatus() == presenceclient.StatusOnline {
					return nil
				}
			case presenceclient.EventSkipped:
				fmt.Println("too slow for", message.GetSkipped().GetRecords(), "records: ask for what matters")
			}
			token = message.GetResumeToken()
		}
		return nil
	})
	// Output:
	// VIN0000001 is online
	// and now
	// VIN0000001 from online to offline
	// VIN0000001 from offline to online
}

func ExampleClient_Delete() {
	ask(func(ctx context.Context, fake *presencetest.Fake, client *presenceclient.Client) error {
		fake.SetOnline("VIN0000001")
		deleted, err := client.Delete(ctx, "VIN0000001")
		if err != nil {
			return err
		}
		_, err = client.Get(ctx, "VIN0000001")
		fmt.Println(deleted.GetApplied(), presenceclient.IsNeverSeen(err))
		return nil
	})
	// Output: true true
}

// With everything of a client in hand, a message says it all.
func ExampleStatusOf() {
	c := &presencev1.Client{Status: "unknown", StatusReason: "order_undecided", Belief: "offline", Freshness: &presencev1.Freshness{}}
	status := presenceclient.StatusOf(c)
	fmt.Println(status, status.Confident(), status.ProbablyOnline())
	// Output: unknown, probably offline false false
}
