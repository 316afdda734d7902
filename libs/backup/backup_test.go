package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// parts are the messages of a backup, and the error that follows.
type parts struct {
	messages []*presencev1.BackupResponse
	err      error
}

func (p *parts) Recv() (*presencev1.BackupResponse, error) {
	if len(p.messages) == 0 {
		return nil, p.err
	}
	m := p.messages[0]
	p.messages = p.messages[1:]
	return m, nil
}

var contents = map[string]string{"000002.log": "", "000004.sst": strings.Repeat("rows", 300), "MANIFEST-000001": "m", "marker.manifest.000001.MANIFEST-000001": ""}

// messagesOf returns the messages that a materializer sends for files, in parts of 500 bytes.
func messagesOf(files map[string]string) []*presencev1.BackupResponse {
	head := &presencev1.BackupHead{
		KafkaCluster: "kafka-1", TopicId: []byte("0123456789abcdef"), PartitionCount: 16, Offsets: map[int32]int64{9: 3, 1: 7}, TakenMs: 1_760_000_000_123, Replica: "a",
	}
	messages := []*presencev1.BackupResponse{{Head: head}}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := []byte(files[name])
		head.Size += int64(len(data))
		sum := sha256.Sum256(data)
		for first := true; first || len(data) > 0; first = false {
			n := min(500, len(data))
			f := &presencev1.BackupFile{Name: name, Size: int64(len(files[name])), Data: data[:n]}
			if data = data[n:]; len(data) == 0 {
				f.Sha256 = sum[:]
			}
			messages = append(messages, &presencev1.BackupResponse{File: f})
		}
	}
	return messages
}

func written(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "a.tar")
	if _, err := Write(path, false, &parts{messagesOf(contents), io.EOF}); err != nil {
		t.Fatal(err)
	}
	return path
}

// filesIn returns the files of a directory.
func filesIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		if e.IsDir() {
			files[e.Name()] = "directory"
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(b)
	}
	return files
}

