package store

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// mergerName stands in every store that was written; Pebble opens none with another. It has the name of what was merged first.
const mergerName = "presence.evidence.1"

// merger has Pebble join what batches wrote for a key, by the key's kind.
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
			case kindUsernameCount:
				m = new(countMerge)
			default:
				return nil, fmt.Errorf("%w: merge of a key of kind %#x", ErrCorrupt, key[0])
			}
			return m, m.MergeNewer(value)
		},
	}
}
