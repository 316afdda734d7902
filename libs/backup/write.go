package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Parts is where the store comes from: the stream of StateService.Backup. Recv returns io.EOF after the last part.
type Parts interface {
	Recv() (*presencev1.BackupResponse, error)
}

// Write writes what parts sends to a new file, with mode 0600. The error wraps fs.ErrExist if the file is there and force is false, and what Recv
// returned.
func Write(path string, force bool, parts Parts) (_ *Manifest, err error) {
	if !force {
		if err := checkAbsent(path); err != nil {
			return nil, err
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return nil, fmt.Errorf("make a file beside %s: %w", path, err)
	}
	defer func() {
		// A file that was published, or closed before, is not there any more.
		_ = f.Close()
		_ = os.Remove(f.Name())
	}()
	w := &writer{tar: tar.NewWriter(f), parts: parts}
	if err := w.run(); err != nil {
		return nil, err
	}
	if err := errors.Join(w.tar.Close(), f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("write %s: %w", f.Name(), err)
	}
	if err := publish(f.Name(), path, force); err != nil {
		return nil, err
	}
	return w.manifest, nil
}

func checkAbsent(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for %s: %w", path, err)
	}
	return nil
}

// publish gives a complete file its name.
func publish(from, path string, force bool) error {
	// A link, unlike a rename, replaces nothing that has come meanwhile. Some file systems have none.
	err := os.Link(from, path)
	if err != nil && !force {
		if err := checkAbsent(path); err != nil {
			return err
		}
	}
	if err != nil {
		err = os.Rename(from, path)
	}
	if err != nil {
		return fmt.Errorf("name the backup %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory survive a loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("sync the directory %s: %w", dir, err)
	}
	return nil
}

// writer turns the parts into members.
type writer struct {
	tar      *tar.Writer
	parts    Parts
	manifest *Manifest

	file    File  // that is being written; without a name: none
	written int64 // bytes of it
	sum     hash.Hash
}

func (w *writer) run() error {
	first, err := w.parts.Recv()
	if err != nil {
		return fmt.Errorf("receive the backup: %w", err)
	}
	if w.manifest, err = newManifest(first.GetHead()); err != nil {
		return err
	}
	for {
		part, err := w.parts.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("receive the backup: %w", err)
		}
		if err := w.part(part.GetFile()); err != nil {
			return err
		}
	}
	if w.file.Name != "" {
		return fmt.Errorf("the backup ended in the middle of file %q", w.file.Name)
	}
	if err := w.manifest.check(); err != nil {
		return fmt.Errorf("the backup is not complete: %w", err)
	}
	text, sum, err := w.manifest.encode()
	if err != nil {
		return err
	}
	return errors.Join(w.member(manifestName, text), w.member(sumName, sum))
}

func (w *writer) part(p *presencev1.BackupFile) error {
	if w.file.Name == "" {
		if err := checkName(p.GetName()); err != nil {
			return err
		}
		w.file, w.written, w.sum = File{Name: p.GetName(), Size: p.GetSize()}, 0, sha256.New()
		if err := w.tar.WriteHeader(w.header(storePrefix+w.file.Name, w.file.Size)); err != nil {
			return fmt.Errorf("write file %q: %w", w.file.Name, err)
		}
	}
	if p.GetName() != w.file.Name || p.GetSize() != w.file.Size {
		return fmt.Errorf("a part of file %q came in the middle of file %q", p.GetName(), w.file.Name)
	}
	// The archive refuses more bytes than the header says.
	if _, err := io.MultiWriter(w.tar, w.sum).Write(p.GetData()); err != nil {
		return fmt.Errorf("write file %q: %w", w.file.Name, err)
	}
	w.written += int64(len(p.GetData()))
	if len(p.GetSha256()) == 0 {
		return nil
	}
	if sum := w.sum.Sum(nil); w.written != w.file.Size || !bytes.Equal(sum, p.GetSha256()) {
		return fmt.Errorf("file %q was damaged on the way: %d of %d bytes came, with SHA-256 %x, sent was %x; try again", w.file.Name, w.written, w.file.Size, sum, p.GetSha256())
	}
	w.file.SHA256 = hex.EncodeToString(p.GetSha256())
	w.manifest.add(w.file)
	w.file = File{}
	return nil
}

func (w *writer) member(name string, data []byte) error {
	err := w.tar.WriteHeader(w.header(name, int64(len(data))))
	if err == nil {
		_, err = w.tar.Write(data)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (w *writer) header(name string, size int64) *tar.Header {
	return header(name, size, time.UnixMilli(w.manifest.TakenMS).Truncate(time.Second), tar.FormatUnknown)
}

// header is all that a member's header holds.
func header(name string, size int64, at time.Time, f tar.Format) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: at, Format: f}
}
