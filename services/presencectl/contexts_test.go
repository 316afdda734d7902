package presencectl

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func (r *runner) ok(args ...string) string {
	r.t.Helper()
	out, errOut, code := r.run(args...)
	if code != exitOK {
		r.t.Fatalf("%v exited with %d: %s", args, code, errOut)
	}
	return out
}

func (r *runner) fails(want string, args ...string) {
	r.t.Helper()
	out, errOut, code := r.run(args...)
	if code != exitError || !strings.Contains(errOut, want) {
		r.t.Errorf("%v exited with %d: %s%s, want 3 and %q", args, code, out, errOut, want)
	}
}

func TestContexts(t *testing.T) {
	r := newRunner(t)
	server := strings.TrimPrefix(r.env[1], "PRESENCECTL_SERVER=")
	r.env = r.env[:1] // the server comes from the context
	t.Chdir(r.dir)
	password := writeFile(t, filepath.Join(r.dir, "password"), "sesame\n")

	r.ok("config", "set-context", "local", "--server", server, "--user", "dev", "--password-file", "password", "--cluster", "eu-1")
	path := filepath.Join(r.dir, ".config", "presencectl", "config.yaml")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the configuration has mode %v: %v", info.Mode(), err)
	}
	if folder, err := os.Stat(filepath.Dir(path)); err != nil || folder.Mode().Perm() != 0o700 {
		t.Errorf("its folder has mode %v: %v", folder.Mode(), err)
	}
	content, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(content), "sesame") || !strings.Contains(string(content), password) {
		t.Errorf("the configuration is %s: %v; want the file of the password, by its absolute path, and no password", content, err)
	}
	if out := r.ok("status", "dev1"); out != "online\n" {
		t.Errorf("status: %q", out)
	}
	r.fake.wants(t, "Basic ZGV2OnNlc2FtZQ==", "eu-1") // dev:sesame

	// The second context is not the current one until it is used; its own cluster is unset again.
	r.ok("config", "set-context", "other", "--server", server, "--token-file", writeFile(t, filepath.Join(r.dir, "token"), "abc"), "--cluster", "us-1")
	if out := r.ok("config", "current-context"); out != "local\n" {
		t.Errorf("current context: %q", out)
	}
	r.ok("--context", "other", "status", "dev1")
	r.fake.wants(t, "Bearer abc", "us-1")
	r.ok("config", "set-context", "other", "--cluster", "")
	r.ok("config", "use-context", "other")
	r.ok("status", "dev1")
	r.fake.wants(t, "Bearer abc", "")
	if out := r.ok("config", "get-contexts"); !strings.Contains(out, "*        other") || strings.Contains(out, "*        local") {
		t.Errorf("contexts:\n%s", out)
	}
	if out := r.ok("config", "get-contexts", "-o", "json"); strings.Count(out, "\n") != 2 || !strings.Contains(out, `"current":"true"`) {
		t.Errorf("contexts as JSON:\n%s", out)
	}

	// Flags win over the environment, and this over the context; a credential of one kind takes the other away.
	r.env = append(r.env, "PRESENCECTL_CONTEXT=local", "PRESENCECTL_CLUSTER=env", "PRESENCECTL_TOKEN=fromenv")
	r.ok("status", "dev1")
	r.fake.wants(t, "Bearer fromenv", "env")
	r.ok("status", "dev1", "--cluster", "flag", "--user", "ops", "--password-file", password)
	r.fake.wants(t, "Basic b3BzOnNlc2FtZQ==", "flag")
	r.env = append(r.env[:1], "PRESENCECTL_PASSWORD=other", "PRESENCECTL_CONTEXT=local")
	r.ok("status", "dev1")
	r.fake.wants(t, "Basic ZGV2Om90aGVy", "eu-1") // dev of the context, password of the environment
	r.env = r.env[:1]

	r.fails("one kind of credential", "config", "set-context", "local", "--token-file", "t")
	r.fails("not host:port", "config", "set-context", "bad", "--server", "x")
	r.fails(`name "a b"`, "config", "set-context", "a b")
	r.fails("no context", "config", "delete-context", "nowhere")
	r.ok("config", "delete-context", "other")
	r.fails("no current context", "config", "current-context")

	// A file of a wrong form is an error with its place.
	writeFile(t, path, "contexts:\n- name: a\n  sever: x\n")
	r.fails("field sever not found", "status", "dev1")
	writeFile(t, path, "contexts:\n- name: a\n- name: a\n")
	r.fails("there twice", "status", "dev1")
}

// TestConfigIsLinked: a link to the configuration stays a link, and what it leads to becomes private.
func TestConfigIsLinked(t *testing.T) {
	r := newRunner(t)
	target := filepath.Join(r.dir, "target.yaml")
	if err := os.WriteFile(target, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(r.dir, "link.yaml")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	r.ok("--config", link, "config", "set-context", "a", "--cluster", "c")
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link became %v: %v", info.Mode(), err)
	}
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its target has mode %v: %v", info.Mode(), err)
	}
}

func (f *fake) wants(t *testing.T, authorization, cluster string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.authorization) != 1 || f.authorization[0] != authorization || f.cluster != cluster {
		t.Errorf("the service got authorization %q and cluster %q, want %q and %q", f.authorization, f.cluster, authorization, cluster)
	}
}
