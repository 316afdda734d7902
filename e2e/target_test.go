package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// patience bounds the wait for an answer that should come within milliseconds, on a machine that has other things to do.
	patience = 30 * time.Second
	// callTimeout bounds one call.
	callTimeout = 10 * time.Second
	cluster     = "default"
)

// Target is a running Presence, as its users meet it: scenarios know nothing else of it, so that each runs on all of them.
type Target struct {
	MQTT           string // for MQTT clients: host:port, or ws://host:port for MQTT over WebSocket
	WebSocket      string // the same for MQTT over WebSocket, empty if there is none
	REST, GRPC     string // host:port
	User, Password string // an account with the permissions connect and read
	Kafka          eventlog.Config
	// Unkeyed says that the broker's events name no connection, and that their stamps are whole seconds (Mosquitto).
	Unkeyed bool
	// Unordered says that the broker's events have no stamps at all, so that nothing numbers them.
	Unordered bool
	// NamesStrangers says that a stranger's failed login looks like the end of the client's connection whose ID it claims.
	NamesStrangers bool
	// LateEnds says that a connection that is taken over may report its end after its successor has reported its beginning.
	LateEnds bool
	// Doubts says that such an end cannot be told from the successor's, so that a status may be unknown.
	Doubts bool

	asker   *asker
	history *history
}

// open connects the target's callers; they end with the test.
func (tgt Target) open(t *testing.T) Target {
	t.Helper()
	tgt.asker = newAsker(t, tgt)
	tgt.history = newHistory(t, tgt.Kafka)
	return tgt
}

// overWebSocket returns the target for clients that use WebSockets. When Mosquitto lets one of them take a WebSocket over, libwebsockets closes
// that later, and the log then says so without naming the connection.
func (tgt Target) overWebSocket() Target {
	tgt.MQTT = tgt.WebSocket
	if tgt.Unkeyed {
		tgt.LateEnds, tgt.Doubts = true, true
	}
	return tgt
}

// expect waits until every call of both transports answers the same for the client, as wanted, and the records in Kafka agree: each
// transition follows from the facts, none is missing, and the last one is the answer.
func (tgt Target) expect(t *testing.T, clientID, wantStatus, wantReason string) *presencev1.Client {
	t.Helper()
	var answer *presencev1.Client
	servicetest.Eventually(t, patience, func() error {
		var err error
		if answer, err = tgt.asker.ask(t.Context(), clientID); err != nil {
			return err
		}
		if answer.GetStatus() != wantStatus || answer.GetStatusReason() != wantReason {
			return fmt.Errorf("client %q is %s (%s), want %s (%s)", clientID, answer.GetStatus(), answer.GetStatusReason(), wantStatus, wantReason)
		}
		// The status may be that of an earlier connection: what was published since says so.
		if err := tgt.history.read(t.Context()); err != nil {
			return err
		}
		return tgt.history.agrees(answer)
	})
	return answer
}

// warmUp waits until the bridge counts the log lines of a stamp. It cannot for the first stamp of a session, which may have begun before it.
func (tgt Target) warmUp(t *testing.T) {
	t.Helper()
	if !tgt.Unkeyed || tgt.Unordered {
		return
	}
	const id = "warm-up"
	servicetest.Eventually(t, patience, func() error {
		c, err := dialMQTT(t.Context(), tgt.MQTT, id)
		if err != nil {
			return err
		}
		if err := errors.Join(c.disconnect(), tgt.history.read(t.Context())); err != nil {
			return err
		}
		for _, f := range tgt.history.Client(id).Facts {
			if f.Order != 0 {
				return nil
			}
		}
		return errors.New("no fact has an order yet")
	})
}

func (tgt Target) expectOnline(t *testing.T, clientID string) *presencev1.Client {
	t.Helper()
	return tgt.expect(t, clientID, "online", "connected")
}

func (tgt Target) expectOffline(t *testing.T, clientID string) *presencev1.Client {
	t.Helper()
	return tgt.expect(t, clientID, "offline", "closed")
}

