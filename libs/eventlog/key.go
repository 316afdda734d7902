package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/presence"
)

// MaxClientIDBytes is the longest MQTT Client Identifier (MQTT 5, 1.5.4: a UTF-8 string has a two byte length).
const MaxClientIDBytes = 65_535

// MaxUsernameBytes is how much of a username is kept. A state has one for each node that knows the client: of the largest that MQTT allows, those of
// a few nodes would make a record that Kafka refuses, and nothing of the partition could be published any more.
const MaxUsernameBytes = 4096

// cutUsername returns at most MaxUsernameBytes of a username, whole characters.
func cutUsername(name string) string {
	if len(name) <= MaxUsernameBytes {
		return name
	}
	n := MaxUsernameBytes
	for n > 0 && !utf8.RuneStart(name[n]) {
		n--
	}
	return strings.Clone(name[:n])
}

// ErrClusterName is returned for a cluster name that is not [a-z0-9-]{1,63}.
var ErrClusterName = errors.New("not a cluster name")

// ValidCluster checks a cluster name: it must not hold the "/" at which a key splits.
func ValidCluster(name string) error {
	ok := len(name) >= 1 && len(name) <= 63
	for i := 0; ok && i < len(name); i++ {
		b := name[i]
		ok = b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '-'
	}
	if !ok {
		return fmt.Errorf("%w: %q: use 1 to 63 of a-z, 0-9 and -", ErrClusterName, name)
	}
	return nil
}

// ValidClientID checks a client ID: 1 to MaxClientIDBytes bytes of UTF-8. The error says what is wrong.
func ValidClientID(id string) error {
	switch {
	case id == "":
		return errors.New("client_id is empty: an MQTT client ID has at least one byte")
	case len(id) > MaxClientIDBytes:
		return fmt.Errorf("client_id has %d bytes: an MQTT client ID has at most %d", len(id), MaxClientIDBytes)
	case !utf8.ValidString(id):
		return errors.New("client_id is not valid UTF-8")
	}
	return nil
}

// ClientKey returns the key of a client's records: <cluster>/<client ID>.
func ClientKey(cluster, clientID string) []byte {
	k := make([]byte, 0, len(cluster)+1+len(clientID))
	return AppendClientKey(k, cluster, clientID)
}

// AppendClientKey appends the key of a client's records to dst.
func AppendClientKey(dst []byte, cluster, clientID string) []byte {
	return append(append(append(dst, cluster...), '/'), clientID...)
}

// SplitClientKey is the inverse of ClientKey. The error wraps ErrBadRecord.
func SplitClientKey(key []byte) (cluster, clientID string, err error) {
	i := bytes.IndexByte(key, '/')
	if i < 0 {
		return "", "", fmt.Errorf("%w: key %q has no /", ErrBadRecord, key)
	}
	return string(key[:i]), string(key[i+1:]), nil
}

// NodeKey returns the key of a node fact: <cluster>/<node>/<kind>, for a feed <cluster>/<bridge>/feed.
func NodeKey(f *presence.NodeFact) []byte {
	name := f.Node
	if f.Kind == presence.Feed {
		name = f.Bridge
	}
	return []byte(strings.Join([]string{f.Cluster, name, f.Kind.String()}, "/"))
}

var hasher = kgo.KafkaHasher(murmur2)

// Partition returns the partition of a key: Kafka's own murmur2 of the key modulo the number of partitions.
func Partition(key []byte, partitions int32) int32 {
	return int32(hasher(key, int(partitions)))
}

// murmur2 is the hash of Kafka's default partitioner (org.apache.kafka.common.utils.Utils.murmur2), seed 0x9747b28c.
func murmur2(b []byte) uint32 {
	const (
		seed uint32 = 0x9747b28c
		m    uint32 = 0x5bd1e995
	)
	h := seed ^ uint32(len(b))
	for len(b) >= 4 {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		b = b[4:]
		k *= m
		k ^= k >> 24
		k *= m
		h = h*m ^ k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}
