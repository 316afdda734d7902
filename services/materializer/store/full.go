package store

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// When a file of the store cannot be written any more, Pebble panics while it holds its locks, or throws as it unlocks what it does not hold, or tries
// for ever, depending on the file. None of that can be handled where it arrives, and the same process cannot make up for it: so it ends
// where the operating system says that there is no room, before Pebble hears of it. What was committed is kept as after any crash.

// ender ends the process, once: where several goroutines meet the end, one of them tells of it and the others wait.
type ender struct {
	log  *slog.Logger // nil: nothing is said
	exit func(code int)
	once sync.Once
}

func newEnder(o Options) *ender {
	e := &ender{log: o.Log, exit: o.Exit}
	if e.exit == nil {
		e.exit = os.Exit
	}
	return e
}

// end does not return, unless a test's exit does.
func (e *ender) end(why string) {
	e.once.Do(func() {
		if e.log != nil {
			e.log.Error(why)
		}
		e.exit(1)
	})
}

// fullFS is a file system whose disk must not be full. A folder may be exempt, whose writer is told that there is no room.
type fullFS struct {
	vfs.FS
	dir    string // of the store
	exempt string
	end    func(why string)
}

func newFullFS(fs vfs.FS, dir string, end func(why string)) *fullFS {
	return &fullFS{FS: fs, dir: dir, exempt: fs.PathJoin(dir, checkpointDir), end: end}
}

// met ends the process if err says that there was no room for a file, and returns err otherwise.
func (f *fullFS) met(name string, err error) error {
	if err == nil || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	if rest, below := strings.CutPrefix(name, f.exempt); below && (rest == "" || os.IsPathSeparator(rest[0])) {
		return err
	}
	reason := syscall.ENOSPC
	if !errors.Is(err, reason) {
		reason = syscall.EDQUOT
	}
	f.end("the store in " + f.dir + " cannot be written: " + reason.Error() + "; make room on its disk and start it again; " +
		"nothing is lost, what is not on disk is read from Kafka again")
	return err
}

// file returns a file that was opened for writing.
func (f *fullFS) file(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, f.met(name, err)
	}
	return &fullFile{File: file, fs: f, name: name}, nil
}

func (f *fullFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, category)
	return f.file(name, file, err)
}

func (f *fullFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, category, opts...)
	return f.file(name, file, err)
}

func (f *fullFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(oldname, newname, category)
	return f.file(newname, file, err)
}

func (f *fullFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	return f.file(name, file, err)
}

func (f *fullFS) Link(oldname, newname string) error {
	return f.met(newname, f.FS.Link(oldname, newname))
}

func (f *fullFS) Rename(oldname, newname string) error {
	return f.met(newname, f.FS.Rename(oldname, newname))
}

// MkdirAll makes folders that only their owner may read: names of clients and users are in them.
func (f *fullFS) MkdirAll(dir string, perm os.FileMode) error {
	return f.met(dir, f.FS.MkdirAll(dir, perm&0o700))
}

func (f *fullFS) Lock(name string) (io.Closer, error) {
	lock, err := f.FS.Lock(name)
	return lock, f.met(name, err)
}

func (f *fullFS) Unwrap() vfs.FS { return f.FS }

// fullFile is a file of a fullFS.
type fullFile struct {
	vfs.File
	fs   *fullFS
	name string
}

func (f *fullFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.fs.met(f.name, err)
}

func (f *fullFile) WriteAt(p []byte, offset int64) (int, error) {
	n, err := f.File.WriteAt(p, offset)
	return n, f.fs.met(f.name, err)
}

func (f *fullFile) Sync() error { return f.fs.met(f.name, f.File.Sync()) }

func (f *fullFile) SyncData() error { return f.fs.met(f.name, f.File.SyncData()) }

func (f *fullFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.fs.met(f.name, err)
}

func (f *fullFile) Close() error { return f.fs.met(f.name, f.File.Close()) }
