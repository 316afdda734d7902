package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A file that claims to be sparse could have more bytes than anyone can read, none of which are in the archive.
func TestSparseFileIsRefused(t *testing.T) {
	member := func(flag byte, name string, body []byte) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o600, Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		h := b.Bytes()[:512]
		h[156] = flag
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		return b.Bytes()
	}
	var records []byte
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=store/000001.sst", "GNU.sparse.realsize=4611686018427387904"} {
		records = fmt.Appendf(records, "%d %s\n", len(r)+4, r)
	}
	sparse := make([]byte, 512)
	copy(sparse, "1\n0\n0\n")
	path := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(path, append(member('x', "x", records), member('0', "store/000001.sst", sparse)...), 0o600); err != nil {
		t.Fatal(err)
	}
	verified := make(chan error, 1)
	go func() {
		_, err := Verify(context.Background(), path)
		verified <- err
	}()
	late := time.NewTimer(10 * time.Second)
	defer late.Stop()
	select {
	case err := <-verified:
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("error %v, want that it is invalid", err)
		}
	case <-late.C:
		t.Error("it is read for ever")
	}
}
