package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/mqtt-presence/presence/services/presencectl"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// From the first signal on, the default action of a second one is back: it kills.
	context.AfterFunc(ctx, stop)
	code := presencectl.Main(ctx, presencectl.Process{
		Args: os.Args[1:], Environ: os.Environ(), In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
	})
	stop()
	os.Exit(code)
}
