package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 2 {
		return fmt.Errorf("got %d arguments, want 2: GENERATED OVERLAY", len(args))
	}
	document, err := read(args[0])
	if err != nil {
		return err
	}
	overlay, err := read(args[1])
	if err != nil {
		return err
	}
	merge(document, overlay)

	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(document); err != nil {
		return fmt.Errorf("writing the document: %w", err)
	}
	return nil
}

func read(path string) (map[string]any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading a document: %w", err)
	}
	defer f.Close()

	// Numbers stay as they are written: float64 would reformat large ones.
	dec := json.NewDecoder(f)
	dec.UseNumber()
	var document map[string]any
	if err := dec.Decode(&document); err != nil {
		return nil, fmt.Errorf("parsing %s: %w", path, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("parsing %s: text after the end of the document", path)
	}
	if document == nil {
		return nil, fmt.Errorf("parsing %s: null is no object", path)
	}
	return document, nil
}

// merge lays src over dst. Parts of src become parts of dst.
func merge(dst, src map[string]any) {
	for key, value := range src {
		below, isObject := dst[key].(map[string]any)
		above, overObject := value.(map[string]any)
		if isObject && overObject {
			merge(below, above)
			continue
		}
		dst[key] = value
	}
}