// asker asks in every way there is.
type asker struct {
	base          string
	authorization string
	http          *http.Client
	rpc           presencev1.PresenceServiceClient
}

func newAsker(t *testing.T, tgt Target) *asker {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+tgt.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatalf("connect to gRPC at %s: %v", tgt.GRPC, err)
	}
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = conn.Close()
	})
	return &asker{
		base:          "http://" + tgt.REST,
		authorization: "Basic " + base64.StdEncoding.EncodeToString([]byte(tgt.User+":"+tgt.Password)),
		http:          &http.Client{Transport: transport, Timeout: callTimeout},
		rpc:           presencev1.NewPresenceServiceClient(conn),
	}
}

// errNeverSeen is returned by ask, beside the answer of the batches, for a client that nobody has heard of.
var errNeverSeen = errors.New("client was never seen")

// ask asks for a client with each call of both transports. Answers that differ are an error: while the status changes, ask again.
func (a *asker) ask(ctx context.Context, clientID string) (*presencev1.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	clients, seen, err := a.clients(ctx, clientID)
	if err != nil {
		return nil, fmt.Errorf("ask for client %q: %w", clientID, err)
	}
	seed, err := a.seed(ctx, clientID)
	if err != nil {
		return nil, fmt.Errorf("ask for client %q: %w", clientID, err)
	}
	short, err := a.rpc.GetStatus(a.authorized(ctx), &presencev1.GetStatusRequest{ClientId: clientID})
	if err != nil {
		return nil, fmt.Errorf("ask for client %q: GetStatus: %w", clientID, err)
	}
	c := clients[0]
	for i, other := range clients[1:] {
		if d := differ(c, other); d != "" {
			return nil, fmt.Errorf("ask for client %q: call %d answers differently: %s", clientID, i+2, d)
		}
	}
	online := c.GetBelief() == "online"
	if seed.online != online || seed.unknown != (c.GetStatus() == "unknown") {
		return nil, fmt.Errorf("ask for client %q: the seed call answers %+v, the others %s, belief %s", clientID, seed, c.GetStatus(), c.GetBelief())
	}
	if short.GetOnline() != online || short.GetStatus() != c.GetStatus() || short.GetStatusReason() != c.GetStatusReason() {
		return nil, fmt.Errorf("ask for client %q: GetStatus answers %v, the others %s (%s)", clientID, short, c.GetStatus(), c.GetStatusReason())
	}
	if !seen {
		return c, errNeverSeen
	}
	return c, nil
}

// clients asks for one client by GET and by batch, over gRPC and REST. For a client never seen only the batches have an answer.
func (a *asker) clients(ctx context.Context, clientID string) (answers []*presencev1.Client, seen bool, err error) {
	viaGRPC, err := a.rpc.GetClient(a.authorized(ctx), &presencev1.GetClientRequest{ClientId: clientID})
	if err != nil && status.Code(err) != codes.NotFound {
		return nil, false, fmt.Errorf("GetClient: %w", err)
	}
	seen = err == nil
	viaREST := &presencev1.Client{}
	code, err := a.rest(ctx, http.MethodGet, "/v1/clients/"+segment(clientID), nil, viaREST)
	switch {
	case err != nil:
		return nil, false, err
	case code != http.StatusOK && code != http.StatusNotFound, (code == http.StatusOK) != seen:
		return nil, false, fmt.Errorf("GET /v1/clients/%.200s answers %d, GetClient %v", segment(clientID), code, viaGRPC)
	case seen:
		answers = append(answers, viaGRPC, viaREST)
	}
	for _, batch := range []func(context.Context, []string) ([]*presencev1.Client, error){a.batchGRPC, a.batchREST} {
		clients, err := batch(ctx, []string{clientID})
		if err != nil {
			return nil, false, err
		}
		answers = append(answers, clients[0])
	}
	return answers, seen, nil
}

