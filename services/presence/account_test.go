package presence

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestPageTokenKeyIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page-token-key")
	if err := pageTokenKey(path); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(made) != pageTokenKeyBytes || bytes.Equal(made, make([]byte, pageTokenKeyBytes)) || info.Mode().Perm() != 0o600 {
		t.Errorf("key of %d bytes, mode %v", len(made), info.Mode())
	}
	if err := pageTokenKey(path); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(made, again) {
		t.Errorf("the key has changed, or %v", err)
	}
}
