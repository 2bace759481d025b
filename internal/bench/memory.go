package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// install copies the program to a new directory below dir, as a package does, and
// measures that from here on. What the linker has just written through a mapping lies
// in the page cache in pieces of up to 2 MiB, and Linux 6.18 maps such a piece whole
// where one page of it is needed: that would be the memory of who builds the program,
// not of who installs it.
func (b *bench) install(dir string) error {
	dir, err := os.MkdirTemp(dir, "tcpcoroner-bench-program-")
	if err != nil {
		return fmt.Errorf("make a directory for the program: %w", err)
	}
	built, path := b.program, filepath.Join(dir, filepath.Base(b.program))
	b.defers(func() error {
		b.program = built
		return os.RemoveAll(dir)
	})
	if err := copyProgram(path, built); err != nil {
		return fmt.Errorf("copy program %s to %s: %w", built, path, err)
	}
	b.program = path
	return nil
}

func copyProgram(path, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}
