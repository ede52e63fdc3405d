// Command alicaptcha finds what is wrong with a setup of CAPTCHA 2.0, and serves
// a simulator of the service for programs in any language:
//
//	alicaptcha doctor -region sgp -scene 1a2b3c4d
//	alicaptcha simulate
//
// Its help says all there is to it: alicaptcha help doctor.
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
	"strings"
	"syscall"
)

const help = `Alicaptcha is the tool beside the Go package github.com/alicaptcha/alicaptcha,
which puts Alibaba Cloud CAPTCHA 2.0 in front of handlers.

usage:
  alicaptcha doctor -region cn|sgp [flags]  find what is wrong with keys, endpoint or scene
  alicaptcha simulate [flags]               serve a simulator of the service
  alicaptcha version                        print the version
  alicaptcha help [doctor|simulate]         print what a command does, and its flags

The exit status is 0 if all is right, 1 if something is not, 2 for a wrong use.
`

// errFound ends doctor where it has printed a finding.
var errFound = errors.New("there is a finding")

// A usageError is a fault of the command line.
type usageError struct{ error }

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	if err != errFound {
		// A joined error has a line for each fault.
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
		case len(args) == 1 && (args[0] == "doctor" || args[0] == "simulate"):
			return run([]string{args[0], "-h"}, stdout, stderr)
		case len(args) > 0:
			return usageError{errors.New("there is help on doctor and on simulate only")}
		}
		_, err := io.WriteString(stdout, help)
		return err
	case "doctor":
		return doctor(args, stdout, stderr)
	case "simulate":
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the shutdown
		return simulate(ctx, args, stdout, stderr)
	case "version", "-version", "--version":
		if len(args) > 0 {
			return usageError{errors.New("version has neither flags nor arguments")}
		}
		_, err := fmt.Fprintln(stdout, version())
		return err
	case "":
		// A script must not take help for success.
		return usageError{errors.New("a command is missing: alicaptcha help lists them")}
	}
	return usageError{fmt.Errorf("%q is no command: alicaptcha help lists them", name)}
}

// parse parses args. It reports false where they asked for help, which is
// printed then.
func parse(flags *flag.FlagSet, args []string, about string, stdout io.Writer) (bool, error) {
	flags.SetOutput(io.Discard) // main prints the error, in one line
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
	case flags.NArg() > 0: // which may be a key, and is not shown
		err := fmt.Errorf("%s takes flags and no arguments: alicaptcha help %[1]s lists them", flags.Name())
		return false, usageError{err}
	}
	return true, nil
}

// version returns the version that the program was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "alicaptcha, of an unknown version"
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
