package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"strings"
)

// Verify reads a backup to its end and returns what it says of itself. The error wraps ErrInvalid if it is not as it was written.
func Verify(ctx context.Context, path string) (*Manifest, error) {
	return read(ctx, path, func(_ string, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	})
}

// read calls file for each file of a backup and returns the manifest once everything is as it says; until then nothing is certain.
func read(ctx context.Context, path string, file func(name string, r io.Reader) error) (*Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the backup: %w", err)
	}
	// Nothing was written.
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s: %w: it is not a file", path, ErrInvalid), err)
	}
	r := newReader(ctx, f)
	m, err := r.run(file)
	switch {
	case err == nil:
		return m, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case r.failed != nil:
		return nil, fmt.Errorf("read the backup %s: %w", path, r.failed)
	}
	return nil, fmt.Errorf("%s: %w", path, err)
}

// reader reads the archive. Since a tar archive has bytes that nobody looks at, what was read is written again, and both must be the same.
type reader struct {
	ctx    context.Context
	src    *bufio.Reader
	failed error // of the disk
	tar    *tar.Reader

	is, want maphash.Hash
	again    *tar.Writer

	manifest *Manifest
	found    []File
}

func newReader(ctx context.Context, src io.Reader) *reader {
	r := &reader{ctx: ctx, src: bufio.NewReaderSize(src, 64<<10)}
	r.want.SetSeed(r.is.Seed())
	r.tar, r.again = tar.NewReader(r), tar.NewWriter(&r.want)
	return r
}

// Read reads the archive's bytes.
func (r *reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.src.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		r.failed = err
	}
	// It never returns an error.
	_, _ = r.is.Write(b[:n])
	return n, err
}

func (r *reader) run(file func(name string, r io.Reader) error) (*Manifest, error) {
	var text, sum []byte
	for {
		h, err := r.tar.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: it was cut off or changed: %w", ErrInvalid, err)
		}
		if sum != nil {
			return nil, fmt.Errorf("%w: %q follows its end", ErrInvalid, h.Name)
		}
		if h.Typeflag != tar.TypeReg || sparse(h) {
			return nil, fmt.Errorf("%w: %q is not a plain file", ErrInvalid, h.Name)
		}
		if err := r.again.WriteHeader(header(h.Name, h.Size, h.ModTime, h.Format)); err != nil {
			return nil, fmt.Errorf("%w: %q: %w", ErrInvalid, h.Name, err)
		}
		body := io.TeeReader(r.tar, r.again)
		name, stored := strings.CutPrefix(h.Name, storePrefix)
		switch {
		case stored && text == nil:
			err = r.file(name, body, file)
		case h.Name == manifestName && text == nil:
			text, err = small(body)
		case h.Name == sumName && text != nil:
			sum, err = small(body)
		default:
			err = fmt.Errorf("%w: %q has no place in it", ErrInvalid, h.Name)
		}
		if err != nil {
			return nil, err
		}
	}
	if sum == nil {
		return nil, fmt.Errorf("%w: its end is missing", ErrInvalid)
	}
	if err := r.check(text, sum); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	if err := r.again.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if r.is.Sum64() != r.want.Sum64() {
		return nil, fmt.Errorf("%w: bytes between or after its files were changed", ErrInvalid)
	}
	return r.manifest, nil
}

// sparse reports whether a file has holes: they are read as zeros that are not in the archive, as many as it likes.
func sparse(h *tar.Header) bool {
	for name := range h.PAXRecords {
		if strings.HasPrefix(name, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// small reads a member into memory.
func small(body io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("%w: it was cut off: %w", ErrInvalid, err)
	}
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%w: its manifest has more than %d bytes", ErrInvalid, maxManifest)
	}
	return b, nil
}

func (r *reader) file(name string, body io.Reader, file func(name string, r io.Reader) error) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	sum, size := sha256.New(), counter(0)
	err := file(name, io.TeeReader(body, io.MultiWriter(sum, &size)))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it was cut off: %w", ErrInvalid, err)
	}
	if err != nil {
		return err
	}
	r.found = append(r.found, File{Name: name, Size: int64(size), SHA256: hex.EncodeToString(sum.Sum(nil))})
	return nil
}

// counter counts what is written to it.
type counter int64

// Write counts b.
func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// check compares what was read with the manifest.
func (r *reader) check(text, sum []byte) error {
	// The layout of what follows is known only for this version.
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(text, &version); err == nil && version.Format != format {
		return fmt.Errorf("it has format %d, this program reads %d: use the version that wrote it", version.Format, format)
	}
	if !bytes.Equal(sum, sumLine(text)) {
		return errors.New("its manifest was changed")
	}
	r.manifest = &Manifest{}
	if err := json.Unmarshal(text, r.manifest); err != nil {
		return fmt.Errorf("its manifest: %w", err)
	}
	if err := r.manifest.check(); err != nil {
		return err
	}
	if len(r.found) != len(r.manifest.Files) {
		return fmt.Errorf("it holds %d files, its manifest has %d", len(r.found), len(r.manifest.Files))
	}
	for i, f := range r.found {
		if f != r.manifest.Files[i] {
			return fmt.Errorf("file %q is not as its manifest says: it was changed", f.Name)
		}
	}
	return nil
}
