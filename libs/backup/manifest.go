package backup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// format is the version of the layout of the file.
const format = 1

const (
	storePrefix  = "store/"
	manifestName = "manifest.json"
	sumName      = manifestName + ".sha256"

	maxManifest = 64 << 20 // bytes; a file of the store takes some 150
)

// ErrInvalid is returned for a file that is no backup, or is not as it was written.
var ErrInvalid = errors.New("not a valid backup")

// Manifest says what a backup holds. The zero value is of none.
type Manifest struct {
	Format  int    `json:"format"`
	TakenMS int64  `json:"taken_ms"`
	Replica string `json:"replica"`
	// KafkaCluster, TopicID (of client-events, hexadecimal) and PartitionCount say where the store may be used.
	KafkaCluster   string      `json:"kafka_cluster"`
	TopicID        string      `json:"topic_id"`
	PartitionCount int32       `json:"partition_count"`
	Partitions     []Partition `json:"partitions"`
	Size           int64       `json:"size"` // bytes of all files
	Files          []File      `json:"files"`
}

// Partition is a partition that the store has rows of.
type Partition struct {
	Partition  int32 `json:"partition"`
	NextOffset int64 `json:"next_offset"` // next client-events offset to fold
}

// File is a file of the store.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hexadecimal
}

func newManifest(h *presencev1.BackupHead) (*Manifest, error) {
	if h.GetKafkaCluster() == "" || len(h.GetTopicId()) != 16 || h.GetPartitionCount() <= 0 {
		return nil, errors.New("the materializer does not say what the backup is of")
	}
	m := &Manifest{
		Format: format, TakenMS: h.GetTakenMs(), Replica: h.GetReplica(), KafkaCluster: h.GetKafkaCluster(), TopicID: hex.EncodeToString(h.GetTopicId()),
		PartitionCount: h.GetPartitionCount(), Size: h.GetSize(), Partitions: []Partition{}, Files: []File{},
	}
	for id, next := range h.GetOffsets() {
		m.Partitions = append(m.Partitions, Partition{id, next})
	}
	slices.SortFunc(m.Partitions, func(a, b Partition) int { return int(a.Partition) - int(b.Partition) })
	return m, nil
}

// add adds a file that is complete.
func (m *Manifest) add(f File) { m.Files = append(m.Files, f) }

// check compares the files of a manifest with its own sum.
func (m *Manifest) check() error {
	size := int64(0)
	seen := map[string]bool{}
	for _, f := range m.Files {
		if err := checkName(f.Name); err != nil {
			return err
		}
		if seen[f.Name] {
			return fmt.Errorf("file %q comes twice", f.Name)
		}
		seen[f.Name] = true
		size += f.Size
	}
	if size != m.Size {
		return fmt.Errorf("its files have %d bytes, and are to have %d", size, m.Size)
	}
	return nil
}

// encode returns the manifest's bytes and the line with their checksum.
func (m *Manifest) encode() (text, sum []byte, err error) {
	if text, err = json.MarshalIndent(m, "", "  "); err != nil {
		return nil, nil, fmt.Errorf("encode the manifest: %w", err)
	}
	text = append(text, '\n')
	return text, sumLine(text), nil
}

func sumLine(manifest []byte) []byte {
	sum := sha256.Sum256(manifest)
	return fmt.Appendf(nil, "%x  %s\n", sum, manifestName)
}

// checkName accepts the names that a store's files have: none leads out of a directory, hides, or acts on a terminal.
func checkName(name string) error {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
	}
	if name == "" || len(name) > 200 || name[0] == '.' || name == Unfinished || strings.ContainsFunc(name, func(r rune) bool { return !safe(r) }) {
		return fmt.Errorf("%q is not the name of a store's file", name)
	}
	return nil
}
