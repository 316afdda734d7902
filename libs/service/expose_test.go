package service

import (
	"strings"
	"testing"
)

func TestCheckExposed(t *testing.T) {
	for _, test := range []struct {
		addr    string
		exposed bool
	}{
		{"127.0.0.1:80", false}, {"127.8.9.1:80", false}, {"[::1]:80", false}, {"localhost:80", false}, {"", false},
		{":80", true}, {"0.0.0.0:80", true}, {"[::]:80", true}, {"10.0.0.1:80", true}, {"example.org:80", true}, {"[::ffff:10.0.0.1]:80", true},
		{"[::ffff:127.0.0.1]:80", false}, {"localhost.example.org:80", true}, {"127.0.0.1.example.org:80", true},
	} {
		l := Listener{Option: "http-addr", Addr: test.addr, Missing: []string{"TLS", "accounts"}}
		warning, err := CheckExposed(false, l)
		if (err != nil) != test.exposed || warning != "" {
			t.Errorf("%q: %q, %v", test.addr, warning, err)
		}
		warning, err = CheckExposed(true, l)
		if err != nil || (warning != "") != test.exposed || test.exposed && !strings.Contains(warning, "http-addr "+test.addr+" without TLS and accounts") {
			t.Errorf("%q allowed: %q, %v", test.addr, warning, err)
		}
		l.Missing = nil
		if warning, err := CheckExposed(false, l); warning != "" || err != nil {
			t.Errorf("%q with all it needs: %q, %v", test.addr, warning, err)
		}
	}
}
