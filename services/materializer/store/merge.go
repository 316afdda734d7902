package store

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// mergerName stands in every store that was written; Pebble opens none with another. It has the name of what was merged first.
const mergerName = "presence.evidence.1"

// merger has Pebble join what batches wrote for a key, by the key's kind. No merge may end in nothing: a pebble.DeletableValueMerger whose
// result over a value that was set is to be deleted makes the compactions of Pebble 2.1.7 panic, or brings the value back.
func merger(o Options) *pebble.Merger {
	return &pebble.Merger{
		Name: mergerName,
		Merge: func(key, value []byte) (pebble.ValueMerger, error) {
			if len(key) < prefixSize {
				return nil, fmt.Errorf("%w: merge of a key of %d bytes", ErrCorrupt, len(key))
			}
			var m pebble.ValueMerger
			switch key[0] {
			case kindEvidence:
				m = &evidenceMerge{limit: o.EvidencePerClient}
			case kindSessions:
				m = &sessionsMerge{limit: o.SessionsPerClient}
			default:
				return nil, fmt.Errorf("%w: merge of a key of kind %#x", ErrCorrupt, key[0])
			}
			return m, m.MergeNewer(value)
		},
	}
}