func (a *asker) batchGRPC(ctx context.Context, ids []string) ([]*presencev1.Client, error) {
	r, err := a.rpc.BatchGetClients(a.authorized(ctx), &presencev1.BatchGetClientsRequest{ClientIds: ids})
	if err != nil {
		return nil, fmt.Errorf("BatchGetClients: %w", err)
	}
	return inOrder(ids, r.GetClients())
}

func (a *asker) batchREST(ctx context.Context, ids []string) ([]*presencev1.Client, error) {
	body, err := json.Marshal(map[string][]string{"client_ids": ids})
	if err != nil {
		return nil, err
	}
	r := &presencev1.BatchGetClientsResponse{}
	code, err := a.rest(ctx, http.MethodPost, "/v1/clients:batchGet", body, r)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("POST /v1/clients:batchGet answers %d", code)
	}
	if err != nil {
		return nil, err
	}
	return inOrder(ids, r.GetClients())
}

// askAll asks for many clients over both transports, which must agree.
func (a *asker) askAll(ctx context.Context, ids []string) ([]*presencev1.Client, error) {
	const most = 1_000
	var all []*presencev1.Client
	for chunk := range slices.Chunk(ids, most) {
		viaGRPC, err := a.batchGRPC(ctx, chunk)
		if err != nil {
			return nil, err
		}
		viaREST, err := a.batchREST(ctx, chunk)
		if err != nil {
			return nil, err
		}
		for i := range chunk {
			if d := differ(viaGRPC[i], viaREST[i]); d != "" {
				return nil, fmt.Errorf("client %q: gRPC and REST answer differently: %s", chunk[i], d)
			}
		}
		all = append(all, viaGRPC...)
	}
	return all, nil
}

func inOrder(ids []string, clients []*presencev1.Client) ([]*presencev1.Client, error) {
	got := make([]string, len(clients))
	for i, c := range clients {
		got[i] = c.GetClientId()
	}
	if !slices.Equal(got, ids) {
		return nil, fmt.Errorf("a batch for %q answers for %q", ids, got)
	}
	return clients, nil
}

// seedAnswer is what the seed call tells.
type seedAnswer struct{ online, unknown bool }

func (a *asker) seed(ctx context.Context, clientID string) (seedAnswer, error) {
	path := "/client-id/" + segment(clientID) + "/status"
	code, header, body, err := a.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return seedAnswer{}, err
	}
	s := seedAnswer{unknown: header.Get("Presence-Status") == "unknown"}
	switch {
	case code == http.StatusOK && string(body) == `{"online":true}`:
		s.online = true
		return s, nil
	case code == http.StatusOK && string(body) == `{"online":false}`:
		return s, nil
	}
	return s, fmt.Errorf("GET %s answers %d %.200q", path, code, body)
}

// rest makes a call of /v1; an answer of 200 is read into m.
func (a *asker) rest(ctx context.Context, method, path string, body []byte, m proto.Message) (code int, err error) {
	code, _, answer, err := a.call(ctx, method, path, body)
	if err != nil || code != http.StatusOK {
		return code, err
	}
	if err := protojson.Unmarshal(answer, m); err != nil {
		return code, fmt.Errorf("%s %s: read %.200q: %w", method, path, answer, err)
	}
	return code, nil
}

func (a *asker) call(ctx context.Context, method, path string, body []byte) (code int, header http.Header, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Authorization", a.authorization)
	r, err := a.http.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	answer, readErr := io.ReadAll(r.Body)
	if err := errors.Join(readErr, r.Body.Close()); err != nil {
		return 0, nil, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return r.StatusCode, r.Header, answer, nil
}

func (a *asker) authorized(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", a.authorization)
}

// differ compares two answers but for their freshness, which is of another moment.
func differ(a, b *presencev1.Client) string {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	a.Freshness, b.Freshness = nil, nil
	if proto.Equal(a, b) {
		return ""
	}
	return fmt.Sprintf("%v; %v", a, b)
}

// segment writes a client ID as one segment of a path. Everything but letters and digits is encoded, since "." and ".." would be taken for
// something else on the way.
func segment(clientID string) string {
	var b strings.Builder
	for i := range len(clientID) {
		c := clientID[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
