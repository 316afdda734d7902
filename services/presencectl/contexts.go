package presencectl

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// configFile is the configuration file: named groups of settings. It holds no secrets.
type configFile struct {
	Current  string       `yaml:"current-context,omitempty"`
	Contexts []namedGroup `yaml:"contexts,omitempty"`
}

type namedGroup struct {
	Name     string `yaml:"name"`
	settings `yaml:",inline"`
}

// values returns the settings that the context has.
func (c *namedGroup) values() map[string]string {
	values := map[string]string{}
	bind(&c.settings).all(func(f *pflag.Flag) {
		if v := f.Value.String(); v != "" && v != "false" && v != "0s" {
			values[f.Name] = v
		}
	})
	return values
}

func (c *configFile) find(name string) *namedGroup {
	i := slices.IndexFunc(c.Contexts, func(g namedGroup) bool { return g.Name == name })
	if i < 0 {
		return nil
	}
	return &c.Contexts[i]
}

// configPath returns where the configuration file is: --config, PRESENCECTL_CONFIG, or the user's folder for configurations.
func (a *app) configPath() (string, error) {
	switch {
	case a.config != "":
		return a.config, nil
	case a.env(envConfig) != "":
		return a.env(envConfig), nil
	case filepath.IsAbs(a.env("XDG_CONFIG_HOME")):
		return filepath.Join(a.env("XDG_CONFIG_HOME"), name, "config.yaml"), nil
	case a.env("HOME") != "":
		return filepath.Join(a.env("HOME"), ".config", name, "config.yaml"), nil
	}
	return "", errors.New("config: there is neither XDG_CONFIG_HOME nor HOME to find the configuration file by; name it with --config")
}

// loadConfig reads the configuration file; one that is absent is empty, unless it was named.
func (a *app) loadConfig() (*configFile, error) {
	path, err := a.configPath()
	if err != nil {
		if a.context == "" && a.env(envContext) == "" {
			return &configFile{}, nil
		}
		return nil, err
	}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &configFile{}, nil
	case err != nil:
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	c := &configFile{}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the configuration %s: %w", path, err)
	}
	for i, g := range c.Contexts {
		if err := validContextName(g.Name); err != nil {
			return nil, fmt.Errorf("read the configuration %s: context %d: %w", path, i+1, err)
		}
		if c.find(g.Name) != &c.Contexts[i] {
			return nil, fmt.Errorf("read the configuration %s: context %q is there twice; remove one", path, g.Name)
		}
	}
	return c, nil
}

// chosenContext returns the context in use, nil if there is none.
func (a *app) chosenContext() (*namedGroup, error) {
	c, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	chosen, by := a.context, "--context"
	if chosen == "" {
		chosen, by = a.env(envContext), envContext
	}
	if chosen == "" {
		chosen, by = c.Current, "current-context of the configuration file"
	}
	if chosen == "" {
		return nil, nil
	}
	if g := c.find(chosen); g != nil {
		return g, nil
	}
	return nil, fmt.Errorf("%s: there is no context %q; '%s config get-contexts' lists them", by, chosen, name)
}

// saveConfig replaces the configuration file, whole or not at all, readable by its owner only.
func (a *app) saveConfig(c *configFile) error {
	path, err := a.configPath()
	if err != nil {
		return err
	}
	// A link, as dotfile managers make them, stays one.
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(c), encoder.Close()); err != nil {
		return fmt.Errorf("encode the configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the folder of the configuration: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	_, err = f.Write(b.Bytes())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the configuration: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// validContextName checks a name, which is shown, completed by shells, and given on command lines.
func validContextName(name string) error {
	ok := name != "" && len(name) <= 63
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.@", r))
	}
	if !ok || name[0] == '-' {
		return fmt.Errorf("name %q: use 1 to 63 letters, digits and -_.@, not beginning with a hyphen", name)
	}
	return nil
}
