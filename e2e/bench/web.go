package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// lineReader reads answers of HTTP/1.1 that say how long they are.
type lineReader struct{ r *bufio.Reader }

func newLineReader(r io.Reader) *lineReader { return &lineReader{bufio.NewReader(r)} }

// answer reads one answer, which must be 200, and returns its body.
func (l *lineReader) answer() (string, error) {
	length := 0
	for first := true; ; first = false {
		line, err := l.r.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		line = strings.TrimSpace(line)
		if line == "" {
			break
		}
		if first && !strings.HasPrefix(line, "HTTP/1.1 200") {
			return "", fmt.Errorf("the answer is %q", line)
		}
		if n, ok := contentLength(line); ok {
			length = n
		}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(l.r, body); err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	return string(body), nil
}

// webCaller asks the short call over one connection, with the least that a client can do.
type webCaller struct {
	conn   net.Conn
	read   *lineReader
	before string // of the client ID
	after  string
}

func newWebCaller(conn net.Conn, user, password string) *webCaller {
	return &webCaller{
		conn: conn, read: newLineReader(conn), before: "GET /client-id/",
		after: "/status HTTP/1.1\r\nHost: presence\r\nAuthorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)) + "\r\n\r\n",
	}
}

func (w *webCaller) online(id string) (bool, error) {
	if _, err := io.WriteString(w.conn, w.before+id+w.after); err != nil {
		return false, fmt.Errorf("ask: %w", err)
	}
	body, err := w.read.answer()
	switch {
	case err != nil:
		return false, err
	case body == seedAnswer:
		return true, nil
	case body == `{"online":false}`:
		return false, nil
	}
	return false, fmt.Errorf("the answer is %q", body)
}

// contentLength reads the header line that has it.
func contentLength(line string) (int, bool) {
	const name = "content-length:"
	if len(line) < len(name) || !strings.EqualFold(line[:len(name)], name) {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(line[len(name):]))
	return n, err == nil
}
