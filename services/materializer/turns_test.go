package materializer

import (
	"context"
	"testing"
	"time"
)

// A partition that waits for publication gives its turn back, and folds nothing more until it has it again.
func TestTurnIsGivenBack(t *testing.T) {
	p := catchingUp(t, 1<<40)
	<-p.parts.turns
	p.turn, p.turnPatience = false, 20*time.Millisecond
	fill := func(bytes int) {
		p.outbox.mu.Lock()
		defer p.outbox.mu.Unlock()
		p.outbox.bytes = bytes
		p.outbox.announce()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.work(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	records := benchRecords(40, 10)
	fill(maxOutbox)
	p.queue.push(records[:20])
	// Nothing is folded before it has its turn, which it may have given back by the time that one looks.
	eventually(t, "it has had its turn", func() bool { return p.queue.length.Load() == 0 })
	eventually(t, "it has given it back", func() bool { return len(p.parts.turns) == 0 })
	p.parts.turns <- struct{}{} // another partition's
	fill(0)
	eventually(t, "it waits for the next turn", func() bool { return p.queue.stalled.Load() })
	p.queue.push(records[20:])
	select {
	case <-time.After(3 * minOpen):
	case <-ctx.Done():
	}
	if n := p.queue.length.Load(); n != 20 {
		t.Errorf("%d records wait for the turn, want 20", n)
	}
	<-p.parts.turns
	eventually(t, "it goes on", func() bool { return p.queue.length.Load() == 0 && len(p.parts.turns) == 1 && !p.queue.stalled.Load() })
}
