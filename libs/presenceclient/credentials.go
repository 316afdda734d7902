package presenceclient

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// fileCheck is the time between two looks at a file that holds a secret.
const fileCheck = time.Second

// Source returns a secret, such as a password or a token, whenever a call needs it. It must be fast: it is asked for each call.
type Source func(ctx context.Context) (string, error)

// Fixed returns a source of one secret.
func Fixed(secret string) Source {
	return func(context.Context) (string, error) { return secret, nil }
}

// File returns a source of what a file holds, without the line end at its end. A file that was changed is read again, within a second. While it
// cannot be read, calls fail with UNAUTHENTICATED.
func File(path string) Source {
	f := &secretFile{path: path}
	return f.secret
}

type secretFile struct {
	path string

	mu      sync.Mutex
	checked time.Time
	info    os.FileInfo // of the file as it was read; nil: not read
	text    string
}

func (f *secretFile) secret(context.Context) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.info != nil && time.Since(f.checked) < fileCheck {
		return f.text, nil
	}
	text, info, err := f.read()
	f.checked, f.text, f.info = time.Now(), text, info
	return text, err
}

// read returns what the file holds, and a nil info with an error.
func (f *secretFile) read() (string, os.FileInfo, error) {
	// Looked at before it is read: a change in between is seen the next time.
	info, err := os.Stat(f.path)
	if err != nil {
		return "", nil, fmt.Errorf("look at the file of the secret: %w", err)
	}
	if f.info != nil && os.SameFile(f.info, info) && f.info.ModTime().Equal(info.ModTime()) && f.info.Size() == info.Size() {
		return f.text, info, nil
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return "", nil, fmt.Errorf("read the file of the secret: %w", err)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" {
		return "", nil, fmt.Errorf("read the file of the secret: %s is empty; write the secret into it", f.path)
	}
	return text, info, nil
}

// Basic authenticates by the name and password of an account, as in HTTP.
type Basic struct {
	User     string
	Password Source
}

// Bearer authenticates by a token, such as a JWT.
type Bearer struct {
	Token Source
}

var (
	_ credentials.PerRPCCredentials = Basic{}
	_ credentials.PerRPCCredentials = Bearer{}
)

func (b Basic) validate() error {
	switch {
	case b.User == "":
		return errors.New("the field User is empty; give the name of an account")
	case strings.Contains(b.User, ":"):
		return errors.New("the field User holds a colon, which no account's name can; give the name alone")
	case b.Password == nil:
		return errors.New("the field Password is nil; give presenceclient.File(path) or presenceclient.Fixed(password)")
	}
	return nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b Basic) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	password, err := b.Password(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(b.User+":"+password))}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: it wants TLS, which [Config] alone can waive.
func (b Basic) RequireTransportSecurity() bool { return true }

func (b Bearer) validate() error {
	if b.Token == nil {
		return errors.New("the field Token is nil; give presenceclient.File(path) or another source")
	}
	return nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b Bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := b.Token(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: it wants TLS, which [Config] alone can waive.
func (b Bearer) RequireTransportSecurity() bool { return true }

// overTransport are credentials whose need of TLS was checked by Config.Validate, which knows of loopback addresses and AllowPlaintext.
type overTransport struct {
	credentials.PerRPCCredentials

	secure bool
}

func (o overTransport) RequireTransportSecurity() bool { return o.secure }
