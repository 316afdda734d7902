package presencetest_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	"github.com/mqtt-presence/presence/libs/presenceclient/presencetest"
)

// unlock is what a user wants to test: it sends a command only to a car that is connected.
func unlock(ctx context.Context, presence *presenceclient.Client, car string) (string, error) {
	status, err := presence.Status(ctx, car)
	switch {
	case presenceclient.IsUnavailable(err):
		return "presence is down: sent anyway", nil
	case err != nil:
		return "", fmt.Errorf("unlock %s: %w", car, err)
	case status.Confident() && status.Offline():
		return "sent by SMS", nil
	}
	return "sent", nil
}

// In a test, New(t) and NewClient(t) end by themselves.
func Example() {
	fake := presencetest.Start()
	client, err := fake.Client()
	if err != nil {
		fmt.Println(err)
		return
	}
	show := func() {
		did, err := unlock(context.Background(), client, "VIN0000001")
		fmt.Println(did, err)
	}
	fake.SetOnline("VIN0000001")
	show()
	fake.SetOffline("VIN0000001")
	show()
	fake.SetStale("feed_down")
	show()
	fake.SetStale()
	fake.Fail("GetStatus", presencetest.Unavailable())
	show()
	if err := client.Close(); err != nil {
		fmt.Println(err)
	}
	if err := fake.Close(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// sent <nil>
	// sent by SMS <nil>
	// sent <nil>
	// presence is down: sent anyway <nil>
}

func TestUnlock(t *testing.T) {
	fake := presencetest.New(t)
	client := fake.NewClient(t)
	fake.FailOnce("GetStatus", presencetest.Denied())
	if did, err := unlock(t.Context(), client, "VIN0000001"); !presenceclient.IsDenied(err) {
		t.Errorf("unlock did %q, error %v", did, err)
	}
	if did, err := unlock(t.Context(), client, "VIN0000001"); did != "sent by SMS" || err != nil {
		t.Errorf("unlock did %q, error %v", did, err)
	}
}
