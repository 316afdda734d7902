package bridge

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// BenchmarkSpool writes records into the spool, synced in batches, reads them back and removes them, as in an outage of Kafka and after it. One
// operation is one record.
func BenchmarkSpool(b *testing.B) {
	for _, batch := range []int{1, 64, 1024} {
		b.Run(map[int]string{1: "alone", 64: "64 together", 1024: "1024 together"}[batch], func(b *testing.B) {
			s := openTestSpool(b, b.TempDir(), 1<<30)
			records := make([][]*kgo.Record, batch)
			for i := range records {
				records[i] = []*kgo.Record{record(i)}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; done += batch {
				in := s.newBatch()
				for _, r := range records {
					if !in.add(r, toBound) {
						b.Fatal("the spool is full")
					}
				}
				if err := in.commit(); err != nil {
					b.Fatal(err)
				}
				for read := 0; read < batch; {
					out, err := s.read(1 << 20)
					if err != nil || len(out) == 0 {
						b.Fatalf("%d entries, error %v", len(out), err)
					}
					if err := s.remove(out[len(out)-1].sequence + 1); err != nil {
						b.Fatal(err)
					}
					read += len(out)
				}
			}
			b.StopTimer()
			if err := s.close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
