package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Unfinished is the name of a file in a directory that a restore has not finished to fill.
const Unfinished = "RESTORE-UNFINISHED"

// lostAndFound is what an empty file system has in its root.
const lostAndFound = "lost+found"

// ErrNotEmpty is returned by Restore for a directory that holds something.
var ErrNotEmpty = errors.New("directory is not empty")

// Restore verifies a backup and makes a store of it in a directory, which is made if it is absent and must be empty. After an error it is
// empty again.
func Restore(ctx context.Context, path, dir string) (*Manifest, error) {
	if err := CheckEmpty(dir); err != nil {
		return nil, err
	}
	verified, err := Verify(ctx, path)
	if err != nil {
		return nil, err
	}
	t, err := newTarget(dir)
	if err != nil {
		return nil, err
	}
	m, err := read(ctx, path, t.write)
	if err == nil && (m.TakenMS != verified.TakenMS || m.Size != verified.Size) {
		err = fmt.Errorf("%s: %w: it was changed while it was read", path, ErrInvalid)
	}
	if err == nil {
		err = t.finish()
	}
	if err != nil {
		return nil, errors.Join(err, t.abandon())
	}
	return m, nil
}

// CheckEmpty returns an error if a directory holds something, or cannot be read. One that is absent is empty.
func CheckEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look into %s: %w", dir, err)
	}
	for _, e := range entries {
		switch e.Name() {
		case lostAndFound:
		case Unfinished:
			return fmt.Errorf("%s: %w: a restore into it was cut off; remove what is in it and restore again", dir, ErrNotEmpty)
		default:
			return fmt.Errorf("%s: %w: there is %q; stop the materializer, and move what is there away or name another directory", dir, ErrNotEmpty, e.Name())
		}
	}
	return nil
}

// target is the directory that is being filled.
type target struct {
	dir     string // that is to be filled
	at      string // where the files go: a directory beside it, or dir itself
	written []string
}

// newTarget tries whether a directory beside can take the place of dir. That of a mounted file system cannot be taken, nor one in a directory that
// is not ours, nor one that is not quite empty.
func newTarget(dir string) (*target, error) {
	mode := fs.FileMode(0o700)
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", dir, err)
	}
	if info, err := os.Stat(dir); err == nil {
		mode = info.Mode().Perm()
	} else if err := os.MkdirAll(dir, mode); err != nil {
		return nil, fmt.Errorf("make the directory: %w", err)
	}
	if at, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".restore-*"); err == nil {
		if os.Remove(dir) == nil {
			if err := errors.Join(os.Mkdir(dir, mode), os.Chmod(dir, mode), os.Chmod(at, mode)); err != nil {
				return nil, fmt.Errorf("make the directory: %w", errors.Join(err, os.Remove(at)))
			}
			return &target{dir: dir, at: at}, nil
		}
		if err := os.Remove(at); err != nil {
			return nil, fmt.Errorf("remove a directory that is not needed: %w", err)
		}
	}
	t := &target{dir: dir, at: dir}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, Unfinished), nil, 0o600), syncDir(dir)); err != nil {
		return nil, fmt.Errorf("write to %s: %w", dir, err)
	}
	return t, nil
}

func (t *target) inPlace() bool { return t.at == t.dir }

func (t *target) write(name string, r io.Reader) error {
	path := filepath.Join(t.at, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write to %s: %w", t.dir, err)
	}
	t.written = append(t.written, path)
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// finish makes the store that is complete the directory's.
func (t *target) finish() error {
	if err := syncDir(t.at); err != nil {
		return err
	}
	if t.inPlace() {
		if err := os.Remove(filepath.Join(t.dir, Unfinished)); err != nil {
			return fmt.Errorf("finish the restore: %w", err)
		}
		return syncDir(t.dir)
	}
	// Go renames no directory onto another, however empty.
	if err := errors.Join(os.Remove(t.dir), os.Rename(t.at, t.dir)); err != nil {
		return fmt.Errorf("finish the restore: %w", err)
	}
	return syncDir(filepath.Dir(t.dir))
}

// abandon leaves the directory empty.
func (t *target) abandon() error {
	if !t.inPlace() {
		if err := os.RemoveAll(t.at); err != nil {
			return fmt.Errorf("remove what was restored: %w", err)
		}
		return nil
	}
	// The mark goes last: what is left of a store must not be taken for one.
	for _, path := range append(t.written, filepath.Join(t.dir, Unfinished)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what was restored: %w", err)
		}
	}
	return nil
}
