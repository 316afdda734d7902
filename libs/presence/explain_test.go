package presence

import (
	"strings"
	"testing"
)

// Every word that an answer can hold has a sentence of its own.
func TestEveryWordIsExplained(t *testing.T) {
	seen := map[string]string{}
	check := func(word, sentence string) {
		t.Helper()
		if !strings.HasSuffix(sentence, ".") || len(sentence) < 20 {
			t.Errorf("%s: %q is no sentence", word, sentence)
		}
		if other, ok := seen[sentence]; ok {
			t.Errorf("%s and %s share a sentence", word, other)
		}
		seen[sentence] = word
	}
	if len(statusReasonSentences) != len(statusReasonWords) {
		t.Errorf("%d reasons have a sentence, %d a word", len(statusReasonSentences), len(statusReasonWords))
	}
	for r := range StatusReason(len(statusReasonWords)) {
		check(r.String(), r.Explain())
	}
	if len(outcomeSentences) != len(outcomeWords) || len(outcomeWords) != int(NumOutcomes) {
		t.Errorf("%d outcomes have a sentence, %d a word, there are %d", len(outcomeSentences), len(outcomeWords), NumOutcomes)
	}
	for o := range NumOutcomes {
		check(o.String(), o.Explain())
		if ParseOutcome(o.String()) != o {
			t.Errorf("%s reads as %s", o, ParseOutcome(o.String()))
		}
		if got := strings.HasPrefix(o.Explain(), "Ignored"); got != o.Ignored() {
			t.Errorf("%s: the sentence says ignored %v, Ignored %v", o, got, o.Ignored())
		}
	}
}