func TestRoundTrip(t *testing.T) {
	path := written(t)
	m, err := Verify(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if m.Size != 1201 || len(m.Files) != 4 || m.KafkaCluster != "kafka-1" || m.TopicID != "30313233343536373839616263646566" || m.PartitionCount != 16 ||
		!slices.Equal(m.Partitions, []Partition{{1, 7}, {9, 3}}) || m.TakenMS != 1_760_000_000_123 || m.Replica != "a" {
		t.Errorf("manifest is %+v", m)
	}
	elsewhere := t.TempDir()
	link := filepath.Join(elsewhere, "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	volume := t.TempDir() // as the root of a file system: not quite empty, and not to be renamed
	if err := os.Mkdir(filepath.Join(volume, lostAndFound), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"absent": filepath.Join(elsewhere, "a", "b"), "empty": t.TempDir(), "link": link, "volume": volume} {
		if _, err := Restore(t.Context(), path, dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		want := maps.Clone(contents)
		if name == "volume" {
			want[lostAndFound] = "directory"
		}
		if got := filesIn(t, dir); !maps.Equal(got, want) {
			t.Errorf("%s: restored are %v", name, got)
		}
		if beside, err := filepath.Glob(dir + ".restore-*"); err != nil || len(beside) != 0 {
			t.Errorf("%s: beside are %v, %v", name, beside, err)
		}
	}
}

// Every bit counts: in the files, in what is between them, in the manifest and after the end.
func TestChangedFilesAreRefused(t *testing.T) {
	path := written(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	try := func(what string, b []byte) {
		t.Helper()
		_, err := newReader(t.Context(), bytes.NewReader(b)).run(func(_ string, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1 << (i % 8)
		try(fmt.Sprintf("byte %d of %d", i, len(good)), b)
	}
	for i := 0; i < len(good); i += 97 {
		try(fmt.Sprintf("cut at %d of %d", i, len(good)), good[:i])
	}
	try("cut by a byte", good[:len(good)-1])
	try("longer by a byte", append(bytes.Clone(good), 0))
	try("longer by another", append(bytes.Clone(good), good...))
	if err := os.WriteFile(path, good[:len(good)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), path, dir); !errors.Is(err, ErrInvalid) {
		t.Errorf("restore: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}
	if _, err := Verify(t.Context(), t.TempDir()); !errors.Is(err, ErrInvalid) {
		t.Errorf("a directory: %v", err)
	}
}

// An archive that somebody made with care is refused for what it would do.
func TestHostileArchives(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	for _, tc := range []struct{ name, member, link, want string }{
		{"parent", "store/../../outside", "", "is not the name of a store's file"},
		{"absolute", "store/" + outside, "", "is not the name of a store's file"},
		{"folder", "store/a/b", "", "is not the name of a store's file"},
		{"hidden", "store/.profile", "", "is not the name of a store's file"},
		{"mark", "store/" + Unfinished, "", "is not the name of a store's file"},
		{"terminal", "store/\x1b[2J", "", `"\x1b[2J" is not the name`},
		{"elsewhere", "other/000004.sst", "", "has no place in it"},
		{"link", "store/000004.sst", outside, "is not a plain file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			h := header(tc.member, 4, time.Unix(0, 0), tar.FormatUnknown)
			if tc.link != "" {
				h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, tc.link, 0
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if tc.link == "" {
				if _, err := w.Write([]byte("evil")); err != nil {
					t.Fatal(err)
				}
			}
			m, err := newManifest(messagesOf(nil)[0].GetHead())
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimPrefix(tc.member, storePrefix)
			m.Size = 4
			m.add(File{Name: name, Size: 4, SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte("evil")))})
			text, sum, err := m.encode()
			if err != nil {
				t.Fatal(err)
			}
			own := &writer{tar: w, manifest: m}
			if err := errors.Join(own.member(manifestName, text), own.member(sumName, sum), w.Close()); err != nil {
				t.Fatal(err)
			}
			path, dir := filepath.Join(t.TempDir(), "a.tar"), filepath.Join(t.TempDir(), "data")
			if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Restore(t.Context(), path, dir); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
			if _, err := os.Lstat(outside); err == nil {
				t.Error("it wrote outside")
			}
		})
	}
}

func TestAnotherFormat(t *testing.T) {
	var b bytes.Buffer
	w := &writer{tar: tar.NewWriter(&b), manifest: &Manifest{}}
	text := []byte(`{"format":2,"files":"in another way"}`)
	if err := errors.Join(w.member(manifestName, text), w.member(sumName, sumLine(text)), w.tar.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), path); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "format 2, this program reads 1") {
		t.Errorf("error is %v", err)
	}
}

// What is not sent as a whole makes no file, and replaces none.
func TestWriteRefuses(t *testing.T) {
	lost := errors.New("connection lost")
	file := func(i int, change func(f *presencev1.BackupFile)) func(m []*presencev1.BackupResponse) []*presencev1.BackupResponse {
		return func(m []*presencev1.BackupResponse) []*presencev1.BackupResponse {
			change(m[i].GetFile())
			return m
		}
	}
	for _, tc := range []struct {
		name   string
		change func([]*presencev1.BackupResponse) []*presencev1.BackupResponse
		err    error
		want   string
	}{
		{"nothing", func([]*presencev1.BackupResponse) []*presencev1.BackupResponse { return nil }, io.EOF, "EOF"},
		{"no head", func(m []*presencev1.BackupResponse) []*presencev1.BackupResponse { return m[1:] }, io.EOF, "does not say what the backup is of"},
		{"cut off", func(m []*presencev1.BackupResponse) []*presencev1.BackupResponse { return m[:3] }, lost, "connection lost"},
		{"ended in a file", func(m []*presencev1.BackupResponse) []*presencev1.BackupResponse { return m[:3] }, io.EOF, "in the middle of file"},
		{"a file too few", func(m []*presencev1.BackupResponse) []*presencev1.BackupResponse { return m[:2] }, io.EOF, "not complete"},
		{"a part too few", func(m []*presencev1.BackupResponse) []*presencev1.BackupResponse { return slices.Delete(m, 3, 4) }, io.EOF, "damaged on the way"},
		{"a part too many", func(m []*presencev1.BackupResponse) []*presencev1.BackupResponse { return slices.Insert(m, 3, m[3]) }, io.EOF, "write too long"},
		{"a changed part", file(3, func(f *presencev1.BackupFile) { f.Data = bytes.ToUpper(f.GetData()) }), io.EOF, "damaged on the way"},
		{"a bad name", file(1, func(f *presencev1.BackupFile) { f.Name = "../a" }), io.EOF, "is not the name of a store's file"},
		{"a mixed-up part", file(3, func(f *presencev1.BackupFile) { f.Name = "b.sst" }), io.EOF, "in the middle of file"},
		{"a file twice", func(m []*presencev1.BackupResponse) []*presencev1.BackupResponse { return append(m, m[1]) }, io.EOF, "comes twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "a.tar")
			if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			var messages []*presencev1.BackupResponse
			for _, m := range messagesOf(contents) {
				messages = append(messages, proto.CloneOf(m))
			}
			_, err := Write(path, true, &parts{tc.change(messages), tc.err})
			if err == nil || !strings.Contains(err.Error(), tc.want) || tc.err == lost && !errors.Is(err, lost) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
			if got := filesIn(t, dir); !maps.Equal(got, map[string]string{"a.tar": "before"}) {
				t.Errorf("files are %v", got)
			}
		})
	}
	path := written(t)
	if _, err := Write(path, false, &parts{messagesOf(nil), io.EOF}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that is there: %v", err)
	}
	if m, err := Verify(t.Context(), path); err != nil || len(m.Files) != len(contents) {
		t.Errorf("it is %+v, %v", m, err)
	}
	if _, err := Write(path, true, &parts{messagesOf(nil), io.EOF}); err != nil {
		t.Errorf("with force: %v", err)
	}
	if m, err := Verify(t.Context(), path); err != nil || len(m.Files) != 0 {
		t.Errorf("it is %+v, %v", m, err)
	}
	if got := filesIn(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("files are %v", got)
	}
}

// A file that comes to be while a backup is written stays.
func TestWriteMeetsAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar")
	p := &meeting{parts: parts{messagesOf(contents), io.EOF}, path: path}
	if _, err := Write(path, false, p); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error is %v", err)
	}
	if got := filesIn(t, filepath.Dir(path)); !maps.Equal(got, map[string]string{"a.tar": "another"}) {
		t.Errorf("files are %v", got)
	}
}

type meeting struct {
	parts
	path string
}

func (m *meeting) Recv() (*presencev1.BackupResponse, error) {
	r, err := m.parts.Recv()
	if err != nil {
		return r, errors.Join(err, os.WriteFile(m.path, []byte("another"), 0o600))
	}
	return r, nil
}

func TestRestoreRefusesWhatIsThere(t *testing.T) {
	path := written(t)
	for name, want := range map[string]string{"000004.sst": `there is "000004.sst"`, Unfinished: "a restore into it was cut off"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(t.Context(), path, dir); !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if got := filesIn(t, dir); len(got) != 1 {
			t.Errorf("%s: files are %v", name, got)
		}
	}
	if _, err := Restore(t.Context(), path, path); err == nil {
		t.Error("a file was taken for a directory")
	}
}

// A restore that cannot be finished leaves an empty directory, wherever it wrote.
func TestRestoreThatFails(t *testing.T) {
	for _, name := range []string{"beside", "in place"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			if name == "in place" {
				want[lostAndFound] = "directory"
				if err := os.Mkdir(filepath.Join(dir, lostAndFound), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			target, err := newTarget(dir)
			if err != nil {
				t.Fatal(err)
			}
			if target.inPlace() != (name == "in place") {
				t.Fatalf("it fills %s", target.at)
			}
			if err := target.write("000004.sst", strings.NewReader("rows")); err != nil {
				t.Fatal(err)
			}
			_, marked := filesIn(t, dir)[Unfinished]
			if marked != target.inPlace() {
				t.Errorf("while it is filled, the directory has %v", filesIn(t, dir))
			}
			if err := target.write("000004.sst", strings.NewReader("rows")); err == nil {
				t.Error("a file was written twice")
			}
			if err := target.abandon(); err != nil {
				t.Fatal(err)
			}
			if got := filesIn(t, dir); !maps.Equal(got, want) {
				t.Errorf("left are %v", got)
			}
			if got := filesIn(t, filepath.Dir(dir)); len(got) != 1 {
				t.Errorf("beside are %v", got)
			}
			if _, err := Restore(t.Context(), written(t), dir); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := Restore(ctx, written(t), dir); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}
}
