// Command alicaptcha finds problems in a setup of CAPTCHA 2.0, puts a captcha in
// front of programs in any language, and serves them a simulator of the service:
//
//	alicaptcha doctor -region sgp -scene 1a2b3c4d
//	alicaptcha gate -region sgp -scene 1a2b3c4d
//	alicaptcha simulate
//
// "alicaptcha help doctor", "alicaptcha help gate" and "alicaptcha help simulate"
// describe each command.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
)

const help = `Alicaptcha is the command-line tool of the Go package
github.com/alicaptcha/alicaptcha, which puts Alibaba Cloud CAPTCHA 2.0 in front
of HTTP handlers.

usage:
  alicaptcha doctor -region cn|sgp [flags]  find problems with keys, endpoint or scene
  alicaptcha gate -region cn|sgp -scene ID [flags]
                                            answer proxies that ask whether a request may pass
  alicaptcha simulate [flags]               serve a simulator of the service
  alicaptcha version                        print the version
  alicaptcha help [doctor|gate|simulate]    describe a command and its flags

The exit status is 0 for success, 1 for a finding or a failure, 2 for incorrect
usage.
`

// errFound is returned by doctor after it has printed a finding.
var errFound = errors.New("there is a finding")

// usageError is an error in the command line.
type usageError struct{ error }

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	if err != errFound {
		// A joined error has one line for each fault.
		fmt.Fprintln(os.Stderr, "alicaptcha:", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if _, ok := errors.AsType[usageError](err); ok {
		os.Exit(2)
	}
	os.Exit(1)
}

func run(args []string, stdout, stderr io.Writer) error {
	name := ""
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch name {
	case "help", "-h", "-help", "--help":
		switch {
		case len(args) == 1 && slices.Contains([]string{"doctor", "gate", "simulate"}, args[0]):
			return run([]string{args[0], "-h"}, stdout, stderr)
		case len(args) > 0:
			return usageError{errors.New("help is available for doctor, gate and simulate only")}
		}
		_, err := io.WriteString(stdout, help)
		return err
	case "doctor":
		return doctor(args, stdout, stderr)
	case "gate", "simulate":
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the shutdown
		if name == "gate" {
			return runGate(ctx, args, stdout, stderr)
		}
		return simulate(ctx, args, stdout, stderr)
	case "version", "-version", "--version":
		if len(args) > 0 {
			return usageError{errors.New("version takes no flags or arguments")}
		}
		_, err := fmt.Fprintln(stdout, version())
		return err
	case "":
		// An error, so that a script does not take the help for success.
		return usageError{errors.New("a command is required: see alicaptcha help")}
	}
	return usageError{fmt.Errorf("%q is not a command: see alicaptcha help", name)}
}

// parse parses args. It reports false if they ask for help, which it prints, or
// are in error.
func parse(flags *flag.FlagSet, args []string, about string, stdout io.Writer) (bool, error) {
	flags.SetOutput(io.Discard) // main prints the error on one line
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		var text strings.Builder
		text.WriteString(about + "\nFlags:\n")
		flags.SetOutput(&text)
		flags.PrintDefaults()
		_, err := io.WriteString(stdout, text.String())
		return false, err
	case err != nil:
		return false, usageError{err}
	case flags.NArg() > 0: // not shown, because it may be a key
		err := fmt.Errorf("%s takes flags but no arguments: see alicaptcha help %[1]s", flags.Name())
		return false, usageError{err}
	}
	return true, nil
}

// version returns the version of the source of the program.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "alicaptcha, unknown version"
	}
	var text strings.Builder
	text.WriteString("alicaptcha " + info.Main.Version + " " + info.GoVersion)
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			text.WriteString(" " + s.Value)
		}
	}
	return text.String()
}
