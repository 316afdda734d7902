package service

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// ClientTLS is the TLS of a connection that this process opens. Embed it with a
// prefix:"kafka-tls-" tag, which begins the names of its options.
type ClientTLS struct {
	Enabled    bool   `conf:"enabled" usage:"connect with TLS"`
	CAFile     string `conf:"ca-file" usage:"PEM file of the authorities that may sign the server's certificate; empty: those of the system"`
	CertFile   string `conf:"cert-file" usage:"PEM file of this client's certificate, with its chain"`
	KeyFile    string `conf:"key-file" usage:"PEM file of this client's private key"`
	ServerName string `conf:"server-name" usage:"name to expect in the server's certificate; empty: the host that is dialled"`
}

// Config returns nil if TLS is off, and an error that names the option if a file
// does not load, one of a pair is absent, or options are set while TLS is off.
func (c ClientTLS) Config() (*tls.Config, error) {
	if !c.Enabled {
		if c != (ClientTLS{}) {
			return nil, errors.New("TLS options are set, but TLS is off; set enabled to true or remove them")
		}
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pool, err := readPool("ca-file", c.CAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = pool
	}
	if c.CertFile != "" || c.KeyFile != "" {
		pair, err := readPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// ServerTLS is the TLS of a listener. Embed it with a prefix:"http-tls-" tag, which
// begins the names of its options.
type ServerTLS struct {
	CertFile     string `conf:"cert-file" usage:"PEM file of the listener's certificate, with its chain; empty: no TLS"`
	KeyFile      string `conf:"key-file" usage:"PEM file of the listener's private key"`
	ClientCAFile string `conf:"client-ca-file" usage:"PEM file of the authorities that may sign client certificates; empty: clients need none"`
}

// Config returns nil if no file is set, and an error that names the option if a
// file does not load or is absent. With ClientCAFile every client must present a
// certificate.
func (c ServerTLS) Config() (*tls.Config, error) {
	if c == (ServerTLS{}) {
		return nil, nil
	}
	pair, err := readPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if c.ClientCAFile != "" {
		pool, err := readPool("client-ca-file", c.ClientCAFile)
		if err != nil {
			return nil, err
		}
		config.ClientCAs = pool
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config, nil
}

func readPair(certFile, keyFile string) (tls.Certificate, error) {
	if certFile == "" || keyFile == "" {
		return tls.Certificate{}, errors.New("cert-file and key-file belong together; set both")
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load cert-file %s and key-file %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}

func readPool(option, file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", option, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read %s: %s holds no PEM certificate", option, file)
	}
	return pool, nil
}
