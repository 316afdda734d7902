package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// stopTimeout is enough for a materializer that writes down what it has of ten million clients.
	stopTimeout = 2 * time.Minute
	processPoll = 100 * time.Millisecond
	// clockTick is the unit of the times in /proc: USER_HZ, which is 100 on every Linux that Go runs on.
	clockTick = 10 * time.Millisecond
	mib       = 1 << 20
)

// process is a child that is measured. Its standard error goes to a file, which an early end quotes.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    *os.File
	in     io.Closer     // its standard input; nil: none
	exited chan struct{} // closed once err is set
	err    error
}

// startProcess starts a child. It lives until it is stopped, whatever becomes of a context: what it holds must be closed in order.
func startProcess(name, dir string, cmd *exec.Cmd) (*process, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("make the log of %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log, exited: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	cmd.Stderr = log
	// A signal from the terminal goes to the bench, which stops its children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	go func() {
		defer close(p.exited)
		p.err = errors.Join(cmd.Wait(), log.Close())
	}()
	return p, nil
}

// stop asks the child to end and waits for that.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	if p.in != nil {
		_ = p.in.Close() // the child may have ended
	} else if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-p.exited:
	case <-timeout.C:
		err := p.cmd.Process.Kill()
		<-p.exited
		return errors.Join(fmt.Errorf("stop %s: it has not ended within %v and was killed", p.name, stopTimeout), err)
	}
	// A Java program ends so at the signal that asks for it.
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && p.in == nil && status.ExitStatus() == 128+int(syscall.SIGTERM) {
		return nil
	}
	if p.err != nil {
		return p.early()
	}
	return nil
}

// kill ends a child of which nothing is needed any more: it need not write down what it has.
func (p *process) kill() error {
	if err := p.alive(); err != nil {
		return err
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", p.name, err)
	}
	<-p.exited
	return nil
}

// early is the error of a child that has ended by itself, with the end of its log.
func (p *process) early() error {
	const tail = 2 << 10
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		text = []byte(err.Error())
	}
	return fmt.Errorf("%s has ended: %w\n%s", p.name, errors.Join(p.err, errors.New("see its log")), bytes.TrimSpace(text[max(0, len(text)-tail):]))
}

// alive returns an error once the child has ended.
func (p *process) alive() error {
	select {
	case <-p.exited:
		return p.early()
	default:
		return nil
	}
}

// whileAlive returns a context that also ends when the child does: what needs it could wait for it in vain.
func (p *process) whileAlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-p.exited:
			cancel(p.early())
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// await asks until the answer is nil, or the child has ended. It asks seldom enough not to be a load of its own.
func (p *process) await(ctx context.Context, what string, ready func(context.Context) error) error {
	ctx, cancel := p.whileAlive(ctx)
	defer cancel()
	if err := awaitEvery(ctx, processPoll, what, ready); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return nil
}

// usage is what a process has used since it started.
type usage struct {
	cpu  time.Duration // user and system
	peak int64         // largest resident memory, bytes
}

func (p *process) usage() (usage, error) { return usageOf(strconv.Itoa(p.cmd.Process.Pid)) }

func usageOf(pid string) (usage, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return usage{}, fmt.Errorf("read what a process uses: %w", err)
	}
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return usage{}, fmt.Errorf("read what a process uses: %w", err)
	}
	cpu, err := parseCPU(string(stat))
	if err != nil {
		return usage{}, err
	}
	peak, err := parsePeak(string(status))
	return usage{cpu: cpu, peak: peak}, err
}

// parseCPU reads proc_pid_stat(5). The name of the program, in parentheses, may hold anything.
func parseCPU(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const user, system = 14 - 3, 15 - 3 // numbered from 1, and the first two are cut off
	if len(fields) <= system {
		return 0, fmt.Errorf("read what a process uses: %q has %d fields behind the name", stat, len(fields))
	}
	u, err := strconv.ParseInt(fields[user], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read what a process uses: %w", err)
	}
	s, err := strconv.ParseInt(fields[system], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read what a process uses: %w", err)
	}
	return time.Duration(u+s) * clockTick, nil
}

// parsePeak reads VmHWM of proc_pid_status(5), in bytes.
func parsePeak(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the resident memory of a process: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("read the resident memory of a process: there is no VmHWM")
}

// peer is a child that does a piece of work, says "done EVENTS SECONDS" and stays until its input ends, so that it can be looked at.
type peer struct {
	*process
	events  int64
	seconds float64
	extra   []string // what it says behind that
}

// startPeer starts a child and waits until it is done.
func startPeer(ctx context.Context, name, dir string, cmd *exec.Cmd) (*peer, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	// A pipe of our own: Wait must not close it before the last line is read.
	out, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	cmd.Stdout = w
	child, err := startProcess(name, dir, cmd)
	_ = w.Close() // the child has its own
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	child.in = in
	p := &peer{process: child}
	said := make(chan error, 1)
	go func() {
		said <- p.listen(out)
		_ = out.Close() // nothing more is to come
	}()
	select {
	case err = <-said:
		if err != nil {
			_ = child.cmd.Process.Kill() // one that has not ended yet has said something that is not to be read
			<-child.exited
			err = errors.Join(err, child.early())
		}
	case <-ctx.Done():
		err = fmt.Errorf("wait for %s: %w", name, errors.Join(ctx.Err(), child.cmd.Process.Kill()))
		<-child.exited
	}
	return p, err
}

// listen reads until the child says that it is done. Other lines are left alone: libraries print what they like.
func (p *peer) listen(out io.Reader) error {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		done, err := p.parse(lines.Text())
		if err != nil || done {
			return err
		}
	}
	return errors.Join(fmt.Errorf("%s has ended before it was done", p.name), lines.Err())
}

func (p *peer) parse(line string) (done bool, err error) {
	fields := strings.Fields(line)
	if len(fields) < 3 || fields[0] != "done" {
		return false, nil
	}
	if p.events, err = strconv.ParseInt(fields[1], 10, 64); err == nil {
		p.seconds, err = strconv.ParseFloat(fields[2], 64)
	}
	if err != nil {
		return false, fmt.Errorf("read what %s says, %q: %w", p.name, line, err)
	}
	p.extra = fields[3:]
	return true, nil
}

// freeAddr returns an address on loopback that nobody listens at, for a process that must be told one.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	if err := l.Close(); err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), nil
}

// sizeOf returns the bytes that all files below a folder take on disk: files that are made larger in advance take no more than what is in them.
// Files may come and go meanwhile.
func sizeOf(dir string) (int64, error) {
	var size int64
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("the system does not tell the blocks of a file")
		}
		const block = 512 // the unit of st_blocks
		size += stat.Blocks * block
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return size, nil
}
