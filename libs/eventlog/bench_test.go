package eventlog

import "testing"

// BenchmarkFactRecord makes the record of a fact, key and value, as the bridge does.
func BenchmarkFactRecord(b *testing.B) {
	for _, format := range []Format{JSON, Protobuf} {
		b.Run(format.String(), func(b *testing.B) {
			f := connectedFact()
			b.ReportAllocs()
			for b.Loop() {
				if r := FactRecord(&f, format); len(r.Value) == 0 {
					b.Fatal("empty")
				}
			}
		})
	}
}

// BenchmarkDecodeFact reads the record of a fact and checks it, as the materializer does.
func BenchmarkDecodeFact(b *testing.B) {
	for _, format := range []Format{JSON, Protobuf} {
		b.Run(format.String(), func(b *testing.B) {
			f := connectedFact()
			r := FactRecord(&f, format)
			b.SetBytes(int64(len(r.Value)))
			b.ReportAllocs()
			for b.Loop() {
				if err := DecodeFact(r, &f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPartition finds the partition of a client, as query does for each client of a batch.
func BenchmarkPartition(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if p := Partition(ClientKey("default", "VIN0000001"), 16); p < 0 {
			b.Fatal(p)
		}
	}
}
