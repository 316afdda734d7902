package presence

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mqtt-presence/presence/services/query"
)

// devUser is the account of a first start, on a machine of its own: it may do everything.
const (
	devUser        = "dev"
	devPermissions = "connect,read,admin"
)

// account is who may ask; the password is empty if it is not known.
type account struct {
	user, password string
	passwordFile   string // absolute
}

// devAccount returns the account in the data folder, and makes it on the first start. An accounts file that is there is never changed.
func devAccount(dir, accountsPath string) (account, error) {
	path, err := filepath.Abs(filepath.Join(dir, "dev-password"))
	if err != nil {
		return account{}, fmt.Errorf("find the folder of the account: %w", err)
	}
	a := account{user: devUser, passwordFile: path}
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return account{}, fmt.Errorf("read the password of account %s: %w", devUser, err)
	}
	a.password = string(bytes.TrimSpace(content))
	if _, err := os.Stat(accountsPath); err == nil {
		return a, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return account{}, fmt.Errorf("look for the accounts: %w", err)
	}
	if a.password == "" {
		a.password = rand.Text()
		// The password first: without the accounts file the next start comes here again.
		if err := writePrivate(path, a.password+"\n"); err != nil {
			return account{}, fmt.Errorf("keep the password of account %s: %w", devUser, err)
		}
	}
	line, err := query.AccountLine(a.user, a.password, devPermissions)
	if err != nil {
		return account{}, fmt.Errorf("make account %s from the password in %s: %w", devUser, path, err)
	}
	if err := writePrivate(accountsPath, line+"\n"); err != nil {
		return account{}, fmt.Errorf("keep account %s: %w", devUser, err)
	}
	return a, nil
}

// pageTokenKeyBytes is the size of the key of page tokens.
const pageTokenKeyBytes = 32

// pageTokenKey makes the key of page tokens on the first start, so that they outlive a restart.
func pageTokenKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the key of page tokens: %w", err)
	}
	key := make([]byte, pageTokenKeyBytes)
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("make the key of page tokens: %w", err)
	}
	if err := writePrivate(path, string(key)); err != nil {
		return fmt.Errorf("keep the key of page tokens: %w", err)
	}
	return nil
}

// writePrivate writes a file that only its owner can read, whole or not at all.
func writePrivate(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
