package presencectl

import (
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// offsetFlag is --min-offset.
type offsetFlag struct{ value *int64 }

func (f *offsetFlag) add(cmd *cobra.Command) {
	cmd.Flags().Var(f, "min-offset", "wait until the record at this offset of the client's client-events partition is applied")
}

// String returns the offset, empty if none is set.
func (f *offsetFlag) String() string {
	if f.value == nil {
		return ""
	}
	return strconv.FormatInt(*f.value, 10)
}

// Set takes an offset.
func (f *offsetFlag) Set(text string) error {
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || v < 0 {
		return errors.New("an offset is a whole number from 0 on")
	}
	f.value = &v
	return nil
}

// Type is the word for the value in the help.
func (f *offsetFlag) Type() string { return "offset" }

// timeFlag is a point in time, absolute or before now.
type timeFlag struct {
	now  func() time.Time
	text string
	at   time.Time
}

func (a *app) timeFlag(cmd *cobra.Command, name, usage string) *timeFlag {
	f := &timeFlag{now: a.now}
	cmd.Flags().Var(f, name, usage+`, such as 2026-01-31T12:00:00Z, or -5m for five minutes ago`)
	return f
}

// String returns the time as it was given.
func (f *timeFlag) String() string { return f.text }

// Set takes a time.
func (f *timeFlag) Set(text string) error {
	at, err := parseTime(text, f.now())
	if err != nil {
		return err
	}
	f.text, f.at = text, at
	return nil
}

// Type is the word for the value in the help.
func (f *timeFlag) Type() string { return "time" }

// proto returns the time, nil if none was given.
func (f *timeFlag) proto() *timestamppb.Timestamp {
	if f.text == "" {
		return nil
	}
	return timestamppb.New(f.at)
}

// clientFilter are the flags that select clients.
type clientFilter struct{ status, node, username, prefix string }

func (a *app) filterFlags(cmd *cobra.Command, f *clientFilter, status string) {
	cmd.Flags().StringVar(&f.status, "status", "", status)
	cmd.Flags().StringVar(&f.node, "node", "", "broker node of the current connection, or of the last one")
	cmd.Flags().StringVar(&f.username, "username", "", "username of the current connection, or of the last one")
	cmd.Flags().StringVar(&f.prefix, "client-id-prefix", "", "beginning of the client ID")
	a.completeFlag(cmd, "status", completeWords(statuses))
	a.completeFlag(cmd, "node", a.completeNodes)
}

func (f *clientFilter) validate() error {
	for flag, text := range map[string]string{"node": f.node, "username": f.username, "client-id-prefix": f.prefix} {
		if !utf8.ValidString(text) {
			return fmt.Errorf("--%s: is not valid UTF-8", flag)
		}
	}
	switch f.status {
	case "", online, offline, unknown:
		return nil
	}
	return fmt.Errorf("--status: %q is none of online, offline, unknown", f.status)
}
