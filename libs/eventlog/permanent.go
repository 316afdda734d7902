package eventlog

import (
	"errors"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
)

// permanent are the answers of Kafka that stay the same however often it is asked.
var permanent = []error{
	kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed,
	kerr.DelegationTokenAuthorizationFailed, kerr.SaslAuthenticationFailed, kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState, kerr.SecurityDisabled,
	kerr.UnsupportedVersion, kerr.UnsupportedForMessageFormat, kerr.UnsupportedCompressionType, kerr.InvalidTopicException, kerr.InvalidConfig,
	kerr.PolicyViolation, kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp,
}

// Permanent reports whether an error that came of talking to Kafka stays until a person mends its cause: what is not allowed or not understood, and topics
// that are not those of the contract ([ErrTopicMismatch]). All others, such as a Kafka that does not answer, restarts, elects leaders or has too
// few replicas in sync, go away by themselves: whoever meets one asks again.
func Permanent(err error) bool {
	return errors.Is(err, ErrTopicMismatch) || slices.ContainsFunc(permanent, func(p error) bool { return errors.Is(err, p) })
}
